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
from flax import linen as nn
from jax.sharding import PartitionSpec

from slpojax import base, named, wording
from slpojax.grid import Grid
from slpojax.models import kernels, tiles
from slpojax.models.attention import Attend, Cache, Pool, dense, empty_cache, empty_pool
from slpojax.models.layers import REMATS, SPLIT_WIDTH, Decoder, Linear, Tensor

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ATTENTIONS: dict[str, Attend] = {
    "tiles": tiles.tiles,
    "cudnn": kernels.cudnn,
    "splash": kernels.splash,
    "dense": dense,
}

HEADS = ("words", "score")

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
            raise wording.unknown("model_type of config.json", model_type[:80], known, also=also)
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
    head: str = "words",
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
            `rotary.read`) and sliding windows, which are left out where no sequence fills them. None means
            `max_position_embeddings`.
        grid: over whose devices the rows will be split; None for one device.
        family: the module of a family outside of this package; "" finds one of the package by its model type.
        head: what the final hidden states are read by: words (the unembedding), or score (a linear map to one number,
            as a reward model has it, in the place of the unembedding).

    Returns:
        The model.

    Raises:
        ValueError: for a model type, dtype, remat, attention, head or config key that is not supported.

    Example:
        >>> config = {"model_type": "llama", "vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 2,
        ...           "num_attention_heads": 2, "intermediate_size": 12}
        >>> sorted(jax.eval_shape(build(config).init, jax.random.key(0)))
        ['embed', 'final_norm', 'head', 'layers']
        >>> model = build(config, head="score")
        >>> jax.eval_shape(lambda key: model.score(model.init(key)), jax.random.key(0)).shape
        (8,)
    """
    module = find_family(str(hf_config.get("model_type", "")), family)
    _check(dtype, remat, attention, head, grid)
    attend = ATTENTIONS[attention] if isinstance(attention, str) else attention
    if attention == "splash":
        attend = partial(attend, grid=grid)
    config = module.Config.from_hf(hf_config, max_length)
    of_layer = {
        t.param.removeprefix("layers/"): PartitionSpec(*t.spec[1:]) for t in module.TENSORS if "layers/" in t.param
    }
    specs = tuple(of_layer.items())
    scores, tied = head == "score", config.tied and head != "score"
    rows = 1 if scores else 0 if tied else config.vocabulary
    decoder = Decoder(module.Block, module.NORM, config, _DTYPES[dtype], attend, remat, grid, specs, rows)

    def init(key: base.Key) -> base.Params:
        one = jnp.ones((1, 1), jnp.int32)
        return decoder.init(key, base.Rows(one, one, one, one))["params"]

    def apply(params: base.Params, rows: base.Rows, cache: Cache | Pool | None = None) -> tuple[base.Array, Any]:
        return decoder.apply({"params": params}, rows, cache)[:2]

    def layers(params: base.Params, rows: base.Rows, read: Callable[[base.Array], Any]) -> tuple[base.Array, Any]:
        hidden, _, readings = decoder.apply({"params": params}, rows, None, read)
        return hidden, readings

    def unembed(params: base.Params) -> base.Array:
        if scores:
            raise ValueError(
                "a model with a score head has no log-probs: give a causal language model (model.head=words)"
            )
        return params["embed" if tied else "head"]["weight"].T

    def score(params: base.Params) -> base.Array:
        return params["head"]["weight"][0]

    def cache_of(rows: int, length: int) -> Cache:
        return empty_cache(config.layers, rows, length, config.kv_heads, config.head_dim, _DTYPES[dtype])

    def pool_of(**sizes: int) -> Pool:
        return empty_pool(config.layers, config.kv_heads, config.head_dim, _DTYPES[dtype], **sizes)

    paths, maps = _traced(init)
    tensors = _tensors(_scoring(module.TENSORS) if scores else module.TENSORS, paths, tied)
    rules = tuple((f"^{re.escape(t.param)}$", t.spec) for t in tensors if t.param)
    linear = tuple(path for path in dict.fromkeys(t.param.rpartition("/")[0] for t in tensors) if path in maps)
    rules += _rules_beside({t.param: t.spec for t in tensors}, linear)
    last = score if scores else None
    return base.Model(init, apply, layers, unembed, cache_of, pool_of, rules, tensors, last, linear, config.cap)


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
        ([], ['rope'])
    """
    modules = [find_family(str(c.get("model_type", "")), name) for c, name in zip((one, other), family, strict=True)]
    a, b = (module.Config.from_hf(c, max_length) for module, c in zip(modules, (one, other), strict=True))
    if modules[0] is not modules[1] or not dataclasses.is_dataclass(a) or type(a) is not type(b):
        return [] if modules[0] is modules[1] and a == b else ["model_type"]
    names = [field.name for field in dataclasses.fields(a) if field.name != "scale"]  # that of random weights
    return [name for name in names if getattr(a, name) != getattr(b, name)]


