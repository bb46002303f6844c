"""What scores decide beside the order of candidates: a penalty on length, prompts that teach little, pairs too near.

Knows the scores and lengths of one example; knows no text and no row of a batch.
"""

import numpy as np

from slpojax.base import Float
from slpojax.data.chain import Group, Transform, each
from slpojax.data.examples import Example, of_candidates, which
from slpojax.data.formats import Unusable
from slpojax.data.options import Setup

VARIANCE = "preference variance below data.least_variance"
GAP = "scores nearer to each other than data.least_gap"

_REORDERED = "ranked otherwise by data.length_penalty"
_GAP_LEFT_OUT = "pair of scores nearer to each other than data.least_gap left out"


def penalise(setup: Setup) -> Transform | None:
    r"""Take `data.length_penalty` from every score for each token of its response, and rank by what is left.

    .. math:: r'(y) = r(y) - \lambda |y|

    |y| is the number of tokens that count, EOS included, after any cut. What is left is the score from here on. (Dong
    et al., RLHF Workflow: From Reward Modeling to Online RLHF, 2024, arXiv 2405.07863; from memory, and there |y|
    counts characters.)

    Raises:
        ValueError: no `data.pairs` are made; later, a record without scores that rank.
    """
    penalty = setup.rules.length_penalty
    if not penalty:
        return None
    if not setup.candidates.pairs:
        raise ValueError(
            f"data.length_penalty={penalty:g} ranks the candidates that pairs are made of, and data.pairs is ''; set it"
        )

    def one(group: Group) -> Group:
        _require_scores(setup, group, "length_penalty", rank=True)
        [example] = group.examples
        score = np.array(example.score) - penalty * np.array([one.sum() for one in which(example)])
        order = np.argsort(-score, kind="stable").tolist()
        made = of_candidates(example, order)._replace(score=tuple(score[order].tolist()))
        moved = order != sorted(order)
        return group._replace(examples=(made,), notes=(*group.notes, *(_REORDERED,) * moved))

    return each(one)


def vary(setup: Setup) -> Transform | None:
    """Drop the prompts whose preference variance is below `data.least_variance`, see `preference_variance`.

    Raises:
        ValueError: later, a record without scores.
    """
    least = setup.rules.least_variance
    if not least:
        return None

    def one(group: Group) -> Group:
        _require_scores(setup, group, "least_variance")
        [example] = group.examples
        there = [score for score, response in zip(example.score, example.responses, strict=True) if len(response)]
        if preference_variance(np.array(there)) < least:
            raise Unusable(VARIANCE)
        return group

    return each(one)


def preference_variance(score: Float[np.ndarray, " K"]) -> float:
    r"""Return the variance of the probability that one answer is preferred to another, over all ordered pairs of two.

    .. math:: \mathrm{Var}_{i \neq j}\big[\sigma(r_i - r_j)\big]

    It goes from 0, where all scores are equal, to 1/4. A prompt with little of it gives DPO a small gradient. The
    paper draws both answers from the policy; here they are two different candidates.

    Args:
        score: of each candidate, in nats of preference as a reward model of Bradley and Terry gives them.

    Example:
        >>> preference_variance(np.array([0.0, 0.0])), round(preference_variance(np.array([1.0, 0.0, 0.0])), 4)
        (0.0, 0.0356)

    Reference:
        Jiacheng Guo, Zihao Li, Jiahao Qiu, Yue Wu, Mengdi Wang, On the Role of Preference Variance in Preference
        Optimization, 2025, arXiv:2510.13022.
    """
    if len(score) < 2:
        return 0.0
    wins = 0.5 * (1 + np.tanh((score[:, None] - score[None]) / 2))
    return float(np.var(wins[~np.eye(len(score), dtype=bool)]))


def separate(setup: Setup) -> Transform | None:
    """Leave out the pairs whose better response is not at least `data.least_gap` above the other one by its score.

    Raises:
        ValueError: examples of more than two candidates; later, a record without scores.
    """
    least, asked = setup.rules.least_gap, setup.candidates
    if not least:
        return None
    if asked.candidates != 2 and not asked.pairs:
        raise ValueError(
            f"data.least_gap={least:g} looks at the two responses of a pair, and data.candidates={asked.candidates} "
            "without data.pairs makes none; set data.pairs, or data.candidates=2"
        )

    def one(group: Group) -> Group:
        _require_scores(setup, group, "least_gap")
        kept = tuple(example for example in group.examples if _gap(example) >= least)
        if not kept:
            raise Unusable(GAP)
        return group._replace(
            examples=kept, notes=(*group.notes, *(_GAP_LEFT_OUT,) * (len(group.examples) - len(kept)))
        )

    return each(one)


def _gap(example: Example) -> float:
    return example.score[0] - example.score[1]


def _require_scores(setup: Setup, group: Group, key: str, *, rank: bool = False) -> None:
    """Refuse a record without scores, or where the scores must `rank` the candidates one whose order is stated."""
    if not group.scored or (rank and (group.ordered or group.sampled)):
        raise ValueError(
            f"data.{key} reads scores{' that rank the responses' * rank}, which {setup.source.path}, as data.format="
            f"{setup.encoding.format}, does not give every record (row {group.row}); set data.{key}=0, or take a "
            "format with scores"
        )
