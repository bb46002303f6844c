"""Weighted sums of objectives by their names: `dpo.sigmoid + 0.005 * sft.sequence_sum`.

Knows how such a name reads, which term a hyperparameter belongs to, and how terms are put together; knows no objective
of its own: `slpojax.objectives` finds the terms.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from slpojax import named, wording
from slpojax.base import Array

_TERM = re.compile(
    r"""\s* (?: (?P<weight> [-+]? (?: [\d.]+ (?: e[-+]?\d+ )? | inf | nan ) ) \s* \* )?
        \s* (?P<name> [a-z_][\w.]* (?: \( [^()]+ \) )? ) \s* (?P<more> \+ | $ )""",
    re.VERBOSE | re.IGNORECASE,
)


class Recipe(NamedTuple):
    """A method of a paper that is a mixture, or an objective of another name on data or beside a reference of its own.

    Attributes:
        method: its name, a comma, and what it is.
        name: of the objective.
        hyperparameters: all that the objective has.
        reference: authors, title, year, link, and how it differs.
    """

    method: str
    name: str
    hyperparameters: dict[str, float]
    reference: str


RECIPES = (
    Recipe(
        "RPO, regularised preference optimisation",
        "dpo.sigmoid + 0.005 * sft.sequence_sum",
        {"beta": 0.01},
        "Zhihan Liu and others, Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an "
        "Adversarial Regularizer, 2024, arXiv:2405.16436. TRL's lists of losses take the token mean, `sft.token_mean`",
    ),
    Recipe(
        "Iterative RPO, its loss on the chains of thought of one iteration",
        "dpo.sigmoid + sft.sequence_mean",
        {"beta": 0.1},
        "Richard Yuanzhe Pang and others, Iterative Reasoning Preference Optimization, 2024, arXiv:2404.19733",
    ),
    Recipe(
        "MPO, mixed preference optimisation",
        "0.8 * dpo.sigmoid + 0.2 * anchored.bco_pair + sft.token_mean",
        {"sigmoid_beta": 0.1, "bco_pair_beta": 0.1},
        "Weiyun Wang and others, Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed "
        "Preference Optimization, 2024, arXiv:2411.10442. TRL's has no running shift, `anchored.bco_pair_unshifted`",
    ),
    Recipe(
        "Cal-DPO, calibrated DPO",
        "dpo.sigmoid + 0.5 * anchored.sppo_hard",
        {"sigmoid_beta": 1.0, "sppo_hard_beta": 1e-3},
        "Teng Xiao, Yige Yuan, Huaisheng Zhu, Mingxiao Li, Vasant G. Honavar, Cal-DPO: Calibrated Direct Preference "
        "Optimization for Language Model Alignment, 2024, arXiv:2412.14516. Its beta is that of `anchored.sppo_hard`",
    ),
    Recipe(
        "REBEL, on the policy's own samples, whose iterate is the reference (`online.follow=segment`)",
        "margin.rpo_squared",
        {"beta": 0.2, "eta": 1.0},
        "Zhaolin Gao and others, REBEL: Reinforcement Learning via Regressing Relative Rewards, 2024, "
        "arXiv:2404.16767. Its eta is one over this beta",
    ),
    Recipe(
        "SPIN, the rejected response a sample of the iterate that is the reference, the chosen one the data's",
        "dpo.sigmoid",
        {"beta": 0.1},
        "Zixiang Chen and others, Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models, 2024, "
        "arXiv:2401.01335",
    ),
    Recipe(
        "Pre-DPO, the reference (`reference.path`) trained on the pairs before",
        "dpo.sigmoid",
        {"beta": 0.1},
        "Junshu Pan and others, Pre-DPO: Improving Data Utilization in Direct Preference Optimization Using a Guiding "
        "Reference Model, 2025, arXiv:2504.15843",
    ),
    Recipe(
        "Delta learning, on pairs of a weak model's answer and a weaker one's",
        "margin.sigmoid_norm",
        {"beta": 5.0},
        "Scott Geng and others, The Delta Learning Hypothesis: Preference Tuning on Weak Data can Yield Strong Gains, "
        "2025, arXiv:2507.06187",
    ),
)


def called(method: str) -> list[Recipe]:
    """Return the recipes of a method by its name, which is what stands before the first comma, in any letters.

    Example:
        >>> [recipe.name for recipe in called("rebel")], called("nobody's")
        (['margin.rpo_squared'], [])
    """
    return [recipe for recipe in RECIPES if recipe.method.partition(",")[0].casefold() == method.casefold()]


def is_mixture(name: str) -> bool:
    """Tell whether a name is that of a weighted sum (of one term, even) rather than of a function.

    Example:
        >>> is_mixture("0.5 * dpo.ipo"), is_mixture("humanline(dpo.ipo + dpo.hinge)")
        (True, False)
    """
    outside = re.sub(r"\([^()]*\)", "", name)
    return "+" in outside or "*" in outside


def parse(name: str) -> dict[str, float]:
    """Return the terms and their weights.

    Example:
        >>> parse("dpo.sigmoid+5e-3*sft.sequence_sum")
        {'dpo.sigmoid': 1.0, 'sft.sequence_sum': 0.005}

    Raises:
        ValueError: the name does not read as a weighted sum, a weight is negative or not finite, none is above 0, or a
            term stands in it twice.
    """
    weights: dict[str, float] = {}
    end, more = 0, True
    while more:
        match = _TERM.match(name, end)
        if match is None:
            raise ValueError(
                f"objective {wording.shown(name)}: cannot read {wording.shown(name[end:])}; expected a weighted sum of "
                "objectives such as 'dpo.sigmoid + 0.005 * sft.sequence_sum'"
            )
        term, weight = match["name"], _weight(name, match["weight"])
        if term in weights:
            raise ValueError(f"objective {wording.shown(name)} has the term {term} twice; give it one weight")
        weights[term] = weight
        end, more = match.end(), match["more"] == "+"
    if not any(weights.values()):
        raise ValueError(f"objective {wording.shown(name)} trains nothing: expected a weight above 0")
    return weights


def owners(known: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, str]]:
    """Return the mixture's hyperparameters: their keys, and for each the term it belongs to and that term's own key.

    One that a single term has keeps its key; one that several have is called after its function, or after module and
    function where two functions share a name.

    Args:
        known: term -> the keys of its hyperparameters.

    Example:
        >>> owners({"dpo.ipo": ["beta", "length_normalize"], "anchored.bco_pair": ["beta"]})
        {'ipo_beta': ('dpo.ipo', 'beta'), 'length_normalize': ('dpo.ipo', 'length_normalize'),
         'bco_pair_beta': ('anchored.bco_pair', 'beta')}
    """
    shared = Counter(key for keys in known.values() for key in keys)
    functions = Counter(_function(term) for term in known)
    result = {}
    for term, keys in known.items():
        prefix = _function(term) if functions[_function(term)] == 1 else re.sub(r"\W+", "_", term).strip("_")
        for key in keys:
            result[key if shared[key] == 1 else f"{prefix}_{key}"] = (term, key)
    return result


def of_term(term: str, owners: Mapping[str, tuple[str, str]], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a mixture that are a term's, under the term's own names."""
    return {inner: values[key] for key, (owner, inner) in owners.items() if owner == term and key in values}


