"""What scores decide: which pairs are made, which are too near, which prompts teach little, what length costs."""

import itertools
import math
import statistics

import data_tools
import numpy as np
import pytest
from data_tools import decoded, pair

from slpojax.data import rules

POOL = {"one": (5.0, 4.0, 3.5, 1.0, -9.0), "two": (2.0, 1.0, 0.0), "three": (1.0, 0.5)}


def record(name, *scores, texts=None):
    texts = texts or [f"{name} {score}" for score in scores]
    return {"prompt": name, "all_generated_responses": list(texts), "all_rm_scores": list(scores)}


@pytest.fixture
def load(tmp_path):
    defaults = {"format": "armorm", "chat_template": "dialogue", "candidates": 8}
    return lambda *records, **options: data_tools.load(tmp_path, records, **defaults | options)


def scores(stored):
    return [tuple(example.score) for example in stored]


def test_the_one_nearest_to_two_standard_deviations_below_the_mean_stands_against_the_best(load):
    stored, _ = load(*(record(name, *found) for name, found in POOL.items()), pairs="two_std_below")
    expected = []
    for found in POOL.values():
        aim = statistics.fmean(found) - 2 * statistics.pstdev(found)
        expected.append((max(found), min((s for s in found if s < max(found)), key=lambda s: abs(s - aim))))
    assert scores(stored) == expected
    rng = np.random.default_rng(0)
    many = tuple(rng.normal(size=8).round(3).tolist())
    stored, _ = load(record("many", *many), pairs="two_std_below")
    aim = statistics.fmean(many) - 2 * statistics.pstdev(many)
    nearest = min(many, key=lambda s: abs(s - aim))
    np.testing.assert_allclose(scores(stored), [(max(many), nearest)], rtol=1e-6)
    # Of forty samples, the worst is an outlier, and another one is taken.
    wide = tuple(itertools.chain(np.linspace(-2, 2, 39).round(3).tolist(), [-9.0]))
    [found] = scores(load(record("wide", *wide), pairs="two_std_below", candidates=40, max_length=999)[0])
    assert found[0] == 2 and -4 < found[1] < -1


def test_length_costs_and_ranks_anew(load):
    texts = ("a" * 30, "b" * 10, "c")
    stored, summary = load(record("?", 2.0, 1.5, 0.0, texts=texts), pairs="extremes", length_penalty=0.1)
    # Lengths with the blank before, as HH writes a turn, and EOS behind: 32, 12 and 3 tokens.
    assert [len(response) for response in stored[0].responses] == [12, 32]
    np.testing.assert_allclose(scores(stored), [(1.5 - 1.2, 2.0 - 3.2)], rtol=1e-6)
    assert summary.noted["ranked otherwise by data.length_penalty"].rows == (0,)
    stored, summary = load(record("?", 2.0, 1.5, 0.0, texts=texts), pairs="extremes", length_penalty=0.001)
    assert [len(response) for response in stored[0].responses] == [32, 3] and "ranked otherwise" not in str(summary)
    same, _ = load(record("?", 1.0, 1.0, texts=("aaaa", "a")), pairs="all", length_penalty=0.1)  # no tie any more
    assert [len(response) for response in same[0].responses] == [3, 6]


def test_the_variance_of_preferences_is_that_of_all_ordered_pairs(load):
    for found in POOL.values():
        wins = [1 / (1 + math.exp(b - a)) for a, b in itertools.permutations(found, 2)]
        assert rules.preference_variance(np.array(found)) == pytest.approx(statistics.pvariance(wins), rel=1e-12)
    assert rules.preference_variance(np.array([1e4, -1e4])) == 0.25 and rules.preference_variance(np.ones(1)) == 0
    records = [record(name, *found) for name, found in POOL.items()]
    stored, summary = load(*records, pairs="extremes", least_variance=0.1)
    assert stored.row.tolist() == [0] and summary.dropped["preference variance below data.least_variance"].rows == (
        1,
        2,
    )
    assert load(*records, least_variance=0.02)[0].row.tolist() == [0, 1]  # without pairs, too


def test_pairs_of_near_scores_are_left_out_and_counted(load, tmp_path):
    records = [record(name, *found) for name, found in POOL.items()]
    stored, summary = load(*records, pairs="all", least_gap=1.5)
    expected = [(a, b) for found in POOL.values() for a, b in itertools.combinations(found, 2) if a - b >= 1.5]
    assert scores(stored) == expected
    assert summary.noted["pair of scores nearer to each other than data.least_gap left out"].times == 10 + 3 - len(
        expected
    )
    assert summary.dropped["scores nearer to each other than data.least_gap"].rows == (2,)
    given = [
        pair(str(i)) | {"score_chosen": a, "score_rejected": b} for i, (a, b) in enumerate([(3, 1), (2, 1), (1, 3)])
    ]
    stored, _ = data_tools.load(tmp_path, given, least_gap=2.0)
    assert stored.row.tolist() == [0] and decoded(stored[0])[0] == "0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_gap": 1.0}, r"data.least_gap reads scores, which .*data.jsonl, as data.format=pairs, does not.*row 0"),
        ({"least_variance": 0.1}, r"data.least_variance reads scores, which .* set data.least_variance=0, or take a"),
        ({"least_gap": 1.0, "candidates": 3}, r"data.least_gap=1 looks at the two responses of a pair, and data.cand"),
        (
            {"length_penalty": 0.1},
            r"data.length_penalty=0.1 ranks the candidates that pairs are made of, and data.pairs",
        ),
        (
            {"length_penalty": 0.1, "pairs": "all", "candidates": 3},
            r"data.length_penalty reads scores that rank the responses, which .* set data.length_penalty=0",
        ),
        ({"pairs": "two_std_below", "candidates": 3}, r"data.pairs=two_std_below reads scores, which .* does not give"),
    ],
    ids=str,
)
def test_what_reads_scores_refuses_records_without(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        data_tools.load(tmp_path, [pair()], **options)
