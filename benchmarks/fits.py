r"""What fits where: the peak memory of DPO by adapters, as the compiler plans it for devices that are not there.

    python benchmarks/fits.py [--models qwen3-0.6b llama-3.1-8b] [--topologies v5e:1 v5e:8 h200:1] [--rank 16]

Each line is the whole training step of `configs/qwen3_lora_dpo.py` with another model: adapters on every linear map,
the frozen weights in bfloat16, moments and adapters in float32, the reference's log-probs cached, 1,024 tokens a
sequence, two packed rows a device at a time. "v5e:8" splits the frozen weights over 8 chips (`mesh.fsdp`). TPUs need
libtpu (`make check` installs it and points TPU_LIBRARY_PATH at it), GPUs the CUDA plugin. "Peak" is a device's:
arguments, temporaries, and what of the results is not written over the arguments. No GPU with less memory than an
H100's is known to the compiler here; a program for one is the same, so that a peak under 16 or 24 GB says what would
fit there.
"""

import argparse
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import parts
from common import header

from slpojax import bench, grid, named, topology, trained, training
from slpojax.base import Frozen, Params
from slpojax.grid import Grid
from slpojax.settings import Config

_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "rope_theta": 1e6}
_QWEN3 |= {"tie_word_embeddings": True, "max_position_embeddings": 40960}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "gemma-2-2b": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
    },
    "qwen3-4b": _QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 5e5,
        "max_position_embeddings": 131072,
    },
}
# A slice of chips that there is, of which so many are used.
SLICES = {"v5e:1": ("v5e:2x2", 1), "v5e:8": ("v5e:2x4", 8)}


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--topologies", nargs="+", default=["v5e:1", "v5e:8"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2, help="packed rows that a device holds at a time")
    args = parser.parse_args()
    compilers = topology.prepare(SLICES.get(args.topologies[0], args.topologies)[0])
    print(header(args, *compilers, device=" ".join(args.topologies)), flush=True)
    print("| model | devices | peak GB | frozen GB | state MB | temporary GB | compile s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in args.models:
        for where in args.topologies:
            start = time.perf_counter()
            try:
                numbers = measured(args, MODELS[name], devices_of(where))
            except jax.errors.JaxRuntimeError as error:
                print(f"| {name} | {where} | {str(error).splitlines()[0][:200]} |", flush=True)
                continue
            print(f"| {name} | {where} | {numbers} | {time.perf_counter() - start:.0f} |", flush=True)


def devices_of(where: str) -> Grid:
    """Return the grid of a line: the frozen weights are split over all of its devices."""
    if where not in SLICES:
        return topology.make(where, data=1, fsdp=-1)
    name, count = SLICES[where]
    found = topology.make(name, data=1, fsdp=-1).mesh.devices.flat[:count]
    return grid.make(1, -1, 1, devices=list(found))


def measured(args: argparse.Namespace, hf_config: dict[str, Any], devices: Grid) -> str:
    """Compile the step, and return its numbers."""
    count = devices.devices
    changes = {
        "lora.rank": args.rank,
        "epochs": 1.0,
        "warmup_steps": 0,
        "model.attention": "tiles",
        "data.row_length": 2048,
        "accumulate": max(1, 64 // (2 * args.rows * count)) * count,
    }
    config = parts.configure(changes, of="qwen3_lora_dpo")
    pool = parts.examples(*parts.lengths(8 * config.batch_size, 2, longest=config.data.max_length), vocabulary=2)
    method = training.method(config)
    layout = training.layout(config, method, [pool], devices)
    at = bench.of_model(config, hf_config, devices)
    setup = training.make(config, at, method, layout)
    frozen = Frozen(base=frozen_like(config, at))
    batch = training.batch_like(layout.train, devices, cached=True)
    memory = setup.step.lower(setup.like, frozen, batch).compile().memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
    held = sum(x.dtype.itemsize * size(x) for x in jax.tree.leaves(frozen))
    state = sum(x.dtype.itemsize * size(x) for x in jax.tree.leaves(setup.like) if x.ndim)
    return f"{peak / 1e9:.1f} | {held / 1e9:.1f} | {state / 1e6:.0f} | {temporary / 1e9:.1f}"


def size(x: jax.ShapeDtypeStruct) -> int:
    """Return how many numbers of an array a device holds."""
    return math.prod(x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape)


def frozen_like(config: Config, at: bench.Bench) -> Params:
    """Return the shapes of the frozen weights, as `bench.base_params` loads them."""
    dtype = jnp.dtype(config.model.frozen_dtype)
    base = jax.eval_shape(lambda key: trained.split(at.plan, at.model.init(key))[0], at.keys.init)
    where = named.flatten(grid.tree(at.grid, at.model.sharding, base)[0])
    leaves = {
        path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=where[path]) for path, x in named.flatten(base).items()
    }
    scales = {
        path: jax.ShapeDtypeStruct(jnp.shape(x), jnp.float32, sharding=at.grid.everywhere)
        for path, x in trained.scales(at.plan).items()
    }
    return named.nested(leaves | scales)


if __name__ == "__main__":
    main()
