"""From token log-probs to numbers of a whole response: totals, log-ratios, masses and the metrics made of them.

Knows `Logps` and nothing of where they come from or which objective asks. Needs no mask: see `Logps`.
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Logps
from slpojax.numerics import log1mexp


class TooFewCandidates(ValueError):
    """An example has fewer candidates than an objective reads.

    Attributes:
        needed: how many it reads at least, as far as it came.
    """

    def __init__(self, needed: int, candidates: int, reads: str = "") -> None:
        self.needed = needed
        super().__init__(
            f"the objective reads {reads or f'{needed} candidates'}, the example has {candidates}; "
            "give it data with more responses per prompt (config.data.candidates)"
        )


def first(logps: Logps, count: int) -> Logps:
    """Return the first candidates of one example, [count, T].

    Raises:
        TooFewCandidates: the example has fewer.
    """
    candidates = logps.token.shape[0]
    if candidates < count:
        raise TooFewCandidates(count, candidates)
    return Logps(logps.token[:count], logps.other[:count], logps.length[:count])


def size(logps: Logps) -> Float[Array, "*lead"]:
    """Return the number of tokens as a divisor: at least one."""
    return jnp.maximum(jnp.asarray(logps.length), 1).astype(logps.token.dtype)


def total(logps: Logps) -> Float[Array, "*lead"]:
    """Return log P(y | x), the sum of the token log-probs."""
    return jnp.sum(logps.token, axis=-1)


def mean(logps: Logps) -> Float[Array, "*lead"]:
    """Return the mean token log-prob; 0 where there is no token."""
    return total(logps) / size(logps)


def log_ratio(a: Logps, b: Logps) -> Float[Array, "*lead"]:
    """Return log P_a(y) - log P_b(y): token by token first, then the sum.

    The sum of small differences is exact to 1e-8 where the difference of two sums near -1,400 is off by 1e-4 in
    float32. Two different responses may be compared too, as their padding adds nothing.
    """
    return jnp.sum(a.token - b.token, axis=-1)


def mass(logps: Logps) -> tuple[Float[Array, "*lead"], Float[Array, "*lead"]]:
    r"""Return (log P(y), log P(not y)) by a scan over positions: the definition.

    Another response leaves y at exactly one position t, so

    .. math:: P(\bar y) = \sum_t \Big( \prod_{k<t} p_k \Big) (1 - p_t).

    Two neighbouring stretches of tokens (a, b), (a', b') combine to (a + a', logaddexp(b, a + b')), an associative
    operation whose identity is (0, `ABSENT`).

    Example:
        >>> p = jnp.float32([0.2, 0.5, 0.3])
        >>> kept, left = mass(Logps(jnp.log(p), jnp.log1p(-p), jnp.int32(3)))
        >>> print(f"{jnp.exp(kept):.2f} {jnp.exp(left):.2f}")
        0.03 0.97
    """

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] + right[0], jnp.logaddexp(left[1], left[0] + right[1])

    token, other = jax.lax.associative_scan(join, (logps.token, logps.other), axis=-1)
    return token[..., -1], other[..., -1]


def mass_closed(logps: Logps) -> tuple[Float[Array, "*lead"], Float[Array, "*lead"]]:
    r"""Return (log P(y), log P(not y)) as `mass` does, in the form that trains.

    The sum over positions telescopes to :math:`P(\bar y) = 1 - \prod_t p_t`, free of the rounding noise of the sum
    where P(y) is small. Above P(y) = 1/e, where the tokens' own rounding begins to show in 1 - P(y), and finally for
    P(y) = 1, it is the sum itself that is exact, as `other` is.
    """
    kept = total(logps)
    near = kept > -1
    before = jnp.cumsum(logps.token, axis=-1) - logps.token
    left = jax.nn.logsumexp(before + logps.other, axis=-1)
    return kept, jnp.where(near, left, log1mexp(jnp.where(near, -1.0, kept)))


def preference_metrics(policy: Logps, reward: Float[Array, " C"]) -> dict[str, Array]:
    """Return what every pair objective reports, under TRL's names and without gradient.

    Args:
        policy: [K, T] log-probs of an example, candidate 0 preferred to candidate 1; the others are not read.
        reward: [K] the objective's implicit reward of each candidate, or of the first ones.

    Returns:
        rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies (a tie counts one half), logps/chosen and
        logps/rejected (sums over tokens, nats).

    Raises:
        TooFewCandidates: the example has a single one.
    """
    reward, logp = jax.lax.stop_gradient((reward[:2], total(first(policy, 2))))
    return {
        "rewards/chosen": reward[0],
        "rewards/rejected": reward[1],
        "rewards/margins": reward[0] - reward[1],
        "rewards/accuracies": (1 + jnp.sign(reward[0] - reward[1])) / 2,
        "logps/chosen": logp[0],
        "logps/rejected": logp[1],
    }
