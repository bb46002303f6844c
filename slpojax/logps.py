"""From hidden states to log-probs: the one place that meets the vocabulary.

Knows hidden states, the unembedding and scored positions; knows no model family and no objective. Logits exist for a
few positions at a time, in float32, and are recomputed in the backward pass: no array has both the scored positions
and the vocabulary at full size.

Everything follows from one number per token, its log-odds d = z_y - logsumexp_{v != y} z_v:
log p = -softplus(-d) and log(1 - p) = -softplus(d), each exact where the other rounds.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from slpojax.base import ABSENT, Array, Batch, Logps, Model, Params, Rows, Scored, Shapes

# Logits of this many positions exist at once on a device: 512 x 50,304 in float32 is 103 MB.
POSITIONS_AT_ONCE = 512


def token_log_odds(
    hidden: Float[Array, "R L D"], unembed: Float[Array, "D V"], scored: Scored, *, chunk: int
) -> Float[Array, "R S"]:
    """Log-odds of the scored tokens: d = z_y - log sum_{v != y} exp z_v = log p - log(1 - p).

    The product with the vocabulary accumulates in float32 and its result is never rounded to less; the sum over the
    *other* tokens keeps d exact where p rounds to one.

    Args:
        hidden: [R, L, D] hidden states; their dtype is that of the product's operands.
        unembed: [D, V], master weights in float32: their gradient accumulates over the chunks in float32.
        scored: which hidden state predicts which token.
        chunk: scored positions of each row whose logits exist at once.

    Returns:
        [R, S] log-odds in nats, float32; meaningless but finite where `scored` is unused.
    """
    states = jnp.take_along_axis(hidden, scored.source[..., None], axis=1)
    count = scored.source.shape[1]
    chunk = min(chunk, count)
    chunks = -(-count // chunk)
    pad = ((0, 0), (0, chunks * chunk - count))
    states = jnp.pad(states, (*pad, (0, 0)))
    target = jnp.pad(scored.target, pad)

    @jax.checkpoint
    def one(states: Array, target: Array) -> Array:
        return _log_odds(states, unembed.astype(states.dtype), target)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, chunk, *x.shape[2:]), 1, 0)

    _, odds = jax.lax.scan(lambda _, x: (None, one(*x)), None, (split(states), split(target)))
    return jnp.moveaxis(odds, 0, 1).reshape(target.shape)[:, :count]


def _log_odds(states: Float[Array, "R C D"], unembed: Float[Array, "D V"], target: Array) -> Float[Array, "R C"]:
    logits = jnp.einsum("rcd,dv->rcv", states, unembed, preferred_element_type=jnp.float32)
    # A comparison with the vocabulary's index, and no gather, so that a vocabulary split over devices stays split.
    is_target = target[..., None] == jnp.arange(logits.shape[-1])[None, None, :]
    own = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    return own - jax.nn.logsumexp(jnp.where(is_target, ABSENT, logits), axis=-1)


def place(odds: Float[Array, "R S"], scored: Scored, length: Array, response: int) -> Logps:
    """Bring the log-odds of scored tokens to their places in [B, K, T] log-probs.

    Args:
        odds: [R, S] log-odds of any set of rows of the batch; responses of the other rows come out as absent tokens.
        scored: the same rows' slots.
        length: [B, K] response lengths.
        response: T.
    """
    slots = math.prod(length.shape) * response

    def scatter(values: Array, absent: float) -> Array:
        flat = jnp.full(slots, absent, values.dtype).at[scored.slot.reshape(-1)].set(values.reshape(-1), mode="drop")
        return flat.reshape(*length.shape, response)

    return Logps(scatter(-jax.nn.softplus(-odds), 0.0), scatter(-jax.nn.softplus(odds), ABSENT), length)


def log_odds_function(model: Model, shapes: Shapes, *, rows_per_device: int) -> Callable[[Params, Rows, Scored], Array]:
    """Return (params, rows, scored) -> [R, S] log-odds under `model`, with the logits cut to fit a device.

    Args:
        model: whose log-probs.
        shapes: the batch's sizes.
        rows_per_device: rows that one device holds at a time (of a micro-batch).
    """
    chunk = max(1, min(shapes.scored, POSITIONS_AT_ONCE // max(1, rows_per_device)))

    def log_odds(params: Params, rows: Rows, scored: Scored) -> Array:
        hidden, _ = model.apply(params, rows, None)
        return token_log_odds(hidden, model.unembed(params), scored, chunk=chunk)

    return log_odds


def logps_function(
    model: Model, shapes: Shapes, *, rows_per_device: int, everywhere: jax.sharding.Sharding
) -> Callable[[Params, Batch], Logps]:
    """Return the jitted (params, batch) -> Logps [B, K, T] of a whole batch, without gradient, on every device.

    The same compiled program serves the reference cache and the evaluation.
    """
    log_odds = log_odds_function(model, shapes, rows_per_device=rows_per_device)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def logps(params: Params, batch: Batch) -> Logps:
        odds = jax.lax.with_sharding_constraint(log_odds(params, batch.rows, batch.scored), everywhere)
        return place(odds, batch.scored, batch.length, shapes.response)

    return logps
