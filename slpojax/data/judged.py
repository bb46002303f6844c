"""Judged answers of a policy as data: best first, or as they were sampled with what the judge said of them.

Knows records of `slpojax.samples`; knows no judge and no tokenizer. The token ids are those that were sampled; no text
is tokenised. A prompt that the judge skipped gives no example, and is counted under the judge's reason.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slpojax import samples as records
from slpojax.data.parsed import Parsed, Tokens
from slpojax.data.turns import Unusable
from slpojax.samples import Judged

_SKIPPED = "skipped by the judge"
_REASON = 80  # characters of a judge's reason that are shown


def samples(record: Mapping[str, Any]) -> Parsed:
    """`prompt_ids` and the `ids` of K answers with their `scores`, best first: what `slpojax.judge` writes.

    The token ids are those that were sampled; no text is tokenised. `slpojax.samples.Judged` says what else a line of
    its file holds. A prompt that the judge skipped gives no example, and is counted under the judge's reason.
    """
    one = _judged(record)
    scores = _scores(one)
    order = sorted(range(len(one.ids)), key=lambda k: -scores[k])
    return _parsed(one, order, scores)


def samples_in_order(record: Mapping[str, Any]) -> Parsed:
    """The same as `samples`, in the order in which the answers were sampled: for a game of several players.

    The last answer is that of the second player (`generate.second`), where there is one. No answer is left out, as
    none is a better or a worse one by its place: what the judge says stands in `scores`.
    """
    one = _judged(record)
    return _parsed(one, range(len(one.ids)), _scores(one))._replace(sampled=True)


def samples_versus_last(record: Mapping[str, Any]) -> Parsed:
    """The same as `samples_in_order`, where `scores` become probabilities: of each answer to beat the last one.

    Where a judge compared the two, it is what the judge said; else the logistic function of the difference of their
    scores, the model of Bradley and Terry. Answers that are all alike, about which a judge is not asked, win one half.
    """
    one = _judged(record)
    last, alike = len(one.ids) - 1, len(one.ids) > 1 and len(set(one.outputs)) == 1
    scores = [0.0] * len(one.ids) if alike and one.scores is None else _scores(one)
    won = [0.5 * (1 + math.tanh((score - scores[last]) / 2)) for score in scores]
    for a, b, w in one.duels or ():
        if last in (a, b):
            won[min(a, b)] = w if b == last else 1 - w
    return _parsed(one, range(last + 1), won)._replace(sampled=True)


def samples_quantiles(record: Mapping[str, Any]) -> Parsed:
    """The same as `samples_in_order`, of a reference's own answers, where `scores` become their quantiles, for QRPO.

    The quantile of an answer is the share of the prompt's answers, itself among them, whose score is no higher. So it
    is that among the reference's samples where the reference gave them all, and no more exact than they are many.
    """
    one = _judged(record)
    scores = _scores(one)
    shares = [sum(other <= score for other in scores) / len(scores) for score in scores]
    return _parsed(one, range(len(one.ids)), shares)._replace(sampled=True)


def _judged(record: Mapping[str, Any]) -> Judged:
    try:
        return records.judged(record, "the judgement")
    except ValueError as error:
        raise TypeError(str(error)) from None


def _scores(one: Judged) -> Sequence[float]:
    if one.scores is None:
        raise Unusable(f"{_SKIPPED}: {' '.join(one.skipped.split())[:_REASON]}")
    return one.scores


def _parsed(one: Judged, order: Sequence[int], scores: Sequence[float]) -> Parsed:
    return Parsed(
        Tokens(tuple(one.prompt_ids), one.prompt if isinstance(one.prompt, str) else ""),
        tuple(Tokens(tuple(one.ids[k]), one.outputs[k], one.finished[k]) for k in order),
        tuple(scores[k] for k in order),
    )
