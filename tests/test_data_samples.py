"""Judged samples as data: their token ids go through the chain as they were sampled, and no text is tokenised."""

import json
import math

import data_tools
import pytest
from data_tools import make_tokenizer

from slpojax import samples, vocabulary

EOS = 0
TOKENIZER = make_tokenizer(bos=True)


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def judged(*answers, prompt="Go on", scores=None, **changes):
    """A judgement of answers, each a text that ended with EOS, or (ids, text, finished)."""
    parts = [(ids_of(a) + [EOS], a, True) if isinstance(a, str) else a for a in answers]
    made = samples.Judged(
        prompt_id=0,
        prompt=prompt,
        prompt_ids=[1, *ids_of(prompt)],
        outputs=[text for _, text, _ in parts],
        ids=[list(ids) for ids, _, _ in parts],
        logps=[[-1.0] * len(ids) for ids, _, _ in parts],
        finished=[finished for *_, finished in parts],
        temperatures=[1.0] * len(parts),
        scores=None if "skipped" in changes else scores or [float(-k) for k in range(len(parts))],
        duels=None,
        judge="gold",
        skipped="",
        models="ab",
    )
    return samples.as_record(made._replace(**changes))


@pytest.fixture
def load(tmp_path):
    def run(*records, **options):
        return data_tools.load(tmp_path, records, **{"tokenizer": TOKENIZER, "format": "samples"} | options)

    return run


def test_ids_are_taken_as_they_were_sampled_best_first(load):
    stored, summary = load(judged(" yes", " no", " well", scores=[0.0, 2.0, 1.0]), candidates=3)
    example = stored[0]
    assert example.prompt.tolist() == [1, *ids_of("Go on")], "BOS is not doubled"
    assert [r.tolist() for r in example.responses] == [[*ids_of(a), EOS] for a in (" no", " well", " yes")]
    assert example.score == (2.0, 1.0, 0.0) and not summary.dropped and not summary.unread
    assert "as they were sampled" in summary.special


def test_ids_that_the_tokenizer_would_never_write_stay(tmp_path):
    """A policy may sample "ab" as two tokens where the tokenizer has one for it."""
    import tokenizers
    import transformers

    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={"<eos>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")])
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    assert tokenizer("ab")["input_ids"] == [3]
    record = judged(([1, 2, EOS], "ab", True), ([2, EOS], "b", True), prompt="a", prompt_ids=[1])
    stored, _ = data_tools.load(tmp_path, [record], tokenizer=tokenizer, format="samples")
    assert stored[0].responses[0].tolist() == [1, 2, EOS]


def test_eos_stands_only_where_an_answer_ended_by_itself(load):
    cut, stopped = (ids_of(" on and"), " on and", False), (ids_of(" stop"), " stop", True)
    stored, summary = load(judged(" yes", cut, stopped), candidates=3)
    ends = [response[-1] == EOS for response in stored[0].responses]
    assert ends == [True, False, True] and len(stored[0].responses[2]) == len(stopped[0]) + 1
    assert {name: count.times for name, count in summary.noted.items()} == {
        "answer that was cut while it was sampled (no EOS)": 1,
        "answer that a stop string ended, closed by EOS": 1,
    }


def test_what_gives_no_example_is_counted_by_its_reason(load):
    good = judged(" yes", " no")
    records = [
        good,
        judged(" yes", " no", skipped="the server answered 500"),
        judged(" yes", " yes", " yes"),
        judged("", " no"),
        judged(" yes", " no", scores=[1.0, 1.0]),
        judged(" yes"),
        judged(([*ids_of(" a"), EOS, *ids_of(" b"), EOS], " a b", True), " no"),
    ]
    stored, summary = load(*records)
    assert len(stored) == 1
    assert {name: count.rows for name, count in summary.dropped.items()} == {
        "skipped by the judge: the server answered 500": (1,),
        "samples are all alike": (2,),
        "empty response": (3,),
        "all candidates ranked equal": (4,),
        "fewer responses than data.candidates": (5,),
        "EOS inside the sampled ids": (6,),
    }
    with pytest.raises(ValueError, match="samples are all alike .rows 0.*generate.temperature"):
        load(records[2])
    assert len(load(judged(" yes", " yes"), judged(" so"), candidates=1)[0]) == 2  # the best of each, for SFT


def test_answers_in_the_order_in_which_they_were_sampled_are_all_there(load):
    in_order = {"format": "samples_in_order"}
    stored, _ = load(judged(" yes", " no", " well", scores=[0.0, 2.0, 1.0]), **in_order)
    assert [r.tolist() for r in stored[0].responses] == [[*ids_of(a), EOS] for a in (" yes", " no")]
    assert stored[0].score == (0.0, 2.0)
    records = [
        judged(([EOS], "", True), " no"),  # nothing said is an answer, too
        judged(" yes", " yes", scores=[1.0, 1.0]),
        judged(" yes", " no", scores=[1.0, 1.0]),
        judged(" yes", " no", skipped="the server answered 500"),
    ]
    stored, summary = load(*records, **in_order)
    assert [example.row for example in stored] == [0, 1, 2] and stored[0].responses[0].tolist() == [EOS]
    assert {name: count.rows for name, count in summary.dropped.items()} == {
        "skipped by the judge: the server answered 500": (3,)
    }
    with pytest.raises(ValueError, match=r"data.pairs takes the first candidate for the best, .* data.format=samples,"):
        load(*records, **in_order, pairs="best", candidates=3)


