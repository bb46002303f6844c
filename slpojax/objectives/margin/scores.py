"""Objectives that hold DPO's margin against the candidates' scores; see `slpojax.objectives.margin`."""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Logps, Scalar
from slpojax.numerics import bernoulli_kl, log1mexp
from slpojax.objectives import require
from slpojax.objectives.pairs import margin, score_gap


def odpo(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.1, alpha: Scalar = 1.0
) -> tuple[Array, dict[str, Array]]:
    r"""ODPO: the margin must exceed an offset that grows with the difference of the scores.

    .. math:: L = -\log \sigma(\beta h - \alpha \log(s_w - s_l))

    As the scores meet the offset falls without bound and the loss to 0, which is what it is for a pair whose scores are
    equal or contradict the preference, whatever alpha; the metric score/ordered tells how many are not such.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        score: [K] scores; that of candidate 0 the higher.
        beta: strength of the pull to the reference, per nat.
        alpha: scale of the offset, from 0 (DPO).

    Returns:
        The loss in nats, and the metrics, with score/ordered: 1 where the scores agree with the preference, else 0.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{odpo(policy, ref, jnp.float32([3.0, 1.0]), beta=0.1, alpha=0.5)[0]:.6f}")
        0.782609

    Verified:
        The formula in 120 digits; the formula is that of the authors' code.

    Reference:
        Afra Amini, Tim Vieira, Ryan Cotterell, Direct Preference Optimization with an Offset, 2024, arXiv:2402.10571.
    """
    require(alpha >= 0, "alpha", alpha, "a number from 0")
    z, metrics = margin(beta, policy, ref)
    gap = score_gap(score)
    ordered = gap > 0
    offset = alpha * jnp.log(jnp.where(ordered, gap, 1.0))
    return jnp.where(ordered, jax.nn.softplus(offset - z), 0.0), metrics | {"score/ordered": ordered.astype(z.dtype)}


def spce(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.1, eta: Scalar = 1.0
) -> tuple[Array, dict[str, Array]]:
    r"""SPCE, of online self-preferring: cross-entropy with how strongly the judge prefers, in the place of a label.

    .. math:: L = -p \log \sigma(\beta h) - (1 - p) \log \sigma(-\beta h), \quad p = \sigma(\eta (s_w - s_l))

    The strength p comes from the scores: with a judge's log-odds, or its log-probs of the two answers, and eta = 1 it
    is the judge's own probability. Scores that are equal say that neither response is preferred. A constant p is
    `dpo.conservative`; less the entropy of p it is `rpo_backward_kl`. The pairs of that method, each sample against
    every lower-ranked one, are made by whoever makes the data.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        score: [K] log-odds, or log-probs, of a candidate to be the better one.
        beta: strength of the pull to the reference, per nat.
        eta: scale of the scores, above 0.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{spce(policy, ref, jnp.float32([1.0, 0.0]), beta=0.1)[0]:.6f}")
        0.656535

    Verified:
        Unverified: the loss is from memory of the paper, and summaries of it have no formula; the way from scores to p
        is this project's. Both in 120 digits.

    Reference:
        Yuanzhao Zhai, Zhuo Zhang, Kele Xu, Hanyang Peng, Yue Yu, Dawei Feng, Cheng Yang, Bo Ding, Huaimin Wang, Online
        Self-Preferring Language Models, 2024, arXiv:2405.14103.
    """
    require(eta > 0, "eta", eta, "a number above 0")
    z, metrics = margin(beta, policy, ref)
    return jax.nn.softplus(-z) + jax.nn.sigmoid(-eta * score_gap(score)) * z, metrics


def rpo_squared(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.2, eta: Scalar = 1.0
) -> tuple[Array, dict[str, Array]]:
    r"""Reward-aware preference optimisation, squared distance: the margin is to equal the scores' own. NeMo's `rpo_sq`.

    .. math:: L = \big(\beta h - \eta (s_w - s_l)\big)^2

    REBEL (arXiv:2404.16767) is this objective with the policy's own samples and the iterate that they are from as the
    reference: its loss is that of beta one over its step, its eta, and of eta 1.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        score: [K] rewards; equal ones ask for no margin.
        beta: strength of the pull to the reference, per nat.
        eta: scale of the scores, above 0. NeMo's `gt_reward_scale`.

    Returns:
        The loss, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{rpo_squared(policy, ref, jnp.float32([2.0, 1.0]), beta=0.2)[0]:.6f}")
        0.422500

    Verified:
        The formula in 120 digits; the formula is that of NeMo-Aligner's code, which was read.

    Reference:
        Shengyang Sun and others, Reward-aware Preference Optimization: A Unified Mathematical Framework for Model
        Alignment, 2025, arXiv:2502.00203; NVIDIA, Nemotron-4 340B Technical Report, 2024, arXiv:2406.11704.
    """
    require(eta > 0, "eta", eta, "a number above 0")
    z, metrics = margin(beta, policy, ref)
    return (z - eta * score_gap(score)) ** 2, metrics


