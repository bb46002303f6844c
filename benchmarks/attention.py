"""The implementations of attention against each other: time and temporary memory of the value and the gradients.

    python benchmarks/attention.py [--names dense causal tiles] [--dtype float32] [--rounds 5]
    python benchmarks/attention.py --topology v5e:2x2 [--names splash tiles] [--dtype bfloat16]
    python benchmarks/attention.py --topology h200:2 [--names cudnn tiles] [--dtype bfloat16]
    python benchmarks/attention.py --names cudnn tiles --dtype bfloat16        # on an NVIDIA GPU

Packed rows of made-up dialogues: prompts of 138 tokens in the mean, two responses of 60 (log-normal, as HH's are).
`causal` is what a blockwise implementation does that knows only that nobody looks ahead: 128 queries against all keys
before them, recomputed in the backward pass. In every round every implementation runs once, in turn, after a round
that is not timed: medians with the smallest and the largest; `cpu` is processor time, of all threads. With --topology
nothing runs: the compiler says how much memory a device needs. It wants `pip install "jax[tpu]"` and no TPU or, for
h200:2 and the like, `pip install "jax[cuda13]"` and no GPU.
"""

import argparse
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parts
from common import Times, header, in_turn, spread
from jax.sharding import NamedSharding, PartitionSpec

from slpojax import models, topology
from slpojax.grid import Grid
from slpojax.models.attention import Cells, dense

# rows, length, query heads, key heads, head_dim
SHAPES = ((5, 1024, 8, 8, 32), (2, 2048, 8, 8, 32))
LARGE = ((8, 1024, 32, 32, 80), (8, 2048, 32, 8, 128))  # Pythia-2.8B, Llama-3-8B


def dialogues(rows: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Example and branch of rows that are packed until the next example does not fit."""
    rng = np.random.default_rng(seed)
    example, branch = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        place, number = 0, 1
        while True:
            prompt, *answers = np.clip(rng.lognormal([4.65, 3.8, 3.8], 0.75), 4, length // 3).astype(int)
            cells = np.repeat([0, 1, 2], [prompt, *answers])
            if place + len(cells) > length:
                break
            example[row, place : place + len(cells)], branch[row, place : place + len(cells)] = number, cells
            place, number = place + len(cells), number + 1
    return example, branch


def causal(query: jax.Array, key: jax.Array, value: jax.Array, reader: Cells, read: Cells) -> jax.Array:
    def cut(cells: Cells, stop: int, start: int = 0) -> Cells:
        return jax.tree.map(lambda x: x[:, start:stop], cells)

    block = 128 * -(-query.shape[1] // 1024)  # at most eight blocks
    return jnp.concatenate(
        [
            jax.checkpoint(dense)(
                query[:, a : a + block],
                key[:, : a + block],
                value[:, : a + block],
                cut(reader, a + block, a),
                cut(read, a + block),
            )
            for a in range(0, query.shape[1], block)
        ],
        axis=1,
    )


def program(name: str, shape: tuple[int, ...], dtype: str, devices: Grid | None) -> Any:
    """Compile (query, key, value, example, branch) -> value and gradients."""
    rows, length, heads, groups, dim = shape
    attend = {**models.ATTENTIONS, "causal": causal}[name]
    if name == "splash" and devices:
        attend = partial(attend, grid=devices)

    def value(query: jax.Array, key: jax.Array, val: jax.Array, example: jax.Array, branch: jax.Array) -> jax.Array:
        cells = Cells(jnp.arange(length)[None], example, branch)
        return jnp.sum(jnp.sin(attend(query, key, val, cells, cells)).astype(jnp.float32))

    def split(*axes: Any) -> NamedSharding | None:
        return NamedSharding(devices.mesh, PartitionSpec(*axes)) if devices else None

    arrays = [
        jax.ShapeDtypeStruct((rows, length, h, dim), dtype, sharding=split(("data", "fsdp"), None, "tensor"))
        for h in (heads, groups, groups)
    ]
    cells = [jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=split(("data", "fsdp")))] * 2
    return jax.jit(jax.value_and_grad(value, (0, 1, 2))).lower(*arrays, *cells).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--topology", default="")
    args = parser.parse_args()
    last = ["tiles", topology.kernel(args.topology)] if args.topology else ["causal", "tiles"]
    names = args.names or ["dense", *last]
    dtype = args.dtype or ("bfloat16" if args.topology else "float32")
    compilers = topology.prepare(args.topology)
    devices = topology.make(args.topology, data=-1, fsdp=1, tensor=2) if args.topology else None
    split = f"{args.topology}, data x tensor = {devices.devices} x 2" if devices else jax.devices()[0].device_kind
    print(header(args, *compilers, device=f"{split}, {dtype}"), flush=True)
    print("| rows, length, heads, key heads, head_dim | name | compile s | temporary MB | ms | cpu ms |")
    print("|---|---|---|---|---|---|")
    for shape in LARGE if args.topology else SHAPES:
        compiled, seconds = {}, {}
        for name in names:
            start = time.perf_counter()
            compiled[name] = program(name, shape, dtype, devices)
            seconds[name] = time.perf_counter() - start
        times = {} if devices else measure(compiled, shape, dtype, args.rounds)
        for name in names:
            memory = compiled[name].memory_analysis().temp_size_in_bytes / 1e6
            wall, cpu = (spread((1e3 * x for x in taken), 0) for taken in times.get(name, ((), ())))
            print(f"| {shape} | {name} | {seconds[name]:.1f} | {memory:.0f} | {wall} | {cpu} |", flush=True)


def measure(compiled: dict[str, Any], shape: tuple[int, ...], dtype: str, rounds: int) -> dict[str, Times]:
    rows, length, heads, groups, dim = shape
    example, branch = dialogues(rows, length)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(rows, length, h, dim)), dtype) for h in (heads, groups, groups)]
    arrays += [jnp.asarray(example), jnp.asarray(branch)]
    cells = Cells(np.arange(length)[None], example, branch)
    seen = np.asarray(models.attention.sees(cells, cells)).sum()
    filled, pairs = (example > 0).mean(), seen / example.size / length
    print(f"<!-- {shape}: {filled:.1%} of cells filled, {pairs:.1%} of pairs seen -->")
    return in_turn({name: parts.runner(function, *arrays) for name, function in compiled.items()}, rounds)


if __name__ == "__main__":
    main()
