"""Learning from one's own samples: what each segment is, and the shipped settings with tiny models of their kinds."""

import json
import re

import loopback
import numpy as np
import pytest
import reward_tools
from data_tools import make_tokenizer

from configs import onmcpo_llama, onmcpo_quickstart, onmcpo_tldr
from slpojax import metrics, online, settings, stages


def configuration(module=onmcpo_quickstart, **changes):
    return settings.resolve(module.get_config(), changes, choices=online.CHOICES)


def test_segments_share_out_prompts_and_steps_and_each_starts_from_the_one_before():
    config = configuration(output="out", **{"online.segments": 4, "steps": 128, "generate.count": 8192})
    first, third = online.segment(config, 1), online.segment(config, 3)
    assert (first.start, third.start) == ("", "out/segment-2")
    assert (first.generate.rows, third.generate.rows) == ("0:2048", "4096:6144")
    assert (third.steps, third.schedule_steps, third.output) == (32, 128, "out/segment-3")
    assert (third.data.path, third.data.format, third.data.eval_format) == (
        "out/segment-3/judged.jsonl",
        "samples",
        "pairs",
    )
    assert third.reference.path == ""  # the model that all began from
    keeping = configuration(output="out", **{"online.keep": True, "online.follow": "segment"})
    assert online.segment(keeping, 3).data.path == ",".join(f"out/segment-{n}/judged.jsonl" for n in (1, 2, 3))
    assert online.segment(keeping, 3).reference.path == "out/segment-2/hf"


def test_the_iterate_of_inpo_is_the_policy_that_the_segment_starts_from():
    inpo = configuration(
        output="out", **{"objective.name": "games.inpo", "selector.name": "everything", "data.candidates": 2}
    )
    assert online.segment(inpo, 2).reference.previous == "out/segment-1/hf"
    assert online.segment(inpo, 1).reference.previous == inpo.model.path


def test_answers_may_be_read_in_the_order_in_which_they_were_sampled():
    changes = {"generate.samples": 2, "generate.temperature": (1.0,), "generate.second": "reference"}
    config = configuration(output="out", **changes, **{"online.answers": "in_order"})
    online.refuse(config)
    assert online.segment(config, 2).data.format == "samples_in_order"
    for answers in ("versus_last", "quantiles"):
        part = online.segment(settings.replace(config, {"online.answers": answers}), 2)
        assert part.data.format == f"samples_{answers}"


def test_answers_may_stand_beside_the_given_pairs_and_nobody_judges_them():
    changes = {"online.answers": "beside_pairs", "judge.name": "", "objective.name": "hybrid.hypo"}
    given = {"selector.name": "everything", "world": "", "data.path": "mine.jsonl", "generate.samples": 3}
    config = configuration(output="out", **changes, **given)
    online.refuse(config)
    part = online.segment(config, 2)
    assert (part.data.path, part.data.format, part.data.eval_format) == ("mine.jsonl", "pairs", "")
    assert (part.data.samples, part.data.candidates) == ("out/segment-2/samples.jsonl", 5)
    assert part.generate.prompts == ""  # those of data.path are asked, its rows alone
    for key, value in (("online.keep", True), ("generate.second", "reference")):
        with pytest.raises(ValueError, match=f"config.{key}: online.answers=beside_pairs trains on the policy's own"):
            online.refuse(settings.replace(config, {key: value}))


