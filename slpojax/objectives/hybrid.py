r"""Hybrid objectives: a loss of given pairs, and a divergence on samples of the policy itself to the same prompts.

Candidates 0 and 1 are the given pair; those behind them are answers that the policy has just drawn (`data.samples`).
Nothing here samples, and on other answers the gradient is not that of the divergence. Absent ones do not count.
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Logps, Scalar
from slpojax.objectives import dpo, require
from slpojax.sequence import TooFewCandidates, log_ratio, total

OVER_ALL = ("hypo",)


def hypo(policy: Logps, ref: Logps, *, beta: Scalar = 0.1, weight: Scalar = 0.01) -> tuple[Array, dict[str, Array]]:
    r"""HyPO: DPO on given pairs, held to the reference where the policy itself goes.

    .. math:: L = -\log \sigma(\beta h) + \frac{\lambda}{n} \sum_{i=1}^n sg[\rho(y_i) - b_i] \log P(y_i),
        \quad b_i = \frac{1}{n - 1} \sum_{j \ne i} \rho(y_j)

    h is the difference of the log-ratios of the pair, y_1 to y_n are samples of the policy, and rho is their log-ratio;
    of a single sample b is 0. The gradient of the second term is that of :math:`\lambda KL(\pi || \pi_{ref})` without
    bias, with and without b, which makes it calmer from two samples on. DPO's pairs say nothing of answers that are in
    none of them; this term does. Its value means nothing, while its gradient does: look at kl.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1, the others are samples of the policy.
        ref: the same responses under the reference.
        beta: of DPO, per nat.
        weight: lambda, from 0 (DPO). The default is this package's: what the paper takes has not been checked.

    Returns:
        The loss, and the metrics of `dpo.sigmoid` with loss/dpo.sigmoid, and of the samples kl (their mean log-ratio)
        and logps/policy_sample, 0 where there is none.

    Raises:
        ValueError: there is no candidate behind the pair.

    Example:
        >>> one = jnp.int32([1, 1, 1, 1])
        >>> token = jnp.float32([[-0.25], [-2.0], [-0.5], [-1.0]])
        >>> reference = jnp.float32([[-1.0], [-1.0], [-0.75], [-2.0]])
        >>> loss, metrics = hypo(Logps(token, token, one), Logps(reference, reference, one), weight=0.1)
        >>> print(f"{loss:.6f} {metrics['kl']:.3f}")
        0.590720 0.625

    Verified:
        The formula in 120 digits; its expectation by enumeration of all samples of a small model equals the gradient of
        DPO and of the divergence.

    Reference:
        Yuda Song, Gokul Swamy, Aarti Singh, J. Andrew Bagnell, Wen Sun, The Importance of Online Data: Understanding
        Preference Fine-tuning via Coverage, 2024, arXiv:2406.01462.
    """
    require(weight >= 0, "weight", weight, "a number from 0")
    candidates = policy.token.shape[0]
    if candidates < 3:
        raise TooFewCandidates(3, candidates, "samples behind a pair (config.data.samples), 3 candidates at least")
    loss, metrics = dpo.sigmoid(policy, ref, beta=beta)
    there = jnp.asarray(policy.length)[2:] > 0
    count = jnp.sum(there, dtype=policy.token.dtype)
    logp, ratio = total(policy)[2:], jax.lax.stop_gradient(jnp.where(there, log_ratio(policy, ref)[2:], 0.0))
    others = (jnp.sum(ratio) - ratio) / jnp.maximum(count - 1, 1)
    term = jnp.sum(jnp.where(there, (ratio - others) * logp, 0.0)) / jnp.maximum(count, 1)
    means = {"kl": ratio, "logps/policy_sample": jax.lax.stop_gradient(jnp.where(there, logp, 0.0))}
    of_samples = {name: jnp.sum(x) / jnp.maximum(count, 1) for name, x in means.items()}
    return loss + weight * term, metrics | of_samples | {"loss/dpo.sigmoid": jax.lax.stop_gradient(loss)}
