"""Folders of adapters as `peft` has them, in and out: adapter_config.json and adapter_model.safetensors.

An adapter is of LoRA, on linear maps of all layers, and may hold parameters that were trained whole, too
(`modules_to_save`), as the score head of a reward model. Every tensor of the file is used exactly once and every one
that the adapter needs is there, or a ValueError names them. Knows a model's table of tensors and its linear maps; knows
no family. What adapters compute is in `slpojax.trained.lora`.

Reference:
    Sourab Mangrulkar, Sylvain Gugger, Lysandre Debut, Younes Belkada, Sayak Paul, Benjamin Bossan, PEFT:
    State-of-the-art Parameter-Efficient Fine-Tuning methods, 2022, https://github.com/huggingface/peft.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from slpojax import folders, grid, named, wording
from slpojax.base import Array, Model, Params
from slpojax.folders import ADAPTER, ADAPTER_WEIGHTS, exports
from slpojax.grid import Grid
from slpojax.trained import Lora, pairs

_PREFIX = "base_model.model."
_SIDES = {".lora_A.weight": pairs.A, ".lora_B.weight": pairs.B}
_ENDS = {side: end for end, side in _SIDES.items()}
# What peft calls the kinds of models, by whether they have a score head -> what that is in words.
_TASKS = {False: ("CAUSAL_LM", "an adapter of a causal language model"), True: ("SEQ_CLS", "one of a reward model")}
_MERGE = "merge it with peft (merge_and_unload, then save_pretrained), and give the merged folder"
# What else peft's LoRA can do, and the values with which it does not.
_OFF: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    **dict.fromkeys(("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out"), (False, None)),
    **dict.fromkeys(("alpha_pattern", "rank_pattern"), ({}, None)),
    **dict.fromkeys(("layers_to_transform", "layer_replication", "target_parameters"), (None, [])),
    **dict.fromkeys(("trainable_token_indices", "alora_invocation_tokens", "arrow_config"), (None, {}, [])),
}
# First values for which peft changes the base's weights, too: the adapter alone is not what was trained.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Adapter(NamedTuple):
    """What a folder holds.

    Attributes:
        file: of the tensors.
        lora: rank and scale.
        adapted: paths of the linear maps that it stands beside.
        whole: paths of the parameters that it holds whole.
        tensors: path of each parameter that it fills -> the tensor of every layer, or the one where it stacks none.
        shapes: likewise -> its shape.
    """

    file: pathlib.Path
    lora: Lora
    adapted: tuple[str, ...]
    whole: tuple[str, ...]
    tensors: Mapping[str, list[str]]
    shapes: Mapping[str, tuple[int, ...]]


def is_one(folder: pathlib.Path | None) -> bool:
    """Tell whether a folder holds an adapter, and no model."""
    if folder is None or not (folder / ADAPTER).is_file():
        return False
    return not ((folder / folders.WEIGHTS).is_file() or (folder / folders.INDEX).is_file())


def base_of(folder: pathlib.Path, key: str) -> pathlib.Path:
    """Return the folder of the model that an adapter belongs to; where it is a hub's name, it is downloaded.

    A folder that holds no adapter is its own.

    Args:
        folder: of an adapter, or of a model.
        key: of the configuration, which gave it, for the error.

    Raises:
        ValueError: adapter_config.json names none, or one that is not there.
    """
    if not is_one(folder):
        return folder
    name = folders.read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{folder / ADAPTER}: base_model_name_or_path names no model; write its folder there")
    try:
        base = folders.resolve(name, key=key)
    except ValueError as error:
        raise ValueError(
            f"config.{key}={str(folder)!r} is an adapter of {wording.shown(name)}, which is not there; write the "
            f"model's folder into base_model_name_or_path of {folder / ADAPTER}"
        ) from error
    if is_one(base):
        raise ValueError(f"{folder / ADAPTER}: its base {base} is an adapter itself; {_MERGE}")
    return base


def tokenizer_of(folder: pathlib.Path, key: str) -> pathlib.Path:
    """Return the folder of the tokenizer of a model or an adapter, which may have one of its own or its model's.

    Args:
        folder: of either.
        key: of the configuration, which gave it.
    """
    return folder if (folder / "tokenizer.json").is_file() else base_of(folder, key)


def digest(folder: pathlib.Path) -> str:
    """Return the SHA-256 of what an adapter's folder holds, wherever its model lies."""
    config = folders.read_json(folder / ADAPTER) | {"base_model_name_or_path": ""}
    said = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    said.update((folder / ADAPTER_WEIGHTS).read_bytes())
    return said.hexdigest()


