"""Parameters that are learned beside the policy's: how they are drawn, where they stand, and the policy without them.

Knows names and sizes alone; `slpojax.masks` and `slpojax.degrees` know the rest. They are trained, saved and resumed
with the policy's; the exported model and a reference that follows the policy have none of them.
"""

from collections.abc import Mapping
from typing import Any

import jax

from slpojax.base import Key, Params

# Where a policy's parameters hold them, by name: no model has a module of this name.
KEY = "beside"


def draw(key: Key, sizes: Mapping[str, Any]) -> Params:
    """Draw parameters, each from a key of its own, to be joined to the policy's.

    Args:
        key: random.
        sizes: by name, see `linear`; where there are none, nothing is drawn.

    Example:
        >>> jax.tree.map(jax.numpy.shape, draw(jax.random.key(0), {"mine": (2, 3)}))
        {'beside': {'mine': {'bias': (2,), 'weight': (2, 3)}}}
        >>> draw(jax.random.key(0), {})
        {}
    """
    return {KEY: linear(key, sizes)} if sizes else {}


def linear(key: Key, sizes: Any) -> Params:
    """Draw linear layers, uniform within 1 / sqrt(width) as PyTorch's start.

    Args:
        key: random.
        sizes: (N, D) of one layer of N outputs, or a dict of such by name, nested at will.

    Returns:
        {"weight": [N, D], "bias": [N]}, float32, in the place of each (N, D).
    """
    if not isinstance(sizes, tuple):
        keys = jax.random.split(key, len(sizes))
        return {name: linear(own, sizes[name]) for name, own in zip(sorted(sizes), keys, strict=True)}
    size, width = sizes
    bound, (weight, bias) = width**-0.5, jax.random.split(key)
    return {
        "weight": jax.random.uniform(weight, (size, width), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias, (size,), minval=-bound, maxval=bound),
    }


def of(params: Params) -> Params:
    """Return by name what is learned beside a policy's parameters."""
    return params.get(KEY, {})


def without(params: Params) -> Params:
    """Return a policy's parameters as the model knows them."""
    return {name: value for name, value in params.items() if name != KEY}
