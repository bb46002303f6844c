"""A run that goes on, over and over, on other devices, hosts and micro-batches, is the run of one device."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from starter import Fleet
from test_resume import losses, workplace  # noqa: F401  a fixture

pytestmark = pytest.mark.check

# Hosts, devices of each, and keys; behind each so many more steps.
LEGS = (
    (1, 8, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}),
    (4, 1, {"mesh.data": 2, "mesh.fsdp": 2, "accumulate": 8}),
    (1, 1, {"accumulate": 2}),
    (2, 4, {"mesh.data": 1, "mesh.fsdp": 8}),
)
STEPS = 3
SHARED = {"checkpoint_every": 0, "eval_every": 3, "warmup_steps": 2, "learning_rate": 1e-2, "reference.cache": "cache"}


def keys(changes):
    return [f"--config.{key}={value}" for key, value in changes.items()]


@pytest.mark.timeout(900)
def test_a_run_goes_on_with_other_devices_hosts_and_micro_batches(workplace):  # noqa: F811
    fleet = Fleet("train", workplace, keys(SHARED))
    fleet.run("of one", *keys({"steps": len(LEGS) * STEPS, "reference.cache": "other"}), hosts=1)
    for leg, (hosts, devices, changes) in enumerate(LEGS):
        fleet.run("of many", *keys(changes | {"steps": (leg + 1) * STEPS}), hosts=hosts, devices=devices)
        said = fleet.said()
        assert f"resumed behind step {leg * STEPS} of {(leg + 1) * STEPS}" in said or not leg
        # What one host has made of the reference, others read.
        assert ("reference log-probs (train): read from cache" in said) == (leg > 0)
    fleet.close()
    one, many = losses(workplace / "of one"), losses(workplace / "of many")
    assert one.keys() == many.keys() and len(one) == len(LEGS) * STEPS + len(LEGS) + 1
    for place, numbers in one.items():
        for name in ("loss", "logps/chosen", "rewards/margins", "grad_norm"):
            if name in numbers:
                np.testing.assert_allclose(many[place][name], numbers[name], atol=1e-5, rtol=1e-5, err_msg=str(place))
    ours, theirs = (load_file(workplace / name / "hf" / "model.safetensors") for name in ("of many", "of one"))
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-5, err_msg=name)
