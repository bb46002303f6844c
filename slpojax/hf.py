"""Hugging Face folders in and out: the tensors of a checkpoint as parameters, and parameters as an export.

Knows a model's table of tensors (`Model.tensors`: lines with `param`, `file`, `spec`); knows no family. Every tensor of
a checkpoint is used exactly once and every parameter filled exactly once, or a ValueError names them. What the files of
a folder are called and hold is in `slpojax.folders`.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from safetensors.numpy import save_file

from slpojax import folders, named, wording
from slpojax.base import Array, Model, Params
from slpojax.folders import CONFIG, GENERATION, INDEX, TOKENIZER, WEIGHTS, exports, listed, read_config, resolve
from slpojax.folders.exports import DTYPES, NOTHING, STORED, Beside
from slpojax.grid import Grid, tree
from slpojax.models import families
from slpojax.quantised import Narrow
from slpojax.trained.lora import Merged

__all__ = [
    "EXPORT_DTYPES",
    "INDEX",
    "NOTHING",
    "TOKENIZER",
    "WEIGHTS",
    "Beside",
    "load",
    "read_config",
    "resolve",
    "save",
    "stored_dtype",
]

EXPORT_DTYPES = ("source", *DTYPES)  # "source": that of the folder that a model came from
NO_ARRAYS: Mapping[str, Any] = {}


def load(
    path: str | pathlib.Path,
    model: Model,
    grid: Grid | None = None,
    *,
    given: Mapping[str, Any] = NO_ARRAYS,
    dtype: str = "float32",
) -> Params:
    """Read a checkpoint's tensors into parameters.

    On a grid a process reads what its own devices hold and nothing else: slice by slice out of the files, a slice that
    several of its devices hold once. The host has one of these slices at a time.

    Args:
        path: a folder with model.safetensors, or with model.safetensors.index.json and the files it names.
        model: whose table says which tensors fill which parameter, and how that is split over the devices.
        grid: the devices that get the parameters; None leaves them on this host.
        given: parameters that are not read, by their paths; they come back as they are.
        dtype: that the parameters are kept in; one that is narrower than a tensor's rounds it to the nearest.

    Returns:
        The parameters, in float32 to which float16 and bfloat16 tensors are widened: jax Arrays split over the grid, or
        NumPy arrays.

    Raises:
        ValueError: naming tensors that are missing, unknown, contradictory or of another shape or dtype.
    """
    path, shapes = pathlib.Path(path), named.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    split = {name: None for name in shapes}
    if grid is not None:
        split = named.flatten(tree(grid, model.sharding, named.nested(shapes))[0])
    with contextlib.ExitStack() as stack:
        wanted = {name: leaf for name, leaf in shapes.items() if name not in given}
        sources = _sources(path, model, shapes, wanted, stack)
        read = {
            name: _on_devices(leaf.shape, split[name], functools.partial(_read, path, leaf.shape, sources[name], dtype))
            for name, leaf in wanted.items()
        }
        return named.nested(read | dict(given))


def stored_dtype(path: pathlib.Path | None, hf_config: Mapping[str, Any]) -> str:
    """The dtype of a folder's weights: the widest among its tensors, or where there are none, what config.json says.

    Args:
        path: the folder; None where its weights are not used.
        hf_config: the content of its config.json.
    """
    kinds: set[str] = set()
    if path is not None and ((path / WEIGHTS).is_file() or (path / INDEX).is_file()):
        for file in set(folders.tensor_files(path).values()):
            with folders.open_tensors(file) as tensors:
                kinds |= {STORED.get(tensors.get_slice(name).get_dtype(), "") for name in tensors.keys()}
    said = hf_config.get("dtype") or hf_config.get("torch_dtype")
    kinds = {kind for kind in kinds if kind} or {str(said)} & DTYPES.keys()
    return kinds.pop() if len(kinds) == 1 else "float32"


def save(
    path: str | pathlib.Path,
    params: Params,
    model: Model,
    hf_config: Mapping[str, Any],
    *,
    dtype: str = "float32",
    beside: Beside = NOTHING,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a folder that `transformers` loads.

    The tensors come from the devices one at a time, one layer of a parameter; the host that writes holds those of one
    file, at most `shard_bytes`. An older export in the folder stays as it is until the new one is complete beside it;
    then all its files go, and those of other programs stay.

    Where the parameters are split over several processes, all of them must call this. The first one writes, and none
    returns before the folder is there.

    Args:
        path: the folder; made if absent, its model files replaced.
        params: the parameters, NumPy arrays or jax Arrays on any devices, or `Merged` or `Narrow` ones.
        model: whose table names the tensors.
        hf_config: the config.json the model was built from.
        dtype: of the tensors: float32, float16 or bfloat16.
        beside: what goes along.
        shard_bytes: largest size of one file; beyond it, several files and an index are written.

    Raises:
        ValueError: for an unknown dtype, parameters that are not the model's or that the dtype cannot hold, or a disk
            that takes no more.
    """
    if dtype not in DTYPES:
        raise wording.unknown("dtype", dtype, DTYPES)
    path, leaves = pathlib.Path(path), named.flatten(params)
    shapes = named.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    if wrong := [
        k for k in {**leaves, **shapes} if k not in leaves or k not in shapes or leaves[k].shape != shapes[k].shape
    ]:
        raise ValueError(f"parameters that are not the model's: {listed(wrong)}; export with the model they belong to.")
    several = any(map(exports.is_shared, leaves.values()))
    writer, part = not several or jax.process_index() == 0, path / ".part"
    shards = _shards(model, shapes, DTYPES[dtype].itemsize, shard_bytes)
    problem = exports.problem(lambda: exports.begin(path)) if writer else ""
    for file, shard in shards.items():  # to its end on every host, since a tensor comes to all of them together
        tensors = {}
        for name, (param, layer) in shard.items():
            tensor = exports.stored(name, _tensor(leaves[param], layer), dtype)
            if writer and not problem:
                tensors[name] = tensor
        if writer and not problem:
            problem = exports.problem(functools.partial(save_file, tensors, part / file, metadata={"format": "pt"}))
    if writer and not problem:
        total = sum(int(leaf.size) for leaf in shapes.values()) * DTYPES[dtype].itemsize
        config = _config(hf_config, model) | {"dtype": dtype, "torch_dtype": dtype}
        problem = exports.problem(lambda: _finish(path, part, shards, total, config, beside))
    exports.end(path, problem, several)


