"""Where what a template writes is divided: the prompt from its answers, and the turns of an answer from each other.

Knows messages, and a template as a function that writes them; knows no Jinja, no record and no token id.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from slpojax.data import counting, formats, sandbox
from slpojax.data.formats import Unusable
from slpojax.data.marks import PRIVATE, Tokenizer
from slpojax.data.sandbox import Span
from slpojax.data.turns import Messages

DIFFERENT = "the chat template writes the prompt differently when a response follows"
_MARKS = "the chat template changes what stands within its generation marks"
_TAG = r"<[^<>\s]{1,64}>"
_NEAR = 128  # characters around a cut in which a mark is looked for


class Template(NamedTuple):
    """A template that is ready.

    Attributes:
        draw: (messages, tools, whether to ask for an answer) -> text; raises `Unusable`.
        end: what it writes behind the words of the last answer; "" where that cannot be told.
        begins: a prompt that it writes, to see its first token.
        marked: as `draw`, with marks around what the assistant writes; None where the template has no such marks.
    """

    draw: Callable[[Messages, tuple[dict[str, Any], ...], bool], str]
    end: str
    begins: str
    marked: Callable[[Messages, tuple[dict[str, Any], ...], bool], str] | None


class Written(NamedTuple):
    """A dialogue as a template writes it.

    Attributes:
        dialogue: prompt and response.
        answered: turns of the prompt.
        tools: that are offered.
        text: what is written.
        cut: characters of the prompt.
    """

    dialogue: Messages
    answered: int
    tools: tuple[dict[str, Any], ...]
    text: str
    cut: int


def begin(
    template: Template,
    prompt: Messages,
    tools: tuple[dict[str, Any], ...],
    asked: str,
    wholes: Sequence[str],
    tokenizer: Tokenizer,
    reason: str,
) -> int:
    """Return how many characters stand before the answers to a prompt.

    Args:
        template: that writes them.
        prompt: the turns before the answer.
        tools: that are offered.
        asked: the prompt as it is written for an answer.
        wholes: what is written of the prompt with each of the answers.
        tokenizer: whose marks are not cut.
        reason: for which there is no answer to be told.

    Raises:
        Unusable: the turns of the prompt are written differently once an answer follows.
    """
    if all(whole.startswith(asked) for whole in wholes):
        return len(asked)
    answered = max((i + 1 for i, turn in enumerate(prompt) if turn["role"] != "assistant"), default=0)
    before = template.draw(prompt[:answered], tools, False) if answered else ""
    cut = _common_end(asked, wholes, tokenizer)
    if cut < len(before) or not asked.startswith(before):
        raise Unusable(reason)
    return cut


def spans(template: Template, counted: str, written: Written, tokenizer: Tokenizer, end: str) -> list[Span]:
    """Return the characters of a dialogue that count, of what is written behind the prompt.

    What stands within the template's generation marks does, where it has them. Else it is what the template adds to the
    dialogue before a turn of the assistant, once it asked for an answer, up to the end of that turn.

    Args:
        template: that wrote it.
        counted: "assistant" or "last".
        written: the dialogue.
        tokenizer: whose marks are not cut.
        end: where a turn ends, as `data.end`.

    Raises:
        Unusable: the turns cannot be told apart.
    """
    dialogue, whole = written.dialogue, written.text
    own = counting.own(counted, dialogue, written.answered)
    if template.marked:
        if sandbox.BEGINS in whole or sandbox.ENDS in whole:
            raise Unusable(PRIVATE)
        marked = sandbox.spans(template.marked(dialogue, written.tools, False))
        if marked is None or marked[0] != whole:
            raise Unusable(_MARKS)
        asked = template.marked(dialogue[: own[0]], written.tools, True) if counted == counting.LAST else ""
        before = sandbox.spans(asked)  # as many marks as the turns before the last one have
        return marked[1][len(before[1]) if before else 0 :]

    def begins(turn: int) -> int:
        if turn == written.answered:
            return written.cut
        asked = template.draw(dialogue[:turn], written.tools, True)
        return begin(template, dialogue[:turn], written.tools, asked, [whole], tokenizer, counting.REWRITTEN)

    def upto(turn: int) -> str:
        last = turn == len(dialogue) - 1
        text = whole if last else template.draw(dialogue[: turn + 1], written.tools, False)
        if not whole.startswith(text):  # Phi's writes EOS once, where the dialogue ends
            text = until_eos(text, tokenizer.eos_token).removesuffix(tokenizer.eos_token)
        return until_eos(text, tokenizer.eos_token) if end == "eos" else text

    return counting.by_prefixes(whole, own, begins, upto)


def until_eos(text: str, eos: str) -> str:
    """Return a text up to its last EOS, if blanks alone follow: ChatML and others put a line break behind it."""
    return text.rstrip() if text.rstrip().endswith(eos) else text


def _common_end(asked: str, wholes: Sequence[str], tokenizer: Tokenizer) -> int:
    """Return where the generation prompt and what is written before all answers part, outside of any mark and word."""
    cut = min(formats.common(asked, whole) for whole in wholes)
    marks = re.compile("|".join([*map(re.escape, sorted(tokenizer.get_added_vocab(), key=len, reverse=True)), _TAG]))
    while True:
        across = [
            mark.start()
            for text in (asked, *wholes)
            for mark in marks.finditer(text, max(0, cut - _NEAR), cut + _NEAR)
            if mark.start() < cut < mark.end()
        ]
        in_word = asked[cut - 1 : cut].isalnum() and any(text[cut : cut + 1].isalnum() for text in (asked, *wholes))
        if not across and not in_word:
            return cut
        cut = min(across, default=cut - 1)
