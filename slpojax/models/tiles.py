"""Attention tile by tile in plain XLA, for any device: memory linear in the length, and no work on empty tiles.

Knows cells and heads; knows no device. Queries and keys are cut into tiles of `BLOCK` cells; a row visits only the
tiles in which somebody sees somebody, which in packed rows are few: about a quarter of all pairs for dialogues in rows
of 1,024 tokens. The softmax is taken online, and the backward pass makes the weights again from the log-sum-exp that
the forward pass keeps (Dao, Fu, Ermon, Rudra, Re: FlashAttention, 2022, arXiv:2205.14135). The loop is a `while` with
as many rounds as the fullest row has tiles, so that the program is the same for every length, and reverse mode is its
own; forward mode (`jax.jvp`) is not: ask for `attention.dense` there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from slpojax.base import Array, Float, Int
from slpojax.models.attention import SAVED, SHORT, UNSEEN, Cells, dense, pad_length, sees, stands
from slpojax.numerics import slope_of_soft, soften

BLOCK = 64  # of queries, and of keys: on a CPU 64 is a little faster than 128, and 32 is slower


def tiles(
    query: Float[Array, "R L H d"],
    key: Float[Array, "R M G d"],
    value: Float[Array, "R M G d"],
    reader: Cells,
    read: Cells,
    *,
    cap: float | None = None,
) -> Float[Array, "R L H d"]:
    """Attend as `attention.dense` does, tile by tile."""
    rows, length, heads, dim = query.shape
    if length != key.shape[1] or length <= SHORT:
        return dense(query, key, value, reader, read, cap=cap)
    query, key, value, *of_cells = pad_length(BLOCK, query, key, value, *stands(reader))
    number = query.shape[1] // BLOCK

    def cut(x: Array) -> Array:  # [R, L, H, d] -> [R, tiles, G, H / G, BLOCK, d]
        x = x.reshape(rows, number, BLOCK, key.shape[2], -1, dim)
        return jnp.moveaxis(x, 2, 4)

    cells = jnp.stack([x.reshape(rows, number, BLOCK) for x in of_cells], axis=2)
    out = _attend(cap, cut(query), cut(key)[:, :, :, 0], cut(value)[:, :, :, 0], cells, reader.window)
    return jnp.moveaxis(out, 4, 2).reshape(rows, -1, heads, dim)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(cap: float | None, query: Array, key: Array, value: Array, cells: Array, window: Array | None) -> Array:
    return _forward(cap, query, key, value, cells, window)[0]


def _forward(
    cap: float | None, query: Array, key: Array, value: Array, cells: Array, window: Array | None
) -> tuple[Array, tuple[Array | None, ...]]:
    rows, number, *heads, dim = query.shape  # heads: G, H / G, BLOCK
    of_query, of_key, count = visits(cells, window)

    def visit(t: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        out, lse, total, norm, top, last = carry
        i, j = of_query[:, t], of_key[:, t]
        new = _wide(i != last, 4)
        norm, top, total = jnp.where(new, 0.0, norm), jnp.where(new, UNSEEN, top), jnp.where(new[..., None], 0.0, total)
        logits = _logits(_at(query, i), _at(key, j), _seen(cells, window, i, j, t < count), cap)
        higher = jnp.maximum(top, logits.max(axis=-1))
        weight, shrink = jnp.exp(logits - higher[..., None]), jnp.exp(top - higher)
        norm = shrink * norm + weight.sum(axis=-1)
        total = shrink[..., None] * total + _product("rghqk,rgkd->rghqd", weight.astype(value.dtype), _at(value, j))
        out, lse = _put(out, total / norm[..., None], i), _put(lse, higher + jnp.log(norm), i)
        return out, lse, total, norm, higher, i

    one = jnp.zeros((rows, *heads), jnp.float32)
    begin = (jnp.zeros_like(query), jnp.zeros((rows, number, *heads)), jnp.zeros((*one.shape, dim)), one, one)
    out, lse, *_ = lax.fori_loop(0, count.max(), visit, (*begin, jnp.full(rows, -1)))
    out, lse = checkpoint_name(out, SAVED), checkpoint_name(lse, SAVED)
    return out, (query, key, value, cells, window, out, lse)


def _backward(cap: float | None, saved: tuple[Any, ...], d_out: Array) -> tuple[Array | None, ...]:
    query, key, value, cells, window, out, lse = saved
    of_query, of_key, count = visits(cells, window)
    scale = query.shape[-1] ** -0.5
    inner = jnp.einsum("rtghqd,rtghqd->rtghq", out, d_out, preferred_element_type=jnp.float32)

    def visit(t: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        d_query, d_key, d_value, total, last = carry
        i, j = of_query[:, t], of_key[:, t]
        q, k, v, d = _at(query, i), _at(key, j), _at(value, j), _at(d_out, i)
        logits = _logits(q, k, _seen(cells, window, i, j, t < count), cap)
        weight = jnp.exp(logits - _at(lse, i)[..., None])
        d_weight = _product("rghqd,rgkd->rghqk", d, v)
        d_logits = weight * (d_weight - _at(inner, i)[..., None]) * scale
        d_logits = (d_logits if cap is None else d_logits * slope_of_soft(logits, cap)).astype(q.dtype)
        total = jnp.where(_wide(i != last, 5), 0.0, total) + _product("rghqk,rgkd->rghqd", d_logits, k)
        d_key = _put(d_key, _at(d_key, j) + _product("rghqk,rghqd->rgkd", d_logits, q), j)
        d_value = _put(d_value, _at(d_value, j) + _product("rghqk,rghqd->rgkd", weight.astype(q.dtype), d), j)
        return _put(d_query, total, i), d_key, d_value, total, i

    nothing = [jnp.zeros(x.shape, jnp.float32) for x in (key, value, query[:, 0])]
    begin = (jnp.zeros_like(query), *nothing, jnp.full(len(query), -1))
    d_query, d_key, d_value, *_ = lax.fori_loop(0, count.max(), visit, begin)
    return d_query, d_key.astype(key.dtype), d_value.astype(value.dtype), None, None


_attend.defvjp(_forward, _backward)


def visits(
    cells: Int[Array, "R tiles stands block"], window: Int[Array, ""] | None = None
) -> tuple[Int[Array, "R visits"], Int[Array, "R visits"], Int[Array, " R"]]:
    """Which tile of queries meets which tile of keys.

    A pair of tiles is left out where the ranges of their examples do not meet, where the keys hold no prompt and the
    ranges of the branches do not meet, or where the last of the keys lies beyond the window of the first query. In rows
    that hold examples and branches one after the other, this leaves out every pair in which nobody sees anybody (with
    a window, nearly every); in any other row, it leaves out none in which somebody does.

    Args:
        cells: example and branch of the cells of each tile, and with a window the position.
        window: as in `attention.Cells`.

    Returns:
        The query tiles, in ascending order, and the key tiles of each row, and how many of these visits count; beyond
        that number the last one is repeated.
    """
    i, j = np.tril_indices(cells.shape[1])
    there, beyond = cells[:, :, :1] > 0, np.iinfo(np.int32).max
    low = jnp.where(there, cells, beyond).min(axis=-1)
    high = jnp.where(there, cells, -1).max(axis=-1)
    example, branch, *_ = jnp.moveaxis((low[:, i] <= high[:, j]) & (low[:, j] <= high[:, i]), 2, 0)
    meet = example & (branch | (low[:, j, 1] == 0))
    if window is not None:
        meet &= low[:, i, 2] - high[:, j, 2] < window
    meet |= (i == j)[None]
    count = meet.sum(axis=1)
    first = jnp.argsort(~meet, axis=1, stable=True)
    visit = jnp.take_along_axis(first, jnp.minimum(np.arange(len(i))[None], count[:, None] - 1), axis=1)
    return jnp.asarray(i)[visit], jnp.asarray(j)[visit], count


def _seen(cells: Array, window: Array | None, i: Array, j: Array, counts: Array) -> Array:
    """[R, BLOCK, BLOCK]; nobody sees anybody where a row's visits are over."""
    reader, read = (
        Cells(tile[:, None] * BLOCK + np.arange(BLOCK)[None], *jnp.moveaxis(_at(cells, tile), 1, 0)) for tile in (i, j)
    )
    return sees(reader._replace(window=window), read) & _wide(counts, 3)


def _logits(query: Array, key: Array, seen: Array, cap: float | None) -> Array:
    logits = _product("rghqd,rgkd->rghqk", query, key) * query.shape[-1] ** -0.5
    return jnp.where(seen[:, None, None], soften(logits, cap), UNSEEN)


def _product(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _wide(x: Array, rank: int) -> Array:
    return x.reshape(-1, *[1] * (rank - 1))


def _at(x: Array, tile: Array) -> Array:
    """Each row's tile: [R, tiles, ...], [R] -> [R, ...]."""
    return jax.vmap(lambda x, i: lax.dynamic_index_in_dim(x, i, 0, keepdims=False))(x, tile)


def _put(x: Array, new: Array, tile: Array) -> Array:
    """`x` with each row's tile replaced."""
    return jax.vmap(lambda x, n, i: lax.dynamic_update_index_in_dim(x, n, i, 0))(x, new.astype(x.dtype), tile)
