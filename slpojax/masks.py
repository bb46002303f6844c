"""What the layers of the reference say of a token: how active they are, and masks that are learned from them.

Knows the layers' outputs and the scored positions; knows no model family and no objective. A mask is a number from 0
for every token, the mean over the layers of a rectified linear map of what the reference's layer puts out where the
token is predicted. Its weights stand beside the policy's, see `slpojax.beside`; the reference itself gets no gradient.

Reference:
    Fenia Christopoulou, Ronald Cardenas, Gerasimos Lampouras, Haitham Bou-Ammar, Jun Wang, SparsePO: Controlling
    Preference Alignment of LLMs via Sparse Token Masks, 2024, arXiv:2410.05102, section 3.
"""

from collections.abc import Collection
from typing import TypeAlias

import jax
import jax.numpy as jnp

from slpojax import needs
from slpojax.base import Array, Float, Params

Numbers: TypeAlias = dict[str, Array]

NAMES = needs.where(source="reader", weights_of_reference=True, gradient=True)


def numbers(masks: Params, states: Float[Array, "N G S D"], wanted: Collection[str]) -> Numbers:
    r"""Return what is asked for of the layers' outputs.

    .. math:: m_t = \frac{1}{N} \sum_l \max(0, w_l \cdot \bar{h}_{l,t} + b_l)

    with the output h of layer l standardised over its width. The paper's equation has h itself, the authors' code a
    norm with learned scales, of which w and b lack nothing, and a second rectified map over the layers in place of the
    mean.

    Args:
        masks: by name {"weight": [N, D], "bias": [N]}, of the wanted masks at least.
        states: outputs of the reference's N layers where the scored tokens are predicted.
        wanted: those of `NAMES`, and "layer_activity".

    Returns:
        By name, float32: masks [G, S], and "layer_activity" [G, S, N], the means of the outputs over their width.
    """
    states = jax.lax.stop_gradient(states).astype(jnp.float32)
    mean = jnp.mean(states, axis=-1, keepdims=True)
    found: Numbers = {"layer_activity": jnp.moveaxis(mean[..., 0], 0, -1)} if "layer_activity" in wanted else {}
    standard = (states - mean) * jax.lax.rsqrt(jnp.var(states, axis=-1, keepdims=True) + 1e-5)
    for name in sorted(set(wanted) & set(NAMES)):
        own = masks[name]
        heights = jnp.einsum("ngsd,nd->ngs", standard, own["weight"]) + own["bias"][:, None, None]
        found[name] = jnp.mean(jax.nn.relu(heights), axis=0)
    return found
