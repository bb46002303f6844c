"""Engines outside of the process, against a small real server that answers as vLLM does, or misbehaves."""

import functools
import json
import math
import pathlib
import time

import data_tools
import jax
import numpy as np
import pytest

from slpojax import bench as benches
from slpojax import defaults, engines, generate, samples, servers, settings
from tests.loopback import Fault, serving
from tests.test_generate import MODEL

MODELS = {"data": [{"id": "policy", "object": "model"}]}
EOS, WORDS = 0, 258
ASKED = engines.Asked((1.0, 1.0), 0, 1.0, 0.0, 6, ())


def answer(prompt, index, temperature, most, stop=()):
    """A draw that follows from the request: (ids, log-probs, finish_reason)."""
    if temperature == 0.0:
        index = 0
    rng = np.random.default_rng([len(prompt), sum(prompt), index, round(temperature * 100)])
    count = int(rng.integers(1, most + 3))
    ids = rng.integers(40, 120, size=min(count, most)).tolist()
    if count <= most:
        ids[-1] = EOS
    return ids, (-rng.random(len(ids))).tolist(), "stop" if count <= most else "length"


def choice(index, ids, logps, reason, **changes):
    tokens = [f"token_id:{number}" for number in ids]
    told = {"tokens": tokens, "token_logprobs": logps, "top_logprobs": [{"x": -0.1}] * len(ids)}
    return {"index": index, "text": "?", "token_ids": ids, "logprobs": told, "finish_reason": reason, **changes}


def vllm(route, body):
    if route == engines.MODELS:
        return MODELS
    choices = [
        choice(k, *answer(body["prompt"], k, body["temperature"], body["max_tokens"]), prompt_token_ids=body["prompt"])
        for k in range(body["n"])
    ]
    return {"choices": choices[::-1], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 5}}


def sometimes(wrong, every=3):
    """A server, each of whose `every`-th answers is wrong."""
    count = [0]

    def respond(route, body):
        good = vllm(route, body)
        if route == engines.MODELS or body["max_tokens"] == 1:
            return good
        count[0] += 1
        return good if count[0] % every else wrong(good, body)

    return respond


def always(wrong):
    return sometimes(wrong, every=1)


def connect(url, prompt=(5, 6), asked=ASKED, **options):
    quick = {"first_wait": 0.002, "longest_wait": 0.01, "timeout": 5.0, "attempts": 4, "in_flight": 4}
    server = servers.connect(url, **quick | options)
    return engines.connect(
        server, model="", vocabulary=WORDS, prompt=prompt, as_text=lambda ids: " ".join(map(str, ids)), asked=asked
    )


def all_answers(engine, count=8, asked=ASKED):
    return list(engines.answers(engine, ((n, [5, 6 + n]) for n in range(count)), asked))


def expected(count=8, asked=ASKED):
    return [
        [
            engines.Completion(ids, logps, reason == "stop")
            for k in range(len(asked.temperatures))
            for ids, logps, reason in [answer([5, 6 + n], k, 1.0, asked.max_new_tokens)]
        ]
        for n in range(count)
    ]


def test_answers_are_those_of_the_server_in_order():
    with serving(vllm) as there:
        assert all_answers(connect(there.url)) == expected()
        bodies = [body for route, body, _ in there.requests if route == engines.ROUTE]
    assert all(body["prompt"][0] == 5 and body["return_token_ids"] and "seed" not in body for body in bodies)
    off = {"top_k": -1, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}  # not what the server has by default
    assert "stop" not in bodies[-1] and {name: bodies[-1][name] for name in off} == off


def test_every_setting_of_the_draw_is_sent_and_each_temperature_asked_for():
    asked = engines.Asked((0.0, 0.0, 0.7, 0.7, 1.0), 5, 0.9, 0.1, 6, ("\n", "##"))
    with serving(vllm) as there:
        [found, _] = all_answers(connect(there.url, asked=asked), 2, asked)
        bodies = [body for route, body, _ in there.requests if route == engines.ROUTE and body["max_tokens"] == 6]
    assert (
        len(found) == 5
        and found[0] == found[1]
        and sorted((b["temperature"], b["n"]) for b in bodies if b["prompt"] == [5, 6])
        == [
            (0.0, 1),
            (0.0, 1),
            (0.7, 2),
            (1.0, 1),
        ]
    )
    assert all((b["top_k"], b["top_p"], b["min_p"], b["stop"]) == (5, 0.9, 0.1, ["\n", "##"]) for b in bodies)


