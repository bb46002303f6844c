"""The stream of batches: the same for a seed, whoever asks, and after any stop."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest

from slpojax import data
from slpojax.base import Share
from slpojax.data import orders, pipeline, planning
from slpojax.data.examples import Example

COUNT, BATCH, STEPS = 50, 8, 20


@pytest.fixture(scope="module")
def stored():
    random = np.random.default_rng(0)

    def ids(most):
        return random.integers(1, 99, random.integers(1, most)).astype(np.int32)

    return data.build([Example(ids(20), (ids(9), ids(9)), (1.0, 0.0), i) for i in range(COUNT)], candidates=2)


@pytest.fixture(scope="module")
def shapes(stored):
    return planning.plan(stored, orders.order(stored.lengths, BATCH, seed=3, steps=STEPS), row_length=64, multiple_of=2)


@pytest.fixture(scope="module")
def alone(stored):
    """Sizes of batches by length in which every example has a row of its own, of one length or another."""
    order = orders.order(stored.lengths, BATCH, seed=3, steps=STEPS, kind="by_length")
    size = (stored.lengths.prompt + stored.lengths.response.sum(axis=1))[np.stack(order)]
    planned = planning.plan(stored, order, row_length=64, multiple_of=2, pack=False)
    lengths = ((int(np.sort(size.max(axis=1))[STEPS // 2]), planned.scored), (64, planned.scored))
    return planned._replace(lengths=lengths)


class Columns:
    """Log-probs that tell which example they belong to."""

    def __init__(self, stored, shift=0):
        self.stored, self.shift = stored, shift

    def __getitem__(self, i):
        token = tuple(np.full(len(r), -float(i) - self.shift, np.float32) for r in self.stored[i].responses)
        return token, token


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", orders.KINDS)
def test_the_stream_is_the_planned_order(stored, kind):
    order = orders.order(stored.lengths, BATCH, seed=3, steps=STEPS, kind=kind)
    shapes = planning.plan(stored, order, row_length=64)
    stream = [*pipeline.batches(stored, shapes, seed=3, steps=STEPS, kind=kind)]
    assert len(stream) == len(order) == STEPS
    for batch, index in zip(stream, order, strict=True):
        np.testing.assert_array_equal(batch.index, index)
        np.testing.assert_array_equal(batch.length, stored.lengths.response[index])
        assert batch.ref is None


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize("stop", [0, 1, 7, STEPS - 1])
def test_a_stream_goes_on_where_it_was_stopped(stored, shapes, stop, prefetch):
    options = {"seed": 3, "steps": STEPS, "ref": Columns(stored)}
    whole = [*pipeline.batches(stored, shapes, **options)]
    first = pipeline.batches(stored, shapes, prefetch=prefetch, **options)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    again = pipeline.batches(stored, shapes, prefetch=prefetch, **options)
    again.set_state(state)
    rest = [*again]
    assert len(rest) == STEPS - stop
    for a, b in zip(rest, whole[stop:], strict=True):
        same(a, b)


def test_a_stream_of_several_lengths_goes_on_where_it_was_stopped_and_is_split_over_hosts(stored, alone):
    options = {"seed": 3, "steps": STEPS, "kind": "by_length"}
    whole = [*pipeline.batches(stored, alone, **options)]
    assert {batch.rows.token.shape for batch in whole} == {(BATCH, length) for length, _ in alone.lengths}
    first = pipeline.batches(stored, alone, **options)
    for _ in range(7):
        next(first)
    again = pipeline.batches(stored, alone, **options)
    again.set_state(json.loads(json.dumps(first.get_state())))
    parts = [pipeline.batches(stored, alone, share=Share((i,), 2), **options) for i in range(2)]
    for number, (batch, *own) in enumerate(zip(whole, *parts, strict=True)):
        if number >= 7:
            same(next(again), batch)
        same(batch.rows, jax.tree.map(lambda *a: np.concatenate(a), *(part.rows for part in own)))


@pytest.mark.parametrize("hosts", [2, 1])
def test_hosts_together_hold_the_batch_of_one(stored, shapes, hosts):
    whole = pipeline.batches(stored, shapes, seed=3, steps=4)
    parts = [pipeline.batches(stored, shapes, seed=3, steps=4, share=Share((i,), hosts)) for i in range(hosts)]
    for batch, *own in zip(whole, *parts, strict=True):
        for part in own:
            assert part.rows.token.shape[0] == shapes.rows // hosts
            assert part.scored.slot.shape[0] == shapes.groups // hosts
            same((batch.length, batch.score, batch.index), (part.length, part.score, part.index))
        together = [
            jax.tree.map(lambda *a: np.concatenate(a), *fields)
            for fields in zip(*((p.rows, p.scored) for p in own), strict=True)
        ]
        same((batch.rows, batch.scored), tuple(together))


@pytest.mark.parametrize("parts", [(1, 3), (0,), (2, 3, 5)], ids=str)
def test_a_share_need_not_be_contiguous(stored, parts):
    order = orders.order(stored.lengths, BATCH, seed=3, steps=3)
    shapes = planning.plan(stored, order, row_length=64, multiple_of=6)
    whole = pipeline.batches(stored, shapes, seed=3, steps=3)
    shares = pipeline.batches(stored, shapes, seed=3, steps=3, share=Share(parts, 6))
    for batch, ours in zip(whole, shares, strict=True):
        size = shapes.rows // 6
        taken = np.concatenate([np.arange(part * size, (part + 1) * size) for part in parts])
        same(ours.rows, jax.tree.map(lambda x, taken=taken: x[taken], batch.rows))
        same(ours.scored, jax.tree.map(lambda x: x[list(parts)], batch.scored))
        same(ours[2:], batch[2:])


def test_processes_of_the_same_parts_hold_the_same_rows(stored, shapes):
    """As those do that a tensor axis spans: two of four processes on each half of the rows, and all of all rows."""
    streams = [pipeline.batches(stored, shapes, seed=3, steps=3, share=Share((i // 2,), 2)) for i in range(4)]
    for one, two, three, four in zip(*streams, strict=True):
        same(one, two)
        same(three, four)
        assert not np.array_equal(one.rows.token, three.rows.token)
    whole, shared = (
        [*pipeline.evaluation_batches(stored, shapes, share=share)] for share in (Share(), Share((0, 1), 2))
    )
    for one, other in zip(whole, shared, strict=True):
        same(one, other)


@pytest.mark.parametrize("parts", [(), (0, 2)], ids=str)
def test_parts_that_there_are_not_are_an_error(stored, shapes, parts):
    with pytest.raises(ValueError, match="expected some of 0 to 1"):
        pipeline.batches(stored, shapes, seed=0, steps=1, share=Share(parts, 2))


def test_groups_are_not_cut(stored, shapes):
    with pytest.raises(ValueError, match="rows in 2 groups cannot be cut into 4 equal parts; plan with multiple_of=4"):
        pipeline.batches(stored, shapes._replace(rows=8), seed=0, steps=1, share=Share((0,), 4))


def test_hosts_that_do_not_divide_the_rows_are_an_error(stored, shapes):
    with pytest.raises(ValueError, match="plan with multiple_of=2"):
        pipeline.batches(stored, shapes._replace(rows=7), seed=0, steps=1, share=Share((0,), 2))
    with pytest.raises(ValueError, match="plan with multiple_of=2"):
        next(pipeline.evaluation_batches(stored, shapes._replace(rows=7), share=Share((0,), 2)))


def test_cached_log_probs_travel_with_their_examples(stored, shapes):
    for batch in pipeline.batches(stored, shapes, seed=3, steps=5, ref=Columns(stored)):
        there = np.arange(shapes.response) < batch.length[:, :, None]
        expected = np.where(there, -batch.index[:, None, None].astype(np.float32), 0)
        np.testing.assert_array_equal(batch.ref.token, expected)


def test_columns_of_a_second_model_travel_beside_the_reference_s(stored, shapes):
    columns, shifted = Columns(stored), Columns(stored, shift=1)
    train = pipeline.batches(stored, shapes, seed=3, steps=3, ref=columns, previous=shifted)
    scan = pipeline.evaluation_batches(stored, shapes, ref=columns, previous=shifted)
    for batch in (*train, *itertools.islice(scan, 3)):
        there = np.arange(shapes.response) < batch.length[:, :, None]
        np.testing.assert_array_equal(batch.previous.token[there], batch.ref.token[there] - 1)
    alone = next(pipeline.batches(stored, shapes, seed=3, steps=3, previous=shifted))
    assert alone.ref is None and alone.previous is not None


def test_the_picked_of_a_batch_are_trained_on_with_their_columns(stored, shapes):
    order = orders.order(stored.lengths, BATCH, seed=3, steps=STEPS)
    picked = planning.plan(stored, order, row_length=64, multiple_of=2, picks=1)
    [scored] = pipeline.batches(stored, shapes, seed=3, steps=1, ref=Columns(stored))
    index = np.where(np.arange(BATCH) < 6, scored.index, -1)
    picks = np.tile([0, 1], (BATCH, 1))
    make = functools.partial(
        pipeline.make_picked, stored, picked, jax.numpy.asarray(index), jax.numpy.asarray(picks), Columns(stored)
    )
    batch = make()
    np.testing.assert_array_equal(batch.index, index)
    np.testing.assert_array_equal(batch.length[:6], scored.length[:6])
    np.testing.assert_array_equal(batch.ref.token[:6], scored.ref.token[:6])  # every candidate is picked
    assert not batch.length[6:].any() and not batch.label[6:].any() and batch.previous is None
    parts = [make(share=Share((i,), 2)) for i in range(2)]
    together = [jax.tree.map(lambda *a: np.concatenate(a), *(part[i] for part in parts)) for i in range(2)]
    same((batch.rows, batch.scored), tuple(together))
    with pytest.raises(ValueError, match="plan with multiple_of=3"):
        make(share=Share((0,), 3))


def test_an_evaluation_takes_every_example_once_and_fills_up(stored):
    order = orders.evaluation_order(stored.lengths, BATCH)
    shapes = planning.plan(stored, order, row_length=64)
    for batch, index in zip(pipeline.evaluation_batches(stored, shapes, ref=Columns(stored)), order, strict=True):
        np.testing.assert_array_equal(batch.index, index)
        filler = batch.index < 0
        assert not batch.length[filler].any() and not batch.ref.token[filler].any()


def test_an_evaluation_of_rows_of_one_example_takes_the_shortest_first(stored):
    order = orders.evaluation_order(stored.lengths, BATCH, kind="by_length")
    shapes = planning.plan(stored, order, row_length=0, pack=False)
    for batch, index in zip(pipeline.evaluation_batches(stored, shapes), order, strict=True):
        np.testing.assert_array_equal(batch.index, index)