def weighted_sum(
    weights: Mapping[str, float], terms: Mapping[str, Any], owners: Mapping[str, tuple[str, str]]
) -> Callable[..., tuple[Any, ...]]:
    """Return the function of one example that adds the terms up.

    Args:
        weights: term -> its weight.
        terms: term -> its `Objective`, in the order of their states.
        owners: hyperparameter of the mixture -> its term, and its name there.

    Its metrics are `loss/<term>`, without the weight, and the terms' own; where two terms have a metric of the same
    name, the later term's is called `<term>/<name>`. Its state is the tuple of the terms' states, None for one that
    has none. Terms that sample get a key each. Hyperparameters in a call replace those that the terms were built with.
    """
    return functools.partial(_sum, dict(weights), dict(terms), dict(owners))


def _sum(
    weights: dict[str, float], terms: dict[str, Any], owners: dict[str, tuple[str, str]], /, **inputs: Any
) -> tuple[Any, ...]:
    asked = frozenset[str]().union(*(term.needs for term in terms.values()))
    replaced = {key: value for key, value in inputs.items() if key not in asked}
    keys = _split(inputs.get("key"), [name for name, term in terms.items() if "key" in term.needs])
    states = inputs.get("state") or (None,) * len(terms)
    losses: dict[str, Array] = {}
    metrics: dict[str, Array] = {}
    after = []
    for (name, term), before in zip(terms.items(), states, strict=True):
        arguments = inputs | {"key": keys.get(name), "state": before}
        of_example = {need: arguments[need] for need in term.needs}
        losses[name], said, *new = term.function(**of_example, **of_term(name, owners, replaced))
        metrics |= {f"{name}/{key}" if key in metrics else key: value for key, value in said.items()}
        after.append(new[0] if new else None)
    metrics |= {f"loss/{name}": jax.lax.stop_gradient(loss) for name, loss in losses.items()}
    total = sum(weights[name] * loss for name, loss in losses.items())
    return (total, metrics, tuple(after)) if "state" in inputs else (total, metrics)


def _split(key: Any, names: list[str]) -> dict[str, Any]:
    """Return a key for each; a single one draws what it would draw alone."""
    return dict(zip(names, jax.random.split(key, len(names)) if len(names) > 1 else [key], strict=False))


def _weight(name: str, text: str | None) -> float:
    try:
        weight = 1.0 if text is None else float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= named.LARGEST:
        expected = f"expected a finite number from 0 to {named.LARGEST:g}"
        raise ValueError(f"objective {wording.shown(name)}: the weight {str(text)[:40]}: {expected}")
    return weight


def _function(term: str) -> str:
    return term.partition("(")[0].rpartition(".")[2]
