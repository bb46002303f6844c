r"""Objectives for single responses that are labelled desirable or not: KTO, unpaired APO-zero, and BCO.

Candidate 0 is the response, `label` 1 or 0 what it is. With the log-ratio :math:`\rho(y) = \log P(y) - \log
P_{ref}(y)`, summed over tokens, and the reward :math:`r = \beta \rho`.

Metrics, under TRL's names: rewards/chosen and logps/chosen are means over the desirable responses of the global batch,
rewards/rejected and logps/rejected over the undesirable, rewards/margins the difference of the rewards. So that the
plain mean over the examples, which is what is logged, is the mean over a class, an example reports its value times the
number of examples per example of its class, and 0 for the other class. A class that the batch does not have reports 0,
and so do the margins then, as there is no difference; the report of the data counts such batches. Examples that are
absent are in no class.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from slpojax.base import Array, Bool, Float, Logps, Scalar
from slpojax.objectives import require
from slpojax.sequence import first, log_ratio, total

_Running: TypeAlias = tuple[Any, Any]  # a mean, and how many values it is of
_NOTHING = (0.0, 0.0)


def _reward(policy: Logps, ref: Logps, beta: Scalar) -> tuple[Array, Bool[Array, ""]]:
    """Return the reward of candidate 0, and whether it is there."""
    require(beta > 0, "beta", beta, "a number above 0")
    return beta * log_ratio(first(policy, 1), first(ref, 1))[0], jnp.asarray(policy.length[0]) > 0


def _metrics(policy: Logps, reward: Array, label: Array, here: Bool[Array, ""]) -> dict[str, Array]:
    values = {"rewards": reward, "logps": total(policy)[0]}
    classes = {"chosen": here & (label > 0.5), "rejected": here & ~(label > 0.5)}
    metrics: dict[str, Array] = {}
    both = jnp.bool_(True)
    for side, member in classes.items():
        members, present = jax.lax.psum((member.astype(reward.dtype), here.astype(reward.dtype)), "batch")
        share, both = jnp.where(member, present / jnp.maximum(members, 1), 0.0), both & (members > 0)
        metrics |= {f"{name}/{side}": share * value for name, value in values.items()}
    metrics["rewards/margins"] = jnp.where(both, metrics["rewards/chosen"] - metrics["rewards/rejected"], 0.0)
    return jax.lax.stop_gradient(metrics)


def _utility(gain: Array, label: Array, desirable_weight: Scalar, undesirable_weight: Scalar) -> Array:
    """Return weight * (1 - sigmoid(gain)), of -gain for what is not desirable."""
    require(desirable_weight >= 0, "desirable_weight", desirable_weight, "a number from 0")
    require(undesirable_weight >= 0, "undesirable_weight", undesirable_weight, "a number from 0")
    require(desirable_weight + undesirable_weight > 0, "undesirable_weight", 0.0, "a weight above 0, where both are 0")
    lost, won = jax.nn.sigmoid(-gain), jax.nn.sigmoid(gain)
    return jnp.where(label > 0.5, desirable_weight * lost, undesirable_weight * won)


def kto(
    policy: Logps,
    ref: Logps,
    label: Float[Array, ""],
    *,
    beta: Scalar = 0.1,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> tuple[Array, dict[str, Array]]:
    r"""KTO: a response is worth what its log-ratio is above, or below, that of responses in general.

    .. math:: L = \lambda_D \big(1 - \sigma(\beta (\rho - z))\big) \text{ or }
        \lambda_U \big(1 - \sigma(\beta (z - \rho))\big), \quad z = sg\big[\max(0, E[\rho(x, y')])\big]

    y', candidate 1, is a response to another prompt (`data.mismatched`); z, an estimate of the divergence from the
    reference, is the mean over those of the global batch that are there, before the maximum. It carries no gradient.

    Args:
        policy: [K, T] log-probs; candidate 0 is the response, candidate 1 the mismatched one.
        ref: the same responses under the reference.
        label: 1 where candidate 0 is desirable, 0 where it is not.
        beta: strength of the pull to the reference, per nat.
        desirable_weight: lambda_D, from 0.
        undesirable_weight: lambda_U, from 0. With n_D and n_U responses of each kind the paper keeps
            (lambda_D n_D) / (lambda_U n_U) between 1 and 4/3.

    Returns:
        The loss (half the weight where policy and reference agree), and the metrics with kl, which is z in nats.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-2.5]]), jnp.float32([[-0.46], [-0.09]]), jnp.int32([1, 1]))
        >>> batch = jax.tree.map(lambda x: x[None], (policy, ref, jnp.float32(1)))
        >>> print(f"{jax.vmap(kto, axis_name='batch')(*batch)[0][0]:.6f}")
        0.493750

    Verified:
        TRL 1.16's KTOTrainer, `kto` (loss, gradients, metrics), and the paper's formula in 120 digits.

    Reference:
        Kawin Ethayarajh, Winnie Xu, Niklas Muennighoff, Dan Jurafsky, Douwe Kiela, KTO: Model Alignment as Prospect
        Theoretic Optimization, 2024, arXiv:2402.01306, equations 7 and 8.
    """
    reward, here = _reward(policy, ref, beta)
    there = jnp.asarray(first(policy, 2).length[1]) > 0
    ratio = jnp.where(there, log_ratio(first(policy, 2), first(ref, 2))[1], 0.0)
    ratios, count = jax.lax.psum((ratio, there.astype(ratio.dtype)), "batch")
    z = jax.lax.stop_gradient(jnp.maximum(ratios / jnp.maximum(count, 1), 0))
    loss = _utility(reward - beta * z, label, desirable_weight, undesirable_weight)
    return loss, _metrics(policy, reward, label, here) | {"kl": z}


def apo_zero_unpaired(
    policy: Logps,
    ref: Logps,
    label: Float[Array, ""],
    *,
    beta: Scalar = 0.1,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> tuple[Array, dict[str, Array]]:
    r"""APO-zero for single responses: KTO with z = 0, so up with the desirable, down with the undesirable.

    .. math:: L = \lambda_D (1 - \sigma(r)) \text{ or } \lambda_U \sigma(r)

    Args:
        policy: [K, T] log-probs; candidate 0 is the response.
        ref: the same responses under the reference.
        label: 1 where candidate 0 is desirable, 0 where it is not.
        beta: strength of the pull to the reference, per nat.
        desirable_weight: lambda_D, from 0; as in TRL.
        undesirable_weight: lambda_U, from 0; as in TRL.

    Returns:
        The loss (half the weight where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25]]), jnp.float32([[-1.5]]), jnp.int32([1]))
        >>> ref = Logps(jnp.float32([[-1.0]]), jnp.float32([[-0.46]]), jnp.int32([1]))
        >>> batch = jax.tree.map(lambda x: x[None], (policy, ref, jnp.float32(1)))
        >>> print(f"{jax.vmap(apo_zero_unpaired, axis_name='batch')(*batch)[0][0]:.6f}")
        0.481259

    Verified:
        TRL 1.16's KTOTrainer, `apo_zero_unpaired` (loss, gradients, metrics), and the paper's formula in 120 digits.

    Reference:
        Karel D'Oosterlinck, Winnie Xu, Chris Develder, Thomas Demeester, Amanpreet Singh, Christopher Potts, Douwe
        Kiela, Shikib Mehri, Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
        in Alignment, 2024, arXiv:2408.06266.
    """
    reward, here = _reward(policy, ref, beta)
    loss = _utility(reward, label, desirable_weight, undesirable_weight)
    return loss, _metrics(policy, reward, label, here)


def _update(running: _Running, value: Array, member: Bool[Array, ""]) -> _Running:
    """Return the running mean with the members' values of the global batch in it."""
    mean, count = running
    new, moved = jax.lax.psum((member.astype(value.dtype), jnp.where(member, value - mean, 0.0)), "batch")
    return mean + moved / jnp.maximum(count + new, 1), count + new


