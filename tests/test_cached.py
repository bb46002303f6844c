"""The cache of computed things: many keys side by side, each with its own parts; what is damaged is never taken."""

import os
import sys

import numpy as np
import pytest

from slpojax import cached

ARRAYS = {"a": np.arange(5, dtype=np.int32), "b": np.ones(50, np.float32)}


def entry(folder, **key):
    return cached.Entry(folder, "thing", {"weights": "w", "length": "1"} | key)


def get(folder, seen, **key):
    """Ask for an entry, whose one array tells its key; note each computation in `seen`."""

    def make():
        seen.append(key)
        return [np.float32([len(str(key))])]

    lines = []
    (array,) = cached.get(entry(folder, **key), make, lines.append, what="things")
    assert array == len(str(key))
    return lines[0]


def test_two_keys_in_turn_are_computed_twice_in_all(tmp_path):
    seen = []
    lines = [get(tmp_path / "new", seen, length=key) for key in "ABABA"]
    assert seen == [{"length": "A"}, {"length": "B"}]
    assert lines[:2] == [
        "things: computing: nothing cached yet",
        "things: computing: no cached thing for these settings; nearest differs in: length",
    ]
    assert set(lines[2:]) == {f"things: read from {tmp_path / 'new'}"}


def test_the_nearest_key_is_the_one_that_differs_least(tmp_path):
    seen = []
    get(tmp_path, seen, weights="x", length="2", kernel="tiles")
    get(tmp_path, seen, weights="x", length="3", dtype="float32")
    cached.save(cached.Entry(tmp_path, "thing.more", {"weights": "w", "length": "5"}), ARRAYS)  # another name
    assert get(tmp_path, seen, length="3").endswith("differs in: weights, dtype")
    assert get(tmp_path, seen, weights="x", length="2").endswith("differs in: kernel")


def test_parts_belong_to_their_key_alone(tmp_path):
    one, two = entry(tmp_path), entry(tmp_path, length="2")
    for n in range(3):
        cached.save_part(one, {"a": np.int32([n])})
    cached.save_part(two, ARRAYS)
    assert cached.load(one).whole is None
    assert [part["a"].tolist() for part in cached.load(one).parts.values()] == [[0], [1], [2]]
    cached.save(one, ARRAYS)
    stored = cached.load(one)
    assert stored.parts == {} and stored.reason == "" and stored.whole.keys() == ARRAYS.keys()
    assert len(cached.load(two).parts) == 1, "the neighbour's part is still there"
    assert len(os.listdir(tmp_path)) == 2


def test_a_damaged_file_is_never_taken(tmp_path):
    """However much of a file is missing, or whichever bit of a number is wrong."""
    own = entry(tmp_path)
    cached.save(own, ARRAYS)
    path = cached.file(own)
    good = path.read_bytes()
    for name, array in cached.load(own).whole.items():
        np.testing.assert_array_equal(array, ARRAYS[name])

    def is_damaged(of):
        return cached.load(of) == cached.Stored(None, {}, f"damaged, and computed anew: {cached.file(of)}")

    for size in range(0, len(good), 7):
        path.write_bytes(good[:size])
        assert is_damaged(own), size
    at = good.index(ARRAYS["b"].tobytes()) + 90
    path.write_bytes(good[:at] + b"\xff" + good[at + 1 :])
    assert is_damaged(own)
    for at in range(0, len(good), 5):  # a bit anywhere, in what says how the rest is to be read, too
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x81]) + good[at + 1 :])
        assert is_damaged(own) or all(np.array_equal(x, ARRAYS[name]) for name, x in cached.load(own).whole.items())
    path.write_bytes(good)
    path.rename(cached.file(entry(tmp_path, length="2")))  # a file whose name does not tell its key
    assert is_damaged(entry(tmp_path, length="2"))


def test_a_folder_in_the_place_of_a_file_is_refused_and_a_file_in_that_of_the_folder(tmp_path):
    own = entry(tmp_path)
    cached.file(own).mkdir()
    with pytest.raises(ValueError, match=r"\.npz is a folder, where .* is to be cached; move it, or set"):
        cached.load(own)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, where"):
        cached.load(entry(tmp_path / "file"))


def test_what_a_kill_leaves_of_a_file_that_was_being_written_is_not_in_the_way(tmp_path):
    own = entry(tmp_path)
    cached.file(own).with_name(f"{cached.file(own).name}.1a2b3c4d").write_bytes(b"half")
    assert cached.load(own).reason == "nothing cached yet"
    cached.save(own, ARRAYS)
    assert cached.load(own).whole is not None


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose module `inner` is imported by `outer`, and `far` by nobody."""
    folder = tmp_path / "package_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "inner.py").write_text("ONE = 1\n")
    (folder / "far.py").write_text("ONE = 1\n")
    (folder / "outer.py").write_text("from package_of_a_test import inner\n\n\ndef f():\n    return inner.ONE\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, folder.name, raising=False)  # another test's
    return folder


@pytest.mark.parametrize(
    ("module", "text", "same"),
    [
        ("inner", "ONE = 2\n", False),
        ("inner", '"""What it knows."""\nONE = 1  # why\n', True),
        ("far", "ONE = 2\n", True),
        ("outer", "from package_of_a_test import inner\n\n\ndef f():\n    return -inner.ONE\n", False),
        ("outer", 'from package_of_a_test import inner\n\n\ndef f():\n    """Why."""\n    return inner.ONE\n', True),
    ],
)
def test_a_digest_of_code_follows_imports_and_passes_over_words(package, module, text, same):
    digest = cached.code_digest.__wrapped__
    before = digest("package_of_a_test.outer")
    (package / f"{module}.py").write_text(text)
    assert (digest("package_of_a_test.outer") == before) == same


def test_a_digest_of_code_reaches_the_head_from_the_log_probs():
    assert cached.code_digest("slpojax.models") != cached.code_digest("slpojax.models", "slpojax.sequence")
    with pytest.raises(ValueError, match="no module 'slpojax.no_such'"):
        cached.code_digest("slpojax.no_such")
