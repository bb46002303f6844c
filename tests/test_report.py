"""What the report of the data says: passes, labels that a batch lacks, and held-out examples that are trained on."""

import numpy as np
import pytest

from slpojax import data
from slpojax.data import report
from slpojax.data.examples import Example


def made(prompts, labels=None, *, first=0):
    """Examples of a prompt of one token each, which two responses of three tokens follow."""
    labels = labels or [1.0] * len(prompts)
    answer = np.arange(3, dtype=np.int32)
    listed = [
        Example(np.int32([prompt]), (answer, answer + k), (0.0, 0.0), first + k, label)
        for k, (prompt, label) in enumerate(zip(prompts, labels, strict=True))
    ]
    return data.build(listed, candidates=2, labelled=len(set(labels)) > 1)


def of(examples):
    return report.make("source", len(examples), report.tally(), examples, "no BOS")


def packed(examples, order):
    shapes = data.plan(examples, order, row_length=32)
    return report.render(report.with_packing(of(examples), examples, order, shapes))


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (1, "the only pass over the examples ends after 4 of 6"),
        (3, "2 passes over the examples"),
        (5, "the last of 4 passes over the examples ends after 2 of 6"),
    ],
)
def test_where_the_last_pass_ends(steps, says):
    examples = made(range(6))
    order = [np.arange(4) + 4 * step for step in range(steps)]
    assert f"packing   {says}\n" in packed(examples, [batch % 6 for batch in order]) + "\n"


def test_batches_of_one_label_are_counted():
    examples = made(range(4), [1.0, 0.0, 1.0, 1.0])
    said = packed(examples, [np.array([0, 1]), np.array([2, 3]), np.array([1, -1])])
    assert "labels    3 desirable, 1 undesirable; 2 batches hold one of them alone: their rewards/margins are 0" in said
    assert "alone" not in packed(examples, [np.array([0, 1])])


def test_held_out_examples_that_are_trained_on_are_counted():
    held_out = made([7, 3, 9], first=20)
    overlap = report.with_overlap(of(held_out), held_out, made([1, 2, 3]))
    assert "noted     1 trained on, too, so what is measured on them is no held-out number: rows 21" in report.render(
        overlap
    )
    assert report.as_dict(overlap)["data/noted/trained on, too, so what is measured on them is no held-out number"] == 1
    assert report.with_overlap(of(held_out), held_out, made([1, 2, 4])).noted == {}
