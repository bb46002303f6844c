"""What fits, and how fast: bytes by part, what is cached, what is refused; this machine's devices as witness."""

import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny
from conftest import REPOSITORY

from slpojax import bench as benches
from slpojax import compiling, data, flops, frozen, grid, plan, sampling, scores, settings, topology, train, training
from slpojax import parts as loading
from slpojax.plan import making, passes, programs, report, search, shapes

LLAMA = tiny.MODEL | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
NO_TPU = not pathlib.Path(os.environ.get("TPU_LIBRARY_PATH", "")).is_file()


def configured(changes, of="dpo_hh"):
    """A shipped configuration with some keys changed, small, and with no cache of plans."""
    small = {"batch_size": 8, "data.row_length": 0, "data.max_length": 64, "plan.cache": "", "accumulate": 8}
    return settings.resolve(settings.load_file(f"configs/{of}.py"), small | changes, choices=plan.CHOICES)


def numbers(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


# ---- bytes by part ---------------------------------------------------------------------------------------------------


def test_bytes_by_part_are_sums_over_shapes():
    """RMSprop's one moment, weights over four devices; norms and biases too small to divide lie everywhere."""
    config = configured({"mesh.fsdp": 4, "mesh.data": 2})
    devices = grid.make(2, 4, 1)
    planned = programs.prepare(config, LLAMA, devices)
    held = programs.held(planned, programs.programs(planned)[programs.STEP])
    params = planned.setup.like.params
    by_hand = sum(
        4 * math.prod(x.shape) // (4 if any("fsdp" in str(axis) for axis in x.sharding.spec) else 1)
        for x in jax.tree.leaves(params)
    )
    assert held["parameters"] == by_hand < 4 * numbers(params)
    assert held["moments"] == by_hand + 4  # and the count of the updates
    assert held["other state"] == 4 + 8  # the number of the step, and a key of two words
    assert "frozen weights" not in held and "reference" not in held

    shapes_of = planned.setup.layout.train
    rows, groups = shapes_of.rows // 8, shapes_of.groups // 8
    columns = shapes_of.examples * shapes_of.candidates
    of_rows = 4 * (4 * rows * shapes_of.length + 4 * groups * shapes_of.scored)
    small = 4 * (columns * 2 + 3 * shapes_of.examples)
    cached = 4 * (2 * columns * shapes_of.response + columns)
    assert held["batch"] == of_rows + small + cached


def test_adapters_hold_frozen_weights_and_a_reference_that_is_the_policys_takes_no_more():
    lora = {"train.what": "lora", "lora.rank": 4, "model.frozen_dtype": "bfloat16", "reference.mode": "online"}
    planned = programs.prepare(configured(lora | {"mesh.fsdp": 8}), LLAMA, grid.make(1, 8, 1))
    held = programs.held(planned, programs.programs(planned)[programs.STEP])
    base = planned.frozen.base
    of_model = jax.eval_shape(planned.bench.model.init, jax.random.key(0))
    assert flops.count(base) == numbers(of_model)
    assert {str(x.dtype) for x in jax.tree.leaves(planned.frozen.reference)} == {"bfloat16"}
    assert programs.shared(planned) == held["reference"]
    assert held["reference"] < held["frozen weights"]  # which have the scales of adapters beside them
    assert held["parameters"] == grid.held(planned.setup.like.params)


def test_a_moving_reference_is_part_of_the_state_and_candidates_that_are_picked_have_a_first_pass():
    moving = programs.prepare(configured({"reference.mode": "moving"}), LLAMA, grid.one_device())
    held = programs.held(moving, programs.programs(moving)[programs.STEP])
    assert held["moving reference"] == held["parameters"]
    picked = configured({"selection": "score_first", "data.row_length": 0}, of="mcpo_nectar")
    planned = programs.prepare(picked, LLAMA, grid.one_device())
    found = programs.programs(planned)
    assert list(found) == [programs.PICKS, programs.STEP]
    assert (found[programs.PICKS].shapes.candidates, found[programs.STEP].shapes.candidates) == (6, 2)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 2),
        ({"data.unpair": True, "data.mismatched": True}, 2),
        ({"data.degrade": 3}, 8),
        ({"data.candidates": 5, "data.pairs": "random"}, 2),
        ({"data.candidates": 4, "data.swapped": True}, 5),
    ],
)
def test_candidates_of_drawn_examples(changes, count):
    config = configured(changes)
    assert programs.candidates(config) == count and programs.like_hh(config).candidates == count


