"""Who sees whom in packed rows, attention over what is seen, and the cache of a decoder.

Knows rows, cells and heads; knows no family and no rotary embedding. `dense` is the definition; every other
implementation is a function of the same signature that gives the same numbers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Shaped

from slpojax.base import Array, Bool, Float, Int, Rows
from slpojax.numerics import soften

Attend: TypeAlias = Callable[..., Array]  # (query, key, value, reader, read) -> as `dense`

# Rows of up to so many tokens, and calls with a cache, attend all at once whatever the implementation.
SHORT = 128
UNSEEN = -1e30  # far below any logit, yet finite

# Names under which remat policies find what attention keeps for its backward pass, and the input of a block.
SAVED, INPUT = "attention", "input"


class Cells(NamedTuple):
    """Where tokens stand: all that decides who sees whom.

    Attributes:
        place: index in the row or in the cache.
        example: 1, 2, ... within the row; 0 for padding and for empty cells of a cache.
        branch: 0 for the prompt, k + 1 for candidate k.
        position: number of tokens before it in its text; only windows read it.
        window: of those who look: how many tokens of its text a token sees, itself included; None for all before it.
    """

    place: Int[Array, "#R L"]
    example: Int[Array, "R L"]
    branch: Int[Array, "R L"]
    position: Int[Array, "R L"] | None = None
    window: Int[Array, ""] | None = None


class Cache(NamedTuple):
    """Keys and values of the tokens so far (N layers, M cells) and what the cells hold.

    Attributes:
        key: rotated keys, in the compute dtype.
        value: values, in the compute dtype.
        example: of each cell; 0 where nothing was written.
        branch: of each cell.
        position: of each cell, as in `Cells`.
        length: cells written so far, the same for all rows; the next call writes from here.
    """

    key: Float[Array, "N R M G d"]
    value: Float[Array, "N R M G d"]
    example: Int[Array, "R M"]
    branch: Int[Array, "R M"]
    position: Int[Array, "R M"]
    length: Int[Array, ""]


class Pool(NamedTuple):
    """Keys and values of prompts, and of what is being sampled behind them: B blocks of R slots, C lanes of prompts.

    A lane holds a prompt, once, for all slots that go on from it. A slot holds one sequence, in a ring: at a step all
    slots write the same column, so a sequence that is `age` tokens old has the `age` columns before it. The cells are
    the minor axis of keys and the second to last of values, as sums over head dimensions and cells want them.

    Attributes:
        prompt_key: [N, X, C, G, d, P], in the compute dtype; the lanes are those of X devices, C each.
        prompt_value: [N, X, C, G, P, d].
        prompt_length: [X, C], tokens of the prompt.
        key: [B, N, R, G, d, T]; the slots are those of X devices, R / X neighbours each.
        value: [B, N, R, G, T, d].
        lane: [B, R], where the slot's prompt is among those of its device.
        age: [B, R], tokens of the slot's sequence that were read.
        column: the next to be written.
        block: the one that is read and written.
    """

    prompt_key: Float[Array, "N X C G d P"]
    prompt_value: Float[Array, "N X C G P d"]
    prompt_length: Int[Array, "X C"]
    key: Float[Array, "B N R G d T"]
    value: Float[Array, "B N R G T d"]
    lane: Int[Array, "B R"]
    age: Int[Array, "B R"]
    column: Int[Array, ""]
    block: Int[Array, ""]


class Sight(NamedTuple):
    """One call's view: the querying cells, the cells that can be read, and where new keys go (None: no cache)."""

    reader: Cells
    read: Cells
    start: Int[Array, ""] | None


class Behind(NamedTuple):
    """The view of a call with a pool: its arrays, which cells the block's slots may read, and how far back they lie.

    Attributes:
        pool: the arrays.
        prompt: which cells of its lane a slot may read.
        own: which cells of its ring.
        prompt_back: how many tokens before the one that is read now a cell of the lane stands.
        own_back: the same of the ring.
    """

    pool: Pool
    prompt: Bool[Array, "R P"]
    own: Bool[Array, "R T"]
    prompt_back: Int[Array, "R P"]
    own_back: Int[Array, "1 T"]


