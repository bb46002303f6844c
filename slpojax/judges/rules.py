"""Rules: judges that look at a text and at nothing else, without a model. Examples for one's own, and controls.

Knows texts. Lengths count characters.
"""

import re
from collections.abc import Sequence

from slpojax.judges import Prompt, require


def longest(prompt: Prompt, answers: Sequence[str]) -> list[int]:
    """Score an answer by its length: the control of every judge that likes long answers."""
    return [len(answer) for answer in answers]


def shortest(prompt: Prompt, answers: Sequence[str]) -> list[int]:
    """Score an answer by its length, negative."""
    return [-len(answer) for answer in answers]


def matches(prompt: Prompt, answers: Sequence[str], *, pattern: str = "") -> list[float]:
    """Score 1 where a regular expression is found in an answer, 0 elsewhere: a verifier of forms and final answers.

    Raises:
        ValueError: `pattern` is empty, or no regular expression.
    """
    require(pattern, "pattern", pattern, "a regular expression that good answers hold")
    try:
        known = re.compile(pattern)
    except re.error:
        require(False, "pattern", pattern, "a regular expression")
    return [float(known.search(answer) is not None) for answer in answers]


def longer(prompt: Prompt, a: str, b: str) -> float:
    """Prefer the longer one of two answers."""
    return 0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b)))
