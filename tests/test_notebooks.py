"""Every notebook and its script say the same, cell by cell. (`make notebooks` runs them.)"""

import pathlib

import jupytext
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = sorted({path.stem for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")})


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_and_its_script_agree(name):
    script, notebook = (jupytext.read(FOLDER / f"{name}{suffix}").cells for suffix in (".py", ".ipynb"))
    ours, theirs = ([(cell.cell_type, cell.source) for cell in cells] for cells in (script, notebook))
    assert ours == theirs, f"jupytext --sync notebooks/{name}.py"
