"""What a run says of itself and what its start costs: compilations, their cache, the trace, memory, FLOPs."""

import collections

import jax
import numpy as np
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache

from configs import base
from slpojax import data, flops, grid, metrics, objectives, settings, step, tracing, train, training
from slpojax.data.examples import Example

MISS = "/jax/compilation_cache/cache_misses"
HIT = "/jax/compilation_cache/cache_hits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("reporting"))


def go(folder, output, **changes):
    """Run the program; return its lines of metrics.jsonl."""
    values = tiny.changes(folder, output) | {"steps": 4, "eval_every": 0, "checkpoint_every": 2, "export": False}
    train.train(settings.resolve(base.get_config(), values | changes, choices=train.CHOICES))
    return metrics.read_jsonl(folder / output / "metrics.jsonl")


@pytest.fixture
def events():
    """How often JAX reports each of its events while a test runs."""
    seen = collections.Counter()

    def listen(name, **_):
        seen[name] += 1

    jax.monitoring.register_event_listener(listen)
    yield seen
    jax.monitoring.unregister_event_listener(listen)


@pytest.fixture
def no_cache_afterwards():
    """Leave JAX without a cache of compiled programs, as it was before."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.check
def test_a_second_start_compiles_nothing_and_a_trace_is_written_wherever_the_run_begins(
    folder, events, no_cache_afterwards, capsys, request
):
    changes = {"compiled": str(folder / "compiled"), "moments": "bfloat16"}
    jax.clear_caches()
    whole = go(folder, "whole", **changes, profile="4:4")
    assert events[HIT] == 0 and events[MISS] > 5
    assert list((folder / "whole" / "profile").rglob("*.xplane.pb")), "a trace of the run's last step"
    assert "a trace of steps 4 to 4" in capsys.readouterr().out
    assert [row["step"] for row in whole if row["split"] == "eval"] == [0, 4]  # eval_every=0

    events.clear()
    jax.clear_caches()  # as in another process
    go(folder, "parts", **changes, steps=2)
    assert events[HIT] > 5 and events[MISS] == 0

    # A resume amid the traced steps, with rounded moments; and one behind them.
    capsys.readouterr()
    request.getfixturevalue("profiler")  # a trace takes JAX's many seconds to write
    parts = go(folder, "parts", **changes, profile="1:3")
    assert "a trace of steps 3 to 3" in capsys.readouterr().out
    same = [[(row["split"], row["step"], row["loss"]) for row in rows] for rows in (parts, whole)]
    assert [row for row in same[0] if row[:2] != ("eval", 2)] == same[1]
    go(folder, "parts", **changes, steps=5, profile="1:3")
    assert "took none of steps 1 to 3" in capsys.readouterr().out


@pytest.fixture
def profiler(monkeypatch):
    """Stands in for JAX's, and complains as it does."""
    calls = []

    def start(folder, profiler_options):
        assert profiler_options.python_tracer_level == 0, "hooks in threads that begin or end crash the program"
        assert calls.count("start") == calls.count("stop"), "one at a time"
        calls.append("start")

    def stop():
        assert calls.count("start") > calls.count("stop"), "no profile started"
        calls.append("stop")

    monkeypatch.setattr("jax.profiler.start_trace", start)
    monkeypatch.setattr("jax.profiler.stop_trace", stop)
    return calls


@pytest.mark.parametrize(
    ("steps", "seen", "said"),
    [
        (range(1, 9), ["start", "stop"], "steps 3 to 5"),
        (range(1, 6), ["start", "stop"], "steps 3 to 5"),  # the last traced step is the run's last
        (range(1, 5), ["start", "stop"], "steps 3 to 4"),  # the run ends, or breaks, before
        (range(5, 9), ["start", "stop"], "steps 5 to 5"),  # resumed inside
        (range(6, 9), [], "none of steps 3 to 5"),  # resumed behind
        (range(1, 3), [], "none of steps 3 to 5"),
    ],
    ids=str,
)
def test_a_trace_is_begun_and_ended_once(tmp_path, profiler, capsys, steps, seen, said):
    trace = tracing.tracer(tmp_path, "3:5")
    for n in steps:
        trace.before(n, None)
    trace.close()
    assert profiler == seen and said in capsys.readouterr().out


def test_counts_are_those_of_the_examples():
    """Tokens count the shared prompt once, effective tokens once a response."""
    prompts, responses = (3, 5), ((2, 4), (6, 1))
    listed = [
        Example(np.full(p, 7, np.int32), tuple(np.full(r, 8, np.int32) for r in rs), (1.0, 0.0), i)
        for i, (p, rs) in enumerate(zip(prompts, responses, strict=True))
    ]
    pairs, order = data.build(listed, candidates=2), np.arange(2)
    shapes = data.plan(pairs, [order], row_length=32)
    found = training.counts(
        data.pack([pairs[int(i)] for i in order], shapes, order.astype(np.int32)), shapes, grid.one_device()
    )
    scored = sum(map(sum, responses))
    assert found == {
        "examples": 2,
        "tokens": sum(prompts) + scored,
        "effective_tokens": 2 * sum(prompts) + scored,
        "scored": scored,
        "slots": shapes.rows * shapes.length,
    }


@pytest.mark.parametrize(
    ("online", "needs", "cost"),
    [(True, {"policy", "ref"}, 2), (True, {"kl"}, 2), (True, {"policy"}, 0), (False, {"policy", "ref"}, 0)],
)
def test_the_reference_costs_where_its_weights_are_asked_for(online, needs, cost):
    objective = objectives.build("sft.token_mean")._replace(needs=frozenset(needs))
    one = {"tokens": 1, "scored": 0}
    operations = training._operations((1, 0), (1, 0), (3, 0), step.Method(objective), False, online, one, one)
    assert operations == flops.TRAIN + 3 * cost  # of a reference three times as large
