"""A small network beside the policy that tells, at every token, how much of a response was taken away.

Knows the policy's hidden states; knows no model family, no vocabulary and no objective. Its parameters stand beside the
policy's, see `slpojax.beside`; the gradient of what it says reaches the policy, too.
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Key, Params


def init(key: Key, *, width: int, classes: int) -> Params:
    """Draw both layers, uniform within 1 / sqrt(width) as a linear layer of PyTorch starts.

    Args:
        key: random.
        width: D of the policy.
        classes: C, the degrees that are told apart.

    Returns:
        {"inner": {"weight": [D, D], "bias": [D]}, "outer": {"weight": [C, D], "bias": [C]}}, float32.

    Example:
        >>> jax.tree.map(jnp.shape, init(jax.random.key(0), width=3, classes=2))
        {'inner': {'bias': (3,), 'weight': (3, 3)}, 'outer': {'bias': (2,), 'weight': (2, 3)}}
    """
    bound = width**-0.5

    def layer(key: Key, size: int) -> Params:
        weight, bias = jax.random.split(key)
        draw = jax.random.uniform
        return {
            "weight": draw(weight, (size, width), minval=-bound, maxval=bound),
            "bias": draw(bias, (size,), minval=-bound, maxval=bound),
        }

    inner, outer = jax.random.split(key)
    return {"inner": layer(inner, width), "outer": layer(outer, classes)}


def logits(own: Params, states: Float[Array, "G S D"]) -> Float[Array, "G S C"]:
    r"""Return the logits of the degrees.

    .. math:: z_t = W_2 \tanh(W_1 h_t + b_1) + b_2

    Args:
        own: the network's parameters, as `init` draws them.
        states: the policy's final hidden states where the scored tokens are predicted.
    """

    def linear(layer: Params, x: Array) -> Array:
        return jnp.einsum("gsd,cd->gsc", x, layer["weight"]) + layer["bias"][None, None]

    return linear(own["outer"], jnp.tanh(linear(own["inner"], states.astype(jnp.float32))))
