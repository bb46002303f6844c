"""What a parser makes of a record: a prompt with its responses, as texts, messages or token ids.

Knows how a record looks once it is read; knows no format and no tokenizer.
"""

from typing import Any, NamedTuple

from slpojax.data.turns import Messages


class Tokens(NamedTuple):
    """A prompt or response that a record gives as token ids, which are taken as they are.

    Attributes:
        ids: of a response with the EOS that ended it.
        text: that the record gives beside them; it is not tokenised.
        finished: whether a response ended by itself.
    """

    ids: tuple[int, ...]
    text: str = ""
    finished: bool = False


class Parsed(NamedTuple):
    """An example before tokenisation.

    Attributes:
        prompt: plain text, or messages, or token ids.
        responses: best first; plain text, or the messages that follow the prompt, or token ids.
        scores: higher is better; None where the record only says which is better.
        notes: what the report should count although the record holds an example.
        label: of a response that is no part of a pair: 1 desirable, 0 undesirable; None in every other format.
        stated: whether the record itself states that the first response is the better one. Scores then only say by how
            much: equal ones are no tie, and a lower one of the first is a preference with noise.
        tools: the functions that the record offers, which a chat template describes; `parsing` reads them.
        sampled: whether the responses stand as they were sampled, not best first. None of them is then left out, be it
            empty, as good as another or the same: what was drawn is drawn.
    """

    prompt: str | Messages | Tokens
    responses: tuple[str | Messages | Tokens, ...]
    scores: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    label: float | None = None
    stated: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    sampled: bool = False
