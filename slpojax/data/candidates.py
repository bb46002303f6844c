"""Which candidates of a record stand beside its best one: by rank and text, later by their token ids.

Knows ranks, scores and whether two responses are the same; knows no tokenizer and no pair.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from slpojax import wording
from slpojax.data import turns
from slpojax.data.chain import Group, Text, Transform, each
from slpojax.data.examples import of_candidates, with_candidates
from slpojax.data.formats import Messages, Parsed, Tokens, Unusable
from slpojax.data.options import Setup
from slpojax.data.report import Tally

TIES = ("drop", "keep")
FEWER = "fewer responses than data.candidates"
EQUAL = "all candidates ranked equal"
ALIKE = "samples are all alike"

_EMPTY = "empty response"
_IDENTICAL = "identical responses"
_EMPTY_LEFT_OUT = "empty response left out"
_TIE_LEFT_OUT = "candidate ranked equal to the best left out"
_IDENTICAL_LEFT_OUT = "response identical to the best left out"
_UNSCORED = "without scores, which count as 0 beside records that have some"


def keep(setup: Setup) -> Transform:
    """Keep the best response and the next ones that can stand beside it; note those that are passed over.

    Of responses that stand as they were sampled the first ones are kept, whatever they say.

    Raises:
        ValueError: `data.ties` is unknown, or `data.candidates` below 1.
    """
    most, ties = setup.candidates.candidates, setup.candidates.ties
    if most < 1:
        raise ValueError(f"data.candidates={most}: expected 1 (single responses) or more")
    if ties not in TIES:
        raise wording.unknown("data.ties", ties, TIES)
    if setup.source.samples:  # which have the places behind a pair
        most = min(2, most)
    least, drop_ties = min(2, most), ties == "drop" and not setup.candidates.pairs
    penalised = bool(setup.rules.length_penalty)  # scores that are equal here may not be so with it

    def one(text: Text) -> Text:
        parsed = text.parsed
        if len(parsed.responses) < least:
            raise Unusable(FEWER)
        if parsed.sampled:
            _require_rank_free(setup)
            return text._replace(parsed=_picked(parsed, range(len(parsed.responses))[:most]))
        if least > 1 and isinstance(parsed.prompt, Tokens) and len(set(parsed.responses)) == 1:
            raise Unusable(ALIKE)
        if _blank(parsed.responses[0]):
            raise Unusable(_EMPTY)
        # Scores rank the candidates unless the record itself states their order.
        ranked = parsed.scores if not parsed.stated else None
        places, notes = [0], []
        for k, response in enumerate(parsed.responses[1:], 1):
            if len(places) == most:
                break
            if _blank(response):
                notes.append(_EMPTY_LEFT_OUT)
            elif drop_ties and ranked and ranked[k] == ranked[0]:
                notes.append(_TIE_LEFT_OUT)
            else:
                places.append(k)
        if len(places) < least:
            raise Unusable(EQUAL if _TIE_LEFT_OUT in notes else _EMPTY)
        if ranked and not penalised and len(places) > 1 and len({ranked[k] for k in places}) == 1:
            raise Unusable(EQUAL)
        return text._replace(parsed=_picked(parsed, places), notes=(*text.notes, *notes))

    return each(one)


def _require_rank_free(setup: Setup) -> None:
    """Refuse settings that take the first candidate for the best, where candidates stand as they were sampled."""
    asked = [name for name in ("pairs", "unpair", "degrade", "swapped") if getattr(setup.candidates, name)]
    if asked:
        raise ValueError(
            f"data.{asked[0]} takes the first candidate for the best, and data.format={setup.encoding.format} has them "
            f"as they were sampled; take data.format=samples, or leave data.{asked[0]} out"
        )


def _picked(parsed: Parsed, places: Sequence[int]) -> Parsed:
    """Return what was parsed with these responses alone."""
    scores = parsed.scores and tuple(parsed.scores[k] for k in places)
    return parsed._replace(responses=tuple(parsed.responses[k] for k in places), scores=scores)


def distinct(setup: Setup) -> Transform:
    """Leave out candidates with the token ids of the best, and fill up with absent ones to the number asked for."""
    most = setup.candidates.candidates

    def one(group: Group) -> Group:
        [example] = group.examples
        best, *others = example.responses
        left = [0, *(k for k, ids in enumerate(others, 1) if group.sampled or not np.array_equal(ids, best))]
        if len(left) < min(2, most):
            raise Unusable(_IDENTICAL)
        absent = most - len(left)
        few = absent > 0 and not setup.source.samples
        notes = (_IDENTICAL_LEFT_OUT,) * (1 + len(others) - len(left)) + (FEWER,) * few
        made = with_candidates(of_candidates(example, left), [np.zeros(0, np.int32)] * absent, [0.0] * absent)
        return group._replace(examples=(made,), notes=(*group.notes, *notes))

    return each(one)


def compare_scores(_: Setup) -> Transform:
    """Note the records without scores in a data set where some have them: 0 takes the place of theirs."""

    def transform(items: Iterable[Group], tally: Tally) -> Iterator[Group]:
        groups = list(items)
        some = any(group.scored for group in groups)
        for group in groups:
            yield group._replace(notes=(*group.notes, _UNSCORED)) if some and not group.scored else group

    return transform


def _blank(response: str | Messages | Tokens) -> bool:
    if isinstance(response, Tokens):
        return not response.ids or not response.text.strip()
    return not response.strip() if isinstance(response, str) else turns.blank(response)
