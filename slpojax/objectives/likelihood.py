"""The likelihood term that several objectives of pairs add to their loss, in the reductions of `objectives.sft`.

Holds no objective. "token_mean", what TRL and most authors' code computes, is over the tokens of the global batch and
so couples its examples; "sequence_mean" and "sequence_sum" do not, which spares a forward pass where gradients are
accumulated.
"""

import jax

from slpojax.base import Array, Logps, Scalar
from slpojax.objectives import require, sft

_REDUCTIONS = {
    "token_mean": sft.token_mean,
    "sequence_mean": sft.sequence_mean,
    "sequence_sum": sft.sequence_sum,
}


def add(
    loss: Array, metrics: dict[str, Array], response: Logps, key: str, weight: Scalar, nll: str
) -> tuple[Array, dict[str, Array]]:
    """Add the weighted negative log-likelihood of a response; a weight of 0 leaves it out, and nothing is coupled.

    Args:
        loss: what it is added to.
        metrics: what the term's own value is added to, as nll_loss, before its weight.
        response: [K, T] log-probs, of which candidate 0 counts.
        key: what the weight is called.
        weight: from 0.
        nll: the name of the reduction.
    """
    require(weight >= 0, key, weight, "a number from 0")
    require(nll in _REDUCTIONS, "nll", nll, f"one of {', '.join(_REDUCTIONS)}")
    if isinstance(weight, float) and weight == 0:
        return loss, metrics
    term = _REDUCTIONS[nll](response)[0]
    return loss + weight * term, metrics | {"nll_loss": jax.lax.stop_gradient(term)}