# ---- parameters from files -------------------------------------------------------------------------------------------

Index: TypeAlias = tuple[slice, ...]
# For each layer of a parameter, or once where it stacks none: name -> what reads a part of the tensor, for every name
# that the files have for it.
Sources: TypeAlias = list[dict[str, Any]]


def _sources(
    path: pathlib.Path, model: Model, shapes: dict[str, Any], wanted: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, Sources]:
    """Open the files and tie those parameters to their tensors that are wanted; headers say shapes and dtypes."""
    places, files = _places(model, wanted), folders.tensor_files(path)
    known = {name for names in _places(model, shapes).values() for name in names} | _ignored(model, shapes)
    missing = [" or ".join(names) for names in places.values() if not any(name in files for name in names)]
    unknown = [name for name in files if name not in known]
    if missing or unknown:
        raise ValueError(
            f"{path}: the checkpoint does not fit its config. Missing: {listed(missing)}. Unknown: {listed(unknown)}. "
            "Correct config.json, or convert the checkpoint with transformers' save_pretrained."
        )
    handles = {file: stack.enter_context(folders.open_tensors(file)) for file in set(files.values())}
    sources: dict[str, Sources] = {}
    for (param, layer), names in places.items():
        expected = list(shapes[param].shape[0 if layer is None else 1 :])
        tensors = {name: handles[files[name]].get_slice(name) for name in names if name in files}
        for name, tensor in tensors.items():
            shape, dtype = tensor.get_shape(), tensor.get_dtype()
            if dtype not in STORED:
                raise ValueError(
                    f"{path}: {name} is {dtype}{shape}; expected {', '.join(STORED)}. If quantised: "
                    f"{folders.UNQUANTISED}."
                )
            if shape != expected:
                raise ValueError(
                    f"{path}: {name} is {dtype}{shape}; expected {expected}. Check that config.json belongs to the "
                    "checkpoint."
                )
        sources.setdefault(param, []).append(tensors)
    return sources


