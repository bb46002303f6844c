r"""Objectives of pairs whose loss of one example depends on the whole global batch: sorted, weighed, by its averages.

The batch is the global one, whatever the devices and the accumulation. An example of which a response is absent takes
no part: it counts in no statistic and gets no gradient. Metrics: those of `slpojax.sequence.preference_metrics` with
the reward :math:`\beta (\log P(y) - \log P_{ref}(y))`, of `alpha_dpo` per token.
"""

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Bool, Float, Int, Key, Logps, Scalar
from slpojax.objectives import require
from slpojax.objectives.pairs import inner, margin, present, rewards, smoothed
from slpojax.sequence import first, log_ratio, mean, preference_metrics, size, total

_SHARE = "a number from 0 to below 1"
_ROUNDING = 1e-6  # nats per token: a smaller spread of margins is the rounding of two models that agree


def _ordered(x: Float[Array, ""], there: Bool[Array, ""]) -> tuple[Int[Array, ""], Float[Array, " B"]]:
    """Return this example's rank in the batch by x, from 0, and x of the batch in that order; the absent come last."""
    every, present = jax.lax.all_gather((x, there), "batch")
    order = jnp.argsort(jax.lax.stop_gradient(jnp.where(present, every, jnp.inf)))
    return jnp.argsort(order)[jax.lax.axis_index("batch")], every[order]


def aot(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.01, label_smoothing: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""AOT, paired: the policy's margins against the reference's, both sorted over the batch. TRL's `aot`.

    .. math:: L_i = -\log \sigma\big(\beta (m_{(i)} - m^{ref}_{(i)})\big),
        \quad m = \log \frac{P(y_w)}{P(y_l)}, \; m^{ref} = \log \frac{P_{ref}(y_w)}{P_{ref}(y_l)}

    The loss asks that the policy's margins dominate the reference's as a distribution. An example has the loss of its
    rank among the policy's margins.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: per nat.
        label_smoothing: from 0 to below 1/2, as in `dpo.conservative`.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> batch = jax.tree.map(lambda *x: jnp.stack(x), (policy, ref), (ref, policy))
        >>> loss, _ = jax.vmap(lambda p, r: aot(p, r, beta=0.1), axis_name="batch")(*batch)
        >>> print(", ".join(f"{x:.6f}" for x in loss))
        0.693147, 0.693147

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards, metrics) and the formula in NumPy, absent examples included.

    Reference:
        Igor Melnyk, Youssef Mroueh, Brian Belgodere, Mattia Rigotti, Apoorva Nitsure, Mikhail Yurochkin, Kristjan
        Greenewald, Jiri Navratil, Jerret Ross, Distributional Preference Alignment of LLMs via Optimal Transport, 2024,
        arXiv:2406.05882.
    """
    _, metrics = rewards(beta, policy, ref)
    there = jnp.all(present(policy))
    ours, reference = (jnp.where(there, x[0] - x[1], 0.0) for x in (total(first(policy, 2)), total(first(ref, 2))))
    rank, _ = _ordered(ours, there)
    _, references = _ordered(reference, there)
    return smoothed(beta * (ours - references[rank]), label_smoothing), metrics


def aot_unpaired(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.01, label_smoothing: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""AOT, unpaired: the chosen's log-ratios against the rejected's, both sorted over the batch. TRL's `aot_unpaired`.

    .. math:: L_i = -\log \sigma\big(\beta (\rho_{w, (i)} - \rho_{l, (i)})\big),
        \quad \rho(y) = \log P(y) - \log P_{ref}(y)

    Which chosen response belongs to which rejected one does not matter. An example has the loss of its chosen
    response's rank; the rejected response of that rank may be another example's. TRL 0.24 called it `aot_pair`.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: per nat.
        label_smoothing: from 0 to below 1/2, as in `dpo.conservative`.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> batch = jax.tree.map(lambda *x: jnp.stack(x), (policy, ref), (ref, policy))
        >>> loss, _ = jax.vmap(lambda p, r: aot_unpaired(p, r, beta=0.1), axis_name="batch")(*batch)
        >>> print(", ".join(f"{x:.6f}" for x in loss))
        0.705725, 0.680725

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards, metrics) and the formula in NumPy, absent examples included.

    Reference:
        Igor Melnyk, Youssef Mroueh, Brian Belgodere, Mattia Rigotti, Apoorva Nitsure, Mikhail Yurochkin, Kristjan
        Greenewald, Jiri Navratil, Jerret Ross, Distributional Preference Alignment of LLMs via Optimal Transport, 2024,
        arXiv:2406.05882.
    """
    reward, metrics = rewards(beta, policy, ref)
    there = jnp.all(present(policy))
    chosen, rejected = jnp.where(there, reward, 0.0)
    rank, _ = _ordered(chosen, there)
    _, every = _ordered(rejected, there)
    return smoothed(chosen - every[rank], label_smoothing), metrics


