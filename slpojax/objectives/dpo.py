r"""Direct preference optimisation and its relatives in the margin of two log-ratios.

With :math:`\rho(y) = \log P(y) - \log P_{ref}(y)`, summed over tokens, all but the last two are functions of the margin
:math:`h = \rho(y_w) - \rho(y_l)`. An absent response has the log-ratio 0. Metrics: those of
`slpojax.sequence.preference_metrics` with the reward :math:`\beta \rho`, whatever the objective.
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Logps, Scalar
from slpojax.objectives import pairs, require
from slpojax.sequence import first, log_ratio, preference_metrics, size

_BETA = "a number above 0"
_SMOOTHING = "a number from 0 to below 1/2"


def sigmoid(policy: Logps, ref: Logps, *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""DPO.

    .. math:: L = -\log \sigma(\beta h), \quad \partial L / \partial \log P(y_w) = -\beta \sigma(-\beta h)

    Methods that are this loss on other pairs or beside another reference: SPIN (arXiv:2401.01335), whose rejected
    response is a sample of the iterate that is its reference; and Pre-DPO (arXiv:2504.15843), whose reference
    (`reference.path`) has been trained on the pairs before.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{sigmoid(policy, ref, beta=0.1)[0]:.6f}")
        0.609470

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards, metrics), the code of the paper's authors (values, gradients),
        and the formula in 120 digits.

    Reference:
        Rafael Rafailov, Archit Sharma, Eric Mitchell, Stefano Ermon, Christopher D. Manning, Chelsea Finn, Direct
        Preference Optimization: Your Language Model is Secretly a Reward Model, 2023, arXiv:2305.18290, equation 7.
    """
    z, metrics = pairs.margin(beta, policy, ref)
    return jax.nn.softplus(-z), metrics


def conservative(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, label_smoothing: Scalar = 0.1
) -> tuple[Array, dict[str, Array]]:
    r"""Conservative DPO: a label is wrong with probability epsilon, so the margin has a finite optimum.

    .. math:: L = -(1 - \epsilon) \log \sigma(\beta h) - \epsilon \log \sigma(-\beta h),
        \quad \beta h^* = \log((1 - \epsilon) / \epsilon)

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.
        label_smoothing: epsilon, from 0 (DPO) to below 1/2.

    Returns:
        The loss in nats, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{conservative(policy, ref, beta=0.1, label_smoothing=0.1)[0]:.6f}")
        0.626970

    Verified:
        TRL 0.24, the last that has it (1.x ignores the label smoothing of its `sigmoid`), the code of DPO's authors
        (values, gradients), and the formula in 120 digits.

    Reference:
        Eric Mitchell, A note on DPO with noisy preferences & relationship to IPO, 2023,
        https://ericmitchell.ai/cdpo.pdf.
    """
    z, metrics = pairs.margin(beta, policy, ref)
    return pairs.smoothed(z, label_smoothing), metrics


def robust(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, label_smoothing: Scalar = 0.1
) -> tuple[Array, dict[str, Array]]:
    r"""Robust DPO: unbiased for DPO's loss where a known share epsilon of the labels is flipped.

    .. math:: L = \frac{-(1 - \epsilon) \log \sigma(\beta h) + \epsilon \log \sigma(-\beta h)}{1 - 2 \epsilon}

    Unbounded below: it falls linearly in h.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.
        label_smoothing: epsilon, from 0 (DPO) to below 1/2.

    Returns:
        The loss in nats, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{robust(policy, ref, beta=0.1, label_smoothing=0.1)[0]:.6f}")
        0.587595

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards) and the formula in 120 digits.

    Reference:
        Sayak Ray Chowdhury, Anush Kini, Nagarajan Natarajan, Provably Robust DPO: Aligning Language Models with Noisy
        Feedback, 2024, arXiv:2403.00409.
    """
    require((0 <= label_smoothing) & (label_smoothing < 0.5), "label_smoothing", label_smoothing, _SMOOTHING)
    z, metrics = pairs.margin(beta, policy, ref)
    return jax.nn.softplus(-z) - label_smoothing * z / (1 - 2 * label_smoothing), metrics


