"""What selectors share: which candidates there are, what they weigh, and draws among them.

Knows log-probs of candidates; holds no selector.
"""

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Bool, Float, Int, Key, Logps, Scalar
from slpojax.selectors import require
from slpojax.sequence import log_ratio, total


def presence(policy: Logps, picks: int, replacement: bool, start: int = 1) -> Bool[Array, " K"]:
    """Return the presence mask of the candidates.

    Raises:
        ValueError: more are to be picked than there can be.
    """
    require(picks >= 1, "picks", picks, "a whole number from 1")
    candidates = policy.token.shape[0]
    if candidates < 2 or not (replacement or picks <= candidates - start):
        raise ValueError(
            f"selector.picks = {picks}: {candidates - start} of the {candidates} candidates can be picked; ask for "
            "fewer, give more (config.data.candidates), or draw with replacement where the selector draws"
        )
    return jnp.asarray(policy.length) > 0


def log_weights(policy: Logps, ref: Logps, weight: str, beta: Scalar = 1.0) -> Float[Array, " K"]:
    """Return what the candidates weigh: by "reward" beta times their log-ratios, by "policy" their log-probs."""
    require(weight in ("reward", "policy"), "weight", weight, '"reward" or "policy"')
    return beta * log_ratio(policy, ref) if weight == "reward" else total(policy)


def draw(
    key: Key, log_weight: Float[Array, " N"], present: Bool[Array, " N"], picks: int, replacement: bool
) -> Int[Array, " picks"]:
    """Draw among those of N that are present, in proportion to exp(log_weight)."""
    masked = jnp.where(present, log_weight, ABSENT)
    return jax.random.categorical(key, masked, shape=(picks,), replace=replacement).astype(jnp.int32)


def extremes(policy: Logps, log_weight: Float[Array, " K"], picks: int) -> Int[Array, " picks"]:
    """Return the indices of those behind the first that weigh most; ties go to the first of them."""
    present = presence(policy, picks, replacement=False)
    return 1 + jax.lax.top_k(jnp.where(present, log_weight, ABSENT)[1:], picks)[1].astype(jnp.int32)
