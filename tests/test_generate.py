"""The program that samples: prompts in, token ids out, the same bytes however often it is stopped."""

import json
import os
import shutil
import signal
import sys
import time

import data_tools
import jax
import numpy as np
import pytest
from starter import Starter

from slpojax import bench as benches
from slpojax import data, defaults, generate, hf, judge, models, samples, sampling, settings, simulate, stages, worlds
from slpojax.data import asking
from tests import test_resume

CHAT = (
    "{% for m in messages %}<bos>{{ m.role }}:{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant:{% endif %}"
)
MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "eos_token_id": 0,
    "bos_token_id": 1,
    "initializer_range": 0.3,
}


def save_model(folder, template=None, ends=None):
    tokenizer = data_tools.make_tokenizer(bos=True, template=template)
    hf_config = MODEL | {"vocab_size": len(tokenizer)}
    model = models.build(hf_config)
    tokenizer.save_pretrained(folder)
    params = jax.jit(model.init)(jax.random.key(0))
    hf.save(folder, params, model, hf_config, beside=hf.Beside(tokenizer=folder, ends=ends or (0,)))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("chat"), CHAT, ends=(0, 7))


@pytest.fixture(scope="module")
def run(model):
    """The program on one device; what it compiles serves all tests."""
    kept = {}

    def go(config, params=None):
        if config.model.path not in kept and config.model.path:
            kept[config.model.path] = benches.make(config, devices=jax.devices()[:1])
        return generate.run(config, params, bench=kept.get(config.model.path))

    return go


@pytest.fixture
def configure(tmp_path, model):
    def make(output="run", **changes):
        base = {
            "output": str(tmp_path / output),
            "model.path": str(model),
            "data.max_length": 40,
            "data.max_prompt_length": 20,
            "generate.max_new_tokens": 8,
            "generate.slots": 8,
        }
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return settings.resolve(defaults.get_config(), base | changes, choices=generate.CHOICES)

    return make


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def drawn(monkeypatch):
    """No model: answers that follow from what the sampler is asked; the calls that it got."""
    calls = []

    def stream(model, params, prompts, *, max_new_tokens, eos, temperatures, draw, stop, first, grid, samples, **rest):
        calls.append({"params": params, "prompts": len(prompts), "first": first, "draw": draw, **rest})
        assert len(temperatures) == samples
        for i, prompt in enumerate(prompts):
            yield [answer(prompt, (first + i) * samples + k, max_new_tokens, eos, stop) for k in range(samples)]

    monkeypatch.setattr(generate.sampling, "stream", stream)
    monkeypatch.setattr(benches, "policy_params", lambda config, bench: {})
    return calls


BROKEN = sampling.Response(np.array([60, 61]), np.array([np.nan, -1.0], np.float32), False)


def answer(prompt, number, most, eos, stop):
    rng = np.random.default_rng([number, *map(int, prompt)])
    token = rng.integers(60, 90, size=rng.integers(1, most + 4))
    finished, token = len(token) <= most, token[:most]
    if finished:
        token[-1] = rng.choice(eos)
    logp = -rng.random(len(token)).astype(np.float32)
    keep = stop(token) if stop else None
    return sampling.Response(token[:keep], logp[:keep], finished or keep is not None)


PROMPTS = [{"prompt": f"Go {'on ' * n}to {n}", "uid2": n} for n in range(7)]


