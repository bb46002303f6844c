"""Models by the `model_type` of their config.json.

Knows how a family module becomes a `base.Model`; knows no objective. A family module has `ARCHITECTURES`
(model type -> the class that an export names), `Config` (with `from_hf`), `Block`, `NORM` and `TENSORS`, the table that
ties each parameter to its sharding and to the tensor of a checkpoint; everything else is shared. Every such module of
this package is found by its model types, one of another package by its name.
"""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from slpojax import base, named
from slpojax.grid import Grid
from slpojax.models import kernels, tiles
from slpojax.models.attention import Attend, Cache, dense, empty_cache
from slpojax.models.layers import REMATS, Decoder

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ATTENTIONS: dict[str, Attend] = {
    "tiles": tiles.tiles,
    "cudnn": kernels.cudnn,
    "splash": kernels.splash,
    "dense": dense,
}


_PARTS = ("ARCHITECTURES", "Config", "Block", "NORM", "TENSORS")


@cache
def families() -> dict[str, ModuleType]:
    """Return the family modules of this package by the model types that they know."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {model_type: module for module in modules for model_type in getattr(module, "ARCHITECTURES", ())}


def find_family(model_type: str, name: str = "") -> Any:
    """Return the module that knows a model type.

    Args:
        model_type: as config.json has it.
        name: of the module, package and all, where it is none of this package's; "" searches these.

    Raises:
        ValueError: no module knows it.
    """
    if not name:
        known = families()
        if model_type not in known:
            also = "those of another family, by model.family=package.module"
            raise named.unknown("model_type of config.json", model_type[:80], known, also=also)
        return known[model_type]
    family = named.find_module("model.family", name, __name__, having=_PARTS)
    if model_type not in family.ARCHITECTURES:
        raise ValueError(
            f"model.family={name!r} does not know model_type={model_type[:80]!r} of config.json; it knows "
            f"{', '.join(family.ARCHITECTURES)}."
        )
    return family


def build(
    hf_config: Mapping[str, Any],
    *,
    dtype: str = "float32",
    remat: str = "none",
    attention: str | Attend = "tiles",
    max_length: int | None = None,
    grid: Grid | None = None,
    family: str = "",
) -> base.Model:
    """The model that a config.json describes, as pure functions and two tables.

    Args:
        hf_config: the content of config.json.
        dtype: of the computation, float32 or bfloat16; parameters are float32 and cast on use.
        remat: what the backward pass recomputes, from nothing to all of a layer: none, dots, layer, or offload, which
            keeps the input of each layer in the host's memory.
        attention: the kernel, all with the same numbers: tiles (any device), cudnn (GPUs, bfloat16 only), splash
            (TPUs), dense (quadratic memory; the one to differentiate forward), or a function (query, key, value,
            reader, read) like `attention.dense`.
        max_length: longest sequence of the run. Only two options of a config look at it: dynamic rope scaling (see
            `rotary.frequencies`) and sliding windows, which are refused where they would matter. None means
            `max_position_embeddings`.
        grid: over whose devices the rows will be split; None for one device.
        family: the module of a family outside of this package; "" finds one of the package by its model type.

    Returns:
        The model.

    Raises:
        ValueError: for a model type, dtype, remat, attention or config key that is not supported.

    Example:
        >>> config = {"model_type": "llama", "vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 2,
        ...           "num_attention_heads": 2, "intermediate_size": 12}
        >>> sorted(jax.eval_shape(build(config).init, jax.random.key(0)))
        ['embed', 'final_norm', 'head', 'layers']
    """
    module = find_family(str(hf_config.get("model_type", "")), family)
    _check(dtype, remat, attention, grid)
    attend = ATTENTIONS[attention] if isinstance(attention, str) else attention
    if attention == "splash":
        attend = partial(attend, grid=grid)
    config = module.Config.from_hf(hf_config, max_length)
    of_layer = {
        t.param.removeprefix("layers/"): PartitionSpec(*t.spec[1:]) for t in module.TENSORS if "layers/" in t.param
    }
    specs = tuple(of_layer.items())
    decoder = Decoder(module.Block, module.NORM, config, _DTYPES[dtype], attend, remat, grid, specs)

    def init(key: base.Key) -> base.Params:
        one = jnp.ones((1, 1), jnp.int32)
        return decoder.init(key, base.Rows(one, one, one, one))["params"]

    def apply(params: base.Params, rows: base.Rows, cache: Cache | None = None) -> tuple[base.Array, Cache | None]:
        return decoder.apply({"params": params}, rows, cache)[:2]

    def layers(params: base.Params, rows: base.Rows, read: Callable[[base.Array], Any]) -> tuple[base.Array, Any]:
        hidden, _, readings = decoder.apply({"params": params}, rows, None, read)
        return hidden, readings

    def unembed(params: base.Params) -> base.Array:
        return params["embed" if config.tied else "head"]["weight"].T

    def cache_of(rows: int, length: int) -> Cache:
        return empty_cache(config.layers, rows, length, config.kv_heads, config.head_dim, _DTYPES[dtype])

    tensors = _tensors(module.TENSORS, init, config.tied)
    rules = tuple((f"^{re.escape(t.param)}$", t.spec) for t in tensors if t.param)
    return base.Model(init, apply, layers, unembed, cache_of, rules, tensors)


def vocabulary(hf_config: Mapping[str, Any], *, max_length: int | None = None, family: str = "") -> int:
    """Return how many words the vocabulary of a config.json's model has; arguments as in `build`."""
    module = find_family(str(hf_config.get("model_type", "")), family)
    return module.Config.from_hf(hf_config, max_length).vocabulary


