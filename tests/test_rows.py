"""Laws of packed rows, each read back from the batch cell by cell."""

import itertools
import time

import numpy as np
import pytest

from slpojax import data
from slpojax.base import ABSENT
from slpojax.data import orders, pipeline, planning, report, rows
from slpojax.data.examples import Example


def random_examples(seed, count, *, candidates=3, prompt=20, response=12):
    """Every token is a number of its own, so that each can be followed."""
    random, fresh = np.random.default_rng(seed), itertools.count(1)
    return [
        Example(
            prompt=np.array([next(fresh) for _ in range(random.integers(1, prompt))], np.int32),
            responses=tuple(
                np.array([next(fresh) for _ in range(random.integers(1, response))], np.int32)
                for _ in range(candidates)
            ),
            score=tuple(random.normal(size=candidates).astype(np.float32).tolist()),
            row=100 + i,
        )
        for i in range(count)
    ]


def whole(seed, listed):
    """The same examples."""
    return listed


def ragged(seed, listed):
    """The same examples, of which some lack candidates: the last ones, and nothing but the first in some."""
    random = np.random.default_rng(seed)
    made = []
    for i, e in enumerate(listed):
        there = random.integers(1, len(e.responses) + 1)
        responses = tuple(ids if k < there else ids[:0] for k, ids in enumerate(e.responses))
        score = tuple(s if k < there else 0.0 for k, s in enumerate(e.score))
        made.append(e._replace(responses=responses, score=score, label=float(i % 2)))
    return made


def planned(listed, **options):
    stored = data.build(listed, candidates=len(listed[0].responses))
    return planning.plan(stored, [np.arange(len(listed))], **{"row_length": 64} | options)


def require_every_token_once(listed, shapes, pack):
    """Read packed rows back, cell by cell."""
    batch = rows.pack(listed, shapes)
    assert batch.rows.token.shape == (shapes.rows, shapes.length)
    seen = []
    for r in range(shapes.rows):
        groups = {}
        for c in range(shapes.length):
            example, branch = int(batch.rows.example[r, c]), int(batch.rows.branch[r, c])
            if not example:
                assert not any(field[r, c] for field in batch.rows)
                continue
            groups.setdefault(example, {}).setdefault(branch, []).append(
                (c, int(batch.rows.token[r, c]), int(batch.rows.position[r, c]))
            )
        assert list(groups) == list(range(1, len(groups) + 1))
        assert pack or len(groups) <= 1
        for group in groups.values():
            cells = [c for branch in sorted(group) for c, _, _ in group[branch]]
            assert cells == list(
                range(cells[0], cells[0] + len(cells))
            )  # one piece, the prompt first, then each branch
            found = next(e for e in listed if e.prompt[0] == group[0][0][1])
            seen.append(found.row)
            for branch, ids in enumerate((found.prompt, *found.responses)):
                cells = group.get(branch, [])
                assert [token for _, token, _ in cells] == ids.tolist()
                begin = len(found.prompt) if branch else 0
                assert [position for _, _, position in cells] == list(range(begin, begin + len(ids)))
    assert sorted(seen) == [e.row for e in listed]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("shape", [whole, ragged])
def test_every_token_appears_once_where_it_belongs(seed, pack, shape):
    listed = shape(seed, random_examples(seed, 12))
    shapes = planned(listed, pack=pack, multiple_of=2)
    assert shapes.rows % 2 == 0
    require_every_token_once(listed, shapes, pack)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("shape", [whole, ragged])
