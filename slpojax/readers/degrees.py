"""A small network on the policy's states that tells, at every token, how much of a response was taken away.

Knows hidden states; knows no model family, no vocabulary and no objective. The gradient of what it says reaches the
policy, too.
"""

from collections.abc import Collection

import jax.numpy as jnp

from slpojax.base import Array, Float, Params
from slpojax.readers import Reader, Sizes

NAME = "degree"


def read(networks: Params, states: Float[Array, "G S D"], requested: Collection[str]) -> dict[str, Array]:
    r"""Return {"degree": [G, S, C]}, the logits of the degrees.

    .. math:: z_t = W_2 \tanh(W_1 h_t + b_1) + b_2

    Args:
        networks: {"degree": {"inner": ..., "outer": ...}}, each {"weight": [out, in], "bias": [out]}.
        states: the policy's final hidden states where the scored tokens are predicted.
        requested: holds "degree".
    """
    network = networks[NAME]

    def linear(layer: Params, x: Array) -> Array:
        return jnp.einsum("gsd,cd->gsc", x, layer["weight"]) + layer["bias"][None, None]

    return {NAME: linear(network["outer"], jnp.tanh(linear(network["inner"], states.astype(jnp.float32))))}


def learned(sizes: Sizes, name: str) -> dict[str, tuple[int, int]]:
    """Return the sizes of both layers; the degrees that are distinguished, C, are half of the candidates.

    Example:
        >>> learned(Sizes(layers=2, width=3, candidates=4), "degree")
        {'inner': (3, 3), 'outer': (2, 3)}
    """
    return {"inner": (sizes.width, sizes.width), "outer": (sizes.candidates // 2, sizes.width)}


READER = Reader((NAME,), "policy", False, learned, read)
