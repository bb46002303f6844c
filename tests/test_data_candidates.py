"""Which responses stand beside the best, which are absent, and what labels and mismatched responses examples get."""

import collections
import functools
import itertools
import math

import data_tools
import numpy as np
import pytest
from data_tools import decoded, pair

from slpojax import data
from slpojax.data import formats, pairing, report

FEWER = "fewer responses than data.candidates"
EQUAL = "all candidates ranked equal"


@pytest.fixture
def load(tmp_path):
    return functools.partial(data_tools.load, tmp_path)


@pytest.fixture
def load_ranked(load):
    """Load rankings, each a list of (text, score), best first."""

    def run(*rankings, **options):
        records = [
            {
                "messages": [{"role": "user", "content": f"{i}?"}],
                "responses": [{"text": text, "rank": k, "score": score} for k, (text, score) in enumerate(ranking)],
            }
            for i, ranking in enumerate(rankings)
        ]
        return load(records, **{"format": "ranked", "chat_template": "dialogue"} | options)

    return run


def answers(stored):
    """The responses of every example, without the blank before and EOS behind; "" where one is absent."""
    return [[text.removeprefix(" ").removesuffix("<eos>") for text in decoded(example)[1:]] for example in stored]


def counts(summary):
    return {name: count.rows for name, count in (summary.dropped | summary.noted).items()}


def test_a_record_with_two_responses_is_kept_and_the_others_are_absent(load_ranked):
    stored, summary = load_ranked([("a", 3), ("b", 2), ("c", 1)], [("a", 3), ("b", 2)], [("a", 3)], candidates=3)
    assert answers(stored) == [["a", "b", "c"], ["a", "b", ""]]
    assert stored.lengths.response.tolist() == [[3, 3, 3], [3, 3, 0]]
    assert stored[1].score == (3.0, 2.0, 0.0)
    assert summary.dropped[FEWER].rows == (2,) and summary.noted[FEWER].rows == (1,)


def test_a_format_of_one_candidate_asked_for_two_gives_none(load):
    with pytest.raises(ValueError, match=f"no usable record of 1: 1 {FEWER} .rows 0.*Set data.candidates=1"):
        load([{"prompt": "a", "response": "b"}], format="prompt_response", candidates=2)


def test_what_is_ranked_equal_to_the_best_is_no_negative(load_ranked):
    rankings = [("a", 3), ("b", 3), ("c", 1), ("d", 1)], [("a", 3), ("b", 3)], [("a", 3), ("b", 2)]
    stored, summary = load_ranked(*rankings, candidates=3)
    assert answers(stored) == [["a", "c", "d"], ["a", "b", ""]]
    assert counts(summary) == {EQUAL: (1,), "candidate ranked equal to the best left out": (0,), FEWER: (2,)}
    # The next candidate takes the place of one that is left out, so that pairs lose none.
    assert answers(load_ranked(*rankings, candidates=2)[0]) == [["a", "c"], ["a", "b"]]


def test_ties_are_kept_for_objectives_that_read_scores(load_ranked):
    stored, summary = load_ranked([("a", 3), ("b", 3), ("c", 1)], [("a", 3), ("b", 3)], candidates=3, ties="keep")
    assert answers(stored) == [["a", "b", "c"]] and stored[0].score == (3.0, 3.0, 1.0)
    assert counts(summary) == {EQUAL: (1,)}


def test_an_empty_response_drops_the_record_only_where_nothing_is_left_to_compare(load_ranked):
    stored, summary = load_ranked(
        [("a", 3), (" ", 2), ("c", 1)], [("", 3), ("b", 2), ("c", 1)], [("a", 3), ("", 2)], candidates=3
    )
    assert answers(stored) == [["a", "c", ""]] and stored[0].score == (3.0, 1.0, 0.0)
    assert counts(summary) == {"empty response": (1, 2), "empty response left out": (0,), FEWER: (0,)}


def test_a_response_with_the_tokens_of_the_best_is_left_out(load_ranked):
    stored, summary = load_ranked([("a", 3), ("a", 2), ("b", 1)], [("a", 3), ("a", 2)], candidates=3)
    assert answers(stored) == [["a", "b", ""]] and stored[0].score == (3.0, 1.0, 0.0)
    assert counts(summary) == {
        "identical responses": (1,),
        "response identical to the best left out": (0,),
        FEWER: (0,),
    }


