"""The head: one pass over the vocabulary, from hidden states to the log-odds of tokens, and its derivative.

Knows hidden states, the unembedding and scored positions; knows no model family, no batch and no objective. The logits
exist for a part of the vocabulary at a time, in float32, and the backward pass forms them once more: no array has both
the scored positions and the vocabulary at full size.

Everything follows from one number per token, its log-odds d = z_y - logsumexp_{v != y} z_v:
log p = -softplus(-d) and log(1 - p) = -softplus(d), each exact where the other rounds.

Why parts of the vocabulary and not of the positions: a part of the unembedding is cast, and gathered where its width is
split over devices, once in each pass, and its gradient is complete when the part is done, so that it is written, and
summed over devices, once; what accumulates from part to part has the size of the hidden states.
"""

import functools
import math
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Float

from slpojax import needs
from slpojax.base import ABSENT, Array, Int, Scored
from slpojax.grid import Grid, lookup, scatter
from slpojax.numerics import slope_of_soft, soften

TokenScores: TypeAlias = dict[str, Array]  # "log_odds" and what else was requested, [G, S] each
Sums: TypeAlias = dict[str, Array]  # over the words other than the token, [R, S] each; see `_add_part`
Reference: TypeAlias = tuple[Float[Array, "R L E"], Float[Array, "E V"]]  # of a width of its own
Caps: TypeAlias = tuple[float | None, ...]  # of the logits of the policy, and of the reference's; see `soften`

# As many logits exist at once on a CPU as this many positions have: 64 x 50,304 in float32 is 13 MB, which stays in a
# processor's cache from the product to the sums. From 96 on, scoring takes a third longer.
POSITIONS_AT_ONCE = 64

# The same on an accelerator, and the bytes of logits that are too many there; see `positions_at_once`.
_AT_ONCE, _LOGITS = 1024, 2**28

# A part of the vocabulary is made of one stretch of each of so many equal pieces (of fewer where that does not divide
# it), so that on up to so many devices that share the vocabulary each holds an equal share of every part.
PIECES = 16

# How pieces of the vocabulary are split over the devices, [pieces, words, D].
_SPLIT = PartitionSpec("tensor", None, "fsdp")


