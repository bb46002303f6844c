"""Laws that every judge inherits: what it gives to whom, and that it says the same each time. Found by walking."""

import re

import loopback
import numpy as np
import programs
import pytest
import reward_tools

from slpojax import judges, ranking
from slpojax.judges import Context, Question

PROMPT = "w1 w2"
ANSWERS = (" w3 w4", " w5 w6 w7 w8", "", " w9", " w3 w4 w10")
REVIEWS = ("the film :", (" the plot was superb .", " i never hated it .", "", " the plot was not superb .", " bad ."))


def longer_one(route, body):
    """A server's judge that prefers the longer answer, and of two that are as long the one that stands first."""
    text = body["messages"][0]["content"]
    a, b = (re.search(f"ANSWER {x} =====\n(.*?)\n=====", text, re.DOTALL)[1].strip() for x in "AB")
    word = "A" if len(a) >= len(b) else "B"
    usage = {"prompt_tokens": len(text), "completion_tokens": 2}
    return {"choices": [{"message": {"content": f"Hm.\nVerdict: {word}"}, "finish_reason": "stop"}], "usage": usage}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models of random weights whose tokenizer knows the letters A and B."""
    folder = programs.make(tmp_path_factory.mktemp("judges"))
    for name in ("model", "other"):
        file = folder / name / "tokenizer.json"
        file.write_text(file.read_text().replace('"w28"', '"A"').replace('"w29"', '"B"'))
    (folder / "reward").mkdir()
    reward_tools.make(folder / "reward", "llama")
    return folder


@pytest.fixture(scope="module")
def server():
    with loopback.serving(longer_one) as server:
        yield server


@pytest.fixture(params=judges.names(), scope="module")
def judge(request, folder, server):
    options = {
        "endpoint.compare": {"url": server.url, "model": "judge", "cache": str(folder / "cache")},
        "reward_model.score": {"path": str(folder / "reward")},
        "rules.matches": {"pattern": r"w\d w4"},
    }
    context = Context(policy=str(folder / "model"), reference=str(folder / "other"), world="reviews", folder=folder)
    return judges.build(request.param, context, **options.get(request.param, {}))


def question_of(judge):
    prompt, answers = REVIEWS if judge.name.startswith("world.") else (PROMPT, ANSWERS)
    return Question(prompt, answers)


def ask(judge, question):
    """Scores of a judge that gives them, and of one that compares the matrix of who beats whom."""
    if judge.kind == judges.SCORES:
        return np.array(judge.ask([question])[0])
    k = len(question.answers)
    pairs = [question._replace(answers=(a, b)) for a in question.answers for b in question.answers]
    return np.array(judge.ask(pairs)).reshape(k, k)


def test_it_gives_finite_numbers_and_tells_answers_apart(judge):
    found = ask(judge, question_of(judge))
    k = len(ANSWERS)
    assert found.shape == ((k,) if judge.kind == judges.SCORES else (k, k)) and np.isfinite(found).all()
    assert np.ptp(found) > 0, "this judge says the same of all answers: give the law texts that it tells apart"


def test_another_order_of_the_answers_is_another_order_of_the_verdicts(judge):
    question, order = question_of(judge), [3, 0, 4, 2, 1]
    found = ask(judge, question)
    moved = ask(judge, question._replace(answers=tuple(question.answers[i] for i in order)))
    expected = found[order] if judge.kind == judges.SCORES else found[order][:, order]
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5)


def test_answers_that_are_the_same_tie(judge):
    question = question_of(judge)
    a, b, *_ = question.answers
    found = ask(judge, question._replace(answers=(a, b, a)))
    if judge.kind == judges.SCORES:
        assert found[0] == pytest.approx(found[2], rel=1e-6, abs=1e-6)
    else:
        assert found[0, 2] == found[1, 1] == 0.5
        np.testing.assert_allclose(found[0], found[2], atol=1e-6)


def test_of_two_answers_one_is_better_or_none(judge):
    if judge.kind == judges.COMPARES:
        found = ask(judge, question_of(judge))
        np.testing.assert_allclose(found + found.T, 1.0, atol=1e-6)
        assert (found >= 0).all() and (found <= 1).all()


def test_it_says_the_same_when_asked_again_and_among_other_prompts(judge):
    question = question_of(judge)
    pair = question._replace(answers=question.answers[:2])
    first, other, again = judge.ask([pair, pair._replace(answers=question.answers[2:4]), pair])
    np.testing.assert_allclose(first, judge.ask([pair])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first, again, rtol=1e-5, atol=1e-5)
    assert judge.kind == judges.COMPARES or not np.allclose(first, other)


def test_its_key_is_of_plain_texts_and_changes_with_its_name_alone(judge):
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in judge.key.items())
    assert judge.key["judge"] == judge.name and judge.at_once >= 1 and callable(judge.counts)


def test_a_ranking_of_all_pairs_follows_a_judge_that_compares(judge):
    if judge.kind == judges.COMPARES:
        found = ask(judge, question_of(judge))
        played = [(a, b, found[a, b]) for a in range(len(found)) for b in range(a + 1, len(found))]
        strengths = ranking.strengths(len(found), played)
        assert np.argmax(strengths) == np.argmax(found.sum(axis=1))
