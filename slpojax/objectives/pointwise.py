r"""Objectives that regress each response's log-ratio on a reward of its own: no pair is needed, and no preference.

The policy that is best for a reward r under a divergence of strength beta from the reference has the log-ratio
:math:`\rho(y) = (r(y) - V) / \beta` with :math:`V = \beta \log E_{ref}[e^{r / \beta}]`, whatever the response. What is
hard to know is V: QRPO takes a reward whose V is a formula, A*-PO estimates it from samples of the reference. With
:math:`\rho(y) = \log P(y) - \log P_{ref}(y)`, summed over tokens. Candidates that are absent do not count.

Metrics, without gradient, are means over the candidates that are regressed: reward/implicit, which is beta times the
log-ratio, reward/target, what it is to be, and logps/response.
"""

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Bool, Float, Logps, Scalar
from slpojax.numerics import log1mexp
from slpojax.objectives import require
from slpojax.sequence import first, log_ratio, total

OVER_ALL = ("qrpo", "a_star_po")


def _regression(
    policy: Logps, ref: Logps, target: Float[Array, " K"], meant: Bool[Array, " K"], beta: Scalar
) -> tuple[Array, dict[str, Array]]:
    """Return the mean of (beta rho - target)^2 over the candidates that are meant, 0 where none is; and the metrics."""
    require(beta > 0, "beta", beta, "a number above 0")
    implicit = jnp.where(meant, beta * log_ratio(policy, ref), 0.0)
    count = jnp.maximum(jnp.sum(meant, dtype=implicit.dtype), 1)

    def mean(x: Float[Array, " K"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(meant, x, 0.0)) / count

    metrics = {"reward/implicit": mean(implicit), "reward/target": mean(target), "logps/response": mean(total(policy))}
    return mean((implicit - target) ** 2), jax.lax.stop_gradient(metrics)


def qrpo(
    policy: Logps, ref: Logps, probability: Float[Array, " K"], *, beta: Scalar = 0.1
) -> tuple[Array, dict[str, Array]]:
    r"""QRPO: the reward is how many of the reference's own samples a response is as good as, whose normaliser is known.

    .. math:: L = \frac{1}{K} \sum_k \big(\beta \rho(y_k) - (q_k - \beta \log Z)\big)^2, \quad
        Z = \int_0^1 e^{q / \beta} dq = \beta (e^{1 / \beta} - 1)

    Among the reference's samples the quantile q is uniform from 0 to 1, whatever the reward model, hence Z. Responses
    may come from anywhere and need no partner. The authors' code leaves the 1 out of Z, at beta = 0.1 a difference of
    4.5e-6 in the target; of a pair it trains on both, as here. Its other rewards, the logarithm of q and the normal
    distribution's quantiles, are not here.

    Args:
        policy: [K, T] log-probs, in any order.
        ref: the same responses under the reference.
        probability: [K] q, from 0 to 1: the share of the reference's samples to the prompt whose reward is no higher;
            `data.format=quantiles` makes it of rewards, `samples_quantiles` of a reference's judged samples.
        beta: strength of the pull to the reference, in the unit of q per nat.

    Returns:
        The loss, and the metrics listed above.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> loss, metrics = qrpo(policy, ref, jnp.float32([0.9, 0.4]), beta=0.1)
        >>> print(f"{loss:.5f} {metrics['reward/target']:.5f}")
        0.03791 -0.11974

    Verified:
        The formula in 120 digits, Z as an integral; the formula is that of the authors' code, which was read, but for
        the 1 in Z.

    Reference:
        Simon Matrenok, Skander Moalla, Caglar Gulcehre, Quantile Reward Policy Optimization: Alignment with Pointwise
        Regression and Exact Partition Functions, 2025, arXiv:2507.08068.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    rate = jnp.asarray(-1 / beta, policy.token.dtype)
    log_z = jnp.log(jnp.asarray(beta, rate.dtype)) - rate + log1mexp(rate)
    here = jnp.asarray(policy.length) > 0
    return _regression(policy, ref, probability - beta * log_z, here, beta)


def a_star_po(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.01, value_beta: Scalar = 0.5
) -> tuple[Array, dict[str, Array]]:
    r"""A*-PO: regress on the optimal advantage, with the optimal value from samples of the reference.

    .. math:: L = \big(\beta_2 \rho(y_0) - (s_0 - V)\big)^2, \quad
        V = \beta_1 \log \frac{1}{K - 1} \sum_{k \ge 1} e^{s_k / \beta_1}

    y_0 is a sample of the policy, one is enough; the others are samples of the reference to the same prompt, of which
    only the scores are read. The paper's rewards are 1 or 0.

    Args:
        policy: [K, T] log-probs; candidate 0 is the policy's sample, the others are the reference's.
        ref: the same responses under the reference.
        score: [K] rewards.
        beta: beta_2, strength of the pull to the reference in the regression, in the scores' unit per nat. TRL has
            0.001, at which the gradient is a tenth.
        value_beta: beta_1, that of the value: small is the best of the samples, large their mean. TRL's.

    Returns:
        The loss, 0 where the policy's sample or all others are absent, and the metrics listed above, of candidate 0,
        with reward/value, which is V.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{a_star_po(policy, ref, jnp.float32([1.0, 0.0]), beta=0.1, value_beta=0.5)[0]:.6f}")
        0.855625

    Verified:
        The formula in 120 digits, and that the optimal policy has the loss 0, by enumeration; the formula is that of
        TRL's A2POTrainer and of a published summary of the paper, which were read.

    Reference:
        Kiante Brantley, Mingyu Chen, Zhaolin Gao, Jason D. Lee, Wen Sun, Wenhao Zhan, Xuezhou Zhang, Accelerating RL
        for LLM Reasoning with Optimal Advantage Regression, 2025, arXiv:2505.20686.
    """
    require(value_beta > 0, "value_beta", value_beta, "a number above 0")
    first(policy, 2)  # refuses data of one candidate
    here = jnp.asarray(policy.length) > 0
    others = here[1:]
    count = jnp.maximum(jnp.sum(others, dtype=score.dtype), 1)
    known = jnp.any(others)
    soft = jax.nn.logsumexp(jnp.where(others, score[1:] / value_beta, ABSENT)) - jnp.log(count)
    value = jnp.where(known, value_beta * jnp.where(known, soft, 0.0), 0.0)
    meant = here & known & (jnp.arange(here.shape[0]) == 0)
    loss, metrics = _regression(policy, ref, score - value, meant, beta)
    return loss, metrics | {"reward/value": value}