def ipo(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, length_normalize: bool = True
) -> tuple[Array, dict[str, Array]]:
    r"""IPO: regress the margin on a constant.

    .. math:: L = \Big(h - \frac{1}{2 \beta}\Big)^2

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: the paper's tau.
        length_normalize: take the log-ratios of h as means over tokens, as TRL's trainer does after its exchange with
            the authors; False is the paper's equation, in sums. The two differ by a factor of the length in beta.

    Returns:
        The loss (25 where policy and reference agree and beta is 0.1), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(ipo(policy, ref, beta=0.1)[0])
        10.5625

    Verified:
        TRL 1.16 as means and 0.24 as sums (values, gradients, rewards), the code of DPO's authors as sums, and both
        formulas in 120 digits.

    Reference:
        Mohammad Gheshlaghi Azar, Mark Rowland, Bilal Piot, Daniel Guo, Daniele Calandriello, Michal Valko, Remi Munos,
        A General Theoretical Paradigm to Understand Learning from Human Preferences, 2023, arXiv:2310.12036,
        equation 17.
    """
    require(beta > 0, "beta", beta, _BETA)
    ratio = log_ratio(first(policy, 2), first(ref, 2))
    scaled = ratio / size(first(policy, 2)) if length_normalize else ratio
    return (scaled[0] - scaled[1] - 1 / (2 * beta)) ** 2, preference_metrics(policy, beta * ratio)


def hinge(policy: Logps, ref: Logps, *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""Hinge loss on the margin: beta is one over the margin asked for. TRL's `hinge`.

    .. math:: L = \max(0, 1 - \beta h)

    The gradient at the kink is 0.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: per nat.

    Returns:
        The loss (1 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{hinge(policy, ref, beta=0.1)[0]:.6f}")
        0.825000

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards) and the formula in 120 digits.

    Reference:
        Tianqi Liu, Yao Zhao, Rishabh Joshi, Misha Khalman, Mohammad Saleh, Peter J. Liu, Jialu Liu, Statistical
        Rejection Sampling Improves Preference Optimization, 2023, arXiv:2309.06657 ("hinge-norm").
    """
    z, metrics = pairs.margin(beta, policy, ref)
    return jax.nn.relu(1 - z), metrics


def _split_reward(policy: Logps, ref: Logps, beta: Scalar, gamma: Scalar) -> Array:
    """Return beta * log P - gamma * log P_ref of candidates 0 and 1, token by token first."""
    require(beta > 0, "beta", beta, _BETA)
    require(gamma >= 0, "gamma", gamma, "a number from 0")
    return jnp.sum(beta * first(policy, 2).token - gamma * first(ref, 2).token, axis=-1)


def beta_gamma(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, gamma: Scalar = 0.05
) -> tuple[Array, dict[str, Array]]:
    r"""DPO with a temperature of its own for the reference.

    .. math:: L = -\log \sigma\Big(\beta \log \frac{P(y_w)}{P(y_l)}
        - \gamma \log \frac{P_{ref}(y_w)}{P_{ref}(y_l)}\Big)

    gamma = beta is DPO, gamma = 0 leaves the reference out. Where policy and reference agree the loss is not log 2: it
    then depends on how the reference ranks the pair.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: weight of the policy's log-probs, per nat.
        gamma: weight of the reference's.

    Returns:
        The loss in nats, and the metrics, with the reward beta log P - gamma log P_ref.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-3.0]]), jnp.float32([[-0.46], [-0.05]]), jnp.int32([1, 1]))
        >>> print(f"{beta_gamma(policy, ref, beta=0.1, gamma=0.05)[0]:.6f}")
        0.656350

    Verified:
        The formula in 120 digits; for gamma = 0 the code of DPO's authors (their `reference_free`).

    Reference:
        Kyunghyun Cho, blog post on DPO with separate beta and gamma, 2024.
    """
    reward = _split_reward(policy, ref, beta, gamma)
    return jax.nn.softplus(reward[1] - reward[0]), preference_metrics(policy, reward)


def beta_gamma_hinge(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, gamma: Scalar = 0.05, margin: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""Hinge form of `beta_gamma`.

    .. math:: L = \max\Big(0, \delta + \gamma \log \frac{P_{ref}(y_w)}{P_{ref}(y_l)}
        - \beta \log \frac{P(y_w)}{P(y_l)}\Big)

    With gamma = beta, no margin and policy == reference every pair sits exactly on the kink, so a convention decides
    whether training starts. Here the gradient at the kink is that of the active side; margin 1 with gamma = beta is
    `hinge`, but for that.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: weight of the policy's log-probs, per nat.
        gamma: weight of the reference's.
        margin: delta, from 0.

    Returns:
        The loss in nats, and the metrics, with the reward beta log P - gamma log P_ref.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-5.0]]), jnp.float32([[-0.46], [-0.01]]), jnp.int32([1, 1]))
        >>> print(f"{beta_gamma_hinge(policy, ref, beta=0.1, gamma=0.05)[0]:.6f}")
        0.025000

    Verified:
        The formula in 120 digits, and the gradient at the kink. The max, which the post's text has lost, is from its
        condition for a loss of zero.

    Reference:
        Kyunghyun Cho, blog post on DPO with separate beta and gamma, 2024.
    """
    require(margin >= 0, "margin", margin, "a number from 0")
    reward = _split_reward(policy, ref, beta, gamma)
    short = margin + reward[1] - reward[0]
    return jnp.where(short >= 0, short, 0.0), preference_metrics(policy, reward)
