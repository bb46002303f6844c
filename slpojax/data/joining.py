"""Samples of the policy beside given pairs: answers to the prompt of a record go behind its own responses.

Knows token ids and files of samples; knows no model. A prompt is found by its token ids, so it must be asked as it is
trained on: one that was cut, or written by another template, has no sample. Answers are taken as they were sampled.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from slpojax import samples
from slpojax.data import token_ids
from slpojax.data.chain import Group, Transform, each
from slpojax.data.examples import of_candidates, with_candidates
from slpojax.data.formats import Parsed, Tokens, Unusable
from slpojax.data.options import Setup
from slpojax.samples import Sample

PAIR = 2  # responses that stay of a record
UNANSWERED = "no sample of the policy to its prompt"
_SHORT = "fewer samples of the policy to its prompt than data.candidates leaves places for"


def join(setup: Setup) -> Transform | None:
    """Put answers of `Source.samples` into the places behind a pair, as many as `data.candidates` leaves.

    The first record with a prompt takes the answers that its first asking got, the second those of the second, in turn.
    A record whose prompt nobody asked is dropped, as are none of what is held out: there the places stay empty.

    Raises:
        ValueError: there are no places, or other settings change the candidates; later, a line that is no sample.
    """
    asked, source = setup.candidates, setup.source
    if not source.samples:
        return None
    if asked.candidates <= PAIR:
        raise ValueError(
            f"data.samples puts answers behind the two of a pair, and data.candidates={asked.candidates} leaves no "
            "place for one; expected 3 or more"
        )
    others = [name for name in ("pairs", "unpair", "mismatched", "degrade", "swapped") if getattr(asked, name)]
    if others:
        raise ValueError(f"data.samples and data.{others[0]} both change the candidates; set one of them")
    places = asked.candidates - PAIR
    names = tuple(f"sample {k + 1}" for k in range(places)) if places > 1 else ("sample",)
    turns = None if source.held_out else _turns(source.samples)

    def one(group: Group) -> Group:
        [example] = group.examples
        if turns is None:
            return group._replace(added=(*group.added, *names))
        drawn = next(turns[tuple(example.prompt.tolist())], None)
        if drawn is None:
            raise Unusable(UNANSWERED)
        answers = tuple(Tokens(tuple(y.ids), y.output, y.finished) for y in drawn[:places])
        taken = token_ids.examine(Parsed(Tokens(tuple(example.prompt.tolist())), answers), setup.tokenizer)
        absent = (np.zeros(0, np.int32),) * (places - len(answers))
        pair = of_candidates(example, range(PAIR))
        made = with_candidates(pair, (*taken.responses, *absent), example.score[PAIR:])
        notes = (*group.notes, *taken.notes, *(_SHORT,) * bool(absent))
        return group._replace(examples=(made,), added=(*group.added, *names), notes=notes)

    return each(one)


def _turns(path: str) -> defaultdict[tuple[int, ...], Iterator[list[Sample]]]:
    """Return prompt -> the answers of its askings in turn, without end; of a prompt that nobody asked, none."""
    found: dict[tuple[int, ...], list[list[Sample]]] = {}
    for answers in samples.by_prompt(samples.read(path)):
        own = [one for one in answers if samples.PLAYER not in one.about]
        found.setdefault(tuple(answers[0].prompt_ids), []).append(own)
    empty: Iterator[list[Sample]] = iter(())
    return defaultdict(lambda: empty, {prompt: itertools.cycle(askings) for prompt, askings in found.items()})
