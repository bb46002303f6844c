"""Generated numbers of a configuration: read right, or refused in one line."""

import math

import pytest
from fault_tools import attempt
from hypothesis import given, settings
from hypothesis import strategies as st

from slpojax import defaults
from slpojax.settings import resolve

pytestmark = pytest.mark.check


@given(st.floats(min_value=1e-9, max_value=1e3))
@settings(max_examples=200)
def test_learning_rates_are_read_as_they_are_written(outcomes, rate):
    kind, config = attempt(lambda: resolve(defaults.get_config(), {"learning_rate": repr(rate)}, choices={}))
    outcomes[kind] += 1
    assert kind == "accepted" and math.isclose(config.learning_rate, rate, rel_tol=1e-15)