def _on_devices(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding | None, read: Callable[[Index], np.ndarray]
) -> Array:
    """Bring a parameter to this process's devices, one of the parts that they hold at a time.

    `jax.make_array_from_callback` would have all of these parts on the host at once, and read those anew that several
    devices hold; `jax.device_put` of the whole would compare it on all hosts.
    """
    if sharding is None:
        return read(tuple(slice(0, size) for size in shape))
    holders: dict[tuple[tuple[int, int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(cut.indices(size) for cut, size in zip(index or (), shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    pieces: list[jax.Array] = []
    for bounds, devices in holders.items():
        part = read(tuple(slice(*bound) for bound in bounds))
        pieces += jax.block_until_ready([jax.device_put(part, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


def _read(path: pathlib.Path, shape: tuple[int, ...], sources: Sources, dtype: str, index: Index) -> np.ndarray:
    """Read a part of a parameter, layer by layer."""
    part = np.empty([len(range(size)[cut]) for size, cut in zip(shape, index, strict=True)], DTYPES[dtype])
    stacked = len(shape) > len(next(iter(sources[0].values())).get_shape())
    layers, inside = (sources[index[0]], index[1:]) if stacked else (sources, index)
    for target, tensors in zip(part if stacked else (part,), layers, strict=True):
        (first, tensor), *others = tensors.items()
        target[...] = _slice(tensor, inside)
        for name, other in others:
            if not np.array_equal(target, _slice(other, inside).astype(part.dtype)):
                raise ValueError(f"{path}: {name} differs from {first}, its other name; remove one of them.")
    return part


def _slice(tensor: Any, index: Index) -> np.ndarray:
    """Read a part of one tensor of a file."""
    return tensor[index]


# ---- parameters to files ---------------------------------------------------------------------------------------------


@jax.jit
def _layer(leaf: Array, number: Array | int) -> jax.Array:
    """Take one layer of a parameter, split over the devices as the parameter is."""
    return jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)


def _tensor(leaf: Any, layer: int | None) -> np.ndarray:
    """Bring one layer of a parameter, or one that stacks none, to the host."""
    if layer is None:
        return exports.gather(leaf)
    if isinstance(leaf, Merged | Narrow):
        return exports.gather(leaf.layer(layer))
    return exports.gather(_layer(leaf, layer)) if isinstance(leaf, jax.Array) else leaf[layer]


def _finish(
    path: pathlib.Path,
    part: pathlib.Path,
    shards: dict[str, dict[str, Any]],
    total: int,
    config: dict[str, Any],
    beside: Beside,
) -> None:
    """Write what goes along, and put the complete export in its place."""
    _write_rest(part, shards, total, config, beside)
    exports.replace(path)


def _write_rest(
    folder: pathlib.Path, shards: dict[str, dict[str, Any]], total: int, config: dict[str, Any], beside: Beside
) -> None:
    """Write all but the tensors: the index where these are in several files, of `total` bytes, and what goes along."""
    if len(shards) > 1:
        weight_map = {name: file for file, shard in shards.items() for name in shard}
        exports.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    exports.write_json(folder / CONFIG, _ending(config, beside.ends))
    if beside.generation or beside.ends:
        special = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
        exports.write_json(folder / GENERATION, _ending(beside.generation or special, beside.ends))
    exports.write_tokenizer(folder, beside)


def _config(hf_config: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return a config that names the model type's class, or its own where a family of another package made it."""
    family, own = families().get(hf_config["model_type"]), hf_config.get("architectures") or ()
    names = [family.ARCHITECTURES[hf_config["model_type"]]] if family else list(own)
    if model.score is None:
        return dict(hf_config) | ({"architectures": names} if names else {})
    scoring = getattr(family, "SCORING", {}).get(hf_config["model_type"])
    names = [scoring] if scoring else [str(name).replace("ForCausalLM", folders.SCORING) for name in names]
    config = {key: value for key, value in hf_config.items() if key != "num_labels"}
    return config | {"architectures": names, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def _ending(config: Mapping[str, Any], ends: tuple[int, ...]) -> dict[str, Any]:
    """Return a config under which generation stops at `ends`, and where it did before."""
    before = config.get("eos_token_id")
    former = before if isinstance(before, list) else [] if before is None else [before]
    every = list(dict.fromkeys([*ends, *former]))
    return dict(config) | ({"eos_token_id": every if len(every) > 1 else every[0]} if ends else {})


# ---- names of tensors ------------------------------------------------------------------------------------------------


def _places(model: Model, shapes: dict[str, Any]) -> dict[tuple[str, int | None], list[str]]:
    """(parameter, layer or None) -> the names its tensor may have, the one for exports first."""
    places: dict[tuple[str, int | None], list[str]] = {}
    for line in model.tensors:
        if line.param in shapes:
            layers = range(shapes[line.param].shape[0]) if "{}" in line.file else (None,)
            for layer in layers:
                places.setdefault((line.param, layer), []).append(line.file.format(layer))
    return places


def _ignored(model: Model, shapes: dict[str, Any]) -> set[str]:
    layers = max(shapes[line.param].shape[0] for line in model.tensors if line.param in shapes and "{}" in line.file)
    return {line.file.format(layer) for line in model.tensors if not line.param for layer in range(layers)}


def _shards(
    model: Model, shapes: dict[str, Any], itemsize: int, limit: int
) -> dict[str, dict[str, tuple[str, int | None]]]:
    """File -> the names of its tensors -> their places; a file has at most `limit` bytes, or one tensor."""
    shards: list[dict[str, tuple[str, int | None]]] = [{}]
    size = 0
    for (param, layer), names in _places(model, shapes).items():
        leaf = shapes[param]
        nbytes = leaf.size * itemsize // (1 if layer is None else leaf.shape[0])
        if shards[-1] and size + nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][names[0]] = (param, layer)
        size += nbytes
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}
