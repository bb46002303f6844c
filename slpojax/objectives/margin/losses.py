"""Objectives of DPO's margin with another loss of it, or a penalty beside it; see `slpojax.objectives.margin`."""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Logps, Scalar
from slpojax.numerics import bernoulli_kl, log_odds_against
from slpojax.objectives import require
from slpojax.objectives.pairs import margin, rewards
from slpojax.sequence import first, size, total


def exo_pair(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, label_smoothing: Scalar = 1e-3
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
    holds = (0 < label_smoothing) & (label_smoothing < 0.5)
    require(holds, "label_smoothing", label_smoothing, "a number above 0 and below 1/2")
    z, metrics = margin(beta, policy, ref)
    return bernoulli_kl(z, jnp.asarray(log_odds_against(label_smoothing), z.dtype)), metrics


def sigmoid_norm(policy: Logps, ref: Logps, *, beta: Scalar = 5.0) -> tuple[Array, dict[str, Array]]:
    r"""DPO on log-ratios per token. TRL's `sigmoid_norm`.

    .. math:: L = -\log \sigma\Big(\beta \Big(\frac{\rho(y_w)}{|y_w|} - \frac{\rho(y_l)}{|y_l|}\Big)\Big)

    Delta learning (arXiv:2507.06187) is this loss on pairs of a weak model's answer and a weaker one's.

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


def discopop(policy: Logps, ref: Logps, *, beta: Scalar = 0.05, tau: Scalar = 0.05) -> tuple[Array, dict[str, Array]]:
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
    require((0 < tau) & (tau <= 1), "tau", tau, "a number above 0, up to 1")
    z, metrics = margin(beta, policy, ref)
    # One exponential of the sum of the logarithms: m falls faster than exp(-z) grows.
    exponential = jnp.exp(jax.nn.log_sigmoid(z / tau) - z)
    return jax.nn.sigmoid(-z / tau) * jax.nn.softplus(-z) + exponential, metrics


def dpop(policy: Logps, ref: Logps, *, beta: Scalar = 0.3, penalty: Scalar = 50.0) -> tuple[Array, dict[str, Array]]:
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


def hybrid_dpo(policy: Logps, ref: Logps, *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
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


def dpo_shift(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, rejected_weight: Scalar = 0.75
) -> tuple[Array, dict[str, Array]]:
    r"""DPO-Shift: the rejected response counts less in the margin, so that the chosen one need not fall with it.

    .. math:: L = -\log \sigma\big(\beta (\rho(y_w) - \lambda \rho(y_l))\big)

    DPO is content when both fall and the rejected further; here a nat that the rejected loses wins back only lambda of
    one that the chosen loses. The price is a smaller margin.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.
        rejected_weight: lambda, from 0 to 1 (DPO). The authors' code has it from 0.5 to 1, fixed or linear in the
            step; the default is the middle of that range, and a schedule is not here.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics, whose rewards have no lambda.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{dpo_shift(policy, ref, beta=0.1, rejected_weight=0.5)[0]:.5f}")
        0.63260

    Verified:
        The formula in 120 digits; the formula is that of the authors' code, which was read.

    Reference:
        Xiliang Yang, Feng Jiang, Qianen Zhang, Lei Zhao, Xiao Li, DPO-Shift: Shifting the Distribution of Direct
        Preference Optimization, 2025, arXiv:2502.07599.
    """
    holds = (0 <= rejected_weight) & (rejected_weight <= 1)
    require(holds, "rejected_weight", rejected_weight, "a number from 0 to 1")
    reward, metrics = rewards(beta, policy, ref)
    return jax.nn.softplus(rejected_weight * reward[1] - reward[0]), metrics
