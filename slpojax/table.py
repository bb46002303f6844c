"""The table of all objectives and selectors, made from their signatures and docstrings.

Knows how a docstring of this package is laid out: a first line, `.. math::`, `Verified:`, `Reference:`. Knows no run.
`python -m slpojax.objectives` is its program.
"""

import functools
import importlib
import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from slpojax import named, objectives, selectors
from slpojax.base import Shapes
from slpojax.needs import NEEDS, known
from slpojax.needs import describe as describe_need
from slpojax.objectives import mixture, transforms
from slpojax.step import couples_examples
from slpojax.tex import plain

_LINK = r"arXiv:\d{4}\.\d{4,5}|doi:10\.[^\s,;]+|https://[^\s,;]+"


class Entry(NamedTuple):
    """What the table says of one function; "" where its docstring says nothing.

    Attributes:
        name: `module.function`.
        summary: the docstring's first sentence.
        equation: TeX, on one line.
        paper: first author and year.
        link: where to find it, as the docstring has it: arXiv:..., doi:... or https://...
        needs: what it asks for beside the policy's log-probs.
        defaults: its hyperparameters.
        verified: against what.
        signature: the names of its parameters, and the defaults of its hyperparameters.
        source: file and line.
        text: the whole docstring.
    """

    name: str
    summary: str
    equation: str
    paper: str
    link: str
    needs: tuple[str, ...]
    defaults: dict[str, Any]
    verified: str
    signature: str
    source: str
    text: str


def main(arguments: Sequence[str]) -> str:
    """Return what the program prints.

    Args:
        arguments: nothing for a line about each, `--markdown` for OBJECTIVES.md, or the name of one or of a method.

    Raises:
        ValueError: there is no such name.
    """
    if not arguments:
        return _table()
    if arguments[0] in ("--help", "-h"):
        return (
            "usage: python -m slpojax.objectives [NAME | --markdown]; NAME is an objective, a sum, a selector, or a "
            "method (REBEL); without an argument, a line about each\n"
        )
    if list(arguments) == ["--markdown"]:
        return _markdown()
    return one(" ".join(arguments))


def one(name: str) -> str:
    """Return all there is to say about an objective, a mixture, a selector, or a method that is one of these.

    Raises:
        ValueError: there is none of this name.
    """
    if recipes := mixture.called(name):
        return "\n".join(
            f"{r.method}\n\n    {_values(r.hyperparameters)}\n\n{_wrap(r.reference, '')}\n\n{one(r.name)}"
            for r in recipes
        )
    if mixture.is_mixture(name):
        built = objectives.build(name)
        terms = mixture.parse(name)
        lines = [name, "", "    " + _values(built.hyperparameters), "", "A weighted sum of", ""]
        lines += [f"    {weight:g} * {term}: {describe(term).summary}" for term, weight in terms.items()]
        return "\n".join([*lines, "", f"Metrics: {', '.join(built.metrics)}", ""])
    entry = _selector(name) if name in selectors.names() else _transform(name) or describe(name)
    facts = {
        "equation": plain(entry.equation),
        "needs": ", ".join(entry.needs),
        "defaults": _values(entry.defaults),
        "paper": f"{entry.paper} {_url(entry.link)}".strip(),
        "verified": entry.verified,
        "source": entry.source,
    }
    lines = [_wrap(f"{key:<10}{value or '-'}", " " * 10) for key, value in facts.items()]
    return "\n".join([entry.name + entry.signature, "", *lines, "", entry.text, ""])


@functools.cache
def describe(name: str) -> Entry:
    r"""Return the entry of an objective.

    Example:
        >>> describe("dpo.hinge").paper, describe("dpo.hinge").equation, describe("dpo.hinge").needs
        ('Liu 2023', 'L = \\max(0, 1 - \\beta h)', ('pair', 'reference'))

    Raises:
        ValueError: there is no such objective.
    """
    built = objectives.build(name)
    asked = _asked(built.needs)
    if couples_examples(built, Shapes(1, max(3, built.fewest), 1, 1, 1, 1)):
        asked += ("the batch's statistics",)
    if parts := transforms.parse(name):
        return _entry(name, transforms.find(parts[0]), (_reads(built), *asked))._replace(defaults=built.hyperparameters)
    return _entry(name, objectives.find(name), (_reads(built), *asked))


def _transform(name: str) -> Entry | None:
    function = transforms.known().get(name)
    return _entry(f"{name}(OBJECTIVE)", function, _asked({"ref"})) if function else None


