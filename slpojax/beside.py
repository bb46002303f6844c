"""Parameters that are learned beside the policy's: how they are drawn, where they stand, and the policy without them.

Knows names alone; `slpojax.masks` and `slpojax.degrees` know the rest. They are trained, saved and resumed with the
policy's; the exported model and a reference that follows the policy have none of them.
"""

from collections.abc import Callable, Mapping

import jax

from slpojax.base import Key, Params

# Where a policy's parameters hold them, by name: no model has a module of this name.
KEY = "beside"


def draw(key: Key, draws: Mapping[str, Callable[[Key], Params]]) -> Params:
    """Draw parameters, each from a key of its own, to be joined to the policy's.

    Args:
        key: random.
        draws: name -> what draws the parameters of this name.

    Example:
        >>> drawn = draw(jax.random.key(0), {"mine": lambda key: jax.random.uniform(key, (2, 3))})
        >>> jax.tree.map(jax.numpy.shape, drawn)
        {'beside': {'mine': (2, 3)}}
        >>> draw(jax.random.key(0), {})
        {}
    """
    if not draws:
        return {}
    keys = jax.random.split(key, len(draws))
    return {KEY: {name: draws[name](own) for name, own in zip(sorted(draws), keys, strict=True)}}


def of(params: Params) -> Params:
    """Return by name what is learned beside a policy's parameters."""
    return params.get(KEY, {})


def without(params: Params) -> Params:
    """Return a policy's parameters as the model knows them."""
    return {name: value for name, value in params.items() if name != KEY}
