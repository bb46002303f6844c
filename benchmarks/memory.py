r"""How much memory a step needs: what the compiler says, of the shipped configs and of what each feature saves.

    python benchmarks/memory.py [--configs dpo_hh slpo_hh] [--off donation] [--topology v5e:2x4]
    python benchmarks/memory.py --remat none dots layer offload [--width 256] [--layers 4] [--heads 8] [--rounds 5]
    python benchmarks/memory.py --remat none layer offload --topology v5e:2x2 --width 2560 --layers 32 --heads 32 \
        --rows 8 --length 2048

By default the whole training step of every config, at its own size, for a TPU that is not there, where libtpu is
installed (`pip install "jax[tpu]"`), or with --topology h200:8 for GPUs that are not there (`pip install
"jax[cuda13]"`); elsewhere for this machine's processor with a smaller model (--width, --layers, --heads). Nothing runs
and nothing of that size is allocated. The rows are those that the program would plan for dialogues of HH's lengths.
Then with each feature off in turn, where the config has it on: recomputed activations, the head in parts, attention in
tiles, the reference's log-probs in a cache, micro-batches (where a device has several), and the donation of the state;
and with the optimiser's moments in bfloat16. "Peak" is a device's: arguments, temporaries, and what of the results is
not written over the arguments; "sent" is what a device sends to others in a step, read off the compiled program. A
config that scores all candidates first has a line for that, too; one in float32 attends by `tiles` on GPUs, as cuDNN
has no float32.

With --remat, the policies on packed rows: the gradient, by the parameters, of a sum over the hidden states, which are
the layers without the head, so that what the policies differ in is not hidden by the vocabulary. Times are of rounds in
which every policy runs once, in turn. With --topology nothing runs; parameters are split over fsdp, the numbers are
those of one chip, and the compiler's word is printed where a policy does not fit.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import parts
from attention import dialogues
from common import MODELS, header, in_turn, neox, spread

from slpojax import compiling, grid, head, models, settings, topology
from slpojax.base import Rows
from slpojax.compiling import Compiled
from slpojax.grid import Grid
from slpojax.models.layers import REMATS
from slpojax.plan import programs
from slpojax.plan.programs import Planned
from slpojax.settings import Config

CONFIGS = ("sft_hh", "dpo_hh", "slpo_hh", "mcpo_nectar", "mcpo_ranked")
SIZES = {"mcpo_ranked": "pythia-160m"}  # the others are of Pythia-2.8B
# What is off, where it is no key of a configuration, and what else is measured.
CHUNKS, DONATION, SCORING = "head in parts", "donation", "(scoring first)"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--off", nargs="+", help='these features alone beside "nothing", as the table names them')
    parser.add_argument("--remat", nargs="+", choices=tuple(REMATS), help="compare these policies instead")
    parser.add_argument("--width", type=int, default=0, help="0: of the config on a topology, 256 elsewhere")
    for name, value in (("layers", 4), ("heads", 8), ("rows", 5), ("length", 1024), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--mesh", nargs=3, type=int, metavar=("D", "F", "T"), help="data, fsdp, tensor")
    parser.add_argument("--attention", default="")
    parser.add_argument("--dtype", default="", help="of the policies' model: float32, or bfloat16 on a topology")
    parser.add_argument("--topology", help='as "v5e:2x4" or "h200:8"; "" for this machine')
    args = parser.parse_args()
    if args.topology is None:
        args.topology = "v5e:2x4" if importlib.util.find_spec("libtpu") and not args.remat else ""
    args.attention = args.attention or topology.kernel(args.topology)
    args.size_of_config = bool(args.topology) and not args.width
    args.width = args.width or 256
    compilers = topology.prepare(args.topology)
    print(header(args, *compilers, device=args.topology or jax.devices()[0].device_kind), flush=True)
    if args.remat:
        policies(args)
    else:
        steps(args)


# ---- whole steps -----------------------------------------------------------------------------------------------------


def steps(args: argparse.Namespace) -> None:
    """Compile every config's step with everything on, and with each feature off."""
    print("| config | off | rows a device | peak MB | of all on | arguments MB | temporary MB | sent MB | compile s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.configs:
        size = SIZES.get(name, "pythia-2.8b")
        hf_config = MODELS[size] if args.size_of_config else neox(args.width, args.layers, args.heads)
        config = parts.configure({"epochs": 1.0, "steps": 0, "model.attention": args.attention}, of=name)
        if args.attention == "cudnn" and config.model.dtype == "float32":  # which cuDNN's does not take
            config = settings.replace(config, {"model.attention": "tiles"})
        axes = dict(zip(grid.AXES, args.mesh or (config.mesh[axis] for axis in grid.AXES)))
        devices = topology.make(args.topology, **axes) if args.topology else grid.one_device()
        full = 0
        for off, changes in variants(config, hf_config, devices):
            if args.off and off not in ("nothing", *args.off):
                continue
            said, rows = compiled(programs.prepare(settings.replace(config, changes), hf_config, devices), off)
            if said.memory is None:
                print(f"| {name} | {off} | {rows} | does not fit: {said.excess} |", flush=True)
                continue
            memory, sent = said.memory, sum(one.sent for one in said.exchanges)
            full = full or memory.peak
            print(
                f"| {name} | {off} | {rows} | {memory.peak / 1e6:,.0f} | {memory.peak / full:.2f}x | "
                f"{memory.arguments / 1e6:,.0f} | {memory.temporaries / 1e6:,.0f} | {sent / 1e6:,.0f} | "
                f"{said.seconds:.0f} |",
                flush=True,
            )


def variants(config: Config, hf_config: dict[str, Any], devices: Grid) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is off, and the keys that turn it off."""
    yield "nothing", {}
    if config.model.remat != "none":
        yield "recomputed activations", {"model.remat": "none"}
    yield CHUNKS, {}
    yield "attention in tiles", {"model.attention": "dense"}
    if config.reference.mode == "cached":
        yield "cached reference", {"reference.mode": "online"}
    if config.accumulate > devices.devices:
        yield "micro-batches", {"accumulate": 1}
    yield DONATION, {}
    if config.moments == "float32":
        yield "float32 moments", {"moments": "bfloat16"}
    if programs.prepare(config, hf_config, devices).setup.picks:
        yield SCORING, {}


def compiled(planned: Planned, off: str) -> tuple[Compiled, str]:
    """Compile a config's step, or its scoring of all candidates.

    Returns:
        What the compiler says, and the rows of a device.
    """
    devices, setup = planned.bench.grid, planned.setup
    found = programs.programs(planned)[programs.PICKS if off == SCORING else programs.STEP]
    function = found.function
    if off == DONATION:
        where = jax.tree.map(lambda x: x.sharding, setup.like)
        function = jax.jit(setup.update, out_shardings=(where, devices.everywhere))
    at_once = (lambda *_: 1 << 30) if off == CHUNKS else head.positions_at_once
    with mock.patch.object(head, "positions_at_once", at_once):
        said = compiling.compile_for(devices, function, *found.inputs)
    times, rows = programs.micro_batches(found.shapes, devices)
    return said, f"{times} times {rows} x {found.shapes.length}"


# ---- remat policies --------------------------------------------------------------------------------------------------


def policies(args: argparse.Namespace) -> None:
    """Compile, and where there is a device run, the layers under every policy."""
    devices = topology.make(args.topology, data=1, fsdp=-1) if args.topology else None
    print("| remat | compile s | temporary MB | on the host MB | ms | cpu ms |\n|---|---|---|---|---|---|")
    runs, lines = {}, {}
    for remat in args.remat:
        function, inputs = program(args, remat, devices)
        made, seconds = compiling.attempt(function, *inputs)
        said = compiling.said_of(devices or grid.one_device(), made, seconds)
        if said.memory is None:
            lines[remat] = f"| {remat} | {said.seconds:.1f} | does not fit: {said.excess} | - |"
            continue
        numbers = f"{said.memory.temporaries / 1e6:.0f} | {said.memory.host / 1e6:.0f}"
        lines[remat] = f"| {remat} | {said.seconds:.1f} | {numbers} |"
        runs[remat] = parts.runner(made, *inputs)
    times = in_turn(runs, 0 if devices else args.rounds)
    for remat, line in lines.items():
        taken = times[remat] if remat in times else ((), ())
        print(line, *(f"{spread((1e3 * x for x in seconds), 0)} |" for seconds in taken))


def program(args: argparse.Namespace, remat: str, devices: Grid | None) -> tuple[Any, tuple[Any, Rows]]:
    """Return (params, rows) -> gradient, to be compiled, and inputs (shapes alone, if it is for a topology)."""
    dtype = args.dtype or ("bfloat16" if devices else "float32")
    config = neox(args.width, args.layers, args.heads, vocabulary=1024)
    model = models.build(config, dtype=dtype, remat=remat, attention=args.attention, grid=devices)
    example, branch = dialogues(args.rows, args.length)
    position = np.broadcast_to(np.arange(args.length, dtype=np.int32), example.shape)
    rows: Any = Rows(np.ones_like(example), position, example, branch)
    params: Any = jax.eval_shape(model.init, jax.random.key(0))
    if devices:
        params = grid.placed(params, grid.tree(devices, model.sharding, params)[0])
        rows = grid.placed(rows, jax.tree.map(lambda _: devices.rows, rows))
    else:
        params = jax.jit(model.init)(jax.random.key(0))
    gradient = jax.grad(lambda p, r: jnp.sum(jnp.square(model.apply(p, r)[0].astype(jnp.float32))) / args.width)
    return jax.jit(gradient), (params, rows)


if __name__ == "__main__":
    main()