def test_rows_of_one_prompt_become_candidates(load):
    rows = [("p", "a", 1), ("p", "b", 4), ("q", "c", 2), ("q", "d", 2), ("r", "e", 0), ("s", "f", 3), ("s", "g", 2)]
    records = [{"prompt": p, "response": r, "helpfulness": h, "verbosity": 0} for p, r, h in rows]
    stored, summary = load(records, format="helpsteer", chat_template="dialogue")
    assert answers(stored) == [["b", "a"], ["f", "g"]]
    assert stored.row.tolist() == [0, 5] and summary.read == 7
    joined = "row joined with the one before it, which has the same prompt"
    assert counts(summary) == {EQUAL: (2,), FEWER: (4,), joined: (0, 5)}  # what is dropped is not noted


def test_the_scores_of_a_pair_do_not_undo_its_order(load):
    pairs = [
        pair(str(i)) | {"score_chosen": a, "score_rejected": b} for i, (a, b) in enumerate([(2, 1), (1, 1), (0, 3)])
    ]
    stored, summary = load(pairs)
    assert stored.score.tolist() == [[2, 1], [1, 1], [0, 3]]
    assert counts(summary) == {"the chosen response has the lower score": (2,)}
    stored, summary = load([*pairs, pair("a"), pair("b") | {"score_chosen": 1, "score_rejected": None}])
    assert counts(summary)["without scores, which count as 0 beside records that have some"] == (3, 4)
    assert counts(load([pair("a"), pair("b")])[1]) == {}
    with pytest.raises(ValueError, match="no field 'score_chosen"):
        load([pair()], format="bradley_terry")


RANKED = [("a", 4), ("b", 4), ("c", 2), ("d", 1)], [("e", 2), ("f", 1)], [("g", 3), ("h", 2), ("i", 2)]


def made(stored):
    return ["".join(texts) for texts in answers(stored)]


def test_without_pairs_two_candidates_are_the_best_and_the_next_lower_one(load_ranked):
    assert made(load_ranked(*RANKED, candidates=2)[0]) == ["ac", "ef", "gh"]


def test_pairs_of_ranked_candidates_hold_a_better_one_and_a_worse_one(load_ranked):
    apart, no_pair = "taken apart into pairs", "pair of equally good responses left out"
    stored, summary = load_ranked(*RANKED, [("j", 1), ("k", 1)], [("l", 1)], candidates=4, pairs="all")
    assert made(stored) == ["ac", "ad", "bc", "bd", "cd", "ef", "gh", "gi"]
    assert stored.candidates == 2 and stored[3].score == (4.0, 1.0) and stored.row.tolist() == [0] * 5 + [1] + [2] * 2
    expected = {apart: (0, 1, 2), no_pair: (0, 2), EQUAL: (3,), FEWER: (1, 2)}
    assert counts(summary) == expected | {FEWER: (1, 2)} and summary.dropped[FEWER].rows == (4,)
    stored, summary = load_ranked(*RANKED, candidates=4, pairs="best")
    assert made(stored) == ["ac", "ad", "ef", "gh", "gi"] and summary.noted[no_pair].rows == (0,)
    assert made(load_ranked(*RANKED, candidates=4, pairs="extremes")[0]) == ["ad", "ef", "gi"]
    stored, _ = load_ranked(*RANKED, candidates=3, pairs="all")  # of the three best
    assert made(stored) == ["ac", "bc", "ef", "gh", "gi"]
    same, _ = load_ranked([("a", 3), ("b", 2), ("b", 1)], candidates=3, pairs="all")  # the same tokens are no pair
    assert made(same) == ["ab", "ab"]


def test_a_pair_whose_record_states_the_order_stays_one(load):
    stored, _ = load([pair(), pair() | {"score_chosen": 1, "score_rejected": 1}], candidates=3, pairs="all")
    assert len(stored) == 2


def test_random_pairs_are_disjoint_and_depend_on_the_seed_and_the_row_alone(load_ranked):
    rankings = [[(f"{i}{letter}", -k) for k, letter in enumerate("abcdefgh")] for i in range(20)]
    options = {"candidates": 8, "pairs": "random"}
    stored, _ = load_ranked(*rankings, **options, seed=3)
    texts = answers(stored)
    assert all(one < other for one, other in texts)  # the better one first
    assert sorted(sum(texts[:4], [])) == [f"0{letter}" for letter in "abcdefgh"]
    assert answers(load_ranked(*rankings, **options, seed=3)[0]) == texts
    assert answers(load_ranked(*rankings, **options, seed=4)[0]) != texts
    assert answers(load_ranked(*rankings, **options, seed=3, rows="5:7")[0]) == texts[20:28]


def chances(score, count, beta):
    """Probability of every set that Algorithm 1 of RSO accepts of candidates asked in random order: by enumeration."""
    total = collections.Counter()

    def go_on(left, accepted, chance):
        if len(accepted) == count:
            total[frozenset(accepted)] += chance
            return
        largest = max(score[i] for i in left)

        def ask(place, taken, chance):
            if len(accepted) + len(taken) == count or place == len(left):
                go_on([i for i in left if i not in taken], accepted + taken, chance)
                return
            p = math.exp((score[left[place]] - largest) / beta)
            ask(place + 1, [*taken, left[place]], chance * p)
            if p < 1:
                ask(place + 1, taken, chance * (1 - p))

        ask(0, [], chance)

    orders = list(itertools.permutations(range(len(score))))
    for order in orders:
        go_on(list(order), [], 1 / len(orders))
    return total


