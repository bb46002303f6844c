r"""Selectors: which of a prompt's candidates the objective sees; the contract in prose, and how one is found by name.

Knows log-probs of candidates; knows no objective, no model, no step. MC-PO is the objective `listwise.rnce` behind
`mc_kernel`; `uniform`, `likeliest`, `least_likely` and `everything` are what its paper compares with. They are the
functions of the modules beside this one, whose names are no part of theirs.

A selector is one pure function of ONE example::

    from slpojax.base import Array, Int, Logps
    from slpojax.sequence import total

    def longest_odds(policy: Logps, ref: Logps, *, picks: int = 1) -> Int[Array, " picks"]:
        return jax.lax.top_k(total(ref)[1:], picks)[1] + 1

Put it in any importable module, say `ideas.py`, and train with `--config.selector.name=ideas.longest_odds`; in a
module of this package it is called `longest_odds` and is listed by `names()`.

What it gets. Its positional parameters name what it needs, among
    policy  `Logps` [K, T] log-probs of the candidates' tokens; candidate 0 is the preferred one. The gradient flows
            through it.
    ref  `Logps` [K, T] the same responses' log-probs under the reference; where nothing asks for a reference, a run has
            none.
    score  [K] scores of the candidates, higher is better.
    key  a random key for this example alone.
as they are before the step; no gradient flows through a choice. The first is `policy`, if only for the lengths. Its
keyword-only parameters are its hyperparameters.

What it returns. The indices [M] of the picked candidates, M fixed by the hyperparameters and K. Candidate 0 is not
among them (but see `mc_kernel`'s `include_state`): the step puts it in front, and the objective sees 1 + M candidates,
itself and the picked in the order of their picks. A candidate may come twice where picks are with replacement, and then
counts twice. It may return (indices, metrics), scalars by name, which are logged as `selector/<name>`.

Every selector's picks are reported, means over the global batch, whichever way the step takes:
    selector/rank       place of the picked among the candidates behind the first, by log P / P_ref (log P where the run
                        has no reference): 1 is the hardest; equal ones share the mean of their places
    selector/hardest    share of the picks that are the hardest
A hyperparameter of the value "objective" is the objective's of the same name. A call of the selector's function may
replace numbers by traced arrays, see `numeric`.

What it must keep. An absent candidate, of length 0, is not picked while one that is there is left. Where none is left
the pick is an absent one, which in an objective over all candidates has no weight.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from slpojax import named, needs
from slpojax.base import Array, Int
from slpojax.bounds import reads_beyond
from slpojax.sequence import log_ratio, total

# The value of a hyperparameter that follows the objective's of the same name.
FOLLOW = "objective"

# Candidates of the example on which `build` tries a selector; more than any data has.
_MANY = 1024

_Tree = TypeVar("_Tree")


class Selector(NamedTuple):
    """A selector with its hyperparameters bound.

    Attributes:
        name: the name it was built by.
        function: called with what it needs, by keyword; returns indices, or indices and metrics. See `choose`.
        needs: the names of what it asks for, among those of `slpojax.needs` that selectors may.
        hyperparameters: every one of them, defaults included.
        follows: the names of those that are the objective's.
    """

    name: str
    function: Callable[..., Any]
    needs: frozenset[str]
    hyperparameters: dict[str, Any]
    follows: tuple[str, ...] = ()


def require(holds: Any, key: str, value: Any, expected: str) -> None:
    """Refuse a hyperparameter, as `slpojax.objectives.require` does.

    Raises:
        ValueError: `holds` is false; names the key, the value and what was expected.
    """
    named.require(holds, f"selector.{key}", value, expected)


def names() -> list[str]:
    """Return the names of this package's selectors: the public functions whose first parameter is `policy`."""
    return list(_known())


def find(name: str) -> Callable[..., Any]:
    """Return the function of a selector.

    Raises:
        ValueError: there is no such selector.
    """
    return named.find("selector", name, _known())


def defaults(name: str) -> dict[str, Any]:
    """Return the hyperparameters of a selector and their defaults.

    Example:
        >>> defaults("uniform")
        {'picks': 1, 'replacement': True}

    Raises:
        ValueError: there is no such selector.
    """
    return named.defaults(find(name))


