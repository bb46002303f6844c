"""Generated overrides, hyperparameters and names: read right, or refused in one line that names the key."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fault_tools import attempt
from hypothesis import given, settings
from hypothesis import strategies as st

from slpojax import defaults, named, objectives, optim, selectors, train
from slpojax import settings as configuration
from slpojax.base import Logps
from slpojax.data import formats

pytestmark = pytest.mark.check

KEYS = [
    *named.flatten(defaults.get_config().to_dict(), "."),
    "objective.beta",
    "optimizer.b1",
    "optimizer.weight_decay",
    *(f"data.mixture.a.{key}" for key in defaults.SOURCE),
]
MISSPELT = [
    "batchsize",
    "data",
    "data.",
    ".",
    "objective.beta.x",
    "objective",
    "optimizer.b3",
    "mesh.fdsp",
    "é",
    "x" * 5000,
]

scales = st.builds(lambda digits, power: digits * 10.0**power, st.floats(-9, 9), st.integers(-40, 40))
numbers = st.one_of(
    scales,
    st.integers(0, 9),
    st.integers(),
    st.integers(-(10**450), 10**450),
    st.floats(),
    st.sampled_from([0, 1, -1, 1e30, 1e38, 3.5e38, 1e-45, 2**31, 2**63, 2**64, 10**4000]),
)
written = st.one_of(
    numbers.map(lambda x: hex(x) if isinstance(x, int) and x.bit_length() > 4000 else repr(x)),
    st.sampled_from(["", "true", "None", "1e999", "-1e999", "1_000", "0x10", "[1]", "(1, 2)", "{1: 2}", "1j", "b'x'"]),
    st.sampled_from(
        ["(" * 5000, "[" * 300, "-" * 5000 + "1", "9" * 5000, "x" * 100_000, "a/" * 9000, "\0", "a\nb", "../.."]
    ),
    st.sampled_from([word for words in defaults.WORDS.values() for word in words]),
    st.text(max_size=40),
)
values = st.recursive(
    st.one_of(
        numbers, st.none(), st.booleans(), st.text(max_size=5), st.sampled_from(["length", "objective", "x" * 10_000])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.text(max_size=2), inner)
    ),
    max_leaves=4,
)


def resolve(changes):
    return configuration.resolve(defaults.get_config(), changes, choices=train.CHOICES)


@given(st.sampled_from(KEYS) | st.sampled_from(MISSPELT), written)
@settings(max_examples=900)
def test_overrides_are_read_or_refused_by_their_key(outcomes, key, text):
    kind, got = attempt(lambda: resolve({key: text}))
    outcomes[kind] += 1
    if kind == "refused":
        # A name that does not exist is called after what it would name.
        assert key[:30] in got or key.split(".")[0] in got
        return
    assert key not in MISSPELT
    assert configuration.load(configuration.dump(got)) == got
    value = named.flatten(got.to_dict(), ".")[key]
    if isinstance(value, str):
        assert value == text and len(value.splitlines()) <= 1
    elif isinstance(value, tuple):
        assert all(math.isfinite(number) for number in value if isinstance(number, float))
    elif not isinstance(value, bool):
        least, most, *_ = defaults.RANGES.get(key, (-named.LARGEST, named.LARGEST))
        assert least <= value <= most and math.isclose(value, float(eval(text)), rel_tol=1e-12)  # noqa: S307


@given(st.sampled_from(objectives.names()), values)
@settings(max_examples=400)
def test_hyperparameters_are_of_their_type_and_of_a_size_that_float32_computes_with(outcomes, name, value):
    known = objectives.defaults(name)
    for key in list(known)[:1]:
        kind, got = attempt(lambda key=key: named.bind("objective", name, objectives.find(name), {key: value}))
        outcomes[kind] += 1
        if kind == "refused":
            assert f"objective.{key}" in got
        else:
            json.dumps(got, allow_nan=False)
            word = isinstance(known[key], str) and isinstance(got[key], float)
            assert word or known[key] is None or type(got[key]) is type(known[key])


@given(st.sampled_from(["sigmoid", "ipo", "hinge", "conservative"]), scales.map(abs) | st.floats())
@settings(max_examples=60)
def test_a_loss_that_can_be_built_is_finite(outcomes, name, beta):
    kind, objective = attempt(lambda: objectives.build(f"dpo.{name}", beta=beta))
    outcomes[kind] += 1
    if kind == "accepted":
        logps = Logps(jnp.float32([[-1.0, -3.0], [-200.0, -1.0]]), jnp.full((2, 2), -0.5), jnp.int32([2, 2]))
        ref = logps._replace(token=logps.token - jnp.float32([[0.5], [-0.5]]))
        loss, gradient = jax.value_and_grad(lambda x: objective.function(policy=logps._replace(token=x), ref=ref)[0])(
            logps.token
        )
        assert np.isfinite(loss) and np.all(np.isfinite(gradient))


@given(st.sampled_from([(name, key) for name in optim._DEFAULTS for key in optim.defaults(name)]), values)
@settings(max_examples=300)
def test_optimisers_are_built_or_refuse_their_hyperparameter(outcomes, which, value):
    name, key = which
    rest = {"learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0, "total_steps": 9, "clip_norm": 1.0}
    kind, got = attempt(lambda: optim.build(name, **rest, **{key: value}))
    outcomes[kind] += 1
    assert kind == "accepted" or f"optimizer.{key}" in got


@given(
    st.text(max_size=30) | st.sampled_from(["subprocess.run", "os.system", "slpojax.named.find", "a..b", ".", "json"])
)
@settings(max_examples=150)
def test_what_is_no_function_of_the_kind_is_refused_and_never_called(outcomes, name):
    for find in (objectives.find, selectors.find, formats.find):
        kind, got = attempt(lambda find=find: find(name))
        outcomes[kind] += 1
        assert kind == "refused" and got.startswith("unknown ")
