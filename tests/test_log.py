"""What a program says: once for all hosts, and how far it is."""

import io
import os
import pathlib
import re
import subprocess
import sys
import threading

import pytest
import rich
from rich.console import Console

from slpojax import errors, log


@pytest.mark.parametrize("terminal", [False, True])
def test_track_shows_how_far_it_is(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    assert list(log.track(iter("abc"), 3, "reference", console=console)) == ["a", "b", "c"]
    text = console.file.getvalue()
    assert "reference" in text and "3/3" in text
    assert terminal or text == "reference 3/3  in 0:00\n"


def test_a_line_is_printed_as_it_is(capsys):
    log.say("[red] 1/2 " + "w" * 300)
    assert capsys.readouterr().out == "[red] 1/2 " + "w" * 300 + "\n"


def test_the_first_host_alone_speaks(monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    log.say("a line")
    assert list(log.track("ab", 2, "letters")) == ["a", "b"]
    assert capsys.readouterr().out == ""


def test_a_line_does_not_tear_a_progress_bar(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    for letter in log.track("ab", 2, "letters"):
        log.say(f"a whole line of {letter}")
    assert "a whole line of b\n" in console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_count_bar_and_time_left_come_first_and_a_long_text_is_cut(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    with log.bar(console) as progress:
        progress.add_task("", total=1920, completed=43, left="1:52:30 left", text="loss 0.6931  " * 20)
    lines = re.findall(r"[^\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()))
    assert max(map(len, lines)) <= width
    assert re.fullmatch(r" *43/1920 [━╸╺]{4,12} 1:52:30 left loss 0.6931 .*… *", lines[-1]), lines[-1]


CACHED = """
import slpojax, jax, sys
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((8, 8))).sum())
"""


@pytest.mark.check
def test_programs_that_are_read_back_bring_no_pages_of_warnings(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}
    command, root = [sys.executable, "-c", CACHED, str(tmp_path)], pathlib.Path(__file__).parents[1]
    for _ in range(2):
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True)
        assert done.stderr == "" and done.stdout
    assert list(tmp_path.iterdir()), "nothing was kept"


def test_behind_a_programs_last_line_no_other_thread_says_anything(capsys):
    with pytest.raises(SystemExit, match="error: why"), errors.as_lines():
        raise SystemExit("error: why")
    thread = threading.Thread(target=lambda: print("a trace", file=sys.stderr))
    thread.start()
    thread.join()
    print("error: why", file=sys.stderr)
    assert capsys.readouterr().err == "error: why\n"
