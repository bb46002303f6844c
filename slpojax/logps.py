"""From hidden states to log-probs: the one place that meets the vocabulary.

Knows hidden states, the unembedding and scored positions; knows no model family and no objective. The logits exist for
a part of the vocabulary at a time, in float32, and the backward pass forms them once more: no array has both the scored
positions and the vocabulary at full size.

Everything follows from one number per token, its log-odds d = z_y - logsumexp_{v != y} z_v:
log p = -softplus(-d) and log(1 - p) = -softplus(d), each exact where the other rounds.

Why parts of the vocabulary and not of the positions: a part of the unembedding is cast, and gathered where its width is
split over devices, once in each pass, and its gradient is complete when the part is done, so that it is written, and
summed over devices, once; what accumulates from part to part has the size of the hidden states.
"""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float

from slpojax import beside, degrees, masks, needs
from slpojax.base import ABSENT, Array, Batch, Int, Logps, Model, Params, Rows, Scored, Shapes

Head: TypeAlias = dict[str, Array]  # "log_odds" and what else was asked for, [G, S] each
Sums: TypeAlias = dict[str, Array]  # over the words other than the token, [R, S] each; see `_add`
Reference: TypeAlias = tuple[Float[Array, "R L D"], Float[Array, "D V"]]

# As many logits exist at once on a device as this many positions have: 64 x 50,304 in float32 is 13 MB, which stays in
# a processor's cache from the product to the sums. From 96 on, scoring takes a third longer on a CPU.
POSITIONS_AT_ONCE = 64

# A part of the vocabulary is made of one stretch of each of so many equal pieces (of fewer where that does not divide
# it), so that on up to so many devices that share the vocabulary each holds an equal share of every part.
PIECES = 16


def token_log_odds(
    hidden: Float[Array, "R L D"], unembed: Float[Array, "D V"], scored: Scored, *, chunk: int
) -> Float[Array, "G S"]:
    """Log-odds of the scored tokens: d = z_y - log sum_{v != y} exp z_v = log p - log(1 - p).

    See `head`, whose first number this is.
    """
    return head(hidden, unembed, scored, chunk=chunk)["log_odds"]


