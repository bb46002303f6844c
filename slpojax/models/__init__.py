"""Models by the `model_type` of their config.json.

Knows how a family module becomes a `base.Model`; knows no objective. A family module has `ARCHITECTURES`
(model type -> the class that an export names), `Config` (with `from_hf`), `Block`, `NORM` and `TENSORS`, the table that
ties each parameter to its sharding and to the tensor of a checkpoint; everything else is shared.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from slpojax import base, grid
from slpojax.models import gpt_neox, llama
from slpojax.models.attention import Attend, Cache, empty_cache, whole
from slpojax.models.kernels import gpu, tpu
from slpojax.models.layers import REMATS, Decoder
from slpojax.models.tiles import blocks

_FAMILIES = {model_type: family for family in (gpt_neox, llama) for model_type in family.ARCHITECTURES}
ARCHITECTURES = gpt_neox.ARCHITECTURES | llama.ARCHITECTURES
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ATTENTIONS: dict[str, Attend] = {"blocks": blocks, "gpu": gpu, "tpu": tpu, "whole": whole}


def build(
    hf_config: Mapping[str, Any],
    *,
    dtype: str = "float32",
    remat: str = "none",
    attention: str | Attend = "blocks",
    max_length: int | None = None,
    mesh: Mesh | None = None,
) -> base.Model:
    """The model that a config.json describes, as pure functions and two tables.

    Args:
        hf_config: the content of config.json.
        dtype: of the computation, float32 or bfloat16; parameters are float32 and cast on use.
        remat: what the backward pass recomputes, from nothing to all of a layer: none, dots, layer, offload; see
            `layers.REMATS`.
        attention: the implementation, all with the same numbers: blocks (any device), gpu (cuDNN, bfloat16 only), tpu
            (splash attention), whole (quadratic memory; the one to differentiate forward), or a function like
            `attention.whole`.
        max_length: longest sequence of the run. Only two options of a config look at it: dynamic rope scaling (see
            `rotary.frequencies`) and sliding windows, which are refused where they would matter. None means
            `max_position_embeddings`.
        mesh: over which the rows will be split; None for one device.

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
    model_type = hf_config.get("model_type")
    if model_type not in _FAMILIES:
        near = difflib.get_close_matches(str(model_type), _FAMILIES)
        raise ValueError(
            f"config.json: model_type={model_type!r} is not known; expected one of {', '.join(_FAMILIES)}"
            + (f"; the nearest: {', '.join(near)}." if near else ".")
        )
    names: dict[str, tuple[Any, Mapping[str, Any]]] = {
        "dtype": (dtype, _DTYPES),
        "remat": (remat, REMATS),
        "attention": (attention, ATTENTIONS),
    }
    for name, (value, allowed) in names.items():
        if value not in allowed and not callable(value):
            raise ValueError(f"model.{name}={value!r} is not known; expected one of {', '.join(allowed)}.")
    if attention == "gpu" and dtype != "bfloat16":
        raise ValueError(
            f"model.attention='gpu' is cuDNN's, which has no {dtype}; set model.dtype='bfloat16', or "
            "model.attention='blocks'."
        )
    if remat == "offload" and mesh is not None and mesh.size > 1 and jax.__version_info__ < (0, 11):
        raise ValueError(
            f"model.remat='offload' on {mesh.size} devices takes JAX 0.11, which takes Python 3.12; this is JAX "
            f"{jax.__version__}. Set model.remat='layer'."
        )
    attend = ATTENTIONS[attention] if isinstance(attention, str) else attention
    if attention == "tpu":
        attend = partial(attend, mesh=mesh)
    family: Any = _FAMILIES[model_type]
    config = family.Config.from_hf(hf_config, max_length)
    module = Decoder(family.Block, family.NORM, config, _DTYPES[dtype], attend, remat, _pin(mesh))

    def init(key: base.Key) -> base.Params:
        one = jnp.ones((1, 1), jnp.int32)
        return module.init(key, base.Rows(one, one, one, one))["params"]

    def apply(params: base.Params, rows: base.Rows, cache: Cache | None = None) -> tuple[base.Array, Cache | None]:
        return module.apply({"params": params}, rows, cache)[:2]

    def layers(params: base.Params, rows: base.Rows, read: Callable[[base.Array], Any]) -> tuple[base.Array, Any]:
        hidden, _, found = module.apply({"params": params}, rows, None, read)
        return hidden, found

    def unembed(params: base.Params) -> base.Array:
        return params["embed" if config.tied else "head"]["weight"].T

    def cache_of(rows: int, length: int) -> Cache:
        return empty_cache(config.layers, rows, length, config.kv_heads, config.head_dim, _DTYPES[dtype])

    tensors = _tensors(family.TENSORS, init, config.tied)
    rules = tuple((f"^{re.escape(t.param)}$", t.spec) for t in tensors if t.param)
    return base.Model(init, apply, layers, unembed, cache_of, rules, tensors)


def _pin(mesh: Mesh | None) -> Callable[[base.Array], base.Array]:
    """Return what keeps arrays split by rows, where the devices divide them."""
    if mesh is None or mesh.size == 1:
        return lambda x: x
    where, devices = grid.split_rows(mesh), grid.batch_devices(mesh)
    return lambda x: x if x.shape[0] % devices else jax.lax.with_sharding_constraint(x, where)


def _tensors(table: tuple[Any, ...], init: Any, tied: bool) -> tuple[Any, ...]:
    """The lines of a family's table that this config has; a tied head is another name of the embedding."""
    if tied:
        table = tuple(t._replace(param="embed/weight") if t.param == "head/weight" else t for t in table)
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init, jax.random.key(0)))
    paths = {"/".join(key.key for key in path) for path, _ in leaves} | {""}
    return tuple(t for t in table if t.param in paths)
