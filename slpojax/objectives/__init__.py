"""Objectives: the contract in prose, and how one is found by its name.

Knows names and signatures; knows no model, no data, no step. The objectives themselves are the modules beside this one.

An objective is one pure function of ONE example::

    from slpojax.base import Array, Logps
    from slpojax.objectives import require
    from slpojax.sequence import first, log_ratio, preference_metrics

    def mine(policy: Logps, ref: Logps, *, beta: float = 0.1) -> tuple[Array, dict[str, Array]]:
        require(beta > 0, "beta", beta, "a number above 0")
        reward = beta * log_ratio(first(policy, 2), first(ref, 2))
        return jax.nn.softplus(reward[1] - reward[0]), preference_metrics(policy, reward)

Put it in any importable module, say `ideas.py`, and train with `--config.objective.name=ideas.mine`; in a module of
this package it is called `module.mine`, is listed by `names()` and inherits every test in tests/laws.

What it gets. Its positional parameters name what it needs, among those of `slpojax.needs`:
    policy  `Logps` [K, T] log-probs of the candidates' tokens; candidate 0 is the preferred one. The gradient flows
            through it.
    ref  `Logps` [K, T] the same responses' log-probs under the reference; where nothing asks for a reference, a run has
            none.
    previous  `Logps` [K, T] the same responses' log-probs under a second frozen model: the iterate that an iterative
            method starts from.
    prompt  `Logps` [P] log-probs of the prompt's own tokens, each given those before it, so that the first one has
            none; where nothing asks for them only responses meet the vocabulary. The gradient flows through it.
    score  [K] scores of the candidates, higher is better.
    probability  [K] scores of the candidates that are probabilities to win, from 0 to 1.
    label  1 where candidate 0 is desirable, 0 where it is not, in data that is not paired.
    weight  weight of the example in the loss: 1, or what makes the prompts of undesirable responses as frequent as
            among the desirable ones (data.match_prompts).
    collision  [K, T] log sum_v p(v)^2 of the policy's distribution at each response token. The gradient flows through
            it.
    entropy  [K, T] - sum_v p(v) log p(v) of the policy's distribution at each response token, in nats. The gradient
            flows through it.
    kl  [K, T] KL(reference || policy) of the whole distributions at each response token, in nats. The gradient flows
            through it. It takes the reference's weights (reference.mode online, moving or bema).
    activity  [K, T] the mean over the vocabulary of the reference's logits at each response token. It takes the
            reference's weights (reference.mode online, moving or bema).
    layer_activity  [K, T, N] the mean over its width of what each of the reference's N layers puts out at each response
            token. It takes the reference's weights (reference.mode online, moving or bema).
    reward_mask  [K, T] a learned mask on the response tokens' log-ratios, numbers from 0 on, read off the reference's
            layers by weights that are trained beside the policy. The gradient flows through it. It takes the
            reference's weights (reference.mode online, moving or bema).
    kl_mask  [K, T] a learned mask on the response tokens' divergences, as reward_mask. The gradient flows through it.
            It takes the reference's weights (reference.mode online, moving or bema).
    degree  [K, T, C] logits of how much of a response's key content was removed, read off the policy's last states by a
            network beside it, for data that has such copies (data.degrade). The gradient flows through it.
    reward  [K, T] what a score head in the place of the unembedding (model.head=score) gives at each response token's
            own state, of the text up to it; the last token's is the response's. The log-probs of such a model are
            zeros. The gradient flows through it.
    key  a random key for this example alone.
    state  running statistics over the steps; the parameter's default is their initial value, any tree of numbers.
Everything [K, T] is 0 where there is no token. What nobody asks for is not computed.

Its keyword-only parameters are its hyperparameters, numbers and words with the paper's values as defaults. `build`
binds and checks Python values; a call may replace those that `numeric` names by traced arrays, so that one compiled
program serves many values. A range is therefore written `(0 <= x) & (x < 1)`: a chain would ask a tracer for a truth.

What it returns. `(loss, metrics)`, or `(loss, metrics, new_state)` if it takes `state`: a scalar, and scalars by name.
The step applies it to every example with `jax.vmap(..., axis_name="batch")` and means loss and metrics over the global
batch; a batch statistic is `jax.lax.pmean(x, "batch")`, which is over the global batch too.

What it may rely on. `Logps` needs no mask: padding adds nothing (use `slpojax.sequence`). A candidate that is absent
has length 0 and log-probs 0. A pair objective takes `first(policy, 2)`, candidates 0 and 1, and ignores the rest; data
of fewer is refused, also where an objective reads `reward[1]` without it. One over all candidates says so: its module
names the function in a tuple `OVER_ALL`; for any other a further candidate changes nothing. What it must keep:
gradients finite for every input, absent candidates included (also where only the policy's are), since 0 * NaN is NaN. A
value that no training can mean is refused with `require`, which `build` triggers before anything is compiled.

What it draws. The key belongs to the example's place in the batch, so that who gets which key depends on the order of
the batch; an objective with batch statistics may take the first place's for all. A draw for every token is one of its
place, since more padding must not change it: `jax.random.uniform(jax.random.fold_in(key, t))` for each t, not a draw of
the shape [K, T]. Its state comes as float32 arrays, whatever the default is: annotate it `Array | float`.

Objectives add up by name, `dpo.sigmoid + 0.005 * sft.sequence_sum`; see `slpojax.objectives.mixture`. What they are
told of the policy may be transformed, `humanline(dpo.sigmoid)`; see `slpojax.objectives.transforms`.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from slpojax import named, needs, readers
from slpojax.bounds import reads_beyond
from slpojax.objectives import mixture, transforms
from slpojax.sequence import TooFewCandidates

# An example of the shapes that `build` tries an objective on has up to so many candidates; its other axes are longer,
# so that a read beyond a short axis is one of a candidate.
_MOST_CANDIDATES, _LONG = 8, 64


class Objective(NamedTuple):
    """An objective with its hyperparameters bound.

    Attributes:
        name: the name it was built by.
        function: called with what it needs, by keyword; returns (loss, metrics) or (loss, metrics, state). Further
            keywords replace hyperparameters, see `numeric`.
        needs: the names of what it asks for, among `slpojax.needs.known()`.
        hyperparameters: every one of them, defaults included.
        state: the initial running statistics, or None.
        metrics: the names of its metrics.
        fewest: how many candidates of an example it reads at least.
    """

    name: str
    function: Callable[..., Any]
    needs: frozenset[str]
    hyperparameters: dict[str, Any]
    state: Any
    metrics: tuple[str, ...] = ()
    fewest: int = 1


def require(holds: Any, key: str, value: Any, expected: str) -> None:
    """Refuse a hyperparameter.

    Args:
        holds: whether the value can be meant: a truth, or a traced one, of which nothing is refused.
        key: the name of the hyperparameter.
        value: as it was set.
        expected: what can be meant.

    Raises:
        ValueError: `holds` is false; names the key, the value and what was expected.
    """
    named.require(holds, f"objective.{key}", value, expected)


def names() -> list[str]:
    """Return the names of this package's objectives: the public functions whose first parameter is `policy`."""
    return list(_known())


