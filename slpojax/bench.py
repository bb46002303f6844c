"""The bench: what every program prepares and none changes.

Devices, the model's folder and its functions, the tokenizer, and the streams of random keys. Knows a configuration, and
no data, no objective and no step.
"""

import pathlib
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from slpojax import data, folders, grid, hf, log, models, readers, vocabulary
from slpojax.base import Key, Model, Params, named_key
from slpojax.data import templates
from slpojax.grid import Grid
from slpojax.settings import Config

_PATHS = (
    "output",
    "compiled",
    "model.path",
    "data.tokenizer",
    "reference.path",
    "reference.previous",
    "reference.cache",
)


class Keys(NamedTuple):
    """Streams of random keys, split once from the seed and used for one thing each.

    Attributes:
        init: parameters, where the model's are drawn.
        readers: parameters of readers, which stand beside the policy's.
        step: what an objective or a selector draws in a step; every step folds its number in.
        sample: responses.
        measure: what an objective draws in an evaluation; the same at every one, so that they compare.
        judge: what judges draw.
    """

    init: Key
    readers: Key
    step: Key
    sample: Key
    measure: Key
    judge: Key


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
        ValueError: the folder, its config.json, the tokenizer or the mesh is not what the configuration says.
    """
    _set_up_jax(config)
    mesh = grid.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=devices)
    folder = hf.resolve(config.model.path, files=folders.ALL if config.model.weights == "load" else folders.SMALL)
    hf_config = hf.read_config(folder)
    other = config.data.tokenizer
    tokenizer_folder = hf.resolve(other, key="data.tokenizer", files=folders.SMALL) if other else folder
    tokenizer, own = data.load_tokenizer(str(tokenizer_folder)), config.data.chat_template
    dtype = config.export_dtype
    if dtype == "source":
        dtype = hf.stored_dtype(folder if config.model.weights == "load" else None, hf_config)
    template = templates.chat_template(tokenizer, own) if own else None
    generation = folder / folders.GENERATION
    return Bench(
        mesh,
        folder,
        hf_config,
        model(config, hf_config, mesh),
        tokenizer,
        tokenizer_folder,
        keys(config.seed),
        dtype,
        hf.Beside(tokenizer_folder, folders.read_json(generation) if generation.is_file() else {}, template),
    )


def of_model(config: Config, hf_config: dict[str, Any], devices: Grid) -> Bench:
    """Return the bench of a model that is known by its config.json alone, on devices that need not be there.

    Args:
        config: every key of slpojax/defaults.py; `model.path`, `data.tokenizer` and the mesh are not looked at.
        hf_config: the content of config.json.
        devices: the grid.
    """
    return Bench(devices, None, hf_config, model(config, hf_config, devices), None, None, keys(config.seed))


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
    )


def first_params(config: Config, bench: Bench) -> Params:
    """Load, or draw, the parameters that the policy starts from, each on its devices."""
    if config.model.weights == "load":
        assert bench.folder is not None
        return load_params(bench, bench.folder)
    return draw_params(bench)


def load_params(bench: Bench, folder: pathlib.Path, model: Model | None = None) -> Params:
    """Load a model folder's parameters, each to its devices; `model` is whose they are where not the policy's."""
    return hf.load(folder, model or bench.model, bench.grid)


def draw_params(bench: Bench) -> Params:
    """Draw parameters at random, each on its devices."""
    where, _ = grid.tree(bench.grid, bench.model.sharding, jax.eval_shape(bench.model.init, bench.keys.init))
    return jax.jit(bench.model.init, out_shardings=where)(bench.keys.init)


def export(bench: Bench, path: pathlib.Path, params: Params, examples: data.Examples) -> None:
    """Write the parameters as a folder that transformers loads, with the tokenizer and template that made the tokens.

    Args:
        bench: model and tokenizer.
        path: the folder.
        params: the policy's, on their devices; those of readers are left out.
        examples: that were trained on; generation from the folder stops at what ended their responses.
    """
    params, dtype, ends = readers.without(params), bench.dtype, vocabulary.ends(examples, bench.tokenizer)
    beside = bench.beside._replace(ends=ends)
    hf.save(path, params, bench.model, bench.hf_config, dtype=dtype, beside=beside)
    kept = "" if dtype == "float32" else ", rounded from float32 (export_dtype=float32 keeps all digits)"
    stops = (
        f"stops at id {ends[0]}" if ends else "stops where the model's folder said: no special token ended a response"
    )
    log.say(f"wrote {path}, which transformers loads: {dtype}{kept}; generation {stops}")


def refuse(config: Config) -> None:
    """Refuse paths that are not on this machine.

    Raises:
        ValueError: names the key.
    """
    for key in _PATHS:
        group, _, leaf = key.rpartition(".")
        folders.require_local(key, config[group][leaf] if group else config[leaf])


def _set_up_jax(config: Config) -> None:
    if config.compiled:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(config.compiled).absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the many small programs add up
        compilation_cache.reset_cache()  # JAX settles at the first program of a process whether there is a cache
    if config.model.dtype == "float32":  # TPUs and GPUs would round the operands of a float32 product
        jax.config.update("jax_default_matmul_precision", "float32")
