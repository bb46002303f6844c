"""The folder of a run: which can be one, and that one run at a time works in it."""

import os
import subprocess
import sys
import threading

import pytest

from slpojax import outputs


@pytest.mark.parametrize("name", ["lr[1e-6]", "runs*/a", "what?"])
def test_names_that_orbax_takes_for_patterns_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"config.output=.*takes for a pattern"):
        outputs.check(str(tmp_path / name))


@pytest.mark.parametrize("name", ["lr=1e-6", "läuft 🙂", "%d%s", "~", "a.b"])
def test_other_names_are_fine(tmp_path, name):
    assert outputs.check(str(tmp_path / name)) == tmp_path / name


def test_files_and_names_that_are_too_long_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, expected a folder"):
        outputs.check(str(tmp_path / "file" / "run"))
    with pytest.raises(ValueError, match=r"cannot hold a run: File name too long; choose another --config.output"):
        with outputs.alone(tmp_path / ("x" * 300)):
            pass


def test_a_second_run_is_refused_and_told_who_works_there(tmp_path):
    with outputs.alone(tmp_path / "run"):
        with pytest.raises(ValueError, match=f"another run works in .*run: process {os.getpid()} on .* since 20"):
            with outputs.alone(tmp_path / "run"):
                pass
        with outputs.alone(tmp_path / "other"):
            pass
    with outputs.alone(tmp_path / "run"):
        pass


def test_a_process_that_died_holds_nothing(tmp_path):
    code = "import os, sys; from slpojax import outputs\nwith outputs.alone(sys.argv[1]): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    with outputs.alone(tmp_path):
        pass


def test_a_run_may_wait_for_another(tmp_path, capsys):
    inside, order = threading.Event(), []

    def second():
        inside.wait(60)
        with outputs.alone(tmp_path, wait="waiting"):
            order.append("second")

    thread = threading.Thread(target=second)
    with outputs.alone(tmp_path):
        thread.start()
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"] and "waiting (process" in capsys.readouterr().out