def empty_cache(layers: int, rows: int, length: int, heads: int, head_dim: int, dtype: Any) -> Cache:
    """A cache for `rows` sequences of up to `length` tokens, prompt and padding included.

    Each call of `Model.apply` writes its L tokens into the next L cells of every row, whatever they are, so that all
    rows stay in step; a cell whose `example` is 0 is never read. Prompts of different lengths are therefore padded, on
    either side, with `example` 0, and `position` counts real tokens only. With left padding the last column predicts
    every row's first new token; with right padding column (prompt length - 1) of each row does. A decoding step is a
    call with rows [R, 1] whose `position` is the number of real tokens before it; `example` 0 keeps the token of a
    finished row out of sight. `length` must be at least the sum of all L: a write past the end would land on the last
    cells.

    Args:
        layers: N.
        rows: R.
        length: M, cells of each row.
        heads: G, key-value heads.
        head_dim: d.
        dtype: the compute dtype.

    Returns:
        The cache, with nothing in it.
    """
    shape, cells = (layers, rows, length, heads, head_dim), jnp.zeros((rows, length), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), cells, cells, cells, jnp.zeros((), jnp.int32))


def empty_pool(
    layers: int,
    heads: int,
    head_dim: int,
    dtype: Any,
    *,
    parts: int,
    lanes: int,
    width: int,
    blocks: int,
    slots: int,
    tokens: int,
) -> Pool:
    """A pool with nothing in it.

    Args:
        layers: N.
        heads: G, key-value heads.
        head_dim: d.
        dtype: the compute dtype.
        parts: X, over how many devices the slots are split.
        lanes: C, prompts of each.
        width: P, tokens of the longest prompt.
        blocks: B.
        slots: R, of each block.
        tokens: T, the most that a slot reads.
    """

    def zeros(*shape: int) -> Array:
        return jnp.zeros(shape, dtype)

    one, slot = jnp.zeros((), jnp.int32), jnp.zeros((blocks, slots), jnp.int32)
    return Pool(
        zeros(layers, parts, lanes, heads, head_dim, width),
        zeros(layers, parts, lanes, heads, width, head_dim),
        jnp.zeros((parts, lanes), jnp.int32),
        zeros(blocks, layers, slots, heads, head_dim, tokens),
        zeros(blocks, layers, slots, heads, tokens, head_dim),
        slot,
        slot,
        one,
        one,
    )


def view(rows: Rows, cache: Cache | Pool | None) -> tuple[Any, Sight | Behind]:
    """What each layer needs of the cache, stacked, and where the tokens of this call stand and what they may read.

    Args:
        rows: the tokens of this call, [R, L]; with a pool [R, 1], those that its block's slots have drawn.
        cache: what was read before, or None.

    Returns:
        (of the layers, the view of this call); with a cache, its cells include this call's tokens.
    """
    length = rows.token.shape[1]
    if cache is None:
        cells = Cells(jnp.arange(length)[None], rows.example, rows.branch, rows.position)
        return None, Sight(cells, cells, None)
    if isinstance(cache, Pool):
        return jnp.arange(cache.key.shape[1]), _behind(cache)
    room = cache.example.shape[1]
    if length > room:
        raise ValueError(f"{length} tokens for a cache of {room} cells; ask empty_cache for prompt plus new tokens.")
    example, branch, position = (
        lax.dynamic_update_slice_in_dim(getattr(cache, name), getattr(rows, name).astype(jnp.int32), cache.length, 1)
        for name in ("example", "branch", "position")
    )
    reader = Cells(cache.length + jnp.arange(length)[None], rows.example, rows.branch, rows.position)
    read = Cells(jnp.arange(room)[None], example, branch, position)
    return (cache.key, cache.value), Sight(reader, read, cache.length)


def _behind(pool: Pool) -> Behind:
    lane, age = (lax.dynamic_index_in_dim(x, pool.block, keepdims=False) for x in (pool.lane, pool.age))
    length = _of_lanes(pool.prompt_length, lane)
    width, room = pool.prompt_key.shape[-1], pool.key.shape[-1]
    before = (pool.column - 1 - jnp.arange(room)) % room  # how many tokens ago a column was written
    place, now = jnp.arange(width)[None], (length + age)[:, None]
    return Behind(pool, place < length[:, None], before[None] < age[:, None], now - place, before[None] + 1)