# ---- what a step computes --------------------------------------------------------------------------------------------


def test_work_by_hand():
    config = configured({"mesh.data": 1, "mesh.fsdp": 8, "accumulate": 16, "model.remat": "layer"})
    planned = programs.prepare(config, LLAMA, grid.make(1, 8, 1))
    found, lengths, of = programs.work(planned), planned.examples.lengths, planned.setup.layout.train
    body, head = flops.weights(planned.setup.like.params, np.empty((32, tiny.MODEL["vocab_size"])))
    response = lengths.response.sum(axis=1).mean()
    tokens = 8 * (lengths.prompt.mean() + response)
    assert found.tokens == pytest.approx(tokens)
    assert found.effective_tokens == pytest.approx(tokens + 8 * lengths.prompt.mean())
    assert found.useful == pytest.approx(6 * (body * tokens + head * 8 * response))
    cells, slots = of.rows * of.length, of.groups * of.scored
    assert found.executed == pytest.approx((8 * body * cells + 8 * head * slots) / 8)  # layers once more, logits too
    state = grid.held(planned.setup.like)
    weights = 2 * (body + head)  # bfloat16; forward, backward and once more, in two micro-batches
    gradients = grid.held(planned.setup.like.params)
    assert found.moved == pytest.approx(2 * (3 * weights + 2 * gradients) + 2 * state)
    assert programs.of_cache(planned) == pytest.approx(2 * (body * tokens + head * 8 * response))


# ---- beside the step -------------------------------------------------------------------------------------------------

SAMPLES = {"model.dtype": "bfloat16", "mesh.data": 2, "mesh.fsdp": 4, "generate.prompts": "asked.jsonl"}
SAMPLES |= {"generate.samples": 2, "generate.slots": 16, "generate.max_new_tokens": 4, "generate.count": 24}


def test_the_pass_of_a_reference_is_the_function_that_makes_the_cached_log_probs():
    devices = grid.make(2, 4, 1)
    config = configured({"mesh.data": 2, "mesh.fsdp": 4, "plan.lengths": "hh"})
    planned = programs.prepare(config, LLAMA, devices)
    found = passes.passes(planned)
    assert list(found) == [passes.REFERENCE]
    one, scan = found[passes.REFERENCE], planned.setup.layout.scan
    assert one.function is scores.scoring(planned.bench.model, scan, devices) and one.beside == 0
    weights, batch, none = one.inputs
    assert none is None and batch.ref is None and batch.length.shape == (scan.examples, 2)
    assert grid.held(weights) == grid.held(planned.setup.like.params)
    assert passes.passes(programs.prepare(configured({"reference.mode": "online"}), LLAMA, devices)) == {}
    elsewhere = programs.prepare(configured({"reference.path": "absent/model"}), LLAMA, devices)
    (note,) = passes.assumed(elsewhere)
    assert "with the policy's shape, as reference.path=absent/model" in note


def test_sampling_is_planned_with_what_a_run_gives_to_the_functions_that_it_calls(monkeypatch):
    """The very functions, the shapes of all arguments, and what stays beside the rounded copies of the weights."""
    devices = grid.make(2, 4, 1)
    planned = programs.prepare(configured(SAMPLES), LLAMA, devices)
    planned_calls = dict(zip(("prefill", "burst"), passes.called(planned), strict=True))
    made, given = sampling.device.programs, {}

    def recording(*arguments):
        found = made(*arguments)

        def recorded(name):
            def call(*inputs):
                given.setdefault(name, jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), inputs))
                return getattr(found, name)(*inputs)

            assert getattr(found, name) is planned_calls[name].function
            return call

        return found._replace(**{name: recorded(name) for name in planned_calls})

    monkeypatch.setattr(sampling.device, "programs", recording)
    at, lengths = planned.bench, planned.examples.lengths.prompt
    params = benches.draw_params(at)
    prompts = [np.ones(min(int(size), 60), np.int32) for size in np.resize(lengths, 24)]
    answers = sampling.generate(
        at.model, params, prompts, key=at.keys.sample, max_new_tokens=4, eos=(0,), samples=2, slots=16, grid=devices
    )
    assert len(answers) == 24
    for name, call in planned_calls.items():
        of = jax.tree.map(lambda x: (x.shape, x.dtype), call.inputs)
        assert jax.tree.leaves(given[name]) == jax.tree.leaves(of), name
    own = jax.tree.leaves(params)
    rounded = sum(x.nbytes for x in own if x.ndim == 3 or x.shape[0] == LLAMA["vocab_size"])
    copies = passes.passes(planned)[passes.SAMPLE].beside
    assert 0 < copies <= rounded and copies >= rounded / 8
    work = passes.sampled(planned)
    assert (work.slots, work.tokens) == (16, 4)
    assert work.executed == 2 * sum(programs.weights(planned)) * 16 / 8
    assert passes.sampled(programs.prepare(configured({}), LLAMA, devices)) is None


