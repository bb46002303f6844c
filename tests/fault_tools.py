"""What the generated inputs of tests/faults share: the judge of what is accepted, and what refused."""

import pathlib
import traceback
from collections.abc import Callable
from typing import Any

import slpojax

PACKAGE = pathlib.Path(slpojax.__file__).parent
SECRET = "quixotry"  # a word for the texts of generated rows: no message may hold it


def attempt(call: Callable[[], Any]) -> tuple[str, Any]:
    """Call, and return ("accepted", the value) or ("refused", the message); anything else fails the test.

    A refusal is a ValueError that the package itself raises, as a program shows nothing but its message: one line, of
    readable length, without a row's text.
    """
    try:
        return "accepted", call()
    except ValueError as error:
        message = str(error)
        raised = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        assert raised.is_relative_to(PACKAGE), f"{type(error).__name__} out of {raised}: {message[:500]}"
        assert "\n" not in message and 10 < len(message) < 1500, f"no one clear line: {message[:2000]!r}"
        assert SECRET not in message, "a message holds the text of a row"
        return "refused", message
