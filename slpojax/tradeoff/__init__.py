r"""Reward against its price in KL: what several runs of a method, of several strengths and seeds, say together.

A run is a path: its evaluations, from the reference at KL 0 on. Between two evaluations next to each other the path is
straight in (sqrt(KL), reward), the coordinates in which the best a policy can do near its reference is a straight line.
At a KL budget a run is worth the largest reward that it has anywhere with at most that KL. A method is worth the mean
over seeds of the strength whose mean is largest, as far as some strength takes all its seeds to the budget; nothing
(NaN) is said beyond, as no policy was seen there. Picking a checkpoint and a strength in hindsight favours every method
alike, by about the noise of an evaluation.

Errors are over seeds: the standard deviation with n - 1, and the standard error of the mean, which is that over
sqrt(n). Seeds share everything but the method (reference, data, prompts), so methods are compared seed by seed.
Knows numbers; knows no file, no picture and no method.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from slpojax.base import Float

FEWEST = 30.0  # answers that a tilted sample of the reference must be worth for its KL to be believed


class Path(NamedTuple):
    """The evaluations of a run, in order.

    Attributes:
        kl: [N] nats per answer; estimates below 0 count as 0.
        reward: [N] what was gained.
    """

    kl: Float[np.ndarray, " N"]
    reward: Float[np.ndarray, " N"]


class Mean(NamedTuple):
    """A mean over seeds: with its standard deviation and standard error (NaN for one seed)."""

    mean: float
    std: float
    error: float
    seeds: int


class Best(NamedTuple):
    """What a method is worth at a KL budget.

    Attributes:
        strength: the one whose mean is largest; None where none takes all its seeds to the budget.
        values: seed -> reward there.
    """

    strength: str | None
    values: Mapping[int, float]


NOWHERE = Best(None, {})


def reach(path: Path) -> float:
    """Return the largest KL of a run."""
    return float(np.max(path.kl, initial=0.0))


def within(path: Path, budget: float | int) -> float:
    """Return the largest reward that a run has with at most this KL.

    Args:
        path: of a run; where it begins with more KL than the budget, there is none (NaN).
        budget: KL in nats per answer, from 0.

    Example:
        >>> within(Path(np.array([0.0, 1.0, 4.0]), np.array([0.0, 1.0, 3.0])), 2.25)
        2.0
    """
    way, reward, goal = np.sqrt(np.maximum(path.kl, 0.0)), np.asarray(path.reward, np.float64), math.sqrt(budget)
    found = reward[way <= goal].tolist()
    for i in range(len(way) - 1):
        a, b = float(way[i]), float(way[i + 1])
        if min(a, b) < goal < max(a, b):
            share = (goal - a) / (b - a)
            found.append(float((1 - share) * reward[i] + share * reward[i + 1]))
    return max(found, default=math.nan)


def over_seeds(values: Sequence[float]) -> Mean:
    """Return mean, standard deviation and standard error.

    Example:
        >>> over_seeds([1.0, 2.0, 3.0])
        Mean(mean=2.0, std=1.0, error=0.5773502691896258, seeds=3)
    """
    known = np.asarray(values, np.float64)
    if not known.size:
        return Mean(math.nan, math.nan, math.nan, 0)
    std = float(known.std(ddof=1)) if known.size > 1 else math.nan
    return Mean(float(known.mean()), std, std / math.sqrt(known.size), known.size)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Mean:
    """Return the mean of the differences, seed by seed, over the seeds that both have.

    Example:
        >>> paired({0: 1.5, 1: 2.5, 2: 9.0}, {0: 1.0, 1: 2.0})
        Mean(mean=0.5, std=0.0, error=0.0, seeds=2)
    """
    return over_seeds([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def best_at(strengths: Mapping[str, Mapping[int, Path]], budget: float | int) -> Best:
    """Return the strength that is worth most at a budget; `NOWHERE` if none takes all its seeds so far.

    Args:
        strengths: strength -> seed -> path.
        budget: KL in nats per answer.
    """
    if not any(paths and min(map(reach, paths.values())) >= budget for paths in strengths.values()):
        return NOWHERE
    worth = [
        Best(strength, {seed: within(path, budget) for seed, path in paths.items()})
        for strength, paths in strengths.items()
        if paths
    ]
    return max(worth, key=lambda best: over_seeds([*best.values.values()]).mean)


def best_possible(
    scores: Sequence[Float[np.ndarray, " n"]], budgets: Sequence[float] | Float[np.ndarray, " budgets"]
) -> Float[np.ndarray, " budgets"]:
    r"""Return the largest mean reward gained that any policy has at each KL, in standard deviations of the reference's.

    .. math:: p_\eta(y | x) \propto P_{ref}(y | x) e^{\eta r(y)}, \quad
        KL(\eta) = \eta E_\eta[r] - \log E_{ref}[e^{\eta r}]

    No policy of the same KL to the reference, in the mean over prompts, has a larger mean reward than the reference
    tilted by one eta at all prompts. Estimated from samples of the reference. For a normal reward it is sqrt(2 KL).

    Args:
        scores: of each prompt, rewards of answers that the reference gave.
        budgets: KL in nats per answer.

    Returns:
        NaN where the tilted samples of a prompt are worth fewer than `FEWEST` answers.

    Reference:
        Leo Gao, John Schulman, Jacob Hilton, Scaling Laws for Reward Model Overoptimization, 2022, arXiv:2210.10760,
        whose gold reward is drawn over the square root of the KL.
    """
    spread = float(np.concatenate(list(scores)).std()) or math.nan
    points = [(0.0, 0.0)]
    for eta in np.geomspace(1e-3, 1e3, 600) / spread:
        tilted = [_tilt(np.asarray(score, np.float64), float(eta)) for score in scores]
        gain, kl, worth = (np.array(part) for part in zip(*tilted, strict=True))
        if worth.min() < FEWEST:
            break
        points.append((float(kl.mean()), float(gain.mean()) / spread))
    kl, gain = np.array(points).T
    roots = np.sqrt(np.asarray(budgets, np.float64))
    return np.where(roots <= math.sqrt(kl[-1]), np.interp(roots, np.sqrt(kl), gain), np.nan)


def _tilt(score: Float[np.ndarray, " n"], eta: float) -> tuple[float, float, float]:
    """Return what the tilted sample gains, its KL, and how many answers it is worth."""
    exponent = eta * (score - score.max())
    weight = np.exp(exponent)
    log_mean = math.log(weight.mean())
    weight /= weight.sum()
    kl = float(weight @ exponent) - log_mean
    return float(weight @ score - score.mean()), max(kl, 0.0), float(1 / np.sum(weight**2))
