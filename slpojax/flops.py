"""How many floating-point operations a step is worth, and how many the devices could do.

The convention: a token costs 6 operations for every weight that it is multiplied with (2 forward, 4 backward), 4 where
the weight is frozen and has no gradient of its own, 2 where no gradient is taken; embeddings, norms, attention scores
and recomputation are left out. So a policy's token costs 6 N, an online reference adds 2 N, a cached one nothing; where
all candidates are scored before the picked ones are trained on, each of theirs costs 2 N more. The unembedding is
counted where it is used: at the scored tokens. Utilisation (MFU) is of the computed tokens, in which a shared prompt
counts once; throughput may also be given in effective tokens, in which it counts once a response, as where every
response is computed alone.

Knows shapes and the names of chips; knows no model and no step.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slpojax.base import ADAPTER, NARROW

# Operations for a token and a weight: with its gradient, with that of what it is multiplied with alone, with none.
TRAIN, FROZEN, FORWARD = 6, 4, 2

# Dense bfloat16 operations a second of one JAX device, by its kind; from the makers' data sheets. A kind is known by
# its whole name: a PCIe board is slower than the card whose name begins alike, and a MIG slice is a part of one.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # two devices a chip
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA B200": 2250e12,
}


def weights(params: Any, unembed: Any) -> tuple[int, int]:
    """Return (weights that every token is multiplied with, weights that every scored token is multiplied with).

    Args:
        params: arrays, or their shapes, as a nested dict in which "embed" and "head" meet the vocabulary.
        unembed: [D, V] or its shape.
    """
    body = {name: tree for name, tree in params.items() if name not in ("embed", "head")}
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(body)), int(np.prod(unembed.shape))


def moved(params: Any, trained: Any, counts: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what `weights` does, of all weights, adapters among them, and of those that are trained.

    Args:
        params: the model's, or their shapes.
        trained: what is trained of them, and adapters beside; or the shapes.
        counts: from `weights`, of the model's.
    """
    leaves = jax.tree_util.tree_leaves_with_path(trained)
    adapters = sum(int(np.prod(x.shape)) for path, x in leaves if getattr(path[-1], "key", "") in ADAPTER)
    body = sum(
        int(np.prod(x.shape)) for name in trained.keys() - {"embed", "head"} for x in jax.tree.leaves(trained[name])
    )
    last = "head" if "head" in params else "embed"
    return (counts[0] + adapters, counts[1]), (body, counts[1] * (last in trained))


def count(params: Any) -> int:
    """Return how many parameters there are; scales, of adapters and of weights in few bits, are none."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(int(np.prod(x.shape)) for path, x in leaves if getattr(path[-1], "key", "") not in (ADAPTER[2], NARROW))


def of_step(body: int, head: int, *passes: tuple[int, Mapping[str, int | float]]) -> float:
    """Return the operations of a training step.

    Args:
        body: weights of the body.
        head: weights of the unembedding.
        passes: for each batch that goes through a model: the operations for a token and a weight (`TRAIN`, and
            `FORWARD` more where a reference is computed beside), and its "tokens" and "scored" tokens, no padding.

    Example:
        >>> of_step(1000, 500, (TRAIN, {"tokens": 10, "scored": 4}))
        72000.0
    """
    return float(sum(each * (body * counts["tokens"] + head * counts["scored"]) for each, counts in passes))


def peak(kind: str, devices: int) -> float | None:
    """Return the operations a second of some devices of a kind, or None where it is not known.

    Example:
        >>> peak("NVIDIA H200", 8)
        7912000000000000.0
    """
    return devices * _PEAKS[kind] if kind in _PEAKS else None
