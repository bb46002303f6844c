"""Generated sizes: whatever is planned, every token stands once in the rows, where it belongs."""

import numpy as np
import pytest
from fault_tools import attempt
from hypothesis import given, settings
from hypothesis import strategies as st
from test_counted import in_part
from test_rows import random_examples, require_every_token_once

from slpojax import data
from slpojax.data import planning

pytestmark = pytest.mark.check


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 24),
    candidates=st.integers(1, 5),
    longest=st.integers(2, 40),
    row_length=st.integers(0, 96),
    multiple_of=st.integers(1, 9),
    pack=st.booleans(),
    part=st.booleans(),
)
@settings(max_examples=700)
def test_every_token_stands_once_where_it_belongs(
    outcomes, seed, count, candidates, longest, row_length, multiple_of, pack, part
):
    listed = random_examples(seed, count, candidates=candidates, prompt=longest, response=longest)
    listed = in_part(seed, listed) if part else listed  # of whose responses some tokens do not count
    stored = data.build(listed, candidates=candidates)
    options = {"row_length": row_length, "multiple_of": multiple_of, "pack": pack}
    kind, shapes = attempt(lambda: planning.plan(stored, [np.arange(count)], **options))
    outcomes[kind] += 1
    if kind == "refused":
        assert row_length and "row_length" in shapes
        return
    assert shapes.groups % multiple_of == 0
    require_every_token_once(listed, shapes, pack)