def test_every_response_token_is_scored_once_from_the_one_before_it(seed, shape, groups):
    listed = shape(seed, random_examples(seed, 12))
    shapes = planned(listed, multiple_of=groups)
    assert shapes.groups == groups and shapes.rows % groups == 0
    batch = rows.pack(listed, shapes, np.arange(50, 62))
    _, k, t = shapes.examples, shapes.candidates, shapes.response
    unused = batch.scored.slot == shapes.examples * k * t
    slots = batch.scored.slot[~unused]
    there = {
        (b * k + c) * t + i for b, e in enumerate(listed) for c, ids in enumerate(e.responses) for i in range(len(ids))
    }
    assert len(slots) == len(there) and set(slots.tolist()) == there
    assert not batch.scored.source[unused].any() and not batch.scored.target[unused].any()
    token, position = (x.reshape(groups, -1) for x in (batch.rows.token, batch.rows.position))
    for g, s in zip(*np.nonzero(~unused), strict=True):
        b, c, i = np.unravel_index(batch.scored.slot[g, s], (shapes.examples, k, t))
        source, example = batch.scored.source[g, s], listed[b]
        assert batch.scored.target[g, s] == example.responses[c][i]
        assert token[g, source] == (example.responses[c][i - 1] if i else example.prompt[-1])
        assert position[g, source] == len(example.prompt) + i - 1
    np.testing.assert_array_equal(batch.length, [[len(ids) for ids in e.responses] for e in listed])
    np.testing.assert_array_equal(batch.score, np.array([e.score for e in listed], np.float32))
    np.testing.assert_array_equal(batch.label, [e.label for e in listed])
    np.testing.assert_array_equal(batch.index, np.arange(50, 62))


def test_a_query_sees_its_prompt_and_its_own_branch():
    """The rule of `base.Rows` leaves each response token exactly the prompt and what it says before."""
    listed = random_examples(3, 8, candidates=2)
    batch = rows.pack(listed, planned(listed))
    read = batch.rows
    for r, c in zip(*np.nonzero(read.branch), strict=True):
        same = (read.example[r] == read.example[r, c]) & ((read.branch[r] == 0) | (read.branch[r] == read.branch[r, c]))
        visible = read.token[r][same & (np.arange(same.size) <= c)].tolist()
        example = next(e for e in listed if e.prompt[0] == visible[0])
        whole = [*example.prompt, *example.responses[read.branch[r, c] - 1]]
        assert visible == whole[: len(visible)] and visible[-1] == read.token[r, c]


def test_fillers_and_absent_candidates_hold_nothing():
    listed = random_examples(1, 4)
    listed[2] = listed[2]._replace(responses=(listed[2].responses[0], listed[2].responses[1], np.zeros(0, np.int32)))
    shapes = planned(listed, row_length=80)._replace(examples=6)
    batch = rows.pack(listed, shapes)
    assert batch.index.tolist() == [0, 1, 2, 3, -1, -1]
    assert not batch.length[4:].any() and not batch.score[4:].any() and batch.length[2, 2] == 0
    assert batch.label.tolist() == [1, 1, 1, 1, 0, 0]
    b, k, _ = np.unravel_index(batch.scored.slot[batch.scored.slot < 6 * 3 * shapes.response], (6, 3, shapes.response))
    assert set(b.tolist()) == {0, 1, 2, 3} and (2, 2) not in set(zip(b.tolist(), k.tolist(), strict=True))
    empty = rows.pack([], shapes)
    assert not any(field.any() for field in empty.rows) and (empty.scored.slot == 6 * 3 * shapes.response).all()


def test_reference_columns_are_laid_out_like_the_responses():
    listed = random_examples(5, 4)
    shapes = planned(listed)._replace(examples=5)
    ref = [(tuple(-ids / 7.0 for ids in e.responses), tuple(-ids / 9.0 for ids in e.responses)) for e in listed]
    previous = [(other, token) for token, other in ref]
    batch = rows.pack(listed, shapes, ref=ref, previous=previous)
    for columns, packed in ((ref, batch.ref), (previous, batch.previous)):
        np.testing.assert_array_equal(packed.length, batch.length)
        for b, k, t in np.ndindex(*packed.token.shape):
            there = t < batch.length[b, k]
            assert packed.token[b, k, t] == (np.float32(columns[b][0][k][t]) if there else 0)
            assert packed.other[b, k, t] == np.float32(columns[b][1][k][t] if there else ABSENT)
    assert rows.pack(listed, shapes).ref is rows.pack(listed, shapes).previous is None