def test_samples_are_those_of_the_sampler_with_their_log_probs(run, configure, tmp_path):
    config = configure(
        generate__prompts=write(tmp_path / "prompts.jsonl", PROMPTS[:4]),
        generate__samples=2,
        generate__temperature=(0.0, 1.0),
        generate__generator="me",
        seed=3,
    )
    path = run(config)
    made = list(samples.read(path))
    assert path == tmp_path / "run" / "samples.jsonl" and len(made) == 8
    bench = benches.make(config, devices=jax.devices()[:1])
    params = benches.first_params(config, bench)
    tokenizer = bench.tokenizer
    groups = list(samples.by_prompt(made))
    for n, group in enumerate(groups):
        assert [one.temperature for one in group] == [0.0, 1.0]
        for one in group:
            assert one.prompt == one.instruction == PROMPTS[n]["prompt"] and one.generator == "me" and one.seed == 3
            assert one.prompt_ids == tokenizer(one.prompt)["input_ids"]  # BOS as the tokenizer has it
            assert one.finished == (one.ids[-1] == 0) and len(one.ids) <= 8 and (one.finished or len(one.ids) == 8)
            text = tokenizer.decode(one.ids, skip_special_tokens=True)
            assert one.output == text or "\ufffd" in text  # bytes that are no characters alone
    assert len({tuple(one.ids) for one in made if one.temperature}) == 4 and len({one.model for one in made}) == 1
    # The log-probs are those of the training path.
    again = sampling.score(
        bench.model,
        params,
        [one.prompt_ids for one in made],
        [one.ids for one in made],
        max_new_tokens=8,
        grid=bench.grid,
    )
    for one, logps in zip(made, again, strict=True):
        np.testing.assert_allclose(one.logps, logps, atol=1e-4)


workplace = test_resume.workplace  # a folder with a tiny model

KILLED = """
from configs import base

def get_config():
    c = base.get_config()
    c.model.path, c.model.weights, c.seed = "model", "random", 5
    c.data.max_length, c.data.max_prompt_length = 40, 16
    c.generate.prompts, c.generate.samples, c.generate.slots = "pairs.jsonl", 2, 1
    c.generate.max_new_tokens, c.generate.temperature = 24, (0.5, 1.0)
    return c
"""


@pytest.mark.check
@pytest.mark.timeout(900)
def test_killed_again_and_again_it_ends_with_the_same_bytes(workplace):
    (workplace / "tiny.py").write_text(KILLED)
    prompts = [{"prompt": f"w{n % 60} w{n % 7} w{n % 11}"} for n in range(160)]
    write(workplace / "pairs.jsonl", prompts)
    starter, rng = Starter("generate", workplace), np.random.default_rng(0)
    said = starter.start("whole")
    assert starter.wait() == 0, said.read_text()[-3000:]
    part, kills, seen = workplace / "killed" / "samples.part", 0, []
    for i in range(5):
        said = starter.start("killed")
        enough, until = 1 + 25 * (i + 1), time.monotonic() + rng.uniform(0.5, 3)
        while starter.poll() is None:
            lines = part.read_bytes().count(b"\n") if part.exists() else 0
            if lines > enough or (i % 3 == 0 and time.monotonic() > until):  # every third anywhere, while it starts too
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        if starter.poll() is None:
            os.kill(starter.pid, signal.SIGKILL)
            assert starter.wait() == -signal.SIGKILL
            kills, seen = kills + 1, [*seen, lines]
    said = starter.start("killed")
    assert starter.wait() == 0, said.read_text()[-3000:]
    starter.close()
    assert kills >= 4 and len({*seen}) >= 3, seen
    for name in ("samples.jsonl", "samples.made.json"):
        assert (workplace / "killed" / name).read_bytes() == (workplace / "whole" / name).read_bytes()
    assert len(list(samples.read(workplace / "killed" / "samples.jsonl"))) == 320


@pytest.mark.check
def test_chunks_and_meshes_change_no_token(configure, tmp_path):
    config = configure(generate__prompts=write(tmp_path / "prompts.jsonl", PROMPTS), generate__samples=4)
    made = [one.ids for one in samples.read(generate.run(config))]
    for n, (slots, tensor) in enumerate(((2, 2), (32, 1))):
        more = {"generate.slots": slots, "mesh.tensor": tensor}
        other = generate.run(config_of(config, tmp_path / str(n), **more))
        assert [one.ids for one in samples.read(other)] == made


def config_of(config, output, **changes):
    return settings.replace(config, {"output": str(output), **changes})


def under_the_policy(model, params, prompts, responses, **rest):
    """No model: log-probs of answers that another player gave."""
    return [np.float32([-9.0] * len(ids)) for ids in responses]


