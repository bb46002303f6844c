"""How an error shows what it was given: names and values on one line, cut where they are long, and what is near."""

import difflib
import pathlib
from collections.abc import Iterable
from typing import Any

_MANY = 20  # an error lists no more names than this; what are more has a list of its own somewhere
_LONG = 80  # characters of a value that an error shows
_LONGEST = 120  # and of a name


def unknown(kind: str, name: str, names: Iterable[str], *, listed: str = "", also: str = "") -> ValueError:
    """Return the error for a name that there is not: what is near, and what there is.

    Args:
        kind: what it would name: "objective".
        name: as it was written.
        names: those that there are.
        listed: where to read all names, which the error says where they are many.
        also: what else may be named.
    """
    known = [str(other) for other in names]
    if not known and also:
        return ValueError(f"unknown {kind} {name!r}; expected {also}")
    there = f"there are {few(known, _MANY)}" if len(known) <= _MANY else f"there are {len(known)}"
    there += f" ({listed})" if listed else ""
    return ValueError(f"unknown {kind} {shown(name)}{near(name, known)}; {there}{f', or {also}' if also else ''}")


def shown(value: Any) -> str:
    """Return a value as an error shows it: on one line, and in no more than its beginning where it is long.

    Example:
        >>> shown("many"), shown("x" * 100_000)
        ("'many'", "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx... (100,002 characters)")
    """
    try:
        # Python refuses to write out a whole number of thousands of digits, but for bits.
        text = hex(value) if isinstance(value, int) and value.bit_length() > 9999 else repr(value).replace("\n", " ")
    except ValueError:
        return f"{type(value).__name__} with a number of thousands of digits"
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]}... ({len(text):,} characters)"


def few(names: Iterable[Any], most: int = 8) -> str:
    r"""Return the first of some names in a line, and how many more there are.

    Names may come from a file, and be anything: long ones are cut, and those that cannot be printed are written out.

    Example:
        >>> few([1, 2, 3, 4], 3), few(["a"]), few(["a", "\n", ""])
        ('1, 2, 3 and 1 more', 'a', "a, '\\n', ''")
    """
    every = list(map(str, names))
    more = f" and {len(every) - most} more" if len(every) > most else ""
    cut = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in every[:most]]
    return ", ".join(name if name.strip() and name.isprintable() else repr(name) for name in cut) + more


def near(word: str, words: Iterable[str]) -> str:
    """Return " (near: ...)" with the words that resemble this one, or "".

    Near are words whose last part, behind a dot, is the same, and words of which most letters are.

    Example:
        >>> near("beta", ["objective.beta", "objective.gamma"]), near("Sigmoyd", ["sigmoid"]), near("x", ["y"])
        (' (near: objective.beta)', ' (near: sigmoid)', '')
    """
    known = {str(other).casefold(): str(other) for other in words}
    word = str(word).casefold()[:1000]
    last = word.rpartition(".")[2]
    close = [other for other in known if last and other.rpartition(".")[2] == last]
    close += difflib.get_close_matches(word, known, n=3)
    return _hint(known[other] for other in dict.fromkeys(close[:3]))


def near_paths(path: str | pathlib.Path, hub_cache: str = "", kind: str = "") -> str:
    """Return " (near: ...)" with the paths, and the downloaded names, that resemble one that does not exist, or "".

    Args:
        path: is followed down to its first part that does not exist; what resembles this part is near.
        hub_cache: the hub's own folder on this machine, where `path` may be a name on the hub.
        kind: of what is looked for there, "models" or "datasets".
    """
    missing = pathlib.Path(path).expanduser()
    while not missing.parent.exists():
        missing = missing.parent
    here = {other.name: str(missing.parent / other.name) for other in missing.parent.glob("*")}
    close = [here[name] for name in difflib.get_close_matches(missing.name, here, n=3)]
    names = [folder.name.removeprefix(f"{kind}--") for folder in pathlib.Path(hub_cache or ".").glob(f"{kind}--*--*")]
    return _hint(close + difflib.get_close_matches(str(path), [name.replace("--", "/") for name in names], n=3))


def _hint(close: Iterable[str]) -> str:
    listed = ", ".join(close)
    return f" (near: {listed})" if listed else ""


def first_line(error: Exception) -> str:
    """Return what an error of another library says, short enough for a line."""
    text = (str(error).strip().splitlines() or [""])[0].partition(" [")[0]
    return f"{type(error).__name__}: {text[:200]}"
