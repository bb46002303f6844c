"""Generated metrics, widths and keys: what people see first holds whatever comes, or says in one line what is wrong."""

import io
import json
import math
import re

import pytest
from fault_tools import SECRET, attempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from slpojax import defaults, log, named, outcome, plots, quantities
from slpojax.settings import resolve

pytestmark = pytest.mark.check
KEYS = named.flatten(defaults.get_config().to_dict(), ".")
NAMES = st.sampled_from([next(iter(q.metrics)).replace("(chosen|rejected)", "chosen") for q in quantities.QUANTITIES])
NUMBERS = st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf])
METRICS = st.dictionaries(NAMES | st.text("abz/_", min_size=1, max_size=8), NUMBERS, max_size=6)
SPLITS = st.sampled_from(["train", "eval", "other"])
ROWS = st.builds(lambda step, split, m: {**m, "step": step, "split": split}, st.integers(0, 9), SPLITS, METRICS)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.just(SECRET),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "split", "loss", "x"]), inner),
    max_leaves=4,
)
FIXTURES = [HealthCheck.function_scoped_fixture]


WHOLE = ROWS.map(json.dumps)


@given(
    st.lists(WHOLE, max_size=5) | st.lists(WHOLE | JUNK.map(json.dumps) | st.text(max_size=12), max_size=5),
    st.booleans(),
)
@settings(max_examples=800, suppress_health_check=FIXTURES, deadline=None)
def test_metrics_are_read_as_they_stand_or_the_line_is_named(outcomes, tmp_path, lines, torn):
    file = tmp_path / "metrics.jsonl"
    text = "".join(line.replace("\n", " ").replace("\r", " ") + "\n" for line in lines)
    file.write_bytes((text + '{"step": 3, "split": "tra' * torn).encode(errors="replace"))
    kind, points = attempt(lambda: plots.load(tmp_path))
    outcomes[kind] += 1
    if kind == "refused":
        assert re.search(r"metrics.jsonl, line \d+: expected", points)
        return
    rows = [json.loads(line) for line in text.split("\n") if line]
    expected = {(m, r["split"], r["step"]): float(v) for r in rows for m, v in r.items() if m not in ("step", "split")}
    read = {(m, split, int(s)): v for (m, split), both in points.items() for s, v in zip(*both, strict=True)}
    assert read.keys() == expected.keys()
    assert all(a == expected[key] or math.isnan(a) and math.isnan(expected[key]) for key, a in read.items())


@given(st.lists(ROWS, max_size=12))
@settings(max_examples=300, deadline=None)
def test_every_metric_of_an_evaluation_has_one_row_that_fits(outcomes, rows):
    made = outcome.table("a run", rows)
    outcomes["accepted"] += 1
    held_out = [row for row in rows if row["split"] == "eval"]
    assert (made is None) == (not held_out and not [row for row in rows if row["split"] == "train"])
    if made is not None and held_out:
        names = {name for row in (held_out[0], held_out[-1]) for name in row} - {"step", "split"}
        assert made.row_count == len(names)
        console = Console(file=io.StringIO(), width=200)
        console.print(made)
        shown = console.file.getvalue()
        assert all(quantities.label(name) in shown for name in names)


@given(
    st.integers(40, 200),
    st.integers(1, 10**6).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
)
@settings(max_examples=250, deadline=None)
def test_the_progress_line_fits_and_begins_with_the_count(outcomes, width, count, text):
    done, total = count
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    with log.bar(console) as progress:
        progress.add_task("", total=total, completed=done, left="59:59 left", text=text)
    lines = re.findall(r"[^\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()))
    outcomes["accepted"] += 1
    assert all(len(line) <= width and re.match(rf" *{done}/{total} ", line) and "59:59 left" in line for line in lines)


@given(st.sampled_from(sorted(KEYS)) | st.text("abcdeo._-", min_size=1, max_size=20), st.data())
@settings(max_examples=400, deadline=None)
def test_a_key_is_known_or_refused_with_few_near_ones(outcomes, key, data):
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(key) - 1))
        key = key[:at] + data.draw(st.sampled_from(["", "x", "_"])) + key[at + 1 :]
    same = {key: KEYS[key]} if key in KEYS else {key: SECRET}
    kind, message = attempt(lambda: resolve(defaults.get_config(), same, choices={}))
    outcomes[kind] += 1
    assert (kind == "accepted") == (key in KEYS)
    assert kind == "accepted" or f"config.{key}" in message and len(message) < 600


@given(NAMES | st.text(max_size=5), NUMBERS)
@settings(max_examples=300)
def test_a_number_is_shown_as_what_it_is(outcomes, metric, value):
    text = quantities.number(metric, value)
    outcomes["accepted"] += 1
    if math.isfinite(value):
        quantity = quantities.find(metric)
        step = 10.0 ** -(quantity.digits if quantity and quantity.digits is not None else 300)
        assert math.isclose(float(text), value, rel_tol=1e-3, abs_tol=step) and text != "-0.00"
        assert not re.fullmatch(r"-0\.?0*", text) and len(text) < 16
    else:
        assert math.isnan(float(text)) or float(text) == value