def positions_at_once(platform: str, vocabulary: int) -> int:
    r"""Return of how many scored positions a device has logits at once.

    With S scored positions on the device and n of them at once, a part of the vocabulary has :math:`c = n V / S` words.
    The product of the backward pass that gives the states' gradient takes 2 S D c operations, and reads and writes the
    float32 sum that it adds to, 8 S D bytes: c / 4 operations a byte. Below some 200 to 240 of them (H200: 989 TFLOP/s
    in bfloat16, 4.8 TB/s; TPU v5e: 197, 0.82) the memory is what limits it, so below c = 1,000: n = 163 for 8,192
    scored positions and 50,304 words, n = 651 for 32,768. With the 64 that a CPU's cache wants, c is 393 and 98, and
    that product runs at 48% and 12% of an H200's speed; 98 words do not fill the 128 lanes of a TPU either.

    Args:
        platform: of the devices that the program is for: cpu, gpu, cuda, tpu, ...
        vocabulary: V.

    Returns:
        64 on a CPU. Elsewhere 1,024, or fewer where their logits, V float32 each, would take more than 256 MiB: then
        the largest multiple of 128 (a TPU's lanes), at least 128.

    Example:
        >>> positions_at_once("cpu", 50304), positions_at_once("gpu", 50304), positions_at_once("tpu", 128256)
        (64, 1024, 512)
    """
    if platform == "cpu":
        return POSITIONS_AT_ONCE
    return max(128, min(_AT_ONCE, _LOGITS // (4 * vocabulary) // 128 * 128))


def token_log_odds(
    hidden: Float[Array, "R L D"],
    unembed: Float[Array, "D V"],
    scored: Scored,
    *,
    chunk: int,
    cap: float | None = None,
) -> Float[Array, "G S"]:
    """Log-odds of the scored tokens: d = z_y - log sum_{v != y} exp z_v = log p - log(1 - p).

    The first of the scores of `token_scores`.
    """
    return token_scores(hidden, unembed, scored, chunk=chunk, caps=(cap, None))["log_odds"]


def token_scores(
    hidden: Float[Array, "R L D"],
    unembed: Float[Array, "D V"],
    scored: Scored,
    *,
    chunk: int,
    requested: Collection[str] = (),
    reference: Reference | None = None,
    caps: Caps = (None, None),
    grid: Grid | None = None,
) -> TokenScores:
    """Scores of tokens, from one pass over the vocabulary.

    The product with the vocabulary accumulates in float32 and its result is never rounded to less; the sum over the
    *other* tokens keeps the log-odds exact where p rounds to one. The derivative is written out, in reverse mode alone.

    Args:
        hidden: [R, L, D] hidden states; their dtype is that of the products' operands, backward too.
        unembed: [D, V], master weights in float32, as is their gradient.
        scored: which hidden state predicts which token.
        chunk: how many scored positions of each group may have all their logits in memory at once.
        requested: what else to compute, among `needs.of_source("head")`.
        reference: hidden states and unembedding of the reference, for "kl" and "activity"; they get no gradient.
        caps: of the policy's logits and of the reference's: cap tanh(product / cap); None for the product itself.
        grid: over whose devices the groups are split; None for one device.

    Returns:
        [G, S] each, float32, in nats; meaningless but finite where `scored` is unused: "log_odds", and the requested:
        "collision" log sum_v p_v^2, "entropy", "kl" KL(reference || policy), and "activity", the mean over v of the
        reference's logits.
    """
    pairs = [(hidden, unembed)] + ([reference] if reference is not None and OF_REFERENCE & set(requested) else [])
    # The models hold the unembedding as [V, D]: the two transpositions cancel.
    sides = tuple((predictors(h, scored.source), matrix.T) for h, matrix in pairs)
    parts = -(-scored.source.shape[1] // max(1, chunk))
    summed = tuple(sorted(set(requested) - {"activity"}))
    options = (summed, parts, caps, grid)
    out = _scores(*options, sides[0], sides[1:] if "kl" in summed else (), scored.target)
    if "activity" not in requested:
        return out
    if caps[1] is not None:
        raise ValueError(
            f"the mean of the reference's logits is not known where they are capped (at {caps[1]:g}): choose an "
            "objective that does not ask for it, or a reference without final_logit_softcapping."
        )
    return out | {"activity": _mean_logit(*sides[1])}


OF_REFERENCE = frozenset(
    needs.where(source="head", weights_of_reference=True)
)  # scores that take the reference's hidden states


def rewards(hidden: Float[Array, "R L D"], weight: Float[Array, " D"], cell: Int[Array, "G S"]) -> Float[Array, "G S"]:
    """Return what a score head gives at tokens' own hidden states, float32: `cell` counts the cells of a group of rows.

    Args:
        hidden: final hidden states.
        weight: of the score head, float32; cast to the states' dtype as any other weight, the sum is float32.
        cell: [G, S], as `Scored.cell`.
    """
    of_cells = jnp.einsum("rld,d->rl", hidden, weight.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return jnp.take_along_axis(of_cells.reshape(cell.shape[0], -1), cell, axis=1)


def _mean_logit(states: Float[Array, "G S D"], table: Float[Array, "V D"]) -> Float[Array, "G S"]:
    return jax.lax.stop_gradient(jnp.einsum("rsd,d->rs", states.astype(jnp.float32), jnp.mean(table, axis=0)))


def predictors(hidden: Float[Array, "R L D"], source: Int[Array, "G S"]) -> Float[Array, "G S D"]:
    """Return the hidden states that predict the scored tokens: `source` counts the cells of a group of rows."""
    return jnp.take_along_axis(hidden.reshape(source.shape[0], -1, hidden.shape[-1]), source[..., None], axis=1)


Side: TypeAlias = tuple[Float[Array, "G S D"], Float[Array, "V D"]]
RefSide: TypeAlias = tuple[Float[Array, "G S E"], Float[Array, "V E"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _scores(
    requested: tuple[str, ...],
    parts: int,
    caps: Caps,
    grid: Grid | None,
    policy: Side,
    reference: tuple[RefSide, ...],
    target: Array,
) -> TokenScores:
    return _forward(requested, parts, caps, grid, policy, reference, target)[0]


def _forward(
    requested: tuple[str, ...],
    parts: int,
    caps: Caps,
    grid: Grid | None,
    policy: Side,
    reference: tuple[RefSide, ...],
    target: Array,
) -> tuple[TokenScores, tuple]:
    """Return the scores, and what the backward pass needs beside the arguments: [R, S] each, nothing larger."""
    sides = (policy, *reference)
    step, count, rest = _split(policy[1].shape[0], parts)

    def one(sums: tuple[Sums, ...], start: Array | int, step: int) -> tuple[Sums, ...]:
        logits = [
            _logits(states, _part(table, start, step), cap) for (states, table), cap in zip(sides, caps, strict=False)
        ]
        is_token = target[..., None] == _words(policy[1].shape[0], start, step)
        # How far the reference lies above the policy, in the mean under the reference, is all that couples the two.
        excess = [None, logits[1] - logits[0]] if reference else [None]
        return tuple(_add_part(*x, is_token) for x in zip(sums, logits, excess, strict=True))

    sums = tuple(_initial_sums(requested, target.shape, side) for side in range(len(sides)))
    if rest:
        sums = one(sums, 0, rest)
    sums, _ = jax.lax.scan(lambda s, i: (one(s, rest + i * step, step), None), sums, jnp.arange(count))
    of_token = [_token_logits(*side, target, cap, grid) for side, cap in zip(sides, caps, strict=False)]
    return _finish(requested, of_token, sums)


def _token_logits(
    states: Float[Array, "G S D"], table: Float[Array, "V D"], target: Array, cap: float | None, grid: Grid | None
) -> Float[Array, "G S"]:
    """The logits of the tokens themselves, by a lookup of rows: cheaper than to find them in the parts."""
    rows = lookup(table, target, states.dtype, grid)
    return soften(jnp.einsum("rsd,rsd->rs", states, rows, preferred_element_type=jnp.float32), cap)


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


def _logits(states: Float[Array, "G S D"], part: Float[Array, "C D"], cap: float | None) -> Float[Array, "G S C"]:
    product = jnp.einsum("rsd,cd->rsc", states, part.astype(states.dtype), preferred_element_type=jnp.float32)
    return soften(product, cap)


# ---- sums over the vocabulary ----------------------------------------------------------------------------------------


def _initial_sums(requested: tuple[str, ...], shape: tuple[int, ...], side: int) -> Sums:
    """Return the initial accumulators of the policy (side 0) or the reference (1)."""
    names = ["others"]
    if side == 0:
        names += [name for name, score in (("squares", "collision"), ("moment", "entropy")) if score in requested]
    else:
        names += ["excess"]
    zero: Sums = {name: jnp.zeros(shape, jnp.float32) for name in names}
    return zero | {"top": jnp.full(shape, ABSENT, jnp.float32)}


def _add_part(sums: Sums, logits: Array, excess: Array | None, is_token: Array) -> Sums:
    """Add a part of the vocabulary to the sums.

    With z the logits, y the token: top = max_{v != y} z_v so far, others = sum_{v != y} w_v with
    w_v = exp(z_v - top), squares = sum w_v^2, moment = sum w_v (z_v - top), excess = sum w_v e_v.
    """

    def total(x: Array) -> Array:
        return jnp.sum(x, axis=-1)

    rest = jnp.where(is_token, ABSENT, logits)
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


def _finish(
    requested: tuple[str, ...], token_logit: Sequence[Array], sums: tuple[Sums, ...]
) -> tuple[TokenScores, tuple]:
    """Turn the tokens' logits and the sums over the others into scores, and return also what `_slope` needs.

    Each score is split into the token against the others, and the others among themselves.
    """
    level = [s["top"] + jnp.log(s["others"]) for s in sums]  # log sum_{v != y} exp z_v
    odds = [x - y for x, y in zip(token_logit, level, strict=True)]
    policy, (yes, no) = sums[0], _log_p(odds[0])
    out: TokenScores = {"log_odds": odds[0]}
    if "collision" in requested:
        collision = jnp.log(policy["squares"]) - 2 * jnp.log(policy["others"])
        out["collision"] = jnp.logaddexp(2 * yes, 2 * no + collision)
    if "entropy" in requested:
        entropy = jnp.log(policy["others"]) - policy["moment"] / policy["others"]
        out["entropy"] = jnp.exp(no) * (entropy - no) - jnp.exp(yes) * yes
    if "kl" in requested:
        ref_yes, ref_no = _log_p(odds[1])
        kl = sums[1]["excess"] / sums[1]["others"] - (level[1] - level[0])
        out["kl"] = jnp.exp(ref_yes) * (ref_yes - yes) + jnp.exp(ref_no) * (ref_no - no + kl)
    return out, (tuple(odds), tuple(level), {name: out[name] for name in ("collision", "entropy") if name in requested})


def _log_p(odds: Array) -> tuple[Array, Array]:
    """Return log p and log(1 - p)."""
    return -jax.nn.softplus(-odds), -jax.nn.softplus(odds)


# ---- the derivative --------------------------------------------------------------------------------------------------


def _forward_pass(
    requested: tuple[str, ...], parts: int, caps: Caps, grid: Grid | None, *arguments: Any
) -> tuple[TokenScores, tuple]:
    out, statistics = _forward(requested, parts, caps, grid, *arguments)
    return out, (*arguments, statistics)


def _backward(
    requested: tuple[str, ...], parts: int, caps: Caps, grid: Grid | None, residuals: tuple, cotangent: TokenScores
) -> tuple:
    """Pull the scores' gradient back to the policy's states and table, with each part's logits formed again."""
    policy, reference, target, statistics = residuals
    (states, table), sides = policy, (policy, *reference)
    step, count, rest = _split(table.shape[0], parts)

    def one(carry: tuple[jax.Array, jax.Array], start: Array | int, step: int) -> tuple[jax.Array, jax.Array]:
        cut = [_part(table, start, step) for _, table in sides]
        logits = [_logits(states, part, cap) for (states, _), part, cap in zip(sides, cut, caps, strict=False)]
        is_token = target[..., None] == _words(table.shape[0], start, step)
        slope = _slope(requested, logits, is_token, statistics, cotangent)
        slope = (slope if caps[0] is None else slope * slope_of_soft(logits[0], caps[0])).astype(states.dtype)
        back = cut[0].astype(states.dtype)
        by_states = carry[0] + jnp.einsum("rsc,cd->rsd", slope, back, preferred_element_type=jnp.float32)
        by_part = scatter(_outer(states, slope).reshape(carry[1].shape[0], step, -1), _SPLIT, grid)
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
    requested: tuple[str, ...], logits: Sequence[Array], is_token: Array, statistics: tuple, cotangent: TokenScores
) -> Float[Array, "G S C"]:
    r"""Return the gradient by the logits of a part, from that by the scores.

    With p the policy, q the reference, C the collision, H the entropy and
    :math:`u_v = e^{z_v} / \sum_{w \ne y} e^{z_w}`,

    .. math:: \partial d / \partial z_v = [v = y] - [v \ne y] u_v, \quad
        \partial C / \partial z_v = 2 p_v (p_v e^{-C} - 1), \quad
        \partial H / \partial z_v = -p_v (\log p_v + H), \quad
        \partial KL / \partial z_v = p_v - q_v.
    """
    odds, level, values = statistics
    yes, no = _log_p(odds[0])

    def wide(x: Array) -> Array:
        return x[..., None]

    above = logits[0] - wide(level[0])  # log u
    p, of_token = jnp.exp(above + wide(no)), cotangent["log_odds"]
    slope = -wide(of_token) * jnp.exp(above)
    if "collision" in requested:
        by, at = 2 * cotangent["collision"], values["collision"]
        slope += wide(by) * p * (p * wide(jnp.exp(-at)) - 1)
        of_token = of_token + by * jnp.exp(yes) * jnp.expm1(yes - at)
    if "entropy" in requested:
        by, at = cotangent["entropy"], values["entropy"]
        slope -= wide(by) * p * (above + wide(no + at))
        of_token = of_token - by * jnp.exp(yes) * (yes + at)
    if "kl" in requested:
        by, (ref_yes, ref_no) = cotangent["kl"], _log_p(odds[1])
        slope += wide(by) * (p - jnp.exp(logits[1] - wide(level[1] - ref_no)))
        of_token = of_token + by * (jnp.exp(yes) - jnp.exp(ref_yes))
    return jnp.where(is_token, wide(of_token), slope)


_scores.defvjp(_forward_pass, _backward)
