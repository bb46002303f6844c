"""A program of slpojax that a test starts as often as it likes, to kill it: a server has the imports, and forks."""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import hurry

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Starter:
    """The program, started as often as one likes by tests/killed.py."""

    def __init__(self, program: str, folder: pathlib.Path, devices: int = 1, arguments: Sequence[str] = ()):
        self.folder, self.arguments = folder, arguments
        env = os.environ | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "HF_HUB_OFFLINE": "1",
            # Compiled once for all starts.
            "JAX_COMPILATION_CACHE_DIR": str(folder / f"compiled{devices}"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [sys.executable, str(ROOT / "tests" / "killed.py"), program]
        self.server = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        os.set_blocking(self.server.stdout.fileno(), False)
        self.close = weakref.finalize(self, _close, self.server)  # of a test that fails, too
        self.told, self.status, self.pid = b"", {}, 0

    def start(self, output: str, arguments: Sequence[str] = (), environment: Mapping[str, str] = {}) -> pathlib.Path:
        """Start the program; return the file with what it says."""
        log = self.folder / f"{output}.{len(list(self.folder.glob(f'{output}.*.log')))}.log"
        log.touch()
        arguments = ["--config=tiny.py", f"--config.output={output}", *self.arguments, *arguments]
        self.server.stdin.write(json.dumps([str(log), arguments, dict(environment)]).encode() + b"\n")
        self.server.stdin.flush()
        self.pid = 0
        while not self.pid:
            self.poll()
            time.sleep(0.002)
        return log

    def poll(self) -> int | None:
        """Return how the last start ended, None while it runs."""
        *lines, self.told = (self.told + (self.server.stdout.read() or b"")).split(b"\n")
        for line in map(json.loads, lines):
            if "status" in line:
                self.status[line["pid"]] = line["status"]
            else:
                self.pid = line["pid"]
        assert self.server.poll() is None
        return self.status.get(self.pid)

    def wait(self, seconds: float = 300.0) -> int:
        """Wait for the end of the last start, and return its status."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        return self.status[self.pid]


def _close(server: subprocess.Popen) -> None:
    """End a server."""
    server.stdin.close()
    server.wait(60)
    server.stdout.close()


class Fleet:
    """The program, started as several processes that work together, as on several hosts, by one `Starter`."""

    def __init__(self, program: str, folder: pathlib.Path, arguments: Sequence[str] = ()):
        self.starter = Starter(program, folder, arguments=arguments)
        self.again = lambda number: None  # starts a host's process once more, as it was started last
        self.pids: list[int] = []
        self.logs: list[pathlib.Path] = []
        self.machines: list[Mapping[str, Any]] = []  # what hosts take for their own, as tests/killed.py says
        self.begun, self.before = 0, set()  # for who watches: what of its files was there before this start

    def start(self, output: str, *arguments: str, hosts: int, devices: int = 1) -> None:
        """Start the program on so many hosts with so many devices each."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        # Most of a start is compilation.
        shared = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {hurry.FLAGS}"}
        shared |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts)} if hosts > 1 else {}
        arguments = (f"--config.mesh.distributed={hosts > 1}", *arguments)
        self.pids, self.logs = [0] * hosts, [pathlib.Path()] * hosts
        self.again = functools.partial(self._begin, output, arguments, shared)
        for number in range(hosts):
            self.again(number)

    def _begin(self, output: str, arguments: Sequence[str], shared: Mapping[str, str], number: int) -> None:
        """Start a host's process."""
        own = {"JAX_PROCESS_ID": str(number)} if "JAX_NUM_PROCESSES" in shared else {}
        own |= {"SLPOJAX_MACHINE": json.dumps(self.machines[number])} if self.machines else {}
        self.logs[number] = self.starter.start(output, arguments, {**shared, **own})
        self.pids[number] = self.starter.pid

    def said(self, number: int = 0) -> str:
        """Return what a host has said so far."""
        return self.logs[number].read_text()

    def all_said(self) -> list[str]:
        """Return the end of what each host has said, for an error."""
        return [log.read_text()[-2000:] for log in self.logs]

    def ended(self) -> list[int | None]:
        """Return how each host ended, None while it runs."""
        self.starter.poll()
        return [self.starter.status.get(pid) for pid in self.pids]

    def wait(self, *but: int, seconds: float = 300.0) -> list[int | None]:
        """Wait until all hosts have ended, but for some; return how."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            ends = self.ended()
            if all(end is not None for number, end in enumerate(ends) if number not in but):
                return ends
            time.sleep(0.005)
        raise AssertionError(f"{self.ended()} after {seconds} s: {self.all_said()}")

    def run(self, output: str, *arguments: str, hosts: int, devices: int = 1) -> None:
        """Start the program on so many hosts, and wait until all have done their work."""
        self.start(output, *arguments, hosts=hosts, devices=devices)
        ends = self.wait()
        assert ends == [0] * hosts, self.all_said()

    def kill(self, *numbers: int, signal: int = 9) -> None:
        """Send hosts a signal."""
        for number in numbers:
            os.kill(self.pids[number], signal)

    def close(self) -> None:
        """End the server."""
        self.starter.close()