@pytest.mark.parametrize(("count", "beta"), [(1, 0.5), (2, 0.5), (2, 5.0), (3, 1.0)])
def test_rejection_sampling_accepts_with_the_probabilities_of_its_definition(count, beta):
    score = np.array([0.4, 0.0, 0.9, 0.7])
    expected = chances(score, count, beta)
    assert sum(expected.values()) == pytest.approx(1)
    rng, draws = np.random.default_rng(0), 4000
    seen = collections.Counter(frozenset(pairing.accept(score, count, beta, rng).tolist()) for _ in range(draws))
    assert set(seen) <= set(expected)
    chi_square = sum((seen[drawn] - draws * p) ** 2 / (draws * p) for drawn, p in expected.items())
    assert chi_square < 20  # of at most 5 degrees of freedom: passed by chance in 1 of 800 at most


def test_the_temperature_of_rejection_sampling_goes_from_the_best_to_any():
    score, rng = np.arange(6.0), np.random.default_rng(0)
    assert set(pairing.accept(score, 3, 1e-9, rng).tolist()) == {3, 4, 5}
    assert set(pairing.accept(score, 9, 1.0, rng).tolist()) == set(range(6))  # there are no more
    warm = np.bincount(np.concatenate([pairing.accept(score, 3, 1e9, rng) for _ in range(2000)]))
    np.testing.assert_allclose(warm, 1000, atol=100)


def test_samples_that_were_accepted_become_pairs(load_ranked, load):
    rankings = [[(f"{i}{letter}", -k) for k, letter in enumerate("abcdefgh")] for i in range(20)]
    options = {"candidates": 8, "pairs": "random", "accept": 4, "seed": 1}
    stored, _ = load_ranked(*rankings, **options)
    assert len(stored) == 40 and stored.take(range(6)).digest() == load_ranked(*rankings[:3], **options)[0].digest()
    cold, _ = load_ranked(*rankings, **options, accept_beta=1e-9)
    assert sorted(sum(answers(cold)[:2], [])) == ["0a", "0b", "0c", "0d"] and made(stored) != made(cold)
    with pytest.raises(ValueError, match="data.accept reads scores, which .* does not give"):
        load([pair()], candidates=3, pairs="all", accept=2)


LABELLED = [{"prompt": f"{i}:", "completion": f" {i}", "label": i % 3 == 0} for i in range(5)]


def test_labels_come_from_the_record(load):
    stored, summary = load(LABELLED, format="unpaired", candidates=1)
    assert stored.labelled and stored.label.tolist() == [1, 0, 0, 1, 0]
    assert stored[3].label == 1.0 and summary.labels == (2, 3, 0)
    assert "2 desirable, 3 undesirable" in report.render(summary)
    assert report.as_dict(summary)["data/labels/undesirable"] == 3
    taken = stored.take([4, 0])
    assert taken.labelled and taken.label.tolist() == [0, 1]
    other, _ = load([LABELLED[0] | {"label": False}, *LABELLED[1:]], format="unpaired", candidates=1)
    assert stored.digest() != other.digest()


def sometimes(record):
    """A parser that labels only what says so."""
    parsed = formats.prompt_response(record)
    return parsed._replace(label=1.0) if record["label"] else parsed


def test_labels_for_some_records_alone_are_an_error(load):
    with pytest.raises(ValueError, match="only some of the records have a label"):
        load(LABELLED, format="test_data_candidates.sometimes", candidates=1)


def test_pairs_have_no_labels(load):
    stored, summary = load([pair()])
    assert not stored.labelled and stored.label.tolist() == [1.0] and summary.labels is None
    assert "desirable" not in report.render(summary)


def test_pairs_are_taken_apart_into_labelled_responses(load):
    stored, summary = load([pair("a"), pair("b", rejected=""), pair("c", chosen=" c")], unpair=True)
    assert [decoded(example) for example in stored] == [
        ["a", " yes<eos>"],
        ["a", " no<eos>"],
        ["c", " c<eos>"],
        ["c", " no<eos>"],
    ]
    assert stored.labelled and stored.candidates == 1 and stored.label.tolist() == [1, 0, 1, 0]
    assert stored.row.tolist() == [0, 0, 2, 2] and summary.labels == (2, 2, 0)
    assert summary.noted["taken apart into labelled responses"].rows == (0, 2)


