"""MC-PO's selector: hard negatives, drawn in proportion to what the policy gives them now."""

import functools

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Bool, Float, Int, Key, Logps, Scalar
from slpojax.numerics import effective_sample_size
from slpojax.selectors import FOLLOW, require
from slpojax.selectors._draws import draw, log_weights, presence


def mc_kernel(
    policy: Logps,
    ref: Logps,
    key: Key,
    *,
    picks: int = 1,
    beta: Scalar | str = FOLLOW,
    weight: str = "reward",
    temperature: Scalar = 1.0,
    replacement: bool = True,
    include_state: bool = False,
    steps: int = 1,
    pool: int = 0,
) -> tuple[Int[Array, " picks"], dict[str, Array]]:
    r"""MC-PO's kernel: hard negatives, drawn in proportion to what the policy gives them now.

    .. math:: P(m) = \text{softmax}(w / \tau)_m, \quad w_k = \beta (\log P(y_k) - \log P_{ref}(y_k))
        \ \text{or} \ \log P(y_k), \quad k = 1, \dots, K - 1

    The reward is the log of the importance weight of a response drawn from the reference. It is 0 for all where policy
    and reference agree, so the draw starts out uniform and sharpens as the policy moves.

    With `pool` the kernel sees only part of the candidates at a time: a step draws so many afresh, uniformly, among
    those that are not its state, adds the state, and moves to one of them by the softmax. Each step leaves the softmax
    over all candidates as it is, whatever the pool, and many of them reach it; with all in the pool the first does.
    Every pick walks for itself.

    Args:
        policy: [K, T] log-probs.
        ref: the same responses under the reference.
        key: random key.
        picks: negatives per example, M. The paper's main runs have 1.
        beta: of the reward, per nat. The paper's kernel has the objective's, so that it draws by the reward that is
            trained, which is what "objective" takes.
        weight: "reward", the preprint's algorithm 1; "policy", the summed log-likelihood under the policy, as the
            published version has it. Likelihoods of whole responses lie tens of nats apart, mostly by their length, so
            that this is almost `likeliest` unless the temperature is as large.
        temperature: tau; above 1 flatter, below 1 sharper.
        replacement: independent draws, as the kernel's definition has it; False never takes a candidate twice (the
            draw of a softmax without replacement, by the M largest of the weights with Gumbel noise).
        include_state: candidate 0, the state the kernel starts from, may be picked as well, as contrastive divergence
            has it. It is then compared with itself: with one pick there is no gradient. The paper's runs leave it out,
            since with two candidates "all strategies are equivalent" there.
        steps: of the chain. The paper has 1.
        pool: fresh candidates per step; 0 for all.

    Returns:
        The indices of the picked, and the metric effective: how many equal weights the softmax over all candidates that
        may be picked is worth.

    Example:
        >>> policy = Logps(jnp.float32([[-1.0], [-9.0], [-2.0]]), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> keys = jax.random.split(jax.random.key(0), 1000)
        >>> picks = jax.vmap(lambda key: mc_kernel(policy, ref, key, beta=0.1)[0])(keys)
        >>> print(f"{jnp.mean(picks == 2):.1f} {1 / (1 + jnp.exp(-0.7)):.1f}")
        0.7 0.7

    Verified: frequencies against the softmax and, without replacement, its successive draws; the chain's stationary
    distribution; lemma 3.1 and proposition 3.3 by enumeration in float64.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, algorithm 1;
        published as ...: Your Policy Is Secretly an NLL Estimator, AAAI 2026, doi:10.1609/aaai.v40i44.41060.
    """
    unread = weight != "reward"
    holds = unread if isinstance(beta, str) else unread | (beta > 0)
    require(holds, "beta", beta, 'a number above 0, or "objective" with an objective that has a beta')
    require(temperature > 0, "temperature", temperature, "a number above 0")
    require(steps >= 1, "steps", steps, "a whole number from 1")
    require(pool >= 0, "pool", pool, "a whole number from 1, or 0 for all candidates")
    whole = steps == 1 and pool == 0
    require(replacement or whole, "replacement", replacement, "True where there are several steps, or a pool")
    start = 0 if include_state else 1
    present = presence(policy, picks, replacement, start)[start:]
    log_weight = (log_weights(policy, ref, weight, 1.0 if isinstance(beta, str) else beta) / temperature)[start:]
    worth = effective_sample_size(jnp.where(present, log_weight, ABSENT))
    metrics: dict[str, Array] = {"effective": jnp.where(jnp.any(present), worth, 0.0)}
    if whole:
        return start + draw(key, log_weight, present, picks, replacement), metrics
    state = 0 if include_state else present.shape[0]  # else nobody
    walk = functools.partial(_walk, log_weight=log_weight, present=present, state=state, steps=steps, pool=pool)
    return start + jax.vmap(walk)(jax.random.split(key, picks)), metrics


def _walk(
    key: Key, *, log_weight: Float[Array, " N"], present: Bool[Array, " N"], state: int, steps: int, pool: int
) -> Int[Array, ""]:
    """Return where the chain is after so many steps."""
    everyone = jnp.arange(present.shape[0])

    def step(state: jax.Array, key: Key) -> tuple[jax.Array, None]:
        of_pool, of_step = jax.random.split(key)
        fresh = _some(of_pool, present & (everyone != state), pool)
        return jnp.asarray(draw(of_step, log_weight, present & (fresh | (everyone == state)), 1, True)[0]), None

    return jax.lax.scan(step, jnp.int32(state), jax.random.split(key, steps))[0]


def _some(key: Key, present: Bool[Array, " N"], size: int) -> Bool[Array, " N"]:
    """Return a uniform subset of so many of those that are there, or all if there are no more; 0 means all."""
    if size == 0 or size >= present.shape[0]:
        return present
    chosen = draw(key, jnp.zeros(present.shape), present, size, False)
    return present & jnp.zeros(present.shape, bool).at[chosen].set(True)
