"""A grid of runs: what it holds, that what is missing is run and nothing twice, and what becomes of failures."""

import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import hurry
import numpy as np
import pytest
from test_simulate import OUTSIDE

from slpojax import frontier, settings, simulate, train
from slpojax.tradeoff import picture

ROOT = pathlib.Path(__file__).resolve().parents[1]

EXPERIMENT = '''
"""Two methods in a world."""

from ml_collections import ConfigDict

from slpojax import defaults


def get_config():
    c = defaults.get_config()
    c.output, c.world, c.steps = "grid", "reviews", 4
    c.data.format = "pairs"
    c.frontier.seeds, c.frontier.budgets = (0, 1), (0.5, 1.0)
    c.frontier.methods = ConfigDict(
        {
            "dpo": {"label": "DPO", "strength": "objective.beta", "values": (0.1, 0.9)},
            "shift": {
                "keys": ("objective.name=slpo.shift",),
                "strength": "objective.alpha,learning_rate",
                "values": ((0.5, 1e-4), (0.9, 2e-4)),
            },
        }
    )
    return c
'''
# Stands in for the interpreter that runs a program: writes what a run in a world leaves.
PROGRAM = """#!{python}
import json, pathlib, sys
keys = dict(word.removeprefix("--config.").split("=", 1) for word in sys.argv[4:])
if keys.get("objective.beta") == "{fails}":
    sys.exit("error: this one cannot be")
output, gain = pathlib.Path(keys["output"]), float(keys.get("objective.beta") or keys["objective.alpha"])
with open("calls.txt", "a") as calls:
    calls.write(f"{{output.name}} {{sys.argv[2]}} {{keys.get('steps')}}\\n")
kinds = {{"split": "eval", "world/finished": 1.0}}
rows = [kinds | {{"step": n, "world/kl": 0.5 * n, "world/gold_lift": gain * n}} for n in (0, 2, 4)]
(output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Call the program on the experiment with some overrides; the runs are not real ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    monkeypatch.setattr(simulate, "is_made", lambda config: True)
    monkeypatch.setattr(simulate, "scores", lambda config: {"go": np.random.default_rng(0).normal(size=999)})

    def call(*overrides, fails=""):
        program = tmp_path / "program"
        program.write_text(PROGRAM.format(python=PYTHON, fails=fails))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(sys, "argv", ["frontier", "--config=mine.py", *overrides])
        frontier.main()

    return call


PYTHON = sys.executable


def calls():
    return sorted(line.split()[0] for line in pathlib.Path("calls.txt").read_text().splitlines())


def test_every_method_strength_and_seed_is_run_once_and_drawn(grid, capsys):
    grid("--config.steps=6")
    runs = [f"dpo-{beta}-seed{seed}" for beta in (0.1, 0.9) for seed in (0, 1)]
    runs += [f"shift-{both}-seed{seed}" for both in ("0.5-0.0001", "0.9-0.0002") for seed in (0, 1)]
    assert calls() == sorted(runs)
    assert {line.partition(" ")[2] for line in pathlib.Path("calls.txt").read_text().splitlines()} == {
        "slpojax.train 6"
    }
    page = pathlib.Path("grid/frontier.md").read_text()
    # Straight in the root between KL 0 and 1, where the gain is twice the strength.
    assert "| DPO | 1.27 ± 0.00 (0.9) | 1.80 ± 0.00 (0.9) |  |  |" in page
    assert "| shift | 1.27 ± 0.00 (0.9, 0.0002) |" in page and "+0.00 ± 0.00" in page
    assert "## Missing" not in page and "8 runs, " in page and "seeds 0, 1." in page
    numbers = json.loads(pathlib.Path("grid/frontier.json").read_text())
    assert len(numbers["methods"]["shift"]["runs"]) == 4
    assert all(pathlib.Path(f"grid/frontier.{kind}").stat().st_size for kind in ("png", "svg"))
    said = capsys.readouterr().out
    assert "8 runs, 0 of them finished; 2 at once" in said and "runs 8/8" in said
    assert "dpo-0.9-seed1: gold reward +3.60 std at a KL of 2.00, in" in said

    grid("--config.steps=6", "--config.frontier.page=docs/page", "--config.frontier.only=shift")
    assert calls() == sorted(runs), "nothing is run twice"
    assert (
        "| shift |" in pathlib.Path("docs/page.md").read_text()
        and "DPO" not in pathlib.Path("docs/page.md").read_text()
    )


@pytest.mark.check
def test_seeds_of_two_machines_make_one_page(grid):
    grid("--config.frontier.seeds=(1,)", "--config.output=there")
    grid("--config.frontier.known=there/frontier.json")
    points = ("dpo-0.1", "dpo-0.9", "shift-0.5-0.0001", "shift-0.9-0.0002")
    assert calls() == sorted(f"{name}-seed{seed}" for name in points for seed in (0, 1))
    grid("--config.output=whole")
    both, whole = (json.loads(pathlib.Path(f"{output}/frontier.json").read_text()) for output in ("grid", "whole"))
    assert both["methods"] == whole["methods"] and both["bounds"] == whole["bounds"]
    assert "4 runs of commit" in pathlib.Path("grid/frontier.md").read_text()
    with pytest.raises(SystemExit, match="known=there/frontier.json: its run dpo-0.1-seed1 has another configuration"):
        grid("--config.frontier.known=there/frontier.json", "--config.steps=5")


def test_a_run_that_fails_is_named_and_the_rest_goes_on_and_it_is_tried_again(grid, capsys, monkeypatch):
    monkeypatch.setattr(picture, "draw", lambda *arguments, **options: None)
    with pytest.raises(SystemExit, match="2 of 8 runs failed; the same command tries them again"):
        grid(fails="0.9")
    assert "dpo-0.9-seed0: failed after 0:00: error: this one cannot be (all of it:" in capsys.readouterr().out
    page = pathlib.Path("grid/frontier.md").read_text()
    assert "## Missing\n\n- dpo-0.9-seed0: error: this one cannot be\n- dpo-0.9-seed1" in page
    grid()
    assert len(calls()) == 8 and "## Missing" not in pathlib.Path("grid/frontier.md").read_text()


def test_a_finished_run_of_another_configuration_is_refused_by_its_keys(grid, monkeypatch):
    monkeypatch.setattr(picture, "draw", lambda *arguments, **options: None)
    grid("--config.frontier.only=dpo", "--config.frontier.seeds=(0,)")
    grid(
        "--config.frontier.only=dpo",
        "--config.frontier.seeds=(0,)",
        "--config.log_every=2",
        "--config.frontier.at_once=1",
    )
    with pytest.raises(
        SystemExit, match="dpo-0.1-seed0 holds a finished run with another configuration: steps was 4 and is 5"
    ):
        grid("--config.frontier.only=dpo", "--config.steps=5")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--config.frontier.only=dpp"], r"unknown config.frontier.only 'dpp' \(near: dpo\); there are dpo, shift"),
        (["--config.world="], r"a frontier needs config.world \(now ''\)"),
        (["--config.frontier.seeds=()"], r"seeds in config.frontier.seeds \(now 0\)"),
        (["--config.batch_size=0"], "config.batch_size = 0: expected a whole number from 1"),
        (["--config.frontier.at_once=0"], "config.frontier.at_once = 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(grid, overrides, says):
    with pytest.raises(SystemExit, match=says):
        grid(*overrides)
    assert not pathlib.Path("grid").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strenght": "x"}, r"frontier method 'mine' has no hyperparameter 'strenght' \(near: strength\)"),
        ({"program": "export"}, "unknown config.frontier.methods.mine.program 'export'; there are train, online"),
        ({"values": ()}, "config.frontier.methods.mine.values = .*expected values of the strength"),
        ({"strength": ""}, "config.frontier.methods.mine.strength = '': expected a key"),
        ({"values": ((1.0, 2.0),)}, "methods.mine.values = .*expected 1 value.s., of objective.beta, each"),
        ({"keys": ("objective.name",)}, "methods.mine.keys = 'objective.name': expected KEY=VALUE"),
        ({"keys": ("objective.name=dpo.ippo",)}, r"frontier method mine: .*'dpo.ippo' \(near: dpo.ipo"),
        ({"strength": "objective.betta"}, "frontier method mine: .*betta"),
        ({"config": "nowhere.py"}, "frontier method mine: --config=nowhere.py: no such file"),
    ],
)
def test_a_method_that_cannot_be_is_named(tmp_path, change, says):
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    config = settings.load_file(str(tmp_path / "mine.py"))
    del config.frontier.methods["shift"], config.frontier.methods["dpo"]
    config.frontier.methods["mine"] = {"strength": "objective.beta", "values": (0.1,)} | change
    resolved = settings.resolve(config, {}, choices=train.CHOICES)
    with pytest.raises(ValueError, match=says):
        frontier.plan(resolved, str(tmp_path / "mine.py"), {})


@pytest.mark.parametrize("name", ["frontier_reviews", "frontier_trap", "frontier_imdb"])
def test_the_shipped_comparisons_are_whole(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = f"configs/{name}.py"
    config = settings.resolve(settings.load_file(path), {}, choices=train.CHOICES)
    runs = [run for run in frontier.plan(config, path, {}) if run.job.command[2] == "slpojax.train"]
    for seed in {run.seed for run in runs}:
        assert len({(run.method, run.strength) for run in runs if run.seed == seed}) * len(
            config.frontier.seeds
        ) == len(runs)
    assert len({run.job.folder for run in runs}) == len(runs)
    for run in {run.method: run for run in runs}.values():
        train.check(run.config, frontier.importlib.import_module("slpojax.training").method(run.config))


SMALL = '''
"""Two methods in a world of a test."""

from ml_collections import ConfigDict

from slpojax import defaults


def get_config():
    c = defaults.get_config()
    c.output, c.world, c.steps, c.batch_size, c.eval_every, c.checkpoint_every = "grid", "world_of_a_test", 6, 8, 2, 2
    c.data.format, c.data.row_length, c.data.max_length, c.data.max_prompt_length = "pairs", 32, 16, 4
    c.learning_rate, c.warmup_steps, c.export = 1e-2, 0, False
    one = {"strength": "objective.beta", "values": (0.1,)}
    pool = ("data.format=pool", "data.candidates=3", "objective.name=listwise.rnce", "selector.name=mc_kernel")
    c.frontier.methods = ConfigDict({"dpo": one, "mcpo": one | {"keys": pool}})
    c.frontier.seeds = (0,)
    return c
'''


@pytest.mark.check
@pytest.mark.timeout(900)
def test_killed_at_any_time_it_ends_with_the_numbers_of_one_that_was_not(tmp_path):
    """As a user would, with real runs: pairs and pools, a kill in the world and one in a run, the end."""
    numbers = {}
    for name, kills in (("whole", ()), ("killed", ("made.json", "checkpoints/2"))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "world_of_a_test.py").write_text(OUTSIDE)
        (folder / "mine.py").write_text(SMALL)
        env = os.environ | {"XLA_FLAGS": hurry.FLAGS, "PYTHONPATH": f"{ROOT}:{folder}"}
        command = [sys.executable, "-m", "slpojax.frontier", "--config=mine.py", "--config.frontier.budgets=(0.001,)"]
        for sign in kills:
            going = subprocess.Popen(command, cwd=folder, env=env)
            while not list((folder / "grid").glob(f"*/{sign}")) and going.poll() is None:
                time.sleep(0.01)
            going.send_signal(signal.SIGKILL)
            assert going.wait() == -signal.SIGKILL
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads((folder / "grid" / "frontier.json").read_text())["methods"]
        numbers[name] = {method: [run["points"] for run in one["runs"]] for method, one in found.items()}
    assert numbers["whole"] == numbers["killed"]
    assert {len(points) for runs in numbers["whole"].values() for points in runs} == {4}
