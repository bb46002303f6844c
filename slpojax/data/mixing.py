"""Several sources made into one: how many examples of each are drawn, which, and what became of all of them.

Knows examples and reports; knows no record and no file. What is drawn of a source follows from the seed, its name and
how many examples it has, so a source that is added or changed changes nothing of the others.
"""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from slpojax.base import Int
from slpojax.data import examples as storage
from slpojax.data import report as reports
from slpojax.data.examples import Example, Examples
from slpojax.data.report import Report


def sizes(
    available: Mapping[str, int], weights: Mapping[str, float | int], counts: Mapping[str, int]
) -> dict[str, int]:
    """Return how many examples of each source a pass holds.

    A source with a count gives that many, some of them repeatedly where it has fewer. Weights are shares: sources with
    a weight give examples in proportion to theirs, as many as there can be without repeating one. One with neither
    gives all it has.

    Args:
        available: name of a source -> its examples, at least one.
        weights: above 0, of the sources that have one.
        counts: above 0, of the sources that have one.

    Example:
        >>> sizes({"a": 100, "b": 30, "c": 5}, {"a": 2, "b": 1}, {"c": 12})
        {'a': 60, 'b': 30, 'c': 12}

    Raises:
        ValueError: a weight is so small that it leaves its source no example.
    """
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    passes = min((available[name] / weight for name, weight in exact.items()), default=Fraction(0))
    made = {name: counts.get(name, count) for name, count in available.items()}
    made |= {name: int(weight * passes) for name, weight in exact.items()}
    for name, count in made.items():
        if not count:
            raise ValueError(
                f"config.data.mixture.{name}.weight={weights[name]:g} leaves it none of its {available[name]:,} "
                "examples beside the other weights; raise it, or leave the source out"
            )
    return made


def draw(available: int, count: int, seed: int, name: str) -> Int[np.ndarray, " count"]:
    """Return the numbers of the examples that are drawn of a source, in its order.

    Each comes as often as every other one, or once more; who comes once more is drawn without replacement.

    Args:
        available: its examples.
        count: how many are drawn.
        seed: of the run.
        name: of the source.
    """
    whole, rest = divmod(count, available)
    more = np.random.default_rng([seed, *name.encode()]).permutation(available)[:rest]
    return np.sort(np.concatenate([np.tile(np.arange(available), whole), more]))


def mix(
    parts: Mapping[str, tuple[Examples, Report]], counts: Mapping[str, int], *, seed: int, line: str
) -> tuple[Examples, Report]:
    """Return the examples that are drawn of all sources, one source behind the other, and what became of all.

    Args:
        parts: name of a source -> its examples and their report.
        counts: name of a source -> how many examples of it are drawn, see `sizes`.
        seed: of the draw.
        line: what was read, in a line.

    Returns:
        Examples that know their source by its number among the names, and a report with a part for each.

    Raises:
        ValueError: some sources have labels and others have none, or they differ in how many candidates there are.
    """
    _require_alike({name: examples for name, (examples, _) in parts.items()})
    listed: list[Example] = []
    tally = reports.tally()
    for number, (name, (examples, _)) in enumerate(parts.items()):
        drawn = draw(len(examples), counts[name], seed, name)
        times = np.bincount(drawn, minlength=len(examples))
        for what, found in ((f"examples of {name} not drawn", times == 0), (f"of {name} drawn again", times > 1)):
            for i in np.flatnonzero(found):
                for _ in range(max(1, int(times[i]) - 1)):
                    tally.note(int(examples.row[i]), [what])
        listed += [examples[int(i)]._replace(source=number) for i in drawn]
    first, of_first = next(iter(parts.values()))
    made = storage.build(
        listed,
        candidates=first.candidates,
        labelled=first.labelled,
        names=tuple(parts),
    )
    said = "; ".join(dict.fromkeys(report.special for _, report in parts.values()))
    read = sum(report.read for _, report in parts.values())
    whole = reports.make(line, read, tally, made, said, added=of_first.added)
    return made, dataclasses.replace(whole, parts={name: report for name, (_, report) in parts.items()})


def _require_alike(parts: Mapping[str, Examples]) -> None:
    """Refuse sources that no objective reads together."""
    (first, of_first), *others = parts.items()
    for name, examples in others:
        if examples.labelled != of_first.labelled:
            having, lacking = (name, first) if examples.labelled else (first, name)
            raise ValueError(
                f"config.data.mixture: {having} has labels (desirable or not) and {lacking} has none; mix sources of "
                "one kind, or set data.unpair=True where all of them are pairs"
            )
        if examples.candidates != of_first.candidates:
            raise ValueError(
                f"config.data.mixture: an example of {first} has {of_first.candidates} responses and one of {name} "
                f"{examples.candidates}; mix sources of one kind"
            )
