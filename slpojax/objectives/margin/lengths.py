"""Objectives of DPO's margin that allow for the responses' lengths; see `slpojax.objectives.margin`."""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Bool, Key, Logps, Scalar
from slpojax.objectives import require
from slpojax.objectives.pairs import inner, margin
from slpojax.sequence import first


def r_dpo(policy: Logps, ref: Logps, *, beta: Scalar = 0.1, alpha: Scalar = 0.01) -> tuple[Array, dict[str, Array]]:
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
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, alpha: Scalar = 0.5, loss: str = "dpo.sigmoid"
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
    require((0 <= alpha) & (alpha <= 1), "alpha", alpha, "a number from 0 to 1")
    expected = "an objective of dpo, margin or anchored that reads log-probs alone"
    require(loss.startswith(("dpo.", "margin.", "anchored.")), "loss", loss, expected)
    objective = inner(loss, expected)
    tail = jnp.arange(policy.token.shape[-1]) >= jnp.min(first(policy, 2).length)

    def desensitised(logps: Logps) -> Logps:
        logps = first(logps, 2)
        return logps._replace(token=jnp.where(tail, alpha * logps.token, logps.token))

    return objective.function(policy=desensitised(policy), ref=desensitised(ref), beta=beta)


def sampo(policy: Logps, ref: Logps, key: Key, *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""SamPO: DPO on as many tokens of the one response as of the other, drawn from the longer one.

    .. math:: L = -\log \sigma\Big(\beta \Big(\sum_{t \in S_w} \rho_t(y_w) - \sum_{t \in S_l} \rho_t(y_l)\Big)\Big),
        \quad |S_w| = |S_l| = \min(|y_w|, |y_l|)

    S is drawn anew in every step, uniformly and without replacement; of the shorter response it is all tokens. So the
    reward of a response does not grow with its length, while every token is trained on, unlike with `ld_dpo` at alpha
    = 0. Policy and reference are compared on the same tokens, as in the paper's formula; the authors' code draws for
    each of the two models by itself.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        key: of the draw.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics, of the drawn tokens alone.

    Example:
        >>> token, other = jnp.float32([[-0.25, -0.25], [-2.0, 0.0]]), jnp.float32([[-1.5, -1.5], [-0.15, -1e30]])
        >>> policy = Logps(token, other, jnp.int32([2, 1]))
        >>> ref = Logps(jnp.float32([[-1.0, -1.0], [-1.0, 0.0]]), other, jnp.int32([2, 1]))
        >>> print(f"{sampo(policy, ref, jax.random.key(0), beta=0.1)[0]:.6f}")
        0.609470

    Verified:
        Every loss that it draws is one of the formula over all subsets in 120 digits, each as often as the others; DPO
        where the lengths are the same. That the longer one is drawn from, without replacement, is the authors' code,
        which was read.

    Reference:
        Junru Lu, Jiazheng Li, Siyu An, Meng Zhao, Yulan He, Di Yin, Xing Sun, Eliminating Biased Length Reliance of
        Direct Preference Optimization via Down-Sampled KL Divergence, 2024, arXiv:2406.10957.
    """
    kept = _as_many(policy, key)

    def drawn(logps: Logps) -> Logps:
        logps = first(logps, 2)
        return logps._replace(token=jnp.where(kept, logps.token, 0.0))

    z, metrics = margin(beta, drawn(policy), drawn(ref))
    return jax.nn.softplus(-z), metrics


def _as_many(policy: Logps, key: Key) -> Bool[Array, "2 T"]:
    """Tell which tokens are drawn: of both responses as many as the shorter one has."""
    length = jnp.asarray(first(policy, 2).length)
    places = jnp.arange(policy.token.shape[-1])

    def of_place(t: Array) -> Array:  # a draw for each place, which more padding does not change, nor the precision
        return jax.random.uniform(jax.random.fold_in(key, t), (2,), jnp.float32)

    lot = jnp.where(places[None, :] < length[:, None], jax.vmap(of_place)(places).T, jnp.inf)
    rank = jnp.argsort(jnp.argsort(lot, axis=-1), axis=-1)
    return rank < jnp.min(length)