def build(name: str, objective: Mapping[str, Any] | None = None, **hyperparameters: Any) -> Selector:
    """Return a selector by name, with its hyperparameters bound and checked.

    Args:
        name: of a function in this package, or `module.function` of any importable module.
        objective: the objective's hyperparameters, which those of the value "objective" follow.
        **hyperparameters: those that differ from the defaults.

    Example:
        >>> sorted(build("mc_kernel", beta=0.1).needs)
        ['key', 'policy', 'ref']
        >>> build("mc_kernel", {"beta": 0.5}).hyperparameters["beta"]
        0.5

    Raises:
        ValueError: there is no such selector or hyperparameter, a value is out of range, or the function is not one
            that the contract describes.
    """
    function = find(name)
    bound = named.bind("selector", name, function, hyperparameters)
    followed = objective or {}
    follows = tuple(key for key, value in bound.items() if value == FOLLOW and key in followed)
    bound |= {key: followed[key] for key in follows}
    asked = frozenset(p.name for p in named.asks("selector", name, function, needs.where(selectors=True)))
    selector = Selector(name, functools.partial(function, **bound), asked, bound, follows)
    picked, metrics = _trace(selector, _MANY)
    indices = len(getattr(picked, "shape", ())) == 1 and jnp.issubdtype(picked.dtype, jnp.integer)
    if not indices or any(value.shape for value in metrics.values()):
        raise ValueError(
            f"selector {name!r} returned {picked}{f' and {metrics}' if metrics else ''}; expected the indices of "
            "candidates, integers [picks], or those and {name: scalar}"
        )
    return selector


def numeric(selector: Selector) -> tuple[str, ...]:
    """Return which hyperparameters a call of the selector's function may replace by traced arrays.

    Example:
        >>> numeric(build("mc_kernel", beta=0.1))
        ('beta', 'temperature')

    How many are picked, and from how many, are shapes; whether with replacement, and by which weight, are programs.
    """

    def form(arrays: Mapping[str, Any]) -> Any:
        picked, metrics = _trace(selector, _MANY, arrays)
        return picked, sorted(metrics)

    plain = form({})
    return named.numeric(selector.hyperparameters, lambda arrays: form(arrays) == plain)


def count(selector: Selector, candidates: int) -> int:
    """Return how many candidates the objective sees of so many: candidate 0 and the picked.

    Example:
        >>> count(build("uniform", picks=2), 5), count(build("everything"), 5)
        (3, 5)

    Raises:
        ValueError: the selector cannot pick from so few.
    """
    return 1 + _trace(selector, candidates)[0].shape[0]


def refuse(selector: Selector, *, objective: str, fewest: int, candidates: int, degrade: int) -> None:
    """Refuse a run in which a selector leaves an objective what it cannot train on.

    Args:
        selector: which.
        objective: the objective's name.
        fewest: how many candidates of an example it reads at least.
        candidates: how many the data has.
        degrade: how many copies of each response with content removed the data has (config.data.degrade).

    Raises:
        ValueError: the selector would pick among copies, or leave too few or too many candidates; says which key helps.
    """
    if degrade:
        raise ValueError(
            f"selector {selector.name} picks among the copies that config.data.degrade={degrade} makes, which an "
            "objective knows by their place; set --config.selector.name=everything"
        )
    left = count(selector, candidates)
    if left > _MANY:
        raise ValueError(
            f"selector {selector.name} gives the objective {left:,} responses of {candidates}; expected at most "
            f"{_MANY:,}: lower --config.selector.picks"
        )
    if left < fewest:
        helps = "--config.selector.name=everything"
        if candidates < fewest:
            helps = f"--config.data.candidates={fewest}, with data that has as many"
        elif "picks" in selector.hyperparameters:
            helps = f"--config.selector.picks={fewest - 1}"
        raise ValueError(
            f"objective {objective} reads {fewest} responses of an example, of which selector {selector.name} leaves "
            f"{left} of {candidates}; set {helps}"
        )


