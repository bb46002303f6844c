"""A program of slpojax that a test starts as often as it likes, to kill it: a server has the imports, and forks."""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

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
        self.told, self.status, self.pid = b"", {}, 0

    def start(self, output: str) -> pathlib.Path:
        """Start the program; return the file with what it says."""
        log = self.folder / f"{output}.{len(list(self.folder.glob(f'{output}.*.log')))}.log"
        log.touch()
        arguments = ["--config=tiny.py", f"--config.output={output}", *self.arguments]
        self.server.stdin.write(json.dumps([str(log), arguments]).encode() + b"\n")
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

    def close(self) -> None:
        """End the server."""
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()