@pytest.mark.parametrize("second", ["", pytest.param("reference", marks=pytest.mark.check)])
def test_it_goes_on_where_it_was_stopped_and_ends_with_the_same_bytes(
    run, drawn, configure, tmp_path, monkeypatch, capsys, second
):
    monkeypatch.setattr(generate.sampling, "score", under_the_policy)
    config = configure(
        generate__prompts=write(tmp_path / "prompts.jsonl", PROMPTS),
        generate__samples=2,
        generate__slots=1,
        generate__second=second,
    )
    monkeypatch.setattr(sampling, "_ROUNDS", 6)  # chunks of three prompts
    whole = run(config).read_bytes()
    assert run(config).read_bytes() == whole, "found"
    write_records, left = generate._records, [4]

    def stops(*arguments, **more):
        left[0] -= 1
        if left[0] == 0:
            left[0] = 3
            raise KeyboardInterrupt
        return write_records(*arguments, **more)

    monkeypatch.setattr(generate, "_records", stops)
    config = config_of(config, tmp_path / "again")
    for expected in (3, 5, None):
        if expected is None:
            path = run(config)
            break
        with pytest.raises(KeyboardInterrupt):
            run(config)
        assert len((tmp_path / "again" / "samples.part").read_text().splitlines()) == 1 + expected
    assert path.read_bytes() == whole and "goes on behind 5 of 7" in capsys.readouterr().out
    assert stages.read_seal(path)["key"]["seed"] == "0"
    with pytest.raises(ValueError, match="made from something else .*seed"):
        run(settings.replace(config, {"seed": 1}))


def test_nothing_is_sampled_again_where_only_the_seal_is_missing(run, drawn, configure, tmp_path):
    config = configure(generate__prompts=write(tmp_path / "prompts.jsonl", PROMPTS), generate__samples=2)
    path = run(config)
    lines, key, calls = path.read_text().splitlines(), stages.read_seal(path)["key"], len(drawn)
    records = [json.loads(line) for line in lines]
    part = [{"key": key}, *([records[i], records[i + 1]] for i in range(0, len(records), 2))]
    path.with_suffix(".part").write_text("".join(json.dumps(line) + "\n" for line in part))
    path.unlink()
    assert run(config).read_text().splitlines() == lines and len(drawn) == calls


def test_part_of_the_prompts_gets_the_answers_that_it_gets_among_all(run, drawn, configure, tmp_path):
    config = configure(generate__prompts=write(tmp_path / "prompts.jsonl", PROMPTS), generate__samples=2)
    made = list(samples.read(run(config)))
    some = list(samples.read(run(config_of(config, tmp_path / "some", **{"generate.rows": "2:5"}))))
    assert some == [one for one in made if 2 <= one.prompt_id < 5] and drawn[-1]["first"] == 2


def test_parameters_in_memory_are_sampled_from(run, drawn, configure, tmp_path):
    config = configure(generate__prompts=write(tmp_path / "prompts.jsonl", PROMPTS[:2]))
    bench = benches.make(config, devices=jax.devices()[:1])
    params = benches.first_params(config, bench)
    path = run(config, params)
    assert drawn[0]["params"] is params and stages.made(stages.Stage(path, stages.read_seal(path)["key"], ""))
    moved = jax.tree.map(lambda x: x * 1.5, params)
    with pytest.raises(ValueError, match="made from something else .*model"):
        run(config, moved)


