r"""Adapters of low rank: pairs of narrow matrices beside the weights of linear maps.

A linear map W [out, in] of every layer becomes

.. math:: W + s B A, \quad A \in R^{r \times in}, \quad B \in R^{out \times r}

with s = alpha / r, or alpha / sqrt(r). Here are their sizes, their first values, and the sum that an export of whole
weights holds; the product in a layer is `models.layers.Linear`'s. Knows paths of parameters and arrays; knows no model
family, no file and no configuration.

Reference:
    Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen, LoRA:
    Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685.
    Damjan Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, arXiv:2312.03732.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slpojax import quantised, wording
from slpojax.base import ADAPTER, Array, Float, Key, named_key

A, B, SCALE = ADAPTER  # beside the weight [layers, out, in] that they add to


class Lora(NamedTuple):
    """Which adapters there are.

    Attributes:
        rank: r, of every pair.
        alpha: the scale's numerator.
        targets: names of linear maps, as the parameters' paths or a checkpoint's tensors have them; () for all.
        rank_stabilized: whether the scale divides by the square root of the rank.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """What the product of a pair is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def chosen(targets: Sequence[str], linear: Mapping[str, str]) -> tuple[str, ...]:
    """Return the paths of the linear maps that targets name.

    Args:
        targets: the ends of names, from a part on: `query`, `attention/query`, `q_proj`, `self_attn.q_proj`; () for
            all.
        linear: path of each linear map -> its name in a checkpoint, such as `model.layers.{}.self_attn.q_proj`.

    Raises:
        ValueError: a target names none of them.

    Example:
        >>> chosen(["q_proj"], {"layers/attention/query": "model.layers.{}.self_attn.q_proj", "layers/mlp/up": "up"})
        ('layers/attention/query',)
    """
    found: set[str] = set()
    for target in targets:
        ends = {path for path, name in linear.items() if _ends(path, target, "/") or _ends(name, target, ".")}
        if not ends:
            names = dict.fromkeys(name.rpartition(end)[2] for pair in linear.items() for name, end in zip(pair, "/."))
            also = "the embedding and the head are trained whole, beside adapters, by config.lora.beside"
            raise wording.unknown("linear map in config.lora.targets", target, names, also=also)
        found |= ends
    return tuple(path for path in linear if path in found or not targets)


def _ends(name: str, end: str, separator: str) -> bool:
    return f"{separator}{name}".endswith(f"{separator}{end}")


def sizes(lora: Lora, weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the path of every array of the pairs -> its shape.

    Args:
        lora: the rank.
        weights: path of each adapted linear map -> its weight [layers, out, in], or its shape.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path, weight in weights.items():
        layers, out, into = weight.shape
        found |= {f"{path}/{A}": (layers, lora.rank, into), f"{path}/{B}": (layers, out, lora.rank)}
    return found


def draw(key: Key, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Draw first values: A uniform within 1 / sqrt(in), as PyTorch's linear maps start and peft's adapters; B zero.

    So the first policy is the model without adapters. Every A draws from a key of its own.

    Args:
        key: random.
        shapes: from `sizes`.
    """

    def one(path: str, shape: tuple[int, ...]) -> Array:
        if path.endswith(B):
            return jnp.zeros(shape)
        bound = shape[-1] ** -0.5
        return jax.random.uniform(named_key(key, path), shape, minval=-bound, maxval=bound)

    return {path: one(path, shape) for path, shape in shapes.items()}


def scales(lora: Lora, weights: Mapping[str, Any]) -> dict[str, Array]:
    """Return the path of every pair's scale -> [layers], float32; it is a part of what is frozen."""
    return {f"{path}/{SCALE}": jnp.full(weight.shape[:1], lora.scale, jnp.float32) for path, weight in weights.items()}


def of(paths: Collection[str]) -> list[str]:
    """Return the paths of the linear maps that have an adapter among the parameters of these paths."""
    return [path.removesuffix(f"/{A}") for path in paths if path.endswith(f"/{A}")]


def without(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters by path, without adapters: what they are beside is left as it is."""
    return {path: leaf for path, leaf in leaves.items() if path.rpartition("/")[2] not in ADAPTER}


@jax.jit
def merge(weight: Array, a: Array, b: Array, scale: Array) -> Float[Array, "*layers O I"]:
    """Return W + s B A in float32, of one layer or of all."""
    product = jnp.einsum("...ok,...ki->...oi", b, a, precision=jax.lax.Precision.HIGHEST)
    return weight.astype(jnp.float32) + scale.reshape(scale.shape + (1, 1)) * product


class Merged(NamedTuple):
    """A stacked weight with its adapter, summed one layer at a time, when that layer is asked for.

    Attributes:
        weight: [layers, out, in], or as codes and scales.
        a: [layers, rank, in].
        b: [layers, out, rank].
        scale: [layers].
    """

    weight: Array | quantised.Narrow
    a: Array
    b: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.weight.shape

    def layer(self, number: int) -> Float[Array, "O I"]:
        """Return W + s B A of one layer, on the weight's devices."""
        return _merged_layer(tuple(self), number)


@jax.jit
def _merged_layer(parts: tuple[Any, ...], number: Array | int) -> Array:
    weight, *pair = quantised.at(parts, number)
    return merge(weight.wide() if isinstance(weight, quantised.Narrow) else weight, *pair)


def lazily_merged(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters by path, with `Merged` or `Narrow` in the place of weights and what stands beside them."""
    found = quantised.lazily_widened(without(leaves))
    for path in of(leaves):
        found[f"{path}/weight"] = Merged(found[f"{path}/weight"], *(leaves[f"{path}/{name}"] for name in ADAPTER))
    return found
