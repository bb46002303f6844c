"""Sampling: from prompts to responses, with the log-prob of every sampled token.

Knows a model's pure functions, token ids and keys; knows no tokenizer, no objective and no configuration. A prompt is
read once for all its samples, which share its keys and values. A sequence that has ended leaves its slot to the next
one, so that it costs nothing more.

On a grid the sequences are split over its devices, those of all hosts. Every host gives the same prompts and gets all
responses.

What is guaranteed: sequence n draws from `fold_in(fold_in(key, n), t)` at its step t, and from nothing else. So the
number of slots, the company and the mesh change a response only as far as they change the last bits of its logits:
a token differs where the two best of its scores are equal but for these, about once in 10^6 tokens.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slpojax.base import Array, Int, Key, Model, Params, Rows, Scored
from slpojax.draws import PLAIN, Draw
from slpojax.grid import Grid, path_name
from slpojax.head import positions_at_once, token_log_odds
from slpojax.sampling import device, schedule

__all__ = ["Called", "Draw", "Response", "called", "generate", "prompts_at_once", "score", "stream"]

Ids = Sequence[int] | np.ndarray
Stop = Callable[[np.ndarray], int | None]

_READ_AT_ONCE = 512  # tokens of prompts, by a device
_ROUNDS = 16  # sequences of a call, in multiples of those sampled at once
_BETWEEN_STOPS = 8  # steps after which a function that looks for stop strings is asked


class Response(NamedTuple):
    """One sampled response.

    Attributes:
        token: [n] ids, the EOS included where it was sampled.
        logp: [n] log p of each under the model itself: no temperature, no filter; in nats, float32.
        finished: whether it ends with an EOS, or where `stop` found a stop string; False where it was cut at
            `max_new_tokens`.
    """

    token: np.ndarray
    logp: np.ndarray
    finished: bool


def generate(*args: Any, **options: Any) -> list[list[Response]]:
    """Sample responses to every prompt: `stream`, as a list."""
    return list(stream(*args, **options))


def stream(
    model: Model,
    params: Params,
    prompts: Sequence[Ids],
    *,
    key: Key,
    max_new_tokens: int,
    eos: Sequence[int],
    samples: int = 1,
    temperatures: Sequence[float] | None = None,
    draw: Draw = PLAIN,
    stop: Stop | None = None,
    slots: int = 64,
    first: int = 0,
    grid: Grid | None = None,
) -> Iterator[list[Response]]:
    """Sample responses to every prompt; give those of the first prompt, of the second, ... as soon as they are there.

    Sample k of prompt i is sequence `(first + i) * samples + k` of the key. So a call for a part of the prompts equals
    the whole one.

    Args:
        model: its pure functions.
        params: its parameters.
        prompts: token ids, of any lengths from 1; the same on all hosts.
        key: of this call; the same key gives the same responses.
        max_new_tokens: where a response without EOS is cut.
        eos: ids that end a response.
        samples: K, of each prompt.
        temperatures: [K], of each sample; None for the `temperature` of `draw` at all of them.
        draw: how a token is drawn.
        stop: what ends a response beside `eos`, such as a string in its text: from the ids of a response so far to how
            many of them stay, or None to go on. It is asked now and then, so it must find the same end again in more
            ids; and on all hosts.
        slots: sequences at once; on a grid rounded up to a multiple of the devices that split them, on a processor to
            one of its blocks. No more than there are sequences.
        first: the number of the first prompt among those of the key.
        grid: the devices that hold the parameters; None where one device does.

    Returns:
        An iterator over the prompts: the K responses of each.

    Raises:
        ValueError: an empty prompt, or a sampling parameter out of its range.
    """
    chosen = (draw.temperature,) * samples if temperatures is None else tuple(map(float, temperatures))
    _check(prompts, draw, chosen, max_new_tokens=max_new_tokens, samples=samples, slots=slots)
    if not len(prompts):
        return iter(())
    lengths = [*map(len, prompts)]
    run, sizes = _prepare(model, params, lengths, chosen, max_new_tokens, eos, draw, slots, grid)
    return _responses(run, params, prompts, key, chosen, eos, stop, sizes, first)


def _prepare(
    model: Model,
    params: Params,
    lengths: Sequence[int],
    temperatures: Sequence[float],
    max_new_tokens: int,
    eos: Sequence[int],
    draw: Draw,
    slots: int,
    grid: Grid | None,
) -> tuple[device.Programs, dict[str, int]]:
    """Return the functions for prompts of given lengths, and the sizes of what they take."""
    width, vocabulary = jax.eval_shape(model.unembed, params).shape
    rows = device.rows_at_once(_platform(params, grid), vocabulary)
    sizes = _sizes(lengths, len(temperatures), slots, max_new_tokens, rows, grid)
    filters, heat = draw._replace(temperature=1.0), frozenset(temperatures)
    return device.programs(model, width, tuple(sizes.items()), tuple(eos), filters, heat, grid), sizes


class Called(NamedTuple):
    """A function that `stream` calls, from `jax.jit`, and the shapes of what it gives it: enough to compile."""

    function: Any
    inputs: tuple[Any, ...]


def called(
    model: Model,
    params: Params,
    lengths: Sequence[int],
    *,
    temperatures: Sequence[float],
    max_new_tokens: int,
    draw: Draw,
    slots: int,
    grid: Grid,
    eos: Sequence[int] = (0,),
) -> tuple[Called, Called]:
    """Return what `stream` calls again and again: to read prompts, and for a burst of tokens.

    The devices need not be there. All but these two arguments are those of `stream`.

    Args:
        model: its pure functions.
        params: shapes of its parameters, with their places.
        lengths: of the prompts, in tokens; the widest call reads prompts as long as the longest of them.
        temperatures: [K], of each sample.
        max_new_tokens: where a response without EOS is cut.
        draw: how a token is drawn.
        slots: sequences at once.
        grid: the devices.
        eos: ids that end a response; which they are changes no size.
    """
    run, sizes = _prepare(model, params, lengths, temperatures, max_new_tokens, eos, draw, slots, grid)

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    weights = _like_computed(params, run.like.hidden.dtype)
    prompts, of_slots = sizes["parts"] * _batch(sizes), run.like.done.shape
    read = [array(jnp.int32, prompts, sizes["width"]), *[array(jnp.int32, prompts)] * 2]
    said = device.Slots(*(array(dtype, *of_slots) for dtype in (bool, bool, jnp.int32, jnp.uint32, jnp.float32)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    count = jax.ShapeDtypeStruct((), jnp.int32, weak_type=True)  # Python's whole numbers
    return (
        Called(run.prefill, (weights, run.like, *read)),
        Called(run.burst, (weights, run.like, said, key, count, count, count)),
    )


def prompts_at_once(slots: int, samples: int) -> int:
    """Return of how many prompts a call should be where there are very many: its end is a small part of it.

    Args:
        slots: sequences at once.
        samples: K, of each prompt.
    """
    return max(1, _ROUNDS * slots // samples)


def _responses(
    run: device.Programs,
    params: Params,
    prompts: Sequence[Ids],
    key: Key,
    temperatures: Sequence[float],
    eos: Sequence[int],
    stop: Stop | None,
    sizes: dict[str, int],
    first: int,
) -> Iterator[list[Response]]:
    samples, blocks, size = len(temperatures), sizes["blocks"], sizes["slots"]
    counts = {name: sizes[name] for name in ("parts", "lanes", "blocks", "slots")}
    plan, state = schedule.plan(len(prompts), samples, **counts), run.empty()
    params = _as_computed(params, state.hidden.dtype)
    batch = _batch(sizes)
    found: list[dict[int, Response]] = [{} for _ in prompts]
    given = 0
    while given < len(prompts):
        state = _read(run, params, state, prompts, schedule.admit(plan, batch), batch, sizes)
        fresh, waits = schedule.seat(plan), schedule.waits(plan)
        if blocks > 1 and not fresh and not waits:
            state = _move(run, state, schedule.move_up(plan, size), blocks * size)
        live = schedule.taken(plan)
        said = _said(plan, fresh, first, temperatures, (blocks, size))
        # With samples waiting, until some slots are free; without, until a block is empty.
        stay = len(live) - max(1, blocks * size // 16) if waits else (-(-len(live) // size) - 1) * size
        limit = _BETWEEN_STOPS if stop else sizes["tokens"]
        state, report = run.burst(params, state, said, key, live[-1] // size + 1, max(0, stay), limit)
        done, age, token, logp = (x.reshape(blocks * size, *x.shape[2:]) for x in jax.device_get(report))
        for slot in live:
            ids = token[slot, : age[slot]]
            keep = None if stop is None else _checked(stop, ids)
            if keep is not None or done[slot]:
                who = schedule.leave(plan, slot)
                finished = keep is not None or bool(np.isin(ids[-1], eos))
                ids, p = (x[: len(ids) if keep is None else keep].copy() for x in (ids, logp[slot, : age[slot]]))
                found[who.prompt][who.sample] = Response(ids, p, finished)
        while given < len(prompts) and len(found[given]) == samples:
            yield [found[given].pop(sample) for sample in range(samples)]
            given += 1


def _read(
    run: device.Programs,
    params: Params,
    state: device.State,
    prompts: Sequence[Ids],
    opened: list[list[tuple[int, schedule.Unit]]],
    batch: int,
    sizes: dict[str, int],
) -> device.State:
    """Read prompts into their lanes, `batch` of each device at a time."""
    for start in range(0, max(map(len, opened)), batch):
        here = [part[start : start + batch] for part in opened]
        longest = max(len(prompts[unit.prompt]) for part in here for _, unit in part)
        width = min(sizes["width"], 16 << (-(-longest // 16) - 1).bit_length())  # few shapes are compiled
        # The prompt of a lane that is none is dropped.
        rows = [row for part in here for row in part + [(sizes["lanes"], None)] * (batch - len(part))]
        token, length = _padded([[0] if unit is None else prompts[unit.prompt] for _, unit in rows], width)
        state = run.prefill(params, state, token, length, np.array([lane for lane, _ in rows], np.int32))
    return state


def _said(
    plan: schedule.Plan, fresh: list[int], first: int, temperatures: Sequence[float], shape: tuple[int, int]
) -> device.Slots:
    """Return the plan as arrays."""
    new = np.zeros(len(plan.seats), bool)
    new[fresh] = True
    seats = [who or schedule.Seat(0, 0, 0) for who in plan.seats]
    lane = np.array([who.lane for who in seats], np.int32)
    number = np.array([(first + who.prompt) * len(temperatures) + who.sample for who in seats], np.uint32)
    temperature = np.array([temperatures[who.sample] for who in seats], np.float32)
    done = np.array([who is None for who in plan.seats])
    return device.Slots(*[x.reshape(shape) for x in (new, done, lane, number, temperature)])


def _move(run: device.Programs, state: device.State, moves: list[tuple[int, int]], slots: int) -> device.State:
    if not moves:
        return state
    pairs = np.zeros((2, slots), np.int32)
    pairs[:, : len(moves)] = np.array(moves).T
    return run.move(state, *pairs, len(moves))


def _checked(stop: Stop, ids: np.ndarray) -> int | None:
    keep = stop(ids)
    if keep is not None and not 0 <= keep <= len(ids):
        raise ValueError(f"stop: got {keep} of {len(ids)} ids to keep; expected 0 to {len(ids)}, or None to go on")
    return keep


def _batch(sizes: Mapping[str, int]) -> int:
    """Return how many prompts a device reads at once."""
    return max(1, min(sizes["lanes"] // 4, _READ_AT_ONCE // sizes["width"]))


def _sizes(
    lengths: Sequence[int], samples: int, slots: int, tokens: int, rows: int | None, grid: Grid | None
) -> dict[str, int]:
    """Return how many slots and lanes there are, as `models.attention.empty_pool` takes it."""
    parts = grid.devices if grid else 1
    each = schedule.unit_size(len(lengths), samples, parts)
    own = min(-(-slots // parts), -(-len(lengths) * samples // parts))
    rows = own if rows is None or parts > 1 else min(own, rows)
    blocks = -(-own // rows)
    # Twice as many lanes as prompts fill the slots: a prompt stays until the last of its samples has ended.
    units = len(lengths) * -(-samples // each)
    lanes = min(-(-units // parts), own, max(2, 2 * -(-own // each)))
    width = _width(lengths)
    return dict(parts=parts, lanes=lanes, width=width, blocks=blocks, slots=rows * parts, tokens=tokens)


def _as_computed(params: Params, dtype: Any) -> Params:
    """Cast the weights of products once for all steps; what is not multiplied so, as of norms, stays."""
    if dtype == jnp.float32:
        return params

    def cast(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(dtype) if _is_cast(path, x) else x, params)

    return jax.jit(cast)(params)


def _like_computed(params: Params, dtype: Any) -> Params:
    """Return the shapes of what `_as_computed` gives, in the places of what it is given."""

    def one(path: tuple[Any, ...], x: Any) -> Any:
        narrow = dtype != jnp.float32 and _is_cast(path, x)
        return jax.ShapeDtypeStruct(x.shape, dtype if narrow else x.dtype, sharding=x.sharding)

    return jax.tree_util.tree_map_with_path(one, params)


def _is_cast(path: tuple[Any, ...], x: Any) -> bool:
    return x.ndim == 3 or bool({"embed", "head"} & {*path_name(path).split("/")})


def score(
    model: Model,
    params: Params,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    max_new_tokens: int,
    batch: int = 64,
    grid: Grid | None = None,
) -> list[np.ndarray]:
    """Return log p of every token of given responses, in nats, float32.

    Args:
        model: its pure functions.
        params: its parameters.
        prompts: token ids, at least one each; the same on all hosts.
        responses: token ids, one response to each prompt.
        max_new_tokens: the longest response that may come; fixed, so that one compilation serves many calls.
        batch: sequences at once; on a grid rounded up to a multiple of the devices that split them.
        grid: the devices that hold the parameters; None where one device does, or several of this host.
    """
    run = _scorer(model.apply, model.unembed, model.cap, _platform(params, grid), grid)
    width, batch = _width([*map(len, prompts)]), _round_up(batch, grid.devices if grid else 1)
    logps: list[np.ndarray] = []
    for start in range(0, len(prompts), batch):
        pair = list(zip(prompts[start : start + batch], responses[start : start + batch], strict=True))
        pair += [pair[0]] * (batch - len(pair))
        token, length = _padded([np.concatenate(p) for p in pair], width + max_new_tokens)
        target, size = _padded([response for _, response in pair], max_new_tokens)
        logp = jax.device_get(run(params, token, length, target, length - size))
        logps += [row[:n] for row, n in zip(logp, size[: len(prompts) - start], strict=False)]
    return logps


@functools.lru_cache(maxsize=16)
def _scorer(
    apply: Callable[..., Any], unembed: Callable[..., Any], cap: float | None, platform: str, grid: Grid | None
) -> Callable[..., Array]:
    """Return the jitted (params, token [R, L], length [R], target [R, T], prompt length [R]) -> log p [R, T]."""

    def run(params: Params, token: Array, length: Array, target: Array, begin: Array) -> Array:
        token, length, target, begin = _split(grid, token, length, target, begin)
        inside, place = _inside(length, token.shape[1])
        hidden, _ = apply(params, Rows(token, place, inside, jnp.zeros_like(place)), None)
        source = (begin - 1)[:, None] + jnp.arange(target.shape[1])[None, :]
        scored = Scored(jnp.minimum(source, token.shape[1] - 1), target, jnp.zeros_like(target))
        table, rows = unembed(params), token.shape[0] // (grid.devices if grid else 1)
        chunk = max(1, positions_at_once(platform, table.shape[1]) // rows)
        return -jax.nn.softplus(-token_log_odds(hidden, table, scored, chunk=chunk, cap=cap))

    return jax.jit(run, out_shardings=grid and grid.everywhere)


def _split(grid: Grid | None, *arrays: Array) -> tuple[Array, ...]:
    """Split arrays of sequences over the devices, by their leading axis."""
    return arrays if grid is None else jax.lax.with_sharding_constraint(arrays, grid.rows)


def _platform(params: Params, grid: Grid | None) -> str:
    """Return what kind of devices the parameters are on, or will be."""
    leaf = jax.tree.leaves(params)[0]
    devices = grid.mesh.devices.flat if grid else leaf.devices() if isinstance(leaf, jax.Array) else jax.devices()
    return next(iter(devices)).platform


def _inside(length: Int[Array, " R"], width: int) -> tuple[Int[Array, "R L"], Int[Array, "R L"]]:
    """Return 1 where a right-padded row has a token, 0 elsewhere; and the positions."""
    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None, :], (length.shape[0], width))
    return (place < length[:, None]).astype(jnp.int32), place


def _padded(rows: Sequence[Ids], width: int) -> tuple[Int[np.ndarray, "R L"], Int[np.ndarray, " R"]]:
    out = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return out, np.array([len(ids) for ids in rows], np.int32)


def _width(lengths: Sequence[int]) -> int:
    """Return the longest prompt's length, rounded up to 16 so that few shapes are compiled."""
    return _round_up(max(lengths, default=1), 16)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _check(
    prompts: Sequence[Ids],
    draw: Draw,
    temperatures: Sequence[float],
    *,
    max_new_tokens: int,
    samples: int,
    slots: int,
) -> None:
    empty = next((i for i, prompt in enumerate(prompts) if not len(prompt)), None)
    if empty is not None:
        raise ValueError(f"prompt {empty} is empty; the first token needs one to follow: begin it with BOS or EOS")
    for name, value, good, expected in (
        ("max_new_tokens", max_new_tokens, max_new_tokens > 0, "at least 1"),
        ("samples", samples, samples > 0, "at least 1"),
        ("temperatures", len(temperatures), len(temperatures) == samples, f"{samples}, one for each sample"),
        *(("temperature", t, 0 <= t < math.inf, "0 (greedy) or more") for t in (draw.temperature, *temperatures)),
        ("top_k", draw.top_k, draw.top_k >= 0, "0 (off) or more"),
        ("top_p", draw.top_p, 0 < draw.top_p <= 1, "above 0, up to 1 (off)"),
        ("min_p", draw.min_p, 0 <= draw.min_p <= 1, "0 (off) to 1"),
        ("slots", slots, slots > 0, "at least 1"),
    ):
        if not good:
            raise ValueError(f"{name}: got {value}, expected {expected}")
