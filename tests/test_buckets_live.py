"""The program with data, model, cache and output in buckets of real servers: killed, resumed, refused and misled."""

import os
import pathlib
import shutil
import signal
import time

import buckets
import jax
import numpy as np
import pytest
import tiny
from starter import Fleet
from test_resume import losses, require_near

from slpojax import hf, models

pytest.importorskip("gcsfs")
pytest.importorskip("s3fs")
pytestmark = [pytest.mark.check, pytest.mark.timeout(900)]

STEPS = 12
CONFIG = f"""
from configs import base

def get_config():
    c = base.get_config()
    c.steps, c.batch_size, c.warmup_steps, c.learning_rate = {STEPS}, 4, 0, 1e-2
    c.model.path, c.data.path, c.data.format = "model", "pairs.jsonl", "pairs"
    c.data.rows, c.data.eval_rows = "0:20", "20:26"
    c.data.max_length, c.data.max_prompt_length, c.data.row_length = 16, 8, 32
    c.eval_every, c.checkpoint_every, c.data.cache = 4, 2, ""
    return c
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, pairs and a configuration."""
    folder = tiny.make(tmp_path_factory.mktemp("buckets"))
    model, rng = models.build(tiny.MODEL), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    hf.save(
        folder / "made",
        jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes),
        model,
        tiny.MODEL,
    )
    shutil.copy(folder / "made" / hf.WEIGHTS, folder / "model")
    (folder / "tiny.py").write_text(CONFIG)
    return folder


def filled(store, folder):
    """Put the model and the pairs into a bucket; return it."""
    store.send(folder / "model", "in/model")
    store.put("in/pairs.jsonl", (folder / "pairs.jsonl").read_bytes())
    return store


@pytest.fixture(scope="module")
def store(folder):
    """A bucket of Google's store with the model and the pairs, which misbehaves as `rule` says."""
    with buckets.gcs() as store:
        yield filled(store, folder)


@pytest.fixture(scope="module")
def other(folder):
    """A bucket of Amazon's store with the same."""
    with buckets.s3() as store:
        yield filled(store, folder)


@pytest.fixture(scope="module")
def fleet(folder, store, other):
    """The program, beside both stores."""
    with pytest.MonkeyPatch.context() as patch:
        places = {"SLPOJAX_CACHE": str(folder / "copies")}
        for name, value in {**store.environment, **other.environment, **places}.items():
            patch.setenv(name, value)
        fleet = Fleet("train", folder)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def starter(fleet):
    """The same, as one process."""
    return fleet.starter


@pytest.fixture(scope="module")
def whole(starter, folder):
    """The folder of a run on this machine that nobody touched."""
    said = starter.start("whole")
    assert starter.wait() == 0, said.read_text()[-3000:]
    return folder / "whole"


@pytest.fixture(autouse=True)
def well_behaved(request):
    """The store does what it is told to again, and forgets the runs of other tests."""
    yield
    if "store" in request.fixturenames:
        request.getfixturevalue("store").rule[0] = lambda method, path: None


def there(store, run, **more):
    """Return the command line of a run whose everything is in the bucket."""
    keys = {
        "output": f"{store.url}/{run}",
        "model.path": f"{store.url}/in/model",
        "data.path": f"{store.url}/in/pairs.jsonl",
        "reference.cache": f"{store.url}/{run}-cache",
        **more,
    }
    return [f"--config.{key}={value}" for key, value in keys.items()]


