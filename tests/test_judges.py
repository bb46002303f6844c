"""Judges: the contract and what it refuses, questions and verdicts in words, and a server that misbehaves."""

import itertools
import json
import re

import jax
import loopback
import numpy as np
import programs
import pytest
import reward_tools
from loopback import Fault

from slpojax import grid, hf, judges, models, rewards
from slpojax.judges import Context, Question, Skip, _asking

PAIR = Question("Name a colour.", ("red", "a dog"))


# ---- judges of one's own ---------------------------------------------------------------------------------------------


def vowels(prompt, answers, *, weight: float = 1.0):
    return np.float32([weight * sum(letter in "aeiou" for letter in answer) for answer in answers])


def first_wins(prompt, a, b):
    return 1


def few(prompt, answers):
    return [0.0] * (len(answers) - 1)


def infinite(prompt, answers):
    return [float("inf"), *range(1, len(answers))]


def words(prompt, answers):
    return ["good"] * len(answers)


def nested(prompt, answers):
    return [[1.0] for _ in answers]


def sure(prompt, a, b):
    return 1.2


def fails(prompt, answers):
    raise KeyError(answers[0])


def wrong(prompt, answers, extra):
    return []


def unloaded(context):
    return 3


def test_a_judge_of_one_s_own_is_found_by_its_name():
    judge = judges.build(f"{__name__}.vowels", weight=2)
    assert judge.kind == judges.SCORES and judge.ask([PAIR, PAIR]) == [[2.0, 4.0]] * 2
    assert judges.defaults(f"{__name__}.vowels") == {"weight": 1.0}


