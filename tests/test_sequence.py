"""Masses by enumeration of every response, the scan beside its closed form, sums that keep their digits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import papers
import pytest

from slpojax import sequence
from slpojax.base import ABSENT, Logps


def from_odds(*responses: list[float], length: int = 0) -> Logps:
    """Logps [K, T] of responses given by their token log-odds, padded."""
    length = max([length, *map(len, responses)])
    odds = np.array([[*r, *[np.nan] * (length - len(r))] for r in responses], np.float64)
    with np.errstate(all="ignore"):
        token, other = -np.logaddexp(0, -odds), -np.logaddexp(0, odds)
    here = ~np.isnan(odds)
    return Logps(
        jnp.asarray(np.where(here, token, 0.0), jnp.float32),
        jnp.asarray(np.where(here, other, ABSENT), jnp.float32),
        jnp.asarray([len(r) for r in responses], jnp.int32),
    )


@pytest.mark.parametrize("vocabulary, length", [(3, 4), (4, 3), (5, 2), (5, 4)])
def test_masses_equal_the_sum_over_every_other_response(vocabulary, length):
    rng = np.random.default_rng(vocabulary * 10 + length)
    # A model in which each token depends on all before it: one table of conditionals per prefix.
    tables = {
        prefix: rng.dirichlet(np.ones(vocabulary))
        for t in range(length)
        for prefix in itertools.product(range(vocabulary), repeat=t)
    }
    everything = list(itertools.product(range(vocabulary), repeat=length))
    probability = {y: np.prod([tables[y[:t]][y[t]] for t in range(length)]) for y in everything}
    for y in everything[:: max(1, len(everything) // 7)]:
        p = np.array([tables[y[:t]][y[t]] for t in range(length)])
        logps = from_odds(list(np.log(p) - np.log1p(-p)))
        others = sum(probability[z] for z in everything if z != y)
        for function in (sequence.mass, sequence.mass_closed):
            kept, left = function(logps)
            np.testing.assert_allclose(np.exp(kept), [probability[y]], rtol=3e-6)
            np.testing.assert_allclose(np.exp(left), [others], rtol=3e-6)


REGIMES = {
    "one token": [0.3],
    "one sure token": [25.0],
    "one certain token": [200.0],
    "three sure tokens": [20.0, 24.0, 22.0],
    "64 tokens of 1 - 1e-6": [13.8] * 64,
    "60 tokens": [-2.0, 1.0, -1.5] * 20,
    "512 tokens": [-2.5] * 512,
    "2,048 tokens": [-3.4] * 2048,
    "half": [2.0, 2.3, 1.7],
}


@pytest.mark.parametrize("odds", REGIMES.values(), ids=REGIMES)
def test_masses_in_every_regime(odds):
    kept, left = papers.mass(list(map(float, np.float32(odds))))
    logps = from_odds(odds, length=len(odds) + 5)
    for function, noise in ((sequence.mass, 3e-7), (sequence.mass_closed, 1e-37)):
        got_kept, got_left = jax.jit(function)(logps)
        np.testing.assert_allclose(got_kept, [float(papers.mp.log(kept))], rtol=1e-6, atol=1e-37)
        # The scan's sum of many parts rounds at 1: the reason for the closed form.
        np.testing.assert_allclose(got_left, [float(papers.mp.log(left))], rtol=2e-6, atol=noise)


LONG = ("64 tokens of 1 - 1e-6", "2,048 tokens")


@pytest.mark.parametrize(
    "odds", [pytest.param(x, id=name, marks=[pytest.mark.check] * (name in LONG)) for name, x in REGIMES.items()]
)
def test_the_gradient_of_the_odds_of_a_mass(odds):
    """d(log P - log(1 - P)) / dd_k = (1 - p_k) / (1 - P), the same in both forms."""
    odds = np.float32(odds)
    p = [1 / (1 + papers.mp.exp(-papers.mpf(float(d)))) for d in odds]
    left = papers.mass([float(d) for d in odds])[1]
    truth = np.array([float((1 - x) / left) for x in p])

    def of(function):
        def value(d):
            kept, left = function(Logps(-jax.nn.softplus(-d), -jax.nn.softplus(d), jnp.int32(len(odds))))
            return kept - left

        return np.asarray(jax.jit(jax.grad(value))(jnp.asarray(odds)))

    np.testing.assert_allclose(of(sequence.mass_closed), truth, rtol=2e-5)
    assert np.linalg.norm(of(sequence.mass) - truth) < 1e-5 * np.linalg.norm(truth)


def test_a_difference_is_taken_token_by_token():
    rng = np.random.default_rng(0)
    token = rng.uniform(-6, -1, 512).astype(np.float32)
    moved = token + rng.normal(0, 1e-3, 512).astype(np.float32)
    a, b = (Logps(jnp.asarray(x), jnp.zeros(512), jnp.int32(512)) for x in (moved, token))
    truth = np.sum(moved.astype(np.float64) - token)
    assert abs(sequence.log_ratio(a, b) - truth) < 1e-8
    assert sequence.log_ratio(a, a) == 0


def test_an_absent_response_is_the_identity():
    logps = from_odds([], length=4)
    assert sequence.total(logps) == 0 and sequence.mean(logps) == 0 and sequence.size(logps) == 1
    for function in (sequence.mass, sequence.mass_closed):
        kept, left = function(logps)
        assert kept == 0 and left[0] < -1e29
        grads = jax.grad(lambda x: jnp.sum(jnp.stack(function(x))), allow_int=True)(logps)  # noqa: B023
        assert np.all(np.isfinite(grads.token)) and np.all(np.isfinite(grads.other))


def test_padding_changes_no_bit_of_a_mass():
    odds = [-2.0, 0.5, 3.0]
    for function in (sequence.total, sequence.mean, sequence.mass_closed):
        bare, padded = function(from_odds(odds)), function(from_odds(odds, length=8))
        np.testing.assert_allclose(np.stack(bare), np.stack(padded), rtol=2e-7)


def test_too_few_candidates():
    with pytest.raises(ValueError, match="reads 2 candidates, the example has 1"):
        sequence.first(from_odds([0.1]), 2)


def test_a_tie_counts_one_half():
    logps = from_odds([0.1], [0.1])
    metrics = sequence.preference_metrics(logps, jnp.zeros(2))
    assert metrics["rewards/accuracies"] == 0.5
    assert sequence.preference_metrics(logps, jnp.float32([1, 0]))["rewards/accuracies"] == 1
    assert sequence.preference_metrics(logps, jnp.float32([0, 1]))["rewards/accuracies"] == 0
