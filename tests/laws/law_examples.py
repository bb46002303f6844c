"""Objectives in a module of their own that use what the contract offers: the laws hold them to it."""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Key, Logps
from slpojax.sequence import first, log_ratio

OVER_ALL = ("best_of_all",)


def noisy(policy: Logps, ref: Logps, key: Key, *, beta: float = 0.1) -> tuple[Array, dict[str, Array]]:
    """DPO with noise on the margin and on the tokens' weights."""
    of_margin, of_token = jax.random.split(key)
    places = jnp.arange(policy.token.shape[-1])
    weight = 1 + 0.1 * jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(of_token, t)))(places)
    here, there = first(policy, 2), first(ref, 2)
    reward = jnp.sum(weight[None, :] * (here.token - there.token), axis=-1)
    margin = reward[0] - reward[1] + jax.random.normal(of_margin)
    return jax.nn.softplus(-beta * margin), {"noisy": margin}


def best_of_all(policy: Logps, ref: Logps, *, beta: float = 0.1) -> tuple[Array, dict[str, Array]]:
    """The preferred one against the likeliest of all the others that are there."""
    first(policy, 2)
    reward = beta * log_ratio(policy, ref)
    others = jnp.where(jnp.asarray(policy.length)[1:] > 0, reward[1:], -1e30)
    return jax.nn.softplus(jax.nn.logsumexp(others) - reward[0]), {}


def running(
    policy: Logps, ref: Logps, state: Array | float = 1.0, *, beta: float = 0.1
) -> tuple[Array, dict[str, Array], Array]:
    """DPO around a running mean of the margins."""
    reward = beta * log_ratio(first(policy, 2), first(ref, 2))
    margin = reward[0] - reward[1]
    mean = 0.9 * state + 0.1 * jax.lax.pmean(jax.lax.stop_gradient(margin), "batch")
    return jax.nn.softplus(mean - margin), {"mean": mean}, mean
