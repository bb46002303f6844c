"""Several programs at once: their order, their ends, and what becomes of those that an earlier process left."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from slpojax import jobs
from slpojax.jobs import Job


def job(folder, name, code, group=""):
    return Job(name, folder / name, (sys.executable, "-c", textwrap.dedent(code)), group or name)


def run(listed, at_once=2, ready=lambda job: True):
    return list(jobs.run(listed, at_once, ready, os.environ))


def test_each_job_says_how_it_ended_and_what_it_said_last(tmp_path):
    good, bad = (
        job(tmp_path, "good", "print('first'); print('done')"),
        job(tmp_path, "bad", "raise SystemExit('error: no')"),
    )
    ended = {one.job.name: one for one in run([good, bad])}
    assert (ended["good"].status, ended["good"].last) == (0, "done")
    assert (ended["bad"].status, ended["bad"].last) == (1, "error: no")
    assert (tmp_path / "good" / jobs.LOG).read_text() == "first\ndone\n"
    run([good])
    assert (tmp_path / "good" / jobs.LOG).read_text() == "first\ndone\n" * 2, "the log goes on"


def test_only_so_many_run_at_once_and_all_of_them_do(tmp_path):
    code = f"""
        import os, pathlib, time
        here = pathlib.Path({str(tmp_path)!r})
        (here / f"{{os.getpid()}}.on").touch(); time.sleep(0.3)
        print(len(list(here.glob("*.on")))); (here / f"{{os.getpid()}}.on").unlink()
    """
    ended = run([job(tmp_path, f"job{i}", code) for i in range(5)])
    counts = [int(one.last) for one in ended]
    assert len(ended) == 5 and max(counts) == 2


def test_the_first_of_a_group_goes_alone_until_its_others_may_follow(tmp_path):
    code = "import time; begun = time.time(); time.sleep(0.4); print(begun, time.time())"
    listed = [job(tmp_path, name, code, name[0]) for name in ("a1", "a2", "b1")]
    times = {one.job.name: tuple(map(float, one.last.split())) for one in run(listed, ready=lambda job: False)}
    assert times["a2"][0] >= times["a1"][1] and times["b1"][0] < times["a1"][1]
    times = {one.job.name: tuple(map(float, one.last.split())) for one in run(listed, ready=lambda job: True)}
    assert times["a2"][0] < times["a1"][1]


def test_who_stops_looking_ends_what_still_runs(tmp_path):
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("saved"))
        print("ready", flush=True); time.sleep(60)
    """
    listed = [job(tmp_path, "quick", "import time; time.sleep(0.5)"), job(tmp_path, "slow", code)]
    going = jobs.run(listed, 2, lambda job: True, os.environ)
    begun = time.monotonic()
    assert next(going).job.name == "quick"
    going.close()
    assert time.monotonic() - begun < 30 and jobs.last_line(tmp_path / "slow" / jobs.LOG) == "saved"


@pytest.mark.check
def test_a_job_that_a_killed_process_left_running_is_waited_for(tmp_path, capsys):
    code = "import time; print('begun', flush=True); time.sleep(1.0); print('left behind')"
    left = job(tmp_path, "left", code)
    program = f"""
        import os, pathlib
        from slpojax import jobs
        listed = [jobs.Job({left.name!r}, pathlib.Path({str(left.folder)!r}), {left.command!r}, "")]
        for _ in jobs.run(listed, 1, lambda job: True, os.environ): pass
    """
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    log = left.folder / jobs.LOG
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (ended,) = run([left])
    assert ended.status == 0 and "still works in" in capsys.readouterr().out
    assert log.read_text() == "begun\nleft behind\n" * 2, "one after the other"


def test_a_finished_job_is_known_by_what_was_written_of_it(tmp_path):
    one = job(tmp_path, "one", "")
    assert jobs.finished(one) is None
    one.folder.mkdir()
    jobs.finish(one, {"config": {"steps": 3}})
    assert jobs.finished(one) == {"config": {"steps": 3}}
    (one.folder / "done.json").write_text('{"config"')
    assert jobs.finished(one) is None, "a torn file says nothing"


def test_a_program_that_cannot_be_started_is_an_error_of_the_machine(tmp_path):
    with pytest.raises(FileNotFoundError):
        run([Job("none", tmp_path / "none", (str(tmp_path / "no program"),), "")])
