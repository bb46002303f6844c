"""Reward against KL as a page and as numbers: what each method is worth at a few KL budgets, and where its runs stop.

Knows results and text; knows no file and no configuration.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slpojax.tradeoff import Best, Mean, best_at, over_seeds, paired
from slpojax.tradeoff.results import KL, REWARD, Method, Run

CHOSEN, REJECTED, ACCURACY, ENDED = "logps/chosen", "logps/rejected", "rewards/accuracies", "world/finished"

_NOTES = """\
Gold reward gained is in standard deviations of the reference's own gold reward, KL in nats per answer, both on the
same prompts at every evaluation. A run's gain at a KL is the largest that it has anywhere with at most that KL; between
two evaluations it is interpolated, linearly in (sqrt(KL), gain). The table has the mean over seeds ± the standard
deviation (of {seeds} seeds) of the strength, in brackets, whose mean is largest. "-": no strength takes all its seeds
so far. Picking strength and checkpoint in hindsight favours every method, by about the noise of an evaluation. The last
columns are differences to {first}, seed by seed, ± the standard error of their mean."""

_ENDS = """\
Means over seeds ± standard deviations. Chosen and rejected: what the log-probability of the held-out responses gained
or lost from the first to the last evaluation. Pairs ranked right: by the implicit reward, on the method's own held-out
examples; a method that sees pools ranks the chosen against every other candidate."""


def table(methods: Sequence[Method], budgets: Sequence[float], seeds: int) -> str:
    """Return the table of what each method is worth at each budget, as Markdown, with what its numbers mean.

    Args:
        methods: the first is the one that others are compared with.
        budgets: KL in nats per answer.
        seeds: of the grid.
    """
    head = ["method", *(f"gain at KL {b:g}" for b in budgets), *(f"minus {methods[0].label} at {b:g}" for b in budgets)]
    rows = []
    for i, method in enumerate(methods):
        best = [best_at(method.paths, budget) for budget in budgets]
        against = [
            paired(mine.values, best_at(methods[0].paths, b).values) for mine, b in zip(best, budgets, strict=True)
        ]
        rows.append([method.label, *map(_worth, best), *(_difference(one) if i else "" for one in against)])
    return f"{_markdown(head, rows)}\n\n{_NOTES.format(first=methods[0].label, seeds=seeds)}"


def ends(methods: Sequence[Method]) -> str:
    """Return the table of where each strength stops, as Markdown."""
    head = ["method", "strength", "KL at the end", "gain at the end", "largest gain", "chosen, nats", "rejected, nats"]
    head += ["pairs ranked right", "answers that end", "seeds"]
    rows = []
    for method in methods:
        for strength, by_seed in method.runs.items():
            runs = [*by_seed.values()]
            largest = _mean([float(run.path.reward.max()) for run in runs], 2)
            moved = [
                _of(runs, lambda run, name=name: run.last[name] - run.first[name], 1, "+")
                for name in (CHOSEN, REJECTED)
            ]
            key = f"{method.short} {strength}"
            row = [
                method.label,
                key,
                _of(runs, lambda run: run.last[KL], 2),
                _of(runs, lambda run: run.last[REWARD], 2, "+"),
            ]
            row += [
                largest,
                *moved,
                _of(runs, lambda run: run.last[ACCURACY], 3),
                _of(runs, lambda run: run.last[ENDED], 3),
            ]
            rows.append([*row, str(len(runs))])
    return f"{_markdown(head, rows)}\n\n{_ENDS}"


def numbers(methods: Sequence[Method], budgets: Sequence[float]) -> dict[str, Any]:
    """Return all of it for JSON: every evaluation of every run, and what the methods are worth at the budgets."""
    return {
        method.name: {
            "label": method.label,
            "strength": method.key,
            "best": {f"{budget:g}": _best(best_at(method.paths, budget)) for budget in budgets},
            "runs": [_run(run) for runs in method.runs.values() for run in runs.values()],
        }
        for method in methods
    }


def bounds(of_seeds: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Return for JSON, by seed, KL and the most that any policy can gain there."""
    return {
        str(seed): {"kl": [round(x, 6) for x in kl.tolist()], "gain": [_known(x) for x in gain.round(5).tolist()]}
        for seed, (kl, gain) in of_seeds.items()
    }


def _best(best: Best) -> dict[str, Any]:
    found = over_seeds([*best.values.values()])
    values = {"mean": found.mean, "std": found.std, "standard_error": found.error}
    by_seed = {str(seed): value for seed, value in best.values.items()}
    return {"strength": best.strength, **{name: _known(value) for name, value in values.items()}, "seeds": by_seed}


def _run(run: Run) -> dict[str, Any]:
    points = [
        {"step": step, "kl": kl, "gain": gain}
        for step, kl, gain in zip(run.steps, run.path.kl.tolist(), run.path.reward.tolist(), strict=True)
    ]
    ends = {
        name: {key: _known(value) for key, value in row.items()}
        for name, row in (("first", run.first), ("last", run.last))
    }
    return {"strength": run.strength, "seed": run.seed, "config": run.digest, "points": points, **ends}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _worth(best: Best) -> str:
    if best.strength is None:
        return "-"
    return f"{_plus_minus(over_seeds([*best.values.values()]), 2, '')} ({best.strength})"


def _difference(found: Mean) -> str:
    if not found.seeds:
        return "-"
    return f"{found.mean:+.2f}" + (f" ± {found.error:.2f}" if math.isfinite(found.error) else "")


def _of(runs: Sequence[Run], value: Any, digits: int, sign: str = "") -> str:
    """Return mean and deviation of a number of every run; "-" where one of them lacks it."""
    try:
        return _mean([value(run) for run in runs], digits, sign)
    except KeyError:
        return "-"


def _mean(values: Sequence[float], digits: int, sign: str = "") -> str:
    return _plus_minus(over_seeds(values), digits, sign)


def _plus_minus(found: Mean, digits: int, sign: str) -> str:
    return f"{found.mean:{sign}.{digits}f}" + (f" ± {found.std:.{digits}f}" if math.isfinite(found.std) else "")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
