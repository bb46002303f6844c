"""Objectives: the contract in prose, and how one is found by its name.

Knows names and signatures; knows no model, no data, no step. The objectives themselves are the modules beside this one.

An objective is one pure function of ONE example::

    from slpojax.base import Array, Logps
    from slpojax.objectives import require
    from slpojax.sequence import log_ratio, preference_metrics

    def mine(policy: Logps, ref: Logps, *, beta: float = 0.1) -> tuple[Array, dict[str, Array]]:
        require(beta > 0, "beta", beta, "a number above 0")
        reward = beta * log_ratio(policy, ref)
        return jax.nn.softplus(reward[1] - reward[0]), preference_metrics(policy, reward)

Put it in any importable module, say `ideas.py`, and train with `--config.objective.name=ideas.mine`; in a module of
this package it is called `module.mine`, is listed by `names()` and inherits every test in tests/laws.

What it gets. Its positional parameters name what it needs, among
    policy  `Logps` of the K candidates, [K, T]; the gradient flows to these. Candidate 0 is the preferred one.
    ref     the same responses under the reference; without it the run has no reference at all.
    previous  the same responses under a second frozen model: the iterate that an iterative method starts from.
    prompt  `Logps` of the prompt's own tokens, [P], each given those before it, so that the first one has none; the
            gradient flows to these. Without it only responses meet the vocabulary.
    score   [K] scores of the candidates, higher is better.
    probability  the same, where they are probabilities: data whose scores leave 0 to 1 is refused.
    label   1 where candidate 0 is desirable, 0 where it is not, for data that is not paired.
    weight  of the example in the loss: 1, or what makes the prompts of undesirable responses as frequent as among the
            desirable ones (`data.match_prompts`).
    collision, entropy, kl   [K, T] of the policy's distribution at each response token, in nats, 0 where there is none:
            log sum_v p(v)^2, - sum_v p(v) log p(v), and KL(reference || policy); the gradient flows through these too.
            What no objective asks for is not computed; `kl` needs the reference's weights (reference.mode = "online").
    activity  [K, T] the mean over the vocabulary of the reference's logits there;
    layer_activity  [K, T, N] the mean over its width of what each of the reference's N layers puts out there;
    reward_mask, kl_mask  [K, T] learned masks, numbers from 0 on whose weights are trained beside the policy
            (`slpojax.readers.masks`); the gradient flows through these too. All four need the reference's weights as `kl` does.
    degree  [K, T, C] logits of how much of a response was taken away, read off the policy's last states by a network
            beside it (`slpojax.readers.degrees`), for data that has such copies (`data.degrade`); the gradient flows to both.
    key     a random key of its own.
    state   running statistics; the parameter's default is their initial value, any tree of numbers.
Its keyword-only parameters are its hyperparameters, Python numbers and strings with the paper's values as defaults.

What it returns. `(loss, metrics)`, or `(loss, metrics, new_state)` if it takes `state`: a scalar, and scalars by name.
The step applies it to every example with `jax.vmap(..., axis_name="batch")` and means loss and metrics over the global
batch; a batch statistic is `jax.lax.pmean(x, "batch")`, which is over the global batch too.

What it may rely on. `Logps` needs no mask: padding adds nothing (use `slpojax.sequence`). A candidate that is absent
has length 0 and log-probs 0. A pair objective reads candidates 0 and 1 and ignores the rest. What it must keep:
gradients finite for every input, absent candidates included (also where only the policy's are), since 0 * NaN is NaN.
A value that no training can mean is refused with `require`, which `build` triggers before anything is compiled.

Objectives add up by name, `dpo.sigmoid + 0.005 * sft.sequence_sum`; see `slpojax.objectives.mixture`.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slpojax import named
from slpojax.base import TOKEN, Logps
from slpojax.objectives import mixture

NEEDS = ("policy", "ref", "previous", "prompt", "score", "probability", "label", "weight", "key", "state", *TOKEN)


class Objective(NamedTuple):
    """An objective with its hyperparameters bound.

    Attributes:
        name: the name it was built by.
        function: called with what it needs, by keyword; returns (loss, metrics) or (loss, metrics, state).
        needs: the names of those arguments, among `NEEDS`.
        hyperparameters: every one of them, defaults included.
        state: the initial running statistics, or None.
        metrics: the names of its metrics.
    """

    name: str
    function: Callable[..., Any]
    needs: frozenset[str]
    hyperparameters: dict[str, Any]
    state: Any
    metrics: tuple[str, ...]


def require(holds: bool, key: str, value: Any, expected: str) -> None:
    """Refuse a hyperparameter.

    Raises:
        ValueError: `holds` is false; names the key, the value and what was expected.
    """
    named.require(holds, f"objective.{key}", value, expected)


def names() -> list[str]:
    """Return the names of this package's objectives: the public functions whose first parameter is `policy`."""
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return [
        f"{module}.{name}"
        for module in modules
        for name in named.functions(importlib.import_module(f"{__name__}.{module}"))
    ]


