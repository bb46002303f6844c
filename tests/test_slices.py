"""Two slices of two hosts each, with clocks and folders of their own: the numbers of one process, and a clear end."""

import shutil
import signal
import time

import pytest
from starter import Fleet
from test_hosts_gone import SILENT, require_one_line, written
from test_resume import require_near, workplace  # noqa: F401  a fixture

HOSTS, PATIENCE, STEPS = 4, 8.0, 16
KEYS = {"mesh.patience": PATIENCE, "steps": STEPS, "checkpoint_every": 3, "warmup_steps": 2, "reference.batch_size": 4}
SPLIT = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
CLOCKS = (7200.0, 5 * 3600.0, -3 * 86400.0, 61.0)  # seconds that hosts are ahead


def machines(folder):
    """Give each host a folder of its own with model and data; return what they take for their machines."""
    for number in range(HOSTS):
        place = folder / f"machine {number}"
        shutil.copytree(folder / "model", place / "model", copy_function=shutil.copy)
        for name in ("pairs.jsonl", "tiny.py"):
            shutil.copy(folder / name, place)
        yield {"folder": str(place), "clock": CLOCKS[number], "slices": 2}


@pytest.mark.check
@pytest.mark.timeout(600)
def test_two_slices_are_one_process_and_end_where_one_is_gone(workplace):  # noqa: F811
    fleet = Fleet("train", workplace, [f"--config.{key}={value}" for key, value in KEYS.items()])
    fleet.machines = list(machines(workplace))
    alone, output = workplace / "alone", workplace / "slices"
    fleet.run(alone.name, f"--config.output={alone}", hosts=1)

    # Weights that would be split over the network are refused, so the hosts do know of two slices.
    fleet.start("refused", f"--config.output={workplace / 'refused'}", "--config.mesh.fsdp=4", hosts=HOSTS)
    assert fleet.wait() == [1] * HOSTS
    assert all("mesh.data=1 is not divisible by 2 slices" in said for said in fleet.all_said()), fleet.all_said()

    # Hosts 1 and 3 are a slice, and are gone at the same moment.
    fleet.start(output.name, f"--config.output={output}", *SPLIT, hosts=HOSTS)
    while written(output / "metrics.jsonl").count('"train"') < STEPS // 2:
        assert fleet.ended() == [None] * HOSTS, fleet.all_said()
        time.sleep(0.002)
    fleet.kill(1, 3, signal=signal.SIGKILL)
    begun = time.monotonic()
    assert fleet.wait() == [1, -signal.SIGKILL, 1, -signal.SIGKILL], fleet.all_said()
    assert time.monotonic() - begun < 2 * PATIENCE + 10
    require_one_line([fleet.said(0), fleet.said(2)], 1, SILENT)

    fleet.run(output.name, f"--config.output={output}", *SPLIT, hosts=HOSTS)
    assert "resumed behind step" in fleet.said()
    fleet.close()
    require_near(output, alone)
