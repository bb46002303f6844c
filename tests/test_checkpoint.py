"""Checkpoints: equal values on any mesh, the newest complete one, the last and the best kept, nothing lost."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slpojax import checkpoint, optim, resuming
from slpojax.base import State

CONFIG = {
    "seed": 0,
    "schedule": "constant",
    "steps": 10,
    "objective": {"name": "dpo.sigmoid", "beta": 0.1},
    "mesh": {"data": 8},
}


RUN = checkpoint.Run({"next": 0}, CONFIG, {"examples": "abc"})


def mesh(data: int, fsdp: int) -> jax.sharding.Mesh:
    devices = np.asarray(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return jax.sharding.Mesh(devices, ("data", "fsdp"))


def make(on: jax.sharding.Mesh, seed: int = 0, step: int = 0) -> State:
    """Return a state with every kind of leaf, sharded over fsdp where it divides."""
    params = {"w": jax.random.normal(jax.random.key(seed), (64, 48)), "bias": jnp.arange(3.0) + seed}
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params)
    state = State(jnp.int32(step), params, optimizer, {"mean": jnp.float32(seed)}, jax.random.key(seed + 7))
    return jax.tree.map(lambda x: jax.device_put(x, sharding(on, x)), state)


def sharding(on: jax.sharding.Mesh, x) -> NamedSharding:
    return NamedSharding(on, PartitionSpec("fsdp") if x.ndim == 2 else PartitionSpec())


def abstract(on: jax.sharding.Mesh) -> State:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(on, x)), jax.eval_shape(lambda: make(on))
    )


def values(state: State) -> list[np.ndarray]:
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return [np.asarray(data(x)) for x in jax.tree.leaves(state)]


def save(folder, steps, **kwargs):
    """Save some steps, each with its evaluation's loss (or None), and close."""
    c = checkpoint.open_folder(folder, **kwargs)
    for step, loss in steps.items():
        metrics = None if loss is None else {"eval/loss": loss, "eval/acc": -loss}
        checkpoint.save(c, step, make(mesh(8, 1), step, step), RUN._replace(data={"next": step}), metrics)
    checkpoint.close(c)


