r"""Objectives that look at single tokens and at the whole distribution there: TDPO's, masks on tokens, WPO's weights.

With :math:`\rho(y)` the summed log-ratio as in `dpo`, :math:`D(y) = \sum_t KL(\pi_{ref}(\cdot | y_{<t}) \|
\pi(\cdot | y_{<t}))` and :math:`h = \rho(y_w) - \rho(y_l)`. An absent response has the log-ratio 0, the divergence 0
and the weight 1. With a mask m from 0 on every token, :math:`v(y) = \sum_t m_t (\rho_t + KL_t)`.
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Logps, Scalar
from slpojax.numerics import log
from slpojax.objectives import require
from slpojax.objectives.pairs import inner
from slpojax.sequence import first, log_ratio, preference_metrics, size


def _divergences(policy: Logps, ref: Logps, kl: Array, beta: Scalar) -> tuple[Array, Array, dict[str, Array]]:
    """Return rho and D of candidates 0 and 1, and TDPO's metrics."""
    require(beta > 0, "beta", beta, "a number above 0")
    ratio, divergence = log_ratio(first(policy, 2), first(ref, 2)), jnp.sum(kl[:2], axis=-1)
    metrics = preference_metrics(policy, beta * (ratio + divergence))
    chosen, rejected = jax.lax.stop_gradient(divergence)
    return ratio, divergence, metrics | {"kl/chosen": chosen, "kl/rejected": rejected}


