"""Meshes of eight fake devices, and the way from a path to a partition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slpojax import grid


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 8, 1), (1, 8, 1)), ((1, 2, 4), (1, 2, 4))],
)
def test_sizes_fill_the_devices(sizes, expected):
    assert tuple(grid.make(*sizes).mesh.shape.values()) == expected


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (8, 2, 1), (0, 1, 1), (-1, 3, 1)])
def test_sizes_that_do_not_fill_them_are_refused(sizes):
    with pytest.raises(ValueError, match="does not fill 8 devices"):
        grid.make(*sizes)


RULES = (("^layers/kernel$", PartitionSpec(None, "fsdp", "tensor")), ("^embed$", PartitionSpec("tensor", "fsdp")))


def test_moments_follow_their_parameter_and_what_does_not_divide_is_told():
    params = {"layers": {"kernel": np.zeros((3, 8, 4))}, "embed": np.zeros((97, 8)), "norm": np.zeros(8)}
    state = {"params": params, "optimizer": [{"mu": params, "v_row": {"layers": {"kernel": np.zeros((3, 8))}}}]}
    tree, notes = grid.tree(grid.make(2, 2, 2), RULES, state)
    for where in (tree["params"], tree["optimizer"][0]["mu"]):
        assert where["layers"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
        assert where["embed"].spec == PartitionSpec(None, "fsdp")  # 97 is odd
        assert where["norm"].spec == PartitionSpec()
    assert tree["optimizer"][0]["v_row"]["layers"]["kernel"].spec == PartitionSpec()
    assert len(notes) == 3 and sum("97 is not split over tensor (2 devices)" in note for note in notes) == 2


def test_a_placed_batch_splits_its_rows_and_repeats_the_rest():
    from slpojax.base import Batch, Rows, Scored

    rows = Rows(*(np.arange(8 * 5, dtype=np.int32).reshape(8, 5),) * 4)
    scored = Scored(*(np.zeros((8, 2), np.int32),) * 3)
    batch = Batch(
        rows,
        scored,
        length=np.ones((3, 2), np.int32),
        score=np.zeros((3, 2), np.float32),
        label=np.ones(3, np.float32),
        weight=np.ones(3, np.float32),
        index=np.arange(3, dtype=np.int32),
        ref=None,
        previous=None,
    )
    placed = grid.put_batch(grid.make(2, 2, 2), batch)
    assert placed.rows.token.sharding.shard_shape((8, 5)) == (2, 5)
    assert placed.length.sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


def test_codes_of_four_bits_take_half_a_byte():
    devices = grid.make(1, 2, 1, devices=jax.devices()[:2])
    split = NamedSharding(devices.mesh, PartitionSpec("fsdp"))
    codes = {name: jax.ShapeDtypeStruct((6, 5), name, sharding=split) for name in ("int4", "uint4", "int8", "bfloat16")}
    assert {name: grid.held(x) for name, x in codes.items()} == {"int4": 8, "uint4": 8, "int8": 15, "bfloat16": 30}
    assert grid.held(jnp.zeros(3, bool)) == 3 and grid.held(jax.random.key(0)) == 8