WRONG = {
    "too few choices": lambda good, body: good | {"choices": good["choices"][:1]},
    "no choices": lambda good, body: {"error": "overloaded"},
    "twice the same": lambda good, body: good | {"choices": [good["choices"][0]] * 2},
    "ids beyond the model": lambda good, body: edit(good, token_ids=[999], tokens=1),
    "ids that are none": lambda good, body: edit(good, token_ids=[1.5], tokens=1),
    "NaN": lambda good, body: logps(good, math.nan),
    "above 0": lambda good, body: logps(good, 0.5),
    "null": lambda good, body: logps(good, None),
    "too few log-probs": lambda good, body: edit(good, token_ids=[50] * 5),
    "too long": lambda good, body: edit(good, token_ids=[50] * 9, tokens=9),
    "aborted": lambda good, body: edit(good, finish_reason="abort"),
    "another prompt": lambda good, body: edit(good, prompt_token_ids=[1, 2, 3]),
    "429": lambda good, body: Fault(429, (("Retry-After", "0.01"),)),
    "500": lambda good, body: Fault(500),
    "cut": lambda good, body: Fault(body=json.dumps(good).encode(), cut=True),
    "no JSON": lambda good, body: Fault(body=b"<html>"),
}


def edit(good, tokens=None, **changes):
    first, *rest = good["choices"]
    if tokens:
        changes["logprobs"] = {"tokens": ["a"] * tokens, "token_logprobs": [-1.0] * tokens}
    elif "token_ids" in changes:
        changes["logprobs"] = {"tokens": ["a"], "token_logprobs": [-1.0]}
    return good | {"choices": [first | changes, *rest]}


def logps(good, value):
    return edit(good, logprobs={"tokens": [], "token_logprobs": [value] * len(good["choices"][0]["token_ids"])})


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_now_and_then_is_survived(name):
    with serving(sometimes(WRONG[name])) as there:
        engine = connect(there.url)
        assert all_answers(engine) == expected()
        assert engine.server.counts.repeated >= 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("too few choices", "1 choices, expected 2"),
        ("ids beyond the model", "a token id that the model's 258 do not hold"),
        ("NaN", "a log-prob that is none"),
        ("another prompt", "it read another prompt than it was sent"),
        ("500", "the server answered 500 .4 attempts."),
        ("cut", "the connection failed"),
    ],
)
def test_what_always_goes_wrong_is_named_with_its_prompt(name, words):
    with serving(always(WRONG[name])) as there:
        with pytest.raises(ValueError, match=f"{there.url}/v1/completions: prompt 0: .*{words}.*goes on"):
            all_answers(connect(there.url))


def test_ids_in_place_of_tokens_serve_as_well():
    with serving(lambda r, b: vllm(r, b) if not b else plain(vllm(r, b))) as there:
        assert all_answers(connect(there.url)) == expected()


def plain(good):
    return good | {"choices": [{k: v for k, v in one.items() if k != "token_ids"} for one in good["choices"]]}


def test_a_server_that_takes_texts_alone_gets_texts(capsys):
    def respond(route, body):
        if body and not isinstance(body["prompt"], str):
            return Fault(422)
        return vllm(route, body | {"prompt": [*map(int, body["prompt"].split())]} if body else body)

    with serving(respond) as there:
        assert all_answers(connect(there.url)) == expected()
    assert "takes no token ids" in capsys.readouterr().out


def test_a_server_that_tells_no_log_prob_unless_of_others_too_is_asked_for_them():
    def respond(route, body):
        good = vllm(route, body)
        return edit_all(good, logprobs=None) if body and not body["logprobs"] else good

    with serving(respond) as there:
        engine = connect(there.url)
        assert engine.alternatives == 1 and all_answers(engine) == expected()


def edit_all(good, **changes):
    return good | {"choices": [one | changes for one in good["choices"]]}


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        (lambda r, b: edit_all(plain(vllm(r, b)), logprobs=None) if b else MODELS, "no token ids.*return_token_ids"),
        (lambda r, b: edit_all(vllm(r, b), logprobs=None) if b else MODELS, "no log-probs"),
        (lambda r, b: Fault(404) if b else MODELS, "no such route"),
        (lambda r, b: Fault(400) if b else MODELS, "cannot sample for training: the server answered 400"),
        (lambda r, b: {"data": []}, "serves no model"),
        (lambda r, b: {"data": [{"id": "a"}, {"id": "b"}]}, "serves 'a', 'b'; set generate.engine_model"),
    ],
)
def test_a_server_that_cannot_serve_is_named(respond, words):
    with serving(respond) as there:
        with pytest.raises(ValueError, match=f"{there.url}.*{words}"):
            connect(there.url)


def test_log_probs_behind_the_temperature_are_refused_where_there_is_one():
    def respond(route, body):
        good = vllm(route, body)
        return tempered(good, body["temperature"]) if body else good

    def tempered(good, temperature):
        for one in good["choices"]:
            one["logprobs"]["top_logprobs"] = [{"x": -1.0 / temperature}] * len(one["token_ids"])
        return good

    with serving(respond) as there:
        connect(there.url)
        with pytest.raises(ValueError, match="log-probs change with the temperature .*-1.000 nats at 1, -0.500 at 2"):
            connect(there.url, asked=ASKED._replace(temperatures=(0.7,)))