def differences(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    *,
    max_length: int | None = None,
    family: tuple[str, str] = ("", ""),
) -> list[str]:
    """Return in which words of the families' `Config` two config.json mean different functions of their parameters.

    Args:
        one: the content of a config.json.
        other: that of another.
        max_length: as in `build`.
        family: as in `build`, of each.

    Example:
        >>> config = {"model_type": "llama", "vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 2,
        ...           "num_attention_heads": 2, "intermediate_size": 12}
        >>> differences(config, config | {"torch_dtype": "bfloat16"}), differences(config, config | {"rope_theta": 5e5})
        ([], ['frequencies'])
    """
    modules = [find_family(str(c.get("model_type", "")), name) for c, name in zip((one, other), family, strict=True)]
    a, b = (module.Config.from_hf(c, max_length) for module, c in zip(modules, (one, other), strict=True))
    if modules[0] is not modules[1] or not dataclasses.is_dataclass(a) or type(a) is not type(b):
        return [] if modules[0] is modules[1] and a == b else ["model_type"]
    names = [field.name for field in dataclasses.fields(a) if field.name != "scale"]  # that of random weights
    return [name for name in names if getattr(a, name) != getattr(b, name)]


def _check(dtype: str, remat: str, attention: str | Attend, grid: Grid | None) -> None:
    """Refuse options that there are not, and those that do not go together."""
    for name, value, allowed in (
        ("dtype", dtype, _DTYPES),
        ("remat", remat, REMATS),
        ("attention", attention, ATTENTIONS),
    ):
        if value not in allowed and not callable(value):
            raise named.unknown(f"model.{name}", str(value), allowed)
    if attention == "cudnn" and dtype != "bfloat16":
        raise ValueError(
            f"model.attention='cudnn' has no {dtype}; set model.dtype='bfloat16', or model.attention='tiles'."
        )
    if remat == "offload" and grid is not None and grid.mesh.size > 1 and jax.__version_info__ < (0, 11):
        raise ValueError(
            f"model.remat='offload' on {grid.mesh.size} devices takes JAX 0.11, which takes Python 3.12; this is JAX "
            f"{jax.__version__}. Set model.remat='layer'."
        )


def _tensors(table: tuple[Any, ...], init: Any, tied: bool) -> tuple[Any, ...]:
    """The lines of a family's table that this config has; a tied head is another name of the embedding."""
    if tied:
        table = tuple(t._replace(param="embed/weight") if t.param == "head/weight" else t for t in table)
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init, jax.random.key(0)))
    paths = {"/".join(key.key for key in path) for path, _ in leaves} | {""}
    return tuple(t for t in table if t.param in paths)
