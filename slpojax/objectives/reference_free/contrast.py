"""CPO and SLiC-HF: the chosen against the rejected, and its likelihood; see `slpojax.objectives.reference_free`."""

import jax
import jax.numpy as jnp  # noqa: F401  # for the examples

from slpojax.base import Array, Logps, Scalar
from slpojax.objectives import likelihood, require
from slpojax.objectives.pairs import smoothed
from slpojax.sequence import first, mean, preference_metrics, total


def cpo(
    policy: Logps,
    *,
    beta: Scalar = 0.1,
    cpo_alpha: Scalar = 1.0,
    label_smoothing: Scalar = 0.0,
    nll: str = "token_mean",
) -> tuple[Array, dict[str, Array]]:
    r"""Contrastive preference optimisation: DPO under a uniform reference, and the likelihood of the chosen.

    .. math:: L = -\log \sigma\big(\beta (L(y_w) - L(y_l))\big) + \alpha \, NLL(y_w)

    The paper's likelihood term is the sum over the response (`nll="sequence_sum"`); its authors' code, which TRL keeps,
    is the mean over tokens, of the same size as the first term, and the default here.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: scale of the reward, per nat.
        cpo_alpha: alpha, weight of the likelihood, from 0.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss in nats, and the metrics, with the reward beta log P.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{cpo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        0.859470

    Verified:
        TRL 1.16's CPOTrainer, `sigmoid` (losses, rewards, gradients), and the paper's formula in 120 digits; the
        likelihood is that of `sft`.

    Reference:
        Haoran Xu, Amr Sharaf, Yunmo Chen, Weiting Tan, Lingfeng Shen, Benjamin Van Durme, Kenton Murray, Young Jin Kim,
        Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation, 2024,
        arXiv:2401.08417.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    reward = beta * total(first(policy, 2))
    loss = smoothed(reward[0] - reward[1], label_smoothing)
    return likelihood.add(loss, preference_metrics(policy, reward), policy, "cpo_alpha", cpo_alpha, nll)


def cpo_hinge(
    policy: Logps, *, beta: Scalar = 0.1, cpo_alpha: Scalar = 1.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""CPO with a hinge: TRL's CPOTrainer, `hinge`. beta is one over the margin asked for.

    .. math:: L = \max\big(0, 1 - \beta (L(y_w) - L(y_l))\big) + \alpha \, NLL(y_w)

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: per nat.
        cpo_alpha: alpha, weight of the likelihood, from 0.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss, and the metrics, with the reward beta log P.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{cpo_hinge(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        1.075000

    Verified:
        TRL 1.16's CPOTrainer, `hinge` (losses, rewards, gradients), and the formula in 120 digits.

    Reference:
        Haoran Xu et al., Contrastive Preference Optimization, 2024, arXiv:2401.08417, with the hinge of Yao Zhao et
        al., SLiC-HF: Sequence Likelihood Calibration with Human Feedback, 2023, arXiv:2305.10425.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    reward = beta * total(first(policy, 2))
    loss = jax.nn.relu(1 - (reward[0] - reward[1]))
    return likelihood.add(loss, preference_metrics(policy, reward), policy, "cpo_alpha", cpo_alpha, nll)


def cpo_ipo(
    policy: Logps, *, beta: Scalar = 0.1, cpo_alpha: Scalar = 1.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""CPO with IPO's square: TRL's CPOTrainer, `ipo`, on means over tokens.

    .. math:: L = \Big(\bar L(y_w) - \bar L(y_l) - \frac{1}{2 \beta}\Big)^2 + \alpha \, NLL(y_w)

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: IPO's tau.
        cpo_alpha: alpha, weight of the likelihood, from 0.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss, and the metrics, with the reward beta times the mean log-prob.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{cpo_ipo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        10.812500

    Verified:
        TRL 1.16's CPOTrainer, `ipo` (losses, rewards, gradients), and the formula in 120 digits.

    Reference:
        Haoran Xu et al., Contrastive Preference Optimization, 2024, arXiv:2401.08417, with the loss of Mohammad
        Gheshlaghi Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences, 2023,
        arXiv:2310.12036, equation 17.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    logp = mean(first(policy, 2))
    loss = (logp[0] - logp[1] - 1 / (2 * beta)) ** 2
    return likelihood.add(loss, preference_metrics(policy, beta * logp), policy, "cpo_alpha", cpo_alpha, nll)


def slic_hf(
    policy: Logps, *, delta: Scalar = 1.0, nll_weight: Scalar = 0.1, nll: str = "sequence_sum"
) -> tuple[Array, dict[str, Array]]:
    r"""SLiC-HF: a hinge on the log-probs, and the likelihood of the chosen.

    .. math:: L = \max(0, \delta - L(y_w) + L(y_l)) + \lambda \, NLL(y_w)

    The paper regularises with a supervised target or with the best of the ranked responses; here it is the chosen.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        delta: the margin asked for, in nats, from 0.
        nll_weight: lambda, weight of the likelihood, from 0; the default is that of public code, not the paper's.
        nll: "token_mean", "sequence_mean" or, as in the paper, "sequence_sum".

    Returns:
        The loss in nats, and the metrics, with the reward log P.

    Example:
        >>> policy = Logps(jnp.float32([[-1.25], [-2.0]]), jnp.float32([[-0.34], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{slic_hf(policy, delta=1.0, nll_weight=0.1)[0]:.6f}")
        0.375000

    Verified:
        The paper's formula in 120 digits. TRL has none.

    Reference:
        Yao Zhao, Rishabh Joshi, Tianqi Liu, Misha Khalman, Mohammad Saleh, Peter J. Liu, SLiC-HF: Sequence Likelihood
        Calibration with Human Feedback, 2023, arXiv:2305.10425.
    """
    require(delta >= 0, "delta", delta, "a number from 0")
    logp = total(first(policy, 2))
    loss = jax.nn.relu(delta - logp[0] + logp[1])
    return likelihood.add(loss, preference_metrics(policy, logp), policy, "nll_weight", nll_weight, nll)