# ---- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A model of which only config.json and the tokenizer are read."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = data_tools.make_tokenizer(bos=True)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(MODEL | {"vocab_size": len(tokenizer)}))
    return benches.make(config_of(folder, "", "", **{"model.weights": "random"}), devices=jax.devices()[:1])


def config_of(folder, output, url, **changes):
    base = {
        "output": str(output),
        "model.path": str(folder),
        "data.max_length": 40,
        "data.max_prompt_length": 20,
        "generate.max_new_tokens": 6,
        "generate.samples": 2,
        "generate.engine": url,
        "generate.engine_timeout": 2.0,
    }
    return settings.resolve(defaults.get_config(), base | changes, choices=generate.CHOICES)


@pytest.fixture
def ask(bench, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"number {n}"}) + "\n" for n in range(12)))

    def run(url, output="run", **changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        config = config_of(bench.folder, tmp_path / output, url, **{"generate.prompts": str(path)} | changes)
        return generate.run(config, bench=None if output == "alone" else bench)

    return run


def test_the_program_writes_what_the_server_answers(ask, capsys, bench):
    with serving(vllm) as there:
        made = list(samples.read(ask(there.url, "alone")))
    assert len(made) == 24 and {one.seed for one in made} == {-1}
    for one in made:
        ids, logps, reason = answer(one.prompt_ids, one.sample_id, 1.0, 6)
        assert (one.ids, one.logps, one.finished) == (ids, logps, reason == "stop")
        assert one.prompt_ids == bench.tokenizer(one.prompt)["input_ids"]
        assert one.output == bench.tokenizer.decode(one.ids, skip_special_tokens=True)
    assert f"{there.url}: 14 answers, " in capsys.readouterr().out  # 12 and those that show what it can


def test_a_server_that_dies_in_the_middle_is_named_and_the_program_goes_on_behind_what_is_done(
    ask, tmp_path, monkeypatch
):
    monkeypatch.setattr(servers, "connect", functools.partial(servers.connect, **{"first_wait": 0.001}))
    with serving(vllm) as there:
        whole = ask(there.url, "whole").read_bytes()
    count = [0]

    def dies(route, body):
        count[0] += body is not None and body["max_tokens"] > 1
        if count[0] == 6:
            stop[0]()
        return vllm(route, body)

    with serving(dies) as there:
        stop = [there.stop]
        with pytest.raises(ValueError, match=r"prompt \d+: the connection failed .*What was sampled so far is kept"):
            ask(there.url, generate__engine_requests=1)
    part = (tmp_path / "run" / "samples.part").read_text().splitlines()
    assert 3 <= len(part) - 1 <= 6
    with serving(vllm) as there:
        path = ask(there.url)
        asked = [body for _, body, _ in there.requests if body and body["max_tokens"] > 1]
    assert len(asked) == 12 - (len(part) - 1) and path.read_bytes() == whole


def test_a_server_that_hangs_is_given_up(ask, monkeypatch):
    monkeypatch.setattr(servers, "connect", functools.partial(servers.connect, **{"attempts": 2, "first_wait": 0.0}))
    with serving(lambda r, b: Fault(pause=20) if b and b["max_tokens"] > 1 else vllm(r, b)) as there:
        begun = time.perf_counter()
        with pytest.raises(ValueError, match=r"prompt 0: timed out after 0.2 s \(2 attempts\)"):
            ask(there.url, generate__engine_timeout=0.2)
        assert time.perf_counter() - begun < 5


def test_a_key_goes_to_the_server_and_nowhere_else(ask, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ENGINE_KEY", "sk-0123456789")
    with serving(vllm) as there:
        path = ask(there.url, generate__engine_key="ENGINE_KEY")
    assert all(headers["Authorization"] == "Bearer sk-0123456789" for *_, headers in there.requests)
    files = [file for file in pathlib.Path(path.parent).rglob("*") if file.is_file()]
    assert files and not any("sk-0123" in file.read_text() for file in files)
    assert "sk-0123" not in capsys.readouterr().out


def test_stop_texts_cut_the_ids_of_a_server(ask, bench):
    with serving(vllm) as there:
        free = list(samples.read(ask(there.url, "free")))
        letter = next(c for one in free for c in one.output[1:])
        stopped = list(samples.read(ask(there.url, "stopped", generate__stop=(letter,))))
    for one, other in zip(free, stopped, strict=True):
        assert letter not in other.output and one.ids[: len(other.ids)] == other.ids
        assert other.finished if letter in one.output else other.ids == one.ids
