"""The table of all objectives and selectors, made from their signatures and docstrings.

Knows how a docstring of this package is laid out: a first line, `.. math::`, `Verified:`, `Reference:`. Knows no run.
`python -m slpojax.objectives` is its program.
"""

import functools
import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from slpojax import named, objectives, selectors
from slpojax.base import DISTRIBUTION, MASKS, Shapes
from slpojax.objectives import mixture
from slpojax.step import couples_examples

_NEEDS = {
    "ref": "reference",
    "previous": "second frozen model",
    "prompt": "prompt",
    "score": "scores",
    "probability": "scores that are probabilities",
    "label": "label",
    "weight": "weight",
    "key": "random key",
    "state": "running state",
    **{name: f"whole distribution ({name})" for name in DISTRIBUTION},
    **{name: f"learned mask ({name})" for name in MASKS},
    "layer_activity": "the reference's layers",
    "degree": "copies with content removed",
}
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho _ sigma tau upsilon phi"
)
_LINK = r"arXiv:\d{4}\.\d{4,5}|doi:10\.[^\s,;]+|https://[^\s,;]+"
_QUAD, _OPEN, _CLOSE = "\x00", "\x01", "\x02"  # what must outlive the removal of spaces and braces
_SYMBOLS = {
    **{name: chr(ord("α") + i) for i, name in enumerate(_GREEK.split())},
    **{"varepsilon": "ε", "psi": "ψ", "omega": "ω", "Delta": "Δ", "partial": "∂", "ell": "ℓ", "infty": "∞", "pm": "±"},
    **{"sum": "Σ", "prod": "Π", "cdot": "·", "times": "×", "le": "≤", "ge": "≥", "neq": "≠", "approx": "≈", "in": "∈"},
    **{"succ": "≻", "to": "→", "mid": "|", "vert": "|", "Vert": "||", "|": "||", "dots": "...", "ldots": "..."},
    **{"cdots": "...", "quad": _QUAD, "qquad": _QUAD, "{": _OPEN, "}": _CLOSE},
    **dict.fromkeys(("big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "left", "right"), ""),
    **dict.fromkeys(("text", "mathrm", "mathbf", "mathcal", "mathbb", "operatorname"), ""),
    **dict.fromkeys((",", ";", ":", "!", " "), " "),
}
_ACCENTS = {"bar": "\u0304", "hat": "\u0302", "tilde": "\u0303"}
_POWERS = dict(zip("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True))


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
        signature: as Python prints it.
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
        arguments: nothing for the table, `--markdown` for OBJECTIVES.md, or the name of an objective or selector.

    Raises:
        ValueError: there is no such name.
    """
    if not arguments:
        return _table()
    if list(arguments) == ["--markdown"]:
        return _markdown()
    return one(" ".join(arguments))


def one(name: str) -> str:
    """Return all there is to say about an objective, a mixture or a selector.

    Raises:
        ValueError: there is none of this name.
    """
    if mixture.is_mixture(name):
        built = objectives.build(name)
        terms = mixture.parse(name)
        lines = [name, "", "    " + _values(built.hyperparameters), "", "A weighted sum of", ""]
        lines += [f"    {weight:g} * {term}: {describe(term).summary}" for term, weight in terms.items()]
        return "\n".join([*lines, "", f"Metrics: {', '.join(built.metrics)}", ""])
    entry = _selector(name) if name in selectors.names() else describe(name)
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
    needs = [_NEEDS[need] for need in objectives.NEEDS if need in built.needs and need != "policy"]
    if couples_examples(built, Shapes(1, 3, 1, 1, 1, 1)):
        needs.append("the batch's statistics")
    return _entry(name, _objective(name), (_reads(built), *needs))


def _selector(name: str) -> Entry:
    built = selectors.build(name, {"beta": 1.0})
    needs = tuple(_NEEDS[need] for need in objectives.NEEDS if need in built.needs and need != "policy")
    return _entry(name, named.find("selector", name, selectors.__name__, selectors.names), needs)


def _objective(name: str) -> Callable[..., Any]:
    return named.find("objective", name, objectives.__name__, objectives.names)


def _reads(built: objectives.Objective) -> str:
    if built.name.startswith("listwise.") or "degree" in built.needs:
        return "K candidates"
    two = "response and a mismatched one" if "label" in built.needs else "pair"
    return ("response", two, "triple")[objectives.fewest(built) - 1]


def _entry(name: str, function: Callable[..., Any], needs: tuple[str, ...]) -> Entry:
    text = inspect.getdoc(function) or ""
    reference = section(text, "Reference")
    author = re.sub(r" (?:et al\.|and others)$", "", reference.partition(",")[0]).split()
    year = re.search(r"\b(?:19|20)\d\d\b(?=[,.;)]|$)", reference)
    link = re.search(_LINK, reference)
    code = inspect.unwrap(function).__code__
    file = pathlib.Path(code.co_filename)
    here = pathlib.Path(__file__).resolve().parents[1]
    path = file.relative_to(here) if file.is_relative_to(here) else file
    return Entry(
        name=name,
        summary=" ".join(text.partition("\n\n")[0].split()),
        equation=_equation(text),
        paper=f"{author[-1]} {year.group()}" if author and year else "",
        link=link.group().rstrip(".") if link else "",
        needs=needs,
        defaults=named.defaults(function),
        verified=section(text, "Verified"),
        signature=str(inspect.signature(function)),
        source=f"{path.as_posix()}:{code.co_firstlineno}",
        text=text,
    )


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


def plain(tex: str) -> str:
    r"""Return an equation as text: Greek letters and operators for their names, fractions on one line.

    Example:
        >>> plain(r"L = -\log \sigma\Big(\frac{\bar{r} - \tau}{2 \beta} + \frac{1}{N}\Big)^2, \quad \beta > 0")
        'L = -log σ((r̄ - τ) / (2 β) + 1/N)²,   β > 0'
    """
    tex = re.sub(r"\\[dt]frac\b", r"\\frac", tex)
    while (start := tex.find("\\frac{")) >= 0:
        top, end = _group(tex, start + len("\\frac"))
        bottom, end = _group(tex, end)
        tex = f"{tex[:start]}{_fraction(top, bottom, after=tex[:start].rstrip())}{tex[end:]}"
    accents = "|".join(_ACCENTS)
    tex = re.sub(rf"\\({accents})\s*\{{?(\\?[A-Za-z]+?)(?:\}}|\b|(?=\())", lambda m: m[2] + _ACCENTS[m[1]], tex)
    tex = re.sub(r"\\([A-Za-z]+|.)", lambda m: _SYMBOLS.get(m[1], m[1]), tex)
    tex = re.sub(r"\^(?:\{(\d)\}|(\d))", lambda m: _POWERS[m[1] or m[2]], tex)
    tex = re.sub(r"([_^])\{([^\W_]+|\([^{}]*\))\}", r"\1\2", tex)
    tex = re.sub(r"([_^])\{([^{}]*)\}", r"\1(\2)", tex)
    tex = " ".join(tex.replace("{", "").replace("}", "").split())
    tex = re.sub(r"(?<=[(\[]) | (?=[)\]])", "", tex)
    return re.sub(f" ?{_QUAD} ?", "   ", tex).replace(_OPEN, "{").replace(_CLOSE, "}")


def _group(tex: str, start: int) -> tuple[str, int]:
    """Return what stands between the brace at `start` and its partner, and where it ends."""
    depth = 0
    for end in range(start, len(tex)):
        depth += {"{": 1, "}": -1}.get(tex[end], 0)
        if depth == 0:
            return tex[start + 1 : end], end + 1
    raise ValueError(f"unbalanced braces in {tex!r}")


def _fraction(top: str, bottom: str, after: str) -> str:
    """Return a fraction on one line, in the parentheses that its sides, or a logarithm before it, ask for."""
    if " " not in (top + bottom).strip():
        text = f"{top}/{bottom}"
    else:
        top = f"({top})" if re.search(r" [-+] ", top) else top
        text = f"{top} / {f'({bottom})' if ' ' in bottom else bottom}"
    return f"({text})" if after.endswith("\\log") else text


# ---- the two prints --------------------------------------------------------------------------------------------------


def _families() -> Iterator[tuple[str, list[Entry]]]:
    """Yield each module's title and its objectives."""
    names = objectives.names()
    for module in dict.fromkeys(name.partition(".")[0] for name in names):
        of = [describe(name) for name in names if name.startswith(f"{module}.")]
        document = inspect.getdoc(inspect.getmodule(_objective(of[0].name))) or ""
        yield " ".join(document.partition("\n\n")[0].split()), of


_NOTATION = """Chosen y_w, rejected y_l; log-ratio ρ = log P - log P_ref, summed over tokens; margin
h = ρ(y_w) - ρ(y_l); reward r = β ρ; scores s; means over tokens with a bar; sg[x] is x without its gradient. Modules
say the rest.
"""


def _table() -> str:
    lines = [_NOTATION, ""]
    for title, entries in _families():
        lines += [title, ""]
        for entry in entries:
            lines += _lines(entry)
        lines.append("")
    lines += ["Weighted sums of these that have names of their own", ""]
    for recipe in mixture.RECIPES:
        lines += [recipe.name, f"    {recipe.method}; {_values(recipe.hyperparameters)}", ""]
    lines += ["Selectors, which pick the candidates that an objective sees (config.selector.name)", ""]
    for name in selectors.names():
        lines += _lines(_selector(name))
    return "\n".join([*lines, "", "One of them in full: python -m slpojax.objectives NAME", ""])


def _lines(entry: Entry) -> list[str]:
    paper = ", ".join(part for part in (entry.paper, entry.link) if part)
    facts = [", ".join(entry.needs), _values(entry.defaults), paper]
    texts = [
        entry.summary,
        plain(entry.equation),
        "; ".join(fact for fact in facts if fact),
        entry.verified if entry.verified.startswith("Unverified") else entry.verified and f"Verified: {entry.verified}",
    ]
    return [entry.name, *(_wrap(f"    {text}", " " * 8) for text in texts if text), ""]


_HEAD = r"""# Objectives

Made from the code by `python -m slpojax.objectives --markdown`. Without `--markdown` the program prints the same as
text, with a name all there is to say about one. `config.objective.name` chooses one; its defaults are the keys
`config.objective.*`.

*Needs*: an objective reads the policy's log-probs of one **response**, of a **pair** (candidate 0 is preferred to
candidate 1), of a **triple** (a gold response, then a pair) or of **K candidates**. The *reference* is the frozen model
of `config.reference`. The *prompt* is that of the responses, whose own tokens then meet the vocabulary as well. The
*whole distribution* are numbers over the vocabulary at every token, at some cost. *Learned masks* are weights of the
tokens, trained beside the policy from what the reference's layers say. *Copies with content removed* are made by
`config.data.degrade`. *The batch's statistics* are those of the global batch, whatever the accumulation and the
devices.

*Notation*: the chosen response $`y_w`$, the rejected $`y_l`$; the log-ratio
$`\rho(y) = \log P(y) - \log P_{ref}(y)`$, summed over tokens; the margin $`h = \rho(y_w) - \rho(y_l)`$; the reward
$`r = \beta \rho`$; scores $`s`$; means over tokens with a bar; $`sg[x]`$ is x without its gradient. Modules say the
rest.
"""


def _markdown() -> str:
    lines = [_HEAD]
    for title, entries in _families():
        module = entries[0].source.partition(":")[0]
        lines += [f"## [{module}]({module})", "", title, "", *_rows("objective", entries), ""]
    lines += ["## Weighted sums that have names of their own", ""]
    lines += ["| method | name | hyperparameters | paper |", "|---|---|---|---|"]
    lines += [
        f"| {r.method} | `{r.name}` | {_values(r.hyperparameters)} | {_linked(r.reference)} |" for r in mixture.RECIPES
    ]
    entries = [_selector(name) for name in selectors.names()]
    lines += ["", "## Selectors", "", "They pick the candidates that an objective sees, by `config.selector.name`.", ""]
    return "\n".join([*lines, *_rows("selector", entries), ""])


def _rows(what: str, entries: list[Entry]) -> Iterator[str]:
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
