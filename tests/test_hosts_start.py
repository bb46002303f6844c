"""How processes find each other where no cluster says it, and which of them differ; real ones are in test_hosts.py."""

import os
import re
import socket
import subprocess
import sys

import jax
import pytest
from conftest import REPOSITORY

from slpojax import hosts


@pytest.fixture
def joined(monkeypatch):
    """What JAX is asked to join."""
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: asked.append(arguments))
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_one_process_joins_nobody(joined):
    hosts.start(False, 120.0)
    assert not joined
    hosts.require_same({"data": "a"})


@pytest.mark.parametrize(
    ("said", "asked"), [({}, (None, None)), ({"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}, (4, 0))]
)
def test_a_cluster_or_the_environment_says_where_the_others_are(joined, monkeypatch, said, asked):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    hosts.start(True, 120.0)
    count, number = asked
    patience = {"initialization_timeout": 360, "heartbeat_timeout_seconds": 300}
    assert joined == [{"num_processes": count, "process_id": number, **patience}]


@pytest.mark.parametrize(
    "said", [{"JAX_PROCESS_ID": "1"}, {"JAX_NUM_PROCESSES": "2"}, {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "-1"}]
)
def test_half_of_it_or_no_number_is_refused(joined, monkeypatch, said):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="expected JAX_NUM_PROCESSES and JAX_PROCESS_ID, whole numbers both"):
        hosts.start(True, 120.0)
    assert not joined


def test_where_nothing_says_it_the_program_ends_with_one_line():
    command = [sys.executable, "-m", "slpojax.train", "--config.mesh.distributed=true"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_COORD", "OMPI_"))}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: mesh.distributed=true, but nothing says where the other processes are: " in done.stderr


@pytest.mark.check
def test_where_the_port_is_taken_the_first_host_ends_with_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        env = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        env |= {"JAX_COORDINATOR_BIND_ADDRESS": address}
        command = [sys.executable, "-m", "slpojax.train", "--config.mesh.distributed=true"]
        done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.match(
        rf"error: host 0 \(.*\) cannot wait for the others at {address}: .*in use.* another port", done.stderr
    )


@pytest.mark.check
def test_where_a_host_does_not_come_the_others_end_with_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = "from slpojax import hosts, train; hosts._LONGEST_START = 2; train.main()"
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    command = [sys.executable, "-c", program, "--config.mesh.distributed=true"]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.match(rf"error: host 0 of 2 \(.*\) has waited 2 s for the others at {address}, and not", done.stderr)


def test_the_hosts_that_differ_from_most_are_named():
    same, other = {"data": "a", "code": "c"}, {"data": "b", "code": "d"}
    assert hosts.differences([same] * 4) == []
    assert hosts.differences([other, same, same]) == ["host 0 has other code, data"]
    assert hosts.differences([same, {"data": "a"}, {**same, "seed": "1"}, same]) == [
        "host 1 has other code",
        "host 2 has other seed",
    ]


def test_the_digest_of_the_code_is_that_of_every_file(monkeypatch, tmp_path):
    monkeypatch.setattr(hosts, "__file__", str(tmp_path / "hosts" / "__init__.py"))
    empty = hosts.code()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "step.py").write_text("x = 1\n")
    first = hosts.code()
    (tmp_path / "inner" / "step.py").write_text("x = 2\n")
    assert len({empty, first, hosts.code()}) == 3
