"""Transforms of objectives: humanline's clip against NumPy, names that read as transforms, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_pairwise as pairwise
from laws import test_every_objective as laws
from test_pairwise import apply, given, gradient, pairs

from slpojax import objectives
from slpojax.base import ABSENT
from slpojax.objectives import transforms

LOW, HIGH = -0.4, 0.6
double = pairwise.double  # all in 64 bits


def clipped(arguments):
    """(the batch with the policy's log-probs as NumPy clips them, which tokens those are)."""
    policy, ref = arguments["policy"], np.asarray(arguments["ref"].token)
    ratio = np.clip(np.asarray(policy.token) - ref, LOW, HIGH)
    held = np.asarray(policy.token) != ref + ratio
    held &= ~np.isclose(np.asarray(policy.token), ref + ratio, atol=1e-12)
    other = np.where(held, np.log(-np.expm1(np.where(held, ref + ratio, -1.0))), np.asarray(policy.other))
    return arguments | {"policy": policy._replace(token=jnp.asarray(ref + ratio), other=jnp.asarray(other))}, held


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


def test_humanline_dpo_is_dpo_of_clipped_log_ratios():
    arguments, beta = given(pairs()), 0.7
    here, there = (np.asarray(arguments[name].token) for name in ("policy", "ref"))
    ratio = np.clip(here - there, LOW, HIGH)
    held = (here - there < LOW) | (here - there > HIGH)
    margin = beta * (ratio.sum(-1) @ [1.0, -1.0])
    options = {"beta": beta, "clamp_low": LOW, "clamp_high": HIGH}
    losses, metrics, _ = apply("humanline(dpo.sigmoid)", arguments, **options)
    close(losses, np.logaddexp(0, -margin))
    close(metrics["rewards/margins"], margin)
    close(metrics["clamp/share"], held.sum((1, 2)) / np.asarray(arguments["policy"].length).sum(1))
    slope = -beta / (1 + np.exp(margin)) / len(margin)
    there = np.arange(held.shape[-1]) < np.asarray(arguments["policy"].length)[..., None]
    expected = slope[:, None, None] * np.array([1.0, -1.0])[:, None] * ~held
    close(gradient("humanline(dpo.sigmoid)", arguments, **options) * there, expected * there)
    assert 0.2 < held[there].mean() < 0.8


@pytest.mark.check
@pytest.mark.parametrize("name", ["slpo.shift", "listwise.nca", "0.5 * dpo.ipo + 0.1 * slpo.shift"])
def test_any_objective_sees_the_clipped_log_probs(name):
    """What it reads of the other tokens is the clipped probability's complement; a clipped token has no gradient."""
    arguments = given(pairs())
    seen, held = clipped(arguments)
    wrapped = functools.partial(apply, f"humanline({name})", clamp_low=LOW, clamp_high=HIGH)
    losses, metrics, _ = wrapped(arguments)
    expected, of_plain, _ = apply(name, seen)
    close(losses, expected)
    for metric, value in of_plain.items():
        close(metrics[metric], value)
    slope = gradient(f"humanline({name})", arguments, clamp_low=LOW, clamp_high=HIGH)
    close(slope, np.where(held, 0.0, gradient(name, seen)))
    assert held.any()


def test_a_name_may_be_a_term_of_a_sum_or_hold_one():
    arguments = given(pairs())
    options = {"clamp_low": LOW, "clamp_high": HIGH}
    term = apply("humanline(dpo.sigmoid)", arguments, **options)[0]
    other = apply("dpo.hinge", arguments)[0]
    losses, metrics, _ = apply("2 * humanline(dpo.sigmoid) + 0.5 * dpo.hinge", arguments, **options)
    close(losses, 2 * term + 0.5 * other)
    assert "loss/humanline(dpo.sigmoid)" in metrics
    assert objectives.defaults("humanline(dpo.ipo) + humanline(dpo.hinge)").keys() >= {
        "humanline_dpo_ipo_beta",
        "humanline_dpo_hinge_clamp_low",
    }
    found = objectives.functions("humanline(dpo.ipo + dpo.hinge)")
    assert [function.__name__ for function in found] == ["humanline", "ipo", "hinge"]


@pytest.mark.check
def test_an_absent_response_is_left_alone():
    policy, ref = (pairwise.logps([([-1.0, 2.0], y)]) for y in ([], [0.5, -9.0]))
    seen, metrics = jax.vmap(transforms.humanline)(policy, ref)
    np.testing.assert_array_equal(seen.token[0, 1], 0.0)
    np.testing.assert_array_equal(seen.other[0, 1], ABSENT)
    assert metrics["clamp/share"][0] == 0


@pytest.mark.check
@pytest.mark.parametrize("name", ["humanline(dpo.sigmoid)", "humanline(unpaired.kto)", "humanline(slpo.shift)"])
def test_transformed_objectives_meet_the_laws(name):
    with jax.enable_x64(False):
        laws.law_of_invariance(laws.built(name))
        laws.test_degenerate_examples_are_finite(laws.built(name))
        laws.test_every_float_may_be_an_array(laws.built(name))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("humanline(reference_free.simpo)", {}, r"reference_free.simpo compares with no reference, .* as dpo.sigmoid"),
        ("humanlin(dpo.sigmoid)", {}, r"unknown transform of objectives 'humanlin' \(near: humanline\)"),
        ("humanline(dpo.sigmoyd)", {}, r"unknown objective 'dpo.sigmoyd' \(near: dpo.sigmoid"),
        ("humanline(dpo.sigmoid)", {"clamp_low": 0.0}, r"objective.clamp_low = 0.0: expected a number below 0"),
        ("humanline(dpo.sigmoid)", {"clamp_high": -1.0}, r"objective.clamp_high = -1.0: expected a number above 0"),
        (
            "humanline(dpo.sigmoid)",
            {"gamma": 1.0},
            r"has no hyperparameter 'gamma'; it has beta, clamp_low, clamp_high",
        ),
        ("humanline(humanline(dpo.ipo))", {}, r"unknown objective 'humanline\(humanline\(dpo.ipo\)\)'"),
    ],
)
def test_what_is_no_transformed_objective_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        objectives.build(name, **options)
