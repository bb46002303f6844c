"""What every program prepares, made of a configuration.

Devices, the model's folder and its functions, the tokenizer, what of the policy is trained, and the streams of random
keys. Knows a configuration, and no data, no objective and no step.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from slpojax import (
    adapters,
    data,
    folders,
    grid,
    hf,
    hosts,
    models,
    places,
    quantised,
    resuming,
    trained,
)
from slpojax.base import Key, Model, named_key
from slpojax.data import templates
from slpojax.grid import Grid
from slpojax.settings import Config

# Keys whose paths may lie in a bucket, and those whose may not.
_ANYWHERE = (
    *("compiled", "model.path", "data.tokenizer", "data.path", "data.eval_path"),
    *("reference.path", "reference.previous", "reference.cache"),
)
_HERE = ("data.cache", "data.samples")

STEPS = ("best", "newest")  # words for checkpoints of a run


class Keys(NamedTuple):
    """Streams of random keys, split once from the seed and used for one thing each.

    Attributes:
        init: parameters, where the model's are drawn.
        readers: parameters of readers, which stand beside the policy's.
        step: what an objective or a selector draws in a step; every step folds its number in.
        sample: responses.
        measure: what an objective draws in an evaluation; the same at every one, so that they compare.
        judge: what judges draw.
        adapters: first values of adapters.
    """

    init: Key
    readers: Key
    step: Key
    sample: Key
    measure: Key
    judge: Key
    adapters: Key


class Bench(NamedTuple):
    """What every program works with.

    Attributes:
        grid: the devices.
        folder: of the model; None where only its config.json's content is known.
        hf_config: the content of its config.json.
        model: the policy's, and those frozen ones' that are like it.
        tokenizer: that makes the tokens.
        tokenizer_folder: where it lies.
        keys: streams of random keys.
        dtype: of an export's weights.
        beside: what an export holds beside config.json and weights, as it was found at the start.
        plan: what of the policy is trained.
        adapter: that the policy starts from; None where it starts from the model of `folder` alone.
        merged: whether an export of adapters holds the model's weights with them added; else it is an adapter's folder.
        base: what an adapter's folder names its model by: a folder, or a name on the hub.
    """

    grid: Grid
    folder: pathlib.Path | None
    hf_config: dict[str, Any]
    model: Model
    tokenizer: data.Tokenizer | None
    tokenizer_folder: pathlib.Path | None
    keys: Keys
    dtype: str = "float32"
    beside: hf.Beside = hf.NOTHING
    plan: trained.Plan = trained.EVERYTHING
    adapter: adapters.Adapter | None = None
    merged: bool = False
    base: str = ""


def keys(seed: int) -> Keys:
    """Return the streams of a seed.

    The order of the data is drawn by the seed itself, without JAX, so that it is the same on any machine.
    """
    root = jax.random.key(seed)
    return Keys(*(named_key(root, name) for name in Keys._fields))


def make(config: Config, *, devices: list | None = None) -> Bench:
    """Prepare what a program works with; nothing is loaded but config.json and the tokenizer.

    Args:
        config: every key of slpojax/defaults.py.
        devices: of the mesh; all there are where None.

    Raises:
        ValueError: the folder, its config.json, the tokenizer or the mesh is not what the configuration says; or hosts
            have different configurations or code.
    """
    set_up_jax(config)
    if jax.process_count() > 1:
        _require_same_everywhere(config)
    mesh = grid.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=devices)
    folder = hf.resolve(config.model.path, files=folders.ALL if config.model.weights == "load" else folders.SMALL)
    adapter_folder = folder if adapters.is_one(folder) else None
    if adapter_folder is not None:
        folder = adapters.base_of(adapter_folder, "model.path")
    hf_config = hf.read_config(folder, also=folders.SCORING if config.model.head == "score" else "")
    folders.require_one_label(folder, hf_config)
    other = config.data.tokenizer
    tokenizer_folder = hf.resolve(other, key="data.tokenizer", files=folders.SMALL) if other else None
    if tokenizer_folder is None:
        tokenizer_folder = adapters.tokenizer_of(adapter_folder or folder, "model.path")
    tokenizer, own = data.load_tokenizer(str(tokenizer_folder)), config.data.chat_template
    dtype = config.export_dtype
    if dtype == "source":
        dtype = hf.stored_dtype(folder if config.model.weights == "load" else None, hf_config)
    template = templates.chat_template(tokenizer, own) if own else None
    generation, policy = folder / folders.GENERATION, model(config, hf_config, mesh)
    what, adapter = plan(config, policy), None
    if adapter_folder is not None:
        adapter = adapters.read(adapter_folder, policy)
        if what.lora:
            adapters.require_same(adapter, what.lora, what.adapted, what.layers)
    _require_trained_head(config, policy, hf_config, what, adapter)
    return Bench(
        mesh,
        folder,
        hf_config,
        policy,
        tokenizer,
        tokenizer_folder,
        keys(config.seed),
        dtype,
        hf.Beside(tokenizer_folder, folders.read_json(generation) if generation.is_file() else {}, template),
        what,
        adapter,
        config.export_merged,
        str(folder.absolute()) if adapter or pathlib.Path(config.model.path).is_dir() else config.model.path,
    )


def _require_same_everywhere(config: Config) -> None:
    """Refuse hosts that would do different things, before any of them waits for the others."""
    changes = {f"config.{key}": json.dumps(value) for key, value in resuming.changes(config.to_dict()).items()}
    hosts.require_same({"code": hosts.code(), "version of JAX": jax.__version__, **changes})


def _require_trained_head(
    config: Config, policy: Model, hf_config: dict[str, Any], what: trained.Plan, adapter: adapters.Adapter | None
) -> None:
    """Refuse a score head that is drawn, as no folder holds it, and then frozen: its rewards would be noise for ever.

    Raises:
        ValueError: names the key that trains it.
    """
    held = folders.labels(hf_config) or (adapter is not None and "head/weight" in adapter.whole)
    if policy.score is None or held or config.model.weights != "load" or what.all or "head/weight" in what.layers:
        return
    key = "lora.beside" if what.lora else "train.what"
    value = config.lora.beside if what.lora else config.train.what
    trains = "|".join(filter(None, (value, "^head/")))
    raise ValueError(
        f"config.{key}={value!r} leaves the score head frozen, and it is drawn, as config.model.path="
        f"{config.model.path!r} has none (model.head=score); set --config.{key}={trains!r}"
    )


def of_model(config: Config, hf_config: dict[str, Any], devices: Grid) -> Bench:
    """Return the bench of a model that is known by its config.json alone, on devices that need not be there.

    Args:
        config: every key of slpojax/defaults.py; `model.path`, `data.tokenizer` and the mesh are not looked at.
        hf_config: the content of config.json.
        devices: the grid.
    """
    policy, own = model(config, hf_config, devices), keys(config.seed)
    return Bench(devices, None, hf_config, policy, None, None, own, plan=plan(config, policy))


def plan(config: Config, policy: Model) -> trained.Plan:
    """Return what of a model is trained, as a configuration says.

    Raises:
        ValueError: an expression finds no parameter, or a target of adapters names no linear map.
    """
    what, c = config.train.what, config.lora
    if what == trained.ALL:
        return trained.EVERYTHING
    lora = trained.Lora(c.rank, c.alpha, tuple(c.targets), c.rank_stabilized)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    found = trained.plan(what, policy, shapes, lora=lora, beside=c.beside)
    if found.lora and config.export and not config.export_merged:
        tied = "embed/weight" in found.layers and "head/weight" not in found.shapes
        halves = [path for path in found.layers if path.rpartition("/")[0] in found.adapted]
        if tied or halves:
            part = halves[0] if halves else "an embedding that is the head, too"
            raise ValueError(
                f"config.lora.beside={c.beside!r} trains {part}, which peft's folders do not hold beside adapters; "
                "set --config.export_merged=true, or train another part"
            )
    return found


def model(
    config: Config, hf_config: dict[str, Any], devices: Grid, *, attention: str = "", family: str | None = None
) -> Model:
    """Build the model of a config.json as a configuration computes it.

    Args:
        config: every key of slpojax/defaults.py.
        hf_config: the content of config.json.
        devices: over which rows and weights are split.
        attention: the kernel; "" for the configuration's.
        family: the module of the family; None for the configuration's.
    """
    return models.build(
        hf_config,
        dtype=config.model.dtype,
        remat=config.model.remat,
        attention=attention or config.model.attention,
        max_length=config.data.max_length,
        grid=devices,
        family=config.model.family if family is None else family,
        head=config.model.head,
    )


def refuse(config: Config) -> None:
    """Refuse URLs that are not read, what does not go with a score head, and what freezes nothing.

    Raises:
        ValueError: names the key.
    """
    if config.world and config.model.head == "score":
        raise ValueError(
            f"config.world={config.world!r} judges what the policy writes, and a reward model (model.head=score) "
            "writes nothing; give a folder and pairs (model.path, data.path), or set model.head=words"
        )
    if config.model.head == "score" and config.data.end != "template":
        raise ValueError(
            f"config.data.end={config.data.end!r} cuts what a chat template writes behind EOS, and a reward model "
            "(model.head=score) is read at the end of all that is written; set --config.data.end=template"
        )
    if config.model.head == "score" and config.data.turns != "all":
        raise ValueError(
            f"config.data.turns={config.data.turns!r} lets a part of a response count, and a reward model (model.head="
            "score) is read at the last token, whoever wrote what; set --config.data.turns=all"
        )
    if config.model.frozen_dtype != "float32" and config.train.what == trained.ALL:
        raise ValueError(
            f"config.model.frozen_dtype={config.model.frozen_dtype!r}, but config.train.what=all freezes no weight; "
            "leave it, or train a part (train.what=lora, or a regular expression)"
        )
    quantised.require_library(config.model.frozen_dtype)
    random = config.model.weights != "load"
    if config.export and config.train.what == trained.LORA and not config.export_merged and random:
        raise ValueError(
            "config.model.weights=random draws a model that no folder holds, which an adapter's folder would name; set "
            "--config.export_merged=true, or export=false"
        )
    for key in (*_ANYWHERE, *_HERE):
        group, _, leaf = key.rpartition(".")
        places.require(key, config[group][leaf] if group else config[leaf], () if key in _HERE else places.STORES)


def set_up_jax(config: Config) -> None:
    """Have JAX compute and keep compiled programs as a configuration says."""
    if config.compiled:
        jax.config.update("jax_compilation_cache_dir", str(places.absolute(config.compiled)))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the many small programs add up
        compilation_cache.reset_cache()  # JAX settles at the first program of a process whether there is a cache
    if config.model.dtype == "float32":  # TPUs and GPUs would round the operands of a float32 product
        jax.config.update("jax_default_matmul_precision", "float32")
