"""Hugging Face folders in and out: config.json, safetensors, tokenizer files.

Knows files and a model's table of tensors (`Model.tensors`: lines with `param`, `file`, `spec`); knows no family. Every
tensor of a checkpoint is used exactly once and every parameter filled exactly once, or a ValueError names them.
"""

import contextlib
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import ml_dtypes
import numpy as np
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from jax.experimental import multihost_utils
from safetensors import safe_open
from safetensors.numpy import save_file

from slpojax import named
from slpojax.base import Array, Model, Params
from slpojax.grid import Grid, tree
from slpojax.models import families

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_STORED = ("F32", "F16", "BF16")  # the same, as the files name them
TOKENIZER = tuple(
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json tokenizer.model vocab.json "
    "merges.txt chat_template.jinja chat_template.json".split()
)
_MODEL = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def resolve(
    path_or_hub_name: str | pathlib.Path, *, key: str = "model.path", files: Sequence[str] = _MODEL
) -> pathlib.Path:
    """The local folder of a model; a hub name is downloaded, or found in the hub's cache.

    Args:
        path_or_hub_name: a folder, or "owner/name".
        key: of the configuration, which gave it, for the error.
        files: patterns of what is downloaded.

    Returns:
        The folder.

    Raises:
        ValueError: where there is neither, saying what was tried and what resembles it.
    """
    if not str(path_or_hub_name):
        raise ValueError(f"no model given; set config.{key} to a local folder or a hub name.")
    folder = pathlib.Path(path_or_hub_name).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_hub_name)
    try:
        return pathlib.Path(snapshot_download(name, allow_patterns=list(files), etag_timeout=5))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError) as error:
        near = named.near_paths(name, constants.HF_HUB_CACHE, "models")
        raise ValueError(
            f"config.{key}={name!r}: no folder {folder.absolute()}, and the hub gave no such model "
            f"({type(error).__name__}){near}. Give a local folder in Hugging Face layout, or go online."
        ) from error


def read_config(path: str | pathlib.Path) -> dict[str, Any]:
    """The content of the config.json in folder `path`; ValueError where there is none."""
    file = pathlib.Path(path) / "config.json"
    if not file.is_file():
        raise ValueError(f"no {file}; expected a model folder in Hugging Face layout.")
    return json.loads(file.read_text())


def load(path: str | pathlib.Path, model: Model, grid: Grid | None = None) -> Params:
    """Read a checkpoint's tensors into parameters.

    On a grid a process reads what its own devices hold and nothing else: slice by slice out of the files, a slice that
    several of its devices hold once. The host has one of these slices at a time.

    Args:
        path: a folder with model.safetensors, or with model.safetensors.index.json and the files it names.
        model: whose table says which tensors fill which parameter, and how that is split over the devices.
        grid: the devices that get the parameters; None leaves them on this host.

    Returns:
        The parameters in float32, to which float16 and bfloat16 tensors are widened: jax Arrays split over the grid, or
        NumPy arrays.

    Raises:
        ValueError: naming tensors that are missing, unknown, contradictory or of another shape or dtype.
    """
    path, shapes = pathlib.Path(path), jax.eval_shape(model.init, jax.random.key(0))
    split = {name: None for name in named.flatten(shapes)}
    if grid is not None:
        split = named.flatten(tree(grid, model.sharding, shapes)[0])
    with contextlib.ExitStack() as stack:
        sources = _sources(path, model, named.flatten(shapes), stack)
        return _nested(
            {
                name: _on_devices(leaf.shape, split[name], functools.partial(_read, path, leaf.shape, sources[name]))
                for name, leaf in named.flatten(shapes).items()
            }
        )


