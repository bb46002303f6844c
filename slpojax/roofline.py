"""How fast a step could be: what devices can do by their data sheets, and the bound that follows from it.

Numbers alone: knows devices, operations and bytes; knows no model, no program and no configuration. A bound is no
forecast: nothing runs at the rate of a data sheet, and what is left out of the counts takes time, too.
"""

from collections.abc import Sequence
from typing import NamedTuple

from slpojax import flops

GIB = 2**30


class Device(NamedTuple):
    """What one JAX device can do.

    Attributes:
        kinds: what JAX calls it (`device_kind`); `flops.peak` knows the first one's products in bfloat16.
        memory: bytes that a program may use.
        bandwidth: bytes a second of that memory.
        link: bytes a second that a link of a chip sends, one way.
        torus: axes of the torus in which the chips lie, each with a link to either side; 0 for GPUs behind a switch.
        per_chip: JAX devices that share the links of a chip.
        float32: operations a second of products of float32 operands; 0 where six products in bfloat16 make one.
        network: bytes a second that a chip sends to other slices, one way; 0 where there is one host alone.
        source: of these numbers.
    """

    kinds: tuple[str, ...]
    memory: float
    bandwidth: float
    link: float
    torus: int
    per_chip: int
    float32: float
    network: float
    source: str


# Memory is what XLA's compiler calls the capacity ("Used 33.07G of 31.25G hbm"), less than the data sheet's by what the
# runtime keeps. Google gives the bandwidth of a chip's links together and both ways: a link has 1/4 of it in 2-D tori
# (v5e, v6e), 1/6 in 3-D ones, half of that one way. A product in float32 is six in bfloat16 on a TPU: what JAX does at
# the precision that this program sets, jax.lax.Precision.HIGHEST. The network's rate is given of a chip (v5p and later,
# in the table of tpu7x) or of a pod (v5e: 6.4 Tbit/s of 256 chips).
_TPU = "cloud.google.com/tpu/docs"
DEVICES = {
    "v4": Device(
        ("TPU v4",),
        30.75 * GIB,
        1.2e12,
        50e9,
        3,
        1,
        0,
        50e9 / 8,
        f"{_TPU}/v4; links: Jouppi et al. 2023, arXiv 2304.01433; network: assumed as v5p's",
    ),
    "v5e": Device(
        ("TPU v5e", "TPU v5 lite"), 15.75 * GIB, 819e9, 400e9 / 4 / 2, 2, 1, 0, 6.4e12 / 256 / 8, f"{_TPU}/v5e"
    ),
    "v5p": Device(("TPU v5p", "TPU v5"), 95.74 * GIB, 2765e9, 1200e9 / 6 / 2, 3, 1, 0, 50e9 / 8, f"{_TPU}/v5p"),
    "v6e": Device(
        ("TPU v6e", "TPU v6 lite"), 31.25 * GIB, 1638e9, 800e9 / 4 / 2, 2, 1, 0, 100e9 / 8, f"{_TPU}/v6e, /tpu7x"
    ),
    # A chip is two devices, each with half of the chip's products and memory.
    "tpu7x": Device(("TPU7x",), 94.75 * GIB, 7380e9 / 2, 1200e9 / 6 / 2, 3, 2, 0, 100e9 / 8, f"{_TPU}/tpu7x"),
    "h100": Device(
        ("NVIDIA H100 80GB HBM3",),
        80 * GIB,
        3352e9,
        450e9,
        0,
        1,
        67e12,
        0,
        "NVIDIA's data sheet of the H100 SXM: 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways",
    ),
    "h200": Device(
        ("NVIDIA H200",),
        141e9,
        4800e9,
        450e9,
        0,
        1,
        67e12,
        0,
        "NVIDIA's data sheet of the H200 SXM: 141 GB, 4.8 TB/s, NVLink 900 GB/s both ways",
    ),
}


def of_kind(kind: str) -> Device | None:
    """Return the device that JAX calls so; None where its numbers are not known.

    Example:
        >>> of_kind("TPU v5 lite") is DEVICES["v5e"], of_kind("cpu")
        (True, None)
    """
    return next((device for device in DEVICES.values() if kind in device.kinds), None)


def products(device: Device, dtype: str) -> float:
    """Return the operations a second of matrix products.

    Args:
        device: one of `DEVICES`.
        dtype: of the operands, bfloat16 or float32.

    Example:
        >>> products(DEVICES["v5e"], "bfloat16"), products(DEVICES["h200"], "float32")
        (197000000000000.0, 67000000000000.0)
    """
    peak = flops.peak(device.kinds[0], 1)
    assert peak is not None, device.kinds
    return peak if dtype == "bfloat16" else device.float32 or peak / 6


def wraps(device: Device, chips: Sequence[int]) -> tuple[bool, ...]:
    """Tell of each axis of a slice whether its ends are linked.

    Args:
        device: one of `DEVICES`.
        chips: of the slice, along each axis.

    Example:
        >>> wraps(DEVICES["v5e"], (8, 16)), wraps(DEVICES["v5p"], (4, 4, 8)), wraps(DEVICES["v5p"], (2, 2, 4))
        ((False, True), (True, True, True), (False, False, False))
    """
    if device.torus == 2:  # a pod is a torus of 16 x 16, and a part of an axis has two ends
        return tuple(size == 16 for size in chips)
    return (all(size % 4 == 0 for size in chips),) * len(chips)  # from a cube of 4 x 4 x 4 on


def rate(device: Device, chips: Sequence[int], spans: Sequence[int], together: int = 1) -> float:
    """Return the bytes a second that each of some devices can send to the others, all at once.

    It is that of the device with the fewest links to the others: one to either side along every axis of the torus that
    they span whole and that is a ring, one at the ends of any other. Where they are the devices of one chip nothing
    takes a link, and the rate has no bound.

    Args:
        device: one of `DEVICES`.
        chips: of the slice, along each axis of the torus; () behind a switch.
        spans: how many places along each of them the devices take up.
        together: how many devices of each chip are among them; the others use the same links at the same time.

    Example:
        >>> rate(DEVICES["v5e"], (16, 16), (16, 1)), rate(DEVICES["v5e"], (4, 4), (4, 4))
        (100000000000.0, 100000000000.0)
    """
    if not device.torus:
        return device.link
    rings = wraps(device, chips)
    links = sum(
        2 if ring and span == size else 1 for ring, span, size in zip(rings, spans, chips, strict=True) if span > 1
    )
    return device.link * links * together / device.per_chip if links else float("inf")


class Bound(NamedTuple):
    """Seconds that a step takes at least, by what limits it.

    Attributes:
        products: of matrix products, at the data sheet's rate.
        memory: of reading and writing the device's memory.
        links: of sending within a slice, one collective after the other.
        network: of sending between slices, likewise.
    """

    products: float
    memory: float
    links: float
    network: float = 0.0

    @property
    def least(self) -> float:
        """Of a step in which all go on at once: the longest of them."""
        return max(self)

    @property
    def most(self) -> float:
        """Of a step in which none goes on while another does: their sum."""
        return sum(self)

    @property
    def limit(self) -> str:
        """What takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))


def utilisation(device: Device, devices: int, operations: float, seconds: float) -> float:
    """Return MFU: the operations that a step is worth, over what the devices could do in its time in bfloat16.

    Args:
        device: one of `DEVICES`.
        devices: how many.
        operations: of `flops.of_step`.
        seconds: of the step.

    Example:
        >>> utilisation(DEVICES["v5e"], 2, 197e12, 1.0)
        0.5
    """
    return operations / seconds / (devices * products(device, "bfloat16"))
