"""Hosts that are asked to end, one of them or all, do so together, and the next start goes on."""

import json
import signal
import time

import pytest
from starter import Fleet
from test_hosts_gone import under_way
from test_resume import losses, workplace  # noqa: F401  a fixture

from slpojax.hosts.stops import Place, Stop, where

HOSTS, STEPS = 4, 24
KEYS = {"mesh.fsdp": 2, "steps": STEPS, "checkpoint_every": 0, "warmup_steps": 2, "reference.batch_size": 4}
# What is under way, which signal reaches which hosts, and what the first one says.
BETWEEN, BEHIND = "between steps; the same command goes on from what is whole", "behind step "
ASKED = (
    ("reference", signal.SIGTERM, (3,), BETWEEN),
    ("step", signal.SIGTERM, (0, 1, 2, 3), BEHIND),
    ("step", signal.SIGINT, (1,), BEHIND),
)


@pytest.mark.check
@pytest.mark.timeout(900)
def test_hosts_that_are_asked_to_end_do_so_behind_the_same_step_and_go_on(workplace):  # noqa: F811
    fleet = Fleet("train", workplace, [f"--config.{key}={value}" for key, value in KEYS.items()])
    whole, output = workplace / "asked never", workplace / "asked"
    fleet.run(whole.name, hosts=HOSTS)
    for what, number, hosts, says in ASKED:
        path = output / "metrics.jsonl"
        fleet.begun, saved = len(path.read_text()) if path.exists() else 0, newest(output)
        fleet.start(output.name, hosts=HOSTS)
        while not under_way(what, fleet, output):
            assert fleet.ended() == [None] * HOSTS, fleet.all_said()
            time.sleep(0.002)
        fleet.kill(*hosts, signal=number)
        assert fleet.wait(seconds=60) == [128 + number] * HOSTS, fleet.all_said()
        (line,) = [line for line in fleet.said().splitlines() if line.startswith("stopped by")]
        assert line.startswith(f"stopped by {number.name}") and says in line
        if BEHIND in line:
            assert newest(output) > saved and f"behind step {newest(output)} of {STEPS}: checkpoint" in line
        else:
            assert newest(output) == saved
    fleet.run(output.name, hosts=HOSTS)
    fleet.close()
    assert losses(output) == losses(whole)
    one, other = (folder / "hf" / "model.safetensors" for folder in (output, whole))
    assert one.read_bytes() == other.read_bytes()


def newest(output):
    """Return the step of the newest checkpoint, 0 where there is none."""
    return max((int(path.name) for path in (output / "checkpoints").glob("[0-9]*") if path.name.isdigit()), default=0)


@pytest.mark.parametrize(
    ("places", "stop"),
    [
        ([(0, False, 0), (0, False, 0)], (15, 0, 0)),  # no host takes steps: at once
        ([(1, True, 4), (1, True, 6), (1, True, 5)], (15, 1, 7)),  # none behind a step that another has left
        ([(2, True, 8), (1, False, 4)], (15, 2, 9)),  # the other one is about to take steps, too
        ([(2, True, 8), (2, False, 9)], (15, 2, 2**62)),  # it has taken all of them: so does the first
    ],
)
def test_where_hosts_end_is_a_place_that_all_of_them_come_to(places, stop):
    assert where(15, [Place(*json.loads(json.dumps(place))) for place in places]) == Stop(*stop)