# ---- the model's shape -----------------------------------------------------------------------------------------------

PUBLIC = {
    "pythia-160m": "pythia-160m",
    "pythia-1b": "pythia-1b",
    "pythia-2.8b": "pythia-2.8b",
    "pythia-6.9b": "pythia-6.9b",
    "pythia-12b": "pythia-12b",
    "llama-3.2-1b": "Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "Llama-3.2-3B",
    "llama-3.1-8b": "Llama-3.1-8B-Instruct",
    "llama-3.1-70b": "Llama-3.3-70B-Instruct",
    "qwen3-0.6b": "Qwen3-0.6B",
    "qwen3-8b": "Qwen3-8B",
    "gemma-2-2b": "gemma-2-2b-it",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_shape_has_the_parameters_that_its_publisher_counts(name):
    from slpojax import models

    shape = jax.eval_shape(models.build(shapes.SHAPES[name]).init, jax.random.key(0))
    assert flops.count(shape) == published.PUBLISHED[PUBLIC[name]].parameters


def test_where_the_shape_is_from(tmp_path):
    made = tiny.make(tmp_path)
    here = configured({"model.path": str(made / "model"), "plan.model": "pythia-12b"})
    assert shapes.find(here)[0] == tiny.MODEL
    absent = configured({"model.path": "output/absent"})
    assert shapes.find(absent) == (
        shapes.SHAPES["pythia-2.8b"],  # as the file says
        "plan.model=pythia-2.8b, as model.path=output/absent is not on this machine",
    )
    public = configured({"model.path": "meta-llama/Llama-3.1-8B-Instruct", "plan.model": ""})
    assert shapes.find(public)[0] == shapes.SHAPES["llama-3.1-8b"]
    assert shapes.find(configured({"world": "reviews", "model.path": ""}))[1].startswith("of the world")
    with pytest.raises(ValueError, match="plan.model names no shape; set --config.plan.model"):
        shapes.find(configured({"model.path": "output/absent", "plan.model": ""}))
    with pytest.raises(ValueError, match="unknown plan.model 'pythia-2.8' .near: pythia-2.8b"):
        shapes.find(configured({"model.path": "output/absent", "plan.model": "pythia-2.8"}))


# ---- a plan for this machine, and what is kept -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def config(folder):
    """A run on the eight fake devices, by its own data."""
    changes = tiny.changes(folder, "run") | {
        "plan.lengths": "data",
        "plan.cache": str(folder / "plans"),
        "accumulate": 8,
    }
    changes |= {"train.what": "lora", "lora.rank": 2, "reference.mode": "online", "export": False, "mesh.data": 4}
    return settings.resolve(settings.load_file("configs/dpo_hh.py"), changes, choices=train.CHOICES)


@pytest.fixture(scope="module")
def result(config):
    return making.make(config)


def test_a_plan_holds_what_a_run_holds(config, result):
    """The arrays of a real start, on each of eight devices."""
    bench, method = benches.make(config), training.method(config)
    (part, *_) = loading.load(config, bench)
    layout = training.layout(config, method, [part.examples], bench.grid)
    base = benches.base_params(config, bench)
    _, weights, first, ref_model = frozen.prepare(config, bench, method, layout.scan, [part], base)
    setup = training.make(config, bench, method, layout, online=True, ref_model=ref_model)
    state = training.first_state(config, bench, setup, first)
    host = next(data.batches(part.examples, layout.train, seed=0, steps=layout.steps, prefetch=0))
    batch = grid.put_batch(bench.grid, host)
    parts = {"parameters": state.params, "moments": state.optimizer, "batch": batch}
    parts |= {"frozen weights": weights.base, "reference": weights.reference}
    for name, tree in parts.items():
        on = dict.fromkeys(jax.devices(), 0)
        for leaf in jax.tree.leaves(tree):
            for shard in leaf.addressable_shards:
                on[shard.device] += shard.data.nbytes
        assert set(on.values()) == {result.held[name]}, name

    # The program is given these and nothing else, but for what it does not look at: columns of the batch.
    (program,) = result.programs.values()
    given = sum(result.held.values())
    assert given - result.held["batch"] < program.memory.arguments <= given
    shared = jax.tree.leaves(weights.reference)
    pointers = {x.unsafe_buffer_pointer() for leaf in jax.tree.leaves(weights.base) for x in shards(leaf)}
    twice = [x for leaf in shared for x in shards(leaf) if x.unsafe_buffer_pointer() in pointers]
    assert sum(x.nbytes for x in twice) == 8 * result.shared  # no memory of its own


def shards(leaf):
    return [shard.data for shard in leaf.addressable_shards]


def test_a_second_plan_is_read_and_another_key_is_not(config, result, monkeypatch, capsys):
    def fails(*_, **__):
        raise AssertionError("compiled anew")

    monkeypatch.setattr(compiling, "compile_for", fails)
    again = making.make(config)
    assert again == result and "plan: read from" in capsys.readouterr().out
    elsewhere = settings.replace(config, {"output": "elsewhere", "plan.search": True})
    assert making.make(elsewhere) == result
    for changes in ({"accumulate": 16}, {"plan.topology": "v5e-8"}, {"plan.lengths": "hh"}):
        if "plan.topology" in changes and NO_TPU:
            continue
        with pytest.raises(AssertionError, match="compiled anew"):
            making.make(settings.replace(config, changes))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_something=true")
    with pytest.raises(AssertionError, match="compiled anew"):
        making.make(config)


def test_the_plan_of_this_machine_as_text(result):
    text = report.render(result)
    assert "the step takes" in text and "how much this machine's devices may use is not known" in text
    assert "| **peak of the step** |" in text and "no data sheet of these devices" in text
    assert "| step | all-reduce | data x fsdp |" in text
    assert making.from_json(json.loads(making.as_json(result))) == result


# ---- a plan as text --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_v5e(result):
    """The same as if it had been compiled for eight v5e."""
    spans = [one._replace(spans=(2, 4, 1)) for one in result.programs["step"].exchanges]
    compiled = result.programs["step"]._replace(exchanges=tuple(spans))
    return result._replace(topology="v5e-8", device="v5e", chips=(2, 4), number=8, programs={"step": compiled})


def test_the_time_of_a_step_by_hand(on_v5e):
    found = report.bound(on_v5e)
    work = on_v5e.work
    assert found.products == pytest.approx(work.executed / 197e12)
    assert found.memory == pytest.approx(work.moved / 819e9)
    sent = sum(one.sent for one in on_v5e.programs["step"].exchanges)
    assert found.links == pytest.approx(sent / 100e9)  # a corner of the slice has two links
    fast = report.speed(on_v5e, 2.0)
    assert fast.tokens == work.tokens / 2
    assert fast.mfu == pytest.approx(work.useful / 2 / (8 * 197e12))
    assert fast.hours == pytest.approx(20 / 4 * 2 / 3600) and fast.chip_hours == pytest.approx(8 * fast.hours)
    text = report.render(on_v5e)
    assert text.count("FITS: the step takes") == 1 and "GB are left" in text
    assert "cloud.google.com/tpu/docs/v5e" in text and "it is a bound" in text
    assert all(assumption in text for assumption in report.ASSUMPTIONS)


def test_what_does_not_fit_says_by_how_much(on_v5e):
    compiled = compiling.Compiled(None, compiling.Excess(31.2e9, 15.8e9), (), 1.0)
    text = report.render(on_v5e._replace(programs={"step": compiled}))
    assert "DOES NOT FIT: the step takes 31.20 GB of 15.80 GB on each device: 15.40 GB too much" in text
    memory = on_v5e.programs["step"].memory
    grown = on_v5e.programs["step"]._replace(memory=memory._replace(temporaries=20 * 10**9))
    fit = making.fit(on_v5e._replace(programs={"first pass": on_v5e.programs["step"], "step": grown}))
    assert (fit.fits, fit.program, fit.room) == (False, "step", 15.75 * 2**30)
    assert fit.used == pytest.approx(20e9 + memory.peak - memory.temporaries - on_v5e.shared)


def test_the_numbers_behind_the_page_of_plans_are_read():
    """Of another commit, perhaps: what is compiled is not compiled again, so a field that is added has to be there."""
    known = json.loads((REPOSITORY / "docs" / "results" / "plans.json").read_text())
    plans = [making.from_json(one["plan"]) for one in known.values() if "plan" in one]
    assert plans
    for one in plans:
        assert making.from_json(json.loads(making.as_json(one))) == one
        assert report.verdict(one) in report.render(one)


# ---- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v5e-17"], "error: unknown topology 'v5e-17' (near: v5e-1"),
        (["--topology=2xh200:8"], "expected 2 to 64 slices of TPUs"),
        (["--topology=v5e-16", "--config.plan.lengths=mine"], "error: unknown config.plan.lengths 'mine'"),
        (["--config.mesh.fsdp=3"], "does not fill 8 devices"),
        (["--search"], "set --config.plan.topology"),
        (["--config.plan.lengths=data"], "neither data.tokenizer nor model.path"),
    ],
)
def test_what_is_wrong_ends_in_one_line(arguments, words):
    with pytest.raises(SystemExit) as stopped:
        plan.main(["--config=configs/slpo_hh.py", "--config.plan.cache=", *arguments])
    assert words in str(stopped.value) and "\n" not in str(stopped.value)


