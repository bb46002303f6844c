r"""Objectives with a task that needs no label: to say how much of a response's key content was taken away.

The data add copies of both responses of a pair (`config.data.degrade`). Candidates 0 and 1 are the chosen and the
rejected response as they are, 2 and 3 their copies with the least removed, and so on: candidate k has the degree
:math:`d_k = 0, 0, 1, 1, 2, 2, \dots`. A network beside the policy (`slpojax.readers.degrees`) puts out the logits z of
the degrees, read off the state that predicts the last token, which has seen all that stands before it; the gradient
reaches the policy, too. Absent candidates do not count, and where there are no others the task's loss is 0.
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Logps, Scalar
from slpojax.objectives import pairs, require
from slpojax.sequence import TooFewCandidates

OVER_ALL = ("removal", "spo")


def removal(policy: Logps, degree: Float[Array, "K T C"]) -> tuple[Array, dict[str, Array]]:
    r"""SPO's task alone, to join any preference loss: `dpo.ipo + 0.1 * self_supervised.removal`.

    .. math:: L = -\frac{1}{K} \sum_k \log \text{softmax}(z_k)_{d_k}

    Objectives of pairs leave the copies alone; one over K candidates would rank them, too.

    Args:
        policy: [K, T] of which the lengths alone are read.
        degree: [K, T, C] logits of the degrees at each token.

    Returns:
        The loss in nats (log C for a network that knows nothing), and degree/loss and degree/accuracy: the share of the
        candidates whose degree has the largest logit.

    Raises:
        ValueError: there are no copies, or more degrees than logits.

    Example:
        >>> one = jnp.zeros((4, 1))
        >>> z = jnp.float32([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 2.0]], [[1.0, 0.0]]])
        >>> loss, metrics = removal(Logps(one, one, jnp.int32([1, 1, 1, 1])), z)
        >>> print(f"{loss:.6f} {metrics['degree/accuracy']:.2f}")
        0.611650 0.75

    Verified:
        Unverified: as `spo`.

    Reference:
        Jian Li, Haojing Huang, Yujia Zhang, Pengfei Xu, Xi Chen, Rui Song, Lida Shi, Jingwen Wang, Hao Xu,
        Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness, 2024,
        arXiv:2409.17791.
    """
    candidates, _, classes = degree.shape
    if candidates < 3:
        raise TooFewCandidates(
            3, candidates, "copies of a pair's responses (config.data.degrade), 3 candidates at least"
        )
    if candidates > 2 * classes:
        raise ValueError(
            f"the objective tells copies of a pair's responses apart, the example has {candidates} candidates and the "
            f"network {classes} degrees; expected 2 candidates for each degree, see config.data.degrade"
        )
    length = jnp.asarray(policy.length)
    there, last = length > 0, jnp.maximum(length - 1, 0)
    logits = jnp.take_along_axis(degree, last[:, None, None], axis=1)[:, 0]
    level = jnp.arange(candidates) // 2
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), level[:, None], axis=1)[:, 0]

    def mean(x: Array) -> Array:
        return jnp.sum(jnp.where(there, x, 0.0)) / jnp.maximum(jnp.sum(there), 1)

    loss = mean(each)
    metrics = {"degree/loss": loss, "degree/accuracy": mean(jnp.argmax(logits, axis=1) == level)}
    return loss, jax.lax.stop_gradient(metrics)


def spo(
    policy: Logps, ref: Logps, degree: Float[Array, "K T C"], *, beta: Scalar = 0.1, gamma: Scalar = 0.1
) -> tuple[Array, dict[str, Array]]:
    r"""SPO, self-supervised preference optimisation: DPO, and to tell how much of a response was taken away.

    .. math:: L = -\log \sigma(\beta h) - \frac{\gamma}{K} \sum_k \log \text{softmax}(z_k)_{d_k}

    The policy is to know what an answer's content is, not only which of two answers is the better one. Copies take no
    part in h. With another preference loss it is the sum of that loss and `removal`.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1, the others are copies of both.
        ref: the same responses under the reference.
        degree: [K, T, C] logits of the degrees at each token.
        beta: strength of the pull to the reference, per nat.
        gamma: weight of the task, from 0 (DPO).

    Returns:
        The loss in nats, and the metrics: those of pairs and those of `removal`.

    Raises:
        ValueError: as `removal`.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> policy, ref = (jax.tree.map(lambda x: jnp.concatenate([x, x]), y) for y in (policy, ref))
        >>> z = jnp.float32([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 2.0]], [[1.0, 0.0]]])
        >>> print(f"{spo(policy, ref, z, beta=0.1, gamma=0.1)[0]:.6f}")
        0.670635

    Verified:
        Unverified: known from summaries of the paper, which have the sum and its two parts. Where the network reads and
        its layers, the mean over all candidates, the default of gamma and what key content is (`slpojax.data.degrade`)
        are this project's. The formula in float64.

    Reference:
        Jian Li, Haojing Huang, Yujia Zhang, Pengfei Xu, Xi Chen, Rui Song, Lida Shi, Jingwen Wang, Hao Xu,
        Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness, 2024,
        arXiv:2409.17791.
    """
    require(gamma >= 0, "gamma", gamma, "a number from 0")
    z, metrics = pairs.margin(beta, policy, ref)
    task, more = removal(policy, degree)
    return jax.nn.softplus(-z) + gamma * task, metrics | more
