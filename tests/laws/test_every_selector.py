"""Laws that hold for every selector of the package, found by walking it: a new one inherits them."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import selectors
from slpojax.base import ABSENT, Logps

NAMES = selectors.names()
EXAMPLES, CANDIDATES, LENGTH = 6, 5, 4
# All there; two absent, one of them between; one left; none left.
LENGTHS = np.array(
    [[4, 3, 2, 1, 4], [1, 2, 0, 3, 0], [2, 0, 0, 1, 0], [3, 0, 0, 0, 0], [4, 4, 4, 4, 4], [1, 1, 0, 1, 1]]
)


def logps(odds, lengths) -> Logps:
    """Logps [B, K, T] from token log-odds."""
    here = np.arange(odds.shape[-1])[None, None, :] < lengths[..., None]
    token, other = -jax.nn.softplus(-odds), -jax.nn.softplus(odds)
    return Logps(jnp.where(here, token, 0.0), jnp.where(here, other, ABSENT), jnp.asarray(lengths, jnp.int32))


def draw(length: int = LENGTH) -> dict:
    """What a selector may ask for, of a batch; beyond `LENGTH` there is no token."""
    odds = np.random.default_rng(0).normal(-1.0, 1.5, (2, EXAMPLES, CANDIDATES, LENGTH)).astype(np.float32)
    odds = np.pad(odds, ((0, 0), (0, 0), (0, 0), (0, length - LENGTH)), constant_values=0.7)
    policy, ref = (logps(jnp.asarray(x), LENGTHS) for x in odds)
    score = jnp.float32(np.random.default_rng(1).normal(size=(EXAMPLES, CANDIDATES)))
    return {"policy": policy, "ref": ref, "score": score, "key": jax.random.split(jax.random.key(0), EXAMPLES)}


@functools.cache
def built(name: str) -> selectors.Selector:
    return selectors.build(name, {"beta": 0.5})


def choose(selector, inputs, **arrays):
    """The picks [B, M] and the metrics [B] each."""
    picked, metrics = jax.jit(jax.vmap(lambda inputs: selectors.choose(selector, inputs, **arrays)))(inputs)
    return np.asarray(picked)[:, 1:], metrics


@pytest.fixture(params=NAMES)
def selector(request):
    return built(request.param)


def test_it_picks_as_many_as_it_says_and_absent_ones_only_where_none_is_left(selector):
    picks, metrics = choose(selector, draw())
    assert picks.dtype == np.int32 and picks.shape == (EXAMPLES, selectors.count(selector, CANDIDATES) - 1)
    assert picks.min() >= 1 and picks.max() < CANDIDATES, "candidate 0 is the preferred one, in front anyway"
    for example, lengths in enumerate(LENGTHS):
        there = 1 + np.flatnonzero(lengths[1:])
        if selector.name != "everything":
            first = picks[example, : len(there)]
            assert np.isin(first, there).all(), f"picks {picks[example]} of {there}"
    assert all(np.isfinite(value).all() and value.shape == (EXAMPLES,) for value in metrics.values())


def test_padding_changes_no_pick_and_equal_keys_pick_alike(selector):
    picks, metrics = choose(selector, draw())
    for again in (choose(selector, draw()), choose(selector, draw(length=9))):
        np.testing.assert_array_equal(picks, again[0])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), metrics, again[1])


def test_no_gradient_flows_through_a_choice(selector):
    inputs = draw()

    def total(token):
        policy = inputs["policy"]._replace(token=token)
        _, metrics = jax.vmap(lambda inputs: selectors.choose(selector, inputs))(inputs | {"policy": policy})
        return sum(jnp.sum(value) for value in metrics.values())

    assert not np.any(jax.grad(total)(inputs["policy"].token))


def test_numbers_that_may_be_arrays_pick_as_python_s_do(selector):
    values = {key: 0.7 * selector.hyperparameters[key] for key in selectors.numeric(selector)}
    expected = choose(selectors.build(selector.name, {"beta": 0.5}, **values), draw())
    got = choose(selector, draw(), **{key: jnp.float32(value) for key, value in values.items()})
    np.testing.assert_array_equal(got[0], expected[0])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got[1], expected[1])


@pytest.mark.check
def test_under_vmap_it_picks_as_alone(selector):
    inputs = draw()
    picks, _ = choose(selector, inputs)
    alone = [selectors.choose(selector, jax.tree.map(lambda x, i=i: x[i], inputs))[0][1:] for i in range(2)]
    np.testing.assert_array_equal(picks[:2], alone)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented(name):
    function = selectors.find(name)
    text = inspect.getdoc(function)
    for part in ("Args:", "Returns:", "Example:", ">>>"):
        assert part in text, f"{name} has no {part}"
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter}: " in text, f"{name} does not describe {parameter}"
