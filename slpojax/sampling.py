"""Sampling: from prompts to responses, with the log-prob of every sampled token.

Knows a model's pure functions, token ids and keys; knows no tokenizer, no objective and no configuration. Prompts of a
batch are padded on the right and read at once (prefill); then one token a step goes through the model's cache until
every response has ended. One compilation serves all batches of a shape.

On a grid the sequences of a batch are split over its devices, those of all hosts. Every host gives the same prompts and
gets all responses, which are those of a single device.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slpojax.base import Array, Bool, Float, Int, Key, Model, Params, Rows, Scored
from slpojax.grid import Grid
from slpojax.head import positions_at_once, token_log_odds

Ids = Sequence[int] | np.ndarray


class Response(NamedTuple):
    """One sampled response.

    Attributes:
        token: [n] ids, the EOS included where it was sampled.
        logp: [n] log p of each under the model itself: no temperature, no top-k, no top-p; in nats, float32.
        finished: whether it ends with an EOS; False where it was cut at `max_new_tokens`.
    """

    token: np.ndarray
    logp: np.ndarray
    finished: bool


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Ids],
    *,
    key: Key,
    max_new_tokens: int,
    eos: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch: int = 64,
    first: int = 0,
    grid: Grid | None = None,
) -> list[Response]:
    """Sample one response to every prompt.

    Sequence i draws from its own key, `fold_in(key, first + i)`, so its response depends neither on the other prompts
    nor on the batch size.

    Args:
        model: its pure functions.
        params: its parameters.
        prompts: token ids, of any lengths from 1; the same on all hosts.
        key: of this call; the same key gives the same responses.
        max_new_tokens: where a response without EOS is cut.
        eos: ids that end a response.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: sample among the k most probable tokens; 0 turns it off.
        top_p: sample among the fewest most probable tokens that together have at least this probability, after
            temperature and top-k (Holtzman et al., The Curious Case of Neural Text Degeneration, 2020,
            arXiv 1904.09751).
        batch: sequences at once; on a grid rounded up to a multiple of the devices that split them.
        first: the index of the first prompt among those of the key: a split call equals the whole one.
        grid: the devices that hold the parameters; None where one device does, or several of this host.

    Raises:
        ValueError: an empty prompt, or a sampling parameter out of its range.
    """
    _check(prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, batch=batch)
    run = _generator(
        model.apply, model.unembed, model.empty_cache, max_new_tokens, tuple(eos), temperature, top_k, top_p, grid
    )
    width, batch = _width(prompts), _round_up(batch, grid.devices if grid else 1)
    responses: list[Response] = []
    for start in range(0, len(prompts), batch):
        here = list(prompts[start : start + batch])
        token, length = _padded(here + [here[0]] * (batch - len(here)), width)
        index = np.arange(first + start, first + start + batch)
        *outcome, size, finished = jax.device_get(run(params, token, length, index, key))
        rows = zip(*outcome, size, finished, strict=True)
        responses += [Response(t[:n], p[:n], bool(f)) for (t, p, n, f), _ in zip(rows, here, strict=False)]
    return responses


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
    run = _scorer(model.apply, model.unembed, _platform(params, grid), grid)
    width, batch = _width(prompts), _round_up(batch, grid.devices if grid else 1)
    logps: list[np.ndarray] = []
    for start in range(0, len(prompts), batch):
        pair = list(zip(prompts[start : start + batch], responses[start : start + batch], strict=True))
        pair += [pair[0]] * (batch - len(pair))
        token, length = _padded([np.concatenate(p) for p in pair], width + max_new_tokens)
        target, size = _padded([response for _, response in pair], max_new_tokens)
        logp = jax.device_get(run(params, token, length, target, length - size))
        logps += [row[:n] for row, n in zip(logp, size[: len(prompts) - start], strict=False)]
    return logps


def filter_logits(logits: Float[Array, "... V"], *, top_k: int, top_p: float) -> Float[Array, "... V"]:
    """Return the logits with -inf where a token is outside of the top k or the nucleus of probability `top_p`.

    The most probable token always stays; tokens that tie with the last one that stays, stay too.
    """
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1.0:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        p = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


@functools.lru_cache(maxsize=16)
def _generator(
    apply: Callable[..., Any],
    unembed: Callable[..., Any],
    empty_cache: Callable[..., Any],
    max_new_tokens: int,
    eos: tuple[int, ...],
    temperature: float,
    top_k: int,
    top_p: float,
    grid: Grid | None,
) -> Callable[..., tuple[Array, ...]]:
    """Return the jitted (params, token [R, L], length [R], index [R], key) -> (token, logp [R, T], size, finished)."""

    def choose(logits: Float[Array, "R V"], keys: Key, step: Array) -> Int[Array, " R"]:
        if temperature == 0.0:
            return jnp.argmax(logits, axis=-1)
        logits = filter_logits(logits / temperature, top_k=top_k, top_p=top_p)
        return jax.vmap(lambda k, row: jax.random.categorical(jax.random.fold_in(k, step), row))(keys, logits)

    def run(params: Params, prompt: Array, length: Array, index: Array, key: Key) -> tuple[Array, ...]:
        prompt, length, index = _split(grid, prompt, length, index)
        rows, width = prompt.shape
        table = unembed(params)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        inside, place = _inside(length, width)
        hidden, cache = apply(
            params, Rows(prompt, place, inside, jnp.zeros_like(place)), empty_cache(rows, width + max_new_tokens)
        )
        hidden = jnp.take_along_axis(hidden, (length - 1)[:, None, None], axis=1)[:, 0]

        def unfinished(carry: Any) -> Bool[Array, ""]:
            step, _, _, _, _, _, done = carry
            return (step < max_new_tokens) & ~jnp.all(done)

        def advance(carry: Any) -> Any:
            step, hidden, cache, token, logp, size, done = carry
            logits = jnp.einsum("rd,dv->rv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
            new = choose(logits, keys, step)
            new_logp = jnp.take_along_axis(jax.nn.log_softmax(logits), new[:, None], axis=-1)[:, 0]
            token = token.at[:, step].set(jnp.where(done, 0, new))
            logp = logp.at[:, step].set(jnp.where(done, 0.0, new_logp))
            size = size + ~done
            done = done | jnp.isin(new, jnp.array(eos, new.dtype))
            column = jnp.ones((rows, 1), jnp.int32)
            one = Rows(new[:, None].astype(jnp.int32), (length + step)[:, None], column, 0 * column)
            hidden, cache = apply(params, one, cache)
            return step + 1, hidden[:, 0], cache, token, logp, size, done

        empty = jnp.zeros((rows, max_new_tokens))
        start = (jnp.int32(0), hidden, cache, empty.astype(jnp.int32), empty, 0 * length, jnp.zeros(rows, bool))
        *_, token, logp, size, done = jax.lax.while_loop(unfinished, advance, start)
        return token, logp, size, done

    return jax.jit(run, out_shardings=grid and grid.everywhere)


@functools.lru_cache(maxsize=16)
def _scorer(
    apply: Callable[..., Any], unembed: Callable[..., Any], platform: str, grid: Grid | None
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
        return -jax.nn.softplus(-token_log_odds(hidden, table, scored, chunk=chunk))

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


def _width(prompts: Sequence[Ids]) -> int:
    """Return the longest prompt's length, rounded up to 16 so that few shapes are compiled."""
    return _round_up(max(map(len, prompts), default=1), 16)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _check(
    prompts: Sequence[Ids], *, max_new_tokens: int, temperature: float, top_k: int, top_p: float, batch: int
) -> None:
    empty = next((i for i, prompt in enumerate(prompts) if not len(prompt)), None)
    if empty is not None:
        raise ValueError(f"prompt {empty} is empty; the first token needs one to follow: begin it with BOS or EOS")
    for name, value, good, expected in (
        ("max_new_tokens", max_new_tokens, max_new_tokens > 0, "at least 1"),
        ("temperature", temperature, temperature >= 0, "0 (greedy) or more"),
        ("top_k", top_k, top_k >= 0, "0 (off) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0, up to 1 (off)"),
        ("batch", batch, batch > 0, "at least 1"),
    ):
        if not good:
            raise ValueError(f"{name}: got {value}, expected {expected}")
