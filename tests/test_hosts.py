"""Two processes, as on two hosts, give the numbers of one: the real program, started as Slurm would start it."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from slpojax import metrics

pytestmark = pytest.mark.check


def start(path, output, processes, steps):
    """Start the program `processes` times with eight devices in all; wait; return what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changes = tiny.changes(path, output) | {"steps": steps, "eval_every": 2, "checkpoint_every": 2}
    changes |= {"mesh.fsdp": 4, "mesh.distributed": processes > 1}
    command = [sys.executable, "-m", "slpojax.train", "--config=configs/base.py"]
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(processes),
    }
    running = [
        subprocess.Popen(
            [*command, f"--config.reference.cache={path / output / f'cache{i}'}"],  # a disk that no other host sees
            env=environment | {"SLURM_PROCID": str(i), "SLURM_LOCALID": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]
    shown = [process.communicate(timeout=400)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(shown)
    return shown


@pytest.mark.timeout(900)
def test_two_hosts_equal_one_and_resume(tmp_path):
    folder = tiny.make(tmp_path)
    start(folder, "one", 1, 4)
    start(folder, "two", 2, 2)
    shown = start(folder, "two", 2, 4)
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