def read(folder: pathlib.Path, model: Model) -> Adapter:
    """Return what a folder of peft's holds, checked against a model by the headers.

    Args:
        folder: of the adapter.
        model: that it belongs to.

    Raises:
        ValueError: it is no LoRA, or one of another kind than is implemented here, or it does not fit the model.
    """
    config, file = folders.read_json(folder / ADAPTER), folder / ADAPTER_WEIGHTS
    lora = _lora(folder / ADAPTER, config, *_TASKS[model.score is not None])
    if not file.is_file():
        raise ValueError(f"{folder}: no {ADAPTER_WEIGHTS} beside {ADAPTER}; save the adapter with safe_serialization")
    shapes = named.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    places = _places(model, shapes)
    tensors: dict[str, dict[int, str]] = {}
    found: dict[str, tuple[int, ...]] = {}
    unknown, wrong = [], []
    with folders.open_tensors(file) as handle:
        for name in handle.keys():
            path, layer = _place(name, places, model.linear)
            if not path:
                unknown.append(name)
                continue
            tensors.setdefault(path, {})[layer] = name
            header = handle.get_slice(name)
            expected, shape = _expected(path, shapes, lora), tuple(header.get_shape())
            found[path] = expected
            if shape != expected[len(expected) - len(shape) :] or header.get_dtype() not in exports.STORED:
                wrong.append(f"{name} is {header.get_dtype()}{list(shape)}, expected {list(expected[-len(shape) :])}")
    adapted = tuple(path for path in model.linear if f"{path}/{pairs.A}" in tensors or f"{path}/{pairs.B}" in tensors)
    missing = [f"{path}/{name}" for path in adapted for name in (pairs.A, pairs.B) if f"{path}/{name}" not in tensors]
    missing += [path for path, of in tensors.items() if len(of) < (found[path][0] if path.startswith("layers/") else 1)]
    if unknown or wrong or missing or not adapted:
        raise ValueError(
            f"{folder} is an adapter of another model than config.json describes: of tensors that it does not know "
            f"{folders.listed(unknown)}; of another shape {folders.listed(wrong)}; not of all layers, or without their "
            f"other half {folders.listed(missing)}. Give the model that it was trained beside, or its own adapter"
        )
    whole = tuple(path for path in shapes if path in tensors)
    ordered = {path: [of[layer] for layer in sorted(of)] for path, of in tensors.items()}
    return Adapter(file, lora, adapted, whole, ordered, found)


def load(adapter: Adapter, model: Model, devices: Grid | None) -> dict[str, Array]:
    """Return an adapter's parameters by path, float32: the pairs, and what it holds whole.

    Args:
        adapter: from `read`.
        model: whose rules say how they are split.
        devices: that get them; None leaves them on this host.
    """
    leaves: dict[str, Any] = {}
    with folders.open_tensors(adapter.file) as handle:
        for path, names in adapter.tensors.items():
            arrays = [np.asarray(handle.get_tensor(name), np.float32) for name in names]
            leaves[path] = np.stack(arrays) if len(adapter.shapes[path]) > arrays[0].ndim else arrays[0]
    if devices is None:
        return leaves
    where = named.flatten(grid.tree(devices, model.sharding, named.nested(leaves))[0])
    return {path: grid.put(leaf, where[path]) for path, leaf in leaves.items()}