def save(
    path: str | pathlib.Path,
    params: Params,
    model: Model,
    hf_config: Mapping[str, Any],
    *,
    dtype: str = "float32",
    tokenizer_from: str | pathlib.Path | None = None,
    generation_from: str | pathlib.Path | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a folder that `transformers` loads.

    The tensors come from the devices one at a time, one layer of a parameter; the host that writes holds those of one
    file, at most `shard_bytes`. An older export in the folder stays as it is until the new one is complete beside it.

    Where the parameters are split over several processes, all of them must call this. The first one writes, and none
    returns before the folder is there.

    Args:
        path: the folder; made if absent, its model files replaced.
        params: the parameters, NumPy arrays or jax Arrays on any devices.
        model: whose table names the tensors.
        hf_config: the config.json the model was built from.
        dtype: of the tensors: float32, float16 or bfloat16.
        tokenizer_from: a folder whose tokenizer goes along.
        generation_from: a folder whose generation_config.json goes along.
        shard_bytes: largest size of one file; beyond it, several files and an index are written.

    Raises:
        ValueError: for an unknown dtype, or parameters that are not the model's.
    """
    if dtype not in _DTYPES:
        raise named.unknown("dtype", dtype, _DTYPES)
    path, leaves, shapes = (
        pathlib.Path(path),
        named.flatten(params),
        named.flatten(jax.eval_shape(model.init, jax.random.key(0))),
    )
    if wrong := [
        k for k in {**leaves, **shapes} if k not in leaves or k not in shapes or leaves[k].shape != shapes[k].shape
    ]:
        raise ValueError(f"parameters that are not the model's: {_list(wrong)}; export with the model they belong to.")
    several = any(map(_is_shared, leaves.values()))
    writer, part = not several or jax.process_index() == 0, path / ".part"
    shards = _shards(model, shapes, _DTYPES[dtype].itemsize, shard_bytes)
    if writer:
        shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
        part.mkdir(parents=True)
    try:
        for file, shard in shards.items():
            tensors = {}
            for name, (param, layer) in shard.items():
                tensor = _tensor(leaves[param], layer)
                if writer:
                    tensors[name] = np.ascontiguousarray(tensor, _DTYPES[dtype])
            if writer:
                save_file(tensors, part / file, metadata={"format": "pt"})
        if writer:
            total = sum(int(leaf.size) for leaf in shapes.values()) * _DTYPES[dtype].itemsize
            _write_rest(part, shards, total, dict(hf_config) | {"dtype": dtype, "torch_dtype": dtype})
            for folder, files in ((tokenizer_from, TOKENIZER), (generation_from, ("generation_config.json",))):
                for source in (pathlib.Path(folder) / name for name in files) if folder is not None else ():
                    if source.is_file():
                        shutil.copyfile(source, part / source.name)
            _replace(path, part)
    finally:
        if writer:
            shutil.rmtree(part, ignore_errors=True)
    if several:
        multihost_utils.sync_global_devices(f"{path} is there")


# ---- parameters from files -------------------------------------------------------------------------------------------

Index: TypeAlias = tuple[slice, ...]
# For each layer of a parameter, or once where it stacks none: name -> what reads a part of the tensor, for every name
# that the files have for it.
Sources: TypeAlias = list[dict[str, Any]]


def _sources(
    path: pathlib.Path, model: Model, shapes: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, Sources]:
    """Open the files and tie every parameter to their tensors, whose shapes and dtypes are checked by the headers."""
    places, files = _places(model, shapes), _files(path)
    known = {name for names in places.values() for name in names} | _ignored(model, shapes)
    missing = [" or ".join(names) for names in places.values() if not any(name in files for name in names)]
    unknown = [name for name in files if name not in known]
    if missing or unknown:
        raise ValueError(
            f"{path}: the checkpoint does not fit its config. Missing: {_list(missing)}. Unknown: {_list(unknown)}. "
            "Correct config.json, or convert the checkpoint with transformers' save_pretrained."
        )
    handles = {file: stack.enter_context(safe_open(file, framework="np")) for file in set(files.values())}
    sources: dict[str, Sources] = {}
    for (param, layer), names in places.items():
        expected = list(shapes[param].shape[0 if layer is None else 1 :])
        tensors = {name: handles[files[name]].get_slice(name) for name in names if name in files}
        for name, tensor in tensors.items():
            shape, dtype = tensor.get_shape(), tensor.get_dtype()
            if shape != expected or dtype not in _STORED:
                raise ValueError(
                    f"{path}: {name} is {dtype}{shape}; expected {expected} in {', '.join(_STORED)}. "
                    "Check that config.json belongs to the checkpoint."
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


def _read(path: pathlib.Path, shape: tuple[int, ...], sources: Sources, index: Index) -> np.ndarray:
    """Read a part of a parameter, layer by layer."""
    part = np.empty([len(range(size)[cut]) for size, cut in zip(shape, index, strict=True)], np.float32)
    stacked = len(shape) > len(next(iter(sources[0].values())).get_shape())
    layers, inside = (sources[index[0]], index[1:]) if stacked else (sources, index)
    for target, tensors in zip(part if stacked else (part,), layers, strict=True):
        (first, tensor), *others = tensors.items()
        target[...] = _slice(tensor, inside)
        for name, other in others:
            if not np.array_equal(target, _slice(other, inside).astype(np.float32)):
                raise ValueError(f"{path}: {name} differs from {first}, its other name; remove one of them.")
    return part


def _slice(tensor: Any, index: Index) -> np.ndarray:
    """Read a part of one tensor of a file."""
    return tensor[index]


# ---- parameters to files ---------------------------------------------------------------------------------------------


def _is_shared(leaf: Array) -> bool:
    """Whether other processes hold parts of an array, too."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


@jax.jit
def _layer(leaf: Array, number: Array | int) -> jax.Array:
    """Take one layer of a parameter, split over the devices as the parameter is."""
    return jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)