def find(name: str) -> Callable[..., Any]:
    """Return the function of an objective that is neither a mixture nor transformed.

    Raises:
        ValueError: there is no such objective.
    """
    function = named.find("objective", name, _known(), listed="python -m slpojax.objectives")
    readers.adopt(sys.modules[function.__module__])
    return function


def functions(name: str) -> list[Callable[..., Any]]:
    """Return the functions of an objective: of each term, where it is a mixture, and of what transforms it."""
    if mixture.is_mixture(name):
        return [function for term in mixture.parse(name) for function in functions(term)]
    if parts := transforms.parse(name):
        return [transforms.find(parts[0]), *functions(parts[1])]
    return [find(name)]


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
        return {key: known[term][inner] for key, (term, inner) in mixture.owners(known).items()}
    if parts := transforms.parse(name):
        return defaults(parts[1]) | named.defaults(transforms.find(parts[0]))
    return named.defaults(find(name))


def build(name: str, **hyperparameters: Any) -> Objective:
    """Return an objective by name, with its hyperparameters bound and checked.

    Args:
        name: `module.function` of this package, or of any importable module; or a weighted sum of such, or one of
            these transformed.
        **hyperparameters: those that differ from the defaults.

    Example:
        >>> sorted(build("dpo.sigmoid", beta=0.2).needs)
        ['policy', 'ref']
        >>> build("sft.token_mean").fewest, build("dpo.sigmoid").fewest
        (1, 2)

    Raises:
        ValueError: there is no such objective or hyperparameter, a value is out of range, or the function is not one
            that the contract describes.
    """
    if mixture.is_mixture(name):
        return _traced(_mixture(name, hyperparameters))
    if parts := transforms.parse(name):
        return _traced(_transformed(name, *parts, hyperparameters))
    function = find(name)
    bound = named.bind("objective", name, function, hyperparameters)
    parameters = named.asks("objective", name, function, needs.known())
    state = next((p.default for p in parameters if p.name == "state"), None)
    asked = frozenset(p.name for p in parameters)
    return _traced(Objective(name, functools.partial(function, **bound), asked, bound, state))


def numeric(objective: Objective) -> tuple[str, ...]:
    """Return which hyperparameters a call of the objective's function may replace by traced arrays.

    Example:
        >>> numeric(build("dpo.ipo")), numeric(build("slpo.shift")), numeric(build("slpo.shift", temperature=512))
        (('beta',), ('alpha',), ('alpha', 'temperature'))

    Of this package's objectives these are all that are floats, but for two values that leave something out of the
    program: a weight of 0 (cpo_alpha, tpo_alpha, nll_weight: no likelihood term, and no coupling of the examples by it)
    and alpha = 1 of `slpo` (no gap of the rejected's mass, which is to be zero). Words (temperature="length", nll,
    loss), flags and whole numbers choose a program.
    """

    def same(arrays: dict[str, Any]) -> bool:
        return _trace(objective, objective.fewest, arrays) == objective.metrics

    return named.numeric(objective.hyperparameters, same)