def _selector(name: str) -> Entry:
    return _entry(name, selectors.find(name), _asked(selectors.build(name, {"beta": 1.0}).needs))


def _asked(names: Collection[str]) -> tuple[str, ...]:
    """Return what these needs are called beside the policy's log-probs."""
    return tuple(need.short for name, need in known().items() if name in names and name != "policy")


def _reads(built: objectives.Objective) -> str:
    of_all = objectives.over_all(built.name) and "reward" in built.needs
    if built.name.startswith(("listwise.", "pointwise.")) or "degree" in built.needs or of_all:
        return "K candidates"
    two = "response and a mismatched one" if "label" in built.needs else "pair"
    return {1: "response", 2: two, 3: "triple"}.get(built.fewest, f"{built.fewest} candidates")


def _entry(name: str, function: Callable[..., Any], needs: tuple[str, ...]) -> Entry:
    text = inspect.getdoc(function) or ""
    reference = section(text, "Reference")
    author = re.sub(r" (?:et al\.|and others)$", "", reference.partition(",")[0]).split()
    year = re.search(r"\b(?:19|20)\d\d\b(?=[,.;)]|$)", reference)
    link = re.search(_LINK, reference)
    code = inspect.unwrap(function).__code__
    return Entry(
        name=name,
        summary=" ".join(text.partition("\n\n")[0].split()),
        equation=_equation(text),
        paper=f"{author[-1]} {year.group()}" if author and year else "",
        link=link.group().rstrip(".") if link else "",
        needs=needs,
        defaults=named.defaults(function),
        verified=section(text, "Verified"),
        signature=_signature(function),
        source=f"{_path(pathlib.Path(code.co_filename))}:{code.co_firstlineno}",
        text=text,
    )


def _path(file: pathlib.Path) -> str:
    """Return a file of this project as seen from its root, another one as it is."""
    root = pathlib.Path(__file__).resolve().parents[1]
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def _signature(function: Callable[..., Any]) -> str:
    """Return a signature without its types, which the docstring says in words."""
    parameters = inspect.signature(function).parameters.values()
    shown = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(shown))


def section(text: str, title: str) -> str:
    r"""Return a section of a docstring on one line: what follows its title, up to an empty line.

    Example:
        >>> section("Sum.\n\nVerified:\n    By hand,\n    twice.\n\nReference:\n    None.", "Verified")
        'By hand, twice.'
    """
    match = re.search(rf"^{title}:(.*?)(?:\n\s*\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return " ".join(match.group(1).split()) if match else ""


def _equation(text: str) -> str:
    match = re.search(r"^\.\. math::(.*?)(?:\n\s*\n|\Z)", text + "\n\n", flags=re.MULTILINE | re.DOTALL)
    if match and not match.group(1).strip():  # the equation begins after an empty line
        match = re.search(r"^\.\. math::\s*\n\s*\n(.*?)(?:\n\s*\n|\Z)", text + "\n\n", flags=re.MULTILINE | re.DOTALL)
    return " ".join(match.group(1).split()) if match else ""


# ---- the two prints --------------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """A module of objectives: where it stands, its title, and the names of its objectives."""

    path: str
    title: str
    names: list[str]


def _families() -> Iterator[Family]:
    names = objectives.names()
    for module in dict.fromkeys(name.partition(".")[0] for name in names):
        family = importlib.import_module(f"{objectives.__name__}.{module}")
        path = _path(pathlib.Path(family.__file__ or "").resolve())
        title = " ".join((inspect.getdoc(family) or "").partition("\n\n")[0].split())
        yield Family(path.removesuffix("/__init__.py"), title, [n for n in names if n.startswith(f"{module}.")])


def _table() -> str:
    lines = []
    for family in _families():
        lines += [family.title, *(_line(name, objectives.find(name)) for name in family.names), ""]
    lines += ["Methods that are sums of these, or one of them on data or beside a reference of its own"]
    methods = [(*recipe.method.split(", ", 1), recipe.name) for recipe in mixture.RECIPES]
    lines += [_cut(f"{method:<{_NAME}} {name}; {more}") for method, more, name in methods]
    lines += ["", "Transforms of any of these that compares with a reference, as humanline(dpo.sigmoid)"]
    lines += [_line(name, function) for name, function in transforms.known().items()]
    lines += ["", "Selectors, which pick the candidates that an objective sees (config.selector.name)"]
    lines += [_line(name, selectors.find(name)) for name in selectors.names()]
    lines += ["", "One of them in full, its equation, defaults, needs and tests: python -m slpojax.objectives NAME", ""]
    return "\n".join(lines)


_NAME, _PAPER, _WIDTH = 33, 18, 120


def _line(name: str, function: Callable[..., Any]) -> str:
    entry = _entry(name, function, ())
    summary = plain(re.sub(":math:`(.*?)`", r"\1", entry.summary))
    return _cut(f"{entry.name:<{_NAME}} {entry.paper:<{_PAPER}} {summary}")


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1].rstrip()}…"


