"""Every reason for which a record is dropped has its advice, and no advice is without a reason."""

import ast
import functools
import importlib
import pathlib
from collections.abc import Iterator

import pytest

import slpojax
from slpojax.data import advice
from slpojax.data.report import Count

FOLDER = pathlib.Path(slpojax.__file__).parent / "data"
SOURCES = {path.stem: path.read_text() for path in FOLDER.glob("*.py") if path.stem not in ("advice", "__init__")}


def words(node: ast.expr, module: object) -> Iterator[str]:
    """How the texts begin that an expression may be."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=[ast.Constant(), *_] as parts):
            for what in ("score", "rank", "reward"):
                yield "".join(part.value if isinstance(part, ast.Constant) else what for part in parts)
        case ast.JoinedStr(values=[ast.FormattedValue(value=first), *rest]):
            tail = "".join(part.value for part in rest[:1] if isinstance(part, ast.Constant))
            yield from (f"{text}{tail}" for text in words(first, module))
        case ast.Name(id=name) if hasattr(module, name):
            yield getattr(module, name)
        case ast.IfExp(body=one, orelse=other):
            yield from (*words(one, module), *words(other, module))


@functools.cache
def reasons() -> list[str]:
    return [*find_reasons()]


def find_reasons() -> Iterator[str]:
    for name, source in SOURCES.items():
        module = importlib.import_module(f"slpojax.data.{name}")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Unusable", "formats.Unusable") and node.args:
                yield from words(node.args[0], module)


def test_every_reason_has_its_advice():
    without = [reason for reason in reasons() if advice.of(reason).startswith("Take another data.format (")]
    assert len(reasons()) > 20 and not without, "give them a line in slpojax.data.advice"


@pytest.mark.parametrize("begins", advice.ADVICE)
def test_no_advice_is_without_a_reason(begins):
    known = any(reason.startswith(begins) for reason in reasons())
    assert known or any(f'"{begins}' in source for source in SOURCES.values())


def test_the_commonest_reason_decides():
    dropped = {
        "empty prompt": Count(1, (3,)),
        "identical responses": Count(2, (0, 1)),
        "chosen is null": Count(1, (2,)),
    }
    assert advice.why_none(dropped, 4) == (
        "no usable record of 4: 2 identical responses (rows 0, 1); 1 empty prompt (rows 3); 1 chosen is null (rows 2). "
        "Look at which fields hold the two responses: data.format says what is read"
    )
    assert advice.of("chosen is null") == "Give a text there" and "hh_rightmost" in advice.of("a reason of one's own")
