"""What follows from the marks that hosts leave, and the way to the first host; real processes: test_hosts_gone.py."""

import socket

import pytest

from slpojax.hosts import marks, relay
from slpojax.hosts.marks import DONE, ENDED, FAILED, RUNS, Mark, Seen

EVERY, PATIENCE = 1.0, 10.0
AGAIN = "start all hosts with the same command: they go on from what is whole"


def judged(*hosts, now=1000.0):
    """Return what follows from (seconds since the host was heard, its state, seconds it has been so, step, ...)."""
    seen = {
        host: Seen(
            Mark(7, f"m{host}", state, step, "disk full" * (state == FAILED)), now - heard, now - since, now - at
        )
        for host, (heard, state, since, step, at) in enumerate(hosts)
    }
    return marks.judge(seen, now, patience=PATIENCE, every=EVERY)


def runs(heard=0.5, step=5, at=0.0):
    return heard, RUNS, 900.0, step, at


def fails(since, heard=0.5):
    return heard, FAILED, since, 5, since


def test_nothing_follows_while_all_give_signs_of_life():
    assert judged(runs(), runs(9.9), runs(step=4)) is None


def test_one_that_is_silent_is_named_with_its_machine_and_its_step():
    kind, line = judged(runs(), runs(10.1, step=12), runs(step=-1))
    assert kind == marks.SILENT
    assert line.startswith("host 1 (m1, in step 12) has given no sign of life for 10 s (config.mesh.patience)")
    assert line.endswith(AGAIN)
    never = marks.judge({0: Seen(Mark(0, ""), 0.0, 0.0, 0.0)}, 11.0, patience=PATIENCE, every=EVERY)
    assert never.line.startswith("host 0 (not heard of) has given no sign of life")


def test_all_end_for_one_that_fails_once_the_others_have_had_the_time_to_fail_as_well():
    assert judged(runs(), fails(4.0), runs()) is None
    assert judged(runs(), fails(6.0), runs(3.5)) is None  # what is wrong may be that one
    kind, line = judged(runs(), fails(6.0), runs())
    assert (kind, line) == (
        marks.BROKEN,
        "host 1 (m1, in step 5) has failed, and all hosts end with it. It says: disk full",
    )


def test_those_that_fail_with_one_that_is_gone_say_that_it_is():
    assert judged(fails(8.0), runs(9.0), fails(8.0)) is None
    assert judged(fails(10.0), runs(11.0), fails(10.0)).line.startswith(
        "host 1 (m1, in step 5) has given no sign of life"
    )


def test_where_all_fail_or_are_done_all_end():
    assert judged(fails(0.0), fails(0.1)).kind == marks.ALL
    assert judged((0.5, DONE, 1.0, -1, 1.0), (99.0, ENDED, 1.0, -1, 1.0)) == (marks.ALL, "")
    assert "host 1 (m1, in step 5) has failed" in judged((0.5, DONE, 1.0, -1, 1.0), fails(0.0)).line


@pytest.mark.parametrize(("step", "behind"), [(5, True), (6, False), (-1, False)])
def test_one_that_is_alive_and_stays_behind_the_others_is_named_after_a_longer_time(step, behind):
    found = judged(runs(step=6), runs(step=step, at=marks.STALLED * PATIENCE + 1), runs(step=6))
    assert (found is not None) == behind
    if found:
        assert found.kind == marks.BEHIND
        assert (
            "host 1 (m1, in step 5) is alive and has not come further for 300 s, while another is in step 6"
            in found.line
        )


def test_a_mark_is_read_as_it_was_written_and_its_reader_keeps_the_time():
    mark = Mark(3, "m", FAILED, 4, "why")
    assert marks.read(marks.write(mark)) == mark
    seen = marks.update(None, Mark(1, "m"), 10.0)
    assert marks.update(seen, Mark(1, "m"), 20.0) == seen
    assert marks.update(seen, Mark(2, "m", RUNS, 1), 20.0)[1:] == (20.0, 10.0, 20.0)
    assert marks.update(seen, Mark(2, "m", DONE), 20.0)[1:] == (20.0, 20.0, 10.0)


def connected(way):
    """Connect to a relay or a door, as JAX's client does."""
    host, _, port = way.address.partition(":")
    return socket.create_connection((host, int(port)))


def opened(there):
    """Let in who comes to a first host."""
    far, _ = there.accept()
    assert far.recv(64).split()[:2] == [b"slpojax", b"1"]
    far.sendall(b"+")
    return far


def at(server):
    return f"127.0.0.1:{server.getsockname()[1]}"


def test_a_relay_passes_on_bytes_and_notes_that_the_other_end_has_closed():
    with socket.create_server(("127.0.0.1", 0)) as there:
        way = relay.Relay(at(there), 1)
        with connected(way) as here:
            far = opened(there)
            here.sendall(b"question")
            assert far.recv(100) == b"question"
            far.sendall(b"answer")
            assert here.recv(100) == b"answer" and not way.lost.is_set()
            far.close()
            assert way.lost.wait(10)
            here.settimeout(0.2)
            for _ in range(3):  # of what is asked now nobody hears, and nothing is said
                here.sendall(b"question")
                with pytest.raises(TimeoutError):
                    here.recv(1)
    way.close()


def test_a_connection_that_this_process_closes_is_no_end_of_the_first_host():
    with socket.create_server(("127.0.0.1", 0)) as there:
        way = relay.Relay(at(there), 1)
        with connected(way) as here:
            far = opened(there)
            here.sendall(b"last")
        assert far.recv(100) == b"last" and far.recv(100) == b""
        far.close()
        assert not way.lost.wait(0.3)
    way.close()


def test_a_relay_waits_for_the_first_host_to_start():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    way = relay.Relay(f"[127.0.0.1]:{port}", 1)
    with connected(way) as here:
        here.sendall(b"early")
        with socket.create_server(("127.0.0.1", port)) as there:
            there.settimeout(10)
            far = opened(there)
            assert far.recv(100) == b"early"
            far.close()
    way.close()


@pytest.mark.parametrize("address", ["[::]", "0.0.0.0", "127.0.0.1"])
def test_one_process_of_a_host_is_let_in(address):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as service:
        door = relay.Door(f"{address}:{port}", at(service))
        one, two = (relay.Relay(f"127.0.0.1:{port}", number) for number in (1, 2))
        assert one.welcome() and two.welcome() and one.welcome() and not door.again
        for _ in range(3):
            service.accept()[0].close()
        with connected(one) as here:
            far, _ = service.accept()
            with far:
                here.sendall(b"question")
                assert far.recv(100) == b"question"
                far.sendall(b"answer")
                assert here.recv(100) == b"answer"
        another = relay.Relay(f"127.0.0.1:{port}", 1)
        assert not another.welcome() and door.again == {1}
        with socket.create_connection(("127.0.0.1", port)) as stranger:  # as who looks which ports there are
            stranger.sendall(b"GET / HTTP/1.1\r\n".ljust(64))
            assert stranger.recv(100) == b""
        for way in (one, two, another):
            way.close()