def beta_dpo(
    policy: Logps,
    ref: Logps,
    key: Key,
    state: tuple = (0.0, 0.0),
    *,
    beta: Scalar = 0.1,
    a: Scalar = 0.6,
    keep: Scalar = 0.8,
    decay: Scalar = 0.9,
) -> tuple[Array, dict[str, Array], tuple]:
    r"""beta-DPO: a beta for each batch by its mean margin, and part of the batch left out, outliers rather than others.

    .. math:: L_i = -\log \sigma(\beta_B h_i) \text{ for those kept}, \quad
        \beta_B = \max\big(10^{-3}, \beta (1 + a (\operatorname{mean}_{kept} h - M))\big)

    The kept are drawn without replacement with weights :math:`\exp(-(h - M)^2 / (2 s^2))`, where M and s are moving
    averages of the batch's mean and standard deviation of h, this batch included. Nothing of it has a gradient but the
    loss of the kept, and the mean of the loss over the examples is that over the kept.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        key: the first example's is that of the batch's draw.
        state: (M, s).
        beta: that of a batch whose mean margin is M, per nat.
        a: how far beta follows the margin, per nat, from 0.
        keep: the share that is kept, above 0 and up to 1 (all); rounded down, but one at least.
        decay: weight of the past in the averages, from 0 to below 1.

    Returns:
        The loss in nats, 0 for those left out; the metrics with `beta`, of the batch, and `kept`, 1 or 0; and the new
        state.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> batch = jax.tree.map(lambda x: x[None], (policy, ref, jax.random.key(0)))
        >>> loss, metrics, _ = jax.vmap(lambda p, r, k: beta_dpo(p, r, k), axis_name="batch")(*batch)
        >>> print(f"{loss[0]:.6f} {metrics['beta'][0]:.4f}")
        0.537372 0.1945

    Verified:
        The formula in NumPy over three batches, given who is kept, and the frequencies of the draw; the formula is that
        of the authors' code, which takes means per device.

    Reference:
        Junkang Wu, Yuexiang Xie, Zhengyi Yang, Jiancan Wu, Jinyang Gao, Bolin Ding, Xiang Wang, Xiangnan He, beta-DPO:
        Direct Preference Optimization with Dynamic beta, 2024, arXiv:2407.08639.
    """
    require(a >= 0, "a", a, "a number from 0")
    require((0 < keep) & (keep <= 1), "keep", keep, "a number above 0, up to 1")
    require((0 <= decay) & (decay < 1), "decay", decay, _SHARE)
    z, metrics = margin(beta, policy, ref)
    there = jnp.all(present(policy))
    h = jnp.where(there, z / beta, 0.0)
    held = jax.lax.stop_gradient(h)

    new = _moments(held, there, state, decay)
    count = _total_over(there, 1.0)
    kept = _draw(held, there, key, *new, keep=keep, count=count)
    share = _total_over(kept, 1.0) / jnp.maximum(count, 1)
    followed = _total_over(kept, held) / jnp.maximum(_total_over(kept, 1.0), 1)
    used = jnp.maximum(1e-3, beta * (1 + a * (followed - new[0])))
    loss = jnp.where(kept, jax.nn.softplus(-used * h) / jnp.where(kept, share, 1.0), 0.0)
    return loss, metrics | {"beta": used, "kept": kept.astype(h.dtype)}, new


def _total_over(mask: Bool[Array, ""], x: Array | float) -> Float[Array, ""]:
    """Return the sum of x over those of the batch that are meant."""
    return jax.lax.psum(jnp.where(mask, x, 0.0), "batch")