def _classify(reward: Array, delta: Array, label: Array) -> Array:
    """Return -log sigmoid(r - delta), of the negative for what is not desirable."""
    return jax.nn.softplus(jnp.where(label > 0.5, delta - reward, reward - delta))


def bco_unpaired(
    policy: Logps,
    ref: Logps,
    label: Float[Array, ""],
    weight: Float[Array, ""],
    state: tuple[_Running, _Running] = (_NOTHING, _NOTHING),
    *,
    beta: Scalar = 0.01,
) -> tuple[Array, dict[str, Array], tuple[_Running, _Running]]:
    r"""BCO: a classifier of desirable and undesirable responses whose logit is the reward, less a shift.

    .. math:: L = -w \log \sigma(r - \delta) \text{ or } -w \log \sigma(\delta - r),
        \quad \delta = \tfrac{1}{2} \big(E_{desirable}[r] + E_{undesirable}[r]\big)

    The two expectations are running means over all responses so far, this batch's included, without gradient; a class
    that has not come yet is left out. TRL's shift is in `bco_unpaired_pooled`. The weights w are 1, or with
    `data.match_prompts` the paper's (UDM) for undesirable prompts that differ from the desirable ones; they are no part
    of the shift.

    Args:
        policy: [K, T] log-probs; candidate 0 is the response.
        ref: the same responses under the reference.
        label: 1 where candidate 0 is desirable, 0 where it is not.
        weight: w.
        state: the running mean of the reward and the number of responses, of the desirable and of the undesirable.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (log 2 where policy and reference agree), the metrics with delta, and the new state.

    Example:
        >>> policy = Logps(jnp.float32([[[-0.2]], [[-2.0]]]), jnp.float32([[[-1.7]], [[-0.1]]]), jnp.ones((2, 1), int))
        >>> ref = Logps(jnp.float32([[[-1.0]], [[-1.0]]]), jnp.float32([[[-0.46]], [[-0.46]]]), jnp.ones((2, 1), int))
        >>> apply = jax.vmap(bco_unpaired, axis_name="batch", out_axes=(0, 0, None))
        >>> losses, metrics, _ = apply(policy, ref, jnp.float32([1, 0]), jnp.ones(2))
        >>> print(f"{losses[0]:.6f} {losses[1]:.6f} {metrics['delta'][0]:.6f}")
        0.688657 0.688657 -0.001000

    Verified:
        The formula in 120 digits over several steps; that the state does not depend on how the data is cut. The paper
        was not read again for its shift.

    Reference:
        Seungjae Jung, Gunsoo Han, Daniel Wontae Nam, Kyoung-Woon On, Binary Classifier Optimization for Large Language
        Model Alignment, 2024, arXiv:2404.04656.
    """
    reward, here = _reward(policy, ref, beta)
    held, good = jax.lax.stop_gradient(reward), label > 0.5
    state = (_update(state[0], held, here & good), _update(state[1], held, here & ~good))
    (up, ups), (down, downs) = state
    delta = jnp.where((ups > 0) & (downs > 0), (up + down) / 2, up + down)  # the mean of nothing is 0
    return weight * _classify(reward, delta, label), _metrics(policy, reward, label, here) | {"delta": delta}, state


