"""A small network beside the policy that tells, at every token, how much of a response was taken away.

Knows the policy's hidden states; knows no model family, no vocabulary and no objective. Its parameters stand beside the
policy's, see `slpojax.beside`; the gradient of what it says reaches the policy, too.
"""

import jax.numpy as jnp

from slpojax.base import Array, Float, Params


def sizes(*, width: int, classes: int) -> dict[str, tuple[int, int]]:
    """Return the sizes of both layers, see `slpojax.beside.linear`.

    Args:
        width: D of the policy.
        classes: C, the degrees that are told apart.

    Example:
        >>> sizes(width=3, classes=2)
        {'inner': (3, 3), 'outer': (2, 3)}
    """
    return {"inner": (width, width), "outer": (classes, width)}


def logits(own: Params, states: Float[Array, "G S D"]) -> Float[Array, "G S C"]:
    r"""Return the logits of the degrees.

    .. math:: z_t = W_2 \tanh(W_1 h_t + b_1) + b_2

    Args:
        own: the network's parameters, of `sizes`.
        states: the policy's final hidden states where the scored tokens are predicted.
    """

    def linear(layer: Params, x: Array) -> Array:
        return jnp.einsum("gsd,cd->gsc", x, layer["weight"]) + layer["bias"][None, None]

    return linear(own["outer"], jnp.tanh(linear(own["inner"], states.astype(jnp.float32))))
