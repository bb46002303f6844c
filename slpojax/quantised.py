"""Frozen weights in eight or four bits: codes, and a scale for every block of a row.

A weight [..., out, in] becomes codes of the same shape, and scales [..., out, in / block] in float32. Of int8 and int4
the codes are whole numbers from -128 to 127 and from -8 to 7, and times the scale (the block's largest size by 127.5 or
7.5) the nearest to each number; of nf4 they number sixteen values, the quantiles of a normal distribution, that times
the block's largest size are the nearest. qwix, a library for it, does both ways. Knows arrays; knows no model and no
path of a parameter but the name of the scale.

Reference:
    Tim Dettmers, Artidoro Pagnoni, Ari Holtzman, Luke Zettlemoyer, QLoRA: Efficient Finetuning of Quantized LLMs, 2023,
    arXiv:2305.14314: adapters beside frozen weights of four bits, in blocks of 64.
"""

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slpojax.base import NARROW, Array, Float, Int

KINDS = {"int8": jnp.int8, "int4": jnp.int4, "nf4": jnp.uint4}  # and the type of its codes
BLOCK = 64
_FEWEST = 16  # numbers for which a scale is worth its memory


class Narrow(NamedTuple):
    """A weight as codes and scales.

    Attributes:
        codes: [..., out, in], of a type of `KINDS`, which tells the kind.
        scale: [..., out, in / block], float32.
    """

    codes: Int[Array, "*layers O I"]
    scale: Float[Array, "*layers O blocks"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.codes.shape

    def wide(self) -> Float[Array, "*layers O I"]:
        """Return the weight in float32."""
        import qwix

        codes = jnp.asarray(self.codes)
        kind = next(kind for kind, dtype in KINDS.items() if codes.dtype == dtype)
        return qwix.dequantize(qwix.QArray(codes, jnp.asarray(self.scale), qtype=kind))

    def layer(self, number: int) -> Float[Array, "O I"]:
        """Return the weight of one layer of a stack in float32, on its devices."""
        return _wide_layer(self, number)


@jax.jit
def _wide_layer(weight: Narrow, number: Array | int) -> Array:
    return at(weight, number).wide()


def at(weight: Any, number: Array | int) -> Any:
    """Return one layer of a stacked weight, an array or a `Narrow`."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(jnp.asarray(x), number, keepdims=False), weight)


def block(size: int) -> int:
    """Return how many neighbouring numbers of a row share a scale: the most up to 64 that divide it, or all of it.

    Example:
        >>> block(4096), block(88), block(97)
        (64, 44, 97)
    """
    largest = max(n for n in range(1, BLOCK + 1) if size % n == 0)
    return largest if largest >= _FEWEST else size


@functools.partial(jax.jit, static_argnums=1)
def narrow(weight: Float[Array, "*layers O I"], kind: str) -> Narrow:
    """Return a weight as codes and scales.

    Args:
        weight: of linear maps.
        kind: one of `KINDS`.
    """
    import qwix

    last, tile = weight.ndim - 1, block(weight.shape[-1])
    wide = weight.astype(jnp.float32)
    made = qwix.quantize(wide, kind, channelwise_axes=range(last), tiled_axes={last: tile})
    return Narrow(made.qvalue, made.scale)


def like(shape: tuple[int, ...], kind: str) -> Narrow:
    """Return what `narrow` makes of a weight, as shapes."""
    return jax.eval_shape(lambda x: narrow(x, kind), jax.ShapeDtypeStruct(shape, jnp.float32))


def lazily_widened(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters by path, with `Narrow` in the place of codes and their scales."""
    found = {path: leaf for path, leaf in leaves.items() if path.rpartition("/")[2] != NARROW}
    for path in leaves.keys() - found.keys():
        weight = f"{path.removesuffix(f'/{NARROW}')}/weight"
        found[weight] = Narrow(leaves[weight], leaves[path])
    return found


def require_library(kind: str) -> None:
    """Refuse a kind whose library is not installed.

    Raises:
        ValueError: says how to install it.
    """
    if kind in KINDS and importlib.util.find_spec("qwix") is None:
        raise ValueError(
            f"config.model.frozen_dtype={kind!r} takes qwix, which is not installed: pip install 'slpojax[quantised]'"
        )
