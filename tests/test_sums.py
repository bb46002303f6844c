"""Sums over bits: the definition in NumPy, any mesh, any flipped bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slpojax import sums

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.normal(size=(5, 7)).astype(np.float32),
    "bfloat16": RNG.normal(size=(3, 2, 4)).astype(jnp.bfloat16),
    "int32": RNG.integers(-9, 9, 11).astype(np.int32),
    "int8": RNG.integers(-9, 9, (2, 3)).astype(np.int8),
    "bool": RNG.random(9) < 0.5,
    "scalar": np.float32(-0.0),
    "empty": np.zeros((0, 3), np.float32),
}


def by_definition(x: np.ndarray) -> int:
    """The sum of bits times the hash of the place, number by number, in Python's integers."""
    total = 0
    for index in np.ndindex(x.shape):
        place = 0
        for i in index:
            place = (place * 0x9E3779B1 + i) % 2**32
            place = ((place ^ (place >> 15)) * 0x85EBCA6B) % 2**32
        place ^= place >> 13
        total += int.from_bytes(np.asarray(x[index]).tobytes(), "little") * (2 * place + 1)
    return total % 2**32


@pytest.mark.parametrize("name", ARRAYS)
def test_sums_are_their_definition(name):
    assert sums.of({"a": ARRAYS[name]}).bits == {"a": by_definition(ARRAYS[name])}


@pytest.mark.parametrize("spec", [("fsdp",), ("fsdp", "tensor"), (None, "tensor")])
def test_sums_do_not_depend_on_the_mesh(spec):
    x = RNG.normal(size=(8, 6)).astype(np.float32)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    assert sums.of([placed]).bits == {"0": by_definition(x)}


@pytest.mark.parametrize("kind", [np.float32, jnp.bfloat16])
def test_any_single_flipped_bit_and_any_swap_change_the_sum(kind):
    x = RNG.normal(size=(4, 3)).astype(kind)
    before, bits = sums.of([x]).bits, x.view(np.uint8)
    for i in range(x.nbytes * 8):
        flat = bits.copy().reshape(-1)
        flat[i // 8] ^= 1 << (i % 8)
        assert sums.of([flat.reshape(bits.shape).view(kind)]).bits != before
    assert sums.of([x[::-1].copy()]).bits != before


def test_numbers_that_are_not_finite_are_named():
    tree = {"a": {"b": np.array([1.0, np.nan], np.float32), "c": np.ones(2, np.int32)}, "d": np.float32(np.inf)}
    assert sums.of_floats(tree) == ["a/b", "d"]
    assert sums.differing({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b", "c"]
