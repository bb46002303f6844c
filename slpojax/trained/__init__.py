"""What of a policy is trained: all of it, some of its parameters, or adapters beside them.

Of a model's parameters, a nested dict, the trained ones are a subtree that the optimiser moves; the others are frozen:
no gradient is taken by them, they have no moments, and a state does not hold them. `split` takes a policy apart, and
`join` puts it together. Knows paths and arrays; knows no model family, no file and no configuration.

A parameter that stacks the layers is trained layer by layer: its trained part stacks the trained layers, in their
order, and its frozen part the others.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slpojax import named, wording
from slpojax.base import Array, Key, Model, Params
from slpojax.trained import lora as pairs
from slpojax.trained.lora import Lora

ALL, LORA = "all", "lora"
STACKED = "layers/"  # how the path of a parameter begins that stacks the layers

__all__ = [
    "ALL",
    "EVERYTHING",
    "LORA",
    "Lora",
    "Plan",
    "first",
    "join",
    "like",
    "merged",
    "pairs",
    "plan",
    "scales",
    "split",
]


class Plan(NamedTuple):
    """What of a model's parameters is trained.

    Attributes:
        shapes: path of each parameter of the model -> its shape and dtype; none where all are trained.
        layers: path of each that is trained, at least in part -> the layers that are; () where it is trained whole.
        lora: the adapters; None for none.
        adapted: paths of the linear maps that have one.
    """

    shapes: Mapping[str, Any] = {}
    layers: Mapping[str, tuple[int, ...]] = {}
    lora: Lora | None = None
    adapted: tuple[str, ...] = ()

    @property
    def all(self) -> bool:
        """Whether all parameters are trained."""
        return not self.shapes


EVERYTHING = Plan()


def plan(what: str, model: Model, shapes: Params, *, lora: Lora | None = None, beside: str = "") -> Plan:
    """Return what of a model's parameters is trained.

    Args:
        what: "all"; "lora" for adapters alone; or a regular expression that is searched in the paths of parameters,
            where those of layers have the layer's number, as `layers/3/attention/query/weight`.
        model: whose linear maps adapters may stand beside.
        shapes: like its parameters.
        lora: which adapters, where they are trained.
        beside: a regular expression, of what is trained whole beside adapters; "" for nothing.

    Raises:
        ValueError: an expression is none or is found in no path, or a target names no linear map.
    """
    if what == ALL:
        return EVERYTHING
    leaves = named.flatten(shapes)
    if what != LORA:
        return Plan(leaves, _matching("train.what", what, leaves))
    assert lora is not None
    layers = _matching("lora.beside", beside, leaves) if beside else {}
    files = {line.param: line.file for line in reversed(model.tensors)}
    linear = {path: files.get(f"{path}/weight", path).removesuffix(".weight") for path in model.linear}
    adapted = pairs.chosen(lora.targets, linear)
    if twice := [path for path in adapted if f"{path}/weight" in layers]:
        raise ValueError(
            f"config.lora.beside={beside!r} trains {wording.few(twice, 3)}, which has an adapter; name what "
            "config.lora.targets leaves out"
        )
    return Plan(leaves, layers, lora, adapted)


def _matching(key: str, pattern: str, leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the paths of parameters that an expression is found in, and which of their layers; () for all."""
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"config.{key}={pattern!r} is no regular expression ({error}); see Python's re") from error
    layers: dict[str, tuple[int, ...]] = {}
    for path, leaf in leaves.items():
        numbered = _numbered(path, leaf)
        those = tuple(number for number, name in enumerate(numbered) if found.search(name))
        if those:
            layers[path] = () if len(those) == len(numbered) else those
    if not layers:
        names = [name for path, leaf in leaves.items() for name in _numbered(path, leaf)]
        parts = dict.fromkeys(part for name in names for part in name.split("/"))
        near = wording.near(re.sub(r"[^\w/]", "", pattern), [*names, *parts]) or f" (there are {wording.few(names, 4)})"
        raise ValueError(f"config.{key}={pattern!r} is found in no parameter's path{near}; correct the expression")
    return layers


def _numbered(path: str, leaf: Any) -> list[str]:
    """Return the names that an expression is held against, one for each layer where a parameter stacks these.

    Example:
        >>> _numbered("layers/mlp/up/weight", jax.ShapeDtypeStruct((2, 5, 3), "float32"))
        ['layers/0/mlp/up/weight', 'layers/1/mlp/up/weight']
    """
    if not path.startswith(STACKED):
        return [path]
    return [f"{STACKED}{number}/{path.removeprefix(STACKED)}" for number in range(leaf.shape[0])]


def split(plan: Plan, params: Params) -> tuple[Params, Params]:
    """Return a model's parameters as (the frozen ones, the trained ones), without adapters.

    Args:
        plan: what is trained.
        params: of the model.
    """
    base: dict[str, Any] = {}
    trained: dict[str, Any] = {}
    for path, leaf in named.flatten(params).items():
        if path not in plan.layers:
            base[path] = leaf
        elif rows := plan.layers[path]:
            trained[path], base[path] = leaf[np.array(rows)], leaf[np.array(_others(plan, path))]
        else:
            trained[path] = leaf
    return named.nested(base), named.nested(trained)


def join(plan: Plan, base: Params, trained: Params) -> Params:
    """Return the parameters of a policy: those of the model, of its adapters, and of readers.

    Nothing is copied but parameters of which some layers are trained and others are not.

    Args:
        plan: what is trained.
        base: the frozen ones.
        trained: the trained ones.
    """
    if plan.all:
        return trained
    leaves = named.flatten(base)
    for path, leaf in named.flatten(trained).items():
        if rows := plan.layers.get(path):
            both = jnp.concatenate([leaves[path].astype(leaf.dtype), leaf])
            order = np.argsort([*_others(plan, path), *rows])
            leaf = both if np.array_equal(order, np.arange(len(order))) else both[order]
        leaves[path] = leaf
    return named.nested(leaves)


def _others(plan: Plan, path: str) -> list[int]:
    """Return the layers of a parameter that are frozen."""
    return [number for number in range(plan.shapes[path].shape[0]) if number not in plan.layers[path]]


def like(plan: Plan) -> Params:
    """Return the shapes of what is trained, without readers; of a plan that trains not all."""
    leaves = {
        path: jax.ShapeDtypeStruct((len(rows), *leaf.shape[1:]) if rows else leaf.shape, jnp.float32)
        for path, rows in plan.layers.items()
        for leaf in [plan.shapes[path]]
    }
    if plan.lora:
        shapes = pairs.sizes(plan.lora, _weights(plan))
        leaves |= {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    return named.nested(leaves)


def first(plan: Plan, key: Key) -> Params:
    """Draw the adapters of a plan, whose product is zero; nothing where it has none."""
    return named.nested(pairs.draw(key, pairs.sizes(plan.lora, _weights(plan))) if plan.lora else {})


def scales(plan: Plan) -> dict[str, Array]:
    """Return by path what a base holds beside a model's parameters: the scales of adapters."""
    return pairs.scales(plan.lora, _weights(plan)) if plan.lora else {}


def merged(leaves: Mapping[str, Array]) -> dict[str, Array]:
    """Return parameters by path, with the products of adapters added to their weights."""
    found = pairs.lazily_merged(leaves)
    return {path: pairs.merge(*leaf) if isinstance(leaf, pairs.Merged) else leaf for path, leaf in found.items()}


def _weights(plan: Plan) -> dict[str, Any]:
    return {path: plan.shapes[f"{path}/weight"] for path in plan.adapted}
