r"""What fits where: the peak memory of DPO by adapters, as the compiler plans it for devices that are not there.

    python benchmarks/fits.py [--models qwen3-0.6b llama-3.1-8b] [--topologies v5e:1 v5e:8 h200:1] [--rank 16]
    python benchmarks/fits.py --models llama-3.1-8b --topologies v5e:1 --frozen int4      # codes of few bits
    python benchmarks/fits.py --models qwen3-0.6b --topologies v5e:1 --length 24576 --rows 1

Each line is the whole training step of `configs/qwen3_lora_dpo.py` with another model: adapters on every linear map,
the frozen weights in bfloat16 or in codes of few bits, moments and adapters in float32, the reference's log-probs
cached, sequences of up to half a row, two packed rows of 2,048 tokens a device at a time. "v5e:8" splits the frozen
weights over 8 chips (`mesh.fsdp`). TPUs need libtpu (`make check` installs it and points TPU_LIBRARY_PATH at it), GPUs
the CUDA plugin. "Peak" is a device's: arguments, temporaries, and what of the results is not written over the
arguments. No GPU with less memory than an H100's is known to the compiler here; a program for one is the same, so that
a peak under 16 or 24 GB says what would fit there.
"""

import argparse
from typing import Any

import parts
from common import header

from slpojax import compiling, topology
from slpojax.plan import programs
from slpojax.public import SHAPES

MODELS = ("qwen3-0.6b", "gemma-2-2b", "qwen3-4b", "llama-3.1-8b")  # of `slpojax.public`


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(SHAPES))
    parser.add_argument("--topologies", nargs="+", default=["v5e:1", "v5e:8"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--frozen", default="bfloat16", help="model.frozen_dtype: bfloat16, int8, int4 or nf4")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a packed row")
    parser.add_argument("--rows", type=int, default=2, help="packed rows that a device holds at a time")
    args = parser.parse_args()
    compilers = topology.prepare(args.topologies[0])
    print(header(args, *compilers, device=" ".join(args.topologies)), flush=True)
    print("| model | devices | peak GB | frozen GB | state MB | temporary GB | compile s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in args.models:
        for where in args.topologies:
            print(f"| {name} | {where} | {measured(args, SHAPES[name], where)} |", flush=True)


def measured(args: argparse.Namespace, hf_config: dict[str, Any], where: str) -> str:
    """Compile the step with the frozen weights split over all devices, and return its numbers."""
    devices = topology.make(where, data=1, fsdp=-1, tensor=1)
    changes = {
        "lora.rank": args.rank,
        "epochs": 1.0,
        "warmup_steps": 0,
        "model.attention": "tiles",
        "model.frozen_dtype": args.frozen,
        "data.row_length": args.length,
        "data.max_length": args.length // 2,
        "accumulate": max(1, 64 // (2 * args.rows * devices.devices)) * devices.devices,
    }
    planned = programs.prepare(parts.configure(changes, of="qwen3_lora_dpo"), hf_config, devices)
    step = programs.programs(planned)[programs.STEP]
    said, held = compiling.compile_for(devices, step.function, *step.inputs), programs.held(planned, step)
    if said.memory is None:
        used, room = (x / 1e9 for x in (said.excess.used, said.excess.room))
        return f"{used:.1f}, and {room:.1f} are there: does not fit | | | | {said.seconds:.0f}"
    state = held["parameters"] + held["moments"]
    return (
        f"{said.memory.peak / 1e9:.1f} | {held['frozen weights'] / 1e9:.1f} | {state / 1e6:.0f} | "
        f"{said.memory.temporaries / 1e9:.1f} | {said.seconds:.0f}"
    )


if __name__ == "__main__":
    main()