def load_policy(
    folder: pathlib.Path, model: Model, devices: Grid | None, read_model: Callable[..., Params], *, key: str
) -> Params:
    """Return the parameters of a folder: a model's, or those of an adapter's model and the adapter's beside them.

    Args:
        folder: of a model or an adapter.
        model: whose they are.
        devices: that get them; None leaves them on this host.
        read_model: reads the folder of a model, as `hf.load` does.
        key: of the configuration, which gave the folder.

    Raises:
        ValueError: the adapter, or its model, is not as it should be.
    """
    if not is_one(folder):
        return read_model(folder, model, devices)
    adapter = read(folder, model)
    held, base = load(adapter, model, devices), base_of(folder, key)
    leaves = named.flatten(read_model(base, model, devices, given={path: held[path] for path in adapter.whole}))
    scales = pairs.scales(adapter.lora, {path: leaves[f"{path}/weight"] for path in adapter.adapted})
    if devices is not None:
        scales = {path: grid.put(np.asarray(scale), devices.everywhere) for path, scale in scales.items()}
    return named.nested(leaves | held | scales)


def require_same(adapter: Adapter, lora: Lora, adapted: Collection[str], whole: Collection[str]) -> None:
    """Refuse an adapter that is not the one which a configuration trains.

    Args:
        adapter: from `read`.
        lora: rank and scale that the configuration asks for.
        adapted: paths of the linear maps that it adapts.
        whole: paths of the parameters that it trains whole.

    Raises:
        ValueError: they differ; names the key and what the adapter has.
    """
    folder, theirs = adapter.file.parent, adapter.lora
    for key, ours, value in (
        ("rank", lora.rank, theirs.rank),
        ("alpha", lora.alpha, theirs.alpha),
        ("rank_stabilized", lora.rank_stabilized, theirs.rank_stabilized),
    ):
        if ours != value:
            raise ValueError(
                f"config.lora.{key}={ours:g}, but the adapter {folder} has {value:g}; set --config.lora.{key}={value!r}"
            )
    if set(adapted) != set(adapter.adapted):
        names = tuple(path.removeprefix("layers/") for path in adapter.adapted)
        raise ValueError(
            f"config.lora.targets names {wording.few(adapted)}, but the adapter {folder} stands beside "
            f"{wording.few(adapter.adapted)}; set --config.lora.targets={str(names).replace(' ', '')!r}"
        )
    if set(whole) != set(adapter.whole):
        raise ValueError(
            f"config.lora.beside trains {wording.few(whole) or 'nothing'} whole, but the adapter {folder} holds "
            f"{wording.few(adapter.whole) or 'nothing'} whole; let config.lora.beside name that"
        )


