"""What `pip install` brings: the wheel alone, with its configurations, trains from an empty folder."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import hurry
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

SMALL = '''
"""The world of the quickstart, made small, and a judge of one's own."""

import jax.numpy as jnp

from slpojax.worlds import reviews

WORLD = reviews.WORLD._replace(
    text_count=128, pair_count=64, held_out=16, judged=24, settings={**reviews.WORLD.settings, "steps": 2}
)


def norm(config, bench):
    return lambda params, step: {"norm": jnp.linalg.norm(params["final_norm"]["weight"]), "step": step}
'''


@pytest.mark.check
@pytest.mark.optimised
def test_the_wheel_runs_the_quickstart_from_an_empty_folder(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel; the extra dev has it")
    source, site, empty = (tmp_path / name for name in ("source", "site", "empty"))
    for name in ("slpojax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*build, f"--wheel-dir={tmp_path}", str(source)], check=True)
    (wheel,) = tmp_path.glob("slpojax-*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"slpojax", "configs"}

    empty.mkdir()
    (empty / "small_world.py").write_text(SMALL)
    command = [sys.executable, "-m", "slpojax.train", "--config=configs/quickstart.py", "--config.world=small_world"]
    command += ["--config.steps=3", "--config.batch_size=16", "--config.eval_every=0", "--config.compiled=programs"]
    command += ["--config.scorer=small_world.norm", "--config.best_metric=-eval/score/norm"]
    env = os.environ | {"PYTHONPATH": str(site), "XLA_FLAGS": hurry.FLAGS}
    done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"configs/quickstart.py: the one that comes with slpojax, {site}" in done.stderr
    assert "gold reward gained" in done.stdout and "step 3" in done.stdout
    rows = [json.loads(line) for line in (empty / "output/quickstart/metrics.jsonl").read_text().splitlines()]
    assert [row["score/step"] for row in rows if row["split"] == "eval"] == [0, 3]
    output = empty / "output" / "quickstart"
    assert (output / "curves.png").exists() and (output / "hf" / "config.json").exists()

    where = "import slpojax.plots, configs; print(slpojax.__file__, configs.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=empty, env=env, capture_output=True, text=True).stdout
    assert all(path.startswith(str(site)) for path in found.split()) and found
