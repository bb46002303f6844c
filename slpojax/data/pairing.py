"""Pairs out of ranked candidates: which of many samples are accepted, and which are set against each other.

Knows the scores and token ids of one example; knows no text and no row of a batch. Every example has a random stream
that only the seed and the number of its record decide, so what becomes of it does not depend on the others.
"""

import itertools

import numpy as np

from slpojax import wording
from slpojax.base import Float, Int
from slpojax.data.candidates import EQUAL, FEWER
from slpojax.data.chain import Group, Transform, each
from slpojax.data.examples import Example, of_candidates
from slpojax.data.formats import Unusable
from slpojax.data.options import Candidates, Setup

KINDS = ("best", "extremes", "two_std_below", "all", "random")

AGAINST = "scores against the order of the candidates"

_PAIRED = "taken apart into pairs"
_NO_PAIR = "pair of equally good responses left out"


def pair(setup: Setup) -> Transform | None:
    """Make the pairs that `data.pairs` asks for of every example; one that gives none is dropped.

    Raises:
        ValueError: `data.pairs`, `data.accept` or `data.accept_beta` cannot be; later, a record without scores where
            `data.accept` reads them.
    """
    asked = setup.candidates
    _check(asked)
    if not asked.pairs:
        return None

    def one(group: Group) -> Group:
        [example] = group.examples
        rng = np.random.default_rng([setup.seed, example.row])
        reader = "accept" if asked.accept else "pairs=two_std_below" if asked.pairs == "two_std_below" else ""
        if reader and not group.scored:
            raise ValueError(
                f"data.{reader} reads scores, which {setup.source.path}, as data.format={setup.encoding.format}, does "
                "not give every record"
            )
        if asked.accept:
            example = rejection_sample(example, asked.accept, asked.accept_beta, rng)
        made, left_out = pairs(example, asked.pairs, rng, ordered=group.ordered)
        if not made:
            raise Unusable(_why(example) if left_out else FEWER)
        return group._replace(examples=tuple(made), notes=(*group.notes, _PAIRED, *(_NO_PAIR,) * left_out))

    return each(one)


def _why(example: Example) -> str:
    """Return why no pair is left of several."""
    return EQUAL if len({example.score[k] for k in _present(example)}) == 1 else AGAINST


def _check(asked: Candidates) -> None:
    kind, candidates, accept, beta = asked.pairs, asked.candidates, asked.accept, asked.accept_beta
    if kind not in ("", *KINDS):
        raise wording.unknown("data.pairs", kind, KINDS, also="nothing")
    if kind and candidates < 3:
        raise ValueError(
            f"data.pairs makes pairs of ranked candidates; got data.candidates={candidates}, expected >= 3"
        )
    if kind and asked.unpair:
        raise ValueError("data.pairs makes pairs, data.unpair takes them apart; set one of them")
    if accept and not (kind and 2 <= accept <= candidates and beta > 0):
        raise ValueError(
            f"data.accept={accept} and accept_beta={beta}: expected a number from 2 to data.candidates={candidates} of "
            f"those that data.pairs (now {kind!r}) makes pairs of, and a temperature above 0"
        )


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
    """Return the example with the candidates alone that `accept` draws, best first."""
    present = _present(example)
    drawn = accept(np.array([example.score[k] for k in present]), count, beta, rng)
    return of_candidates(example, sorted(present[i] for i in drawn))


def pairs(example: Example, kind: str, rng: np.random.Generator, *, ordered: bool) -> tuple[list[Example], int]:
    """Set candidates against lower ones.

    Args:
        example: best candidate first.
        kind: "best" with each of the others; "extremes": the best with the worst; "two_std_below": the best with the
            one whose score is nearest to two standard deviations below the mean of all (Xiao et al., Finding the Sweet
            Spot: Preference Data Construction for Scaling Preference Optimization, 2025, arXiv:2502.16825); "all":
            each with every one behind it, as OSP's ranked pairing (Zhai et al., Online Self-Preferring Language Models,
            2024, arXiv:2405.14103); "random": disjoint pairs of a random order, each candidate in at most one, the
            first round of a tournament and RSO's best choice.
        rng: where "random" draws from.
        ordered: whether the order of the candidates alone says which is better; else their scores do, and those of one
            score are no pair.

    Returns:
        Examples of two candidates, and the number of pairs left out, as neither candidate is better or both have the
        same tokens.
    """
    present = _present(example)
    if kind == "random":
        drawn = rng.permutation(present).tolist()
        listed = [(min(two), max(two)) for two in zip(drawn[::2], drawn[1::2], strict=False)]
    elif kind == "extremes":
        listed = [(present[0], present[-1])] if len(present) > 1 else []
    elif kind == "two_std_below":
        score = np.array([example.score[k] for k in present], np.float64)
        away = np.abs(score[1:] - (score.mean() - 2 * score.std()))
        listed = [(present[0], present[1 + int(away.argmin())])] if len(present) > 1 else []
    else:
        listed = [two for two in itertools.combinations(present, 2) if kind == "all" or two[0] == present[0]]
    better = [
        (j, k)
        for j, k in listed
        if (ordered or example.score[j] > example.score[k])
        and not np.array_equal(example.responses[j], example.responses[k])
    ]
    return [of_candidates(example, list(two)) for two in better], len(listed) - len(better)


def _present(example: Example) -> list[int]:
    """Return the numbers of the candidates that are not absent."""
    return [k for k, response in enumerate(example.responses) if len(response)]
