"""Who sees whom in packed rows, attention over what is seen, and the cache of a decoder.

Knows rows, cells and heads; knows no family and no rotary embedding. `dense` is the definition; every other
implementation is a function of the same signature that gives the same numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from slpojax.base import Array, Bool, Float, Int, Rows

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
    """

    place: Int[Array, "#R L"]
    example: Int[Array, "R L"]
    branch: Int[Array, "R L"]


class Cache(NamedTuple):
    """Keys and values of the tokens so far (N layers, M cells) and what the cells hold.

    Attributes:
        key: rotated keys, in the compute dtype.
        value: values, in the compute dtype.
        example: of each cell; 0 where nothing was written.
        branch: of each cell.
        length: cells written so far, the same for all rows; the next call writes from here.
    """

    key: Float[Array, "N R M G d"]
    value: Float[Array, "N R M G d"]
    example: Int[Array, "R M"]
    branch: Int[Array, "R M"]
    length: Int[Array, ""]


class Sight(NamedTuple):
    """One call's view: the querying cells, the cells that can be read, and where new keys go (None: no cache)."""

    reader: Cells
    read: Cells
    start: Int[Array, ""] | None


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
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), cells, cells, jnp.zeros((), jnp.int32))


def view(rows: Rows, cache: Cache | None) -> Sight:
    """Where the tokens of this call stand, and the cells they may read.

    Args:
        rows: the tokens of this call, [R, L].
        cache: what was read before, or None.

    Returns:
        The view of this call; with a cache, its cells include this call's tokens.
    """
    length = rows.token.shape[1]
    if cache is None:
        cells = Cells(jnp.arange(length)[None], rows.example, rows.branch)
        return Sight(cells, cells, None)
    room = cache.example.shape[1]
    if length > room:
        raise ValueError(f"{length} tokens for a cache of {room} cells; ask empty_cache for prompt plus new tokens.")
    example, branch = (
        lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), cache.length, axis=1)
        for old, new in ((cache.example, rows.example), (cache.branch, rows.branch))
    )
    reader = Cells(cache.length + jnp.arange(length)[None], rows.example, rows.branch)
    return Sight(reader, Cells(jnp.arange(room)[None], example, branch), cache.length)


def extend(
    new: tuple[Array, Array], past: tuple[Array, Array] | None, sight: Sight
) -> tuple[tuple[Array, Array], tuple[Array, Array] | None]:
    """Keys and values that a layer attends to, and those that it has to remember.

    Args:
        new: keys and values of this call, each [R, L, G, d].
        past: the layer's cache, each [R, M, G, d], or None.
        sight: where the new ones go.

    Returns:
        (to attend to, to remember or None without a cache).
    """
    if past is None or sight.start is None:
        return new, None
    start = sight.start
    key, value = (lax.dynamic_update_slice_in_dim(old, n, start, axis=1) for old, n in zip(past, new, strict=True))
    return (key, value), new


def remember(cache: Cache, sight: Sight, key: Float[Array, "N R L G d"], value: Float[Array, "N R L G d"]) -> Cache:
    """The cache after a call.

    Args:
        cache: the cache before it.
        sight: the call's view.
        key: keys of the call's tokens, of all layers.
        value: values of the same.

    Returns:
        The cache with these cells written, `length` advanced.
    """
    return Cache(
        lax.dynamic_update_slice_in_dim(cache.key, key, cache.length, axis=2),
        lax.dynamic_update_slice_in_dim(cache.value, value, cache.length, axis=2),
        sight.read.example,
        sight.read.branch,
        cache.length + key.shape[2],
    )


def sees(reader: Cells, read: Cells) -> Bool[Array, "R L M"]:
    """A query sees a cell of its own example, not later, that is prompt or of its own branch.

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
    return (same & (place[0] >= place[1]) & ((branch[1] == 0) | (branch[0] == branch[1]))) | (place[0] == place[1])


def dense(
    query: Float[Array, "R L H d"],
    key: Float[Array, "R M G d"],
    value: Float[Array, "R M G d"],
    reader: Cells,
    read: Cells,
) -> Float[Array, "R L H d"]:
    """softmax(query . key / sqrt(d)) . value over the cells each query sees; G key heads serve H / G query heads each.

    All queries meet all cells at once: memory is quadratic in the length.

    Args:
        query: [R, L, H, d].
        key: [R, M, G, d].
        value: [R, M, G, d].
        reader: the cells of the queries.
        read: the cells of the keys; with M = L they are the same cells, in the same order.

    Returns:
        [R, L, H, d] in the dtype of the query; logits and softmax are float32. Padding gets finite numbers.
    """
    rows, length, heads, dim = query.shape
    query = query.reshape(rows, length, key.shape[2], -1, dim)
    logits = jnp.einsum("rlghd,rmgd->rghlm", query, key, preferred_element_type=jnp.float32) * dim**-0.5
    logits = jnp.where(sees(reader, read)[:, None, None], logits, UNSEEN)
    weight = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("rghlm,rmgd->rlghd", weight, value).reshape(rows, length, heads, dim)


def pad_length(multiple: int, *arrays: Array) -> tuple[Array, ...]:
    """[R, L, ...] -> [R, M, ...], M the next multiple; zeros, and so padding where they are examples."""
    short = -arrays[0].shape[1] % multiple
    return tuple(jnp.pad(x, ((0, 0), (0, short), *[(0, 0)] * (x.ndim - 2))) for x in arrays)
