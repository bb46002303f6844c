r"""Relatives of DPO that take its margin otherwise: another loss of it, an offset, a penalty, scores, lengths.

With :math:`\rho(y) = \log P(y) - \log P_{ref}(y)` summed over tokens, :math:`h = \rho(y_w) - \rho(y_l)`, |y| the number
of tokens and s the scores. An absent response has the log-ratio 0. Metrics: those of
`slpojax.sequence.preference_metrics` with the reward :math:`\beta \rho`, whatever the objective.
"""

import math

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Logps
from slpojax.objectives import require
from slpojax.objectives.pairs import inner, margin, rewards
from slpojax.sequence import first, size, total


def _bernoulli_kl(a: Array, b: Array) -> Array:
    """Return KL(sigmoid(a) || sigmoid(b))."""

    def term(a: Array, b: Array) -> Array:
        return jax.nn.sigmoid(a) * (jax.nn.log_sigmoid(a) - jax.nn.log_sigmoid(b))

    return term(a, b) + term(-a, -b)


def _gap(score: Float[Array, " K"]) -> Array:
    """Return how far the chosen's score lies above the rejected's."""
    return score[0] - score[1]


def exo_pair(
    policy: Logps, ref: Logps, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> tuple[Array, dict[str, Array]]:
    r"""EXO on a pair: the reverse divergence of the model's preference from the smoothed label. TRL's `exo_pair`.

    .. math:: L = KL(\sigma(\beta h) \,\|\, 1 - \epsilon)
        = q \log \frac{q}{1 - \epsilon} + (1 - q) \log \frac{1 - q}{\epsilon}, \quad q = \sigma(\beta h)

    Zero at :math:`\beta h = \log((1 - \epsilon) / \epsilon)`. Where a pair is very wrong, q near 0, its gradient
    vanishes.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.
        label_smoothing: epsilon, above 0 (the divergence from a certain label is infinite) and below 1/2.

    Returns:
        The loss in nats, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{exo_pair(policy, ref, beta=0.1)[0]:.4f}")
        2.4636

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards; TRL rounds epsilon to float32) and the formula in 120 digits.

    Reference:
        Haozhe Ji, Cheng Lu, Yilin Niu, Pei Ke, Hongning Wang, Jun Zhu, Jie Tang, Minlie Huang, Towards Efficient Exact
        Optimization of Language Model Alignment, 2024, arXiv:2402.00856 ("EXO-pref").
    """
    require(0 < label_smoothing < 0.5, "label_smoothing", label_smoothing, "a number above 0 and below 1/2")
    z, metrics = margin(beta, policy, ref)
    return _bernoulli_kl(z, jnp.asarray(math.log1p(-label_smoothing) - math.log(label_smoothing), z.dtype)), metrics


def sigmoid_norm(policy: Logps, ref: Logps, *, beta: float = 5.0) -> tuple[Array, dict[str, Array]]:
    r"""DPO on log-ratios per token. TRL's `sigmoid_norm`.

    .. math:: L = -\log \sigma\Big(\beta \Big(\frac{\rho(y_w)}{|y_w|} - \frac{\rho(y_l)}{|y_l|}\Big)\Big)

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: per nat and token: about a length larger than DPO's.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics, whose rewards are sums.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{sigmoid_norm(policy, ref, beta=2.0)[0]:.6f}")
        0.029750

    Verified:
        TRL 1.16 (values, gradients, rewards) and the formula in 120 digits.

    Reference:
        Nathan Lambert and others, Tulu 3: Pushing Frontiers in Open Language Model Post-Training, 2024,
        arXiv:2411.15124 (length-normalised DPO).
    """
    reward, metrics = rewards(beta, policy, ref)
    reward = reward / size(first(policy, 2))
    return jax.nn.softplus(reward[1] - reward[0]), metrics


def discopop(policy: Logps, ref: Logps, *, beta: float = 0.05, tau: float = 0.05) -> tuple[Array, dict[str, Array]]:
    r"""DiscoPOP: a mixture of the logistic and the exponential loss that a language model found. TRL's `discopop`.

    .. math:: L = (1 - m) \log(1 + e^{-z}) + m e^{-z}, \quad z = \beta h, \; m = \sigma(z / \tau)

    Not convex: it has a local minimum at a negative margin.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.
        tau: how soft the change from one loss to the other is, above 0 and up to 1, beyond which the loss of a wrong
            pair grows exponentially. TRL's `discopop_tau`.

    Returns:
        The loss (0.846574 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{discopop(policy, ref, beta=0.05, tau=0.05)[0]:.6f}")
        0.876858

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards) and the formula in 120 digits.

    Reference:
        Chris Lu, Samuel Holt, Claudio Fanconi, Alex J. Chan, Jakob Foerster, Mihaela van der Schaar, Robert Tjarko
        Lange, Discovering Preference Optimization Algorithms with and for Large Language Models, 2024,
        arXiv:2406.08414.
    """
    require(0 < tau <= 1, "tau", tau, "a number above 0, up to 1")
    z, metrics = margin(beta, policy, ref)
    # One exponential of the sum of the logarithms: m falls faster than exp(-z) grows.
    exponential = jnp.exp(jax.nn.log_sigmoid(z / tau) - z)
    return jax.nn.sigmoid(-z / tau) * jax.nn.softplus(-z) + exponential, metrics


def dpop(policy: Logps, ref: Logps, *, beta: float = 0.3, penalty: float = 50.0) -> tuple[Array, dict[str, Array]]:
    r"""DPO-Positive (Smaug): a margin that pays for a chosen response less likely than under the reference.

    .. math:: L = -\log \sigma\big(\beta (h - \lambda \max(0, -\rho(y_w)))\big)

    The penalty stands inside the sigmoid. At policy == reference, its kink, it has no gradient.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.
        penalty: lambda, from 0 (DPO).

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-1.25], [-2.0]]), jnp.float32([[-0.34], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{dpop(policy, ref, beta=0.3, penalty=2.0)[0]:.6f}")
        0.656350

    Verified:
        The formula in 120 digits; no numbers of the authors' code.

    Reference:
        Arka Pal, Deep Karkhanis, Samuel Dooley, Manley Roberts, Siddartha Naidu, Colin White, Smaug: Fixing Failure
        Modes of Preference Optimisation with DPO-Positive, 2024, arXiv:2402.13228.
    """
    require(penalty >= 0, "penalty", penalty, "a number from 0")
    reward, metrics = rewards(beta, policy, ref)
    return jax.nn.softplus(reward[1] - reward[0] + penalty * jax.nn.relu(-reward[0])), metrics


def odpo(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: float = 0.1, alpha: float = 1.0
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
    gap = _gap(score)
    ordered = gap > 0
    offset = alpha * jnp.log(jnp.where(ordered, gap, 1.0))
    return jnp.where(ordered, jax.nn.softplus(offset - z), 0.0), metrics | {"score/ordered": ordered.astype(z.dtype)}


def r_dpo(policy: Logps, ref: Logps, *, beta: float = 0.1, alpha: float = 0.01) -> tuple[Array, dict[str, Array]]:
    r"""R-DPO, regularised by length: the preference is explained by the difference of the lengths first.

    .. math:: L = -\log \sigma\big(\beta h + \alpha (|y_w| - |y_l|)\big)

    It is DPO's loss for the reward less alpha per token: a chosen response that is the longer one teaches less, a
    chosen one that is the shorter one more. Not robust DPO, which is `dpo.robust`.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.
        alpha: per token, from 0 (DPO).

    Returns:
        The loss in nats, and the metrics.

    Example:
        >>> token, other = jnp.float32([[-0.25, -1.0], [-2.0, 0.0]]), jnp.float32([[-1.5, -0.46], [-0.15, -1e30]])
        >>> policy = Logps(token, other, jnp.int32([2, 1]))
        >>> ref = Logps(jnp.float32([[-1.0, -1.0], [-1.0, 0.0]]), other, jnp.int32([2, 1]))
        >>> print(f"{r_dpo(policy, ref, beta=0.1, alpha=0.05)[0]:.6f}")
        0.586962

    Verified:
        The formula in 120 digits; no numbers of the authors' code. That the term stands inside the logarithm with this
        sign says a second source, a published summary of the paper; the default of alpha is from memory.

    Reference:
        Ryan Park, Rafael Rafailov, Stefano Ermon, Chelsea Finn, Disentangling Length from Quality in Direct Preference
        Optimization, 2024, arXiv:2403.19159.
    """
    require(alpha >= 0, "alpha", alpha, "a number from 0")
    z, metrics = margin(beta, policy, ref)
    chosen, rejected = first(policy, 2).length
    return jax.nn.softplus(alpha * (rejected - chosen) - z), metrics


def ld_dpo(
    policy: Logps, ref: Logps, *, beta: float = 0.1, alpha: float = 0.5, loss: str = "dpo.sigmoid"
) -> tuple[Array, dict[str, Array]]:
    r"""LD-DPO, desensitised to length: what the longer response has beyond the shorter one's length counts less.

    .. math:: \log P_\alpha(y) = \sum_{t \le m} \log p(y_t) + \alpha \sum_{t > m} \log p(y_t),
        \quad m = \min(|y_w|, |y_l|)

    for the policy and for the reference, in the loss of a pair: DPO's, or another. TRL's `ld_alpha`. The metrics too
    are of these log-probs.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: that of the pair's loss.
        alpha: weight of the tail, from 0 (cut off) to 1 (the plain loss).
        loss: the objective that sees these log-probs, by name, with its other hyperparameters at their defaults: one of
            the modules dpo, margin and anchored that reads log-probs alone.

    Returns:
        The loss, and the metrics of that objective.

    Example:
        >>> token, other = jnp.float32([[-0.25, -0.5], [-2.0, 0.0]]), jnp.float32([[-1.5, -0.93], [-0.15, -1e30]])
        >>> policy = Logps(token, other, jnp.int32([2, 1]))
        >>> ref = Logps(jnp.float32([[-1.0, -1.0], [-1.0, 0.0]]), other, jnp.int32([2, 1]))
        >>> print(f"{ld_dpo(policy, ref, beta=0.1, alpha=0.5)[0]:.6f}")
        0.598139

    Verified:
        TRL 1.16 with sigmoid, hinge and ipo (values, gradients of every token, rewards, metrics) and the formula in 120
        digits.

    Reference:
        Wei Liu, Yang Bai, Chengcheng Han, Rongxiang Weng, Jun Xu, Xuezhi Cao, Jingang Wang, Xunliang Cai, Length
        Desensitization in Direct Preference Optimization, 2024, arXiv:2409.06411.
    """
    require(0 <= alpha <= 1, "alpha", alpha, "a number from 0 to 1")
    expected = "an objective of dpo, margin or anchored that reads log-probs alone"
    require(loss.startswith(("dpo.", "margin.", "anchored.")), "loss", loss, expected)
    objective = inner(loss, beta, expected)
    tail = jnp.arange(policy.token.shape[-1]) >= jnp.min(first(policy, 2).length)

    def desensitised(logps: Logps) -> Logps:
        logps = first(logps, 2)
        return logps._replace(token=jnp.where(tail, alpha * logps.token, logps.token))

    return objective.function(policy=desensitised(policy), ref=desensitised(ref))


def spce(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: float = 0.1, eta: float = 1.0
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
    return jax.nn.softplus(-z) + jax.nn.sigmoid(-eta * _gap(score)) * z, metrics


def hybrid_dpo(policy: Logps, ref: Logps, *, beta: float = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""Hybrid-DPO: the reference's own margin counts only where it agrees with the preference.

    .. math:: L = -\log \sigma\Big(\beta \Big(\log \frac{P(y_w)}{P(y_l)}
        - \max\Big(0, \log \frac{P_{ref}(y_w)}{P_{ref}(y_l)}\Big)\Big)\Big)

    DPO where the reference prefers the chosen; elsewhere the reference is left out, so that a pair is not done before
    the policy itself prefers the chosen. The paper's name, HyPO, is also that of another method.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-3.0], [-1.0]]), jnp.float32([[-0.05], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{hybrid_dpo(policy, ref, beta=0.1)[0]:.6f}")
        0.609470

    Verified:
        The formula, as the paper's abstract has it, in 120 digits; no numbers of the authors' code. The default of beta
        is DPO's.

    Reference:
        Suqin Yuan, Xingrui Yu, Jiyang Zheng, Lei Feng, Dadong Wang, Ivor Tsang, Tongliang Liu, Mitigating Mismatch
        within Reference-based Preference Optimization, 2026, arXiv:2602.11902.
    """
    z, metrics = margin(beta, policy, ref)
    alone, reference = total(first(policy, 2)), total(first(ref, 2))
    agrees = reference[0] > reference[1]
    return jax.nn.softplus(-jnp.where(agrees, z, beta * (alone[0] - alone[1]))), metrics


def rpo_squared(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: float = 0.2, eta: float = 1.0
) -> tuple[Array, dict[str, Array]]:
    r"""Reward-aware preference optimisation, squared distance: the margin is to equal the scores' own. NeMo's `rpo_sq`.

    .. math:: L = \big(\beta h - \eta (s_w - s_l)\big)^2

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
    return (z - eta * _gap(score)) ** 2, metrics


def rpo_backward_kl(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: float = 0.2, eta: float = 1.0
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
    return _bernoulli_kl(eta * _gap(score), z), metrics


def rpo_forward_kl(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: float = 0.2, eta: float = 1.0
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
    return _bernoulli_kl(z, eta * _gap(score)), metrics
