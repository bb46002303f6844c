"""The table of needs: everything that names a need reads it off the table, and nothing else is asked for."""

import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from slpojax import needs, objectives
from slpojax.base import Batch, Logps, Rows, Scored

PACKAGE = pathlib.Path(needs.__file__).parent


def test_the_contract_describes_every_need_in_the_words_of_the_table():
    assert needs.prose(needs.NEEDS) in objectives.__doc__


@pytest.mark.parametrize("name", needs.NEEDS)
def test_a_need_says_what_it_is(name):
    need = needs.NEEDS[name]
    assert need.source in ("batch", "frozen", "policy", "head", "reader", "score", "step")
    assert need.of in ("candidate", "example", "batch", "prompt")
    assert need.says and need.short and not need.says.endswith(".")
    assert not need.column or need.column in Batch._fields
    shapes = needs.like(name, 4, 7)
    for leaf in jax.tree.leaves(shapes):
        sizes = {"K": 4, "T": 7, "P": 7, "N": 7, "C": 2}
        assert leaf.shape[: len(need.axes.split())] == tuple(sizes[axis] for axis in need.axes.split())[: leaf.ndim]
    assert isinstance(shapes, Logps) == (need.form == "logps") and (shapes is None) == (need.form == "state")


def test_what_takes_the_reference():
    """Also where an objective reads none of its log-probs: its weights are then all the same taken."""
    weights = {"kl", "activity", "layer_activity", "reward_mask", "kl_mask"}
    assert set(needs.takes_reference_weights(needs.NEEDS)) == weights
    for name in needs.NEEDS:
        assert bool(needs.takes_reference({"policy", name})) == (name in weights | {"ref"}), name


def test_what_a_batch_holds_and_what_is_picked():
    none = jnp.zeros(1)
    batch = Batch(Rows(*[none] * 4), Scored(*[none] * 3), none, none + 1, none + 2, none + 3, none, None, None)
    columns = needs.columns(batch)
    assert columns.keys() == set(needs.of_source("batch", "frozen"))
    assert columns["score"] is columns["probability"] is batch.score and columns["ref"] is None
    assert columns["label"] is batch.label and columns["weight"] is batch.weight
    assert set(needs.NEEDS) - set(needs.where(of="candidate")) == {"prompt", "label", "weight", "key", "state"}


def test_the_first_who_asks_is_named():
    asked = needs.asked({"objective a.b": {"policy", "kl"}, "selector c": {"policy", "ref"}})
    assert asked == {"policy": "objective a.b", "kl": "objective a.b", "ref": "selector c"}


def test_bundled_objectives_take_what_the_table_offers():
    for name in objectives.names():
        positional = [
            p.name for p in inspect.signature(objectives.find(name)).parameters.values() if p.kind is not p.KEYWORD_ONLY
        ]
        assert set(positional) <= needs.NEEDS.keys()


def test_lists_of_needs_stand_in_no_other_module():
    """Four names of needs in a row are a second table."""
    several = re.compile(r"""[\[({](?:\s*["'](?:%s)["']\s*,){3,}\s*["'](?:%s)["']""" % (("|".join(needs.NEEDS),) * 2))
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("needs.py", "prompts.py"):
            assert not several.search(path.read_text()), path
