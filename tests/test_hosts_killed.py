"""Many ends of a run over four hosts into a bucket: killed, one host or all, or asked to end, at random moments.

By hand alone, for time: `SLPOJAX_HOST_ENDS=200 pytest -m "check and not optimised" tests/test_hosts_killed.py` are as
many as a run of hours may see; what came of such runs is in benchmarks/RESULTS.md. In `make check` hosts are ended one
kind after the other, in tests/test_hosts_gone.py and tests/test_hosts_asked.py.
"""

import os
import pathlib
import re
import shutil
import signal
import time

import buckets
import numpy as np
import pytest
from starter import Fleet
from test_buckets_live import brought
from test_resume import losses, newest, workplace  # noqa: F401  a fixture

from slpojax import places
from slpojax.places import sending

HOSTS, PATIENCE = 4, 8.0
ENDS = int(os.environ.get("SLPOJAX_HOST_ENDS", "0"))
STEPS = 8 * (ENDS + 2)
KEYS = {"mesh.patience": PATIENCE, "mesh.fsdp": 2, "steps": STEPS, "checkpoint_every": 3, "reference.batch_size": 4}
# What ends a start, in turn: a signal, and whether it reaches all hosts or one.
WAYS = ((signal.SIGKILL, False), (signal.SIGTERM, True), (signal.SIGKILL, True), (signal.SIGTERM, False))


def end(fleet: Fleet, url: str, rng: np.random.Generator, way: tuple, limit: int) -> int:
    """Start; end the run at a random moment, behind the step `limit` at the latest; return how many steps it took."""
    number, all_of_them = way
    path = sending.here(url) / "metrics.jsonl"
    fleet.start("often", f"--config.output={url}", hosts=HOSTS)
    early, more = rng.random() < 0.25, rng.integers(1, 8)  # early: as soon as the hosts have come together
    while not (fleet.said() and early):
        assert fleet.ended() == [None] * HOSTS, fleet.all_said()
        if begun(fleet) is not None and newest(path) >= min(begun(fleet) + more, limit):
            break
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.5 if early else 0.05))
    hosts = range(HOSTS) if all_of_them else [int(rng.integers(HOSTS))]
    fleet.kill(*hosts, signal=number)
    ends = fleet.wait(seconds=120)
    killed = number == signal.SIGKILL
    wanted = [(-9 if n in hosts else 1) if killed else 128 + number for n in range(HOSTS)]
    assert ends == wanted, fleet.all_said()
    taken = 0 if begun(fleet) is None else newest(path) - begun(fleet)
    if killed and all_of_them:  # other machines go on, which have nothing of the run
        shutil.rmtree(places.cache(), ignore_errors=True)
    return taken


def begun(fleet: Fleet) -> int | None:
    """Return the step behind which a start takes steps, None where it has not come so far."""
    found = re.search(r"resumed behind step (\d+) ", fleet.said())
    return int(found[1]) if found else 0 if "parameters on" in fleet.said() else None


@pytest.mark.check
@pytest.mark.skipif(not ENDS, reason="SLPOJAX_HOST_ENDS=200 ends a run over hosts so many times")
@pytest.mark.timeout(36_000)
def test_a_run_over_four_hosts_ends_bit_for_bit_however_often_it_was_ended(
    workplace: pathlib.Path,  # noqa: F811
    monkeypatch,
    capsys,
):
    with buckets.gcs() as store:
        for name, value in {**store.environment, places.CACHE: str(workplace / "copies")}.items():
            monkeypatch.setenv(name, value)
        fleet = Fleet("train", workplace, [f"--config.{key}={value}" for key, value in KEYS.items()])
        rng, whole, url = np.random.default_rng(0), workplace / "never", f"{store.url}/often"
        fleet.run(whole.name, hosts=HOSTS)
        taken = 0
        for number in range(ENDS):
            taken += end(fleet, url, rng, WAYS[number % len(WAYS)], STEPS * (number + 1) // (ENDS + 2))
            with capsys.disabled():
                print(f"end {number + 1} of {ENDS}: {taken} steps taken", flush=True)
        fleet.run("often", f"--config.output={url}", hosts=HOSTS)
        taken += STEPS - begun(fleet)
        fleet.close()
        output = brought(store, "often", workplace / "often")
    with capsys.disabled():
        print(f"{ENDS} ends over {HOSTS} hosts: {taken} steps for {STEPS}, {1 - STEPS / taken:.1%} of the work lost")
    assert losses(output) == losses(whole)
    one, other = (folder / "hf" / "model.safetensors" for folder in (output, whole))
    assert one.read_bytes() == other.read_bytes()
