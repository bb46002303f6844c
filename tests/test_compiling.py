"""What a compiler says of a program: memory, that it does not fit, and what goes along which axis of the mesh."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import compiling, grid, roofline
from slpojax.compiling import Compiled, Excess, Exchange, Memory
from slpojax.topology import Collective

# What libtpu 0.0.41 says, and what it says of another memory.
TOO_MUCH = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 31.23G of
15.75G hbm. Exceeded hbm capacity by 15.48G."""
OTHER = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 32.42M of 16.00M vmem."


def test_an_answer_that_there_is_too_little_memory_is_read():
    assert compiling.does_not_fit(TOO_MUCH.replace("\n", " ")) == Excess(31.23 * 2**30, 15.75 * 2**30)
    assert compiling.does_not_fit("Used 900.50M of 1.50G hbm") == Excess(900.5 * 2**20, 1.5 * 2**30)
    assert compiling.does_not_fit(OTHER) is None


class Fails(jax.stages.Wrapped):
    """A function whose compiler raises."""

    def __init__(self, message):
        self.message = message

    def lower(self, *like):
        raise jax.errors.JaxRuntimeError(self.message)


def test_too_little_memory_is_an_answer_and_any_other_failure_is_raised():
    said = compiling.compile_for(grid.one_device(), Fails("Used 2.00G of 1.00G hbm"))
    assert said.memory is None and said.excess == Excess(2.0 * 2**30, 1.0 * 2**30) and said.exchanges == ()
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        compiling.compile_for(grid.one_device(), Fails(OTHER))


def test_the_peak_counts_what_is_written_over_arguments_once():
    assert Memory(arguments=100, temporaries=30, outputs=60, aliased=50, host=7).peak == 140


def test_collectives_of_one_kind_along_the_same_axes_are_added_up():
    devices = grid.make(2, 4, 1)
    along_fsdp, along_data = (0, 1, 2, 3), (0, 4)
    found = compiling.exchanges(
        devices,
        [
            Collective("all-gather", 1000, 4, 3, "a", along_fsdp),
            Collective("all-gather", 600, 4, 1, "b", along_fsdp),
            Collective("all-reduce", 800, 2, 1, "c", along_data),
            Collective("all-reduce", 8, 8, 1, "d", tuple(range(8))),
            Collective("all-reduce", 8, 1, 1, "e", (3,)),  # alone
        ],
    )
    expected = [
        ("all-gather", ("fsdp",), 4, 4, (3 * 1000 + 600) * 3 / 4),
        ("all-reduce", ("data",), 2, 1, 800.0),
        ("all-reduce", ("data", "fsdp"), 8, 1, 14.0),
    ]
    assert [tuple(one[:5]) for one in found] == expected


def test_what_crosses_the_network_between_slices_is_counted_apart():
    """Eight devices in two slices: each slice gathers among its four, and every device adds its part to the other's."""
    devices = grid.make(2, 4, 1)
    found = compiling.exchanges(
        devices,
        [
            Collective("all-gather", 1000, 4, 1, "c", (0, 1, 2, 3)),
            Collective("all-reduce", 500, 2, 3, "b", (0, 4), between=True),
        ],
    )
    assert [(one.axes, one.devices, one.sent, one.network) for one in found] == [
        (("data",), 2, 0.0, 1500.0),
        (("fsdp",), 4, 750.0, 0.0),
    ]
    assert compiling.seconds_of_network(roofline.DEVICES["v5e"], found) == pytest.approx(1500 / 3.125e9)
    assert compiling.seconds_of_network(roofline.DEVICES["tpu7x"], found) == pytest.approx(2 * 1500 / 12.5e9)
    assert compiling.seconds_of_network(roofline.DEVICES["h200"], found[1:]) == 0


def test_seconds_of_links():
    exchange = Exchange("all-gather", ("fsdp",), 4, 1, 5e9, (4, 1, 1), 1)
    assert compiling.seconds_of_links(roofline.DEVICES["v5e"], (4, 4), [exchange]) == [pytest.approx(0.1)]
    assert compiling.seconds_of_links(roofline.DEVICES["h200"], (), [exchange]) == [pytest.approx(5 / 450)]


def test_json_and_back():
    made = Compiled(Memory(1, 2, 3, 4, 5), None, (Exchange("all-gather", ("fsdp",), 4, 2, 1.5, (4, 1), 1),), 0.25)
    refused = Compiled(None, Excess(2.0, 1.0), (), 0.5)
    for one in (made, refused):
        assert compiling.from_json(json.loads(json.dumps(compiling.as_json(one)))) == one


def test_a_device_holds_its_part_of_arrays_and_all_of_what_lies_everywhere():
    devices = grid.make(2, 4, 1)
    rows = jax.ShapeDtypeStruct((16, 3), jnp.bfloat16, sharding=devices.rows)
    everywhere = jax.ShapeDtypeStruct((5,), jnp.float32, sharding=devices.everywhere)
    assert grid.held([rows, everywhere, None]) == 2 * 3 * 2 + 20
    assert grid.held(jax.random.key(0)) == 8
    real = [grid.put(np.zeros((16, 3), np.float32), devices.rows), grid.put(np.zeros(5, np.int8), devices.everywhere)]
    assert grid.held(real) == 2 * 3 * 4 + 5