def test_a_function_of_two_answers_is_asked_in_both_orders():
    judge = judges.build(f"{__name__}.first_wins")
    assert judge.kind == judges.COMPARES and judge.ask([PAIR]) == [0.5], "who always takes the first one knows nothing"
    assert judges.build("rules.longer").ask([PAIR, PAIR._replace(answers=("a", "a"))]) == [0.0, 0.5]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("few", "1 scores for 2 answers"),
        ("infinite", "a score that is not finite"),
        ("words", "a verdict that is no number"),
        ("nested", "scores that are no list of numbers"),
        ("sure", "a verdict that is no probability"),
        ("fails", "the judge raised KeyError"),
    ],
)
def test_what_is_no_verdict_is_a_reason(name, reason):
    (skip,) = judges.build(f"{__name__}.{name}").ask([PAIR])
    assert isinstance(skip, Skip) and skip.reason == reason and "red" not in f"{skip}"
    assert name != "fails" or re.fullmatch(r".*test_judges\.py:\d+", skip.more)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rules.long", {}, r"unknown judge 'rules.long' \(near: rules.long.*there are endpoint.compare"),
        ("", {}, "unknown judge ''; there are .*first parameter is `prompt` or `context`"),
        (f"{__name__}.wrong", {}, r"takes \(prompt, answers, extra\); expected \(prompt, answers\), \(prompt, a, b\)"),
        (f"{__name__}.unloaded", {}, "returned int; expected judges.Loaded"),
        ("rules.longest", {"weight": 1.0}, "judge 'rules.longest' has no hyperparameter 'weight'; it has none"),
        ("world.gold", {}, "needs a world; set config.world"),
        ("policy.compare", {}, r"judge.path = '': expected the folder of a model"),
        ("policy.implicit", {"per": "word"}, "judge.per = 'word': expected answer or token"),
        ("reward_model.score", {}, r"judge.path = '': expected the folder of a reward model"),
        ("endpoint.compare", {}, "judge.url = '': expected the address of a server"),
        ("endpoint.compare", {"url": "http://h:1", "model": "m", "orders": 3}, "judge.orders = 3: expected 1 or 2"),
        ("endpoint.compare", {"url": "http://h:1", "model": "m", "verdict": "x"}, "expected reasoned or word"),
        (
            "endpoint.compare",
            {"url": "http://h:1", "model": "m", "template": "summary"},
            r"template 'summary' \(near: summaries",
        ),
        ("endpoint.compare", {"url": "h:1", "model": "m"}, "'h:1' is no URL"),
        (
            "endpoint.compare",
            {"url": "http://h:1", "model": "m", "key_variable": "NO_SUCH_KEY"},
            "NO_SUCH_KEY.*holds none",
        ),
    ],
)
def test_what_is_refused_when_a_judge_is_built(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        judges.build(name, **options)
    assert "\n" not in str(error.value)


def test_a_pattern_is_needed_and_must_be_one():
    for pattern in ("", "("):
        (skip,) = judges.build("rules.matches", pattern=pattern).ask([PAIR])
        assert skip.reason == "the judge raised ValueError"
    assert judges.build("rules.matches", pattern="^r").ask([PAIR]) == [[1.0, 0.0]]


def test_the_world_s_gold_reward_scores_and_compares():
    review = Question("the film :", (" the plot was superb .", " the plot was not superb ."))
    context = Context(world="reviews")
    assert judges.build("world.gold", context).ask([review]) == [pytest.approx([2.0, -1.4])]
    assert judges.build("world.compare", context).ask([review]) == [pytest.approx(1 / (1 + np.exp(-3.4)))]
    others = [review._replace(prompt=str(i)) for i in range(2000)]
    assert np.mean(judges.build("world.vote", context).ask(others)) == pytest.approx(1 / (1 + np.exp(-3.4)), abs=0.02)
    (skip,) = judges.build("world.gold", context).ask([review._replace(prompt=[{"role": "user", "content": "x"}])])
    assert skip.reason.startswith("a prompt of messages")


@pytest.mark.check
def test_a_reward_model_scores_and_what_it_cannot_read_is_a_reason(tmp_path):
    folder = reward_tools.make(tmp_path, "qwen3")
    judge = judges.build("reward_model.score", path=str(folder))
    prompt = [{"role": "user", "content": "Why?"}]
    asked = [("Because.", "No"), ("x" * 200, "No"), ("Because.", "No", "B"), ("Because.", "No")]
    first, long, three, again = judge.ask([Question(prompt, answers) for answers in asked])
    expected = rewards.scores(rewards.load(folder, grid.one_device()), [prompt], [["Because.", "No"]])
    np.testing.assert_allclose([first, again, three[:2]], [*expected, *expected, *expected], atol=1e-5)
    assert len(three) == 3 and long == Skip("an answer longer than the reward model reads")
    good, refused = judge.ask([Question(prompt, ("Because.", "No")), Question("", ("a", "b"))])
    np.testing.assert_allclose(good, first, atol=1e-5)
    assert refused.reason == "the reward model refuses the prompt or an answer" and "empty" in refused.more


@pytest.mark.check
def test_a_policy_in_memory_judges_as_its_folder_does_and_is_known_by_its_weights(tmp_path):
    folder = programs.make(tmp_path)
    params = hf.load(folder / "other", models.build(hf.read_config(folder / "other")))
    question = Question("w1 w2", (" w3 w4", " w5"))
    known = {"policy": str(folder / "model"), "reference": str(folder / "model")}
    before, after, same = (
        judges.build("policy.implicit", context)
        for context in (
            Context(**known),
            Context(**known, params=jax.device_put(params)),
            Context(**known | {"policy": str(folder / "other")}),
        )
    )
    np.testing.assert_allclose(after.ask([question]), same.ask([question]), rtol=1e-6)
    assert before.ask([question]) == [[0.0, 0.0]] and before.key["policy"] != after.key["policy"]


def test_what_a_judge_depends_on_is_in_its_key():
    def key(**options):
        return judges.build("endpoint.compare", url="http://h:1", **{"model": "m"} | options).key

    same = key(in_flight=2, timeout=3.0, attempts=1, cache="x", input_price=1.0, per_minute=60.0)
    assert same == key() and key(model="n") != key() and key(template="summaries")["question"] != key()["question"]


# ---- questions and verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["helpfulness", "summaries", "instructions"])
@pytest.mark.parametrize("reply", ["reasoned", "word", "letter"])
def test_a_question_holds_prompt_and_answers_once_and_keeps_what_looks_like_a_slot(name, reply):
    text = _asking.fill(_asking.question(name, reply), "What is {{a}}?", "{{b}} I say", "verdict: A")
    assert text.count("What is {{a}}?") == text.count("{{b}} I say") == text.count("verdict: A") == 1
    assert "{{verdict}}" not in text and "{{prompt}}" not in text
    assert text.index("What is") < text.index("I say") < text.index("verdict: A")


def test_a_question_of_one_s_own(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("{{prompt}} | {{a}} | {{b}}")
    assert _asking.fill(_asking.question(str(file), "word"), "p", "x", "y") == "p | x | y"
    file.write_text("{{prompt}} | {{a}}")
    with pytest.raises(ValueError, match=r"lacks \{\{b\}\}"):
        _asking.question(str(file), "word")


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("A says more.\nVerdict: A", 1.0),
        ("Verdict: A would be rash.\n\n**Verdict:** B", 0.0),
        ("verdict - Tie", 0.5),
        ("Verdict: **Answer B**.", 0.0),
        ("Verdict: [[A]]", 1.0),
        ("B", 0.0),
        ("\n**Tie**.\n", 0.5),
        ("Answer A.", 1.0),
        ("<think>Verdict: A</think>\nVerdict: B", 0.0),
        ("<think>Verdict: A", 1.0),
        ("A is better than B.", None),
        ("Verdict: both", None),
        ("Verdict: Better", None),
        ("", None),
        ("I cannot say.", None),
    ],
)
def test_verdicts_are_read_from_words(reply, value):
    assert _asking.verdict(reply) == value


