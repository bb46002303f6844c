"""Pairs out of ranked candidates: which are kept of many samples, and which are set against each other.

Knows the scores and token ids of one example; knows no text and no rows. Every example draws from a stream of its own,
so what becomes of it does not depend on the others.
"""

import itertools

import numpy as np

from slpojax.base import Float, Int
from slpojax.data.examples import Example

KINDS = ("best", "all", "random")


def accept(
    score: Float[np.ndarray, " K"], count: int, beta: float, rng: np.random.Generator
) -> Int[np.ndarray, " accepted"]:
    r"""Draw candidates without replacement by statistical rejection sampling.

    Round by round, every candidate that is left is accepted with probability

    .. math:: \exp\big((r - r_{max}) / \beta\big),

    r_max being the largest score that is left when the round begins, until there are enough. Of samples of a policy
    these are then samples of the policy that is optimal for the score at a KL penalty of beta. A round that has enough
    breaks off; so that this favours no one, candidates are asked in random order.

    Args:
        score: rewards of samples of one policy.
        count: how many are accepted; all, where there are no more.
        beta: above 0; a small one takes the best `count`, a large one any.
        rng: where the draws come from.

    Returns:
        Their numbers, in the order in which they were accepted.

    Reference:
        Tianqi Liu, Yao Zhao, Rishabh Joshi, Misha Khalman, Mohammad Saleh, Peter J. Liu, Jialu Liu, Statistical
        Rejection Sampling Improves Preference Optimization, 2023, arXiv:2309.06657, algorithm 1.
    """
    score, left = np.asarray(score, np.float64), rng.permutation(len(score))
    accepted: list[int] = []
    while len(left) and len(accepted) < count:
        won = rng.random(len(left)) < np.exp((score[left] - score[left].max()) / beta)
        accepted += left[won].tolist()
        left = left[~won]
    return np.array(accepted[:count], np.int32)


def rejection_sample(example: Example, count: int, beta: float, rng: np.random.Generator) -> Example:
    """Keep the candidates that `accept` draws, best first."""
    there = [k for k, response in enumerate(example.responses) if len(response)]
    drawn = accept(np.array([example.score[k] for k in there]), count, beta, rng)
    return _take(example, sorted(there[i] for i in drawn))


def pairs(example: Example, kind: str, rng: np.random.Generator, *, ordered: bool) -> tuple[list[Example], int]:
    """Set candidates against lower ones.

    Args:
        example: best candidate first.
        kind: "best" with each of the others; "all": each with every one behind it, as OSP's ranked pairing (Zhai et
            al., Online Self-Preferring Language Models, 2024, arXiv:2405.14103); "random": disjoint pairs of a random
            order, each candidate in at most one, the first round of a tournament and RSO's best choice.
        rng: where "random" draws from.
        ordered: whether the order of the candidates alone says which is better; else their scores do, and those of one
            score are no pair.

    Returns:
        Examples of two candidates, and the number of pairs left out, as neither candidate is better or both have the
        same tokens.
    """
    there = [k for k, response in enumerate(example.responses) if len(response)]
    if kind == "random":
        drawn = rng.permutation(there).tolist()
        listed = [(min(pair), max(pair)) for pair in zip(drawn[::2], drawn[1::2], strict=False)]
    else:
        listed = [pair for pair in itertools.combinations(there, 2) if kind == "all" or pair[0] == there[0]]
    better = [
        (j, k)
        for j, k in listed
        if (ordered or example.score[j] > example.score[k])
        and not np.array_equal(example.responses[j], example.responses[k])
    ]
    return [_take(example, list(pair)) for pair in better], len(listed) - len(better)


def _take(example: Example, picked: list[int]) -> Example:
    return example._replace(
        responses=tuple(example.responses[k] for k in picked), score=tuple(example.score[k] for k in picked)
    )
