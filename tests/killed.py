"""Starts a program again and again without waiting for its imports: `python tests/killed.py train`, lines on stdin.

A line is a JSON list: a file for what the program says, its command line, and what its environment has besides. It runs
in a fork, which has the modules and no JAX backend yet. Lines on stdout: {"pid": ...} for a start, and {"pid": ...,
"status": ...} for an end. What `machine` takes may be in the environment of a start, as JSON in `SLPOJAX_MACHINE`.
"""

import atexit
import importlib
import json
import os
import select
import sys
import time
import traceback

from slpojax import frozen, grid

# Everything that a start would import, and the digest of the code that it would make, once for all starts. Where torch
# is there, transformers imports it for a tokenizer and a configuration, which takes seconds.
IMPORTED = (
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.configuration_llama",
    "matplotlib.backends.backend_agg",
)
program = importlib.import_module(f"slpojax.{sys.argv[1]}") if __name__ == "__main__" else None
if program:
    importlib.import_module("transformers").PreTrainedTokenizerFast  # noqa: B018 (imported when it is asked for)
    for name in IMPORTED:
        importlib.import_module(name)
    frozen.code()


def run(log: str, arguments: list[str], environment: dict[str, str]) -> int:
    """Run the program in this process; return the status that a shell would see."""
    os.setsid()
    os.environ |= environment
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    machine(**json.loads(environment.get("SLPOJAX_MACHINE", "{}")))
    sys.argv = [program.__name__, *arguments]
    try:
        program.main()
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr, flush=True)
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def machine(folder: str = ".", clock: float = 0.0, slices: int = 1) -> None:
    """Let this process believe that it runs on a machine of its own.

    Args:
        folder: where it works.
        clock: seconds that its clock is ahead.
        slices: of TPUs; the processes belong to them in turn.
    """
    os.chdir(folder)
    now, now_ns = time.time, time.time_ns
    time.time, time.time_ns = lambda: now() + clock, lambda: now_ns() + int(clock * 1e9)
    grid.slice_of = lambda device: device.process_index % slices


def tell(**values: int) -> None:
    """Write a line."""
    os.write(1, json.dumps(values).encode() + b"\n")


def start(line: str) -> int:
    """Start the program in a fork, and return its process."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = run(*json.loads(line))
        except BaseException:
            traceback.print_exc()
        atexit._run_exitfuncs()  # where hosts wait for each other
        sys.stderr.flush()
        os._exit(status)
    tell(pid=pid)
    return pid


def main() -> None:
    """Start what the lines ask for, and tell what has ended, until the lines end."""
    running: set[int] = set()
    while True:
        if select.select([0], [], [], 0.005)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            running.add(start(line))
        for pid in [*running]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                tell(pid=pid, status=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