_HEAD = r"""# Objectives

Made from the code by `python -m slpojax.objectives --markdown`. Without `--markdown` the program prints a line about
each, with a name all there is to say about one. `config.objective.name` chooses one; its defaults are the keys
`config.objective.*`.

*Needs*: an objective reads the policy's log-probs of one **response**, of a **pair** (candidate 0 is preferred to
candidate 1), of a **triple** (a gold response, then a pair) or of **K candidates**. *The batch's statistics* are those
of the global batch, whatever the accumulation and the devices. Beside these it may ask for

@NEEDS@

*Notation*: the chosen response $`y_w`$, the rejected $`y_l`$; the log-ratio
$`\rho(y) = \log P(y) - \log P_{ref}(y)`$, summed over tokens; the margin $`h = \rho(y_w) - \rho(y_l)`$; the reward
$`r = \beta \rho`$; scores $`s`$; means over tokens with a bar; $`sg[x]`$ is x without its gradient. Modules say the
rest.
"""


def _markdown() -> str:
    needs = [f"- *{need.short}*, `{name}`: {describe_need(name)}" for name, need in NEEDS.items() if name != "policy"]
    lines = [_HEAD.replace("@NEEDS@", "\n".join(needs))]
    for path, title, names in _families():
        lines += [f"## [{path}]({path})", "", title, "", *_rows("objective", map(describe, names)), ""]
    lines += ["## Methods that are sums of these, or one of them on data or beside a reference of its own", ""]
    lines += ["| method | name | hyperparameters | paper |", "|---|---|---|---|"]
    lines += [
        f"| {r.method} | `{r.name}` | {_values(r.hyperparameters)} | {_linked(r.reference)} |" for r in mixture.RECIPES
    ]
    lines += [
        "",
        "## Transforms",
        "",
        "They change what an objective that compares with a reference is told of the policy,",
    ]
    lines += [
        "by its name: `humanline(dpo.sigmoid)`, or `humanline(unpaired.kto)`. Their defaults are keys beside its own.",
        "",
    ]
    found = [entry for name in transforms.known() if (entry := _transform(name))]
    lines += _rows("transform", found)
    entries = [_selector(name) for name in selectors.names()]
    lines += ["", "## Selectors", "", "They pick the candidates that an objective sees, by `config.selector.name`.", ""]
    return "\n".join([*lines, *_rows("selector", entries), ""])


def _rows(what: str, entries: Iterable[Entry]) -> Iterator[str]:
    yield f"| {what} | what | needs | defaults | paper | verified against |"
    yield "|---|---|---|---|---|---|"
    for entry in entries:
        # Backticks keep Markdown's hands off the TeX, and a bar would end the cell.
        tex = re.sub(r"(\|\||\\\|) *", r"\\Vert ", entry.equation)
        tex = re.sub(r"\| *", r"\\vert ", tex)
        paper = f"[{entry.paper}]({_url(entry.link)})" if entry.link else entry.paper
        summary = _linked(entry.summary) + (f" $`{tex}`$" if tex else "")
        facts = (", ".join(entry.needs), _values(entry.defaults), paper, _linked(entry.verified))
        yield f"| {' | '.join(cell or '–' for cell in (f'`{entry.name}`', summary, *facts))} |"


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


def _url(link: str) -> str:
    return link.replace("arXiv:", "https://arxiv.org/abs/").replace("doi:", "https://doi.org/")


def _linked(text: str) -> str:
    """Prepare prose for a cell of a Markdown table."""
    text = re.sub(r":math:`(.*?)`", r"$`\1`$", text).replace("|", r"\|")
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _wrap(text: str, indent: str) -> str:
    lead = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(text.strip(), 118, initial_indent=lead, subsequent_indent=indent, break_on_hyphens=False)
