"""Learning from one's own samples on several hosts: the numbers of one, and what a host that is gone leaves behind."""

import signal

import numpy as np
import pytest
from starter import Fleet
from test_hosts_gone import PATIENCE, SILENT, broken, require_one_line
from test_online_kills import content, workplace  # noqa: F401  a fixture

from slpojax import metrics, samples

pytestmark = pytest.mark.check

SEGMENTS, STEPS = 2, 8
KEYS = {"online.segments": SEGMENTS, "steps": STEPS, "generate.count": 32, "mesh.patience": PATIENCE}
KEYS |= {"reference.batch_size": 4, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def fleet(workplace):  # noqa: F811
    fleet = Fleet("online", workplace, [f"--config.{key}={value}" for key, value in KEYS.items()])
    for hosts in (1, 2, 4):
        fleet.run(f"of {hosts}", hosts=hosts)
    yield fleet
    fleet.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("hosts", [2, 4])
def test_several_hosts_sample_judge_and_learn_what_one_does(fleet, workplace, hosts):  # noqa: F811
    one, several = workplace / "of 1", workplace / f"of {hosts}"
    for number in range(1, SEGMENTS + 1):
        asked = [[*samples.read(output / f"segment-{number}" / "samples.jsonl")] for output in (one, several)]
        for ours, theirs in zip(*asked, strict=True):
            assert ours.ids == theirs.ids
            np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)
        judged = [(output / f"segment-{number}" / "judged.jsonl").read_text() for output in (one, several)]
        assert judged[0].count("\n") == judged[1].count("\n") == 32 // SEGMENTS
    rows = [metrics.read_jsonl(output / "metrics.jsonl") for output in (one, several)]
    for ours, theirs in zip(*rows, strict=True):
        assert (ours["split"], ours["step"]) == (theirs["split"], theirs["step"])
        np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=1e-5)


@pytest.mark.timeout(900)
def test_hosts_that_are_gone_while_answers_are_sampled_change_no_byte(fleet, workplace):  # noqa: F811
    output = workplace / "gone"
    for number, host in ((signal.SIGKILL, 1), (signal.SIGSTOP, 0)):
        said, _ = broken(fleet, output, "sampling", number, host, hosts=2)
        require_one_line(said, host, SILENT)
    fleet.run(output.name, hosts=2)
    assert "goes on behind" in (workplace / "gone.5.log").read_text() + fleet.said()
    assert content(output) == content(workplace / "of 2")
