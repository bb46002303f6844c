"""TPO: the likelihood of a gold response, and a pair behind it; see `slpojax.objectives.reference_free`."""

import jax.numpy as jnp  # noqa: F401  # for the examples

from slpojax.base import Array, Logps, Scalar
from slpojax.objectives import likelihood
from slpojax.objectives.reference_free.contrast import cpo, cpo_hinge, cpo_ipo
from slpojax.objectives.reference_free.means import simpo
from slpojax.sequence import first


def tpo(
    policy: Logps,
    *,
    beta: Scalar = 0.01,
    tpo_alpha: Scalar = 1.0,
    label_smoothing: Scalar = 0.0,
    nll: str = "token_mean",
) -> tuple[Array, dict[str, Array]]:
    r"""Triple preference optimisation: the likelihood of a gold response, and a preference between two others.

    .. math:: L = -\log \sigma\big(\beta (L(y_w) - L(y_l))\big) + \alpha \, NLL(y_{gold})

    Three candidates in the order in which ranked data comes: the gold response, the chosen, the rejected.

    Args:
        policy: [K, T] log-probs; candidate 0 is the gold response, candidate 1 is preferred to candidate 2.
        beta: scale of the reward, per nat.
        tpo_alpha: alpha, weight of the gold response's likelihood, from 0.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.
        nll: "token_mean" as in TRL, "sequence_mean" or "sequence_sum".

    Returns:
        The loss in nats, and the metrics of the pair, with the reward beta log P; nll_loss is the gold response's.

    Example:
        >>> token = jnp.float32([[-0.5], [-0.25], [-2.0]])
        >>> policy = Logps(token, jnp.float32([[-0.93], [-1.5], [-0.15]]), jnp.int32([1, 1, 1]))
        >>> print(f"{tpo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        1.109470

    Verified:
        TRL 1.16's TPOTrainer, `sigmoid` (loss, and gradients by the logits), and the formula in 120 digits.

    Reference:
        Amir Saeidi, Shivanshu Verma, Aswin RRV, Kashif Rasul, Chitta Baral, Triple Preference Optimization: Achieving
        Better Alignment using a Single Step Optimization, 2024, arXiv:2405.16681.
    """
    pair = cpo(_after_gold(policy), beta=beta, cpo_alpha=0.0, label_smoothing=label_smoothing)
    return likelihood.add(*pair, policy, "tpo_alpha", tpo_alpha, nll)


def tpo_hinge(
    policy: Logps, *, beta: Scalar = 0.01, tpo_alpha: Scalar = 1.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""TPO with a hinge: TRL's TPOTrainer, `hinge`.

    .. math:: L = \max\big(0, 1 - \beta (L(y_w) - L(y_l))\big) + \alpha \, NLL(y_{gold})

    Args:
        policy: [K, T] log-probs; candidate 0 is the gold response, candidate 1 is preferred to candidate 2.
        beta: one over the margin asked for, per nat.
        tpo_alpha: alpha, weight of the gold response's likelihood, from 0.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss, and the metrics of `tpo`.

    Example:
        >>> token = jnp.float32([[-0.5], [-0.25], [-2.0]])
        >>> policy = Logps(token, jnp.float32([[-0.93], [-1.5], [-0.15]]), jnp.int32([1, 1, 1]))
        >>> print(f"{tpo_hinge(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        1.325000

    Verified:
        TRL 1.16's TPOTrainer, `hinge` (loss, and gradients by the logits), and the formula in 120 digits.

    Reference:
        Amir Saeidi et al., Triple Preference Optimization, 2024, arXiv:2405.16681, with the hinge of `cpo_hinge`.
    """
    pair = cpo_hinge(_after_gold(policy), beta=beta, cpo_alpha=0.0)
    return likelihood.add(*pair, policy, "tpo_alpha", tpo_alpha, nll)


def tpo_ipo(
    policy: Logps, *, beta: Scalar = 0.01, tpo_alpha: Scalar = 1.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""TPO with IPO's square: TRL's TPOTrainer, `ipo`, on means over tokens.

    .. math:: L = \Big(\bar L(y_w) - \bar L(y_l) - \frac{1}{2 \beta}\Big)^2 + \alpha \, NLL(y_{gold})

    Args:
        policy: [K, T] log-probs; candidate 0 is the gold response, candidate 1 is preferred to candidate 2.
        beta: IPO's tau.
        tpo_alpha: alpha, weight of the gold response's likelihood, from 0.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss, and the metrics of `tpo`, with the reward beta times the mean log-prob.

    Example:
        >>> token = jnp.float32([[-0.5], [-0.25], [-2.0]])
        >>> policy = Logps(token, jnp.float32([[-0.93], [-1.5], [-0.15]]), jnp.int32([1, 1, 1]))
        >>> print(f"{tpo_ipo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        11.062500

    Verified:
        TRL 1.16's TPOTrainer, `ipo` (loss, and gradients by the logits), and the formula in 120 digits.

    Reference:
        Amir Saeidi et al., Triple Preference Optimization, 2024, arXiv:2405.16681, with the loss of `cpo_ipo`.
    """
    pair = cpo_ipo(_after_gold(policy), beta=beta, cpo_alpha=0.0)
    return likelihood.add(*pair, policy, "tpo_alpha", tpo_alpha, nll)


def tpo_l(
    policy: Logps,
    *,
    beta: Scalar = 0.01,
    gamma: Scalar = 0.5,
    tpo_alpha: Scalar = 1.0,
    label_smoothing: Scalar = 0.0,
    nll: str = "token_mean",
) -> tuple[Array, dict[str, Array]]:
    r"""TPO-L: TPO with SimPO's preference, on means over tokens and with a margin. TRL's `tpo-l`.

    .. math:: L = -\log \sigma\big(\beta (\bar L(y_w) - \bar L(y_l)) - \gamma\big) + \alpha \, NLL(y_{gold})

    Args:
        policy: [K, T] log-probs; candidate 0 is the gold response, candidate 1 is preferred to candidate 2.
        beta: scale of the reward; the authors have 0.01 and, with a weight of 0.05 on the likelihood, 2.
        gamma: the target margin between the rewards, from 0; TRL's `tpo_l_gamma`.
        tpo_alpha: alpha, weight of the gold response's likelihood, from 0.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.
        nll: "token_mean" as in TRL, "sequence_mean" or "sequence_sum".

    Returns:
        The loss in nats, and the metrics of `tpo`, with the reward beta times the mean log-prob.

    Example:
        >>> token = jnp.float32([[-0.5], [-0.25], [-2.0]])
        >>> policy = Logps(token, jnp.float32([[-0.93], [-1.5], [-0.15]]), jnp.int32([1, 1, 1]))
        >>> print(f"{tpo_l(policy, beta=2.0, gamma=1.0, nll='sequence_mean')[0]:.6f}")
        0.578890

    Verified:
        TRL 1.16's TPOTrainer, `tpo-l` (loss, and gradients by the logits), and the formula in 120 digits.

    Reference:
        Amir Saeidi, Shivanshu Verma, Aswin RRV, Kashif Rasul, Chitta Baral, Triple Preference Optimization: Achieving
        Better Alignment using a Single Step Optimization, 2024, arXiv:2405.16681.
    """
    pair = simpo(_after_gold(policy), beta=beta, gamma=gamma, label_smoothing=label_smoothing)
    return likelihood.add(*pair, policy, "tpo_alpha", tpo_alpha, nll)


def _after_gold(policy: Logps) -> Logps:
    """Return the chosen and the rejected of (gold, chosen, rejected)."""
    return Logps(*(x[1:] for x in first(policy, 3)))
