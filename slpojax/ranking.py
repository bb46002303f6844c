"""From comparisons of two answers to strengths of all of them.

A schedule says which pairs are compared, round by round, where a round may depend on the ones before; Bradley-Terry
turns what was played into one number an answer. Knows numbers; knows no text and no judge.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias

import numpy as np

from slpojax.base import Float

# (a, b, won): answers a and b were compared, and `won` is the probability that a is better: 1, 0, or 0.5 for a tie.
Duel: TypeAlias = tuple[int, int, float]
# Yields the pairs of a round, is sent the probability for each that its first answer is better, and so on.
Schedule: TypeAlias = Generator[list[tuple[int, int]], Sequence[float], None]

PRECISION = 0.05  # of the prior on a strength: a normal distribution around 0 with a variance of 20 squared nats
_DIGITS = 6  # of a strength; answers with the same record then tie on any machine


def duels(count: int) -> Schedule:
    """Compare the winner so far with the next answer, count - 1 times; a tie leaves the winner where it is.

    The last winner is the best answer if preferences are transitive and do not depend on the order of the two. Of the
    others little is known. MC-PO labels its samples in this way.

    Args:
        count: of answers.

    Reference:
        Chen et al., Towards Improved Preference Optimization Pipeline: from Data Generation to Budget-Controlled
        Regularization, 2024, arXiv 2411.05875, iterative pairwise ranking.
    """
    best = 0
    for other in range(1, count):
        (won,) = yield [(best, other)]
        best = best if won >= 0.5 else other


def all_pairs(count: int) -> Schedule:
    """Compare every two answers, count * (count - 1) / 2 pairs in one round.

    Args:
        count: of answers.
    """
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    if pairs:
        yield pairs


SCHEDULES: dict[str, Callable[[int], Schedule]] = {"duels": duels, "all_pairs": all_pairs}


def strengths(count: int, played: Sequence[Duel], *, precision: float = PRECISION) -> Float[np.ndarray, " K"]:
    r"""Return the Bradley-Terry strengths of answers, in nats: a beats b with probability sigmoid(s_a - s_b).

    They are where

    .. math:: \sum_{(a, b, w)} [w \log \sigma(s_a - s_b) + (1 - w) \log \sigma(s_b - s_a)] - \lambda/2 \sum_k s_k^2

    is largest. Without the prior an answer that was never beaten would be infinitely strong. Strengths sum to 0 within
    what was played, an answer that never played has 0, and the winner of `duels` without a tie is the strongest of up
    to exp(1 / (2 * precision)) answers.

    Args:
        count: of answers.
        played: the comparisons; the same two may meet several times.
        precision: lambda, above 0.

    Returns:
        The strengths, float64, rounded to six digits behind the point.

    Example:
        >>> strengths(3, [(0, 1, 1.0), (0, 2, 0.0)]), strengths(2, [(0, 1, 0.5)])
        (array([ 0.      , -2.128035,  2.128035]), array([0., 0.]))

    Raises:
        ValueError: a comparison is of an answer that is not there, or of one with itself, or its probability is none.

    Reference:
        Ralph Allan Bradley, Milton E. Terry, Rank analysis of incomplete block designs, 1952, Biometrika 39.
    """
    for number, (a, b, w) in enumerate(played):
        if not (0 <= a < count and 0 <= b < count and a != b and 0 <= w <= 1):
            raise ValueError(
                f"comparison {number}: got ({a}, {b}, {w}), expected two different answers of 0 to {count - 1} and a "
                "probability from 0 to 1"
            )
    pair = np.array([duel[:2] for duel in played], np.int64).reshape(-1, 2)
    won = np.array([duel[2] for duel in played], np.float64)
    side = np.zeros((len(played), count))  # +1 at a, -1 at b
    side[np.arange(len(played)), pair[:, 0]] += 1.0
    side[np.arange(len(played)), pair[:, 1]] -= 1.0

    def value(s: np.ndarray) -> float:
        gap = side @ s
        return float(np.sum(won * gap - np.logaddexp(0.0, gap)) - precision / 2 * s @ s)

    s = np.zeros(count)
    for _ in range(100):  # Newton's method on a strictly concave function; a step that does not climb is halved
        p = 0.5 * (1 + np.tanh(side @ s / 2))
        slope = side.T @ (won - p) - precision * s
        curvature = (side.T * (p * (1 - p))) @ side + precision * np.eye(count)
        step = np.linalg.solve(curvature, slope)
        now = value(s)
        while value(s + step) < now and np.max(np.abs(step)) > 1e-12:
            step = step / 2
        s = s + step
        if np.max(np.abs(step), initial=0.0) < 1e-12:
            break
    return np.round(s, _DIGITS) + 0.0
