"""How a reference follows the policy: by a mean of both every so many steps, or by bias-corrected averages.

Knows parameters as trees of arrays; knows no model, no objective and no configuration. What follows is in the state of
training, as far as the policy's parameters move.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from slpojax import readers
from slpojax.base import Array, Params


class Moving(NamedTuple):
    """A reference that every `every` steps becomes mix * policy + (1 - mix) * reference.

    Reference:
        Alexey Gorbatovski, Boris Shaposhnikov, Alexey Malakhov, Nikita Surnachev, Yaroslav Aksenov, Ian Maksimov,
        Nikita Balagansky, Daniil Gavrilov, Learn Your Reference Model for Real Good Alignment, 2024, arXiv:2404.09656:
        the soft update is mix < 1, the hard one mix = 1.
    """

    every: int
    mix: float


class Bema(NamedTuple):
    r"""A reference that every `every` steps becomes the policy's bias-corrected exponential moving average.

    .. math:: ref = m_t + \alpha_t (\theta_t - \theta_0), \quad m_t = (1 - \beta_t) m + \beta_t \theta_t, \quad
        \alpha_t = (\rho + t)^{-\eta}, \; \beta_t = (\rho + t)^{-\kappa}

    theta_0, with which m begins, is the policy before the first step, and t counts the steps; m moves as seldom as the
    reference does. So it is in TRL's BEMACallback with the reference's update as frequent as the average's, which was
    read; its factor of t (gamma) is 1, its burn-in (tau) and its least beta are 0.

    Attributes:
        every: steps between two updates.
        ema_power: kappa, from 0 (m is the policy).
        bias_power: eta, from 0 (the whole way from the start is added); large is the average alone.
        lag: rho, the age of the average at the first step, from 1.

    Reference:
        Adam Block, Cyril Zhang, EMA Without the Lag: Bias-Corrected Iterate Averaging Schemes, 2025, arXiv:2508.00180,
        algorithm 1.
    """

    every: int
    ema_power: float
    bias_power: float
    lag: float


class Averages(NamedTuple):
    """What a state holds of a `Bema` reference.

    Attributes:
        reference: its parameters.
        mean: m.
        start: theta_0.
    """

    reference: Params
    mean: Params
    start: Params


Rule: TypeAlias = Moving | Bema


def held_first(rule: Rule | None, reference: Params | None, policy: Params) -> Any:
    """Return what the first state holds of a reference; None where it stays.

    Args:
        rule: how it follows.
        reference: its first parameters.
        policy: the policy's, without those of readers.
    """
    return Averages(reference, policy, policy) if isinstance(rule, Bema) else reference


def parameters(held: Any) -> Params | None:
    """Return the reference's parameters of what a state holds of it."""
    return held.reference if isinstance(held, Averages) else held


def move(rule: Rule | None, held: Any, policy: Params, step: Array) -> Any:
    """Return what the state behind a step holds of the reference.

    Args:
        rule: how it follows; None where it stays.
        held: what the state before it held.
        policy: the policy's parameters behind the step.
        step: its number, from 1.
    """
    if rule is None:
        return held

    def moved() -> Any:
        here = readers.without(policy)
        return _averaged(rule, held, here, step) if isinstance(rule, Bema) else _mixed(rule, held, here)

    return jax.lax.cond(step % rule.every == 0, moved, lambda: held)


def _mixed(rule: Moving, reference: Params, policy: Params) -> Params:
    return jax.tree.map(lambda r, p: rule.mix * p + (1 - rule.mix) * r, reference, policy)


def _averaged(rule: Bema, held: Averages, policy: Params, step: Array) -> Averages:
    age = rule.lag + step.astype(jnp.float32)
    alpha, beta = age**-rule.bias_power, age**-rule.ema_power
    mean = jax.tree.map(lambda m, p: (1 - beta) * m + beta * p, held.mean, policy)
    reference = jax.tree.map(lambda m, p, p0: m + alpha * (p - p0), mean, policy, held.start)
    return Averages(reference, mean, held.start)