def within(sight: Any, window: Int[Array, ""] | None) -> Any:
    """Return a call's view as a layer has it that sees so many tokens of a text; None changes nothing."""
    if window is None:
        return sight
    if isinstance(sight, Behind):
        seen = (sight.prompt & (sight.prompt_back < window), sight.own & (sight.own_back < window))
        return sight._replace(prompt=seen[0], own=seen[1])
    return sight._replace(reader=sight.reader._replace(window=window))


def attend_and_keep(
    attend: Attend,
    query: Array,
    key: Array,
    value: Array,
    past: Any,
    sight: Sight | Behind,
    *,
    cap: float | None = None,
) -> tuple[Array, tuple[Array, Array] | None]:
    """What the queries read, and the keys and values to remember.

    Args:
        attend: the implementation, as `dense`; of calls without a pool.
        query: rotated, [R, L, H, d].
        key: rotated, of this call, [R, L, G, d].
        value: of this call, [R, L, G, d].
        past: the layer's part of what `view` returned.
        sight: the call's view.
        cap: of the logits, see `numerics.soften`; None for as they are.

    Returns:
        ([R, L, H, d], (key, value), or None without a cache).
    """
    if isinstance(sight, Behind):
        return _attend_behind(query, key, value, past, sight, cap), (key, value)
    if cap is not None:
        attend = functools.partial(attend, cap=cap)
    if past is None or sight.start is None:
        return attend(query, key, value, sight.reader, sight.read), None
    keys, values = (
        lax.dynamic_update_slice_in_dim(old, new, sight.start, axis=1)
        for old, new in zip(past, (key, value), strict=True)
    )
    return attend(query, keys, values, sight.reader, sight.read), (key, value)


def _attend_behind(
    query: Array, key: Array, value: Array, layer: Array, sight: Behind, cap: float | None = None
) -> Array:
    """Attend from [R, 1, H, d] to the slot's prompt, to what it has read since, and to the token itself.

    Sums of products elementwise: a slot's numbers do not depend on its neighbours', and what picks the layer and the
    block is fused into them. Of the pool only the prompts of one block and layer are copied at a time, by lane.
    """
    pool, (rows, _, heads, dim) = sight.pool, query.shape
    lane = lax.dynamic_index_in_dim(pool.lane, pool.block, keepdims=False)
    before = tuple(
        _of_lanes(lax.dynamic_index_in_dim(x, layer, keepdims=False), lane)
        for x in (pool.prompt_key, pool.prompt_value)
    )
    own = tuple(
        lax.dynamic_slice(x, (pool.block, layer, *[0] * 4), (1, 1, *x.shape[2:]))[0, 0] for x in (pool.key, pool.value)
    )
    query = query.reshape(rows, key.shape[2], -1, dim).astype(jnp.float32) * dim**-0.5
    logits = [
        jnp.where(seen[:, None, None], soften(jnp.sum(query[..., None] * keys[:, :, None], axis=3), cap), UNSEEN)
        for keys, seen in ((before[0].astype(jnp.float32), sight.prompt), (own[0].astype(jnp.float32), sight.own))
    ]
    itself = soften(jnp.sum(query * key[:, 0, :, None].astype(jnp.float32), axis=-1, keepdims=True), cap)
    top = functools.reduce(jnp.maximum, [x.max(axis=-1, keepdims=True) for x in logits], itself)
    weights = [jnp.exp(x - top) for x in logits]
    weight = jnp.exp(itself - top)
    read = weight * value[:, 0, :, None].astype(jnp.float32)
    for w, values in zip(weights, (before[1], own[1]), strict=True):
        read += jnp.sum(w[..., None] * values[:, :, None].astype(jnp.float32), axis=3)
    total = functools.reduce(jnp.add, [w.sum(axis=-1, keepdims=True) for w in weights], weight)
    return (read / total).reshape(rows, 1, heads, dim).astype(value.dtype)


def _of_lanes(x: Shaped[Array, "X C *rest"], lane: Int[Array, " R"]) -> Shaped[Array, "R *rest"]:
    """What is in each slot's lane, on its device."""
    if len(x) == 1:
        return x[0].at[lane].get(mode="promise_in_bounds")
    found = jax.vmap(lambda x, i: x.at[i].get(mode="promise_in_bounds"))(x, lane.reshape(len(x), -1))
    return found.reshape(-1, *x.shape[2:])


