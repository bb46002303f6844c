"""Laws of the orders: every example once a pass, the same for a seed, and batches that are equally large."""

import numpy as np
import pytest

from slpojax.data import balancing, orders
from slpojax.data.examples import Lengths

COUNT, BATCH, STEPS = 50, 8, 20


def drawn(count, *, candidates=2, seed=0):
    """Lengths with a long tail, as in dialogues."""
    random = np.random.default_rng(seed)
    draw = random.lognormal([4.7] + [3.7] * candidates, 0.8, (count, 1 + candidates))
    draw = draw.clip(1, 400).astype(int)
    return Lengths(draw[:, 0], draw[:, 1:])


def loads(lengths, order):
    """(all tokens, scored tokens) of every batch."""
    scored = np.append(lengths.response.sum(axis=1), 0)
    size = np.append(lengths.prompt, 0) + scored
    return size[np.stack(order)].sum(axis=1), scored[np.stack(order)].sum(axis=1)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("kind", orders.KINDS)
def test_passes_follow_one_another_and_each_takes_every_example_once(kind, batch_size):
    order = orders.order(drawn(COUNT), batch_size, seed=3, steps=-(-4 * COUNT // batch_size), kind=kind)
    passes = np.concatenate(order)[: 4 * COUNT].reshape(4, COUNT)
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.arange(COUNT), (4, 1)))
    assert (kind == "source") == bool((passes[0] == passes[1]).all())


@pytest.mark.parametrize("kind", ["balanced", "shuffled", "by_length"])
def test_the_seed_decides_and_a_longer_run_begins_as_a_shorter_one(kind):
    lengths = drawn(COUNT)
    order = orders.order(lengths, BATCH, seed=3, steps=STEPS, kind=kind)
    assert len(order) == STEPS
    for steps in (1, 6, 7, STEPS - 1):
        np.testing.assert_array_equal(orders.order(lengths, BATCH, seed=3, steps=steps, kind=kind), order[:steps])
    assert not np.array_equal(order, orders.order(lengths, BATCH, seed=4, steps=STEPS, kind=kind))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_size", [16, 32, 64])
def test_balanced_batches_are_equally_large_the_ones_between_two_passes_too(batch_size, seed):
    lengths = drawn(1000, seed=seed)
    steps = 3000 // batch_size
    balanced, shuffled = (
        loads(lengths, orders.order(lengths, batch_size, seed=seed, steps=steps, kind=kind))
        for kind in ("balanced", "shuffled")
    )
    for ours, theirs in zip(balanced, shuffled, strict=True):
        assert np.ptp(ours) < 0.05 * ours.mean() and np.ptp(ours) < 0.1 * np.ptp(theirs)


def test_balanced_batches_are_another_mixture_in_every_pass():
    """Who shares a batch with whom is left to chance."""
    lengths = drawn(400)
    order = orders.order(lengths, 16, seed=0, steps=50)
    mates = [
        {frozenset((int(a), int(b))) for batch in of_pass for a in batch for b in batch if a < b}
        for of_pass in (order[:25], order[25:])
    ]
    pairs, all_pairs = 25 * 16 * 15 // 2, 400 * 399 // 2
    expected = pairs * pairs / all_pairs
    assert abs(len(mates[0] & mates[1]) - expected) < 5 * expected**0.5


def test_batches_by_length_are_of_similar_examples_in_a_random_order():
    lengths = drawn(1000)
    size = lengths.prompt + lengths.response.sum(axis=1)
    order = np.stack(orders.order(lengths, 16, seed=0, steps=124, kind="by_length"))
    spread = np.ptp(size[order], axis=1)
    mixed = np.flatnonzero(
        spread > np.ptp(size[orders.order(lengths, 16, seed=0, steps=62, kind="shuffled")], axis=1).min()
    )
    assert np.median(spread) <= 32 and len(mixed) < 8  # the longest, and the batch between two passes
    middle = size[order].mean(axis=1)
    assert abs(np.corrcoef(middle[1:], middle[:-1])[0, 1]) < 0.3
    # Who finds no full batch in the first pass is left to chance, not the longest.
    left = np.setdiff1d(np.arange(1000), order[:62])
    others = np.setdiff1d(np.arange(1000), orders.order(lengths, 16, seed=1, steps=62, kind="by_length"))
    assert len(left) == 8 and size[left].min() < np.median(size) and not np.array_equal(left, others)
    assert not {frozenset(batch) for batch in order[:62].tolist()} & {frozenset(batch) for batch in order[62:].tolist()}