def _moments(x: Float[Array, ""], there: Bool[Array, ""], state: tuple, decay: Scalar) -> tuple[Array, Array]:
    """Return the moving averages of the batch's mean and standard deviation of x, this batch included."""
    count = _total_over(there, 1.0)
    middle = _total_over(there, x) / jnp.maximum(count, 1)
    variance = _total_over(there, (x - middle) ** 2) / jnp.maximum(count - 1, 1)
    return decay * state[0] + (1 - decay) * middle, decay * state[1] + (1 - decay) * jnp.sqrt(variance)


def _draw(
    h: Array, there: Array, key: Key, middle: Array, width: Array, *, keep: Scalar, count: Array
) -> Bool[Array, ""]:
    """Tell whether this example is among those drawn: those with the largest log-weight plus Gumbel noise."""
    rank, every = _ordered(h, there)
    # One key for the batch, and its noise by rank, so that the order of the examples makes no difference.
    common = jax.random.wrap_key_data(jax.lax.all_gather(jax.random.key_data(key), "batch")[0])
    noise = jax.random.gumbel(common, every.shape, h.dtype)[rank]
    spread = jnp.where(width > 0, (h - middle) / jnp.where(width > 0, width, 1.0), 0.0)
    lot = jnp.where(there, noise - spread**2 / 2, -jnp.inf)
    before = jnp.sum(jax.lax.all_gather(lot, "batch") > lot)
    return there & (before < _share_of(count, keep))


def _share_of(count: Array, keep: Scalar) -> Array:
    """Return how many of `count` are kept: rounded down, where 0.9 of 10 is 9 also in float32, but one at least."""
    return jnp.maximum(jnp.floor(keep * count + 1e-3), 1)