def test_the_last_answer_may_be_the_references_and_says_so(run, drawn, configure, tmp_path, monkeypatch):
    prompts, other = write(tmp_path / "prompts.jsonl", PROMPTS[:3]), tmp_path / "other"
    shutil.copytree(configure().model.path, other)
    lone = configure("lone", generate__prompts=prompts, generate__samples=2)
    alone = [*samples.read(run(lone))]
    monkeypatch.setattr(generate.sampling, "score", under_the_policy)
    config = configure(
        generate__prompts=prompts, generate__samples=2, generate__second="reference", reference__path=str(other)
    )
    path, calls = run(config), drawn[-2:]
    made = [*samples.read(path)]
    assert [call["params"] == {} for call in calls] == [False, True]  # the reference's weights, then the policy's
    assert [one.generator for one in made] == ["model0", "model0 (reference)"] * 3
    assert [one.about.get(samples.PLAYER) for one in made] == [None, "reference"] * 3
    assert all(set(one.logps) == {-9.0} for one in made[1::2]) and len({one.model for one in made}) == 1
    seals = [stages.read_seal(tmp_path / name / "samples.jsonl")["key"] for name in ("lone", "run")]
    assert seals[1].keys() - seals[0].keys() == {"second", "reference", "reference's model"}
    assert samples.PLAYER not in alone[1].about and seals[0].items() < seals[1].items()


# ---- what is asked ---------------------------------------------------------------------------------------------------

ASK = {"role": "user", "content": "Why?"}


def prompts_of(path, tokenizer, format="prompts", most=200, **settings):
    return asking.load(data.Source(str(path)), data.settings(settings), format=format, tokenizer=tokenizer, most=most)


def test_instructions_are_messages_where_there_is_a_template(tmp_path):
    (tmp_path / "alpaca.json").write_text(
        json.dumps(
            [{"instruction": "Why?", "output": "x", "generator": "g", "dataset": "koala"}, {"instruction": "So"}]
        )
    )
    write(tmp_path / "question.jsonl", [{"uid": "a1", "category": "hard_prompt", "prompt": "Why?"}])
    write(tmp_path / "messages.jsonl", [{"prompt": [ASK]}, {"messages": [ASK]}, {"prompt": "Why?"}])
    plain, chat = data_tools.make_tokenizer(bos=True), data_tools.make_tokenizer(template=CHAT)

    def text(tokenizer, name):
        return [tokenizer.decode(one.ids) for one in prompts_of(tmp_path / name, tokenizer)[0]]

    asked = "<bos>user:Why?<eos><bos>assistant:"
    assert text(chat, "alpaca.json")[0] == text(chat, "question.jsonl")[0] == asked
    assert text(plain, "alpaca.json") == ["<bos>Why?", "<bos>So"] and text(plain, "question.jsonl") == ["<bos>Why?"]
    assert text(chat, "messages.jsonl") == [asked, asked, "Why?"]
    [first, _], _ = prompts_of(tmp_path / "alpaca.json", chat)
    assert first.prompt == [ASK] and first.instruction == "Why?" and first.about == {"dataset": "koala"}
    [question], _ = prompts_of(tmp_path / "question.jsonl", chat)
    assert question.about == {"uid": "a1", "category": "hard_prompt"}


def test_a_prompt_has_the_ids_that_training_gives_it(tmp_path):
    """Of every format that has prompts of messages or texts: the same ids as the data's own chain makes."""
    tokenizer = data_tools.make_tokenizer(bos=True, template=CHAT)
    answer = {"role": "assistant", "content": "Because."}
    records = {
        "pairs": data_tools.pair(),
        "conversational": {"prompt": [ASK], "chosen": [answer], "rejected": [answer | {"content": "No."}]},
        "hh": {name: f"\n\nHuman: Why?\n\nAssistant: {name}" for name in ("chosen", "rejected")},
        "ultrafeedback": {
            "instruction": "Why?",
            "completions": [{"response": f"{n}", "overall_score": n} for n in range(2)],
        },
    }
    for name, record in records.items():
        path = write(tmp_path / f"{name}.jsonl", [record, record])
        [one], summary = prompts_of(path, tokenizer, format=name)
        stored, _ = data_tools.load_path(path, tokenizer=tokenizer, format=name)
        assert one.ids.tolist() == stored[0].prompt.tolist(), name
        assert summary.dropped[asking.TWICE].rows == (1,)