def test_a_trade_moves_no_fixed_place():
    lengths = drawn(60)
    grid = np.arange(64).reshape(8, 8)
    grid[grid >= 60] = -1
    fixed = np.random.default_rng(0).random(grid.shape) < 0.5
    fixed |= grid < 0
    traded = balancing.trade(lengths, grid, fixed)
    np.testing.assert_array_equal(traded[fixed], grid[fixed])
    np.testing.assert_array_equal(np.sort(traded, axis=None), np.sort(grid, axis=None))
    assert not np.array_equal(traded, grid)


@pytest.mark.parametrize(("count", "batch_size"), [(50, 8), (50, 1), (5, 8), (64, 8), (349, 64)])
def test_an_evaluation_takes_every_example_once_in_equal_batches(count, batch_size):
    lengths = drawn(count)
    order = orders.evaluation_order(lengths, batch_size)
    flat = np.concatenate(order)
    np.testing.assert_array_equal(np.sort(flat[flat >= 0]), np.arange(count))
    assert len(order) == -(-count // batch_size)
    real = [batch >= 0 for batch in order]
    assert np.ptp([row.sum() for row in real]) <= 1 and all((np.diff(row.astype(int)) <= 0).all() for row in real)
    by_length = orders.evaluation_order(lengths, batch_size, kind="by_length")
    np.testing.assert_array_equal(np.stack(by_length) >= 0, real)
    by_length, size = np.concatenate(by_length), lengths.prompt + lengths.response.sum(axis=1)
    np.testing.assert_array_equal(np.sort(by_length[by_length >= 0]), np.arange(count))
    assert (np.diff(size[by_length[by_length >= 0]]) >= 0).all()
    if batch_size == 64:
        assert all(np.ptp(load) < 0.05 * load.mean() for load in loads(lengths, order))


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (1, 36)), ({"epochs": 2.5}, (3, 58)), ({"steps": 3}, (3, 8)), ({"steps": 1, "epochs": 9.0}, (1, 36))],
)
def test_the_length_of_a_run(options, expected):
    assert orders.passes(100, 64, **options) == expected


def test_the_original_s_order():
    """goldens: numpy's and Python's generators, seeded as the original program seeds them."""
    assert orders.original_order(10, 3) == [
        [8, 7, 2, 4, 1, 5, 3, 9, 0, 6],
        [1, 2, 8, 3, 9, 5, 6, 4, 0, 7],
        [0, 2, 7, 4, 6, 1, 5, 9, 3, 8],
    ]


def test_a_balanced_order_is_the_same_on_every_machine():
    """goldens: this order's own, of lengths that are given; a change would break the resumption of runs."""
    i = np.arange(12)
    lengths = Lengths(1 + i * i % 7, np.stack([1 + i * 5 % 11, 1 + i * 3 % 5], axis=1))
    golden = [[9, 1, 11, 4], [5, 6, 0, 2], [8, 7, 10, 3], [10, 1, 3, 5]]
    np.testing.assert_array_equal(orders.order(lengths, 4, seed=7, steps=4), golden)


def test_other_orders():
    five, ten = drawn(5), drawn(10)
    np.testing.assert_array_equal(
        orders.order(five, 3, seed=0, steps=3, kind="source"), [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    )
    original = np.concatenate(orders.order(ten, 4, seed=7, steps=5, kind="original"))
    np.testing.assert_array_equal(original, sum(orders.original_order(10, 2), []))
    with pytest.raises(
        ValueError, match=r"data.order='random': expected balanced, shuffled, by_length, source or original"
    ):
        orders.order(five, 3, seed=0, steps=1, kind="random")
