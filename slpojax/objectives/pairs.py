"""What the objectives of pairs share: their rewards, their margin, and who of the batch is there.

Knows the first two candidates of an example; holds no objective. Candidate 0 is preferred to candidate 1.
"""

from slpojax.base import Array, Bool, Float, Logps
from slpojax.objectives import Objective, build, defaults, require
from slpojax.sequence import first, log_ratio, preference_metrics


def rewards(beta: float, policy: Logps, ref: Logps) -> tuple[Float[Array, "2"], dict[str, Array]]:
    """Return beta times the log-ratios, and the metrics."""
    require(beta > 0, "beta", beta, "a number above 0")
    reward = beta * log_ratio(first(policy, 2), first(ref, 2))
    return reward, preference_metrics(policy, reward)


def margin(beta: float, policy: Logps, ref: Logps) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return the difference of the two rewards, and the metrics."""
    reward, metrics = rewards(beta, policy, ref)
    return reward[0] - reward[1], metrics


def inner(loss: str, beta: float, expected: str) -> Objective:
    """Return the objective that another one changes, its hyperparameter `loss`.

    Raises:
        ValueError: it has no beta, or reads more than log-probs; says what was expected.
    """
    require("beta" in defaults(loss), "loss", loss, expected)
    objective = build(loss, beta=beta)
    require(objective.needs <= {"policy", "ref"}, "loss", loss, expected)
    return objective


def here(logps: Logps) -> Bool[Array, "2"]:
    """Tell which of the two responses are there, for statistics over the batch."""
    return first(logps, 2).length > 0
