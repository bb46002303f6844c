"""Equations of docstrings as text: Greek letters, signs and fractions on one line.

Knows the part of TeX that this package's docstrings use; knows no docstring.
"""

import re

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho _ sigma tau upsilon phi"
)
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