def refuse(objective: Objective, *, candidates: int, mismatched: bool) -> None:
    """Refuse data of fewer candidates than an objective reads.

    Args:
        objective: which.
        candidates: how many the examples have.
        mismatched: whether a response to another prompt is among them (config.data.mismatched).

    Raises:
        ValueError: they are too few; says which key helps.
    """
    if candidates < objective.fewest:
        more = f"--config.data.candidates={objective.fewest}, with data that has as many"
        if "label" in objective.needs and not mismatched:
            more = "--config.data.mismatched=True, which adds a response to another prompt"
        raise ValueError(
            f"objective {objective.name} reads {objective.fewest} responses of an example, the data gives "
            f"{candidates}; set {more}"
        )


def blank(objective: Objective, candidates: int, response: int) -> dict[str, Any]:
    """Return the shapes of what an objective asks for, of one example, and its initial state.

    Args:
        objective: it asks.
        candidates: K.
        response: T.
    """
    return {
        name: objective.state if name == "state" else needs.like(name, candidates, response) for name in objective.needs
    }


def over_all(name: str) -> bool:
    """Tell whether an objective reads all candidates of an example, as its module's `OVER_ALL` declares.

    Example:
        >>> over_all("listwise.nca"), over_all("dpo.sigmoid")
        (True, False)
    """
    parts = transforms.parse(name)
    function = find(parts[1] if parts else name)
    return function.__name__ in getattr(sys.modules[function.__module__], "OVER_ALL", ())


@functools.cache
def _known() -> Mapping[str, Callable[..., Any]]:
    return named.functions(__name__)


def _mixture(name: str, hyperparameters: dict[str, Any]) -> Objective:
    weights = mixture.parse(name)
    owners = mixture.owners({term: defaults(term) for term in weights})
    named.check_keys("objective", name, owners, hyperparameters)
    terms = {}
    for term in weights:
        try:
            terms[term] = build(term, **mixture.of_term(term, owners, hyperparameters))
        except ValueError as error:
            raise ValueError(f"{error} (in the term {term} of {name!r})") from error
    bound = {key: terms[term].hyperparameters[inner] for key, (term, inner) in owners.items()}
    asked = frozenset[str]().union(*(term.needs for term in terms.values()))
    state = tuple(term.state for term in terms.values()) if "state" in asked else None
    return Objective(name, mixture.weighted_sum(weights, terms, owners), asked, bound, state)


def _transformed(name: str, transform: str, inner: str, hyperparameters: dict[str, Any]) -> Objective:
    function, of_inner = transforms.find(transform), defaults(inner)
    own = named.defaults(function)
    named.check_keys("objective", name, of_inner | own, hyperparameters)
    if twice := own.keys() & of_inner.keys():
        raise ValueError(f"objective {name!r} has {', '.join(twice)} twice; give the transform's another name")
    built = build(inner, **{key: value for key, value in hyperparameters.items() if key in of_inner})
    if "ref" not in built.needs:
        raise ValueError(
            f"objective {name!r}: {inner} compares with no reference, which {transform} changes the policy's log-probs "
            "by; take one that does, such as dpo.sigmoid"
        )
    mine = {key: value for key, value in hyperparameters.items() if key in own}
    bound = named.bind("objective", name, function, mine)
    run = transforms.around(function, bound, built.function)
    return Objective(name, run, built.needs, built.hyperparameters | bound, built.state)


def _traced(objective: Objective) -> Objective:
    """Return an objective with its metrics and the fewest candidates that it reads, once its checks have passed."""
    refused: Exception | None = None
    count = 1
    while count <= _MOST_CANDIDATES:
        try:
            return objective._replace(metrics=_trace(objective, count), fewest=count)
        except TooFewCandidates as error:
            count = max(count + 1, error.needed)
        except (ValueError, TypeError, IndexError) as error:  # of the number of candidates only if another one will do
            refused, count = refused or error, count + 1
    raise refused or ValueError(
        f"objective {objective.name!r} reads candidate {count - 1}, or beyond an axis of another kind; an example has "
        f"at most {_MOST_CANDIDATES} candidates"
    )


def _trace(objective: Objective, candidates: int, arrays: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Run the objective on shapes alone, which raises what its checks raise, and return the names of its metrics.

    Args:
        objective: what runs.
        candidates: K of the example.
        arrays: shapes of hyperparameters that are traced.
    """
    inputs = {
        name: value if name == "state" else jax.tree.map(lambda x: x.update(shape=(1, *x.shape)), value)
        for name, value in blank(objective, candidates, _LONG).items()
    }
    axes = {name: None if name == "state" else 0 for name in inputs}

    def function(inputs: dict[str, Any], arrays: Mapping[str, Any]) -> Any:
        one = jax.vmap(lambda inputs: objective.function(**inputs, **arrays), in_axes=(axes,), axis_name="batch")
        return one(inputs)

    program, result = jax.make_jaxpr(function, return_shape=True)(inputs, arrays or {})
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
    beyond = [read for read in reads_beyond(program) if read.size <= _MOST_CANDIDATES]
    if beyond:
        raise TooFewCandidates(candidates + 1, candidates, f"candidate {beyond[0].place}")
    return tuple(result[1])
