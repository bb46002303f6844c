"""The scalar functions against 120 digits, over every magnitude float32 has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from mpmath import mpf
from papers import mp

from slpojax import numerics
from slpojax.base import ABSENT

EXPONENTS = [-30, -20, -9, -5, -3, -1, -0.5, -0.1, 0, 0.5, 1, 1.9]


def test_log1mexp_and_its_gradient_are_exact_at_both_ends():
    x = np.float32([-(10.0**e) for e in EXPONENTS] + [-0.693, -0.694])
    value, slope = jax.vmap(jax.value_and_grad(numerics.log1mexp))(jnp.asarray(x))
    np.testing.assert_allclose(value, [float(mp.log(-mp.expm1(mpf(float(v))))) for v in x], rtol=5e-7, atol=1e-37)
    np.testing.assert_allclose(slope, [float(-1 / mp.expm1(-mpf(float(v)))) for v in x], rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("x", [0.0, -0.0, 1.0, 1e30, -1e30, -1e-38, -np.inf])
def test_log1mexp_is_finite_where_it_has_no_value(x):
    value, slope = jax.value_and_grad(numerics.log1mexp)(jnp.float32(x))
    assert np.isfinite(value) and np.isfinite(slope)


def test_log1mexp_under_vectors_and_jit():
    x = -jnp.logspace(-10, 2, 50)
    np.testing.assert_array_equal(jax.jit(numerics.log1mexp)(x), jnp.stack([jax.jit(numerics.log1mexp)(v) for v in x]))


def test_logdiffexp():
    value = numerics.logdiffexp(jnp.float32(-3.0), jnp.float32(-3.0001))
    np.testing.assert_allclose(
        value, float(mp.log(mp.exp(mpf(-3)) - mp.exp(mpf(float(np.float32(-3.0001)))))), rtol=1e-6
    )


def test_log_of_zero_is_absent():
    assert numerics.log(0.0) == ABSENT and numerics.log(1.0) == 0.0


def divergence(logit: list[float], delta: list[float]) -> tuple[mpf, list[mpf]]:
    """The textbook divergence and p - q."""

    def shares(x):
        odds = [mp.exp(mpf(v)) for v in x] + [mpf(1)]
        return [o / mp.fsum(odds) for o in odds]

    p, q = shares(logit), shares([mpf(a) - mpf(b) for a, b in zip(logit, delta, strict=True)])
    return mp.fsum(b * mp.log(b / a) for a, b in zip(p, q, strict=True)), [a - b for a, b in zip(p, q, strict=True)][
        :-1
    ]


divergence_and_slopes = jax.jit(jax.vmap(jax.value_and_grad(numerics.categorical_kl, argnums=(0, 1))))
DELTAS = [1e-20, 1e-9, 1e-6, 1e-4, 1e-3, 0.03, 0.0999, 0.1001, 0.3, 0.999, 1.001, 3.0, 20.0, 80.0]


def check_divergence(logits: np.ndarray, deltas: np.ndarray) -> None:
    value, slopes = divergence_and_slopes(jnp.asarray(logits), jnp.asarray(deltas))
    truth = [divergence(list(map(float, a)), list(map(float, b))) for a, b in zip(logits, deltas, strict=True)]
    np.testing.assert_allclose(value, [float(t[0]) for t in truth], rtol=2e-5, atol=1e-30)
    # With the target held, a move of the model moves logit and delta together. The gap to other classes may cancel.
    atol = 1e-30 if logits.shape[1] == 1 else 1e-7 * np.abs(deltas).max(1, keepdims=True)
    gap = np.array([[float(g) for g in t[1]] for t in truth])
    assert np.all(np.abs(slopes[0] + slopes[1] - gap) <= 2e-5 * np.abs(gap) + atol)


def test_bernoulli_divergence_and_its_gradient():
    logit = np.float32([-60, -20, -6, -2, -0.1, 0, 0.7, 5, 20, 45])
    grid = np.meshgrid(logit, np.float32([s * d for d in DELTAS for s in (1, -1)]))
    check_divergence(*(x.reshape(-1, 1) for x in grid))


def test_divergence_of_three_classes():
    logits = np.float32([(-2, -3), (-0.1, 0.2), (-2, -20), (4, -1), (35, 2), (0, 40)])
    deltas = np.float32([(1e-6, 1e-7), (-1e-4, 3e-3), (0.5, -0.4), (0, 1e-5), (2, -7), (0.3, 0.3)])
    check_divergence(np.repeat(logits, len(deltas), 0), np.tile(deltas, (len(logits), 1)))


def test_divergence_from_an_impossible_class_is_softplus():
    logit = jnp.float32([-1.3])
    value, slopes = jax.value_and_grad(numerics.categorical_kl, argnums=(0, 1))(logit, jnp.float32([-ABSENT]))
    np.testing.assert_allclose(value, np.log1p(np.exp(-1.3)), rtol=1e-6)
    np.testing.assert_allclose(slopes[0] + slopes[1], 1 / (1 + np.exp(1.3)), rtol=1e-6)


def test_divergence_is_zero_at_the_target_with_zero_gradient():
    value, slopes = jax.value_and_grad(numerics.categorical_kl, argnums=(0, 1))(jnp.float32([-2.0, 1.0]), jnp.zeros(2))
    assert value == 0 and not np.any(slopes)


def test_the_derivative_given_is_the_derivative():
    with jax.enable_x64(True):
        logit, delta = jnp.asarray([-2.0, 0.5]), jnp.asarray([0.4, -0.2])
        check_grads(numerics.categorical_kl, (logit, delta), order=1, modes=["fwd", "rev"], rtol=1e-5)
