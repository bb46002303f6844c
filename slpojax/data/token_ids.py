"""Token ids that a record gives: taken as they were sampled, closed where they ended, and seen to be the tokenizer's.

Knows token ids and a tokenizer; knows no file and no limit on lengths. No text is tokenised here, and none decides what
is trained on: it shows whether the ids are those of this tokenizer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slpojax.data.chain import Text
from slpojax.data.formats import Parsed, Tokens, Unusable
from slpojax.data.marks import Ids, Tokenizer
from slpojax.data.options import Setup

STRAY = "EOS inside the sampled ids"
CUT = "answer that was cut while it was sampled (no EOS)"
STOPPED = "answer that a stop string ended, closed by EOS"
_ENOUGH = 8  # answers that are compared before anything is said of them


class Taken(NamedTuple):
    """A prompt with its responses, and what the report counts of them."""

    prompt: Ids
    responses: tuple[Ids, ...]
    notes: tuple[str, ...]


def examine(parsed: Parsed, tokenizer: Tokenizer) -> Taken:
    """Return the ids of a record: the prompt's as they are, and a response's with EOS where it ended by itself.

    An answer ended by itself where its last token is special, as EOS is. One that ended without, at a stop string, is
    closed by EOS; one that was cut is not.

    Raises:
        Unusable: EOS stands where an answer goes on.
    """
    eos, ends = tokenizer.eos_token_id, _special(tokenizer)
    prompt, responses, notes = parsed.prompt, [], []
    assert isinstance(prompt, Tokens)
    for one in parsed.responses:
        assert isinstance(one, Tokens)
        ids = np.array(one.ids, np.int32)
        if (ids[:-1] == eos).any():
            raise Unusable(STRAY)
        if not one.finished:
            notes.append(CUT)
        elif not len(ids) or ids[-1] not in ends:
            notes.append(STOPPED)
            ids = np.append(ids, np.int32(eos))
        responses.append(ids)
    return Taken(np.array(prompt.ids, np.int32), tuple(responses), tuple(notes))


def require_same_tokenizer(texts: Sequence[Text], tokenizer: Tokenizer, path: str) -> None:
    """Refuse ids of another tokenizer: the texts beside most of them are not what this one makes of them.

    Args:
        texts: some of the records.
        tokenizer: of the policy.
        path: of the records, for the error.

    Raises:
        ValueError: says how many texts are others, and what to do.
    """
    answers = [one for text in texts for one in text.parsed.responses if isinstance(one, Tokens) and one.text.strip()]
    other = [one for one in answers if one.text.strip() not in _text(tokenizer, one)]
    if len(answers) >= _ENOUGH and 2 * len(other) > len(answers):
        raise ValueError(
            f"{path}: {len(other)} of {len(answers)} answers are not what this tokenizer makes of their ids: they come "
            "from a model with another one; set model.path or data.tokenizer to it, or sample anew"
        )


def special(setup: Setup) -> str:
    """Return a line on the special tokens."""
    eos = f"EOS {setup.tokenizer.eos_token} ({setup.tokenizer.eos_token_id})"
    return f"token ids as they were sampled; {eos} where a stop string ended an answer, none where it was cut"


def _special(tokenizer: Tokenizer) -> set[int]:
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*tokenizer.all_special_ids, *added}


def _text(tokenizer: Tokenizer, one: Tokens) -> str:
    known = [number for number in one.ids if number < len(tokenizer)]
    return tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)