def test_absent_candidates_are_not_taken_apart(load_ranked):
    stored, _ = load_ranked([("a", 3), ("b", 2), ("c", 1)], [("a", 3), ("b", 2)], candidates=3, unpair=True)
    assert answers(stored) == [["a"], ["b"], ["c"], ["a"], ["b"]]
    assert stored.label.tolist() == [1, 0, 0, 1, 0] and stored.score.ravel().tolist() == [3, 2, 1, 3, 2]


def test_a_mismatched_response_is_the_next_record_s_and_comes_last(load):
    stored, summary = load(LABELLED, format="unpaired", candidates=1, mismatched=True)
    assert stored.candidates == 2 and stored.label.tolist() == [1, 0, 0, 1, 0]
    assert [decoded(example)[1:] for example in stored] == [[f" {i}<eos>", f" {(i + 1) % 5}<eos>"] for i in range(5)]
    assert not stored.score.any() and not summary.noted
    assert list(summary.sizes) == ["prompt", "response", "mismatched"] and summary.candidates == (1.0, 1, 1, 0.0)
    stored, _ = load([pair("a", " A", " x"), pair("b", " B", " y")], mismatched=True)
    assert [decoded(example)[1:] for example in stored] == [
        [" A<eos>", " x<eos>", " B<eos>"],
        [" B<eos>", " y<eos>", " A<eos>"],
    ]


def test_pairs_taken_apart_get_mismatched_responses_of_both_kinds_and_none_of_their_own(load):
    stored, _ = load([pair(f"{i}", f" +{i}", f" -{i}") for i in range(3)], unpair=True, mismatched=True)
    assert [decoded(example)[2] for example in stored] == [f" {s}{i}<eos>" for i in (1, 2, 0) for s in "+-"]


def test_a_mismatched_response_is_cut_to_the_budget(load):
    records = [pair("p" * 30), pair("q", chosen=" " + "y" * 20)]
    stored, summary = load(records, mismatched=True, max_length=40, max_prompt_length=20)
    assert decoded(stored[0])[3] == " " + "y" * 9 and decoded(stored[1])[3] == " yes<eos>"
    assert counts(summary) == {"mismatched response cut (no EOS)": (0,)}


def test_the_report_tells_how_many_candidates_there_are(load_ranked):
    _, summary = load_ranked(
        [("aa", 4), ("bb", 3), ("cc", 2), ("dd", 1)], [("a", 4), ("b", 3)], [("a", 4), ("b", 3), ("c", 2)], candidates=4
    )
    assert summary.candidates == (3.0, 2, 4, 0.25)
    assert "responses 3.00 an example, 2 to 4; 25.0% of the places absent" in report.render(summary)
    assert report.as_dict(summary)["data/candidates/absent"] == 0.25
    assert summary.sizes["candidate 3"] == (3.5, 4, 7)  # of those that are there


@pytest.fixture(scope="module")
def neox(shared_data):
    return data.load_tokenizer(str(shared_data / "tokenizers" / "neox-20b"))


@pytest.mark.parametrize(
    ("name", "options", "kept", "expected"),
    [
        ("qa_feedback_dev", {"candidates": 4}, 488, (12, 106, 81, (2, 4))),
        *(
            pytest.param(*case, marks=pytest.mark.check)
            for case in [
                ("qa_feedback_dev", {"candidates": 4, "ties": "keep"}, 488, (12, 0, 0, (4, 4))),
                ("qa_feedback_dev", {"candidates": 2}, 488, (12, 106, 0, (2, 2))),
                ("alpaca_eval_12", {"candidates": 12, "rows": ":300"}, 298, (0, 5, 6, (7, 12))),
            ]
        ),
    ],
)
def test_real_rankings(shared_data, neox, name, options, kept, expected):
    path = str(shared_data / "ranked" / f"{name}.ranked.jsonl.gz")
    options = {"tokenizer": neox, "format": "ranked", "chat_template": "dialogue", "max_length": 2048} | options
    stored, summary = data_tools.load_path(path, **options)
    times = {name: count.times for name, count in (summary.dropped | summary.noted).items()}
    found = [times.get(name, 0) for name in (EQUAL, "candidate ranked equal to the best left out", FEWER)]
    assert summary.kept == len(stored) == kept and (*found, summary.candidates[1:3]) == expected
    there = stored.lengths.response > 0
    best, others = stored.score[:, :1], stored.score[:, 1:]
    assert there[:, :2].all() and (np.diff(there.astype(int)) <= 0).all()  # what is absent comes last
    assert not stored.score[~there].any()
    if options.get("ties") != "keep":
        assert (others < best)[there[:, 1:]].all()
    assert all(np.diff(row[present]).max() <= 0 for row, present in zip(stored.score, there, strict=True))