def _check(dtype: str, remat: str, attention: str | Attend, head: str, grid: Grid | None) -> None:
    """Refuse options that there are not, and those that do not go together."""
    for name, value, allowed in (
        ("dtype", dtype, _DTYPES),
        ("remat", remat, REMATS),
        ("attention", attention, ATTENTIONS),
        ("head", head, HEADS),
    ):
        if value not in allowed and not callable(value):
            raise wording.unknown(f"model.{name}", str(value), allowed)
    if attention == "cudnn" and dtype != "bfloat16":
        raise ValueError(
            f"model.attention='cudnn' has no {dtype}; set model.dtype='bfloat16', or model.attention='tiles'."
        )
    if remat == "offload" and grid is not None and grid.mesh.size > 1 and jax.__version_info__ < (0, 11):
        raise ValueError(
            f"model.remat='offload' on {grid.mesh.size} devices takes JAX 0.11, which takes Python 3.12; this is JAX "
            f"{jax.__version__}. Set model.remat='layer'."
        )


def _scoring(table: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A family's table with a score head in the place of the unembedding, whose tensors are skipped on import."""
    lines = [t._replace(param="") if t.param == "head/weight" else t for t in table]
    return (*lines, Tensor("head/weight", "score.weight", SPLIT_WIDTH))


def _traced(init: Callable[[base.Key], base.Params]) -> tuple[set[str], set[str]]:
    """Return the paths of a model's parameters, and those of the linear maps of its layers, whoever wrote its block."""
    linear: set[str] = set()

    def note(call: Callable[..., Any], arguments: Any, named: Any, context: Any) -> Any:
        if isinstance(context.module, Linear):
            linear.add("/".join(context.module.path))
        return call(*arguments, **named)

    with nn.intercept_methods(note):
        return set(named.flatten(jax.eval_shape(init, jax.random.key(0)))), linear


def _rules_beside(specs: Mapping[str, PartitionSpec], linear: tuple[str, ...]) -> tuple[Any, ...]:
    """Return how what stands beside weights [layers, out, in] is split: as they are, and never along a rank."""
    rules: list[tuple[str, PartitionSpec]] = []
    for path in linear:
        _, out, into = (*specs[f"{path}/weight"], None, None, None)[:3]
        sides = zip(base.ADAPTER, (PartitionSpec(None, None, into), PartitionSpec(None, out, None)), strict=False)
        rules += [(f"^{re.escape(f'{path}/{name}')}$", spec) for name, spec in sides]
        rules.append((f"^{re.escape(f'{path}/{base.NARROW}')}$", specs[f"{path}/weight"]))
    return tuple(rules)


def _tensors(table: tuple[Any, ...], paths: set[str], tied: bool) -> tuple[Any, ...]:
    """The lines of a family's table that this config has; a tied head is another name of the embedding."""
    if tied:
        table = tuple(t._replace(param="embed/weight") if t.param == "head/weight" else t for t in table)
    return tuple(t for t in table if t.param in paths | {""})
