"""What the layers of the reference say of a token: how active they are, and masks that are learned from them.

Knows the layers' outputs where scored tokens are predicted; knows no model family and no objective. A mask is a number
from 0 for every token, the mean over the layers of a rectified linear map of what the reference's layer puts out where
the token is predicted. The reference itself gets no gradient.

Reference:
    Fenia Christopoulou, Ronald Cardenas, Gerasimos Lampouras, Haitham Bou-Ammar, Jun Wang, SparsePO: Controlling
    Preference Alignment of LLMs via Sparse Token Masks, 2024, arXiv:2410.05102, section 3.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Params
from slpojax.readers import Reader, Sizes

MASKS = ("kl_mask", "reward_mask")
ACTIVITY = "layer_activity"


def read(masks: Params, states: Float[Array, "N G S D"], requested: Collection[str]) -> dict[str, Array]:
    r"""Return the requested scores of the layers' outputs.

    .. math:: m_t = \frac{1}{N} \sum_l \max(0, w_l \cdot \bar{h}_{l,t} + b_l)

    with the output h of layer l standardised over its width. The paper's equation has h itself, the authors' code a
    norm with learned scales, of which w and b lack nothing, and a second rectified map over the layers in place of the
    mean.

    Args:
        masks: by name {"weight": [N, D], "bias": [N]}, of the requested masks at least.
        states: outputs of the reference's N layers where the scored tokens are predicted.
        requested: among `MASKS` and `ACTIVITY`.

    Returns:
        By name, float32: masks [G, S], and "layer_activity" [G, S, N], the means of the outputs over their width.
    """
    states = jax.lax.stop_gradient(states).astype(jnp.float32)
    mean = jnp.mean(states, axis=-1, keepdims=True)
    scores: dict[str, Array] = {ACTIVITY: jnp.moveaxis(mean[..., 0], 0, -1)} if ACTIVITY in requested else {}
    standard = (states - mean) * jax.lax.rsqrt(jnp.var(states, axis=-1, keepdims=True) + 1e-5)
    for name in sorted(set(requested) & set(MASKS)):
        mask = masks[name]
        heights = jnp.einsum("ngsd,nd->ngs", standard, mask["weight"]) + mask["bias"][:, None, None]
        scores[name] = jnp.mean(jax.nn.relu(heights), axis=0)
    return scores


def learned(sizes: Sizes, name: str) -> tuple[int, ...]:
    """Return the sizes of a mask's linear map: one row of D weights for each of N layers."""
    return (sizes.layers, sizes.width) if name in MASKS else ()


READER = Reader((*MASKS, ACTIVITY), "reference", True, learned, read)