def save(
    path: str | pathlib.Path,
    params: Params,
    model: Model,
    lora: Lora,
    *,
    whole: Collection[str] = (),
    base: str,
    dtype: str = "float32",
    beside: exports.Beside = exports.NOTHING,
) -> None:
    """Write a folder that `peft` loads beside its model.

    An older export in the folder stays as it is until the new one is complete; then all its files go. Where the
    parameters are split over several processes, all of them must call this.

    Args:
        path: the folder; made if absent.
        params: a policy's parameters, with adapters.
        model: whose table names the tensors.
        lora: rank and scale.
        whole: paths of the parameters that were trained whole; the modules that hold them go along.
        base: folder or hub name of the model.
        dtype: of the tensors: float32, float16 or bfloat16.
        beside: the tokenizer and template that go along.

    Raises:
        ValueError: for parameters that the dtype cannot hold, or a disk that takes no more.
    """
    path, leaves = pathlib.Path(path), named.flatten(params)
    files = {line.param: line.file for line in reversed(model.tensors)}  # the first of several names
    modules, tensors, saved, targets = {name.rpartition("/")[0] for name in whole}, {}, set(), []
    for param, leaf in leaves.items():
        module, _, last = param.rpartition("/")
        if param in files and module in modules:
            name, end = files[param], ""
            saved |= {name.rpartition(".")[0].format(layer) for layer in range(_count(param, leaf))}
        elif last in (pairs.A, pairs.B):
            name, end = files[f"{module}/weight"].removesuffix(".weight"), _ENDS[last]
            targets.append(name)
        else:
            continue
        for layer, part in enumerate(_layers(param, leaf)):
            key = f"{_PREFIX}{name.format(layer)}{end}"
            tensors[key] = exports.stored(key, part, dtype)
    linear = [files[f"{module}/weight"].removesuffix(".weight") for module in model.linear]
    config = {
        "peft_type": "LORA",
        "task_type": _TASKS[model.score is not None][0],
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "use_rslora": lora.rank_stabilized,
        "target_modules": sorted({_short(name, targets, linear) for name in targets}),
        "modules_to_save": sorted(saved) or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    several = any(map(exports.is_shared, leaves.values()))
    problem = ""
    if not several or jax.process_index() == 0:
        problem = exports.problem(lambda: _write(path, tensors, config, beside))
    exports.end(path, problem, several)


def _write(path: pathlib.Path, tensors: Any, config: Mapping[str, Any], beside: exports.Beside) -> None:
    part = exports.begin(path)
    save_file(tensors, part / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    exports.write_json(part / ADAPTER, config)
    exports.write_tokenizer(part, beside)
    exports.replace(path)


def _lora(file: pathlib.Path, config: Mapping[str, Any], task: str, said: str) -> Lora:
    """Return rank and scale of an adapter_config.json that means what is implemented here.

    Args:
        file: that it was read from.
        config: its content.
        task: that peft has for models of this kind.
        said: what that is in words.
    """
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type={wording.shown(config.get('peft_type'))}; expected LORA: {_MERGE}")
    if config.get("task_type") not in (None, task):
        raise ValueError(
            f"{file}: task_type={wording.shown(config['task_type'])}; expected {task}, {said}: give one, or {_MERGE}"
        )
    for key, off in _OFF.items():
        if key in config and not any(type(config[key]) is type(value) and config[key] == value for value in off):
            raise ValueError(f"{file}: {key}={wording.shown(config[key])} is not implemented here: {_MERGE}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGE_BASE):
        raise ValueError(f"{file}: init_lora_weights={wording.shown(start)} changes the model's weights, too: {_MERGE}")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        said = f"r={wording.shown(rank)}, lora_alpha={wording.shown(alpha)}"
        raise ValueError(f"{file}: {said}; expected a whole number and a number above 0")
    return Lora(rank, float(alpha), (), config.get("use_rslora") is True)


def _places(model: Model, shapes: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Return the name of each tensor of a model -> (parameter, layer; 0 where it stacks none)."""
    found: dict[str, tuple[str, int]] = {}
    for line in model.tensors:
        if line.param in shapes:
            for layer in range(_count(line.param, shapes[line.param])):
                found[line.file.format(layer)] = (line.param, layer)
    return found


def _count(path: str, leaf: Any) -> int:
    """Return how many layers a parameter, or half of an adapter, stacks; 1 where it stacks none."""
    return leaf.shape[0] if path.startswith("layers/") else 1


def _layers(path: str, leaf: Array) -> list[np.ndarray]:
    """Bring an array to the host, and return its layers; itself where it stacks none."""
    whole = exports.gather(leaf)
    return list(whole) if path.startswith("layers/") else [whole]


def _place(name: str, places: Mapping[str, tuple[str, int]], linear: Collection[str]) -> tuple[str, int]:
    """Return the parameter that a tensor of an adapter fills, and of which layer; "" where it is none."""
    inner = name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else ""
    for end, side in _SIDES.items():
        if inner.endswith(end):
            param, layer = places.get(f"{inner.removesuffix(end)}.weight", ("", 0))
            module = param.removesuffix("/weight")
            return (f"{module}/{side}", layer) if module in linear else ("", 0)
    return places.get(inner, ("", 0))


def _expected(path: str, shapes: Mapping[str, Any], lora: Lora) -> tuple[int, ...]:
    """Return the shape of a parameter, or of an adapter's half."""
    module, _, last = path.rpartition("/")
    if last in (pairs.A, pairs.B):
        return pairs.sizes(lora, {module: shapes[f"{module}/weight"]})[path]
    return tuple(shapes[path].shape)


def _short(name: str, targets: Collection[str], linear: Collection[str]) -> str:
    """Return the shortest end of a linear map's name that no other one has which is no target."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if "{}" not in end and not any(other.endswith(f".{end}") for other in linear if other not in targets):
            return end
    return name
