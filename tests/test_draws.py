"""Draws of tokens against the softmax, and the filters against their definitions, in float64 NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from slpojax import draws
from slpojax.draws import Draw

COUNT = 20_000


def distribution(logits, draw, temperature):
    """The distribution that tokens are drawn from, by the definitions."""
    z = np.asarray(logits, np.float64) / temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    if draw.top_k:
        p = np.where(p >= np.sort(p)[::-1][min(draw.top_k, len(p)) - 1], p, 0.0)
        p /= p.sum()
    ordered = np.sort(p)[::-1]
    before = np.cumsum(ordered) - ordered
    p = np.where(p >= ordered[before < draw.top_p].min(), p, 0.0)
    p = np.where(p >= draw.min_p * p.max(), p, 0.0)
    return p / p.sum()


@partial(jax.jit, static_argnames=("draw", "temperature", "count"))
def drawn(logits, key, *, draw, temperature, count):
    columns = jnp.broadcast_to(logits[:, None], (len(logits), count))
    cold = frozenset({temperature})
    return draws.tokens(
        columns, jax.random.split(key, count), jnp.full(count, temperature), draw=draw, temperatures=cold
    )


def logits_of(size, seed=0):
    return jnp.asarray(2 * np.random.default_rng(seed).standard_normal(size), jnp.float32)


def often(*cases):
    """Most of them in `make check`: every one is a compilation."""
    return [pytest.param(*case, marks=() if i < 2 else pytest.mark.check, id=str(case)) for i, case in enumerate(cases)]


@pytest.mark.parametrize(
    ("draw", "temperature", "size"),
    often(
        (Draw(), 0.6, 300),
        (Draw(top_k=40, top_p=0.9, min_p=0.02), 1.0, 300),
        (Draw(), 1.0, 7),
        (Draw(), 1.0, 300),
        (Draw(top_k=5), 1.0, 300),
        (Draw(top_p=0.8), 1.5, 300),
        (Draw(top_p=0.8), 1.0, 7),
        (Draw(min_p=0.1), 1.0, 300),
        (Draw(top_k=40, top_p=0.9, min_p=0.02), 0.9, 1000),
    ),
)
def test_frequencies_are_those_of_the_definition(draw, temperature, size):
    """Chi-square at 0.1% over 20,000 draws; what a filter leaves out is never drawn."""
    logits = logits_of(size)
    token, logp = drawn(logits, jax.random.key(1), draw=draw, temperature=temperature, count=COUNT)
    expected = COUNT * distribution(logits, draw, temperature)
    seen = np.bincount(token, minlength=size)
    assert len(seen) == size and not seen[expected == 0].any()
    common = expected >= 5
    both = [np.append(x[common], x[~common].sum()) for x in (seen, expected)]
    pooled = both[1] > 0
    chi_square = ((both[0] - both[1])[pooled] ** 2 / both[1][pooled]).sum()
    assert chi_square < stats.chi2.ppf(0.999, pooled.sum() - 1)
    exact = np.asarray(logits, np.float64)
    exact -= np.log(np.exp(exact).sum())
    np.testing.assert_allclose(logp, exact[token], atol=1e-5)


def test_few_words_have_all_the_draws_and_words_without_probability_none():
    """Of 50,304 words, two that are likely, one that is rare, and others of probability zero."""
    logits = np.full(50_304, -np.inf, np.float32)
    logits[[5, 40_000, 50_303]] = np.log([0.6, 0.3999, 1e-4])
    token, _ = drawn(jnp.asarray(logits), jax.random.key(0), draw=Draw(), temperature=1.0, count=256)
    assert set(np.asarray(token).tolist()) <= {5, 40_000, 50_303}
    assert 0.5 < (np.asarray(token) == 5).mean() < 0.7


@pytest.mark.parametrize("size", [1000, *(pytest.param(n, marks=pytest.mark.check) for n in (5, 50_304))])
def test_greedy_takes_the_first_of_the_most_probable(size):
    logits = np.array(logits_of(size, 3))
    logits[[size // 2, size - 2]] = logits.max() + 1
    options = dict(draw=Draw(), temperature=0.0, count=2)
    token, _ = drawn(jnp.asarray(logits), jax.random.key(0), **options)
    assert token.tolist() == [min(size // 2, size - 2)] * 2


def kept(*distributions, **filters):
    """Which tokens of distributions a filter keeps, of each."""
    weight = np.zeros((128, 1, len(distributions)), np.float32)
    for column, p in zip(weight.T, distributions, strict=True):
        column[0, : len(p)] = np.array(p) / max(p)
    found = jax.jit(partial(draws.filter_weights, draw=Draw(**filters)))(weight)
    return [set(np.flatnonzero(column).tolist()) for column in np.asarray(found)[:, 0].T]


P = np.array([0.05, 0.5, 0.15, 0.3])


def test_top_k_keeps_the_k_most_probable_and_ties():
    assert kept([0.1, 0.4, 0.2, 0.3], [0.4, 0.2, 0.2, 0.1, 0.1], [1.0], top_k=2) == [{1, 3}, {0, 1, 2}, {0}]


@pytest.mark.parametrize(
    ("top_p", "size"),
    [(0.5, 1), *(pytest.param(*x, marks=pytest.mark.check) for x in ((0.05, 1), (0.51, 2), (0.8, 2), (0.81, 3)))],
)
def test_top_p_keeps_the_smallest_set_of_that_probability_and_ties(top_p, size):
    assert kept(P, [0.25] * 4, top_p=top_p) == [set(np.argsort(-P)[:size].tolist()), {0, 1, 2, 3}]


def test_min_p_keeps_what_has_this_share_of_the_largest():
    assert kept([0.5, 0.25, 0.2, 0.05], min_p=0.5) == [{0, 1}]
    assert kept([0.5, 0.25, 0.2, 0.05], min_p=1.0) == [{0}]


@pytest.mark.check
def test_filters_come_one_after_the_other():
    """The nucleus is of what top-k has left."""
    p = [0.4, 0.3, 0.2, 0.1]
    assert kept(p, top_p=0.6) == [{0, 1}] and kept(p, top_k=2, top_p=0.57) == [{0}]