def brought(store, run, to: pathlib.Path) -> pathlib.Path:
    """Bring the objects of a run here."""
    for name, content in store.files().items():
        if name.startswith(f"{run}/"):
            file = to / name.removeprefix(f"{run}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return to


def same(store, run, whole, tmp_path):
    """See that a run in the bucket is the run on this machine: every number but times, and every byte of the export."""
    found = brought(store, run, tmp_path / run)
    assert losses(found) == losses(whole)
    files = {file.name for file in (whole / "hf").iterdir()}
    assert {file.name for file in (found / "hf").iterdir()} == files
    for name in files:
        assert (found / "hf" / name).read_bytes() == (whole / "hf" / name).read_bytes(), name
    kept = {path.name for path in (whole / "checkpoints").iterdir()}
    assert {path.name for path in (found / "checkpoints").iterdir()} == kept
    assert all((found / "checkpoints" / step / "commit_success.txt").exists() for step in kept)
    assert (found / "curves.png").exists() and (found / "config.json").exists() and not (found / "lock").exists()


def test_a_run_in_a_bucket_is_killed_and_goes_on_bit_for_bit(starter, store, whole, folder, tmp_path):
    def steps():
        return {name.split("/")[2]: name for name in store.files() if name.startswith("killed/checkpoints/")}

    def saved(n):
        return f"killed/checkpoints/{n}/commit_success.txt" in store.files()

    # Behind a checkpoint, and amid another one; each time a machine goes on that has nothing of the run.
    amid = 0
    for reached in (lambda: saved(2), lambda: "8" in steps() and not saved(8)):
        said = starter.start("killed", there(store, "killed"))
        until = time.monotonic() + 120
        while not reached():
            assert starter.poll() is None and time.monotonic() < until, said.read_text()[-3000:]
            time.sleep(0.001)
        os.kill(starter.pid, signal.SIGKILL)
        assert starter.wait() == -signal.SIGKILL
        amid += any(not saved(n) for n in steps())
        shutil.rmtree(folder / "copies")
    said = starter.start("killed", there(store, "killed"))
    assert starter.wait() == 0, said.read_text()[-3000:]
    assert amid and "resumed behind step" in said.read_text() and "fetched 4 files" in said.read_text()
    assert "reference log-probs (train): read from gs://bucket/killed-cache" in said.read_text()
    same(store, "killed", whole, tmp_path)


def refused(starter, *arguments) -> str:
    """Start what is refused; return its error line, the last that it says."""
    said = starter.start("refused", arguments)
    assert starter.wait() == 1, said.read_text()[-3000:]
    *_, line = said.read_text().splitlines()
    assert line.startswith("error: "), said.read_text()[-3000:]
    return line


def test_what_a_bucket_refuses_ends_with_one_line_that_names_it(starter, store):
    line = refused(starter, *there(store, "none", output="gs://nowhere/run"))
    assert "config.output=gs://nowhere/run cannot be written" in line and "Is the bucket there" in line
    line = refused(starter, *there(store, "none", **{"data.path": f"{store.url}/in/pears.jsonl"}))
    assert "config.data.path=gs://bucket/in/pears.jsonl cannot be read" in line and "the name right?" in line
    store.rule[0] = lambda method, path: buckets.REFUSED if "in%2Fmodel%2Fmodel.safetensors" in path else None
    shutil.rmtree(starter.folder / "copies")
    line = refused(starter, *there(store, "none"))
    assert "config.model.path=gs://bucket/in/model cannot be read" in line and "needs to read and write there" in line
    assert not any(name.startswith("none/") for name in store.files()), "no lock is left"
    line = refused(starter, "--config.output=s3://bucket/run")
    assert "config.output='s3://bucket/run': s3:// is neither read nor written here; expected a local path" in line


def test_a_bucket_that_fails_leaves_the_last_good_state(starter, store, whole, tmp_path):
    asked = there(store, "faults", **{"data.path": "pairs.jsonl", "model.path": "model", "reference.cache": "cache"})

    def holds(method, path, name):
        return method in ("POST", "PUT") and name.replace("/", "%2F") in path.replace("/", "%2F")

    # Writes are refused from the second checkpoint on.
    store.rule[0] = lambda method, path: buckets.REFUSED if holds(method, path, "faults/checkpoints/4/") else None
    line = refused(starter, *asked)
    assert "gs://bucket/faults" in line and "needs to read and write there" in line
    assert "faults/checkpoints/2/commit_success.txt" in store.files()
    # A write is lost, that of the object which says that the checkpoint is whole.
    lost = "faults/checkpoints/6/commit_success.txt"
    store.rule[0] = lambda method, path: buckets.LOST if holds(method, path, lost) else None
    assert "checkpoint 6 could not be written" in refused(starter, *asked)
    # The store is slow, and out of service now and then: four of some hundred requests, which are repeated.
    count = [0]

    def unsteady(method, path):
        count[0] += 1
        return buckets.BROKEN if count[0] in (40, 90, 150, 210) else 0.005

    store.rule[0] = unsteady
    said = starter.start("faults", asked)
    assert starter.wait() == 0, said.read_text()[-3000:]
    assert "skipped checkpoint 6: the process ended while it was written" in said.read_text()
    assert "resumed behind step 4 of" in said.read_text() and count[0] > 210
    same(store, "faults", whole, tmp_path)
    # A part of the newest checkpoint is gone: the one before is taken, and the run ends with the same.
    names = [name for name in store.files() if name.startswith(f"faults/checkpoints/{STEPS}/state/d/")]
    store.remove(max(names, key=lambda name: len(store.files()[name])))
    said = starter.start("faults", asked)
    assert starter.wait() == 0, said.read_text()[-3000:]
    assert f"skipped checkpoint {STEPS}: " in said.read_text()
    found = brought(store, "faults", tmp_path / "again")
    assert losses(found) == losses(whole)
    assert (found / "hf" / hf.WEIGHTS).read_bytes() == (whole / "hf" / hf.WEIGHTS).read_bytes()


def test_data_models_caches_and_compiled_programs_lie_in_amazons_store_too(starter, other, whole):
    keys = {"model.path": "in/model", "data.path": "in/pai*.jsonl", "reference.cache": "cache", "compiled": "compiled"}
    said = starter.start("amazon", [f"--config.{key}={other.url}/{name}" for key, name in keys.items()])
    assert starter.wait() == 0, said.read_text()[-3000:]
    assert losses(starter.folder / "amazon") == losses(whole)
    kinds = {name.partition("/")[0] for name in other.files()}
    assert kinds == {"in", "cache", "compiled"}


def test_two_hosts_write_one_run_in_a_bucket_and_resume(fleet, store, folder, whole, tmp_path):
    asked = [*there(store, "two"), "--config.mesh.data=2"]
    fleet.start("two", *asked, hosts=2)
    while "two/checkpoints/4/commit_success.txt" not in store.files():
        assert fleet.ended() == [None, None], fleet.all_said()
        time.sleep(0.01)
    fleet.kill(0, 1)
    assert fleet.wait() == [-signal.SIGKILL] * 2
    fleet.run("two", *asked, hosts=2)
    assert "resumed behind step" in fleet.said()
    require_near(brought(store, "two", tmp_path / "two"), whole)
    assert any("ocdbt.process_1/" in name for name in store.files() if name.startswith("two/checkpoints/"))