def kept(folder: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 4), (1, 8), (1, 1)])
def test_restores_equal_values_onto_another_mesh(tmp_path, data, fsdp):
    saved = make(mesh(4, 2), 3, 5)
    c = checkpoint.open_folder(tmp_path)
    checkpoint.save(c, 5, saved, checkpoint.Run({"next": [1, 2], "epoch": 0}, CONFIG, {}, {"skipped": [3]}))
    checkpoint.close(c)
    c = checkpoint.open_folder(tmp_path)
    found = checkpoint.restore(c, abstract(mesh(data, fsdp)), config=CONFIG)
    checkpoint.close(c)
    assert (found.step, found.data, found.notes) == (5, {"next": [1, 2], "epoch": 0}, {"skipped": [3]})
    assert jax.tree.structure(found.state) == jax.tree.structure(saved)
    for a, b in zip(values(saved), values(found.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.state.params["w"].sharding == NamedSharding(mesh(data, fsdp), PartitionSpec("fsdp"))
    assert found.state.key.dtype == saved.key.dtype
    np.testing.assert_array_equal(jax.random.uniform(found.state.key), jax.random.uniform(saved.key))


def test_moments_in_bfloat16_come_back_as_they_were(tmp_path):
    optimizer = optim.in_bfloat16(optax.adamw(1e-3))
    on, params = mesh(4, 2), {"w": jax.random.normal(jax.random.key(0), (16, 6))}
    _, moments = optimizer.update(params, optimizer.init(params), params)
    state = State(jnp.int32(1), params, moments, None, jax.random.key(0))
    state = jax.tree.map(lambda x: jax.device_put(x, sharding(on, x)), state)
    c = checkpoint.open_folder(tmp_path)
    checkpoint.save(c, 1, state, RUN)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    found = checkpoint.restore(c, like, config=CONFIG).state
    checkpoint.close(c)
    assert {x.dtype for x in jax.tree.leaves(found.optimizer)} == {jnp.dtype("int32"), jnp.dtype("bfloat16")}
    for a, b in zip(values(state), values(found), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_may_be_donated_while_it_is_being_saved(tmp_path):
    scale = jax.jit(lambda s: s._replace(params=jax.tree.map(lambda x: x * 0.0, s.params)), donate_argnums=0)
    state = make(mesh(8, 1), 1, 1)
    big = jnp.arange(2.0e6)
    state = state._replace(params=state.params | {"big": jax.device_put(big, sharding(mesh(8, 1), big))})
    expected = values(state)
    c = checkpoint.open_folder(tmp_path)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    checkpoint.save(c, 1, state, RUN)
    for _ in range(3):
        state = scale(state)
    jax.block_until_ready(state)
    checkpoint.close(c)
    found = checkpoint.restore(checkpoint.open_folder(tmp_path), like, config=CONFIG)
    for a, b in zip(expected, values(found.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_empty_folder_restores_nothing(tmp_path):
    c = checkpoint.open_folder(tmp_path / "new")
    assert checkpoint.restore(c, abstract(mesh(1, 1)), config=CONFIG) is None
    checkpoint.require_none(c)


@pytest.mark.parametrize(
    "best, keeps",
    [
        ({"keep_best": 1}, [2, 5, 6]),
        ({"keep_best": 2}, [1, 2, 5, 6]),
        ({"keep_best": 1, "best_metric": "-eval/acc"}, [2, 5, 6]),
        ({"keep_best": 1, "best_metric": "eval/acc"}, [4, 5, 6]),
        ({"keep_best": 0}, [5, 6]),
    ],
)
def test_keeps_the_last_and_the_best(tmp_path, best, keeps):
    save(tmp_path, {1: 0.5, 2: 0.2, 3: float("nan")}, keep_last=2, **best)
    save(tmp_path, {4: 0.9, 5: 0.8, 6: None}, keep_last=2, **best)  # a restart remembers which was best
    assert kept(tmp_path) == keeps
    assert not (tmp_path / "deleted").exists()


def test_a_step_that_another_host_has_said_is_a_number_as_any_other(tmp_path, monkeypatch):
    save(tmp_path, {2: None, 4: None})
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.all_steps", lambda self: list(np.array([2, 4], np.int32)))
    c = checkpoint.open_folder(tmp_path)
    restored = checkpoint.restore(c, abstract(mesh(8, 1)), config=CONFIG)
    checkpoint.close(c)
    assert type(restored.step) is int and json.dumps(restored.step) == "4"


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    save(tmp_path, {3: 0.5})
    save(tmp_path, {3: 0.1})
    assert kept(tmp_path) == [3]


def test_a_torn_checkpoint_is_skipped_and_said_so(tmp_path, capsys):
    save(tmp_path, {2: None, 4: None, 6: None}, keep_last=3)
    (tmp_path / "6").rename(tmp_path / "6.orbax-checkpoint-tmp")  # killed while writing
    shutil.rmtree(tmp_path / "4" / "run")  # half copied
    c = checkpoint.open_folder(tmp_path)
    found = checkpoint.restore(c, abstract(mesh(2, 1)), config=CONFIG)
    assert found.step == 2
    said = capsys.readouterr().out
    assert "skipped checkpoint 6: the process ended while it was written" in said
    assert "skipped checkpoint 4: it lacks run" in said
    checkpoint.save(c, 4, make(mesh(8, 1), 4, 4), RUN)
    checkpoint.close(c)
    assert kept(tmp_path) == [2, 4]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> pathlib.Path:
    """A folder with the checkpoints 3 and 6."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, {3: 0.5, 6: 0.4})
    return folder


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the numbers."""
    return [path for path in folder.rglob("d/*") if path.is_file()]


def each(change):
    """Return a damage: a change of every file that holds numbers."""
    return lambda folder: [change(path) for path in files(folder)]


def flip(path: pathlib.Path, share: float) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "cut": each(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
    "empty": each(lambda path: path.write_bytes(b"")),
    "without its data": each(lambda path: path.unlink()),
    "without its manifests": lambda c: [path.unlink() for path in c.rglob("manifest.ocdbt")],
    "without its record": lambda c: (c / "run" / "metadata").write_text(""),
    "with another record": lambda c: flip(c / "run" / "metadata", 0.5),
    "without metrics": lambda c: (c / "metrics" / "metrics").write_text("{"),
    "of another step": lambda c: (shutil.rmtree(c), shutil.copytree(c.with_name("3"), c)),
    **{f"flipped at {share}": each(lambda path, share=share: flip(path, share)) for share in (0.2, 0.5, 0.9)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_set_aside_for_the_one_before(two, tmp_path, capsys, damage):
    folder = shutil.copytree(two, tmp_path / "copy")
    DAMAGES[damage](folder / "6")
    c = checkpoint.open_folder(folder)
    found = checkpoint.restore(c, abstract(mesh(2, 1)), config=CONFIG, contents=RUN.contents)
    assert (found.step, found.data) == (3, {"next": 3})
    assert "skipped checkpoint 6: " in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["3", "torn-6"]
    checkpoint.save(c, 6, make(mesh(8, 1), 6, 6), RUN)  # the name is free again
    checkpoint.close(c)
    assert kept(folder) == [3, 6]


def test_where_all_are_damaged_nothing_is_touched_and_nothing_begins_anew(two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "copy")
    DAMAGES["flipped at 0.5"](folder / "6")
    DAMAGES["empty"](folder / "3")
    c = checkpoint.open_folder(folder)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be restored \(6: .*; 3: .*--config.output"):
        checkpoint.restore(c, abstract(mesh(1, 1)), config=CONFIG)
    assert kept(folder) == [3, 6]


def test_changed_contents_are_refused_by_name_and_forced_aloud(two, capsys):
    c = checkpoint.open_folder(two)
    here = {"config": CONFIG, "contents": {"examples": "abd"}}
    with pytest.raises(ValueError, match=r"step 6 of a run .*: the examples changed\. Set this back .*resume=force"):
        checkpoint.restore(c, abstract(mesh(1, 1)), **here)
    here["config"] = CONFIG | {"seed": 1, "data": {"path": "elsewhere"}}
    assert checkpoint.restore(c, abstract(mesh(1, 1)), **here, force=True).step == 6
    said = capsys.readouterr().out
    assert "going on from step 6 although seed was 0 and is 1; the examples changed (config.resume=force)" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, value):
    c = checkpoint.open_folder(tmp_path)
    state = make(mesh(1, 1))
    state.params["bias"] = state.params["bias"].at[1].set(value)
    with pytest.raises(FloatingPointError, match="the state behind step 1 is not finite: params/bias$"):
        checkpoint.save(c, 1, state, RUN)
    checkpoint.close(c)
    assert kept(tmp_path) == []


def test_a_checkpoint_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    c = checkpoint.open_folder(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device\nand a second line")
    with mock.patch.object(c.manager, "save", side_effect=full):
        with pytest.raises(
            ValueError, match=r"checkpoint 1 could not be written to .* No space .* repeat the"
        ) as refused:
            checkpoint.save(c, 1, make(mesh(1, 1)), RUN)
    assert "\n" not in str(refused.value)


def test_a_file_where_checkpoints_belong_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(ValueError, match="cannot hold checkpoints: File exists; move away"):
        checkpoint.open_folder(tmp_path / "checkpoints")


def test_another_configuration_is_refused_by_key(tmp_path):
    save(tmp_path, {2: None})
    c = checkpoint.open_folder(tmp_path)
    changed = CONFIG | {"seed": 1, "objective": {"name": "dpo.ipo"}, "log_every": 5, "mesh": {"data": 1}}
    says = (
        r"objective.beta was 0.1 and is None; objective.name was .*; seed was 0 and is 1\. Set this .*--config.output"
    )
    with pytest.raises(ValueError, match=says):
        checkpoint.restore(c, abstract(mesh(1, 1)), config=changed)
    with pytest.raises(ValueError, match="holds a run up to step 2"):
        checkpoint.require_none(c)


def test_a_run_may_be_lengthened_under_a_constant_schedule():
    assert resuming.differences(CONFIG, CONFIG | {"steps": 20, "output": "x"}) == {}
    assert resuming.differences({"selection": "together"}, {"selection": "score_first"}) == {}
    cosine = CONFIG | {"schedule": "cosine"}
    assert resuming.differences(cosine, cosine | {"steps": 20}) == {"steps": (10, 20)}


def test_the_best_metric_must_be_there(tmp_path):
    c = checkpoint.open_folder(tmp_path, best_metric="eval/accuracy")
    with pytest.raises(ValueError, match=r"unknown config.best_metric 'eval/accuracy'; there are eval/loss"):
        checkpoint.save(c, 1, make(mesh(1, 1)), RUN, {"eval/loss": 1.0})
    with pytest.raises(ValueError, match="keep_last is 0"):
        checkpoint.open_folder(tmp_path, keep_last=0)


NAMES = ("eval/loss", "eval/rewards/accuracies", "eval/world/kl")


@pytest.mark.parametrize("best", ["eval/loss", "-eval/rewards/accuracies", "eval/diagnostic/cosine"])
def test_a_best_metric_that_will_be_reported_is_accepted(best):
    checkpoint.check_best_metric(best, NAMES, ["eval/diagnostic/"])


def test_a_best_metric_that_no_evaluation_reports_is_refused_with_the_near_ones():
    says = r"unknown config.best_metric 'eval/rewards/acuracies' \(near: eval/rewards/accuracies\); there are eval/loss"
    with pytest.raises(ValueError, match=says):
        checkpoint.check_best_metric("-eval/rewards/acuracies", NAMES)
    with pytest.raises(ValueError, match="eval/diagnostic/cosine"):
        checkpoint.check_best_metric("eval/diagnostic/cosine", NAMES)
    checkpoint.check_best_metric("anything", ())  # nothing is evaluated, so nothing is ranked


def test_a_place_is_no_difference():
    old = {"model": {"path": "a", "dtype": "float32"}, "reference": {"path": ""}, "data": {"path": "x", "rows": ""}}
    new = {"model": {"path": "b", "dtype": "float32"}, "reference": {"path": "c"}, "data": {"path": "y", "rows": "0:2"}}
    assert resuming.differences(old, new) == {"data.rows": ("", "0:2")}


WRITER = """
import sys, jax, jax.numpy as jnp
from slpojax import checkpoint
from slpojax.base import State
c = checkpoint.open_folder(sys.argv[1], keep_last=2, keep_best=1)
like = State(jnp.int32(0), {"w": jnp.zeros(300_000)}, (), None, jax.random.key(0))
found = checkpoint.restore(c, like, config={})
step = found.step if found else 0
if found:
    assert (found.state.params["w"] == step).all() and found.data == step, "torn"
print(step, file=sys.stderr, flush=True)
while True:
    step += 1
    state = State(jnp.int32(step), {"w": jnp.full(300_000, float(step))}, (), None, jax.random.key(step))
    checkpoint.save(c, step, state, checkpoint.Run(step, {}), {"eval/loss": (step * 7919) % 101})
    print(step, file=sys.stderr, flush=True)
"""


def _number(stream) -> str:
    """Return the next line that is a number."""
    return next(line for line in stream if line.strip().isdigit())


@pytest.mark.check
def test_killed_while_it_writes_and_deletes_it_goes_on_from_a_whole_one(tmp_path):
    """A process that does nothing but save is killed six times; the next one finds all but the last save, whole."""
    rng, saved = np.random.default_rng(0), 0
    for _ in range(6):
        env = os.environ | {"XLA_FLAGS": ""}
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        steps = [_number(child.stderr) for _ in range(rng.integers(3, 8))]
        time.sleep(rng.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "the writer found a broken checkpoint"
        steps += [line for line in child.stderr if line.strip().isdigit()]
        child.stderr.close()
        assert int(steps[0]) >= saved - 1  # a save returns when the one before is complete
        saved = int(steps[-1])
    assert len(kept(tmp_path)) <= 4  # two last, one best, and one that was not deleted yet