def choose(
    selector: Selector, inputs: Mapping[str, Any], **arrays: Array
) -> tuple[Int[Array, " picked"], dict[str, Array]]:
    """Return the candidates of an example that the objective sees, candidate 0 first, and metrics of the picked.

    Args:
        selector: which.
        inputs: what it asks for, by name, of one example; "policy" [K, T], and "ref" [K, T] or None, always.
        **arrays: in place of hyperparameters, see `numeric`.
    """
    inputs = jax.lax.stop_gradient(dict(inputs))
    picked, metrics = _parts(selector.function(**{name: inputs[name] for name in selector.needs}, **arrays))
    policy, ref = inputs["policy"], inputs["ref"]
    reward, present = total(policy) if ref is None else log_ratio(policy, ref), jnp.asarray(policy.length) > 0
    behind = present & (jnp.arange(present.shape[0]) > 0)
    harder = jnp.sum(behind[None, :] & (reward[None, :] > reward[picked, None]), axis=1)
    equal = jnp.maximum(jnp.sum(behind[None, :] & (reward[None, :] == reward[picked, None]), axis=1), 1)
    one = behind[picked] / jnp.maximum(jnp.sum(behind[picked]), 1)  # an absent one, or candidate 0, has no place
    places = {"rank": jnp.sum(one * (harder + (equal + 1) / 2)), "hardest": jnp.sum(one * (harder == 0) / equal)}
    metrics = {f"selector/{name}": value for name, value in {**places, **metrics}.items()}
    return jnp.concatenate([jnp.zeros(1, picked.dtype), picked]), metrics


def take(candidates: _Tree, indices: Int[Array, "*picked"]) -> _Tree:
    """Return some of the candidates: of `Logps`, an array or any tree of arrays whose leading axis they are."""
    return jax.tree.map(lambda x: jnp.asarray(x)[indices], candidates)


def cheaper(prompt_tokens: float, response_tokens: float, candidates: int, picks: int) -> str:
    r"""Return the cheaper way to train on what a selector picks, "together" or "score_first".

    Counted are the tokens that pass through the model; a gradient costs three passes, its forward pass included. With P
    tokens of the prompt, which all its candidates share, and n of a response,

    .. math:: \text{together} = 3 (P + K n), \quad \text{score first} = (P + K n) + 3 (P + (1 + M) n).

    Together puts all K through the model with gradient; score first puts them through without one, picks, and trains on
    a batch of the picked alone. The latter wins where :math:`(2 K - 3 (1 + M)) n > P`, so never for pairs. For P = 138,
    n = 50 and M = 1:

    ====  ========  ===========  ============
    K     together  score first  cheaper
    ====  ========  ===========  ============
    2     714       952          together
    5     1164      1102         score first
    8     1614      1252         score first
    ====  ========  ===========  ============

    A tie goes to together, which is one program instead of two. What the rule leaves out: attention within a response,
    the padding of rows, and memory, which is that of all K candidates only where they are together.

    Args:
        prompt_tokens: P, a mean over the data.
        response_tokens: n, likewise.
        candidates: K.
        picks: M.

    Example:
        >>> [cheaper(138.0, 50.0, candidates, 1) for candidates in (2, 5, 8)]
        ['together', 'score_first', 'score_first']
    """
    everything = prompt_tokens + candidates * response_tokens
    picked = prompt_tokens + (1 + picks) * response_tokens
    return "score_first" if everything + 3 * picked < 3 * everything else "together"


@functools.cache
def _known() -> Mapping[str, Callable[..., Any]]:
    return {name.rpartition(".")[2]: function for name, function in named.functions(__name__).items()}


def _parts(result: Any) -> tuple[Any, dict[str, Any]]:
    """Return the indices that a selector returned, and its metrics, if any."""
    two = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    return result if two else (result, {})


def _trace(selector: Selector, candidates: int, arrays: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Run the selector on shapes alone, which raises what its checks raise, and return those of what it returns.

    Args:
        selector: what runs.
        candidates: K of the example; its other axes are longer, so that a read beyond a short one is of a candidate.
        arrays: shapes of hyperparameters that are traced.
    """
    inputs = {name: needs.like(name, candidates, candidates + 1) for name in selector.needs}
    program, result = jax.make_jaxpr(lambda values: selector.function(**values), return_shape=True)(
        inputs | dict(arrays or {})
    )
    beyond = [read for read in reads_beyond(program) if read.size <= candidates]
    if beyond:
        raise ValueError(
            f"selector {selector.name!r} reads candidate {beyond[0].place}, the example has {candidates}; give it data "
            "with more responses per prompt (config.data.candidates)"
        )
    return _parts(result)