def alpha_dpo(
    policy: Logps,
    ref: Logps,
    state: tuple = (0.0, 0.0),
    *,
    beta: Scalar = 2.5,
    gamma: Scalar = 1.5,
    alpha: Scalar = 0.2,
    decay: Scalar = 0.9,
) -> tuple[Array, dict[str, Array], tuple]:
    r"""alpha-DPO: SimPO with a target margin for each pair, by how far the policy has left the reference on it.

    .. math:: L = -\log \sigma\big(\beta (\bar L(y_w) - \bar L(y_l)) - \gamma - \beta \alpha \, sg[(g - M) / s]\big),
        \quad g = \frac{\rho(y_w)}{|y_w|} - \frac{\rho(y_l)}{|y_l|}

    M and s are moving averages of the batch's mean and standard deviation of g, this batch included. A pair on which
    the policy has gained more than on others must win by more. The averages begin at 0, as in the authors' code, so
    that s is small, and the margins far apart, in the first steps; where s is no more than rounding, as at the very
    start, all have the margin gamma.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        state: (M, s), in nats per token.
        beta: scale of the reward.
        gamma: the target margin between the rewards of a pair with g = M, from 0, as in `reference_free.simpo`; beta
            times the authors' gamma_beta_ratio.
        alpha: how far the margin follows g, in nats per token and standard deviation, from 0 (SimPO).
        decay: weight of the past in the averages, from 0 to below 1.

    Returns:
        The loss in nats; the metrics, of pairs with the reward beta times the log-ratio per token, and margin/target,
        the whole margin asked for; and the new state.

    Example:
        >>> policy = Logps(jnp.float32([[-1.25], [-1.5]]), jnp.float32([[-0.34], [-0.25]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> batch = jax.tree.map(lambda *x: jnp.stack(x), (policy, ref), (ref, ref))
        >>> step = jax.vmap(lambda p, r: alpha_dpo(p, r, (0.25, 0.5)), axis_name="batch")
        >>> print(", ".join(f"{x:.5f}" for x in step(*batch)[0]))
        1.23290, 1.49889

    Verified:
        The formula in NumPy over three batches, and SimPO for alpha = 0; the formula is that of the authors' code,
        which was read, and the defaults are those of its settings for Llama 3.

    Reference:
        Junkang Wu, Xue Wang, Zhengyi Yang, Jiancan Wu, Jinyang Gao, Bolin Ding, Xiang Wang, Xiangnan He, AlphaDPO:
        Adaptive Reward Margin for Direct Preference Optimization, 2024, arXiv:2410.10148.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    require(gamma >= 0, "gamma", gamma, "a number from 0")
    require(alpha >= 0, "alpha", alpha, "a number from 0")
    require((0 <= decay) & (decay < 1), "decay", decay, _SHARE)
    pair, there = first(policy, 2), jnp.all(present(policy))
    reward, ratio = mean(pair), log_ratio(pair, first(ref, 2)) / size(pair)
    lead = jnp.where(there, reward[0] - reward[1], 0.0)
    gain = jax.lax.stop_gradient(jnp.where(there, ratio[0] - ratio[1], 0.0))
    middle, width = _moments(gain, there, state, decay)
    known = width > _ROUNDING
    target = gamma + beta * alpha * jnp.where(known, (gain - middle) / jnp.where(known, width, 1.0), 0.0)
    metrics = preference_metrics(policy, beta * ratio) | {"margin/target": target}
    return jax.nn.softplus(target - beta * lead), metrics, (middle, width)


def dr_dpo(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, beta_prime: Scalar = 1.0, loss: str = "dpo.sigmoid"
) -> tuple[Array, dict[str, Array]]:
    r"""Dr. DPO: a soft minimum over the batch in the place of the mean, so that pairs with wrong labels count less.

    .. math:: L = -\beta' \log \frac{1}{B} \sum_i e^{-L_i / \beta'}, \quad
        w_i = \frac{e^{-L_i / \beta'}}{\frac{1}{B} \sum_j e^{-L_j / \beta'}}

    Every example has the loss of the batch, whose gradient weighs that of pair i by w_i: a pair that loses by far, as
    one with a flipped label does, hardly counts. beta' large is the mean. The batch is the global one; in the authors'
    code it is that of a device.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: that of the pair's loss.
        beta_prime: beta', in the unit of the loss, above 0: how much worse than the others a pair must be.
        loss: the objective whose losses are taken together, by name, with its other hyperparameters at their defaults:
            one that reads a pair's log-probs alone and has a beta.

    Returns:
        The loss, 0 of an example of which a response is absent, and the metrics of the pair's objective, with weight,
        the w of the example.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> batch = jax.tree.map(lambda *x: jnp.stack(x), (policy, ref), (ref, policy))
        >>> loss, metrics = jax.vmap(lambda p, r: dr_dpo(p, r, beta=1.0), axis_name="batch")(*batch)
        >>> print(", ".join(f"{x:.6f}" for x in (*loss, *metrics["weight"])))
        0.693147, 0.693147, 1.703906, 0.296094

    Verified:
        The formula in NumPy, its gradient as the mean of the pairs' with the weights, absent examples included; the
        formula is that of the authors' code, which was read.

    Reference:
        Junkang Wu, Yuexiang Xie, Zhengyi Yang, Jiancan Wu, Jiawei Chen, Jinyang Gao, Bolin Ding, Xiang Wang, Xiangnan
        He, Towards Robust Alignment of Language Models: Distributionally Robustifying Direct Preference Optimization,
        2024, arXiv:2407.07880.
    """
    require(beta_prime > 0, "beta_prime", beta_prime, "a number above 0")
    expected = "an objective that reads the log-probs of one pair alone and has a beta"
    require(not loss.startswith(("batchwise.", "listwise.")), "loss", loss, expected)
    objective = inner(loss, expected)
    inputs = {name: {"policy": policy, "ref": ref}[name] for name in objective.needs}
    value, metrics = objective.function(**inputs, beta=beta)
    there = jnp.all(present(policy))
    log_weight = jnp.where(there, -value / beta_prime, ABSENT)
    log_mean = jax.nn.logsumexp(jax.lax.all_gather(log_weight, "batch")) - jnp.log(
        jnp.maximum(_total_over(there, 1.0), 1)
    )
    weight = jax.lax.stop_gradient(jnp.where(there, jnp.exp(jnp.where(there, log_weight - log_mean, 0.0)), 0.0))
    return jnp.where(there, -beta_prime * log_mean, 0.0), metrics | {"weight": weight}
