"""SimPO and AlphaPO: the mean log-prob of a token as the reward; see `slpojax.objectives.reference_free`."""

import jax.numpy as jnp  # noqa: F401  # for the examples

from slpojax.base import Array, Logps, Scalar
from slpojax.numerics import saturating
from slpojax.objectives import require
from slpojax.objectives.pairs import smoothed
from slpojax.sequence import first, mean, preference_metrics

_LARGEST_EXPONENT = 80.0  # exp of it is 6e34: in float32's range, with room for the factors around it


def simpo(
    policy: Logps, *, beta: Scalar = 2.0, gamma: Scalar = 1.0, label_smoothing: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""SimPO: the mean log-prob of a token as the reward, and a margin that the chosen must win by.

    .. math:: L = -\log \sigma\big(\beta (\bar L(y_w) - \bar L(y_l)) - \gamma\big)

    This is the paper's parametrisation and TRL's: TRL writes :math:`\beta (\Delta - \gamma / \beta)`, the authors' code
    asks for the ratio gamma / beta. beta multiplies means, so DPO's 0.1 hardly trains (TRL's default for this loss).

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: scale of the reward; the paper has 2 to 2.5, and 10.
        gamma: the target margin between the rewards; the paper has 0.1 to 0.8 times beta.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.

    Returns:
        The loss in nats, and the metrics, with the reward beta times the mean log-prob.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{simpo(policy, beta=2.0, gamma=1.0)[0]:.6f}")
        0.078890

    Verified:
        TRL 1.16's CPOTrainer, `simpo` (losses, rewards, gradients), and the paper's formula in 120 digits.

    Reference:
        Yu Meng, Mengzhou Xia, Danqi Chen, SimPO: Simple Preference Optimization with a Reference-Free Reward, 2024,
        arXiv:2405.14734, equation 6.
    """
    return alphapo(policy, alpha=0.0, beta=beta, gamma=gamma, label_smoothing=label_smoothing)


def alphapo(
    policy: Logps, *, alpha: Scalar = 0.25, beta: Scalar = 2.5, gamma: Scalar = 0.1, label_smoothing: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""AlphaPO: SimPO with a reward that is a power of the mean token probability. TRL's `simpo` with `alpha`.

    .. math:: L = -\log \sigma\big(\beta (r(y_w) - r(y_l)) - \gamma\big),
        \quad r(y) = \frac{1 - e^{-\alpha \bar L(y)}}{\alpha}

    alpha = 0 is the limit r = L / |y|: SimPO. Above 0 an unlikely response weighs more, below 0 less. The exponent is
    held at 80, which takes a mean of -320 nats per token at alpha = 0.25: beyond it a response gets no gradient.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        alpha: shape of the reward, any number.
        beta: scale of the reward.
        gamma: the target margin between the rewards, from 0.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.

    Returns:
        The loss in nats, and the metrics, with the reward beta r.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{alphapo(policy, alpha=0.25, beta=2.5, gamma=0.1)[0]:.6f}")
        0.003202

    Verified:
        TRL 1.16's CPOTrainer, `simpo` with `alpha` (losses, rewards, gradients), and the paper's formula in 120 digits.

    Reference:
        Aman Gupta, Shao Tang, Qingquan Song, Sirou Zhu, Jiwoo Hong, Ankan Saha, Viral Gupta, Noah Lee, Eunki Kim, Siyu
        Zhu, Parag Agrawal, Natesh Pillai, S. Sathiya Keerthi, AlphaPO: Reward Shape Matters for LLM Alignment, 2025,
        arXiv:2501.03884.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    require(gamma >= 0, "gamma", gamma, "a number from 0")
    reward = beta * saturating(mean(first(policy, 2)), alpha, _LARGEST_EXPONENT)
    return smoothed(reward[0] - reward[1] - gamma, label_smoothing), preference_metrics(policy, reward)
