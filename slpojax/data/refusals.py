"""What data cannot give, refused in the data's words: who asks for it, and which setting helps.

Knows the settings and the examples; knows needs by their names, and objectives and selectors by no more than theirs.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from slpojax.data.examples import Examples
from slpojax.data.options import Settings


class _Offer(NamedTuple):
    """What there is: the settings, the examples by the name of their part, and how many candidates are to be read."""

    settings: Settings
    parts: Mapping[str, Examples]
    fewest: int


def refuse(
    asked: Mapping[str, str],
    settings: Settings,
    parts: Mapping[str, Examples],
    *,
    objective: str,
    fewest: int,
    match_prompts: bool = False,
    diagnostics: int = 0,
) -> None:
    """Refuse a run whose data lacks what is asked for, or holds what nobody reads.

    Args:
        asked: name of a need -> who asks for it, as "objective unpaired.kto" or "selector mc_kernel". Needs that data
            does not answer are passed over.
        settings: that the examples were made by.
        parts: name of a part, "train" or "eval" -> its examples; what is trained on comes first.
        objective: name of the objective.
        fewest: candidates of an example that the objective reads at least, from 1.
        match_prompts: whether examples are weighed by their prompts.
        diagnostics: held-out examples whose gradients are evaluated; 0 for none.

    Raises:
        ValueError: says who asks for what, and which setting helps.
    """
    offer = _Offer(settings, parts, fewest)
    for need, check in _NEEDS.items():
        if need in asked:
            check(asked[need], offer)
    if match_prompts:
        _check_weights(objective, asked, offer)
    if settings.candidates.degrade:
        _check_copies(objective, asked, settings)
    if settings.candidates.mismatched and "label" not in asked:
        raise ValueError(
            f"config.data.mismatched=True adds a response to another prompt, which objective {objective} would take "
            "for one to the same prompt; set it to False, or take an objective that reads it, such as unpaired.kto"
        )
    _check_candidates(objective, asked, offer)
    if diagnostics:
        _check_diagnostics(diagnostics, offer)


def _labels(who: str, offer: _Offer) -> None:
    if all(examples.labelled for examples in offer.parts.values()):
        return
    mismatched = " --config.data.mismatched=True" if offer.fewest > 1 else ""
    raise ValueError(
        f"{who} asks for labels, which data.format={offer.settings.encoding.format} does not give; set "
        f"--config.data.unpair=True{mismatched} to make two labelled examples of each pair, or take labelled data "
        f"with --config.data.format=unpaired --config.data.candidates=1{mismatched}"
    )


def _scores(who: str, offer: _Offer) -> None:
    for name, examples in offer.parts.items():
        lacking = [of for of, indices in examples.by_source().items() if not np.any(examples.score[indices])]
        if lacking:
            source = f" of data.mixture.{lacking[0]}" * bool(lacking[0])
            raise ValueError(
                f"{who} asks for the candidates' scores, but the {name} data{source} has none; take pairs with the "
                "fields score_chosen and score_rejected, or a format of ranked responses, such as "
                "--config.data.format=ranked"
            )


def _probabilities(who: str, offer: _Offer) -> None:
    _scores(who, offer)
    for name, examples in offer.parts.items():
        score = examples.score
        outside = np.flatnonzero(np.any((score < 0) | (score > 1), axis=1))
        if outside.size:
            where = examples.places()[outside[0]]
            raise ValueError(
                f"{who} reads the candidates' scores as probabilities to win, but those of the {name} data go from "
                f"{score.min():g} to {score.max():g} ({outside.size} of {len(score)} examples, first that of row "
                f"{where}); expected 0 to 1: give a preference model's probabilities as scores, set "
                "--config.data.format=bradley_terry, which makes probabilities of scored pairs, or quantiles, which "
                "makes QRPO's of rewards, or take an objective that reads an order, such as anchored.sppo_hard"
            )


def _degrees(who: str, offer: _Offer) -> None:
    if not offer.settings.candidates.degrade:
        raise ValueError(
            f"{who} tells how much of a response's key content was removed, but config.data.degrade is 0; set "
            "--config.data.degrade=3 to add three copies of each response, with more and more removed"
        )


# The needs that data answers, and what it refuses of each.
_NEEDS: dict[str, Callable[[str, _Offer], None]] = {
    "label": _labels,
    "score": _scores,
    "probability": _probabilities,
    "degree": _degrees,
}


def _check_weights(objective: str, asked: Mapping[str, str], offer: _Offer) -> None:
    """Refuse weights that nobody reads, and those that labels would have to say."""
    if "weight" not in asked:
        raise ValueError(
            f"data.match_prompts=True weighs examples, which objective {objective} does not read; set it to False, or "
            "take an objective that does, such as unpaired.bco_unpaired"
        )
    if not all(examples.labelled for examples in offer.parts.values()):
        raise ValueError(
            "data.match_prompts=True compares the prompts of desirable and undesirable responses, which data.format="
            f"{offer.settings.encoding.format} does not label; set --config.data.unpair=True, or match_prompts to False"
        )


def _check_copies(objective: str, asked: Mapping[str, str], settings: Settings) -> None:
    """Refuse copies of the responses that nobody reads."""
    count = settings.candidates.degrade
    if "degree" not in asked:
        raise ValueError(
            f"config.data.degrade={count} adds copies of the responses, which objective {objective} does not read; set "
            "it to 0, or take an objective that does, such as self_supervised.spo"
        )


def _check_candidates(objective: str, asked: Mapping[str, str], offer: _Offer) -> None:
    """Refuse fewer candidates than the objective reads."""
    count, fewest = min(examples.candidates for examples in offer.parts.values()), offer.fewest
    if count >= fewest:
        return
    more = f"--config.data.candidates={fewest}, with data that has as many"
    if "label" in asked and not offer.settings.candidates.mismatched:
        more = "--config.data.mismatched=True, which adds a response to another prompt"
    raise ValueError(
        f"objective {objective} reads {fewest} responses of an example, the data gives {count}; set {more}"
    )


def _check_diagnostics(diagnostics: int, offer: _Offer) -> None:
    """Refuse diagnostics without held-out examples, or without a rejected response to the same prompt."""
    if len(offer.parts) < 2:
        raise ValueError(
            f"config.diagnostics={diagnostics} looks at held-out examples, but there are none: set data.eval_path, "
            "eval_split or eval_rows, or diagnostics=0"
        )
    examples = next(iter(offer.parts.values()))
    if examples.candidates < 2 or examples.labelled or offer.settings.candidates.mismatched:
        raise ValueError(
            f"config.diagnostics={diagnostics} compares a chosen with a rejected response to the same prompt, which "
            "labelled, mismatched and single responses do not have; set it to 0"
        )
