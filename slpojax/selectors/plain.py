"""Selectors without a chain: every candidate, uniform negatives, the likeliest and the least likely ones."""

import jax  # noqa: F401  # for the examples
import jax.numpy as jnp

from slpojax.base import Array, Int, Key, Logps
from slpojax.selectors._draws import draw, extremes, log_weights, presence


def everything(policy: Logps) -> Int[Array, " picks"]:
    """Every candidate: the objective sees the example as it is.

    Args:
        policy: [K, T] log-probs.

    Returns:
        1, ..., K - 1.

    Example:
        >>> three = Logps(jnp.zeros((3, 1)), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> print(everything(three))
        [1 2]
    """
    return jnp.arange(1, jnp.shape(policy.length)[0], dtype=jnp.int32)


def uniform(policy: Logps, key: Key, *, picks: int = 1, replacement: bool = True) -> Int[Array, " picks"]:
    """Negatives drawn uniformly: RNCE's noise samples. One of them and `listwise.rnce` are DPO on a random pair.

    Args:
        policy: [K, T] log-probs; only the lengths are read.
        key: random key.
        picks: negatives per example, M.
        replacement: independent draws; False never takes a candidate twice.

    Returns:
        The indices of the negatives.

    Example:
        >>> three = Logps(jnp.zeros((3, 1)), jnp.zeros((3, 1)), jnp.int32([1, 0, 1]))
        >>> print(uniform(three, jax.random.key(0)))
        [2]

    Verified: frequencies; the loss and gradient of one pick behind `listwise.rnce` are DPO's.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, equation 7.
    """
    present = presence(policy, picks, replacement)[1:]
    return 1 + draw(key, jnp.zeros(present.shape), present, picks, replacement)


def likeliest(policy: Logps, ref: Logps, *, picks: int = 1, weight: str = "reward") -> Int[Array, " picks"]:
    """The likeliest negatives, `mc_kernel` at temperature zero; ties go to the first candidate.

    Args:
        policy: [K, T] log-probs.
        ref: the same responses under the reference.
        picks: negatives per example, M, all different.
        weight: "reward", beta times the log-ratio to the reference, or "policy", the log-prob of the whole response.

    Returns:
        The indices of the negatives, likeliest first.

    Example:
        >>> policy = Logps(jnp.float32([[-1.0], [-3.0], [-2.0]]), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> print(likeliest(policy, ref))
        [2]

    Verified: by hand, ragged candidates and ties included.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, section 5.
    """
    return extremes(policy, log_weights(policy, ref, weight), picks)


def least_likely(policy: Logps, ref: Logps, *, picks: int = 1, weight: str = "reward") -> Int[Array, " picks"]:
    """The least likely negatives; ties go to the first candidate.

    Args:
        policy: [K, T] log-probs.
        ref: the same responses under the reference.
        picks: negatives per example, M, all different.
        weight: "reward", beta times the log-ratio to the reference, or "policy", the log-prob of the whole response.

    Returns:
        The indices of the negatives, least likely first.

    Example:
        >>> policy = Logps(jnp.float32([[-1.0], [-3.0], [-2.0]]), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> print(least_likely(policy, ref))
        [1]

    Verified: by hand, ragged candidates and ties included.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, section 5.
    """
    return extremes(policy, -log_weights(policy, ref, weight), picks)


def last(policy: Logps, *, picks: int = 1) -> Int[Array, " picks"]:
    """The last candidates, whatever the policy says: behind `data.swapped` the noisy copy, a rejected one that traps.

    Args:
        policy: [K, T] log-probs; only the lengths are read.
        picks: negatives per example, M, all different.

    Returns:
        The indices of the negatives, the last one first.

    Example:
        >>> three = Logps(jnp.zeros((3, 1)), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> print(last(three))
        [2]

    Verified: by hand, absent candidates included.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, table 2.
    """
    return extremes(policy, jnp.arange(jnp.shape(policy.length)[0], dtype=jnp.float32), picks)