def remember(cache: Cache | Pool, sight: Any, new: tuple[Array, Array]) -> Cache | Pool:
    """The cache after a call.

    Args:
        cache: the cache before it.
        sight: the call's view.
        new: keys and values of the call's tokens, of all layers, [N, R, L, G, d] each.

    Returns:
        The cache with these cells written; its `length`, `age` and `column` advanced.
    """
    key, value = new
    if isinstance(cache, Pool):
        key, value = key[None, :, :, 0, :, :, None], value[None, :, :, 0, :, None]
        zero = jnp.zeros((), jnp.int32)
        begin = (cache.block, zero, zero, zero)
        return cache._replace(
            key=lax.dynamic_update_slice(cache.key, key, (*begin, zero, cache.column)),
            value=lax.dynamic_update_slice(cache.value, value, (*begin, cache.column, zero)),
        )
    return Cache(
        lax.dynamic_update_slice_in_dim(cache.key, key, cache.length, axis=2),
        lax.dynamic_update_slice_in_dim(cache.value, value, cache.length, axis=2),
        sight.read.example,
        sight.read.branch,
        sight.read.position,
        cache.length + key.shape[2],
    )


def stands(cells: Cells) -> tuple[Array, ...]:
    """Return what `sees` reads of cells beside their place, [R, L] each: example, branch, and in a window position."""
    if cells.window is None:
        return cells.example, cells.branch
    assert cells.position is not None, "windows count the tokens of a text"
    return cells.example, cells.branch, jnp.broadcast_to(cells.position, cells.example.shape)


def sees(reader: Cells, read: Cells) -> Bool[Array, "R L M"]:
    """A query sees a cell of its own example, not later, that is prompt or of its own branch, and within its window.

    Every query sees itself: padding, which nobody else sees, then has a softmax of one logit instead of none.
    """
    example, branch, place = (  # [R, L, 1] and [R, 1, M]
        (a[:, :, None], b[:, None, :])
        for a, b in (
            (reader.example, read.example),
            (reader.branch, read.branch),
            (reader.place, read.place),
        )
    )
    same = (example[0] == example[1]) & (example[1] > 0)
    if reader.window is not None:
        assert reader.position is not None and read.position is not None, "windows count the tokens of a text"
        same &= reader.position[:, :, None] - read.position[:, None, :] < reader.window
    return (same & (place[0] >= place[1]) & ((branch[1] == 0) | (branch[0] == branch[1]))) | (place[0] == place[1])


def dense(
    query: Float[Array, "R L H d"],
    key: Float[Array, "R M G d"],
    value: Float[Array, "R M G d"],
    reader: Cells,
    read: Cells,
    *,
    cap: float | None = None,
) -> Float[Array, "R L H d"]:
    """softmax(query . key / sqrt(d)) . value over the cells each query sees; G key heads serve H / G query heads each.

    All queries meet all cells at once: memory is quadratic in the length.

    Args:
        query: [R, L, H, d].
        key: [R, M, G, d].
        value: [R, M, G, d].
        reader: the cells of the queries.
        read: the cells of the keys; with M = L they are the same cells, in the same order.
        cap: of the logits, see `numerics.soften`; None for as they are.

    Returns:
        [R, L, H, d] in the dtype of the query; logits and softmax are float32. Padding gets finite numbers.
    """
    rows, length, heads, dim = query.shape
    query = query.reshape(rows, length, key.shape[2], -1, dim)
    logits = jnp.einsum("rlghd,rmgd->rghlm", query, key, preferred_element_type=jnp.float32) * dim**-0.5
    logits = jnp.where(sees(reader, read)[:, None, None], soften(logits, cap), UNSEEN)
    weight = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("rghlm,rmgd->rlghd", weight, value).reshape(rows, length, heads, dim)


def pad_length(multiple: int, *arrays: Array) -> tuple[Array, ...]:
    """[R, L, ...] -> [R, M, ...], M the next multiple; zeros, and so padding where they are examples."""
    short = -arrays[0].shape[1] % multiple
    return tuple(jnp.pad(x, ((0, 0), (0, short), *[(0, 0)] * (x.ndim - 2))) for x in arrays)
