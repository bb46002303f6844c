"""Checkpoints: equal values on any mesh, the newest complete one, the last and the best kept, nothing lost."""

import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slpojax import checkpoint, optim
from slpojax.base import State

CONFIG = {
    "seed": 0,
    "schedule": "constant",
    "steps": 10,
    "objective": {"name": "dpo.sigmoid", "beta": 0.1},
    "mesh": {"data": 8},
}


def mesh(data: int, fsdp: int) -> jax.sharding.Mesh:
    devices = np.asarray(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return jax.sharding.Mesh(devices, ("data", "fsdp"))


def make(on: jax.sharding.Mesh, seed: int = 0, step: int = 0) -> State:
    """Return a state with every kind of leaf, sharded over fsdp where it divides."""
    params = {"w": jax.random.normal(jax.random.key(seed), (16, 6)), "bias": jnp.arange(3.0) + seed}
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
        checkpoint.save(c, step, make(mesh(8, 1), step, step), data={"next": step}, config=CONFIG, metrics=metrics)
    checkpoint.close(c)


def kept(folder: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 4), (1, 8), (1, 1)])
def test_restores_equal_values_onto_another_mesh(tmp_path, data, fsdp):
    saved = make(mesh(4, 2), 3, 5)
    c = checkpoint.open_folder(tmp_path)
    checkpoint.save(c, 5, saved, data={"next": [1, 2], "epoch": 0}, config=CONFIG)
    checkpoint.close(c)
    c = checkpoint.open_folder(tmp_path)
    found = checkpoint.restore(c, abstract(mesh(data, fsdp)), config=CONFIG)
    checkpoint.close(c)
    assert (found.step, found.data) == (5, {"next": [1, 2], "epoch": 0})
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
    checkpoint.save(c, 1, state, data={}, config=CONFIG)
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
    checkpoint.save(c, 1, state, data={}, config=CONFIG)
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


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    save(tmp_path, {3: 0.5})
    save(tmp_path, {3: 0.1})
    assert kept(tmp_path) == [3]


def test_a_torn_checkpoint_is_skipped_and_said_so(tmp_path, caplog):
    save(tmp_path, {2: None, 4: None, 6: None}, keep_last=3)
    (tmp_path / "6").rename(tmp_path / "6.orbax-checkpoint-tmp")  # killed while writing
    for file in (tmp_path / "4" / "state").rglob("*"):  # half copied
        if file.is_file():
            file.unlink()
    (tmp_path / "4" / "data" / "metadata").unlink()
    (tmp_path / "4" / "data" / "commit_success.txt").unlink(missing_ok=True)
    with caplog.at_level(logging.WARNING):
        c = checkpoint.open_folder(tmp_path)
    found = checkpoint.restore(c, abstract(mesh(2, 1)), config=CONFIG)
    assert found.step == 2
    assert "skipped checkpoint 6: the process ended while it was written" in caplog.text
    assert "skipped checkpoint 4: it lacks data" in caplog.text
    checkpoint.save(c, 4, make(mesh(8, 1), 4, 4), data={}, config=CONFIG)
    checkpoint.close(c)
    assert kept(tmp_path) == [2, 4]


def test_another_configuration_is_refused_by_key(tmp_path):
    save(tmp_path, {2: None})
    c = checkpoint.open_folder(tmp_path)
    changed = CONFIG | {"seed": 1, "objective": {"name": "dpo.ipo"}, "log_every": 5, "mesh": {"data": 1}}
    says = (
        r"objective.beta was 0.1 and is None; objective.name was .*; seed was 0 and is 1\. Set these .*--config.output"
    )
    with pytest.raises(ValueError, match=says):
        checkpoint.restore(c, abstract(mesh(1, 1)), config=changed)
    with pytest.raises(ValueError, match="holds a run up to step 2"):
        checkpoint.require_none(c)


def test_a_run_may_be_lengthened_under_a_constant_schedule():
    assert checkpoint.differences(CONFIG, CONFIG | {"steps": 20, "output": "x"}) == {}
    assert checkpoint.differences({"selection": "together"}, {"selection": "score_first"}) == {}
    cosine = CONFIG | {"schedule": "cosine"}
    assert checkpoint.differences(cosine, cosine | {"steps": 20}) == {"steps": (10, 20)}


def test_the_best_metric_must_be_there(tmp_path):
    c = checkpoint.open_folder(tmp_path, best_metric="eval/accuracy")
    with pytest.raises(ValueError, match=r"unknown config.best_metric 'eval/accuracy'; there are eval/loss"):
        checkpoint.save(c, 1, make(mesh(1, 1)), data={}, config=CONFIG, metrics={"eval/loss": 1.0})
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


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("out/w-0123456789ab/hf", "/elsewhere/w-0123456789ab/hf", True),
        ("w-0123456789ab", "/elsewhere/w-0123456789ab", True),
        ("out/w-0123456789ab/hf", "out/w-0123456789ac/hf", False),
        ("out/w-0123456789ab/hf", "out/w-0123456789ab/start", False),
        ("out/hf", "/elsewhere/hf", False),
        ("out/w-0123456789ab/hf", None, False),
    ],
)
def test_what_a_folder_named_by_its_digest_holds_is_the_same_wherever_it_lies(old, new, same):
    assert (checkpoint.differences({"model": {"path": old}}, {"model": {"path": new}}) == {}) == same


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
print(step, flush=True)
while True:
    step += 1
    state = State(jnp.int32(step), {"w": jnp.full(300_000, float(step))}, (), None, jax.random.key(step))
    checkpoint.save(c, step, state, data=step, config={}, metrics={"eval/loss": (step * 7919) % 101})
    print(step, flush=True)
"""


@pytest.mark.check
def test_killed_while_it_writes_and_deletes_it_goes_on_from_a_whole_one(tmp_path):
    """A process that does nothing but save is killed six times; the next one finds all but the last save, whole."""
    rng, saved = np.random.default_rng(0), 0
    for _ in range(6):
        env = os.environ | {"XLA_FLAGS": ""}
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
        )
        steps = [child.stdout.readline() for _ in range(rng.integers(3, 8))]
        time.sleep(rng.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "the writer found a broken checkpoint"
        steps += child.stdout.readlines()
        child.stdout.close()
        assert int(steps[0]) >= saved - 1  # a save returns when the one before is complete
        saved = int(steps[-1])
    assert len(kept(tmp_path)) <= 4  # two last, one best, and one that was not deleted yet
