"""Every way through the program writes the numbers that it always wrote; see tests/programs.py."""

import json
import pathlib

import numpy as np
import programs
import pytest

GOLDEN = json.loads((pathlib.Path(__file__).parent / "goldens" / "programs.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return programs.make(tmp_path_factory.mktemp("programs"))


@pytest.mark.check
@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_a_program_writes_the_numbers_that_it_always_wrote(folder, name):
    made, golden = programs.run(folder, name), GOLDEN[name]
    assert made["metrics"].keys() == golden["metrics"].keys()
    for step, metrics in golden["metrics"].items():
        assert made["metrics"][step].keys() >= metrics.keys(), step
        for key, value in metrics.items():
            np.testing.assert_allclose(
                made["metrics"][step][key], value, rtol=2e-5, atol=2e-6, err_msg=f"{step}: {key}"
            )
    for tensor, norm in golden["norms"].items():
        np.testing.assert_allclose(made["norms"][tensor], norm, rtol=1e-5, err_msg=tensor)
