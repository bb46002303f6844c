"""What devices can do, and the bound on a step, against numbers worked out by hand from the data sheets."""

import pytest

from slpojax import flops, roofline
from slpojax.roofline import DEVICES, Bound

V5E, V5P, V6E, TPU7X, H200 = (DEVICES[name] for name in ("v5e", "v5p", "v6e", "tpu7x", "h200"))


def test_every_device_has_a_peak_and_a_source_and_is_known_by_each_of_its_kinds():
    for name, device in DEVICES.items():
        assert device.source and all(flops.peak(kind, 1) for kind in device.kinds), name
        assert {id(roofline.of_kind(kind)) for kind in device.kinds} == {id(device)}
    assert roofline.of_kind("TPU v3") is None


def test_products_in_float32_are_six_in_bfloat16_on_a_tpu():
    assert roofline.products(V5E, "bfloat16") == 197e12
    assert roofline.products(V5E, "float32") == pytest.approx(197e12 / 6)
    assert (roofline.products(H200, "bfloat16"), roofline.products(H200, "float32")) == (989e12, 67e12)
    assert roofline.products(TPU7X, "bfloat16") == pytest.approx(2307e12 / 2)  # of one of a chip's two devices


@pytest.mark.parametrize(
    ("device", "chips", "spans", "together", "gigabytes"),
    [
        (V5E, (4, 4), (4, 1), 1, 50),  # a line has one link at its ends: 400 GB/s both ways over four links
        (V5E, (4, 4), (4, 4), 1, 100),  # a corner has two
        (V5E, (16, 16), (16, 1), 1, 100),  # a ring has two everywhere
        (V5E, (16, 16), (16, 16), 1, 200),
        (V5E, (16, 16), (4, 1), 1, 50),  # a part of a ring is a line
        (V6E, (2, 4), (1, 4), 1, 100),
        (V5P, (4, 4, 4), (4, 4, 4), 1, 600),  # 1,200 GB/s both ways, all of it
        (V5P, (2, 2, 4), (1, 1, 4), 1, 100),
        (TPU7X, (4, 4, 4), (4, 1, 1), 1, 100),  # two devices share a chip's links
        (TPU7X, (4, 4, 4), (4, 1, 1), 2, 200),  # unless both are in the group
        (H200, (), (), 1, 450),
    ],
)
def test_the_rate_is_that_of_the_device_with_the_fewest_links(device, chips, spans, together, gigabytes):
    assert roofline.rate(device, chips, spans, together) == pytest.approx(gigabytes * 1e9)


def test_what_stays_on_a_chip_takes_no_link():
    assert roofline.rate(TPU7X, (2, 2, 1), (1, 1, 1), 2) == float("inf")


def test_a_bound_is_between_the_longest_and_the_sum():
    bound = Bound(products=2.0, memory=0.5, links=3.0)
    assert (bound.least, bound.most, bound.limit) == (3.0, 5.5, "links")


def test_the_network_between_slices():
    assert [DEVICES[name].network * 8 / 1e9 for name in ("v5e", "v5p", "v6e", "tpu7x")] == [25, 50, 100, 100]
    assert Bound(1.0, 1.0, 1.0, network=4.0).limit == "network"


def test_utilisation_by_hand():
    # Pythia-2.8B's 6 N operations for 10,000 tokens on four v5e in half a second.
    operations = 6 * 2.7e9 * 1e4
    assert roofline.utilisation(V5E, 4, operations, 0.5) == pytest.approx(1.62e14 / (0.5 * 4 * 197e12))
