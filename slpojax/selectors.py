r"""Selectors: which of a prompt's candidates the objective sees; the contract in prose, and how one is found by name.

Knows log-probs of candidates; knows no objective, no model, no step. MC-PO is the objective `listwise.rnce` behind
`mc_kernel`; `random`, `max`, `min` and `all` are what its paper compares with.

A selector is one pure function of ONE example::

    from slpojax.base import Array, Int, Logps
    from slpojax.sequence import total

    def longest_odds(policy: Logps, ref: Logps, *, picks: int = 1) -> Int[Array, " picks"]:
        return jax.lax.top_k(total(ref)[1:], picks)[1] + 1

Put it in any importable module, say `ideas.py`, and train with `--config.selector.name=ideas.longest_odds`.

What it gets. Its positional parameters name what it needs, among
    policy  `Logps` of the K candidates, [K, T], as they are before the step; no gradient flows through a choice.
    ref     the same responses under the reference.
    score   [K] scores of the candidates, higher is better.
    key     a random key of its own.
The first is `policy`, if only for the lengths. Its keyword-only parameters are its hyperparameters.

What it returns. The indices [M] of the picked candidates, M fixed by the hyperparameters and K. Candidate 0 is not
among them (but see `mc_kernel`'s `include_state`): the step puts it in front, and the objective sees 1 + M candidates,
itself and the picked in the order of their picks. A candidate may come twice where picks are with replacement, and then
counts twice. It may return (indices, metrics), scalars by name, which are logged as `selector/<name>`.

Every selector's picks are reported, means over the global batch, whichever way the step takes:
    selector/rank       place of the picked among the candidates behind the first, by log P / P_ref (log P where the run
                        has no reference): 1 is the hardest; equal ones share the mean of their places
    selector/hardest    share of the picks that are the hardest
A hyperparameter of the value "objective" is the objective's of the same name.

What it must keep. An absent candidate, of length 0, is not picked while one that is there is left. Where none is left
the pick is an absent one, which in an objective over all candidates has no weight.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from slpojax import named
from slpojax.base import ABSENT, Array, Bool, Float, Int, Key, Logps
from slpojax.numerics import effective_sample_size
from slpojax.sequence import log_ratio, total

NEEDS = ("policy", "ref", "score", "key")

# The value of a hyperparameter that follows the objective's of the same name.
FOLLOW = "objective"

# The selector that picks all candidates.
EVERYTHING = "all"

# Candidates of the example on which `build` tries a selector; more than any data has.
_MANY = 1024

_Tree = TypeVar("_Tree")


class Selector(NamedTuple):
    """A selector with its hyperparameters bound.

    Attributes:
        name: the name it was built by.
        function: called with what it needs, by keyword; returns indices, or indices and metrics. See `choose`.
        needs: the names of those arguments, among `NEEDS`.
        hyperparameters: every one of them, defaults included.
    """

    name: str
    function: Callable[..., Any]
    needs: frozenset[str]
    hyperparameters: dict[str, Any]


# ---- found by name ---------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """Return the names of this module's selectors: the public functions whose first parameter is `policy`."""
    return named.functions(sys.modules[__name__])


def defaults(name: str) -> dict[str, Any]:
    """Return the hyperparameters of a selector and their defaults.

    Example:
        >>> defaults("random")
        {'picks': 1, 'replacement': True}

    Raises:
        ValueError: there is no such selector.
    """
    return named.defaults(_find(name))