def defaults(name: str) -> dict[str, Any]:
    """Return the hyperparameters of an objective and their defaults.

    Example:
        >>> defaults("dpo.sigmoid")
        {'beta': 0.1}
        >>> defaults("dpo.sigmoid + 0.2 * dpo.hinge")
        {'sigmoid_beta': 0.1, 'hinge_beta': 0.1}

    Raises:
        ValueError: there is no such objective.
    """
    if mixture.is_mixture(name):
        known = {term: defaults(term) for term in mixture.parse(name)}
        return {key: known[term][own] for key, (term, own) in mixture.owners(known).items()}
    return named.defaults(_find(name))


def build(name: str, **hyperparameters: Any) -> Objective:
    """Return an objective by name, with its hyperparameters bound and checked.

    Args:
        name: `module.function` of this package, or of any importable module; or a weighted sum of such.
        **hyperparameters: those that differ from the defaults.

    Example:
        >>> sorted(build("dpo.sigmoid", beta=0.2).needs)
        ['policy', 'ref']

    Raises:
        ValueError: there is no such objective or hyperparameter, a value is out of range, or the function is not one
            that the contract describes.
    """
    if mixture.is_mixture(name):
        return _build_mixture(name, hyperparameters)
    function = _find(name)
    bound = named.bind("objective", name, function, hyperparameters)
    parameters = named.asks("objective", name, function, NEEDS)
    state = next((p.default for p in parameters if p.name == "state"), None)
    objective = Objective(
        name, functools.partial(function, **bound), frozenset(p.name for p in parameters), bound, state, ()
    )
    return objective._replace(metrics=_metrics(objective))


def fewest(objective: Objective) -> int:
    """Return how many candidates of an example an objective reads at least.

    Example:
        >>> fewest(build("sft.token_mean")), fewest(build("dpo.sigmoid"))
        (1, 2)
    """
    for count in (1, 2):
        try:
            _trace(objective, count)
        except ValueError:
            continue
        return count
    return 3


def _build_mixture(name: str, hyperparameters: dict[str, Any]) -> Objective:
    weights = mixture.parse(name)
    owners = mixture.owners({term: defaults(term) for term in weights})
    named.check_keys("objective", name, owners, hyperparameters)
    terms = {}
    for term in weights:
        given = {
            own: hyperparameters[key] for key, (its, own) in owners.items() if its == term and key in hyperparameters
        }
        try:
            terms[term] = build(term, **given)
        except ValueError as error:
            raise ValueError(f"{error} (in the term {term} of {name!r})") from error
    bound = {key: terms[term].hyperparameters[own] for key, (term, own) in owners.items()}
    needs = frozenset[str]().union(*(term.needs for term in terms.values()))
    state = tuple(term.state for term in terms.values()) if "state" in needs else None
    objective = Objective(name, mixture.weighted_sum(weights, terms), needs, bound, state, ())
    return objective._replace(metrics=_metrics(objective))


def _metrics(objective: Objective) -> tuple[str, ...]:
    """Return the names of an objective's metrics, once its checks have passed."""
    try:
        return _trace(objective, 2)
    except ValueError:  # a pair may be too few
        return _trace(objective, 3)


def blank(objective: Objective, candidates: int, response: int = 1) -> dict[str, Any]:
    """Return what an objective asks for, of one example of which only the shapes mean anything."""
    shape = (candidates, response)
    responses = Logps(jnp.zeros(shape), jnp.zeros(shape), jnp.ones(candidates, jnp.int32))
    everything = {
        **dict.fromkeys(("policy", "ref", "previous"), responses),
        "prompt": Logps(*(x[0] for x in responses)),
        **dict.fromkeys(TOKEN, jnp.zeros(shape)),
        "layer_activity": jnp.zeros((*shape, 1)),
        "degree": jnp.zeros((*shape, -(-candidates // 2))),
        **dict.fromkeys(("score", "probability"), jnp.zeros(candidates)),
        "label": jnp.zeros(()),
        "weight": jnp.ones(()),
        "key": jax.random.key(0),
        "state": objective.state,
    }
    return {name: everything[name] for name in objective.needs}


def _trace(objective: Objective, candidates: int) -> tuple[str, ...]:
    """Run the objective on shapes alone, which raises what its checks raise, and return the names of its metrics."""
    one = blank(objective, candidates)
    arguments = {
        name: value if name == "state" else jax.tree.map(lambda x: x[None], value) for name, value in one.items()
    }
    axes = {key: None if key == "state" else 0 for key in arguments}
    result = jax.eval_shape(
        jax.vmap(lambda given: objective.function(**given), in_axes=(axes,), axis_name="batch"), arguments
    )
    parts = 3 if "state" in objective.needs else 2
    if not isinstance(result, tuple) or len(result) != parts or not isinstance(result[1], dict):
        raise ValueError(
            f"objective {objective.name!r} returned {jax.tree.structure(result)}; expected "
            f"(loss, {{name: scalar}}{', state' * (parts - 2)})"
        )
    for key, value in {"loss": result[0], **result[1]}.items():
        if value.shape != (1,):
            raise ValueError(
                f"objective {objective.name!r}: {key!r} of one example has shape {value.shape[1:]}; expected ()"
            )
    return tuple(result[1])


def _find(name: str) -> Callable[..., Any]:
    return named.find("objective", name, __name__, names)
