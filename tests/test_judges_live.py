"""Judges against transformers: the policy's own numbers, and a real `transformers serve` behind the client."""

import functools
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import programs
import pytest
from safetensors.numpy import load_file, save_file

from slpojax import judges
from slpojax.judges import Context, Question, _asking

pytestmark = pytest.mark.check

TEMPLATE = (
    "{% for m in messages %}{{ 'w1 ' if m.role == 'user' else ' w2 ' }}{{ m.content }}"
    "{{ '' if m.role == 'user' else ' <eos>' }}{% endfor %}{{ ' w2' if add_generation_prompt }}"
)
SERVE = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
QUESTION = "w3 {{prompt}} w4 {{a}} w5 {{b}} w6"
PATIENCE = 180.0  # seconds until a server listens
WORDS = [f"w{i}" for i in range(3, 28)]


def text(draw):
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))


DRAW = random.Random(0)
QUESTIONS = [Question(text(DRAW), (text(DRAW), text(DRAW))) for _ in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tiny chat models of random weights; the first one says A or B, whichever way the last state points."""
    folder = programs.make(tmp_path_factory.mktemp("live"))
    for name in ("model", "other"):
        at = folder / name
        tokenizer = (at / "tokenizer.json").read_text().replace('"w28"', '"A"').replace('"w29"', '"B"')
        (at / "tokenizer.json").write_text(tokenizer)
        said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "chat_template": TEMPLATE}
        (at / "tokenizer_config.json").write_text(json.dumps(said))
        config = json.loads((at / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
        (at / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model" / "model.safetensors")
    letters = json.loads((folder / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    head = 0 * weights["lm_head.weight"]
    direction = np.random.default_rng(5).normal(size=head.shape[1]).astype(np.float32)
    head[letters["A"]], head[letters["B"]] = direction, -direction
    save_file(weights | {"lm_head.weight": head}, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    (folder / "question.txt").write_text(QUESTION)
    return folder


@functools.cache
def load(path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval(), AutoTokenizer.from_pretrained(path)


def log_probs(model, ids):
    import torch

    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0].double(), -1).numpy()


def letters(folder, question):
    """log P(A) and log P(B) as the reply to a question about two answers."""
    model, tokenizer = load(folder / "model")
    asked = [{"role": "user", "content": _asking.fill(QUESTION, question.prompt, *question.answers)}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    last = log_probs(model, ids)[-1]
    return [last[tokenizer.convert_tokens_to_ids(letter)] for letter in "AB"]


def flipped(question):
    return question._replace(answers=question.answers[::-1])


def test_the_policy_compares_as_transformers_computes(folder):
    context = Context(policy=str(folder / "model"))
    found = judges.build("policy.compare", context, template=str(folder / "question.txt")).ask(QUESTIONS)
    expected = []
    for question in QUESTIONS:
        (a, b), (c, d) = letters(folder, question), letters(folder, flipped(question))
        expected.append((1 / (1 + np.exp(b - a)) + 1 / (1 + np.exp(c - d))) / 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize(("per", "known"), [("answer", True), ("token", False)])
def test_the_implicit_reward_is_the_log_ratio_of_transformers(folder, per, known):
    (policy, tokenizer), (ref, _) = load(folder / "other"), load(folder / "model")
    context = Context(policy=str(folder / "other"), reference=str(folder / "model"))
    questions, expected = [], []
    for question in QUESTIONS[:5]:
        prompt = tokenizer(question.prompt)["input_ids"]
        answers = [[*tokenizer(answer)["input_ids"], tokenizer.eos_token_id] for answer in question.answers]
        ids = {"prompt_ids": tuple(prompt), "ids": tuple(map(tuple, answers))} if known else {}
        texts = tuple(f" {answer}" for answer in question.answers)
        questions.append(question._replace(answers=texts, **ids))
        for answer in answers:
            at = np.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
            ratio = [log_probs(model, prompt + answer)[at, answer] for model in (policy, ref)]
            total = np.sum(ratio[0] - ratio[1])
            expected.append(0.5 * total / (len(answer) if per == "token" else 1))
    found = judges.build("policy.implicit", context, per=per, beta=0.5).ask(questions)
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-4)


@pytest.fixture(scope="module")
def server(folder):
    pytest.importorskip("fastapi", reason='pip install "transformers[serving]"')
    pytest.importorskip("torch")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(folder / "model"), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with (folder / "serve.log").open("w") as said:
        process = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=said, stderr=said)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < end, (folder / "serve.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_real_server_judges(folder, server, tmp_path):
    options = {"url": server, "model": str(folder / "model"), "template": str(folder / "question.txt")}
    judge = judges.build(
        "endpoint.compare", Context(folder=tmp_path), **options, verdict="word", max_tokens=1, in_flight=2
    )
    found = judge.ask(QUESTIONS)
    expected = []
    for question in QUESTIONS:
        (a, b), (c, d) = letters(folder, question), letters(folder, flipped(question))
        expected.append((float(a > b) + float(d > c)) / 2)
    assert found == expected and len({*expected}) > 1
    counts = judge.counts()
    assert counts["requests answered"] == 2 * len(QUESTIONS) and counts["tokens written"] == 2 * len(QUESTIONS)
    again = judges.build("endpoint.compare", Context(folder=tmp_path), **options, verdict="word", max_tokens=1)
    assert again.ask(QUESTIONS) == found and again.counts()["requests answered"] == 0


def test_a_real_server_that_lacks_the_model_is_named(folder, server, tmp_path):
    options = {"url": server, "template": str(folder / "question.txt"), "attempts": 1}
    (skip,) = judges.build("endpoint.compare", Context(folder=tmp_path), model="other", **options).ask(QUESTIONS[:1])
    assert skip.passing and skip.reason.startswith("the server: status 4"), skip
