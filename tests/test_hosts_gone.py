"""A host of a run dies or hangs: the others end soon, with one line that names it, and the next start goes on."""

import signal
import socket
import time

import pytest
from starter import Fleet
from test_resume import losses, workplace  # noqa: F401  a fixture

pytestmark = pytest.mark.check

HOSTS, PATIENCE, STEPS = 3, 8.0, 24  # patience: more than a busy machine lets a process wait
KEYS = {"mesh.patience": PATIENCE, "steps": STEPS, "checkpoint_every": 4, "warmup_steps": 2, "reference.batch_size": 3}
# What is under way, what happens to which host, and what the others say of it.
SILENT = f"has given no sign of life for {PATIENCE:g} s (config.mesh.patience): it was killed, hangs, or is cut off"
AGAIN = "killed, and started again at once"
CLOSED = "has ended, or is cut off: it closed its connection"
FAULTS = (
    ("reference", signal.SIGKILL, 1, SILENT),
    ("step", AGAIN, 2, "has been started again while the others went on"),
    ("checkpoint", signal.SIGKILL, 0, CLOSED),
    ("step behind a checkpoint", signal.SIGSTOP, 0, SILENT),
)


def under_way(what, fleet, output):
    """Say whether a part of the work is under way."""
    return {
        "reference": lambda: "reference log-probs (train): " in fleet.said(),
        "step": lambda: '"train"' in written(output / "metrics.jsonl")[fleet.begun :],
        "step behind a checkpoint": lambda: any(path.name.isdigit() for path in (output / "checkpoints").glob("*")),
        "checkpoint": lambda: unfinished(output) - fleet.before,
        "sampling": lambda: written(part(output))[fleet.begun :].count("\n") > 2,
    }[what]()


def part(output):
    """Return the answers of the first segment of an online run, as far as they are sampled."""
    return output / "segment-1" / "samples.part"


def unfinished(output):
    """Return the names of checkpoints that are being written, or were when a process ended."""
    return {path.name for path in (output / "checkpoints").glob("*.orbax-checkpoint-tmp*")}


def written(path):
    return path.read_text() if path.exists() else ""


def broken(fleet, output, what, number, host, hosts=HOSTS):
    """Start; let a signal reach a host while something is under way; return what the others say when they end."""
    file = part(output) if what == "sampling" else output / "metrics.jsonl"
    fleet.begun, fleet.before = len(written(file)), unfinished(output)
    fleet.start(output.name, hosts=hosts)
    while not under_way(what, fleet, output):
        assert fleet.ended() == [None] * hosts, fleet.all_said()
        time.sleep(0.002)
    fleet.kill(host, signal=signal.SIGKILL if number == AGAIN else number)
    if number == AGAIN:
        fleet.again(host)
    begun = time.monotonic()
    others = [n for n in range(hosts) if n != host or number == AGAIN]
    ends = fleet.wait(*{host}.difference(others), seconds=60)
    took = time.monotonic() - begun
    if number == signal.SIGSTOP:  # it holds its folder
        fleet.kill(host)
    fleet.wait()
    assert all(ends[n] == 1 for n in others), ends
    return [fleet.said(n) for n in others], took


def require_one_line(said, host, reason):
    """Each host that is left says once why it ends, and nothing else."""
    for text in said:
        (line,) = [line for line in text.splitlines() if line.startswith("error")]
        assert line.startswith(f"error: host {host} ({socket.gethostname()}"), line
        assert reason in line and "start all hosts with the same command" in line, line
        assert "Traceback" not in text and "stack trace" not in text


@pytest.mark.timeout(900)
def test_a_run_whose_hosts_die_and_hang_goes_on_and_ends_with_the_same_numbers(workplace):  # noqa: F811
    fleet = Fleet("train", workplace, arguments=[f"--config.{key}={value}" for key, value in KEYS.items()])
    whole, output = workplace / "hosts whole", workplace / "hosts gone"
    fleet.run(whole.name, hosts=HOSTS)
    for what, number, host, reason in FAULTS:
        said, took = broken(fleet, output, what, number, host)
        require_one_line(said, host, reason)
        assert took < 2 * PATIENCE + 10
    fleet.run(output.name, hosts=HOSTS)
    assert "resumed behind step" in fleet.said()
    fleet.close()
    assert losses(output) == losses(whole)
    one, other = (folder / "hf" / "model.safetensors" for folder in (output, whole))
    assert one.read_bytes() == other.read_bytes()