def build(name: str, objective: Mapping[str, Any] | None = None, **hyperparameters: Any) -> Selector:
    """Return a selector by name, with its hyperparameters bound and checked.

    Args:
        name: of a function in this module, or `module.function` of any importable module.
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
    function = _find(name)
    bound = named.bind("selector", name, function, hyperparameters)
    followed = objective or {}
    bound |= {key: followed[key] for key, value in bound.items() if value == FOLLOW and key in followed}
    parameters = named.asks("selector", name, function, NEEDS)
    selector = Selector(name, functools.partial(function, **bound), frozenset(p.name for p in parameters), bound)
    picked, metrics = _trace(selector, _MANY)
    indices = len(getattr(picked, "shape", ())) == 1 and jnp.issubdtype(picked.dtype, jnp.integer)
    if not indices or any(value.shape for value in metrics.values()):
        raise ValueError(
            f"selector {name!r} returned {picked}{f' and {metrics}' if metrics else ''}; expected the indices of "
            "candidates, integers [picks], or those and {name: scalar}"
        )
    return selector


def count(selector: Selector, candidates: int) -> int:
    """Return how many candidates the objective sees of so many: candidate 0 and the picked.

    Example:
        >>> count(build("random", picks=2), 5), count(build("all"), 5)
        (3, 5)

    Raises:
        ValueError: the selector cannot pick from so few.
    """
    return 1 + _trace(selector, candidates)[0].shape[0]


def choose(selector: Selector, given: Mapping[str, Any]) -> tuple[Int[Array, " picked"], dict[str, Array]]:
    """Return the candidates of an example that the objective sees, candidate 0 first, and what is told of the picked.

    Args:
        selector: which.
        given: what it asks for, "policy", and "ref" or None, all of one example.
    """
    given = jax.lax.stop_gradient(dict(given))
    picked, metrics = _parts(selector.function(**{name: given[name] for name in selector.needs}))
    policy, ref = given["policy"], given["ref"]
    reward, here = total(policy) if ref is None else log_ratio(policy, ref), jnp.asarray(policy.length) > 0
    behind = here & (jnp.arange(here.shape[0]) > 0)
    harder = jnp.sum(behind[None, :] & (reward[None, :] > reward[picked, None]), axis=1)
    equal = jnp.maximum(jnp.sum(behind[None, :] & (reward[None, :] == reward[picked, None]), axis=1), 1)
    one = behind[picked] / jnp.maximum(jnp.sum(behind[picked]), 1)  # an absent one, or candidate 0, has no place
    told = {"rank": jnp.sum(one * (harder + (equal + 1) / 2)), "hardest": jnp.sum(one * (harder == 0) / equal)}
    metrics = {f"selector/{name}": value for name, value in {**told, **metrics}.items()}
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


# ---- the selectors ---------------------------------------------------------------------------------------------------


def all(policy: Logps) -> Int[Array, " picks"]:
    """Every candidate: the objective sees the example as it is.

    Args:
        policy: [K, T] log-probs.

    Returns:
        1, ..., K - 1.

    Example:
        >>> three = Logps(jnp.zeros((3, 1)), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> print(all(three))
        [1 2]
    """
    return jnp.arange(1, jnp.shape(policy.length)[0], dtype=jnp.int32)


def random(policy: Logps, key: Key, *, picks: int = 1, replacement: bool = True) -> Int[Array, " picks"]:
    """Negatives drawn uniformly: RNCE's noise samples. One of them and `listwise.rnce` are DPO on a random pair.

    Args:
        policy: [K, T] log-probs; only the lengths are read.
        key: random key.
        picks: negatives per example, M.
        replacement: independent draws; False never takes a candidate twice.

    Returns:
        The indices of the negatives.

    Example:
        >>> three = Logps(jnp.zeros((3, 1)), jnp.zeros((3, 1)), jnp.int32([1, 0, 1]))
        >>> print(random(three, jax.random.key(0)))
        [2]

    Verified: frequencies; the loss and gradient of one pick behind `listwise.rnce` are DPO's.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, equation 7.
    """
    here = _pool(policy, picks, replacement)[1:]
    return 1 + _draw(key, jnp.zeros(here.shape), here, picks, replacement)


def max(policy: Logps, ref: Logps, *, picks: int = 1, weight: str = "reward") -> Int[Array, " picks"]:
    """The likeliest negatives, `mc_kernel` at temperature zero; ties go to the first candidate.

    Args:
        policy: [K, T] log-probs.
        ref: the same responses under the reference.
        picks: negatives per example, M, all different.
        weight: "reward" or "policy", see `mc_kernel`.

    Returns:
        The indices of the negatives, likeliest first.

    Example:
        >>> policy = Logps(jnp.float32([[-1.0], [-3.0], [-2.0]]), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> print(max(policy, ref))
        [2]

    Verified: by hand, ragged candidates and ties included.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, section 5.
    """
    return _extreme(policy, _log_weight(policy, ref, weight), picks)


def min(policy: Logps, ref: Logps, *, picks: int = 1, weight: str = "reward") -> Int[Array, " picks"]:
    """The least likely negatives; ties go to the first candidate.

    Args:
        policy: [K, T] log-probs.
        ref: the same responses under the reference.
        picks: negatives per example, M, all different.
        weight: "reward" or "policy", see `mc_kernel`.

    Returns:
        The indices of the negatives, least likely first.

    Example:
        >>> policy = Logps(jnp.float32([[-1.0], [-3.0], [-2.0]]), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> print(min(policy, ref))
        [1]

    Verified: by hand, ragged candidates and ties included.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, section 5.
    """
    return _extreme(policy, -_log_weight(policy, ref, weight), picks)


def mc_kernel(
    policy: Logps,
    ref: Logps,
    key: Key,
    *,
    picks: int = 1,
    beta: float | str = FOLLOW,
    weight: str = "reward",
    temperature: float = 1.0,
    replacement: bool = True,
    include_state: bool = False,
    steps: int = 1,
    pool: int = 0,
) -> tuple[Int[Array, " picks"], dict[str, Array]]:
    r"""MC-PO's kernel: hard negatives, drawn in proportion to what the policy gives them now.

    .. math:: P(m) = \text{softmax}(w / \tau)_m, \quad w_k = \beta (\log P(y_k) - \log P_{ref}(y_k))
        \ \text{or} \ \log P(y_k), \quad k = 1, \dots, K - 1

    The reward is the log of the importance weight of a response drawn from the reference. It is 0 for all where policy
    and reference agree, so the draw starts out uniform and sharpens as the policy moves.

    With `pool` the kernel sees only part of the candidates at a time: a step draws so many afresh, uniformly, among
    those that are not its state, adds the state, and moves to one of them by the softmax. Each step leaves the softmax
    over all candidates as it is, whatever the pool, and many of them reach it; with all in the pool the first does.
    Every pick walks for itself.

    Args:
        policy: [K, T] log-probs.
        ref: the same responses under the reference.
        key: random key.
        picks: negatives per example, M. The paper's main runs have 1.
        beta: of the reward, per nat. The paper's kernel has the objective's, so that it draws by the reward that is
            trained, which is what "objective" takes.
        weight: "reward", the preprint's algorithm 1; "policy", the summed log-likelihood under the policy, as the
            published version has it. Likelihoods of whole responses lie tens of nats apart, mostly by their length, so
            that this is almost `max` unless the temperature is as large.
        temperature: tau; above 1 flatter, below 1 sharper.
        replacement: independent draws, as the kernel's definition has it; False never takes a candidate twice (the
            draw of a softmax without replacement, by the M largest of the weights with Gumbel noise).
        include_state: candidate 0, the state the kernel starts from, may be picked as well, as contrastive divergence
            has it. It is then compared with itself: with one pick there is no gradient. The paper's runs leave it out,
            since with two candidates "all strategies are equivalent" there.
        steps: of the chain. The paper has 1.
        pool: fresh candidates per step; 0 for all.

    Returns:
        The indices of the picked, and the metric effective: how many equal weights the softmax over all candidates that
        may be picked is worth.

    Example:
        >>> policy = Logps(jnp.float32([[-1.0], [-9.0], [-2.0]]), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.zeros((3, 1)), jnp.int32([1, 1, 1]))
        >>> keys = jax.random.split(jax.random.key(0), 1000)
        >>> picks = jax.vmap(lambda key: mc_kernel(policy, ref, key, beta=0.1)[0])(keys)
        >>> print(f"{jnp.mean(picks == 2):.1f} {1 / (1 + jnp.exp(-0.7)):.1f}")
        0.7 0.7

    Verified: frequencies against the softmax and, without replacement, its successive draws; the chain's stationary
    distribution; lemma 3.1 and proposition 3.3 by enumeration in float64.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, algorithm 1;
        published as ...: Your Policy Is Secretly an NLL Estimator, AAAI 2026, doi:10.1609/aaai.v40i44.41060.
    """
    by_reward, known = weight == "reward", not isinstance(beta, str)
    expected = 'a number above 0, or "objective" with an objective that has a beta'
    _require(not by_reward or (known and float(beta) > 0), "beta", beta, expected)
    _require(temperature > 0, "temperature", temperature, "a number above 0")
    _require(steps >= 1, "steps", steps, "a whole number from 1")
    _require(pool >= 0, "pool", pool, "a whole number from 1, or 0 for all candidates")
    whole = steps == 1 and pool == 0
    _require(replacement or whole, "replacement", replacement, "True where there are several steps, or a pool")
    start = 0 if include_state else 1
    here = _pool(policy, picks, replacement, start)[start:]
    log_weight = (_log_weight(policy, ref, weight, float(beta) if known else 1.0) / temperature)[start:]
    worth = effective_sample_size(jnp.where(here, log_weight, ABSENT))
    told: dict[str, Array] = {"effective": jnp.where(jnp.any(here), worth, 0.0)}
    if whole:
        return start + _draw(key, log_weight, here, picks, replacement), told
    state = 0 if include_state else here.shape[0]  # else nobody
    walk = functools.partial(_walk, log_weight=log_weight, here=here, state=state, steps=steps, pool=pool)
    return start + jax.vmap(walk)(jax.random.split(key, picks)), told


# ---- what they share -------------------------------------------------------------------------------------------------


def _require(holds: bool, key: str, value: Any, expected: str) -> None:
    named.require(holds, f"selector.{key}", value, expected)


def _pool(policy: Logps, picks: int, replacement: bool, start: int = 1) -> Bool[Array, " K"]:
    """Return which candidates are there; refuse more picks than there can be."""
    _require(picks >= 1, "picks", picks, "a whole number from 1")
    candidates = policy.token.shape[0]
    if candidates < 2 or not (replacement or picks <= candidates - start):
        raise ValueError(
            f"selector.picks = {picks}: {candidates - start} of the {candidates} candidates can be picked; ask for "
            "fewer, give more (config.data.candidates), or draw with replacement where the selector draws"
        )
    return jnp.asarray(policy.length) > 0


def _log_weight(policy: Logps, ref: Logps, weight: str, beta: float = 1.0) -> Float[Array, " K"]:
    _require(weight in ("reward", "policy"), "weight", weight, '"reward" or "policy"')
    return beta * log_ratio(policy, ref) if weight == "reward" else total(policy)


def _draw(
    key: Key, log_weight: Float[Array, " N"], here: Bool[Array, " N"], picks: int, replacement: bool
) -> Int[Array, " picks"]:
    masked = jnp.where(here, log_weight, ABSENT)
    return jax.random.categorical(key, masked, shape=(picks,), replace=replacement).astype(jnp.int32)


def _walk(
    key: Key, *, log_weight: Float[Array, " N"], here: Bool[Array, " N"], state: int, steps: int, pool: int
) -> Int[Array, ""]:
    """Return where the chain is after so many steps."""
    everyone = jnp.arange(here.shape[0])

    def step(state: jax.Array, key: Key) -> tuple[jax.Array, None]:
        draw, choose = jax.random.split(key)
        fresh = _some(draw, here & (everyone != state), pool)
        return jnp.asarray(_draw(choose, log_weight, here & (fresh | (everyone == state)), 1, True)[0]), None

    return jax.lax.scan(step, jnp.int32(state), jax.random.split(key, steps))[0]


def _some(key: Key, here: Bool[Array, " N"], size: int) -> Bool[Array, " N"]:
    """Return a uniform subset of so many of those that are there, or all if there are no more; 0 means all."""
    if size == 0 or size >= here.shape[0]:
        return here
    chosen = _draw(key, jnp.zeros(here.shape), here, size, False)
    return here & jnp.zeros(here.shape, bool).at[chosen].set(True)


def _extreme(policy: Logps, log_weight: Float[Array, " K"], picks: int) -> Int[Array, " picks"]:
    here = _pool(policy, picks, replacement=False)
    return 1 + jax.lax.top_k(jnp.where(here, log_weight, ABSENT)[1:], picks)[1].astype(jnp.int32)


def _find(name: str) -> Callable[..., Any]:
    return named.find("selector", name, __name__, names)


def _parts(result: Any) -> tuple[Any, dict[str, Any]]:
    """Return the indices that a selector returned, and its metrics, if any."""
    two = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    return result if two else (result, {})


def _trace(selector: Selector, candidates: int) -> tuple[Any, dict[str, Any]]:
    """Run the selector on shapes alone, which raises what its checks raise, and return those of what it returns."""
    logps = Logps(jnp.zeros((candidates, 1)), jnp.zeros((candidates, 1)), jnp.ones(candidates, jnp.int32))
    offered = {"policy": logps, "ref": logps, "score": jnp.zeros(candidates), "key": jax.random.key(0)}
    given = {name: offered[name] for name in selector.needs}
    return _parts(jax.eval_shape(lambda given: selector.function(**given), given))
