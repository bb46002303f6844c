"""Requests to a server: every way in which one goes wrong, against a real one on this machine."""

import json
import time

import pytest

from slpojax import servers
from slpojax.servers import Failure
from tests.loopback import Fault, serving

OKAY = {"answer": 42, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
SECRET = "sk-aabbccddeeff00112233"
TEXT = "a text of a prompt that nobody may see in an error"
QUICK = {"first_wait": 0.002, "longest_wait": 0.01, "timeout": 5.0, "attempts": 4}


def in_turn(*answers):
    """Answers one after the other, the last one from then on."""
    rest = list(answers)
    return lambda route, body: rest.pop(0) if len(rest) > 1 else rest[0]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, (("Retry-After", "0.01"),)),
        Fault(429, (("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"),)),
        Fault(500, body=b"<html>"),
        Fault(503, (("Retry-After", "nan"),)),
        Fault(body=b'{"answer": 42', cut=False),
        Fault(body=json.dumps(OKAY).encode(), cut=True),
        Fault(body=b"[]"),
    ],
)
def test_what_may_pass_is_asked_again(fault):
    with serving(in_turn(fault, fault, OKAY)) as there:
        server = servers.connect(there.url, **QUICK)
        assert servers.post(server, "/v1/x", {"prompt": TEXT}) == OKAY
        assert len(there.requests) == 3 and server.counts.repeated == 2 and server.counts.calls == 1
        assert (server.counts.prompt_tokens, server.counts.completion_tokens) == (3, 2)
        assert "3 tokens read and 2 written, 2 attempts repeated" in servers.counted(server)


@pytest.mark.parametrize(
    ("fault", "kind", "attempts", "words"),
    [
        (Fault(500), "status 500", 4, "answered 500 (4 attempts)"),
        (Fault(401), "status 401", 1, "environment variable"),
        (
            Fault(404, body=b'{"error": {"message": "no model of this name"}}'),
            "status 404",
            1,
            "(no model of this name)",
        ),
        (Fault(422, body=json.dumps({"detail": f"bad: {TEXT}"}).encode()), "status 422", 1, "a field of the request"),
        (Fault(400, body=json.dumps({"error": f"key {SECRET}"}).encode()), "status 400", 1, "answered 400"),
        (Fault(302, (("Location", "/elsewhere"),)), "status 302", 1, "answered 302"),
        (Fault(body=b"nothing"), "no JSON", 4, "7 bytes is no JSON"),
        (Fault(cut=True), "no connection", 4, "connection failed"),
    ],
)
def test_what_fails_for_good_is_named_without_a_text_or_a_key(fault, kind, attempts, words, monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    with serving(lambda route, body: fault) as there:
        server = servers.connect(there.url, key_variable="MY_KEY", **QUICK)
        found = servers.ask(server, "/v1/x", {"prompt": TEXT})
        assert isinstance(found, Failure) and found.kind == kind and words in found.reason
        assert len(there.requests) == attempts and server.counts.failures == {kind: 1}
        with pytest.raises(ValueError, match=f"{there.url}/v1/x: ") as error:
            servers.post(server, "/v1/x", {"prompt": TEXT})
    for shown in (str(error.value), str(found), repr(server), servers.counted(server)):
        assert SECRET not in shown and TEXT not in shown and "\n" not in shown
    assert there.requests[0][2]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "body", [{"prompt": "Ottilie"}, {"messages": [{"role": "user", "content": "Ottilie"}]}], ids=str
)
def test_a_short_text_is_not_repeated_either_but_the_name_of_a_model_is(body):
    def respond(route, body):
        return Fault(
            404, body=json.dumps({"error": "no model tiny" if "stop" in body else "I do not know Ottilie"}).encode()
        )

    with serving(respond) as there:
        server = servers.connect(there.url, **QUICK)
        assert "Ottilie" not in servers.ask(server, "/v1/x", body | {"model": "tiny"}).reason
        assert "(no model tiny)" in servers.ask(server, "/v1/x", body | {"model": "tiny", "stop": []}).reason


@pytest.mark.parametrize("fault", [Fault(pause=30), Fault(body=b" " * 1000, drip=0.05)], ids=["hangs", "drips"])
def test_an_answer_that_takes_too_long_is_given_up(fault):
    with serving(lambda route, body: fault) as there:
        server = servers.connect(there.url, **QUICK | {"timeout": 0.2, "attempts": 2})
        begun = time.perf_counter()
        found = servers.ask(server, "/v1/x", {})
        assert found == Failure("timed out after 0.2 s (2 attempts)", "timed out")
        assert time.perf_counter() - begun < 2


