"""A plan: what the compiler says of the programs of a configuration, and what these compute; cached by content.

Knows a configuration and what stands behind it; how a plan is shown is `slpojax.plan.report`'s.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from slpojax import bench as benches
from slpojax import cached, compiling, data, flops, folders, grid, log, parts, roofline, topology, wording
from slpojax.compiling import Compiled
from slpojax.data import Examples, drawn
from slpojax.grid import Grid
from slpojax.plan import passes, programs, shapes
from slpojax.plan.passes import Sampled
from slpojax.plan.programs import Work
from slpojax.settings import Config

# What is compiled and counted; how a plan is shown changes none of it.
_CODE = ("slpojax.training", "slpojax.plan.passes", "slpojax.compiling")
# What changes a compiled program beside the configuration and the packages.
_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_APART = ("output", "plan")  # keys that change no plan, or are looked at one by one


class Result(NamedTuple):
    """A plan.

    Attributes:
        topology: the devices, as they were asked for; "" for this machine's.
        device: their name among `roofline.DEVICES`; "" where their numbers are not known.
        chips: along each side of a slice; () elsewhere.
        number: chips, or GPUs.
        slices: how many there are, joined by a network.
        devices: JAX devices.
        mesh: sizes of the axes.
        model: where its shape is from.
        trained: numbers that are trained.
        still: numbers that are frozen.
        dtype: of the computation.
        lengths: where the lengths are from.
        prompt: tokens of a prompt, on average.
        responses: tokens of an example's responses, on average.
        epoch: examples of a pass.
        rows: of a batch.
        length: of a row.
        micro: micro-batches that a device takes, and the rows of each.
        held: bytes of a device by what they are, of what a step takes.
        shared: of these, bytes that the compiler counts twice.
        programs: what a step runs, and what a run calls beside its step, by name.
        beside: bytes of a device that stay there while a program runs which is not given them, by its name.
        work: what a step computes.
        cached: operations of the reference's pass over a batch before training; 0 where there is none.
        scan: examples that this pass takes at once.
        sampled: what a token of every slot takes; None where nothing is sampled.
        versions: of what compiled it.
    """

    topology: str
    device: str
    chips: tuple[int, ...]
    number: int
    slices: int
    devices: int
    mesh: dict[str, int]
    model: str
    trained: int
    still: int
    dtype: str
    lengths: str
    prompt: float
    responses: tuple[float, ...]
    epoch: int
    rows: int
    length: int
    micro: tuple[int, int]
    held: dict[str, int]
    shared: int
    programs: dict[str, Compiled]
    beside: dict[str, int]
    work: Work
    cached: float
    scan: int
    sampled: Sampled | None
    versions: str


class Fit(NamedTuple):
    """Whether a plan fits.

    Attributes:
        fits: None where the memory of the devices is not known.
        used: bytes of a device at the peak of the program that takes most.
        room: bytes that there are; 0 where they are not known.
        program: that takes most.
    """

    fits: bool | None
    used: float
    room: float
    program: str


def fit(result: Result) -> Fit:
    """Return whether a plan fits, by the compiler's word or, where it has none, by the device's memory.

    Args:
        result: the plan.
    """
    memory = roofline.DEVICES[result.device].memory if result.device else 0.0
    found = []
    for name, one in result.programs.items():
        if one.memory is None:
            assert one.excess is not None
            found.append(Fit(False, one.excess.used, one.excess.room, name))
        else:
            used = peak(result, name)
            found.append(Fit(used <= memory if memory else None, used, memory, name))
    return max(found, key=lambda one: (one.fits is False, one.used))


def of_step(result: Result) -> dict[str, Compiled]:
    """Return the programs that a step runs, by name.

    Args:
        result: the plan.
    """
    return {name: one for name, one in result.programs.items() if name in (programs.PICKS, programs.STEP)}


def peak(result: Result, name: str) -> int:
    """Return the bytes of a device at the peak of a program that fits, with what stays beside it.

    Args:
        result: the plan.
        name: of the program.
    """
    memory = result.programs[name].memory
    assert memory is not None
    return memory.peak + result.beside.get(name, 0) - result.shared * (name in of_step(result))


def make(config: Config) -> Result:
    """Return the plan of a configuration, from the cache where it is there; else compile for it, which takes minutes.

    Call `topology.prepare` first.

    Args:
        config: every key of slpojax/defaults.py.

    Raises:
        ValueError: the configuration, the topology or the mesh is wrong, or the compiler is not there.
    """
    benches.set_up_jax(config)
    hf_config, model = shapes.find(config)
    examples = _examples(config, hf_config)
    key = {
        "config": json.dumps(_that_count(config), sort_keys=True),
        "model": json.dumps(hf_config, sort_keys=True),
        "topology": _devices(config.plan.topology),
        "lengths": examples.digest() if examples else config.plan.lengths,
        "code": cached.code_digest(*_CODE),
        "holds": str(Result._fields + Work._fields + Sampled._fields),
        "versions": topology.versions(config.plan.topology),
        "environment": json.dumps({name: os.environ.get(name, "") for name in _ENVIRONMENT}),
    }
    entry = None
    if config.plan.cache:
        entry = cached.Entry(pathlib.Path(config.plan.cache).expanduser(), "plan", key, "plan.cache")
        stored = cached.load(entry)
        if stored.whole is not None:
            log.say(f"plan: read from {cached.file(entry)}")
            return from_json(json.loads(str(stored.whole["plan"])))
    result = _compile(config, hf_config, model, examples, key["versions"])
    if entry:
        cached.save_here(entry, {"plan": np.array(as_json(result))})
    return result


def _compile(config: Config, hf_config: dict[str, Any], model: str, examples: Examples | None, versions: str) -> Result:
    name = config.plan.topology
    devices = devices_of(config)
    planned = programs.prepare(config, hf_config, devices, examples)
    found: dict[str, Compiled] = {}

    def compile_one(program: str, function: Any, inputs: tuple[Any, ...], rounds: int | None = None) -> None:
        log.say(f"{program}: compiling for {name or 'this machine'} ({devices.mesh.size} devices) ...")
        found[program] = compiling.compile_for(devices, function, *inputs, rounds=rounds)

    steps, others = programs.programs(planned), {}
    if config.plan.programs == "all":
        others = passes.passes(planned)
        for note in passes.assumed(planned):
            log.say(note)
    for program, one in steps.items():
        compile_one(program, one.function, one.inputs)
    for program, other in others.items():
        compile_one(program, other.function, other.inputs, other.rounds)
    kind, layout = devices.mesh.devices.flat[0].device_kind, planned.setup.layout
    target = topology.parse(name) if name else None
    known = next((device for device, one in roofline.DEVICES.items() if one is roofline.of_kind(kind)), "")
    used = layout.picked or layout.train
    lengths = planned.examples.lengths
    return Result(
        topology=name,
        device=target.device if target else known,
        chips=target.chips if target else (),
        number=target.number if target else devices.mesh.size,
        slices=target.slices if target else 1,
        devices=devices.mesh.size,
        mesh={axis: int(size) for axis, size in devices.mesh.shape.items()},
        model=model,
        trained=flops.count(planned.setup.like.params),
        still=flops.count(planned.frozen.base) if planned.frozen.base is not None else 0,
        dtype=config.model.dtype,
        lengths="of data.path" if examples else "drawn as HH's",
        prompt=float(lengths.prompt.mean()),
        responses=tuple(lengths.response.mean(axis=0).tolist()),
        epoch=config.plan.examples or (len(examples) if examples else drawn.HH),
        rows=used.rows,
        length=used.length,
        micro=programs.micro_batches(used, devices),
        held=programs.held(planned, steps[programs.STEP]),
        shared=programs.shared(planned),
        programs=found,
        beside={program: other.beside for program, other in others.items()},
        work=programs.work(planned),
        cached=programs.of_cache(planned),
        scan=layout.scan.examples,
        sampled=passes.sampled(planned) if passes.SAMPLE in others else None,
        versions=versions,
    )


def devices_of(config: Config) -> Grid:
    """Return the mesh of a configuration on the devices that it is planned for.

    Args:
        config: its group `mesh`, and `plan.topology`.

    Raises:
        ValueError: there are no such devices, the mesh does not fill them, or their compiler is not installed.
    """
    name, axes = config.plan.topology, {axis: config.mesh[axis] for axis in grid.AXES}
    try:
        return topology.make(name, **axes)
    except (RuntimeError, NotImplementedError, ImportError) as error:
        extra = "jax[tpu]" if topology.platform(name) == "tpu" else "jax[cuda13]"
        raise ValueError(
            f"config.plan.topology={name!r}: {wording.shown(str(error).splitlines()[0])}; the compiler for these "
            f"devices comes with pip install '{extra}' (or point TPU_LIBRARY_PATH at a libtpu.so)"
        ) from error


def _examples(config: Config, hf_config: dict[str, Any]) -> Examples | None:
    """Return the examples of the configuration's own data; None where lengths are drawn."""
    if config.plan.lengths != "data":
        return None
    place = config.data.tokenizer or config.model.path
    folder = folders.here(place)
    if folder is None:
        raise ValueError(
            f"config.plan.lengths=data tokenises data.path, and neither data.tokenizer nor model.path={place!r} is on "
            "this machine; set --config.data.tokenizer to a folder, or --config.plan.lengths=hh"
        )
    at = benches.of_model(config, hf_config, grid.one_device())
    at = at._replace(tokenizer=data.load_tokenizer(str(folder)), tokenizer_folder=folder)
    (train, *_) = parts.load(config, at)
    return train.examples


