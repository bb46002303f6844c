"""The folder of a run: which can be one, and that one run at a time works in it."""

import os
import subprocess
import sys
import threading

import pytest

from slpojax import folder


@pytest.mark.parametrize("name", ["lr[1e-6]", "runs*/a", "what?"])
def test_names_that_orbax_takes_for_patterns_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"config.output=.*takes for a pattern"):
        folder.check(str(tmp_path / name))


@pytest.mark.parametrize("name", ["lr=1e-6", "läuft 🙂", "%d%s", "~", "a.b"])
def test_other_names_are_fine(tmp_path, name):
    assert folder.check(str(tmp_path / name)) == tmp_path / name


def test_buckets_files_and_names_that_are_too_long_are_refused(tmp_path):
    with pytest.raises(ValueError, match="buckets are not written to; give a local"):
        folder.check("gs://bucket/run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, expected a folder"):
        folder.check(str(tmp_path / "file" / "run"))
    with pytest.raises(ValueError, match=r"cannot hold a run: File name too long; choose another --config.output"):
        with folder.alone(tmp_path / ("x" * 300)):
            pass


def test_a_second_run_is_refused_and_told_who_works_there(tmp_path):
    with folder.alone(tmp_path / "run"):
        with pytest.raises(ValueError, match=f"another run works in .*run: process {os.getpid()} on .* since 20"):
            with folder.alone(tmp_path / "run"):
                pass
        with folder.alone(tmp_path / "other"):
            pass
    with folder.alone(tmp_path / "run"):
        pass


def test_a_process_that_died_holds_nothing(tmp_path):
    code = "import os, sys; from slpojax import folder\nwith folder.alone(sys.argv[1]): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    with folder.alone(tmp_path):
        pass


def test_a_run_may_wait_for_another(tmp_path, capsys):
    inside, order = threading.Event(), []

    def second():
        inside.wait(60)
        with folder.alone(tmp_path, wait="waiting"):
            order.append("second")

    thread = threading.Thread(target=second)
    with folder.alone(tmp_path):
        thread.start()
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"] and "waiting (process" in capsys.readouterr().out
