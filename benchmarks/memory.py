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
tiles, the reference's log-probs in a cache, micro-batches, and the donation of the state; and with the optimiser's
moments in bfloat16. "Peak" is a device's: arguments, temporaries, and what of the results is not written over the
arguments. A config that scores all candidates first has a line for that, too; one in float32 attends by `tiles` on
GPUs, as cuDNN has no float32.

With --remat, the policies on packed rows: the gradient, by the parameters, of a sum over the hidden states, which are
the layers without the head, so that what the policies differ in is not hidden by the vocabulary. Times are of rounds in
which every policy runs once, in turn. With --topology nothing runs; parameters are split over fsdp, the numbers are
those of one chip, and the compiler's word is printed where a policy does not fit.
"""

import argparse
import dataclasses
import importlib.util
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import parts
from attention import dialogues
from common import MODELS, ROOT, header, in_turn, neox, spread
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from slpojax import data, grid, logps, models, objectives, optim, selectors, settings, step, train
from slpojax.base import Batch, Logps, Rows, Scored, Shapes, State
from slpojax.models.layers import REMATS

CONFIGS = ("sft_hh", "dpo_hh", "slpo_hh", "mcpo_nectar", "mcpo_ranked")
SIZES = {"mcpo_ranked": "pythia-160m"}  # the others are of Pythia-2.8B


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--off", nargs="+", help="these features alone beside \"nothing\", as the table names them")
    parser.add_argument("--remat", nargs="+", choices=tuple(REMATS), help="compare these policies instead")
    parser.add_argument("--width", type=int, default=0, help="0: of the config on a topology, 256 elsewhere")
    for name, value in (("layers", 4), ("heads", 8), ("rows", 5), ("length", 1024), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--attention", default="")
    parser.add_argument("--dtype", default="", help="of the policies' model: float32, or bfloat16 on a topology")
    parser.add_argument("--topology", help='as "v5e:2x4" or "h200:8"; "" for this machine')
    args = parser.parse_args()
    if args.topology is None:
        args.topology = "v5e:2x4" if importlib.util.find_spec("libtpu") and not args.remat else ""
    args.attention = args.attention or parts.kernel(args.topology)
    args.own_size = bool(args.topology) and not args.width
    args.width = args.width or 256
    compilers = parts.compile_for(args.topology)
    print(header(args, *compilers, device=args.topology or jax.devices()[0].device_kind), flush=True)
    if args.remat:
        policies(args)
    else:
        steps(args)


# ---- whole steps -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Features:
    """What a step saves memory by."""

    remat: str
    attention: str
    accumulate: int
    cached: bool
    chunked: bool = True
    donated: bool = True
    moments: str = "float32"


def steps(args: argparse.Namespace) -> None:
    """Compile every config's step with everything on, and with each feature off."""
    print("| config | off | rows a device | peak MB | of all on | arguments MB | temporary MB | compile s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.configs:
        path = str(ROOT / "configs" / f"{name}.py")
        config = settings.resolve(settings.load_file(path), {}, choices=train.CHOICES)
        full = 0.0
        for off, features in variants(config, args):
            start = time.perf_counter()
            try:
                memory, rows = compiled(name, config, features, args, scoring=off == "(scoring first)")
            except jax.errors.JaxRuntimeError as error:
                print(f"| {name} | {off} | {str(error).splitlines()[0]} |", flush=True)
                continue
            arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
            peak = arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
            full = full or peak
            print(
                f"| {name} | {off} | {rows} | {peak / 1e6:,.0f} | {peak / full:.2f}x | {arguments / 1e6:,.0f} | "
                f"{temporary / 1e6:,.0f} | {time.perf_counter() - start:.0f} |",
                flush=True,
            )


def variants(config: ConfigDict, args: argparse.Namespace) -> Iterator[tuple[str, Features]]:
    """Yield what is off, and the features that are left."""
    reference = "ref" in objectives.build(**config.objective).needs
    exact = args.attention == "cudnn" and config.model.dtype == "float32"  # which cuDNN's has not
    attention = "tiles" if exact else args.attention
    on = Features(config.model.remat, attention, config.accumulate, reference, moments=config.moments)
    off: dict[str, dict[str, Any]] = {"nothing": {}}
    off |= {"recomputed activations": {"remat": "none"}} if on.remat != "none" else {}
    off |= {"head in parts": {"chunked": False}, "attention in tiles": {"attention": "dense"}}
    off |= {"cached reference": {"cached": False}} if reference else {}
    off |= {"micro-batches": {"accumulate": 1}} if on.accumulate > 1 else {}
    off |= {"donation": {"donated": False}}
    off |= {"float32 moments": {"moments": "bfloat16"}} if config.moments == "float32" else {}
    off |= {"(scoring first)": {"accumulate": 1}} if picks_of(config) else {}
    for name, changed in off.items():
        if args.off and name not in ("nothing", *args.off):
            continue
        yield name, dataclasses.replace(on, **changed)


def picks_of(config: ConfigDict) -> int:
    """Return how many candidates are picked after all are scored, 0 where the step itself reads all of them."""
    if config.selector.name == "everything":
        return 0
    candidates = config.data.candidates
    picks = selectors.count(selector_of(config), candidates) - 1
    tokens = (float(np.mean(x)) for x in parts.lengths(1024))
    return picks if selectors.cheaper(*tokens, candidates, picks) == "score_first" else 0


def selector_of(config: ConfigDict) -> selectors.Selector:
    """Return a config's selector, as a run builds it."""
    return selectors.build(objective=objectives.build(**config.objective).hyperparameters, **config.selector)


def compiled(
    name: str, config: ConfigDict, features: Features, args: argparse.Namespace, *, scoring: bool
) -> tuple[Any, str]:
    """Compile a config's step, or its scoring of all candidates; return the memory, and the rows of a device."""
    axes = {axis: config.mesh[axis] for axis in ("data", "fsdp", "tensor")}
    mesh = parts.topology(args.topology, **axes) if args.topology else parts.one_device()
    size = MODELS[SIZES.get(name, "pythia-2.8b")] if args.own_size else neox(args.width, args.layers, args.heads)
    model = models.build(
        size, dtype=config.model.dtype, remat=features.remat, attention=features.attention, grid=grid.of_mesh(mesh)
    )
    objective = objectives.build(**config.objective)
    keys = ("learning_rate", "schedule", "warmup_steps", "clip_norm")
    given = {key: config[key] for key in keys}
    optimizer = optim.build(**config.optimizer, **given, moments=features.moments, total_steps=1000)
    devices, selector = grid.batch_devices(mesh), selector_of(config)
    picks = 0 if scoring else picks_of(config)
    shapes = plan(config, features.accumulate * devices, picks)

    params = jax.eval_shape(model.init, jax.random.key(0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    state = State(number, params, jax.eval_shape(optimizer.init, params), objective.state, key)
    state = split(state, parts.where(mesh, model, state))
    ref_params = None if features.cached or "ref" not in objective.needs else state.params
    batch = batch_shapes(mesh, shapes, cached=features.cached)
    with mock.patch.object(logps, "POSITIONS_AT_ONCE", logps.POSITIONS_AT_ONCE if features.chunked else 1 << 30):
        if scoring:
            everywhere = grid.replicated(mesh)
            one = step.make_picks(model, selector, shapes, batch_devices=devices, everywhere=everywhere)
        else:
            options = {"accumulate": features.accumulate}
            options |= {"selector": selector} if config.selector.name != "everything" and not picks else {}
            one = parts.train_step(mesh, model, config.objective, optimizer, shapes, state, **options)
        if not features.donated:
            one = jax.jit(lambda *x, donating=one: donating(*x))
        memory = one.lower(state, ref_params, batch).compile().memory_analysis()
    rows = shapes.rows // devices // features.accumulate
    return memory, f"{features.accumulate} times {rows} x {shapes.length}"


def plan(config: ConfigDict, multiple_of: int, picks: int) -> Shapes:
    """Plan a run over dialogues of HH's lengths, those cut that would not fit a row of a given length."""
    candidates, row_length, size = config.data.candidates, config.data.row_length, config.batch_size
    longest = config.data.max_length
    if row_length:  # a prompt and all its responses have to fit
        longest = min(longest, 2 * row_length // (1 + candidates))
    pool = parts.examples(*parts.lengths(8 * size, candidates, longest=longest), vocabulary=2)
    order = data.order(pool.lengths, size, seed=0, steps=8, kind=config.data.order)
    return data.plan(pool, order, row_length=row_length, multiple_of=multiple_of, picks=picks)


def batch_shapes(mesh: Mesh, shapes: Shapes, *, cached: bool) -> Batch:
    """Return what `grid.put_batch` gives, without the numbers."""

    everywhere, by_rows = grid.replicated(mesh), grid.split_rows(mesh)

    def array(shape: tuple[int, ...], dtype: Any, where: NamedSharding = everywhere) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    rows = array((shapes.rows, shapes.length), jnp.int32, by_rows)
    scored = array((shapes.groups, shapes.scored), jnp.int32, by_rows)
    pair = (shapes.examples, shapes.candidates)
    length, score = array(pair, jnp.int32), array(pair, jnp.float32)
    token = array((*pair, shapes.response), jnp.float32)
    ref = Logps(token, token, length) if cached else None
    one, index = array(pair[:1], jnp.float32), array(pair[:1], jnp.int32)
    placed = Rows(rows, rows, rows, rows), Scored(scored, scored, scored)
    return Batch(*placed, length, score, one, one, index, ref, None)


def split(tree: Any, where: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)


# ---- remat policies --------------------------------------------------------------------------------------------------


def policies(args: argparse.Namespace) -> None:
    """Compile, and where there is a device run, the layers under every policy."""
    mesh = parts.topology(args.topology, data=1, fsdp=-1) if args.topology else None
    print("| remat | compile s | temporary MB | on the host MB | ms | cpu ms |\n|---|---|---|---|---|---|")
    programs: dict[str, Any] = {}
    lines = {}
    for remat in args.remat:
        start = time.perf_counter()
        try:
            programs[remat], inputs = program(args, remat, mesh)
        except jax.errors.JaxRuntimeError as error:
            lines[remat] = f"| {remat} | {time.perf_counter() - start:.1f} | {str(error).splitlines()[0]} | - |"
            continue
        memory = programs[remat].memory_analysis()
        numbers = f"{memory.temp_size_in_bytes / 1e6:.0f} | {memory.host_temp_size_in_bytes / 1e6:.0f}"
        lines[remat] = f"| {remat} | {time.perf_counter() - start:.1f} | {numbers} |"

    runs = {remat: parts.runner(function, *inputs) for remat, function in programs.items()}
    times = in_turn(runs, 0 if mesh else args.rounds)
    for remat, line in lines.items():
        taken = times[remat] if remat in times else ((), ())
        print(line, *(f"{spread((1e3 * x for x in seconds), 0)} |" for seconds in taken))


def program(args: argparse.Namespace, remat: str, mesh: Mesh | None) -> tuple[Any, tuple[Any, Rows]]:
    """Compile (params, rows) -> gradient; return it and inputs (shapes alone, if it is for a topology)."""
    dtype = args.dtype or ("bfloat16" if mesh else "float32")
    config = neox(args.width, args.layers, args.heads, vocabulary=1024)
    devices = grid.of_mesh(mesh) if mesh else None
    model = models.build(config, dtype=dtype, remat=remat, attention=args.attention, grid=devices)
    example, branch = dialogues(args.rows, args.length)
    position = np.broadcast_to(np.arange(args.length, dtype=np.int32), example.shape)
    rows: Any = Rows(np.ones_like(example), position, example, branch)
    params: Any = jax.eval_shape(model.init, jax.random.key(0))
    if mesh:
        params = split(params, parts.where(mesh, model, params))
        rows = split(rows, jax.tree.map(lambda _: grid.split_rows(mesh), rows))
    else:
        params = jax.jit(model.init)(jax.random.key(0))
    gradient = jax.grad(lambda p, r: jnp.sum(jnp.square(model.apply(p, r)[0].astype(jnp.float32))) / args.width)
    return jax.jit(gradient).lower(params, rows).compile(), (params, rows)


if __name__ == "__main__":
    main()