def _tensor(leaf: Array, layer: int | None) -> np.ndarray:
    """Bring one layer of a parameter, or one that stacks none, to the host."""
    if layer is None:
        return _gather(leaf)
    return _gather(_layer(leaf, layer)) if isinstance(leaf, jax.Array) else leaf[layer]


def _gather(tensor: Array) -> np.ndarray:
    """Bring an array to the host, to all hosts where they share it."""
    return multihost_utils.process_allgather(tensor, tiled=True) if _is_shared(tensor) else np.asarray(tensor)


def _write_rest(folder: pathlib.Path, shards: dict[str, dict[str, Any]], total: int, config: dict[str, Any]) -> None:
    """Write config.json, and the index where there are several files of tensors, of `total` bytes.

    The class that it names is the model type's, or that of the config itself where a family of another package made it.
    """
    if len(shards) > 1:
        weight_map = {name: file for file, shard in shards.items() for name in shard}
        _write(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    if family := families().get(config["model_type"]):
        config = config | {"architectures": [family.ARCHITECTURES[config["model_type"]]]}
    _write(folder / "config.json", config)


def _replace(path: pathlib.Path, part: pathlib.Path) -> None:
    """Put the files of a complete export in the place of an older one.

    Without config.json a folder is refused: it goes first and comes last, so that a process which is killed in between
    leaves no mixture of both that could be loaded.
    """
    for old in [path / "config.json", *path.glob("model*.safetensors"), path / INDEX]:
        old.unlink(missing_ok=True)
    for file in sorted(part.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(path / file.name)


# ---- names of tensors ------------------------------------------------------------------------------------------------


def _places(model: Model, shapes: dict[str, Any]) -> dict[tuple[str, int | None], list[str]]:
    """(parameter, layer or None) -> the names its tensor may have, the one for exports first."""
    places: dict[tuple[str, int | None], list[str]] = {}
    for line in model.tensors:
        if line.param:
            layers = range(shapes[line.param].shape[0]) if "{}" in line.file else (None,)
            for layer in layers:
                places.setdefault((line.param, layer), []).append(line.file.format(layer))
    return places


def _ignored(model: Model, shapes: dict[str, Any]) -> set[str]:
    layers = max(shapes[line.param].shape[0] for line in model.tensors if line.param and "{}" in line.file)
    return {line.file.format(layer) for line in model.tensors if not line.param for layer in range(layers)}


def _files(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The name of each tensor -> the file that holds it."""
    if (path / INDEX).is_file():
        promised = json.loads((path / INDEX).read_text())["weight_map"]
        files = [path / name for name in sorted(set(promised.values()))]
    else:
        promised, files = None, [path / WEIGHTS]
    if absent := [str(file) for file in files if not file.is_file()]:
        raise ValueError(f"no {', '.join(absent)}; expected {WEIGHTS}, or {INDEX} with all the files it names.")
    found: dict[str, pathlib.Path] = {}
    for file in files:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():
                if name in found:
                    raise ValueError(f"{path}: {name} is in both {found[name].name} and {file.name}; remove one.")
                found[name] = file
    if promised is None:
        return found
    actual = {name: file.name for name, file in found.items()}
    if wrong := [name for name in promised | actual if promised.get(name) != actual.get(name)]:
        raise ValueError(f"{path}: {INDEX} and the files disagree about {_list(wrong)}; save the checkpoint anew.")
    return found


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


def _nested(flat: dict[str, Array]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _list(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def _write(file: pathlib.Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