def test_a_server_that_is_not_there_or_dies_is_a_failure_and_one_that_comes_back_is_none():
    with serving(lambda route, body: {"n": body["n"]}) as there:
        server = servers.connect(there.url, **QUICK | {"in_flight": 1})
        answers = servers.post_many(server, "/v1/x", ({"n": n} for n in range(30)))
        assert [next(answers) for _ in range(3)] == [(n, {"n": n}) for n in range(3)]
        there.stop()
        rest = list(answers)
    assert [n for n, _ in rest] == list(range(3, 30))
    failed = [answer for _, answer in rest if isinstance(answer, Failure)]
    assert len(failed) >= 20 and {answer.kind for answer in failed} == {"no connection"}


def test_many_requests_come_in_order_several_at_once_and_never_more_than_allowed():
    now, most = [0], [0]

    def respond(route, body):
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.03 if body["n"] % 5 == 0 else 0.001)
        now[0] -= 1
        return {"n": body["n"]}

    with serving(respond) as there:
        server = servers.connect(there.url, **QUICK | {"in_flight": 3})
        assert list(servers.post_many(server, "/v1/x", [{"n": n} for n in range(30)])) == [
            (n, {"n": n}) for n in range(30)
        ]
    assert 2 <= most[0] <= 3


def test_who_stops_waits_for_nothing():
    with serving(lambda route, body: Fault(pause=20) if body["n"] else OKAY) as there:
        server = servers.connect(there.url, **QUICK | {"in_flight": 2})
        answers = servers.post_many(server, "/v1/x", ({"n": n} for n in range(5)))
        begun = time.perf_counter()
        assert next(answers) == (0, OKAY)
        answers.close()
        assert time.perf_counter() - begun < 1


def test_the_limit_on_the_rate_is_kept():
    with serving(lambda route, body: OKAY) as there:
        server = servers.connect(there.url, **QUICK | {"per_minute": 60 / 0.04})
        begun = time.perf_counter()
        list(servers.post_many(server, "/v1/x", [{}] * 6))
        assert time.perf_counter() - begun >= 5 * 0.04


def test_a_server_that_wants_none_for_a_while_gets_none():
    with serving(in_turn(Fault(429, (("Retry-After", "0.3"),)), OKAY)) as there:
        server = servers.connect(there.url, **QUICK | {"longest_wait": 1.0, "in_flight": 1})
        begun = time.perf_counter()
        assert servers.post(server, "/v1/x", {}) == OKAY and 0.3 <= time.perf_counter() - begun < 1.0


def test_an_answer_that_is_not_what_was_asked_is_asked_for_again():
    wrong = {"answer": 41}
    with serving(in_turn(wrong, OKAY, wrong)) as there:
        server = servers.connect(there.url, **QUICK)

        def check(answer):
            return "" if answer["answer"] == 42 else "not 42"

        assert servers.post(server, "/v1/x", {}, check) == OKAY
        found = servers.ask(server, "/v1/x", {}, check)
    assert found == Failure("the answer is not what was asked for: not 42 (4 attempts)", "not as asked")


def test_an_answer_is_cached_by_the_content_of_its_request(tmp_path):
    with serving(lambda route, body: Fault(400) if body["n"] == 2 else {"n": body["n"]}) as there:
        for again in range(2):
            server = servers.connect(there.url, cache=tmp_path, **QUICK)
            found = [answer for _, answer in servers.post_many(server, "/v1/x", [{"n": n} for n in range(3)])]
            assert found[:2] == [{"n": 0}, {"n": 1}] and isinstance(found[2], Failure)  # failures are not cached
            assert (server.counts.cached, server.counts.calls) == ((2, 0) if again else (0, 2))
        assert len(there.requests) == 4
        assert servers.post(server, "/v1/y", {"n": 1}) == {"n": 1} and len(there.requests) == 5  # another route
        for file in tmp_path.rglob("*.json"):  # damaged ones are asked again
            file.write_bytes(file.read_bytes()[:5])
        assert servers.post(server, "/v1/x", {"n": 1}) == {"n": 1} and len(there.requests) == 6


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://a", "http://", "http://a:b", "http://user:pass@a"])
def test_what_is_no_server_is_refused(url):
    with pytest.raises(ValueError) as error:
        servers.connect(url)
    assert "pass@" not in str(error.value)


def test_a_key_that_is_not_there_is_missed(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ValueError, match="MY_KEY"):
        servers.connect("http://127.0.0.1:1", key_variable="MY_KEY")
    assert servers.connect("http://127.0.0.1:1/v1/").url == "http://127.0.0.1:1"
