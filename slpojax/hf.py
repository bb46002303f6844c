"""Hugging Face folders in and out: config.json, safetensors, tokenizer files.

Knows files and a model's table of tensors (`Model.tensors`: lines with `param`, `file`, `spec`); knows no family. Every
tensor of a checkpoint is used exactly once and every parameter filled exactly once, or a ValueError names them.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import safe_open
from safetensors.numpy import save_file

from slpojax import named
from slpojax.base import Model, Params
from slpojax.models import ARCHITECTURES

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
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


def load(path: str | pathlib.Path, model: Model) -> dict[str, Any]:
    """Read a checkpoint's tensors into parameters, one tensor at a time.

    Args:
        path: a folder with model.safetensors, or with model.safetensors.index.json and the files it names.
        model: whose parameters to fill.

    Returns:
        The parameters, as float32 NumPy arrays; float16 and bfloat16 tensors are widened.

    Raises:
        ValueError: naming tensors that are missing, unknown, contradictory or of another shape or dtype.
    """
    path = pathlib.Path(path)
    shapes = _flat(jax.eval_shape(model.init, jax.random.key(0)))
    places, files = _places(model, shapes), _files(path)
    known = {name for names in places.values() for name in names} | _ignored(model, shapes)
    missing = [" or ".join(names) for names in places.values() if not any(name in files for name in names)]
    unknown = [name for name in files if name not in known]
    if missing or unknown:
        raise ValueError(
            f"{path}: the checkpoint does not fit its config. Missing: {_list(missing)}. Unknown: {_list(unknown)}. "
            "Correct config.json, or convert the checkpoint with transformers' save_pretrained."
        )
    params = {name: np.empty(leaf.shape, np.float32) for name, leaf in shapes.items()}
    with contextlib.ExitStack() as stack:
        handles = {file: stack.enter_context(safe_open(file, framework="np")) for file in set(files.values())}
        for (param, layer), names in places.items():
            target = params[param] if layer is None else params[param][layer]
            present = [name for name in names if name in files]
            for name in present:
                tensor = handles[files[name]].get_tensor(name)
                if tensor.shape != target.shape or tensor.dtype not in _DTYPES.values():
                    raise ValueError(
                        f"{path}: {name} is {tensor.dtype}{list(tensor.shape)}; expected {list(target.shape)} in "
                        f"{', '.join(_DTYPES)}. Check that config.json belongs to the checkpoint."
                    )
                if name != present[0] and not np.array_equal(target, tensor.astype(np.float32)):
                    raise ValueError(f"{path}: {name} differs from {present[0]}, its other name; remove one of them.")
                target[...] = tensor
    return _nested(params)


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

    Args:
        path: the folder; made if absent, its model files replaced.
        params: the parameters.
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
        raise ValueError(f"dtype={dtype!r} is not known; expected one of {', '.join(_DTYPES)}.")
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for old in [*path.glob("model*.safetensors"), *path.glob(INDEX)]:
        old.unlink()
    given, shapes = _flat(params), _flat(jax.eval_shape(model.init, jax.random.key(0)))
    if wrong := [
        k for k in {**given, **shapes} if k not in given or k not in shapes or given[k].shape != shapes[k].shape
    ]:
        raise ValueError(f"parameters that are not the model's: {_list(wrong)}; export with the model they belong to.")
    shards = _shards(model, shapes, _DTYPES[dtype].itemsize, shard_bytes)
    width = len(shards)
    names = [WEIGHTS] if width == 1 else [f"model-{i + 1:05d}-of-{width:05d}.safetensors" for i in range(width)]
    for file, shard in zip(names, shards, strict=True):
        tensors = {
            name: np.ascontiguousarray(
                np.asarray(given[param] if layer is None else given[param][layer]), _DTYPES[dtype]
            )
            for name, (param, layer) in shard.items()
        }
        save_file(tensors, path / file, metadata={"format": "pt"})
    if width > 1:
        total = sum(int(leaf.size) for leaf in shapes.values()) * _DTYPES[dtype].itemsize
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        _write(path / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    config = dict(hf_config) | {"dtype": dtype, "torch_dtype": dtype}
    config["architectures"] = [ARCHITECTURES[hf_config["model_type"]]]
    _write(path / "config.json", config)
    companions = ((tokenizer_from, TOKENIZER), (generation_from, ("generation_config.json",)))
    for folder, files in companions:
        for source in (pathlib.Path(folder) / file for file in files) if folder is not None else ():
            if source.is_file() and source.resolve() != (path / source.name).resolve():
                shutil.copyfile(source, path / source.name)


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


def _shards(model: Model, shapes: dict[str, Any], itemsize: int, limit: int) -> list[dict[str, tuple[str, int | None]]]:
    """The tensors' names -> their places, cut into files of at most `limit` bytes (or one tensor)."""
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
    return shards


def _flat(tree: Params) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
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