def head(
    hidden: Float[Array, "R L D"],
    unembed: Float[Array, "D V"],
    scored: Scored,
    *,
    chunk: int,
    wanted: Collection[str] = (),
    reference: Reference | None = None,
) -> Head:
    """Numbers of the scored tokens, from one pass over the vocabulary.

    The product with the vocabulary accumulates in float32 and its result is never rounded to less; the sum over the
    *other* tokens keeps the log-odds exact where p rounds to one. The derivative is written out, in reverse mode alone.

    Args:
        hidden: [R, L, D] hidden states; their dtype is that of the products' operands, backward too.
        unembed: [D, V], master weights in float32, as is their gradient.
        scored: which hidden state predicts which token.
        chunk: as many logits exist at once as this many scored positions of each group have.
        wanted: what else is asked for, among `slpojax.needs.of_source("head")`.
        reference: hidden states and unembedding of the reference, for "kl" and "activity"; they get no gradient.

    Returns:
        [G, S] each, float32, in nats; meaningless but finite where `scored` is unused: "log_odds", and the wanted:
        "collision" log sum_v p_v^2, "entropy", "kl" KL(reference || policy), and "activity", the mean over v of the
        reference's logits.
    """
    pairs = [(hidden, unembed)] + ([reference] if reference is not None and _OF_REFERENCE & set(wanted) else [])
    # The models hold the unembedding as [V, D]: the two transpositions cancel.
    sides = tuple((predictors(h, scored.source), matrix.T) for h, matrix in pairs)
    parts = -(-scored.source.shape[1] // max(1, chunk))
    asked = tuple(sorted(set(wanted) - {"activity"}))
    out = _numbers(asked, parts, sides[0], sides[1:] if "kl" in asked else (), scored.target)
    return out | {"activity": _mean_logit(*sides[1])} if "activity" in wanted else out


_OF_REFERENCE = set(needs.where(source="head", weights_of_reference=True))
_OF_LAYERS = needs.where(source="reader", weights_of_reference=True)


def _mean_logit(states: Float[Array, "G S D"], table: Float[Array, "V D"]) -> Float[Array, "G S"]:
    return jax.lax.stop_gradient(jnp.einsum("rsd,d->rs", states.astype(jnp.float32), jnp.mean(table, axis=0)))


def predictors(hidden: Float[Array, "R L D"], source: Int[Array, "G S"]) -> Float[Array, "G S D"]:
    """Return the hidden states that predict the scored tokens: `source` counts the cells of a group of rows."""
    return jnp.take_along_axis(hidden.reshape(source.shape[0], -1, hidden.shape[-1]), source[..., None], axis=1)


Side: TypeAlias = tuple[Float[Array, "G S D"], Float[Array, "V D"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _numbers(wanted: tuple[str, ...], parts: int, policy: Side, reference: tuple[Side, ...], target: Array) -> Head:
    return _forward(wanted, parts, policy, reference, target)[0]


def _forward(
    wanted: tuple[str, ...], parts: int, policy: Side, reference: tuple[Side, ...], target: Array
) -> tuple[Head, tuple]:
    """Return the numbers, and what the backward pass needs beside the arguments: [R, S] each, nothing larger."""
    sides = (policy, *reference)
    step, count, rest = _split(policy[1].shape[0], parts)

    def one(sums: tuple[Sums, ...], start: Array | int, step: int) -> tuple[Sums, ...]:
        logits = [_logits(states, _part(table, start, step)) for states, table in sides]
        here = target[..., None] == _words(policy[1].shape[0], start, step)
        # How far the reference lies above the policy, in the mean under the reference, is all that couples the two.
        excess = [None, logits[1] - logits[0]] if reference else [None]
        return tuple(_add(*x, here) for x in zip(sums, logits, excess, strict=True))

    sums = tuple(_none(wanted, target.shape, side) for side in range(len(sides)))
    if rest:
        sums = one(sums, 0, rest)
    sums, _ = jax.lax.scan(lambda s, i: (one(s, rest + i * step, step), None), sums, jnp.arange(count))
    return _finish(wanted, [_own(*side, target) for side in sides], sums)


def _own(states: Float[Array, "G S D"], table: Float[Array, "V D"], target: Array) -> Float[Array, "G S"]:
    """The tokens' own logits by a lookup of rows, as the embedding's: cheaper than to find them in the parts."""
    rows = table[target].astype(states.dtype)
    return jnp.einsum("rsd,rsd->rs", states, rows, preferred_element_type=jnp.float32)


def _split(vocabulary: int, parts: int) -> tuple[int, int, int]:
    """Return the words of a piece in a full part, the number of full parts, and the words left, which come first."""
    piece = vocabulary // math.gcd(vocabulary, PIECES)
    step = -(-piece // parts)
    return step, piece // step, piece % step


def _pieces(table: Float[Array, "V D"]) -> Float[Array, "P V/P D"]:
    return table.reshape(math.gcd(table.shape[0], PIECES), -1, table.shape[1])


def _part(table: Float[Array, "V D"], start: Array | int, step: int) -> Float[Array, "C D"]:
    return jax.lax.dynamic_slice_in_dim(_pieces(table), start, step, axis=1).reshape(-1, table.shape[1])


def _words(vocabulary: int, start: Array | int, step: int) -> Array:
    """[1, 1, C], the token ids of a part."""
    pieces = math.gcd(vocabulary, PIECES)
    first = jnp.arange(pieces) * (vocabulary // pieces)
    return (first[:, None] + (start + jnp.arange(step))[None, :]).reshape(1, 1, -1)


def _logits(states: Float[Array, "G S D"], part: Float[Array, "C D"]) -> Float[Array, "G S C"]:
    return jnp.einsum("rsd,cd->rsc", states, part.astype(states.dtype), preferred_element_type=jnp.float32)


# ---- sums over the vocabulary ----------------------------------------------------------------------------------------


def _none(wanted: tuple[str, ...], shape: tuple[int, ...], side: int) -> Sums:
    """The sums over no words, of the policy (side 0) or the reference (1)."""
    names = ["others"]
    if side == 0:
        names += [name for name, asked in (("squares", "collision"), ("moment", "entropy")) if asked in wanted]
    else:
        names += ["excess"]
    zero: Sums = {name: jnp.zeros(shape, jnp.float32) for name in names}
    return zero | {"top": jnp.full(shape, ABSENT, jnp.float32)}


def _add(sums: Sums, logits: Array, excess: Array | None, here: Array) -> Sums:
    """Add a part of the vocabulary to the sums.

    With z the logits, y the token: top = max_{v != y} z_v so far, others = sum_{v != y} w_v with
    w_v = exp(z_v - top), squares = sum w_v^2, moment = sum w_v (z_v - top), excess = sum w_v e_v.
    """

    def total(x: Array) -> Array:
        return jnp.sum(x, axis=-1)

    rest = jnp.where(here, ABSENT, logits)
    top = jnp.maximum(sums["top"], jnp.max(rest, axis=-1))
    shift = sums["top"] - top
    scale, above = jnp.exp(shift), rest - top[..., None]
    weight = jnp.exp(above)
    new: Sums = {"top": top, "others": scale * sums["others"] + total(weight)}
    if "squares" in sums:
        new["squares"] = scale**2 * sums["squares"] + total(weight**2)
    if "moment" in sums:
        new["moment"] = scale * (sums["moment"] + shift * sums["others"]) + total(weight * above)
    if excess is not None:
        new["excess"] = scale * sums["excess"] + total(weight * excess)
    return new


def _finish(wanted: tuple[str, ...], own: Sequence[Array], sums: tuple[Sums, ...]) -> tuple[Head, tuple]:
    """Turn the tokens' logits and the sums over the others into numbers, and return also what `_slope` needs.

    Each number is split into the token against the others, and the others among themselves.
    """
    level = [s["top"] + jnp.log(s["others"]) for s in sums]  # log sum_{v != y} exp z_v
    odds = [x - y for x, y in zip(own, level, strict=True)]
    policy, (yes, no) = sums[0], _log_p(odds[0])
    out: Head = {"log_odds": odds[0]}
    if "collision" in wanted:
        collision = jnp.log(policy["squares"]) - 2 * jnp.log(policy["others"])
        out["collision"] = jnp.logaddexp(2 * yes, 2 * no + collision)
    if "entropy" in wanted:
        entropy = jnp.log(policy["others"]) - policy["moment"] / policy["others"]
        out["entropy"] = jnp.exp(no) * (entropy - no) - jnp.exp(yes) * yes
    if "kl" in wanted:
        ref_yes, ref_no = _log_p(odds[1])
        kl = sums[1]["excess"] / sums[1]["others"] - (level[1] - level[0])
        out["kl"] = jnp.exp(ref_yes) * (ref_yes - yes) + jnp.exp(ref_no) * (ref_no - no + kl)
    return out, (tuple(odds), tuple(level), {name: out[name] for name in ("collision", "entropy") if name in wanted})


def _log_p(odds: Array) -> tuple[Array, Array]:
    """Return log p and log(1 - p)."""
    return -jax.nn.softplus(-odds), -jax.nn.softplus(odds)


# ---- the derivative --------------------------------------------------------------------------------------------------


def _forward_pass(wanted: tuple[str, ...], parts: int, *arguments: Any) -> tuple[Head, tuple]:
    out, kept = _forward(wanted, parts, *arguments)
    return out, (*arguments, kept)


def _backward(wanted: tuple[str, ...], parts: int, residuals: tuple, cotangent: Head) -> tuple:
    """Pull the numbers' gradient back to the policy's states and table, with each part's logits formed again."""
    policy, reference, target, kept = residuals
    (states, table), sides = policy, (policy, *reference)
    step, count, rest = _split(table.shape[0], parts)

    def one(carry: tuple[jax.Array, jax.Array], start: Array | int, step: int) -> tuple[jax.Array, jax.Array]:
        cut = [_part(table, start, step) for _, table in sides]
        logits = [_logits(states, part) for (states, _), part in zip(sides, cut, strict=True)]
        here = target[..., None] == _words(table.shape[0], start, step)
        slope = _slope(wanted, logits, here, kept, cotangent).astype(states.dtype)
        back = cut[0].astype(states.dtype)
        by_states = carry[0] + jnp.einsum("rsc,cd->rsd", slope, back, preferred_element_type=jnp.float32)
        by_part = _outer(states, slope).reshape(carry[1].shape[0], step, -1)
        return by_states, jax.lax.dynamic_update_slice_in_dim(carry[1], by_part, start, axis=1)

    carry = jnp.zeros(states.shape, jnp.float32), jnp.zeros(_pieces(table).shape, jnp.float32)
    if rest:
        carry = one(carry, 0, rest)
    carry, _ = jax.lax.scan(lambda c, i: (one(c, rest + i * step, step), None), carry, jnp.arange(count))
    return (carry[0].astype(states.dtype), carry[1].reshape(table.shape).astype(table.dtype)), None, None


# Under vmap one after the other: XLA for CPU has no product in bfloat16 that contracts the middle one of three axes.
@jax.custom_batching.sequential_vmap
def _outer(states: Float[Array, "G S D"], slope: Float[Array, "G S C"]) -> Float[Array, "C D"]:
    states, slope = (x.reshape(-1, x.shape[-1]) for x in (states, slope))
    # The states are turned and the result turned back, as they are smaller than the slope.
    return jnp.einsum("nd,nc->dc", states, slope, preferred_element_type=jnp.float32).T


def _slope(
    wanted: tuple[str, ...], logits: Sequence[Array], here: Array, kept: tuple, cotangent: Head
) -> Float[Array, "G S C"]:
    r"""Return the gradient by the logits of a part, from that by the numbers.

    With p the policy, q the reference, C the collision, H the entropy and
    :math:`u_v = e^{z_v} / \sum_{w \ne y} e^{z_w}`,

    .. math:: \partial d / \partial z_v = [v = y] - [v \ne y] u_v, \quad
        \partial C / \partial z_v = 2 p_v (p_v e^{-C} - 1), \quad
        \partial H / \partial z_v = -p_v (\log p_v + H), \quad
        \partial KL / \partial z_v = p_v - q_v.
    """
    odds, level, numbers = kept
    yes, no = _log_p(odds[0])

    def wide(x: Array) -> Array:
        return x[..., None]

    above = logits[0] - wide(level[0])  # log u
    p, own = jnp.exp(above + wide(no)), cotangent["log_odds"]
    slope = -wide(own) * jnp.exp(above)
    if "collision" in wanted:
        by, at = 2 * cotangent["collision"], numbers["collision"]
        slope += wide(by) * p * (p * wide(jnp.exp(-at)) - 1)
        own = own + by * jnp.exp(yes) * jnp.expm1(yes - at)
    if "entropy" in wanted:
        by, at = cotangent["entropy"], numbers["entropy"]
        slope -= wide(by) * p * (above + wide(no + at))
        own = own - by * jnp.exp(yes) * (yes + at)
    if "kl" in wanted:
        by, (ref_yes, ref_no) = cotangent["kl"], _log_p(odds[1])
        slope += wide(by) * (p - jnp.exp(logits[1] - wide(level[1] - ref_no)))
        own = own + by * (jnp.exp(yes) - jnp.exp(ref_yes))
    return jnp.where(here, wide(own), slope)


_numbers.defvjp(_forward_pass, _backward)


def place(head: Head, scored: Scored, length: Array, shapes: Shapes) -> tuple[Logps, dict[str, Any]]:
    """Bring the numbers of scored tokens to their places.

    Args:
        head: [G, S] of any groups of the batch; responses and prompts of the others come out as absent tokens.
        scored: the same groups' slots.
        length: [B, K] response lengths.
        shapes: the batch's sizes.

    Returns:
        The [B, K, T] log-probs, and by name what else `head` holds, [B, K, T] or with an axis of its own behind these,
        0 where there is no token; where prompts are scored, their `Logps` [B, P] are among it as "prompt".
    """
    odds, responses = head["log_odds"], (*length.shape, shapes.response)

    def scatter(values: Array, absent: float, slot: Array, shape: tuple[int, ...]) -> Array:
        of_token = values.shape[2:]
        flat = jnp.full((math.prod(shape), *of_token), absent, values.dtype)
        flat = flat.at[slot.reshape(-1)].set(values.reshape(-1, *of_token), mode="drop")
        return flat.reshape(*shape, *of_token)

    def log_probs(*where: Any) -> tuple[Array, Array]:
        return scatter(-jax.nn.softplus(-odds), 0.0, *where), scatter(-jax.nn.softplus(odds), ABSENT, *where)

    logps = Logps(*log_probs(scored.slot, responses), length)
    found: dict[str, Any] = {
        name: scatter(values, 0.0, scored.slot, responses) for name, values in head.items() if name != "log_odds"
    }
    if shapes.prompt:
        before, prompts = math.prod(responses), (length.shape[0], shapes.prompt)
        # Out of bounds on the far side where it is a response's: a negative index would count from the end.
        slot = jnp.where(scored.slot < before, math.prod(prompts), scored.slot - before)
        here = scatter(jnp.ones(slot.shape), 0.0, slot, prompts)
        found["prompt"] = Logps(*log_probs(slot, prompts), jnp.sum(here, axis=-1).astype(jnp.int32))
    return logps, found


def chunk_size(shapes: Shapes, rows_per_device: int) -> int:
    """Return how many scored positions of each group are `POSITIONS_AT_ONCE` on a device that holds so many rows."""
    groups = max(1, rows_per_device * shapes.groups // shapes.rows)
    return max(1, min(shapes.scored, POSITIONS_AT_ONCE // groups))


def head_function(
    model: Model, shapes: Shapes, *, rows_per_device: int, wanted: Collection[str] = ()
) -> Callable[..., Head]:
    """Return (params, rows, scored, ref_params) -> [G, S] numbers, see `head`, `masks.numbers` and `degrees.logits`.

    Args:
        model: whose log-probs; `ref_params` are the reference's, for what takes its weights, else None.
        shapes: the batch's sizes.
        rows_per_device: rows that one device holds at a time (of a micro-batch): the logits are cut to fit it.
        wanted: what is asked for beside the log-odds, among `slpojax.needs.of_source("head", "reader")`.
    """
    chunk = chunk_size(shapes, rows_per_device)
    of_vocabulary, of_layers = (sorted(set(wanted) & set(names)) for names in (needs.of_source("head"), _OF_LAYERS))

    def of_reference(params: Params, rows: Rows, scored: Scored) -> tuple[Reference, Float[Array, "N G S D"] | None]:
        if of_layers:
            hidden, states = model.layers(params, rows, lambda x: predictors(x, scored.source))
        else:
            hidden, states = model.apply(params, rows, None)[0], None
        return jax.lax.stop_gradient(((hidden, model.unembed(params)), states))

    def numbers(params: Params, rows: Rows, scored: Scored, ref_params: Params | None = None) -> Head:
        reference, states = None, None
        if needs.takes_reference_weights(wanted):
            reference, states = of_reference(ref_params, rows, scored)
        hidden, own = model.apply(params, rows, None)[0], beside.of(params)
        found = head(hidden, model.unembed(params), scored, chunk=chunk, wanted=of_vocabulary, reference=reference)
        if states is not None:
            found |= masks.numbers(own, states, of_layers)
        if "degree" in wanted:
            found["degree"] = degrees.logits(own["degree"], predictors(hidden, scored.source))
        return found

    return numbers


def logps_function(
    model: Model, shapes: Shapes, *, rows_per_device: int, everywhere: jax.sharding.Sharding
) -> Callable[[Params, Batch], Logps]:
    """Return the jitted (params, batch) -> Logps [B, K, T] of a whole batch, without gradient, on every device."""
    function = distribution_function(model, shapes, rows_per_device=rows_per_device, everywhere=everywhere)
    return lambda params, batch: function(params, batch, None)[0]


def distribution_function(
    model: Model,
    shapes: Shapes,
    *,
    rows_per_device: int,
    everywhere: jax.sharding.Sharding,
    wanted: Collection[str] = (),
) -> Callable[[Params, Batch, Params | None], tuple[Logps, dict[str, Any]]]:
    """Return the jitted (params, batch, ref_params) -> (Logps, what else is wanted), as `logps_function`; see `place`.

    One compiled program serves every batch of these sizes, whether it carries the log-probs of frozen models (an
    evaluation) or not yet (the pass that makes the reference's).
    """
    numbers = head_function(model, shapes, rows_per_device=rows_per_device, wanted=wanted)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def log_probs(params: Params, batch: Batch, ref_params: Params | None) -> tuple[Logps, dict[str, Any]]:
        out = jax.lax.with_sharding_constraint(numbers(params, batch.rows, batch.scored, ref_params), everywhere)
        return place(out, batch.scored, batch.length, shapes)

    return lambda params, batch, ref_params: log_probs(params, batch._replace(ref=None, previous=None), ref_params)