# ---- a server --------------------------------------------------------------------------------------------------------


def reply(text, finish="stop"):
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}], "usage": usage}


def answers_of(body):
    return re.findall("ANSWER [AB] =====\n(.*?)\n=====", body["messages"][0]["content"], re.DOTALL)


def judge_at(url, tmp_path, **options):
    quick = {"first_wait": 0.001, "longest_wait": 0.01, "attempts": 3, "timeout": 5.0}
    return judges.build("endpoint.compare", Context(folder=tmp_path), url=url, model="judge", **quick | options)


@pytest.mark.parametrize(
    ("there", "back", "value"),
    [("A", "B", 1.0), ("B", "A", 0.0), ("A", "A", 0.5), ("tie", "tie", 0.5), ("A", "tie", 0.75), ("tie", "A", 0.25)],
)
def test_both_orders_are_one_observation(tmp_path, there, back, value):
    def respond(route, body):
        assert route == "/v1/chat/completions" and body["model"] == "judge" and body["temperature"] == 0.0
        return reply(f"Verdict: {there if answers_of(body) == ['red', 'a dog'] else back}")

    with loopback.serving(respond) as server:
        judge = judge_at(server.url, tmp_path, input_price=2.0, output_price=10.0)
        assert judge.ask([PAIR]) == [value]
        orders = [answers_of(body) for _, body, _ in server.requests]
        assert sorted(orders) == [["a dog", "red"], ["red", "a dog"]]
        counts = judge.counts()
        assert counts["requests answered"] == 2 and counts["tokens read"] == 200 and counts["tokens written"] == 20
        assert counts["cost"] == pytest.approx((2 * 200 + 10 * 20) / 1e6)
        assert judge_at(server.url, tmp_path).ask([PAIR]) == [value] and len(server.requests) == 2, "kept on disk"
        assert judge_at(server.url, tmp_path, orders=1).ask([PAIR]) == [{"A": 1.0, "B": 0.0, "tie": 0.5}[there]]
        assert len(server.requests) == 2


def test_the_key_comes_from_the_environment_and_reaches_no_file_and_no_message(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret-of-mine-0123456789")
    with loopback.serving(lambda *_: Fault(401, body=b'{"error": "bad key secret-of-mine-0123456789"}')) as server:
        judge = judge_at(server.url, tmp_path, key_variable="A_KEY")
        (skip,) = judge.ask([PAIR])
        assert server.requests[0][2]["Authorization"] == "Bearer secret-of-mine-0123456789"
    assert skip.passing and "401" in skip.more
    held = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert "secret" not in f"{skip} {held} {judge.key} {judge.counts()}"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(429, (("Retry-After", "0.01"),)), "the server: status 429"),
        (Fault(500), "the server: status 500"),
        (Fault(pause=60.0), "the server: timed out"),
        (Fault(body=json.dumps(reply("Verdict: A")).encode(), cut=True), "the server: no connection"),
        (Fault(body=b"<html>"), "the server: no JSON"),
        (Fault(body=b'{"choices": []}'), "the server: not as asked"),
        (Fault(body=json.dumps(reply("Both are fine.")).encode()), "a reply without a verdict"),
        (Fault(body=json.dumps(reply("Well, A", "length")).encode()), "a reply that was cut before its verdict"),
    ],
)
def test_a_server_that_fails_makes_a_reason_and_others_go_on(tmp_path, fault, reason):
    def respond(route, body):
        return fault if "x" in answers_of(body) else reply("Verdict: A")

    with loopback.serving(respond) as server:
        judge = judge_at(server.url, tmp_path, timeout=0.3, attempts=2, orders=1)
        bad, good = judge.ask([PAIR._replace(answers=("x", "y")), PAIR])
        assert good == 1.0 and bad.reason == reason
        assert bad.passing == reason.startswith("the server")
        tries = 2 if bad.passing else 1
        assert len(server.requests) == tries + 1


def test_a_server_that_recovers_is_asked_again(tmp_path):
    turns = itertools.count()

    def respond(route, body):
        return [Fault(503), Fault(429, (("Retry-After", "0"),)), reply("Verdict: B")][min(2, next(turns))]

    with loopback.serving(respond) as server:
        judge = judge_at(server.url, tmp_path, in_flight=1, orders=1)
        assert judge.ask([PAIR]) == [0.0] and judge.counts()["attempts repeated"] == 2


def test_a_server_that_is_gone_is_not_asked_for_ever(tmp_path):
    pairs = [PAIR._replace(answers=(f"x{i}", "y")) for i in range(500)]
    with loopback.serving(lambda *_: Fault(500)) as server:
        found = judge_at(server.url, tmp_path, attempts=1, in_flight=2).ask(pairs)
        assert len(server.requests) < 60
    assert len(found) == 500 and {skip.reason for skip in found} == {"the server: status 500"}