def rpo_backward_kl(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.2, eta: Scalar = 1.0
) -> tuple[Array, dict[str, Array]]:
    r"""Reward-aware preference optimisation, backward divergence. NeMo's `rpo_bwd_kl`.

    .. math:: L = KL\big(\sigma(\eta (s_w - s_l)) \,\|\, \sigma(\beta h)\big)

    The directions have NeMo's names: backward is the one in which the preference of the scores weighs.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        score: [K] rewards; equal ones ask for no margin.
        beta: strength of the pull to the reference, per nat.
        eta: scale of the scores, above 0. NeMo's `gt_reward_scale`.

    Returns:
        The loss in nats, 0 where the margins agree, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{rpo_backward_kl(policy, ref, jnp.float32([2.0, 1.0]), beta=0.2)[0]:.6f}")
        0.045309

    Verified:
        The formula in 120 digits; the formula is that of NeMo-Aligner's code, which was read.

    Reference:
        Shengyang Sun and others, Reward-aware Preference Optimization: A Unified Mathematical Framework for Model
        Alignment, 2025, arXiv:2502.00203; NVIDIA, Nemotron-4 340B Technical Report, 2024, arXiv:2406.11704.
    """
    require(eta > 0, "eta", eta, "a number above 0")
    z, metrics = margin(beta, policy, ref)
    return bernoulli_kl(eta * score_gap(score), z), metrics


def rpo_forward_kl(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.2, eta: Scalar = 1.0
) -> tuple[Array, dict[str, Array]]:
    r"""Reward-aware preference optimisation, forward divergence. NeMo's `rpo_fwd_kl`.

    .. math:: L = KL\big(\sigma(\beta h) \,\|\, \sigma(\eta (s_w - s_l))\big)

    With one difference of scores for all pairs it is `exo_pair`.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        score: [K] rewards; equal ones ask for no margin.
        beta: strength of the pull to the reference, per nat.
        eta: scale of the scores, above 0. NeMo's `gt_reward_scale`.

    Returns:
        The loss in nats, 0 where the margins agree, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{rpo_forward_kl(policy, ref, jnp.float32([2.0, 1.0]), beta=0.2)[0]:.6f}")
        0.048578

    Verified:
        The formula in 120 digits; the formula is that of NeMo-Aligner's code, which was read.

    Reference:
        Shengyang Sun and others, Reward-aware Preference Optimization: A Unified Mathematical Framework for Model
        Alignment, 2025, arXiv:2502.00203; NVIDIA, Nemotron-4 340B Technical Report, 2024, arXiv:2406.11704.
    """
    require(eta > 0, "eta", eta, "a number above 0")
    z, metrics = margin(beta, policy, ref)
    return bernoulli_kl(z, eta * score_gap(score)), metrics


def todo(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.01, alpha: Scalar = 0.5
) -> tuple[Array, dict[str, Array]]:
    r"""TODO: pairs may be tied, and a preference is a margin that is clear of a tie.

    .. math:: L = -\log \sigma(z - \alpha) \text{ or, of a tie, }
        -\log \sigma(z - \alpha) - \log \sigma(-z - \alpha) - \log(e^{2 \alpha} - 1), \quad z = \beta h

    They are logarithms of probabilities that add up to one, of a win of either response and of a tie. A tie is
    likeliest at z = 0 and pulls the two rewards together. As alpha falls to 0 ties become impossible, and a
    preference DPO's. The scores are only asked whether they are equal; pairs of equal scores are left out of the data
    unless `data.ties` is keep.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1, or tied with it.
        ref: the same responses under the reference.
        score: [K] scores; equal ones are a tie.
        beta: strength of the pull to the reference, per nat.
        alpha: half the width of a tie, above 0; the authors' settings have 0.5, their code's default is 0.7.

    Returns:
        The loss in nats, and the metrics, with score/tied: 1 of a tie, else 0.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{todo(policy, ref, jnp.float32([2.0, 1.0]), beta=0.1, alpha=0.5)[0]:.6f}")
        0.868793
        >>> print(f"{todo(policy, ref, jnp.float32([1.0, 1.0]), beta=0.1, alpha=0.5)[0]:.6f}")
        1.414019

    Verified:
        The formula in 120 digits, and that the probabilities add up to one; the formula is that of the authors' code,
        which was read.

    Reference:
        Yuxiang Guo, Lu Yin, Bo Jiang, Jiaqi Zhang, TODO: Enhancing LLM Alignment with Ternary Preferences, 2024,
        arXiv:2411.02442.
    """
    require(alpha > 0, "alpha", alpha, "a number above 0")
    z, metrics = margin(beta, policy, ref)
    tied = score_gap(score) == 0
    won, lost = jax.nn.softplus(alpha - z), jax.nn.softplus(alpha + z)
    width = 2 * alpha + log1mexp(jnp.asarray(-2 * alpha, z.dtype))  # log(e^(2 alpha) - 1)
    return jnp.where(tied, won + lost - width, won), metrics | {"score/tied": tied.astype(z.dtype)}