# ---- a search --------------------------------------------------------------------------------------------------------


def test_a_search_tries_meshes_that_fill_the_devices_and_ranks_those_that_fit_first(on_v5e):
    config = configured({"plan.topology": "v5e-8", "batch_size": 64})
    tried = list(search.candidates(config, 8))
    assert all(one["mesh.data"] * one["mesh.fsdp"] * one["mesh.tensor"] == 8 for one in tried)
    assert tried[0] == {
        "mesh.data": 1,
        "mesh.fsdp": 8,
        "mesh.tensor": 1,
        "model.remat": "layer",
        "accumulate": 8,
        "model.attention": "splash",
    }
    assert len({json.dumps(one) for one in tried}) == len(tried) == 2 * 2 * 3 * 4
    refused = on_v5e._replace(programs={"step": compiling.Compiled(None, compiling.Excess(31.2e9, 15.8e9), (), 1.0)})
    slow = on_v5e._replace(work=on_v5e.work._replace(executed=1e15))
    order = report.ranked(zip(tried[:3], (refused, slow, on_v5e), strict=True))
    assert [changes for changes, _ in order] == [tried[2], tried[1], tried[0]]
    text = search.table(order)
    assert "| no | 31.20 | - | - | - |" in text
    assert f"| {search.lines_of(tried[2])} |" in text
    assert '    c.model.remat = "layer"' in text and "    c.mesh.fsdp = 2" in text


