"""What the objectives of pairs share: rewards, margins, labels that may be wrong, losses inside other losses.

Knows the first two candidates of an example; holds no objective. Candidate 0 is preferred to candidate 1.
"""

import functools

import jax

from slpojax.base import Array, Bool, Float, Logps, Scalar
from slpojax.objectives import Objective, build, defaults, require
from slpojax.sequence import first, log_ratio, preference_metrics


def rewards(beta: Scalar, policy: Logps, ref: Logps) -> tuple[Float[Array, "2"], dict[str, Array]]:
    """Return beta times the log-ratios, and the metrics."""
    require(beta > 0, "beta", beta, "a number above 0")
    reward = beta * log_ratio(first(policy, 2), first(ref, 2))
    return reward, preference_metrics(policy, reward)


def margin(beta: Scalar, policy: Logps, ref: Logps) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return the difference of the two rewards, and the metrics."""
    reward, metrics = rewards(beta, policy, ref)
    return reward[0] - reward[1], metrics


def smoothed(z: Float[Array, ""], label_smoothing: Scalar) -> Float[Array, ""]:
    """Return the logistic loss of a margin whose label is wrong with this probability, epsilon:

    -(1 - epsilon) log sigmoid(z) - epsilon log sigmoid(-z).
    """
    holds = (0 <= label_smoothing) & (label_smoothing < 0.5)
    require(holds, "label_smoothing", label_smoothing, "a number from 0 to below 1/2")
    return jax.nn.softplus(-z) + label_smoothing * z


def score_gap(score: Float[Array, " K"]) -> Float[Array, ""]:
    """Return by how much the score of candidate 0 exceeds that of candidate 1."""
    return score[0] - score[1]


def present(logps: Logps) -> Bool[Array, "2"]:
    """Return the presence mask of the two responses, for statistics over the batch."""
    return first(logps, 2).length > 0


@functools.cache
def built(loss: str) -> Objective:
    """Return an objective with its defaults; a call of its function replaces those that it names."""
    return build(loss)


def inner(loss: str, expected: str) -> Objective:
    """Return the objective that another one changes, its hyperparameter `loss`.

    Raises:
        ValueError: it has no beta, or reads more than log-probs; says what was expected.
    """
    require("beta" in defaults(loss), "loss", loss, expected)
    objective = built(loss)
    require(objective.needs <= {"policy", "ref"}, "loss", loss, expected)
    return objective