def bco_unpaired_pooled(
    policy: Logps,
    ref: Logps,
    label: Float[Array, ""],
    weight: Float[Array, ""],
    state: _Running = _NOTHING,
    *,
    beta: Scalar = 0.01,
) -> tuple[Array, dict[str, Array], _Running]:
    r"""BCO with TRL's shift: the running mean of all rewards, whatever their class.

    .. math:: L = -w \log \sigma(r - \delta) \text{ or } -w \log \sigma(\delta - r), \quad \delta = E[r]

    Equal to `bco_unpaired` where the classes are of one size. The mean has this batch in it before it is used.

    Args:
        policy: [K, T] log-probs; candidate 0 is the response.
        ref: the same responses under the reference.
        label: 1 where candidate 0 is desirable, 0 where it is not.
        weight: w.
        state: the running mean of the reward, and the number of responses.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (log 2 where policy and reference agree), the metrics with delta, and the new state.

    Example:
        >>> policy = Logps(jnp.float32([[[-0.2]], [[-2.0]]]), jnp.float32([[[-1.7]], [[-0.1]]]), jnp.ones((2, 1), int))
        >>> ref = Logps(jnp.float32([[[-1.0]], [[-1.0]]]), jnp.float32([[[-0.46]], [[-0.46]]]), jnp.ones((2, 1), int))
        >>> apply = jax.vmap(bco_unpaired_pooled, axis_name="batch", out_axes=(0, 0, None))
        >>> losses, metrics, _ = apply(policy, ref, jnp.float32([1, 0]), jnp.ones(2))
        >>> print(f"{losses[0]:.6f} {losses[1]:.6f} {metrics['delta'][0]:.6f}")
        0.688657 0.688657 -0.001000

    Verified:
        TRL 1.13's BCOTrainer, the last before its removal (losses, gradients, shift and running mean over three steps).

    Reference:
        Seungjae Jung, Gunsoo Han, Daniel Wontae Nam, Kyoung-Woon On, Binary Classifier Optimization for Large Language
        Model Alignment, 2024, arXiv:2404.04656, as TRL computes it.
    """
    reward, here = _reward(policy, ref, beta)
    state = _update(state, jax.lax.stop_gradient(reward), here)
    loss = weight * _classify(reward, state[0], label)
    return loss, _metrics(policy, reward, label, here) | {"delta": state[0]}, state
