"""What a path is, and files that come from and go to a bucket of a real server in this process."""

import json
import os
import pathlib
import time

import buckets
import numpy as np
import pytest
from etils.epath import backend

from slpojax import cached, outputs, places, settings
from slpojax.places import claim, fetching, sending

gcsfs = pytest.importorskip("gcsfs")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A bucket that this process reads and writes."""
    with buckets.gcs() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        patch.setenv(places.CACHE, str(tmp_path_factory.mktemp("copies")))
        forget()
        patch.setitem(__import__("fsspec").config.conf, "gcs", {"token": "anon", "use_listings_cache": False})
        yield store
    forget()


def forget():
    """Let nobody use a connection to an earlier server."""
    gcsfs.GCSFileSystem.clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_local_paths_are_as_they_were(tmp_path):
    assert places.path("output/run") == pathlib.Path("output/run") and type(places.path("a")) is type(pathlib.Path("a"))
    assert places.absolute("~/run") == pathlib.Path("~/run").absolute()
    assert fetching.fetched(str(tmp_path / "x"), print) == tmp_path / "x" and sending.here("output") == pathlib.Path(
        "output"
    )
    places.require("output", "C/a:b/run")
    made = sending.mirror(str(tmp_path), first=True)
    made.due()
    made.send()
    assert not made.writes and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "stores", "words"),
    [
        ("az://box/run", ("gs",), "az:// is neither read nor written here; expected a local path, or gs://"),
        ("s3://bucket/run", ("gs",), "s3:// is neither read nor written here"),
        ("gs://bucket/run", (), "gs:// is neither read nor written here; expected a local path$"),
        ("https://host/run", ("gs", "s3"), "https:// is neither .* or gs:// or s3://"),
        ("gs:///run", ("gs",), "names no bucket; expected gs://BUCKET/FOLDER"),
        ("gs:/bucket/run", ("gs",), "names no bucket"),
    ],
)
def test_what_no_bucket_can_be_is_refused(path, stores, words):
    with pytest.raises(ValueError, match=f"config.output='{path}'.* ?{words}"):
        places.require("output", path, stores)


def test_refusals_and_absence_are_told_from_damage():
    for text in (
        "PERMISSION_DENIED: no",
        "HttpError: Service Unavailable, 503",
        "OSError: Forbidden: b/x",
        "timed out",
    ):
        assert places.out_of_reach(text), text
    assert places.out_of_reach(PermissionError("no")) and not places.out_of_reach(FileNotFoundError("Connect/x"))
    for text in ("DATA_LOSS: corrupt", "NOT_FOUND: no key", "the numbers of a are not those that were saved"):
        assert not places.out_of_reach(text), text


def test_a_folder_is_fetched_once_for_each_content(store):
    said = []
    store.put("models/a/config.json", b"{}")
    store.put("models/a/model.safetensors", b"12345")
    store.put("models/a/notes/x.json", b"-")
    first = fetching.fetched("gs://bucket/models/a/", said.append, files=("*.json", "*.safetensors"))
    assert sorted(file.name for file in first.iterdir()) == ["config.json", "model.safetensors"]
    assert said == [f"gs://bucket/models/a: fetched 2 files, 7 bytes, to {first}"]
    assert fetching.fetched("gs://bucket/models/a", said.append, files=("*.json", "*.safetensors")) == first
    assert len(said) == 1
    store.put("models/a/model.safetensors", b"54321")
    other = fetching.fetched("gs://bucket/models/a", said.append, files=("*.json", "*.safetensors"))
    assert other != first and (other / "model.safetensors").read_bytes() == b"54321"
    every = fetching.fetched("gs://bucket/models/a", said.append)
    assert (every / "notes" / "x.json").read_bytes() == b"-"
    with pytest.raises(ValueError, match="config.model.path=gs://bucket/models/b cannot be read: .*the name right?"):
        fetching.fetched("gs://bucket/models/b", said.append, key="model.path")


def test_a_fetch_that_was_cut_goes_on_and_patterns_find_objects(store):
    for name in ("a", "b"):
        store.put(f"data/{name}.jsonl", name.encode())
    assert fetching.listed("gs://bucket/data/*.jsonl") == ["gs://bucket/data/a.jsonl", "gs://bucket/data/b.jsonl"]
    whole = fetching.fetched("gs://bucket/data", print)
    part = whole.with_name(f"{whole.name}.part")
    whole.rename(part)
    (part / "b.jsonl").unlink()
    before = len(store.requests)
    assert fetching.fetched("gs://bucket/data", print) == whole and (whole / "b.jsonl").read_bytes() == b"b"
    asked = [path for _, path in store.requests[before:] if "alt=media" in path]
    assert asked and all("b.jsonl" in path for path in asked)


def test_files_of_a_run_are_sent_as_they_change_and_brought_back(store):
    output = "gs://bucket/runs/mine"
    with claim.held(output, print) as refusal:
        assert refusal == ""
        folder, made = sending.here(output), sending.mirror(output, first=True)
        (folder / "metrics.jsonl").write_text("1\n")
        (folder / "config.json").write_text("{}")
        made.send()
        (folder / "metrics.jsonl").write_text("1\n2\n")
        before = len(store.requests)
        made.due()  # it was a moment ago
        assert len(store.requests) == before
        made.send()
        written = [name for method, name in store.requests[before:] if method == "WRITE"]
        assert set(written) - {"runs/mine/lock"} == {"runs/mine/metrics.jsonl"}
    assert store.files()["runs/mine/metrics.jsonl"] == b"1\n2\n" and "runs/mine/lock" not in store.files()
    assert fetching.fetched(f"{output}/metrics.jsonl", print).read_text() == "1\n2\n"
    with pytest.raises(ValueError, match="gs://bucket/runs/none holds no config.json"):
        settings.of_run("gs://bucket/runs/none")
    with claim.held(output, print):
        assert not (folder / "metrics.jsonl").exists()
        sending.mirror(output, first=True)
        assert (folder / "metrics.jsonl").read_text() == "1\n2\n"


def test_a_write_that_is_lost_is_repeated_and_then_an_error(store, tmp_path):
    (tmp_path / "x").write_bytes(b"content")
    lost = []

    def lose(method, path):
        lost.append(method == "POST")
        return buckets.LOST if method == "POST" and sum(lost) <= times else None

    for times, name in ((1, "once"), (3, "always")):
        lost.clear()
        store.rule[0] = lose
        if times == 1:
            sending.send(tmp_path / "x", f"gs://bucket/lost/{name}")
        else:
            with pytest.raises(
                ValueError, match="gs://bucket/lost/always cannot be written: .*3 times, and is not there"
            ):
                sending.send(tmp_path / "x", f"gs://bucket/lost/{name}")
        store.rule[0] = lambda method, path: None
    assert store.files()["lost/once"] == b"content" and "lost/always" not in store.files()


def test_an_export_replaces_another_one_and_its_config_comes_last(store, tmp_path):
    for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json"):
        store.put(f"out/hf/{name}", b"old")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"new")
    before = len(store.requests)
    outputs.publish(tmp_path, places.path("gs://bucket/out/hf"))
    found = {name: content for name, content in store.files().items() if name.startswith("out/hf/")}
    assert found == {"out/hf/config.json": b"new", "out/hf/model.safetensors": b"new"} and not tmp_path.exists()
    changes = [(method, path) for method, path in store.requests[before:] if method in ("WRITE", "DELETE")]
    assert "config.json" in changes[0][1] and changes[0][0] == "DELETE"
    assert changes[-1] == ("WRITE", "out/hf/config.json")


def test_one_run_at_a_time(store, monkeypatch):
    monkeypatch.setattr(claim, "SILENCE", 0.3)
    monkeypatch.setattr(claim, "BEAT", 0.02)
    monkeypatch.setattr(claim, "_LOOK", 0.1)
    output, said = "gs://bucket/runs/one", []

    def held_by(**more):
        found = {"host": "another", "process": 1, "since": "2026", "token": "theirs", **more}
        store.put("runs/one/lock", json.dumps(found).encode())

    held_by()  # silent: its process was killed on another machine
    with claim.held(output, said.append) as refusal:
        assert refusal == "" and "waiting" in said[0]
        monkeypatch.setattr(claim, "_ended_here", lambda found: False)
        with claim.held(output, said.append) as second:  # this one beats
            assert f"another run works in {output}: process {os.getpid()}" in second
        made = sending.Mirror(output, writes=True)
        made.send()
        while b"theirs" not in store.files()["runs/one/lock"]:
            held_by()  # another machine took it, while this one was asleep
            time.sleep(0.1)
        with pytest.raises(ValueError, match="process 1 on another works there"):
            made.send()
    assert json.loads(store.files()["runs/one/lock"])["token"] == "theirs"


def test_a_lock_of_a_process_that_died_here_is_nobodys(store, monkeypatch):
    monkeypatch.setattr(claim, "_LOOK", 0.0)
    claimed = {"host": os.uname().nodename, "process": 2**22 + 1, "since": "2026", "token": "theirs"}
    store.put("runs/dead/lock", json.dumps(claimed).encode())
    with claim.held("gs://bucket/runs/dead", pytest.fail) as refusal:
        assert refusal == ""


def test_computed_things_are_cached_in_a_bucket(store):
    entry = cached.Entry(places.path("gs://bucket/cache"), "thing", {"weights": "a"})
    assert cached.load(entry).reason == "nothing cached yet"
    cached.save_part(entry, {"x": np.arange(2)})
    assert [*cached.load(entry).parts.values()][0]["x"].tolist() == [0, 1]
    cached.save(entry, {"x": np.arange(3)})
    assert cached.load(entry).whole["x"].tolist() == [0, 1, 2]
    other = cached.load(entry._replace(key={"weights": "b"}))
    assert other.whole is None and "nearest differs in: weights" in other.reason
    assert [name for name in store.files() if name.startswith("cache/")] == [f"cache/{cached.file(entry).name}"]
    store.rule[0] = lambda method, path: buckets.REFUSED if "alt=media" in path else None
    with pytest.raises(ValueError, match="config.reference.cache=gs://bucket/cache cannot be read"):
        cached.load(entry)  # and is not computed anew
    store.rule[0] = lambda method, path: None
