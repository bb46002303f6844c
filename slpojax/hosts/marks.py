"""What the hosts of a run leave for each other to read, and what follows from it.

A mark is read by other hosts, whose clocks may differ: it holds no time. Whoever reads it notes by its own clock when
it last changed. Knows marks; knows no processes.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

RUNS, FAILED, DONE, ENDED = "runs", "failed", "done", "ended"  # states of a host; only the first one goes on

# Beats from a host's error until the others, which have none, end for it: it may be theirs, too.
GRACE = 5
# A host that is alive and behind the others may stay there for so many times as long as a silent one.
STALLED = 30

ALL = "all"  # the kind of a verdict: every host has come to its end
SILENT, BEHIND, BROKEN = "silent", "behind", "broken"  # others: one host is why all of them end

_AGAIN = "start all hosts with the same command: they go on from what is whole"


class Mark(NamedTuple):
    """What a host says of itself.

    Attributes:
        beat: a number that grows; that it does shows that the process is alive.
        name: of the machine.
        state: RUNS, FAILED, DONE or ENDED.
        step: the number of the step that it has begun; -1 outside of a run's steps.
        text: why it failed, a line.
    """

    beat: int
    name: str
    state: str = RUNS
    step: int = -1
    text: str = ""


class Seen(NamedTuple):
    """A mark, and when its reader saw it change, in seconds by the reader's clock.

    Attributes:
        mark: the newest.
        heard: when its beat last grew.
        changed: when its state last changed.
        moved: when its step last changed.
    """

    mark: Mark
    heard: float
    changed: float
    moved: float


class Verdict(NamedTuple):
    """What has come of the hosts.

    Attributes:
        kind: ALL, SILENT, BEHIND or BROKEN.
        line: says which host is why all end, and what to do; "" where none is.
    """

    kind: str
    line: str


def write(mark: Mark) -> str:
    """Return a mark as text."""
    return json.dumps(mark)


def read(text: str) -> Mark:
    """Return the mark that a text holds."""
    return Mark(*json.loads(text))


def update(seen: Seen | None, mark: Mark, now: float) -> Seen:
    """Return what is known of a host once its mark was read.

    Args:
        seen: what was known before; None for nothing.
        mark: as it was read.
        now: seconds, by the reader's clock.
    """
    if seen is None:
        return Seen(mark, now, now, now)
    old = seen.mark
    return Seen(
        mark,
        now if mark.beat != old.beat else seen.heard,
        now if mark.state != old.state else seen.changed,
        now if mark.step != old.step else seen.moved,
    )


def judge(seen: Mapping[int, Seen], now: float, *, patience: float, every: float) -> Verdict | None:
    """Say what has come of the hosts; None while all is well, or cannot be told yet.

    Args:
        seen: host -> what is known of it.
        now: seconds, by the clock of `seen`.
        patience: seconds that a host may give no sign of life.
        every: seconds between beats.
    """
    runs = {host: one for host, one in seen.items() if one.mark.state == RUNS}
    silent = [host for host, one in runs.items() if now - one.heard > patience]
    if silent:
        return Verdict(SILENT, gone(silent[0], seen[silent[0]].mark, patience))
    failed = sorted((one.changed, host) for host, one in seen.items() if one.mark.state == FAILED)
    line = _failed(failed[0][1], seen[failed[0][1]].mark) if failed else ""
    if not runs:
        return Verdict(ALL, line)
    if failed:
        well = all(now - one.heard <= 3 * every for one in runs.values())
        return Verdict(BROKEN, line) if well and now - failed[0][0] > GRACE * every else None
    steps = [one.mark.step for one in runs.values()]
    for host, one in runs.items():
        if 0 <= one.mark.step < max(steps) and min(steps) >= 0 and now - one.moved > STALLED * patience:
            return Verdict(BEHIND, _behind(host, one.mark, max(steps), STALLED * patience))
    return None


def gone(host: int, mark: Mark, patience: float) -> str:
    """Say that a host is gone."""
    return (
        f"{named(host, mark)} has given no sign of life for {patience:g} s (config.mesh.patience): it was killed, "
        f"hangs, or is cut off. See what it printed last, and that its process has ended; then {_AGAIN}"
    )


def again(host: int, mark: Mark) -> str:
    """Say that a host has been started again."""
    return (
        f"{named(host, mark)} has been started again while the others went on: its process before was killed, or "
        f"failed. See what that one printed last; then {_AGAIN}"
    )


def refused(host: int, name: str) -> str:
    """Say to a host that another process was this host before."""
    return (
        f"host {host} ({name}) has been started again while the others went on with the process that it was before. "
        f"They end now; {_AGAIN}"
    )


def ended(host: int, mark: Mark) -> str:
    """Say that a host has ended."""
    return f"{named(host, mark)} has ended, or is cut off: it closed its connection. See what it printed; then {_AGAIN}"


def named(host: int, mark: Mark) -> str:
    """Return what a message calls a host."""
    where = f", in step {mark.step}" if mark.step >= 0 else ""
    return f"host {host} ({mark.name or 'not heard of'}{where})"


def _failed(host: int, mark: Mark) -> str:
    return f"{named(host, mark)} has failed, and all hosts end with it. It says: {mark.text}"


def _behind(host: int, mark: Mark, other: int, seconds: float) -> str:
    return (
        f"{named(host, mark)} is alive and has not come further for {seconds:g} s, while another is in step {other}. "
        f"See what it waits for; then {_AGAIN}"
    )