def tdpo1(policy: Logps, ref: Logps, kl: Float[Array, "K T"], *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""TDPO1: DPO with the divergence of every position of the response in the margin.

    .. math:: L = -\log \sigma\big(\beta (h - (D(y_l) - D(y_w)))\big)

    The gradient flows through both divergences: the chosen's may grow, the rejected's is held down.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        kl: [K, T] KL(reference || policy) at each token, in nats; 0 where there is none.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics: those of pairs, with the reward
        beta (rho + D), and kl/chosen and kl/rejected, the summed divergences in nats.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{tdpo1(policy, ref, jnp.float32([[0.5], [0.25]]), beta=0.1)[0]:.6f}")
        0.598139

    Verified:
        The formula in float64 on full distributions; the formula is that of the authors' code, which was read.

    Reference:
        Yongcheng Zeng, Guoqing Liu, Weiyu Ma, Ning Yang, Haifeng Zhang, Jun Wang, Token-level Direct Preference
        Optimization, 2024, arXiv:2404.11999.
    """
    ratio, divergence, metrics = _divergences(policy, ref, kl, beta)
    value = ratio + divergence
    return jax.nn.softplus(beta * (value[1] - value[0])), metrics


def tdpo2(
    policy: Logps, ref: Logps, kl: Float[Array, "K T"], *, beta: Scalar = 0.1, alpha: Scalar = 0.5
) -> tuple[Array, dict[str, Array]]:
    r"""TDPO2: TDPO1 with a weight on the divergences, the chosen's without gradient.

    .. math:: L = -\log \sigma\big(\beta (h - \alpha (D(y_l) - sg[D(y_w)]))\big)

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        kl: [K, T] KL(reference || policy) at each token, in nats; 0 where there is none.
        beta: strength of the pull to the reference, per nat.
        alpha: weight of the divergences, from 0 (DPO).

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics of `tdpo1`, whose reward has no
        alpha.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{tdpo2(policy, ref, jnp.float32([[0.5], [0.25]]), beta=0.1, alpha=0.5)[0]:.6f}")
        0.603785

    Verified:
        The formula in float64 on full distributions; the formula is that of the authors' code, which was read.

    Reference:
        Yongcheng Zeng, Guoqing Liu, Weiyu Ma, Ning Yang, Haifeng Zhang, Jun Wang, Token-level Direct Preference
        Optimization, 2024, arXiv:2404.11999.
    """
    require(alpha >= 0, "alpha", alpha, "a number from 0")
    ratio, divergence, metrics = _divergences(policy, ref, kl, beta)
    held = alpha * (divergence[1] - jax.lax.stop_gradient(divergence[0]))
    return jax.nn.softplus(beta * (ratio[1] - ratio[0] + held)), metrics


def mapo(
    policy: Logps, ref: Logps, kl: Float[Array, "K T"], layer_activity: Float[Array, "K T N"], *, beta: Scalar = 0.1
) -> tuple[Array, dict[str, Array]]:
    r"""MaPO, SparsePO without parameters: TDPO1 with a mask on the tokens, from how active the reference's layers are.

    .. math:: L = -\log \sigma(\beta (v(y_w) - v(y_l))), \quad
        v(y) = \sum_t m_t \Big(\log \frac{p(y_t)}{p_{ref}(y_t)} + KL_t\Big), \quad
        m_t = \frac{1}{N} \sum_l \frac{a_{l,t} - \min_s a_{l,s}}{\max_s a_{l,s} - \min_s a_{l,s}}

    In each layer the least active token of a response counts for nothing and the most active one in full; all count in
    full where none is more active than the others, as with one token, which is `tdpo1`. Active is what the layer puts
    out in the mean over its width, the residual stream behind it; the authors' code can read more places of a layer
    (`activation_hook`), each in this way, and takes the mean over all.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        kl: [K, T] KL(reference || policy) at each token, in nats; 0 where there is none.
        layer_activity: [K, T, N] mean over the width of what each of the reference's N layers puts out.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics of `tdpo1`, with the reward beta v,
        where the authors' code logs the divergence with the other sign; mask/chosen and mask/rejected are the means
        of m.

    Example:
        >>> other, length = jnp.float32([[-1.5, -0.5]] * 2), jnp.int32([2, 2])
        >>> policy = Logps(jnp.float32([[-0.25, -1.0], [-2.0, -1.0]]), other, length)
        >>> ref = Logps(jnp.float32([[-1.0, -2.0]] * 2), other, length)
        >>> kl, active = jnp.float32([[0.5, 9.0], [0.25, 9.0]]), jnp.float32([[[3.0], [1.0]], [[5.0], [4.0]]])
        >>> print(f"{mapo(policy, ref, kl, active, beta=0.1)[0]:.6f}")
        0.598139

    Verified:
        The formula in float64 on full distributions; the formula is that of the authors' code, which was read.

    Reference:
        Fenia Christopoulou, Ronald Cardenas, Gerasimos Lampouras, Haitham Bou-Ammar, Jun Wang, SparsePO: Controlling
        Preference Alignment of LLMs via Sparse Token Masks, 2024, arXiv:2410.05102.
    """
    pair = first(policy, 2)
    mask = jnp.mean(jax.vmap(lambda active: _rescaled(active, pair), in_axes=-1)(layer_activity[:2]), axis=0)
    return _masked(policy, ref, kl, mask, mask, beta)


def mapo_logits(
    policy: Logps, ref: Logps, kl: Float[Array, "K T"], activity: Float[Array, "K T"], *, beta: Scalar = 0.1
) -> tuple[Array, dict[str, Array]]:
    r"""MaPO with the mask from the reference's logits, which takes no look at its layers.

    .. math:: L = -\log \sigma(\beta (v(y_w) - v(y_l))), \quad
        m_t = \frac{a_t - \min_s a_s}{\max_s a_s - \min_s a_s}

    The authors' option `activation_hook="logits"`; otherwise as `mapo`.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        kl: [K, T] KL(reference || policy) at each token, in nats; 0 where there is none.
        activity: [K, T] mean over the vocabulary of the reference's logits at each token.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss and the metrics of `mapo`.

    Example:
        >>> other, length = jnp.float32([[-1.5, -0.5]] * 2), jnp.int32([2, 2])
        >>> policy = Logps(jnp.float32([[-0.25, -1.0], [-2.0, -1.0]]), other, length)
        >>> ref = Logps(jnp.float32([[-1.0, -2.0]] * 2), other, length)
        >>> kl, activity = jnp.float32([[0.5, 9.0], [0.25, 9.0]]), jnp.float32([[3.0, 1.0], [5.0, 4.0]])
        >>> print(f"{mapo_logits(policy, ref, kl, activity, beta=0.1)[0]:.6f}")
        0.598139

    Verified:
        The formula in float64 on full distributions; the formula is that of the authors' code, which was read.

    Reference:
        Fenia Christopoulou, Ronald Cardenas, Gerasimos Lampouras, Haitham Bou-Ammar, Jun Wang, SparsePO: Controlling
        Preference Alignment of LLMs via Sparse Token Masks, 2024, arXiv:2410.05102.
    """
    mask = _rescaled(activity[:2], first(policy, 2))
    return _masked(policy, ref, kl, mask, mask, beta)


def sparsepo(
    policy: Logps,
    ref: Logps,
    kl: Float[Array, "K T"],
    reward_mask: Float[Array, "K T"],
    *,
    beta: Scalar = 0.1,
    l1: Scalar = 0.0,
) -> tuple[Array, dict[str, Array]]:
    r"""SparsePO: TDPO1 with a mask on the tokens that is learned beside the policy.

    .. math:: L = -\log \sigma(\beta (v(y_w) - v(y_l))) + \lambda \sum_t (m_t(y_w) + m_t(y_l)), \quad
        v(y) = \sum_t m_t \Big(\log \frac{p(y_t)}{p_{ref}(y_t)} + KL_t\Big)

    The mask, from 0 on, is a rectified linear map of what the reference's layers put out (`slpojax.readers.masks`); its
    weights start at random and are trained with the policy's, by the same optimiser.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        kl: [K, T] KL(reference || policy) at each token, in nats; 0 where there is none.
        reward_mask: [K, T] the mask of each token; the gradient flows through it.
        beta: strength of the pull to the reference, per nat.
        l1: lambda, the price of the mask's sum over both responses; above 0 it makes more of the mask zero.

    Returns:
        The loss in nats (log 2 where policy and reference agree, and l1 is 0), and the metrics of `tdpo1` with the
        reward beta v; mask/chosen and mask/rejected are the means of m, mask/zeros the share of tokens it leaves out.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> kl, mask = jnp.float32([[0.5], [0.25]]), jnp.float32([[1.0], [1.0]])
        >>> print(f"{sparsepo(policy, ref, kl, mask, beta=0.1, l1=0.01)[0]:.6f}")
        0.618139

    Verified:
        The formula in float64 on full distributions, masks and their gradients included, in PyTorch too; the formula is
        that of the authors' code, which was read, without its dropout.

    Reference:
        Fenia Christopoulou, Ronald Cardenas, Gerasimos Lampouras, Haitham Bou-Ammar, Jun Wang, SparsePO: Controlling
        Preference Alignment of LLMs via Sparse Token Masks, 2024, arXiv:2410.05102: the common mask.
    """
    require(l1 >= 0, "l1", l1, "a number from 0")
    loss, metrics = _masked(policy, ref, kl, reward_mask[:2], reward_mask[:2], beta)
    return loss + l1 * jnp.sum(reward_mask[:2]), metrics


def sparsepo_independent(
    policy: Logps,
    ref: Logps,
    kl: Float[Array, "K T"],
    reward_mask: Float[Array, "K T"],
    kl_mask: Float[Array, "K T"],
    *,
    beta: Scalar = 0.1,
    l1_reward: Scalar = 0.0,
    l1_kl: Scalar = 0.0,
) -> tuple[Array, dict[str, Array]]:
    r"""SparsePO with two learned masks: one on the log-ratios, one on the divergences.

    .. math:: L = -\log \sigma(\beta (v(y_w) - v(y_l))) + \lambda_u \Vert m^u \Vert_1
        + \lambda_d \Vert m^d \Vert_1, \quad v(y) = \sum_t \Big(m^u_t \log \frac{p(y_t)}{p_{ref}(y_t)} + m^d_t KL_t\Big)

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        kl: [K, T] KL(reference || policy) at each token, in nats; 0 where there is none.
        reward_mask: [K, T] m^u, the mask of each token's log-ratio; the gradient flows through it.
        kl_mask: [K, T] m^d, that of its divergence, with weights of its own.
        beta: strength of the pull to the reference, per nat.
        l1_reward: lambda_u, the price of the sum of m^u over both responses.
        l1_kl: lambda_d, that of m^d.

    Returns:
        The loss and the metrics of `sparsepo`, those of the mask being of m^u.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> kl, masks = jnp.float32([[0.5], [0.25]]), jnp.float32([[[1.0], [1.0]], [[0.0], [0.0]]])
        >>> print(f"{sparsepo_independent(policy, ref, kl, *masks, beta=0.1)[0]:.6f}")
        0.609470

    Verified:
        The formula in float64 on full distributions; the formula is that of the authors' code, which was read, without
        its dropout.

    Reference:
        Fenia Christopoulou, Ronald Cardenas, Gerasimos Lampouras, Haitham Bou-Ammar, Jun Wang, SparsePO: Controlling
        Preference Alignment of LLMs via Sparse Token Masks, 2024, arXiv:2410.05102: independent masks.
    """
    require(l1_reward >= 0, "l1_reward", l1_reward, "a number from 0")
    require(l1_kl >= 0, "l1_kl", l1_kl, "a number from 0")
    loss, metrics = _masked(policy, ref, kl, reward_mask[:2], kl_mask[:2], beta)
    return loss + l1_reward * jnp.sum(reward_mask[:2]) + l1_kl * jnp.sum(kl_mask[:2]), metrics


def _masked(
    policy: Logps, ref: Logps, kl: Array, on_ratio: Float[Array, "C T"], on_kl: Float[Array, "C T"], beta: Scalar
) -> tuple[Array, dict[str, Array]]:
    """Return TDPO1's loss with masks on the log-ratios and the divergences, and the metrics."""
    pair, base = first(policy, 2), first(ref, 2)
    value = jnp.sum(on_ratio * (pair.token - base.token) + on_kl * kl[:2], axis=-1)
    metrics = _divergences(policy, ref, kl, beta)[2] | preference_metrics(policy, beta * value)
    held = jax.lax.stop_gradient(on_ratio)
    chosen, rejected = jnp.sum(held, axis=-1) / size(pair)
    here = jnp.arange(held.shape[-1])[None, :] < jnp.asarray(pair.length)[:, None]
    zeros = jnp.sum(here & (held == 0)) / jnp.maximum(jnp.sum(here), 1)
    metrics |= {"mask/chosen": chosen, "mask/rejected": rejected, "mask/zeros": zeros}
    return jax.nn.softplus(beta * (value[1] - value[0])), metrics


def _rescaled(activity: Float[Array, "C T"], pair: Logps) -> Float[Array, "C T"]:
    """Return the activity from 0 to 1 within each response; 1 where it does not vary, 0 where there is no token."""
    here = jnp.arange(activity.shape[-1])[None, :] < jnp.asarray(pair.length)[:, None]
    low = jnp.min(activity, axis=-1, keepdims=True, where=here, initial=jnp.inf)
    high = jnp.max(activity, axis=-1, keepdims=True, where=here, initial=-jnp.inf)
    varies = high > low
    scaled = (activity - jnp.where(varies, low, 0.0)) / jnp.where(varies, high - low, 1.0)
    return jnp.where(here, jnp.where(varies, scaled, 1.0), 0.0)


def wpo(
    policy: Logps,
    ref: Logps,
    collision: Float[Array, "K T"],
    *,
    beta: Scalar = 0.1,
    loss: str = "dpo.sigmoid",
    max_weight: Scalar = 1.0,
) -> tuple[Array, dict[str, Array]]:
    r"""WPO: the loss of a pair times how likely the policy itself would write it.

    .. math:: L = sg[\min(w(y_w) w(y_l), w_{max})] \, L_{pair}, \quad
        w(y) = \exp\Big(\frac{1}{|y|} \sum_t \big(\log p(y_t) - \log \sum_v p_v^2\big)\Big)

    A token's probability is compared with its expectation under the policy, so a sampled response has a weight near
    one whatever the policy's entropy. The authors' code cuts the product at 1, which is the default here; TRL's
    `use_weighting` does not cut it: `max_weight = 0`.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        collision: [K, T] log sum_v p_v^2 of the policy at each token; 0 where there is none.
        beta: that of the pair's loss.
        loss: the objective whose loss is weighted, by name, with its other hyperparameters at their defaults: one that
            reads a pair's log-probs alone and has a beta. Sorted ones have no pair whose weight to take.
        max_weight: the most that the product of the two weights may be; 0 for no bound.

    Returns:
        The loss, and the metrics of the objective that is weighted, with `weight`.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{wpo(policy, ref, jnp.float32([[-0.4], [-0.3]]), beta=0.1)[0]:.6f}")
        0.129359

    Verified:
        TRL 1.16 with ipo, not cut (values, gradients, metrics); the formula in float64 on full distributions.

    Reference:
        Wenxuan Zhou, Ravi Agrawal, Shujian Zhang, Sathish Reddy Indurthi, Sanqiang Zhao, Kaiqiang Song, Silei Xu,
        Chenguang Zhu, WPO: Enhancing RLHF with Weighted Preference Optimization, 2024, arXiv:2406.11827.
    """
    require(max_weight >= 0, "max_weight", max_weight, "a number above 0, or 0 for no bound")
    expected = "an objective that reads the log-probs of one pair alone and has a beta"
    require(not loss.startswith(("batchwise.", "listwise.")), "loss", loss, expected)
    weighted = inner(loss, expected)
    inputs = {name: {"policy": policy, "ref": ref}[name] for name in weighted.needs}
    value, metrics = weighted.function(**inputs, beta=beta)
    pair = first(policy, 2)
    per_response = jnp.sum(pair.token - collision[:2], axis=-1) / size(pair)
    most = jnp.where(max_weight > 0, log(max_weight), jnp.inf)
    weight = jax.lax.stop_gradient(jnp.exp(jnp.minimum(jnp.sum(per_response), most)))
    return weight * value, metrics | {"weight": weight}