def test_scores_become_quantiles_among_the_answers_and_all_are_there(load):
    answers, scores = [" yes", " no", " well", " no"], [0.5, 2.0, -1.0, 2.0]
    (example,), _ = load(judged(*answers, scores=scores), format="samples_quantiles", candidates=4)
    assert [r.tolist() for r in example.responses] == [[*ids_of(a), EOS] for a in answers]
    assert example.score == (0.5, 1.0, 0.25, 1.0)


def test_scores_and_duels_become_probabilities_to_beat_the_last_answer(load):
    def won(*answers, candidates=2, **changes):
        (example,), _ = load(judged(*answers, **changes), format="samples_versus_last", candidates=candidates)
        return pytest.approx(example.score, abs=1e-6)

    three = [" yes", " no", " well"]
    e = math.e
    assert won(*three, scores=[0.0, 2.0, 1.0], candidates=3) == (1 / (1 + e), e / (1 + e), 0.5)
    assert won(" yes", " no", scores=[1.0, -1.0], duels=[(0, 1, 0.9)]) == (0.9, 0.5)
    assert won(" yes", " no", scores=[1.0, -1.0], duels=[(1, 0, 0.9)]) == (0.1, 0.5)
    duels = {"scores": [0.0, 3.0, 1.0], "duels": [(0, 1, 0.0), (1, 2, 1.0)]}  # 0 and 2 did not meet
    assert won(*three, **duels, candidates=3) == (1 / (1 + e), 1.0, 0.5)
    # Nobody asks a judge that compares about answers that are all alike.
    assert won(" yes", " yes", skipped="answers that are all alike", candidates=1) == (0.5,)
    with pytest.raises(ValueError, match="skipped by the judge: the server answered 500"):
        won(" yes", " no", skipped="the server answered 500")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pairs": "best"}, [("a", "b"), ("a", "c"), ("a", "d")]),
        ({"pairs": "all"}, [("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")]),
        ({"pairs": "best", "accept": 2, "accept_beta": 1e-3}, [("a", "b")]),
        ({}, [("a", "b", "c", "d")]),
        ({"candidates": 2}, [("a", "b")]),
        ({"unpair": True, "candidates": 2}, [("a",), ("b",)]),
    ],
    ids=str,
)
def test_the_transforms_are_those_of_texts(load, options, expected):
    """The same answers as ranked texts give the same examples, ids and scores."""
    scores = [3.0, 2.0, 2.0, 1.0]
    answers = [" a", " b", " c", " d"]
    options = {"candidates": 4, "seed": 3} | options
    stored, _ = load(judged(*answers, scores=scores), **options)
    texts = ["".join(t.strip().removesuffix("<eos>") for t in data_tools.decoded(e, TOKENIZER)[1:]) for e in stored]
    if "accept" not in options:
        assert texts == ["".join(e) for e in expected]
    ranked = {
        "messages": [{"role": "user", "content": "Go on"}],
        "responses": [{"text": a[1:], "rank": k, "score": s} for k, (a, s) in enumerate(zip(answers, scores))],
    }
    as_text, _ = load(ranked, **options, format="ranked", chat_template="dialogue")
    assert [e.score for e in as_text] == [e.score for e in stored]
    assert [[r.tolist() for r in e.responses] for e in as_text] == [[r.tolist() for r in e.responses] for e in stored]


def test_limits_on_length_hold_for_ids(load):
    long = judged(" yes" * 3, " no", prompt="a" * 30)
    with pytest.raises(ValueError, match="longer than data.max_length"):
        load(long, max_length=20, max_prompt_length=5, too_long="drop")
    stored, summary = load(long, max_length=20, max_prompt_length=5)
    assert len(stored[0].prompt) == 20 - 13 and stored[0].prompt[0] == 1  # BOS stays
    stored, summary = load(long, max_length=20, max_prompt_length=10, too_long="cut_response")
    assert len(stored[0].responses[0]) == 10 and "response cut (no EOS)" in summary.noted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": [[5, -1], [5]]}, "'ids' is not token ids"),
        ({"prompt_ids": []}, "'prompt_ids' is not one token id or more"),
        ({"scores": [1.0, float("nan")]}, "'scores' is not a finite number"),
        ({"scores": [1.0]}, "1 'scores' of 2 'outputs'"),
        ({"logps": [[-1.0], [-1.0]]}, "answer 0 has 1 'logps' of 5 'ids'"),
    ],
)
def test_a_bad_record_is_refused_by_file_line_and_key(tmp_path, changes, words):
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(judged(" yes", " no") | more) + "\n" for more in ({}, changes)))
    with pytest.raises(ValueError, match=rf"row 1 \(.*judged\.jsonl, line 2\).*{words}") as error:
        data_tools.load_path(path, tokenizer=TOKENIZER, format="samples")
    assert "Go on" not in str(error.value)


def test_ids_of_another_tokenizer_are_refused(load):
    records = [judged(f" yes {n}", " no") for n in range(8)]
    assert len(load(*records)[0]) == 8
    shifted = [record | {"ids": [[i + 1 for i in ids] for ids in record["ids"]]} for record in records]
    with pytest.raises(ValueError, match="16 of 16 answers are not what this tokenizer makes of their ids"):
        load(*shifted)


def test_an_id_beyond_the_model_is_refused_with_its_row(load):
    stored, _ = load(judged(" yes", " no"), judged(([5, 400, EOS], "?", True), " no"))
    with pytest.raises(ValueError, match="row 1: token id 400, but the model .* knows 300"):
        vocabulary.require_ids({"train": stored}, 300, key="model.path", tokenizer=TOKENIZER)
