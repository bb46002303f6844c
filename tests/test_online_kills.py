"""Learning from one's own samples, killed in every stage of every segment, ends with the bytes of a whole run."""

import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest
import tiny
from starter import Starter
from test_resume import TIMES

SEGMENTS, STEPS, KILLS = 3, 12, 24
# What shows that a stage is under way, in a segment's folder; a kill follows within moments.
STAGES = {
    "sampling": lambda part: (part / "samples.part").exists(),
    "judging": lambda part: (part / "judged.part").exists(),
    "training": lambda part: (part / "metrics.jsonl").exists(),
    "export": lambda part: (part / "checkpoints" / str(STEPS // SEGMENTS)).exists(),
}

CONFIG = f"""
from ml_collections import ConfigDict
from configs import base

def get_config():
    c = base.get_config()
    c.steps, c.batch_size, c.warmup_steps, c.learning_rate, c.schedule = {STEPS}, 4, 2, 1e-2, "linear"
    c.model.path, c.model.weights = "model", "random"
    c.data.path, c.data.format, c.data.eval_path = "", "pairs", "pairs.jsonl"
    c.data.max_length, c.data.max_prompt_length, c.data.row_length, c.data.candidates = 24, 8, 64, 4
    c.objective = ConfigDict({{"name": "listwise.rnce", "beta": 0.5}})
    c.selector = ConfigDict({{"name": "mc_kernel"}})
    c.generate.prompts, c.generate.count, c.generate.samples = "prompts.jsonl", 48, 4
    c.generate.temperature, c.generate.max_new_tokens, c.generate.slots = (0.8, 1.2), 8, 8
    c.judge = ConfigDict({{"name": "mine.slow"}})
    c.online.segments, c.online.follow = {SEGMENTS}, "segment"
    c.eval_every, c.checkpoint_every = 2, 2
    return c
"""
MINE = """
import time

def slow(prompt, answers):
    time.sleep(0.01)
    return [float(answer.count("w1")) + 0.01 * len(answer) for answer in answers]
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> pathlib.Path:
    """A folder with a tiny model, prompts, a judge and the configuration."""
    folder = tiny.make(tmp_path_factory.mktemp("online"))
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(tiny.WORDS[1:], rng.integers(1, 5))) for _ in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (folder / "mine.py").write_text(MINE)
    (folder / "tiny.py").write_text(CONFIG)
    return folder


def content(output: pathlib.Path) -> dict[str, object]:
    """Return what a run wrote that must not depend on when it was killed: bytes, and metrics but for times."""
    found: dict[str, object] = {}
    for part in sorted(output.glob("segment-*")):
        for name in ("samples.jsonl", "judged.jsonl", "hf/model.safetensors"):
            found[f"{part.name}/{name}"] = (part / name).read_bytes()
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return found | {"metrics": [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows]}


def killed(workplace, starter, name, kills):
    """Run it whole, and again with kills at these (segment, stage); return the folders of both, when they are done."""
    rng, whole, output = np.random.default_rng(0), workplace / f"{name} whole", workplace / f"{name} killed"
    said = starter.start(whole.name)
    assert starter.wait() == 0, said.read_text()[-3000:]
    for number, stage in kills:
        said, part = starter.start(output.name), output / f"segment-{number}"
        while starter.poll() is None and not STAGES[stage](part):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        assert starter.poll() is None, f"over before segment {number}, {stage}: {said.read_text()[-3000:]}"
        os.kill(starter.pid, signal.SIGKILL)
        assert starter.wait() == -signal.SIGKILL, said.read_text()[-3000:]
    said = starter.start(output.name)
    assert starter.wait() == 0, said.read_text()[-3000:]
    starter.close()
    return whole, output


@pytest.mark.check
@pytest.mark.optimised
@pytest.mark.timeout(900)
def test_a_run_killed_in_every_stage_ends_with_the_same_bytes(workplace):
    kills = [(number, stage) for number in range(1, SEGMENTS + 1) for stage in STAGES for _ in range(2)]
    assert len(kills) == KILLS
    whole, output = killed(workplace, Starter("online", workplace), "onmcpo", kills)
    assert content(output) == content(whole)
    assert len(content(output)) == 3 * SEGMENTS + 1


# Two segments of the same length, and a second player that gives the last answer to every prompt.
GAME = {"steps": 8, "online.segments": 2, "generate.count": 32, "generate.samples": 2, "selector.name": "everything"}
GAME |= {"data.candidates": 1, "data.eval_path": "scored.jsonl", "data.eval_format": "bradley_terry"}
GAME |= {"generate.second": "mixture", "online.answers": "versus_last", "objective.name": "games.nash_md"}


@pytest.mark.check
@pytest.mark.optimised
def test_a_game_of_two_players_killed_ends_with_the_same_bytes(workplace):
    pairs = [json.loads(line) for line in (workplace / "pairs.jsonl").read_text().splitlines()]
    scored = [pair | {"score_chosen": 1.0, "score_rejected": 0.0} for pair in pairs]
    (workplace / "scored.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in scored))
    arguments = [f"--config.{key}={value}" for key, value in GAME.items()]
    kills = [(1, "sampling"), (2, "sampling"), (2, "export")]
    whole, output = killed(workplace, Starter("online", workplace, arguments=arguments), "nash", kills)
    assert content(output) == content(whole)
    assert len(content(output)) == 3 * 2 + 1
    last = json.loads((output / "segment-2" / "samples.jsonl").read_text().splitlines()[1])
    assert last["player"] == GAME["generate.second"]
