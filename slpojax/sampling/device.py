"""What runs on the devices: slots that each hold a sequence, prompts that are read into lanes, bursts of steps.

Knows a model's pure functions and arrays; knows no prompt, no sample and no order: which sequence sits where is
`schedule`'s. B blocks of R slots are stepped one after the other, as many of them as hold a sequence: on a processor,
where a step costs what its rows cost. An accelerator reads its weights once for all rows, so there is one block.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from slpojax import draws
from slpojax.base import Bool, Float, Int, Key, Model, Params, Rows
from slpojax.grid import Grid, placed
from slpojax.numerics import soften

# Rows of a block on a processor. Products of 16 rows are nearly as fast, a row, as of more, and where the vocabulary is
# large their logits stay in its cache; of a tiny model what a step costs beside its products is shared by more rows.
LEAST_ROWS, MOST_ROWS = 16, 128
_LOGITS = 2**20  # that a block may have at once


def rows_at_once(platform: str, vocabulary: int) -> int | None:
    """Return of how many slots a block is made; None for all of them.

    Args:
        platform: of the devices: cpu, gpu, cuda, tpu, ...
        vocabulary: V.

    Example:
        >>> rows_at_once("cpu", 50304), rows_at_once("cpu", 512), rows_at_once("gpu", 50304)
        (16, 128, None)
    """
    return min(MOST_ROWS, max(LEAST_ROWS, _LOGITS // vocabulary // 16 * 16)) if platform == "cpu" else None


class State(NamedTuple):
    """All slots and lanes.

    Attributes:
        pool: keys and values; those of several models, each with its own, where these are sampled from together.
        begin: [X, C, D], the state that predicts the first token behind a lane's prompt.
        hidden: [B, R, D], the state that predicts a slot's next token.
        number: [B, R], of the sequence: it draws from `fold_in(key, number)`.
        temperature: [B, R].
        done: [B, R], True where a sequence has ended, and where there is none.
        token: [B, R, T], drawn so far; as many count as the pool's `age` says.
        logp: [B, R, T].
    """

    pool: Any
    begin: Float[Array, "X C D"]
    hidden: Float[Array, "B R D"]
    number: Int[Array, "B R"]
    temperature: Float[Array, "B R"]
    done: Bool[Array, "B R"]
    token: Int[Array, "B R T"]
    logp: Float[Array, "B R T"]


class Slots(NamedTuple):
    """What the schedule says of every slot before a burst, [B, R] each.

    Attributes:
        fresh: whether a new sequence begins here; where it does not, lane, number and temperature are not read.
        done: whether there is nothing more to draw.
        lane: of the prompt, on the slot's device.
        number: of the sequence.
        temperature: that it is drawn at.
    """

    fresh: Any
    done: Any
    lane: Any
    number: Any
    temperature: Any


class Report(NamedTuple):
    """What a burst says of every slot, held by all devices: `done`, `age` [B, R], `token`, `logp` [B, R, T]."""

    done: Array
    age: Array
    token: Array
    logp: Array


class Programs(NamedTuple):
    """The compiled functions.

    Attributes:
        like: shapes of the state, on a grid with their places.
        empty: () -> state.
        prefill: (params, state, token [X b, W], length [X b], lane [X b]) -> state with these prompts in these lanes; a
            lane that is none drops its prompt.
        burst: (params, state, slots, key, blocks, stay, limit) -> (state, report), after at most `limit` steps, when no
            more than `stay` sequences go on.
        move: (state, source [S], target [S], count) -> state with the first `count` slots moved, counted over blocks.
    """

    like: State
    empty: Callable[[], State]
    prefill: Callable[..., State]
    burst: Callable[..., tuple[State, Report]]
    move: Callable[..., State]


@functools.lru_cache(maxsize=16)
def programs(
    model: Model,
    width: int,
    sizes: tuple[tuple[str, int], ...],
    eos: tuple[int, ...],
    draw: draws.Draw,
    temperatures: frozenset[float],
    grid: Grid | None,
) -> Programs:
    """Return the functions for slots and lanes of given numbers.

    Args:
        model: its pure functions.
        width: D.
        sizes: of `models.attention.empty_pool`, by name.
        eos: ids that end a sequence.
        draw: the filters.
        temperatures: the values that sequences are drawn at.
        grid: the devices that hold the parameters; None for one.
    """

    def empty() -> State:
        return _empty(model, width, dict(sizes))

    def burst(
        params: Params, state: State, slots: Slots, key: Key, blocks: Array, stay: Array, limit: Array
    ) -> tuple[State, Report]:
        advance = functools.partial(_advance, model, params, eos, draw, temperatures, key)

        def go_on(carry: tuple[Array, State]) -> Bool[Array, ""]:
            steps, state = carry
            return (steps < limit) & (jnp.sum(~state.done) > stay)

        def step(carry: tuple[Array, State]) -> tuple[Array, State]:
            steps, state = carry
            if len(state.done) == 1:
                state = advance(jnp.int32(0), state)
            else:
                state = jax.lax.fori_loop(0, blocks, advance, state)
            pool = state.pool
            return steps + 1, state._replace(pool=pool._replace(column=(pool.column + 1) % state.token.shape[2]))

        _, state = jax.lax.while_loop(go_on, step, (jnp.int32(0), _seat(state, slots)))
        return state, Report(state.done, state.pool.age, state.token, state.logp)

    like = jax.eval_shape(empty)
    if grid is None:
        donate = functools.partial(jax.jit, donate_argnums=1)
        return Programs(
            like,
            jax.jit(empty),
            donate(functools.partial(_prefill, model)),
            donate(burst),
            jax.jit(_move, donate_argnums=0),
        )
    where = jax.tree.broadcast(_shardings(grid, like), like)  # two models may have keys and values, each its own
    donate = functools.partial(jax.jit, donate_argnums=1)
    return Programs(
        placed(like, where),
        jax.jit(empty, out_shardings=where),
        donate(functools.partial(_prefill, model), out_shardings=where),
        donate(burst, out_shardings=(where, grid.everywhere)),
        jax.jit(_move, donate_argnums=0, out_shardings=where),
    )


def _empty(model: Model, width: int, sizes: dict[str, int]) -> State:
    pool = model.empty_pool(**sizes)
    slots = pool.age.shape
    rows = jnp.zeros((*slots, sizes["tokens"]))
    dtype = jax.tree.leaves(pool.key)[0].dtype
    begin, hidden = (jnp.zeros((*shape, width), dtype) for shape in (pool.prompt_length.shape, slots))
    number, done = jnp.zeros(slots, jnp.uint32), jnp.ones(slots, bool)
    return State(pool, begin, hidden, number, jnp.zeros(slots), done, rows.astype(jnp.int32), rows)


def _shardings(grid: Grid, state: State) -> Any:
    """Split lanes and slots over the devices that rows are split over, heads over tensor where it divides them."""
    rows = grid.rows.spec[0]
    divided = (key.shape[3] % grid.mesh.shape["tensor"] == 0 for key in jax.tree.leaves(state.pool.key))
    heads = "tensor" if all(divided) else None

    def where(*axes: Any) -> NamedSharding:
        return NamedSharding(grid.mesh, PartitionSpec(*axes))

    lanes, slots = where(None, rows, None, heads), where(None, None, rows, heads)
    slot = where(None, rows)
    pool = type(state.pool)(lanes, lanes, where(rows), slots, slots, slot, slot, grid.everywhere, grid.everywhere)
    return State(*[pool, where(rows), *[slot] * 6])


def _prefill(model: Model, params: Params, state: State, token: Array, length: Array, lane: Array) -> State:
    """Read prompts, padded on the right, and put their keys and values into lanes."""
    (rows, width), pool = token.shape, state.pool
    parts = len(pool.prompt_length)
    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], (rows, width))
    inside = (place < length[:, None]).astype(jnp.int32)
    hidden, cache = model.apply(params, Rows(token, place, inside, 0 * inside), model.empty_cache(rows, width))
    begin = jnp.take_along_axis(hidden, (length - 1)[:, None, None], axis=1)[:, 0]

    def put(store: Array, new: Array, lane: Array) -> Array:
        """[C, ...] with [b, ...] at their lanes; of keys and values the cells that were read."""
        return store.at[(lane, *[slice(n) for n in new.shape[1:]])].set(new.astype(store.dtype), mode="drop")

    def of_devices(store: Array, new: Array) -> Array:  # [X, C, ...], [X b, ...]
        new, lanes = new.reshape(parts, -1, *new.shape[1:]), lane.reshape(parts, -1)
        return put(store[0], new[0], lanes[0])[None] if parts == 1 else jax.vmap(put)(store, new, lanes)

    def of_layers(stores: Any, news: Any, axes: tuple[int, ...]) -> Any:  # [N, X, C, ...], [N, X b, W, G, d]
        return jax.tree.map(lambda store, new: jax.vmap(of_devices)(store, new.transpose(0, 1, *axes)), stores, news)

    pool = pool._replace(
        prompt_key=of_layers(pool.prompt_key, cache.key, (3, 4, 2)),
        prompt_value=of_layers(pool.prompt_value, cache.value, (3, 2, 4)),
        prompt_length=of_devices(pool.prompt_length, length),
    )
    return state._replace(pool=pool, begin=of_devices(state.begin, begin))


def _seat(state: State, slots: Slots) -> State:
    """Begin new sequences in their slots."""

    def of_lane(x: Array, lane: Array) -> Array:  # [X, C, ...], [B, R] -> [B, R, ...]
        parts = len(x)
        found = jax.vmap(lambda x, i: x[i], in_axes=(0, 1), out_axes=1)(x, lane.reshape(len(lane), parts, -1))
        return found.reshape(*lane.shape, *x.shape[2:])

    lane = jnp.where(slots.fresh, slots.lane, state.pool.lane)
    pool = state.pool._replace(lane=lane, age=jnp.where(slots.fresh, 0, state.pool.age))
    return state._replace(
        pool=pool,
        hidden=jnp.where(slots.fresh[..., None], of_lane(state.begin, lane), state.hidden),
        number=jnp.where(slots.fresh, slots.number, state.number),
        temperature=jnp.where(slots.fresh, slots.temperature, state.temperature),
        done=jnp.asarray(slots.done),
    )


def _advance(
    model: Model,
    params: Params,
    eos: tuple[int, ...],
    draw: draws.Draw,
    temperatures: frozenset[float],
    key: Key,
    block: Array,
    state: State,
) -> State:
    """Draw the next token of a block's slots and read it."""

    def here(x: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(x, block, keepdims=False)

    def put(x: Array, new: Any) -> Array:
        return jax.lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), block, 0)

    pool, hidden, done = state.pool, here(state.hidden), here(state.done)
    age, lane, token, logp = map(here, (pool.age, pool.lane, state.token, state.logp))
    with jax.named_scope("draw"):
        table = model.unembed(params).astype(hidden.dtype)
        logits = soften(jnp.einsum("rd,dv->vr", hidden, table, preferred_element_type=jnp.float32), model.cap)
        keys = jax.vmap(lambda number, step: jax.random.fold_in(jax.random.fold_in(key, number), step))(
            here(state.number), age
        )
        new, new_logp = draws.tokens(logits, keys, here(state.temperature), draw=draw, temperatures=temperatures)
    parts = len(pool.prompt_length)
    prompt = jax.vmap(lambda x, i: x[i])(pool.prompt_length, lane.reshape(parts, -1)).reshape(-1)
    column = jnp.ones((len(new), 1), jnp.int32)
    rows = Rows(new[:, None], (prompt + age)[:, None], column, 0 * column)
    read, pool = model.apply(params, rows, pool._replace(block=block))
    last = (jnp.arange(token.shape[1])[None] == age[:, None]) & ~done[:, None]
    age = age + ~done
    ended = jnp.isin(new, jnp.array(eos, new.dtype)) | (age == token.shape[1])
    return state._replace(
        pool=pool._replace(age=put(pool.age, age), block=state.pool.block),
        hidden=put(state.hidden, read[:, 0]),
        done=put(state.done, done | ended),
        token=put(state.token, jnp.where(last, new[:, None], token)),
        logp=put(state.logp, jnp.where(last, new_logp[:, None], logp)),
    )


def _move(state: State, source: Array, target: Array, count: Array) -> State:
    """Move slots, of one device, from blocks that then need no steps."""
    size = state.done.shape[1]

    def one(i: Array, state: State) -> State:
        (a, b), (c, d) = (divmod(x[i], size) for x in (source, target))

        def slot(x: Array, axis: int) -> Array:
            part = jax.lax.dynamic_index_in_dim(x, a, 0)
            part = jax.lax.dynamic_index_in_dim(part, b, axis)
            begin = [jnp.int32(0)] * x.ndim
            begin[0], begin[axis] = c, d
            return jax.lax.dynamic_update_slice(x, part, begin)

        pool = state.pool._replace(
            key=jax.tree.map(lambda x: slot(x, 2), state.pool.key),
            value=jax.tree.map(lambda x: slot(x, 2), state.pool.value),
            lane=slot(state.pool.lane, 1),
            age=slot(state.pool.age, 1),
        )
        return State(pool, state.begin, *(slot(x, 1) for x in state[2:]))

    return jax.lax.fori_loop(0, count, one, state)
