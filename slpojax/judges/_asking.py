"""Which of two answers is better, as a question in words to a language model, and what it replied.

Knows texts, the questions in `prompts/` and the ways to reply in `verdicts/`; knows no server and no model.
"""

import hashlib
import pathlib
import re
import sys

from slpojax import cached, wording
from slpojax.judges import Prompt

_HERE = pathlib.Path(__file__).parent
_SLOT = re.compile(r"\{\{(prompt|a|b|verdict)\}\}")
# A last line "Verdict: A" with any dress of Markdown; or a reply that is the verdict alone.
_SAID = re.compile(r"verdict\W{1,8}(?:(?:answer|summary)\W+)?(a|b|tie)\b", re.IGNORECASE)
_ALONE = re.compile(r"\W*(?:(?:answer|summary)\W+)?(a|b|tie)\W*", re.IGNORECASE)
_VALUES = {"a": 1.0, "b": 0.0, "tie": 0.5}


def question(name: str, verdict: str) -> str:
    """Return a question with slots for a conversation and two answers.

    Args:
        name: helpfulness, summaries or instructions, or a file of one's own with {{prompt}}, {{a}} and {{b}}, and
            {{verdict}} where it is to be said how to reply.
        verdict: how the reply is to look: reasoned, word or letter.

    Raises:
        ValueError: there is no such question, or a slot is missing.
    """
    bundled = {file.stem: file for file in sorted((_HERE / "prompts").glob("*.txt"))}
    file = bundled.get(name) or pathlib.Path(name)
    if not file.is_file():
        raise wording.unknown("judge.template", name, bundled, also="a text file with {{prompt}}, {{a}} and {{b}}")
    text = file.read_text(encoding="utf-8").strip()
    if missing := [slot for slot in ("prompt", "a", "b") if f"{{{{{slot}}}}}" not in text]:
        raise ValueError(f"judge.template={name!r} lacks {', '.join(f'{{{{{slot}}}}}' for slot in missing)}")
    reply = (_HERE / "verdicts" / f"{verdict}.txt").read_text(encoding="utf-8").strip()
    return text.replace("{{verdict}}", reply)


def depends(text: str) -> dict[str, str]:
    """Return what verdicts depend on by a question: digests of its text, and of how replies are read."""
    return {
        "question": hashlib.sha256(text.encode()).hexdigest(),
        "reading": cached.module_digest(sys.modules[__name__]),
    }


def fill(text: str, prompt: Prompt, a: str, b: str) -> str:
    """Return a question about two answers; what looks like a slot within them stays as it is."""
    values = {"prompt": said(prompt), "a": a.strip(), "b": b.strip()}
    return _SLOT.sub(lambda slot: values.get(slot[1], slot[0]), text)


def said(prompt: Prompt) -> str:
    """Return a prompt as text: messages are turns under the names of their roles.

    Example:
        >>> print(said([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]))
        user: Hi
        <BLANKLINE>
        assistant: Yes?
    """
    if isinstance(prompt, str):
        return prompt.strip()
    return "\n\n".join(f"{turn.get('role', '')}: {turn.get('content') or ''}" for turn in prompt)


def verdict(reply: str) -> float | None:
    r"""Return what a reply says: 1 for A, 0 for B, 0.5 for neither; None where it says nothing of the kind.

    Example:
        >>> verdict("A is short, B is right.\n**Verdict: B**"), verdict("Tie."), verdict("Both are good.")
        (0.0, 0.5, None)
    """
    reply = reply.rpartition("</think>")[2]
    found = _SAID.findall(reply) or [alone[1] for alone in [_ALONE.fullmatch(reply)] if alone]
    return _VALUES[found[-1].lower()] if found else None