def test_what_cannot_be_asked_is_counted_with_its_row(tmp_path):
    tokenizer = data_tools.make_tokenizer(template=CHAT)
    records = [
        {"prompt": "Go on"},
        {"prompt": " \n"},
        {"prompt": [{"role": "user", "content": ""}]},
        {"prompt": [ASK, {"role": "assistant", "content": "So."}]},
        {"prompt": "a" * 50},
        {"prompt": [{"role": "wizard", "content": "a"}]},
        {"prompt": [{"role": "user", "content": "<eos> so"}]},  # what a user writes stays text
    ]
    found, summary = prompts_of(write(tmp_path / "p.jsonl", records), tokenizer, most=40)
    assert [one.number for one in found] == [0, 6] and (found[1].ids == 0).sum() == 1
    assert {name: count.rows for name, count in summary.dropped.items()} == {
        "empty prompt": (1, 2),
        "a prompt that ends with a turn of the assistant": (3,),
        "prompt that leaves less of data.max_length than generate.max_new_tokens": (4,),
        "a message of the unknown role 'wizard'": (5,),
    }
    with pytest.raises(ValueError, match="no usable record of 1: 1 empty prompt .*Give every record a prompt"):
        prompts_of(write(tmp_path / "p.jsonl", records[1:2]), tokenizer)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "secret"}, "it has none of the fields"),
        ({"prompt": 3}, "`prompt` is a number"),
        ({"instruction": ["secret"]}, "`instruction` is an array"),
        (["secret"], "it is an array"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_place(tmp_path, record, words):
    path = write(tmp_path / "p.jsonl", [{"prompt": "a"}, record])
    with pytest.raises(ValueError, match=rf"row 1 \(.*p\.jsonl, line 2\) is no prompt: {words}") as error:
        prompts_of(path, data_tools.make_tokenizer())
    assert "secret" not in str(error.value)


def test_every_end_of_the_folder_ends_an_answer_and_alpaca_eval_reads_it(run, drawn, configure, chat, tmp_path):
    (tmp_path / "alpaca.json").write_text(json.dumps([{"instruction": f"{n}?", "dataset": "d"} for n in range(12)]))
    config = configure(
        model__path=str(chat), data__max_length=60, generate__prompts=str(tmp_path / "alpaca.json"), generate__samples=2
    )
    path = run(config)
    made = list(samples.read(path))
    assert {one.ids[-1] for one in made if one.finished} <= {0, 7}
    assert all(one.instruction == f"{one.prompt_id}?" and one.prompt[0]["role"] == "user" for one in made)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all({"instruction", "output", "generator", "dataset"} <= line.keys() for line in lines)


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it():
    tokenizer = data_tools.make_tokenizer()
    ids = tokenizer("one. two! three", add_special_tokens=False)["input_ids"]
    stop = asking.stop(tokenizer, ["!", "three"])
    assert tokenizer.decode(ids[: stop(np.array(ids))]) == "one. two"
    assert stop(np.array(ids[:8])) is None and asking.stop(tokenizer, []) is None
    assert asking.stop(tokenizer, ["one"])(np.array(ids)) == 0


def test_stop_texts_in_the_program(run, drawn, configure, tmp_path):
    path = write(tmp_path / "prompts.jsonl", PROMPTS)
    free = list(samples.read(run(configure("free", generate__prompts=path))))
    letter = next(c for one in free for c in one.output[1:] if c.isascii())
    stopped = list(samples.read(run(configure("stopped", generate__prompts=path, generate__stop=(letter,)))))
    some = 0
    for one, other in zip(free, stopped, strict=True):
        assert letter not in other.output and one.ids[: len(other.ids)] == other.ids
        if letter in one.output:
            some += 1
            assert other.finished and len(other.logps) == len(other.ids) < len(one.ids)
    assert some


def test_a_world_is_asked_its_prompts(run, drawn, configure, tmp_path, monkeypatch):
    _, world = worlds.find("reviews")
    config = configure(
        "world", world="reviews", model__path="", model__weights="random", generate__count=4, generate__samples=2
    )
    with pytest.raises(ValueError, match="there is no reference in .* train in this world first"):
        run(config)
    folder = tmp_path / "reference"
    tokenizer = world.tokenizer()
    tokenizer.save_pretrained(folder)
    hf_config = {**world.model, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    (folder / "config.json").write_text(json.dumps(hf_config))
    monkeypatch.setattr(simulate, "reference", lambda config: str(folder))
    made = list(samples.read(run(config)))
    assert [one.prompt for one in made[::2]] == list(world.prompts(4))
    assert all(isinstance(world.reward(one.prompt, one.output), float) for one in made)


SECOND = {"generate__second": "reference", "generate__samples": 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generate__samples": 3, "generate__temperature": (0.5, 1.0)}, "a multiple of the 2 temperatures"),
        ({"generate__temperature": (-1.0,)}, "numbers from 0"),
        ({"generate__temperature": ()}, "numbers from 0"),
        ({"generate__stop": ("",)}, "none of them empty"),
        ({"generate__max_new_tokens": 40}, "less than config.data.max_length=40"),
        ({"generate__rows": "9:12"}, "of 7 prompts none is left"),
        ({"generate__rows": "a"}, "expected 'start:stop'"),
        ({"generate__prompts": "nowhere.jsonl"}, "no such file: nowhere.jsonl"),
        ({"generate__prompts": "s3://bucket/x.jsonl"}, "s3:// is neither read nor written here"),
        ({"generate__prompts": ""}, "config.generate.prompts is empty"),
        ({"generate__format": "pears"}, "unknown data.format 'pears'"),
        ({"generate__engine": "localhost"}, "'localhost' is no URL of a server"),
        (
            {"generate__second": "reference"},
            "samples=1: .* the last answer to a prompt is not the policy's; expected 2",
        ),
        ({"generate__mixture": 1.5}, "generate.mixture = 1.5: expected a number from 0 to 1"),
        (SECOND | {"generate__engine": "http://127.0.0.1:1"}, "generate.engine serves the policy alone"),
        (SECOND | {"reference__mode": "none"}, "asks a reference that stays, but config.reference.mode is 'none'"),
        (SECOND | {"reference__mode": "moving"}, "asks a reference that stays, but config.reference.mode is 'moving'"),
    ],
)
def test_what_cannot_be_is_refused(run, configure, tmp_path, changes, words):
    prompts = write(tmp_path / "prompts.jsonl", PROMPTS)
    with pytest.raises(ValueError, match=words):
        run(configure(**{"generate__prompts": prompts} | changes))


def test_a_model_whose_numbers_are_none_is_named_with_its_prompt(run, drawn, configure, tmp_path, monkeypatch):
    config = configure(generate__prompts=write(tmp_path / "prompts.jsonl", PROMPTS))
    monkeypatch.setattr(sys.modules[__name__], "answer", lambda *_: BROKEN)
    with pytest.raises(ValueError, match="prompt 0: .*'logps' is not log-probs"):
        run(config)


def test_judged_samples_train(run, drawn, configure, tmp_path):
    """From here through a judge to examples: the ids that were sampled, best first."""
    config = configure(generate__prompts=write(tmp_path / "prompts.jsonl", PROMPTS), generate__samples=3)
    path = run(config)
    verdicts = judge.run(settings.resolve(config, {"judge.name": "rules.longest"}, choices=judge.CHOICES), path)
    groups = list(samples.by_prompt(samples.read(path)))
    assert [one.ids for one in samples.read_judged(verdicts)] == [[one.ids for one in group] for group in groups]
    tokenizer = data.load_tokenizer(config.model.path)
    stored, _ = data_tools.load_path(verdicts, tokenizer=tokenizer, format="samples", candidates=3)
    assert len(stored) >= 5
    for example in stored:
        group = groups[example.row]
        ranked = sorted(group, key=lambda one: -len(one.output))
        assert example.prompt.tolist() == group[0].prompt_ids
        assert example.responses[0].tolist() == ranked[0].ids
        assert all(response.tolist() in [one.ids for one in group] for response in example.responses if len(response))