def _that_count(config: Config) -> dict[str, Any]:
    kept = {name: value for name, value in config.to_dict().items() if name not in _APART}
    return kept | {f"plan.{name}": config.plan[name] for name in ("examples", "programs")}


def _devices(name: str) -> str:
    """Return what stands for the devices in the key of a plan."""
    if name:
        target = topology.parse(name)
        return f"{target.number} of {target.compiler}"
    return f"{jax.device_count()} of {jax.devices()[0].device_kind}"


def as_json(result: Result) -> str:
    """Return a plan as JSON, which `from_json` reads back.

    Args:
        result: the plan.
    """
    content = result._asdict()
    content["programs"] = {name: compiling.as_json(one) for name, one in result.programs.items()}
    content["work"] = result.work._asdict()
    content["sampled"] = result.sampled and result.sampled._asdict()
    return json.dumps(content, allow_nan=False)


def from_json(content: dict[str, Any]) -> Result:
    """Return the plan of what `as_json` wrote.

    Args:
        content: parsed.
    """
    made = dict(content)
    made["programs"] = {name: compiling.from_json(one) for name, one in content["programs"].items()}
    made["work"] = Work(**content["work"])
    made["sampled"] = Sampled(**content["sampled"]) if content["sampled"] else None
    made |= {name: tuple(content[name]) for name in ("chips", "responses", "micro")}
    return Result(**made)