def test_prompts_come_from_the_data_where_none_are_named():
    config = configuration(output="out", world="", **{"data.path": "mine.jsonl", "data.format": "pairs"})
    asked = online.segment(config, 2).generate
    assert (asked.prompts, asked.format, asked.split) == ("mine.jsonl", "pairs", "train")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 64}, r"config.steps=64: expected a multiple of config.online.segments=3"),
        ({"generate.count": 0}, r"config.generate.count=0: expected a multiple of config.online.segments=3"),
        ({"checkpoint_every": -1}, r"config.checkpoint_every=-1: a segment starts from the checkpoint"),
        ({"online.follow": "segment", "export": False}, r"config.export=False, but each segment's export is read by"),
        ({"generate.engine": "http://127.0.0.1:1"}, r"config.generate.engine: a server keeps the model .*online.serve"),
        ({"judge.name": ""}, r"config.judge.name is empty"),
        ({"data.mixture.a.path": "a.jsonl"}, r"config.data.mixture: a segment trains on the answers to one source's"),
        ({"generate.second": "reference", "reference.mode": "none"}, r"asks a reference that stays"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_takes_time(changes, says):
    with pytest.raises(ValueError, match=says):
        online.refuse(configuration(**changes))


def test_a_server_is_started_anew_by_a_command_that_gets_the_folder(tmp_path):
    script = tmp_path / "serve.sh"
    script.write_text(f'[ "$2" = good ] && echo "$1 $2" > {tmp_path}/served')
    online.serve(f"sh {script} --port=1", "good")
    assert (tmp_path / "served").read_text() == "--port=1 good\n"
    with pytest.raises(ValueError, match=r"config.online.serve='sh .*' failed with status 1 for bad; run it by hand"):
        online.serve(f"sh {script} --port=1", "bad")


TINY = {
    "model.weights": "random",
    "model.dtype": "float32",
    "mesh.fsdp": 1,
    "mesh.data": -1,
    "generate.split": "train",
    "online.segments": 2,
    "generate.count": 32,
    "generate.max_new_tokens": 8,
    "generate.slots": 16,
    "data.max_length": 64,
    "data.max_prompt_length": 48,
    "batch_size": 8,
    "accumulate": 1,
    "steps": 4,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
    "best_metric": "eval/loss",
}


def tiny(folder, family):
    """Write a policy without weights, and prompts."""
    (folder / "policy").mkdir()
    (folder / "policy" / "config.json").write_text(json.dumps(reward_tools.FAMILIES[family]))
    make_tokenizer(bos=True, template=reward_tools.TEMPLATE).save_pretrained(folder / "policy")
    prompts = [{"prompt": f"Question {i}: what is {i} and {i + 1}?"} for i in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    paths = {"model.path": "policy", "generate.prompts": "prompts.jsonl", "output": "out", "compiled": "compiled"}
    return TINY | {key: str(folder / path) for key, path in paths.items()}


def ran(config):
    """Run, and return the records of judgements and the metrics."""
    folder = online.online(config)
    assert (folder / "model.safetensors").exists()
    records = [list(stages.read(online.folder(config, n) / "judged.jsonl")) for n in (1, 2)]
    rows = metrics.read_jsonl(f"{config.output}/metrics.jsonl", "train")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # the policy is the reference
    assert abs(rows[2]["loss"] - np.log(2)) > 1e-6  # in the second segment it is not
    return records


@pytest.mark.check
def test_the_settings_of_tldr_run_with_tiny_models_of_their_kinds(tmp_path):
    (tmp_path / "reward").mkdir()
    reward = reward_tools.make(tmp_path / "reward", "gpt_neox")
    records = ran(configuration(onmcpo_tldr, **tiny(tmp_path, "gpt_neox"), **{"judge.path": str(reward)}))
    assert [len(one) for one in records] == [16, 16]
    assert all(len(one["scores"]) == 6 and not one["duels"] for one in records[0])
    assert records[0][0]["temperatures"] == [0.5, 0.5, 0.7, 0.7, 1.0, 1.0]
    before, after = (np.mean([one["scores"] for one in part]) for part in records)
    assert before != after


@pytest.mark.check
def test_the_settings_of_the_paper_run_with_tiny_models_of_their_kinds(tmp_path):
    def longer(route, body):
        text = body["messages"][0]["content"]
        a, b = (re.search(f"ANSWER {x} =====\n(.*?)\n=====", text, re.DOTALL)[1] for x in "AB")
        said = {"content": f"Verdict: {'A' if len(a) >= len(b) else 'B'}"}
        return {"choices": [{"message": said, "finish_reason": "stop"}], "usage": {}}

    with loopback.serving(longer) as server:
        of_judge = {"judge.url": server.url, "judge.model": "judge"}
        records = ran(configuration(onmcpo_llama, **tiny(tmp_path, "llama"), **of_judge))
    judged = [one for part in records for one in part if not one["skipped"]]
    assert len(judged) > 25
    assert all(len(one["duels"]) == 5 for one in judged)  # K - 1, the winner against the next
    assert all(int(np.argmax(one["scores"])) in one["duels"][-1][:2] for one in judged)
