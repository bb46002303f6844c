"""An evaluation on one page: sections of numbers as a table of the terminal, as Markdown, and as JSON.

Knows numbers with words, units and errors; knows nothing of where they come from.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Column, Table
from rich.text import Text

from slpojax.winrate import Estimate


class Line(NamedTuple):
    """A number.

    Attributes:
        what: it is, in words.
        value: the number.
        error: its standard error; NaN where it has none.
        unit: of both.
        of: how many of what it is made of.
        digits: behind the point.
    """

    what: str
    value: float
    error: float
    unit: str
    of: str = ""
    digits: int = 3


class Section(NamedTuple):
    """Numbers that belong together.

    Attributes:
        title: above them.
        lines: the numbers.
        notes: what has to be known to read them, and what is missing.
        picture: name of a file beside the page; "" for none.
        caption: what the picture shows.
    """

    title: str
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    picture: str = ""
    caption: str = ""


def line(what: str, estimate: Estimate, unit: str, of: str, *, digits: int = 3, scale: float = 1.0) -> Line:
    """Return the line of a mean.

    Args:
        what: it is.
        estimate: the mean, its error, and how many numbers of how many prompts it is made of.
        unit: after scaling.
        of: the numbers, in the plural.
        digits: behind the point.
        scale: factor of value and error.

    Example:
        >>> line("win rate", Estimate(0.5, 0.1, 12, 4), "%", "comparisons", digits=1, scale=100.0)
        Line(what='win rate', value=50.0, error=10.0, unit='%', of='12 comparisons, 4 prompts', digits=1)
    """
    prompts = f", {estimate.prompts:,} prompts" if estimate.prompts != estimate.size else ""
    return Line(what, scale * estimate.value, scale * estimate.error, unit, f"{estimate.size:,} {of}{prompts}", digits)


def table(title: str, sections: Sequence[Section]) -> Table:
    """Return the numbers of all sections as a table of the terminal; what they are made of stands beside the titles."""
    made = Table(Column(no_wrap=True, ratio=1), title=title, box=box.SIMPLE_HEAD, title_justify="left")
    widest = max((len(_number(one.value, one)) for section in sections for one in section.lines), default=0)
    for name in ("value", "± error"):
        made.add_column(name, justify="right", no_wrap=True, min_width=widest + 2)
    made.add_column("unit", no_wrap=True)
    for section in sections:
        if section.lines:
            made.add_section()
            made.add_row(Text(section.title, style="bold"), "", "", section.lines[0].of)
        for one in section.lines:
            made.add_row(f"  {one.what}", _number(one.value, one), _error(one), one.unit)
    return made


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the page as Markdown: of each section its table, its picture and its notes."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        if section.lines:
            lines += ["| | value | standard error | unit | of |", "|---|---:|---:|---|---|"]
            lines += [
                f"| {_cell(one.what)} | {_number(one.value, one)} | {_error(one).lstrip('± ')} | {_cell(one.unit)} | "
                f"{_cell(one.of)} |"
                for one in section.lines
            ]
            lines.append("")
        if section.picture:
            lines += [f"![{section.caption}]({section.picture})", "", f"*{section.caption}*", ""]
        lines += [f"- {note}" for note in section.notes]
        lines += [""] * bool(section.notes)
    return "\n".join(lines).rstrip() + "\n"


def as_json(title: str, sections: Sequence[Section], more: dict[str, Any]) -> str:
    """Return the page as JSON: title -> sections -> numbers in full; what is not finite is null.

    Args:
        title: of the page.
        sections: in order.
        more: what else to hold, by name: plain values and arrays.
    """
    content = {
        "title": title,
        "sections": {
            section.title: {
                "numbers": {
                    one.what: {"value": one.value, "standard_error": one.error, "unit": one.unit, "of": one.of}
                    for one in section.lines
                },
                "notes": list(section.notes),
            }
            for section in sections
        },
        **more,
    }
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return plain values out of arrays and NumPy's numbers, and None for what is not finite."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float, one: Line) -> str:
    if not math.isfinite(value):
        return "-"
    text = f"{value:,.{one.digits}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text


def _error(one: Line) -> str:
    return f"± {_number(one.error, one)}" if math.isfinite(one.error) else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