def test_a_plan_is_tight_and_holds_every_batch():
    stored = data.build(random_examples(0, 200), candidates=3)
    order = orders.order(stored.lengths, 16, seed=1, steps=30)
    shapes = planning.plan(stored, order, row_length=100)
    size = stored.lengths.prompt + stored.lengths.response.sum(axis=1)
    assert shapes[:3] == (16, 3, stored.lengths.response.max())
    assert shapes.rows <= 1 + max(-(-size[batch].sum() // 100) for batch in order)
    most = 0
    for batch in order:
        packed = pipeline.make_batch(stored, shapes, batch)
        most = max(most, (packed.scored.slot < 16 * 3 * shapes.response).sum(axis=1).max())
    assert most <= shapes.scored < most + 8
    assert planning.plan(stored, order, row_length=100, pack=False).rows == 16
    assert planning.plan(stored, order, row_length=100, multiple_of=7).rows % 7 == 0


@pytest.mark.parametrize("seed", range(10))
def test_larger_shapes_hold_whatever_smaller_ones_do(seed):
    random = np.random.default_rng(seed)
    stored = data.build(random_examples(seed, 100), candidates=3)
    order = orders.order(stored.lengths, 8, seed=seed, steps=12)
    shapes = planning.plan(stored, order, row_length=80)
    larger = shapes._replace(rows=shapes.rows + int(random.integers(1, 9)), length=80 + int(random.integers(0, 40)))
    for batch in order:
        pipeline.make_batch(stored, larger._replace(response=shapes.response + 3), batch)


def random_picks(random, stored, index, picks):
    """Candidate 0, then `picks` of the others that are there, or of all others where none is; repeated or not."""
    made = np.zeros((len(index), 1 + picks), np.int64)
    for row, i in zip(made, index, strict=True):
        there = np.nonzero(stored.lengths.response[i, 1:])[0]
        row[1:] = 1 + random.choice(there if len(there) else stored.candidates - 1, picks)
    return made


@pytest.mark.parametrize("picks", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_picked_fits_the_places_reserved_for_it(seed, picks):
    random = np.random.default_rng(seed)
    stored = data.build(ragged(seed, random_examples(seed, 60, candidates=5)), candidates=5)
    order = orders.order(stored.lengths, 8, seed=seed, steps=7)
    shapes = planning.plan(stored, order, row_length=90, picks=picks, multiple_of=2)
    assert shapes[:3] == (8, 1 + picks, stored.lengths.response.max())
    for index in order * 4:
        chosen = random_picks(random, stored, index, picks)
        batch = pipeline.make_picked(stored, shapes, index, chosen)
        slots = batch.scored.slot[batch.scored.slot < batch.length.size * shapes.response]
        found = dict(zip(slots.tolist(), batch.scored.target[batch.scored.slot < batch.length.size * shapes.response]))
        expected = {
            (b * (1 + picks) + p) * shapes.response + t: token
            for b, (i, row) in enumerate(zip(index, chosen, strict=True))
            for p, k in enumerate(row)
            for t, token in enumerate(stored[int(i)].responses[k])
        }
        assert found == expected
        np.testing.assert_array_equal(batch.length, np.take_along_axis(stored.lengths.response[index], chosen, 1))
        np.testing.assert_array_equal(batch.score, np.take_along_axis(stored.score[index], chosen, 1))
        np.testing.assert_array_equal(batch.label, stored.label[index])
        assert np.count_nonzero(batch.rows.example) == stored.lengths.prompt[index].sum() + batch.length.sum()


@pytest.mark.parametrize("multiple_of", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_a_chosen_length_is_the_shortest_of_those_with_the_fewest_cells(seed, multiple_of):
    stored = data.build(random_examples(seed, 100, prompt=60, response=30), candidates=3)
    order = orders.order(stored.lengths, 16, seed=seed, steps=6)
    shapes = planning.plan(stored, order, row_length=0, multiple_of=multiple_of)
    longest = int((stored.lengths.prompt + stored.lengths.response.sum(axis=1)).max())
    shortest = -(-longest // 32) * 32
    assert shortest <= shapes.length <= 4 * shortest and shapes.length % 32 == 0
    given = [
        planning.plan(stored, order, row_length=length, multiple_of=multiple_of)
        for length in range(shortest, 4 * shortest + 1, 32)
    ]
    fewest = min(s.rows * s.length for s in given)
    assert shapes == next(s for s in given if s.rows * s.length <= 1.02 * fewest)
    for batch in order:
        pipeline.make_batch(stored, shapes, batch)


@pytest.mark.parametrize("seed", range(20))
def test_few_lengths_take_the_fewest_cells(seed):
    random = np.random.default_rng(seed)
    needed, most = 32 * random.integers(1, 9, random.integers(1, 15)), int(random.integers(1, 5))
    *others, longest = np.unique(needed).tolist()

    def cells(lengths):
        return sum(min(length for length in lengths if length >= n) for n in needed.tolist())

    choices = ((*some, longest) for count in range(most) for some in itertools.combinations(others, count))
    few = planning._few(needed, most)
    assert len(few) <= most and few == sorted(few) and cells(few) == min(map(cells, choices))


@pytest.mark.parametrize("multiple_of", [1, 3])
def test_rows_of_one_example_come_in_a_few_lengths_that_hold_every_batch(multiple_of):
    stored = data.build(random_examples(0, 200, prompt=120, response=60), candidates=3)
    size = stored.lengths.prompt + stored.lengths.response.sum(axis=1)
    order = orders.order(stored.lengths, 8, seed=0, steps=50, kind="by_length")
    shapes = planning.plan(stored, order, row_length=0, pack=False, multiple_of=multiple_of)
    lengths, scored = zip(*shapes.lengths, strict=True)
    assert len(lengths) == 4 and list(lengths) == sorted(lengths) and not any(length % 32 for length in lengths)
    assert (shapes.length, shapes.scored, shapes.rows % multiple_of) == (lengths[-1], max(scored), 0)
    cells = 0
    for batch in order:
        packed = pipeline.make_batch(stored, shapes, batch)
        length = next(n for n in lengths if n >= size[batch].max())
        assert packed.rows.token.shape == (shapes.rows, length) and packed.rows.example.max() == 1
        assert packed.scored.slot.shape == (multiple_of, dict(shapes.lengths)[length])
        cells += packed.rows.token.size
    summary = report.with_packing(report.make("", 200, report.tally(), stored, ""), stored, order, shapes)
    assert summary.packing.padding == pytest.approx(1 - size[np.stack(order)].sum() / cells)
    text = ", ".join(map(str, lengths[:-1])) + f" or {lengths[-1]}"
    assert summary.packing.lengths == lengths and f"x {text} tokens" in report.render(summary)
    assert "a program for each length" in report.render(summary)
    assert report.as_dict(summary)["data/packing/lengths"] == text


def test_the_report_tells_of_rows_that_only_groups_need():
    stored = data.build(random_examples(0, 40), candidates=3)
    order, summary = [np.arange(40)], report.make("", 40, report.tally(), stored, "")
    tokens = int((stored.lengths.prompt + stored.lengths.response.sum(axis=1)).sum())

    def lines(multiple_of):
        shapes = planning.plan(stored, order, row_length=128, multiple_of=multiple_of)
        return report.render(report.with_packing(summary, stored, order, shapes))

    assert "rows would do" not in lines(1) and "rows would do" not in lines(2)
    assert f"packing   {-(-tokens // 128)} rows would do, but devices and micro-batches are 32 groups" in lines(32)


def test_a_plan_of_several_data_sets_holds_the_batches_of_each():
    first, second = (data.build(random_examples(seed, 40), candidates=3) for seed in (0, 1))
    parts = [(stored, orders.evaluation_order(stored.lengths, 16)) for stored in (first, second)]
    shapes = planning.plan_together(parts, row_length=0)
    assert shapes.response == max(first.lengths.response.max(), second.lengths.response.max())
    for stored, order in parts:
        alone = planning.plan(stored, order, row_length=shapes.length)
        assert alone.rows <= shapes.rows
        for batch in order:
            pipeline.make_batch(stored, shapes, batch)


@pytest.mark.parametrize("batch_size", [8, 16, 32])
def test_balanced_batches_fill_the_rows_better_than_shuffled_ones(batch_size):
    stored = data.build(random_examples(2, 400, prompt=60, response=30), candidates=3)
    balanced, shuffled = (
        planning.plan(
            stored, orders.order(stored.lengths, batch_size, seed=0, steps=400 // batch_size, kind=kind), row_length=256
        )
        for kind in ("balanced", "shuffled")
    )
    assert balanced.rows < shuffled.rows


def test_a_plan_for_picks_needs_fewer_rows_than_one_for_all_candidates():
    stored = data.build(random_examples(0, 60, candidates=6), candidates=6)
    order = orders.order(stored.lengths, 8, seed=0, steps=7)
    all_of_them, picked = (planning.plan(stored, order, row_length=120, picks=picks) for picks in (0, 1))
    assert picked.rows < all_of_them.rows and picked.scored < all_of_them.scored
    # Reserved by the longest of the others; repeated ones count each time.
    longest = stored.lengths.response[:, 1:].max(axis=1)
    np.testing.assert_array_equal(planning.reserve(stored.lengths.response, 1), stored.lengths.response[:, 0] + longest)
    np.testing.assert_array_equal(
        planning.reserve(stored.lengths.response, 2), stored.lengths.response[:, 0] + 2 * longest
    )


def test_the_report_expects_every_other_candidate_to_be_picked_equally_often():
    listed = random_examples(0, 2, candidates=3)
    lengths = [[4, 6, 2], [3, 5, 0]]
    listed = [
        e._replace(prompt=e.prompt[:1], responses=tuple(np.ones(n, np.int32) for n in row))
        for e, row in zip(listed, lengths, strict=True)
    ]
    stored, order = data.build(listed, candidates=3), [np.array([0, 1])]
    shapes = planning.plan(stored, order, row_length=11, picks=1)
    summary = report.make("", 2, report.tally(), stored, "")
    packing = report.with_packing(summary, stored, order, shapes).packing
    assert (shapes.rows, shapes.scored) == (2, 24)
    np.testing.assert_allclose([packing.padding, packing.unscored], [1 - 18 / 22, 1 - 16 / 24])
    np.testing.assert_allclose(packing.saved, 1 - 18 / 20)


def test_picks_keep_the_preferred_candidate_first():
    listed = random_examples(0, 2)
    with pytest.raises(ValueError, match=r"must keep candidate 0 first; got \[0, 1\]"):
        data.pick(listed, np.array([[0, 1], [1, 0]]))
    picked = data.pick(listed, np.array([[0, 2], [0, 1]]))
    assert [e.responses[1] is listed[i].responses[k] for i, (e, k) in enumerate(zip(picked, (2, 1)))] == [True, True]
    assert picked[0].score == (listed[0].score[0], listed[0].score[2]) and picked[1].row == listed[1].row


def test_what_does_not_fit_is_an_error():
    listed = random_examples(0, 3)
    long = listed[1]._replace(prompt=np.ones(200, np.int32))
    with pytest.raises(ValueError, match="row 101: .* more than data.row_length=64; raise data.row_length to"):
        planned([listed[0], long, listed[2]])
    with pytest.raises(ValueError, match="do not fill one batch; lower batch_size"):
        planning.plan(data.build(listed, candidates=3), [], row_length=64)
    shapes = planned(listed)
    for smaller in (
        shapes._replace(rows=1, length=40),
        shapes._replace(response=1),
        shapes._replace(scored=1),
        shapes._replace(examples=2),
    ):
        with pytest.raises(ValueError, match="plan again"):
            rows.pack(listed, smaller)
    with pytest.raises(ValueError, match="response tokens do not fit the .* reserved"):
        rows.pack(listed, shapes, reserved=(np.array([1, 1, 1]),) * 2)


@pytest.fixture(scope="module")
def dialogues(shared_data):
    tokenizer = data.load_tokenizer(str(shared_data / "tokenizers" / "neox-20b"))
    source = data.Source(str(shared_data / "hh" / "helpful-base.test.jsonl.gz"), rows="0:2000")
    return data.load(source, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("batch_size", "row_length", "rows_and_length", "most"),
    [(64, 1024, (15, 1024), 0.05), (64, 0, (21, 736), 0.05), (32, 0, (8, 960), 0.05), (16, 0, (4, 960), 0.05)],
)
def test_real_dialogues_fill_the_rows(dialogues, batch_size, row_length, rows_and_length, most):
    stored, summary = dialogues
    run = orders.passes(len(stored), batch_size)
    order = orders.order(stored.lengths, batch_size, seed=0, steps=run.steps)
    shapes = planning.plan(stored, order, row_length=row_length)
    assert (shapes.rows, shapes.length, shapes.response) == (*rows_and_length, 427)
    packing = report.with_packing(summary, stored, order, shapes, unused=run.unused).packing
    assert (packing.batches, packing.unused) == (run.steps, len(stored) - run.steps * batch_size)
    assert packing.padding < most and packing.unscored < 0.02 and 0.35 < packing.saved < 0.38
    begin = time.process_time()
    for batch in order[:10]:
        pipeline.make_batch(stored, shapes, batch)
    assert time.process_time() - begin < 1.0  # some 3 ms a batch where nothing checks the types
