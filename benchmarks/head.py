"""The log-prob head against three others: temporary memory and time of the value and the gradient.

    python benchmarks/head.py [--width 512] [--tokens 1024 8192] [--vocabulary 50304 128256] [--rounds 5]
    python benchmarks/head.py --width 256 --tokens 8192 --rounds 0          # memory alone, compiled and not run
    python benchmarks/head.py --dtype bfloat16                              # hidden states; the unembedding is float32

The value is a weighted sum of the tokens' log-probs, the gradient that by the hidden states and by the unembedding. The
hidden states have --dtype and so have the operands of the products, which accumulate in float32. The paths: all logits
at once, with log_softmax (naive) and with optax's cross-entropy; the logits of chunks of 256 positions under
`jax.checkpoint`, which is slower with fewer; and `slpojax.head`. The memory is what the compiler reports, so
it is exact and independent of the machine's load; what needs more than --limit is not run. In every round every path
runs once, in turn, after a round that is not timed; the ratios are to the naive path of the same round, medians with
the smallest and the largest, of the clock and of the processor time of all threads. The bars: at 8,192 tokens at most
5% of the naive path's memory, and nowhere slower.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parts
from common import header, in_turn, over, spread, verdict

from slpojax.base import ABSENT, Scored
from slpojax.head import positions_at_once, token_log_odds

ROWS = 4
CHECKPOINTED = 256  # positions
Path = Callable[[jax.Array, jax.Array, Scored], jax.Array]


def ours(hidden: jax.Array, unembed: jax.Array, scored: Scored) -> jax.Array:
    at_once = positions_at_once(jax.devices()[0].platform, unembed.shape[1])
    return -jax.nn.softplus(-token_log_odds(hidden, unembed, scored, chunk=at_once // ROWS))


def checkpoint(hidden: jax.Array, unembed: jax.Array, scored: Scored) -> jax.Array:
    @jax.checkpoint
    def one(states: jax.Array, target: jax.Array) -> jax.Array:
        logits = every_logit(states, unembed)
        here = target[..., None] == jnp.arange(logits.shape[-1])[None, None]
        of_token = jnp.sum(jnp.where(here, logits, 0.0), axis=-1)
        return of_token - jax.nn.logsumexp(jnp.where(here, ABSENT, logits), axis=-1)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(ROWS, -1, CHECKPOINTED // ROWS, *x.shape[2:]), 1, 0)

    states = jnp.take_along_axis(hidden, scored.source[..., None], axis=1)
    _, odds = jax.lax.scan(lambda _, x: (None, one(*x)), None, (split(states), split(scored.target)))
    return -jax.nn.softplus(-jnp.moveaxis(odds, 0, 1).reshape(scored.target.shape))


def every_logit(hidden: jax.Array, unembed: jax.Array) -> jax.Array:
    return jnp.einsum("rld,dv->rlv", hidden, unembed.astype(hidden.dtype), preferred_element_type=jnp.float32)


def naive(hidden: jax.Array, unembed: jax.Array, scored: Scored) -> jax.Array:
    logp = jax.nn.log_softmax(every_logit(hidden, unembed), axis=-1)
    return jnp.take_along_axis(logp, scored.target[..., None], axis=-1)[..., 0]


def with_optax(hidden: jax.Array, unembed: jax.Array, scored: Scored) -> jax.Array:
    logits = every_logit(hidden, unembed)
    return -optax.losses.softmax_cross_entropy_with_integer_labels(logits, scored.target)


PATHS: dict[str, Path] = {"naive": naive, "optax": with_optax, "checkpoint": checkpoint, "head": ours}


def program(path: Path, tokens: int, width: int, vocabulary: int, dtype: str) -> Any:
    """Compile (hidden, table [V, D], scored, weight) -> value and gradients."""

    def value(hidden: jax.Array, table: jax.Array, scored: Scored, weight: jax.Array) -> jax.Array:
        return jnp.sum(weight * path(hidden, table.T, scored))

    shape = (ROWS, tokens // ROWS)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    sizes = ((*shape, width), dtype), ((vocabulary, width), jnp.float32), (shape, jnp.float32)
    arrays = [jax.ShapeDtypeStruct(*size) for size in sizes]
    step = jax.jit(jax.value_and_grad(value, (0, 1)))
    return step.lower(arrays[0], arrays[1], Scored(ids, ids, ids), arrays[2]).compile()


def data(tokens: int, width: int, vocabulary: int, dtype: str) -> tuple:
    rng = np.random.default_rng(0)
    shape = (ROWS, tokens // ROWS)
    hidden = rng.standard_normal((*shape, width), np.float32)
    table = rng.standard_normal((vocabulary, width), np.float32) / np.float32(width**0.5)
    source = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    target = rng.integers(0, vocabulary, shape).astype(np.int32)
    weight = rng.standard_normal(shape, np.float32)
    return jax.device_put((jnp.asarray(hidden, dtype), table, Scored(source, target, source), weight))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[50304, 128256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--limit", type=float, default=6.0, help="GB of temporary memory above which nothing is run")
    args = parser.parse_args()

    print(header(args, device=jax.devices()[0].device_kind), flush=True)
    print("| vocabulary x tokens | path | MB | of naive | s | over naive | processor time over naive |")
    print("|---|---|---|---|---|---|---|")
    bars = []
    for vocabulary in args.vocabulary:
        for tokens in args.tokens:
            sizes = (tokens, args.width, vocabulary, args.dtype)
            programs = {name: program(path, *sizes) for name, path in PATHS.items()}
            memory = {name: p.memory_analysis().temp_size_in_bytes for name, p in programs.items()}
            inputs = data(*sizes) if args.rounds else ()
            fits = {name: parts.runner(programs[name], *inputs) for name in PATHS if memory[name] < args.limit * 1e9}
            times = in_turn(fits, args.rounds)
            for name in PATHS:
                wall, ratios = "-", ("-", "-")
                if times.get(name, ((),))[0]:
                    wall = spread(times[name].wall)
                    if "naive" in times:
                        ratios = tuple(spread(over(*x), unit="x") for x in zip(times[name], times["naive"]))
                share = memory[name] / memory["naive"]
                line = f"{name} | {memory[name] / 1e6:.0f} | {share:.1%} | {wall} | {ratios[0]} | {ratios[1]}"
                print(f"| {vocabulary} x {tokens} | {line} |", flush=True)
            if tokens >= 8192:
                share = memory["head"] / memory["naive"]
                bars.append(f"{vocabulary} x {tokens}: {share:.1%} of the memory, at most 5%: {verdict(share <= 0.05)}")
            if "naive" in times and args.rounds:
                ratio = statistics.median(over(times["head"].cpu, times["naive"].cpu))
                bars.append(f"{vocabulary} x {tokens}: {ratio:.2f}x the time, at most 1x: {verdict(ratio <= 1)}")
    print("", *bars, sep="\n")


if __name__ == "__main__":
    main()
