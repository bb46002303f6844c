"""Sums over the bits of arrays, which tell whether stored numbers are those that were stored, on whatever mesh.

Knows arrays; knows no files and no models.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slpojax.base import Array
from slpojax.grid import path_name

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # bytes of a number -> how its bits are read


class Sums(NamedTuple):
    """What is known of a tree's arrays, by the path of each.

    Attributes:
        bits: the sum of the array's bits, see `of_bits`.
        broken: paths of the arrays that hold a number that is not finite.
    """

    bits: dict[str, int]
    broken: list[str]


def of(tree: Any) -> Sums:
    """Return the sums of a tree of arrays on any mesh; the devices compute them, and no array is copied.

    Args:
        tree: of arrays, keys of random numbers as their data.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    computed = jax.device_get(_of_arrays([leaf for _, leaf in leaves]))
    paths = [path_name(path) for path, _ in leaves]
    return Sums(
        {path: int(bits) for path, (bits, _) in zip(paths, computed, strict=True)},
        [path for path, (_, finite) in zip(paths, computed, strict=True) if not finite],
    )


def of_floats(tree: Any) -> list[str]:
    """Return the paths of a tree's arrays that hold a number that is not finite."""
    return of(tree).broken


def differing(saved: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """Return the paths whose sums differ, or that one of the two lacks."""
    return sorted(path for path in saved.keys() | now.keys() if saved.get(path) != now.get(path))


def of_bits(x: Array) -> Array:
    """Return sum_i bits(x_i) * hash(i) modulo 2**32, over the places i of an array; the hash is odd.

    A single flipped bit changes the sum whatever it was, as an odd number divides no power of two; anything else, the
    order of the numbers included, changes it but for one chance in 2**32. Addition modulo 2**32 is exact in any order,
    so the sum does not depend on how the array is split over devices.

    Args:
        x: any shape, any type of numbers or truths.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        place = place * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = (place ^ (place >> 15)) * jnp.uint32(0x85EBCA6B)
    place = place ^ (place >> 13)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


@jax.jit
def _of_arrays(arrays: list[Array]) -> list[tuple[Array, Array]]:
    # One program: of several under way at once, hosts may run the collectives in different orders, and wait forever.
    return [(of_bits(x), _is_finite(x)) for x in arrays]


def _is_finite(x: Array) -> Array:
    return jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.bool_(True)