def test_a_search_compiles_as_many_as_it_may_and_leaves_out_what_is_refused(on_v5e, monkeypatch, capsys):
    config = configured({"plan.topology": "v5e-8", "batch_size": 64, "plan.tries": 3, "model.path": "absent"})
    monkeypatch.setattr(search, "_meshes_that_fit", lambda *_: {(1, 8, 1), (2, 4, 1)})
    asked = []

    def make(config):
        asked.append((config.mesh.data, config.mesh.fsdp, config.accumulate))
        if len(asked) == 2:
            raise ValueError("no such rows")
        return on_v5e

    monkeypatch.setattr(making, "make", make)
    text = search.run(config)
    assert asked == [(1, 8, 8), (2, 4, 8), (1, 8, 16)] and text.count("| yes |") == 2
    said = capsys.readouterr().out
    assert "search: 48 plans; the state of 24 alone does not fit; compiling 3" in said
    assert "search: left out: no such rows" in said


def test_a_mesh_whose_devices_cannot_hold_the_state_is_known_without_the_compiler():
    """Weights, RMSprop's moment and the gradients, of four devices and of all eight."""
    config = configured({})
    planned = programs.prepare(config, LLAMA, grid.make(2, 4, 1))
    held = programs.held(planned, programs.programs(planned)[programs.STEP])
    assert search.state_bytes(config, LLAMA, grid.make(2, 4, 1)) == 2 * held["parameters"] + held["moments"]
    assert search.state_bytes(config, LLAMA, grid.make(1, 8, 1)) < search.state_bytes(config, LLAMA, grid.make(2, 4, 1))


# ---- devices that are not there --------------------------------------------------------------------------------------


