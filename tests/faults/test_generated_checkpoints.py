"""Generated damages of checkpoints: the numbers that were saved come back, or an older checkpoint's, or one line."""

import pathlib
import shutil

import numpy as np
import pytest
from fault_tools import attempt
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint import CONFIG, RUN, abstract, make, mesh, save, values

from slpojax import checkpoint

pytestmark = pytest.mark.check


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> pathlib.Path:
    """A folder with the checkpoints 3 and 6."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, {3: 0.5, 6: 0.4})
    return folder


def damage(draw, folder: pathlib.Path) -> None:
    """Change a file of a checkpoint, or the place of something."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[draw(st.integers(0, len(files) - 1))]
    content = bytearray(path.read_bytes())
    how = draw(st.sampled_from(["flip", "cut", "empty", "delete", "zeros", "longer", "other", "folder"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    other = files[draw(st.integers(0, len(files) - 1))].read_bytes()
    if how == "flip" and content:
        content[int(len(content) * where)] ^= 1 << draw(st.integers(0, 7))
    elif how == "zeros":
        begin = int(len(content) * where)
        content[begin:] = bytes(len(content) - begin)
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "delete":
        made = {"cut": content[: int(len(content) * where)], "empty": b"", "longer": content * 2, "other": other}
        path.write_bytes(made.get(how, content))


@given(st.data())
@settings(max_examples=200)
def test_no_damage_makes_other_numbers(outcomes, two, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(two, folder)
    for _ in range(data.draw(st.integers(1, 2))):
        damaged = data.draw(st.sampled_from(["6", "6", "3"]))
        if any((folder / damaged).rglob("*")):
            damage(data.draw, folder / damaged)

    def restore():
        c = checkpoint.open_folder(folder)
        try:
            return checkpoint.restore(c, abstract(mesh(1, 1)), config=CONFIG, contents=RUN.contents)
        finally:
            checkpoint.close(c)

    kind, found = attempt(restore)
    if kind == "refused":
        outcomes["refused"] += 1
        assert "no checkpoint in" in found and "can be restored" in found
    else:
        outcomes[f"restored from {'the newest' if found.step == 6 else 'the one before'}"] += 1
        expected = make(mesh(1, 1), found.step, found.step)
        assert found.data == {"next": found.step}
        for a, b in zip(values(found.state), values(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    shutil.rmtree(folder)
