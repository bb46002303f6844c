"""Several processes, as on several hosts, give the numbers of one: runs, samples, exports and a world's judge."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import hurry
import numpy as np
import programs
import pytest
import several_hosts
import tiny
from safetensors.numpy import load_file

from slpojax import grid, hf, metrics

pytestmark = [pytest.mark.check, pytest.mark.optimised]

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = json.loads((ROOT / "tests" / "goldens" / "programs.json").read_text())


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(commands, *, devices, flags="", environments=None, status=0):
    """Start processes, each with as many devices; wait; return what they printed."""
    shared = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {flags}",
        "PYTHONPATH": str(ROOT),
    }
    running = [
        subprocess.Popen(command, env=shared | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command, more in zip(commands, environments or [{}] * len(commands), strict=True)
    ]
    shown = [process.communicate(timeout=1500)[0] for process in running]
    assert all(process.returncode == status for process in running), "\n".join(shown)
    return shown


# ---- two processes, started as Slurm starts them ---------------------------------------------------------------------


def slurm(processes):
    """Return what Slurm says to each of so many processes."""
    shared = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(processes)}
    return [shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": "0"} for i in range(processes)]


def train_on(path, output, processes, steps, status=0, last=None, **more):
    """Start the program `processes` times with eight devices in all; return what they printed.

    `last` are changes of the last process alone.
    """
    # Two micro-batches a device, over two axes: the sum over `data` crosses the hosts once a step.
    micro = {"batch_size": 16, "accumulate": 16, "epochs": 4.0, "mesh.fsdp": 4}
    changes = tiny.changes(path, output) | micro | {"steps": steps, "eval_every": 2, "checkpoint_every": 2}
    changes |= {"mesh.fsdp": 4, "mesh.distributed": processes > 1, **more}
    command = [sys.executable, "-m", "slpojax.train", "--config=configs/base.py"]
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    # A cache on a disk that no other host sees.
    commands = [[*command, f"--config.reference.cache={path / output / f'cache{i}'}"] for i in range(processes)]
    commands[-1] += [f"--config.{key}={value}" for key, value in (last or {}).items()]
    environments = [shared | of_process for of_process in slurm(processes)]
    return start(commands, devices=8 // processes, environments=environments, status=status)


@pytest.mark.timeout(900)
def test_hosts_that_would_do_different_things_end_before_they_wait_for_each_other(tmp_path):
    folder, other = tiny.make(tmp_path), tmp_path / "other.jsonl"
    pairs = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
    other.write_text("".join([pairs[1], pairs[0], *pairs[2:]]))
    for changes, said in (
        ({"learning_rate": 0.5}, "host 1 has other config.learning_rate. Start all"),
        ({"data.path": other}, "host 1 has other examples ("),
    ):
        shown = train_on(folder, "apart", 2, 4, status=1, last=changes)
        assert all(f"error: the 2 hosts of this run differ: {said}" in text for text in shown), shown


@pytest.mark.timeout(900)
def test_two_hosts_equal_one_and_resume(tmp_path):
    folder = tiny.make(tmp_path)
    train_on(folder, "one", 1, 4)
    train_on(folder, "two", 2, 2)
    shown = train_on(folder, "two", 2, 4)
    assert "resumed behind step 2 of 4" in shown[0] and "step" not in shown[1]
    # The first host alone reads and writes the reference's log-probs; the other one has them from it.
    assert "reference log-probs (train): read from" in shown[0] and not (folder / "two" / "cache1").exists()
    one, two = (metrics.read_jsonl(folder / name / "metrics.jsonl") for name in ("one", "two"))
    key = {(row["split"], row["step"]): row for row in two}
    for row in one:
        for name in ("loss", "logps/chosen", "rewards/margins"):
            np.testing.assert_allclose(key[row["split"], row["step"]][name], row[name], atol=1e-5, err_msg=name)
    ours, theirs = (load_file(folder / name / "hf" / "model.safetensors") for name in ("two", "one"))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


# ---- four processes that share rows and layers -----------------------------------------------------------------------

PROCESSES = 4  # of one device each: of two that share a layer, both hold the same rows
# Matched prompts beside a cached reference, masks that are learned from one online, and both ways of a selector; all
# of them evaluate.
PROGRAMS = ("matched", "sparse", "likeliest first", "likeliest together")


@pytest.fixture(scope="module")
def folder(made_once):
    """A folder in which four processes ran everything."""
    return made_once("hosts", _ran)


def _ran(folder):
    programs.make(folder)
    several_hosts.write_world(folder)
    port, acts = free_port(), [*PROGRAMS, "sample", "judge"]
    script = str(ROOT / "tests" / "several_hosts.py")
    start(
        [[sys.executable, script, str(i), str(PROCESSES), str(port), str(folder), *acts] for i in range(PROCESSES)],
        devices=1,
        flags=hurry.FLAGS,  # most of their time is compilation
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PROGRAMS)
def test_hosts_that_share_layers_write_the_numbers_of_one_process(folder, name):
    made, golden = programs.written(folder / name.replace(" ", "_")), GOLDEN[name]
    assert made["metrics"].keys() == golden["metrics"].keys()
    for step, values in golden["metrics"].items():
        for key, value in values.items():
            if key != "padding_share":  # as many rows as the devices need
                np.testing.assert_allclose(
                    made["metrics"][step][key], value, rtol=2e-5, atol=1e-5, err_msg=f"{step}: {key}"
                )
    for tensor, norm in golden["norms"].items():
        np.testing.assert_allclose(made["norms"][tensor], norm, rtol=1e-5, err_msg=tensor)


@pytest.mark.timeout(1800)
def test_hosts_read_their_slices_sample_the_same_and_save_every_tensor(folder, tmp_path):
    one = several_hosts.sample(programs.make(tmp_path), grid.one_device())
    hosts = [json.loads((folder / f"sample.{i}.json").read_text()) for i in range(PROCESSES)]
    for host in hosts:
        assert host["token"] == one["token"]
        for ours, scored, theirs in zip(host["logp"], host["scored"], one["logp"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
            np.testing.assert_allclose(scored, theirs, atol=1e-5)
        assert host == host | {key: hosts[0][key] for key in ("token", "logp", "scored")}, "all hosts get the same"
    tensors = load_file(folder / "model" / hf.WEIGHTS)
    assert load_file(folder / "saved" / hf.WEIGHTS).keys() == tensors.keys()
    for name, tensor in load_file(folder / "saved" / hf.WEIGHTS).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    # Each host reads what its device holds: a quarter of what is split, all of the norms. The vocabulary is odd: half.
    split = {name: 2 if len(x) % 2 else 4 for name, x in tensors.items() if x.ndim == 2}
    assert {host["read"] for host in hosts} == {sum(x.nbytes // split.get(name, 1) for name, x in tensors.items())}
    assert {host["gathered"] for host in hosts} == {max(x.nbytes for x in tensors.values())}


@pytest.mark.timeout(1800)
def test_a_world_judges_over_hosts_as_on_one(folder, tmp_path):
    several_hosts.write_world(tmp_path)
    one = several_hosts.judge(tmp_path, {})
    for i in range(PROCESSES):
        host = json.loads((folder / f"judge.{i}.json").read_text())
        assert host.keys() == one.keys() and one["world/kl"] > 0
        for key, value in one.items():
            np.testing.assert_allclose(host[key], value, atol=1e-5, err_msg=key)