@pytest.mark.check
@pytest.mark.skipif(NO_TPU, reason="`make check` installs libtpu and points TPU_LIBRARY_PATH at it")
def test_a_plan_for_a_tpu_that_is_not_there(tmp_path):
    """Weights are gathered along fsdp, and what no chip holds is an answer."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    changes = {"plan.topology": "v5e-4", "mesh.fsdp": 2, "mesh.data": 2, "accumulate": 4}
    config = configured(changes | {"model.path": str(tmp_path)})
    made = making.make(config)
    assert making.fit(made).fits and made.chips == (2, 2) and made.number == 4
    assert list(made.programs) == [programs.STEP, passes.REFERENCE]
    program, reference = made.programs.values()
    assert reference.memory.peak < program.memory.peak and making.of_step(made) == {programs.STEP: program}
    assert "before it, the reference's pass" in report.render(made)
    assert program.memory.arguments >= sum(made.held.values()) - made.held["batch"]
    gathered = [one for one in program.exchanges if one.kind == "all-gather" and one.axes == ("fsdp",)]
    assert gathered and all(one.devices == 2 and one.times for one in gathered)
    assert any("data" in one.axes for one in program.exchanges)
    assert 0 < report.bound(made).least < report.bound(made).most < 1

    wide = {"hidden_size": 16384, "intermediate_size": 65536, "num_attention_heads": 128, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | wide))  # twelve bytes of each of 4.3e9 numbers, over two
    large = making.make(settings.replace(config, {"plan.programs": "step"}))
    assert making.fit(large).fits is False and "DOES NOT FIT" in report.render(large)


@pytest.mark.check
@pytest.mark.skipif(NO_TPU, reason="`make check` installs libtpu and points TPU_LIBRARY_PATH at it")
def test_a_search_with_the_compiler_ranks_what_fits(tmp_path, capsys):
    """Two meshes of four chips: weights over all of them, and over pairs. Nothing is compiled but the step."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    tried = {"plan.topology": "v5e-4", "plan.search": True, "plan.tries": 2, "plan.cache": str(tmp_path / "plans")}
    config = configured(tried | {"model.path": str(tmp_path), "model.dtype": "float32"})
    text = plan.plan(config)
    assert text.count("| yes |") == 2 and text.count("model.attention=tiles") == 2
    ranked = [line for line in text.splitlines() if line.startswith("| yes |")]
    seconds = [float(line.split("|")[4]) for line in ranked]
    assert seconds == sorted(seconds)
    assert {line.split("mesh.fsdp=")[1][0] for line in ranked} == {"4", "2"}
    said = capsys.readouterr().out
    assert "search: 12 plans" in said and said.count("compiling for v5e-4") == 2 and "reference" not in said
    assert plan.plan(config) == text and "compiling for" not in capsys.readouterr().out  # from the cache


@pytest.mark.check
@pytest.mark.skipif(NO_TPU, reason="`make check` installs libtpu and points TPU_LIBRARY_PATH at it")
@pytest.mark.parametrize("name", ["v4-8", "v5e-8", "v5p-8", "v6e-1", "tpu7x-8"])
def test_the_compiler_knows_the_devices_that_a_name_stands_for(name):
    target, made = topology.parse(name), topology.make(name, data=-1, fsdp=1, tensor=1)
    devices = list(made.mesh.devices.flat)
    known = report.DEVICES[target.device]
    assert len(devices) == target.number * known.per_chip
    assert {device.device_kind for device in devices} <= set(known.kinds)
    sides = [len({device.coords[axis] for device in devices}) for axis in range(3)]
    assert tuple(sides[: len(target.chips)]) == target.chips


@pytest.mark.check
@pytest.mark.skipif(NO_TPU, reason="`make check` installs libtpu and points TPU_LIBRARY_PATH at it")
def test_data_lies_over_slices_and_weights_within_them():
    made = topology.make("2xv5e-16", data=4, fsdp=-1, tensor=1)
    assert made.mesh.shape == {"data": 4, "fsdp": 8, "tensor": 1}
    slices = np.vectorize(lambda device: device.slice_index)(made.mesh.devices)
    assert slices[:, :, 0].tolist() == [[0] * 8] * 2 + [[1] * 8] * 2
    with pytest.raises(ValueError, match="mesh.data=1 is not divisible by 2 slices.*set --config.mesh.data=2"):
        topology.make("2xv5e-16", data=1, fsdp=-1, tensor=1)
