"""The step: any accumulation, mesh or reference mode gives the same numbers; ten steps equal TRL's ten steps."""

import functools
import json
import math
import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_tools import named
from safetensors.numpy import load_file
from step_tools import compiled, grid_of, prepare

from slpojax import (
    bench,
    data,
    grid,
    head,
    hf,
    models,
    objectives,
    optim,
    scores,
    selectors,
    settings,
    step,
    topology,
    training,
)
from slpojax.base import EACH, Batch, Frozen, Logps, Model, Params, Shapes, State
from slpojax.data.examples import Example
from slpojax.models import attention

CONFIG = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def kto_like(policy: Logps, ref: Logps, *, beta: float = 0.5):
    """Couples examples by a mean: its loss depends on the whole batch."""
    reward = beta * jnp.sum(policy.token - ref.token, -1)
    baseline = jax.lax.pmean(jax.lax.stop_gradient(reward.mean()), "batch")
    return 1 - jax.nn.sigmoid(reward[0] - baseline) + jax.nn.sigmoid(reward[1] - baseline), {"baseline": baseline}


def sorted_like(policy: Logps, ref: Logps, *, beta: float = 0.5):
    """Couples examples by a sort of the global batch."""
    margin = jnp.sum(policy.token - ref.token, -1) @ jnp.array([1.0, -1.0])
    everybody = jnp.sort(jax.lax.all_gather(margin, "batch"))
    rank = jax.lax.axis_index("batch")
    return jax.nn.softplus(-beta * everybody[rank] * (1.0 + rank / 8)), {"margin": margin}


def running(policy: Logps, state: dict = {"mean": 0.0}, *, decay: float = 0.9):  # noqa: B006 the initial statistics
    """Keeps a running mean of the chosen's log-prob over all steps."""
    logp = jnp.sum(policy.token, -1)
    mean = jax.lax.pmean(jax.lax.stop_gradient(logp[0]), "batch")
    new = {"mean": decay * state["mean"] + (1 - decay) * mean}
    return jax.nn.softplus(logp[1] - logp[0] + 0.1 * new["mean"]), {"mean": new["mean"]}, new


def examples(count: int, candidates: int = 2, times: int = 1) -> data.Examples:
    """Prompts of 1 to 8 and responses of 1 to 11 tokens, or that many times as long."""
    rng = np.random.default_rng(3)

    def text(low, high):
        return rng.integers(4, 97, times * rng.integers(low, high)).astype(np.int32)

    return data.build(
        [
            Example(
                text(1, 9),
                tuple(text(1, 12) for _ in range(candidates)),
                (1.0,) + (0.0,) * (candidates - 1),
                i,
                label=float(i % 3 > 0),
            )
            for i in range(count)
        ],
        candidates=candidates,
    )


@functools.cache
def two_steps(
    name, *, mesh_sizes=(1, 1, 1), accumulate=1, online=False, pack=True, lengths=(), dtype="float32", rounds=False
):
    """Two SGD steps of the same batches; returns the metrics of both, the final parameters and the state.

    Every mean that has the values of its examples beside it is theirs.
    """
    objective, steps, devices = objectives.build(name), 2, grid_of(*mesh_sizes)
    if rounds:
        devices = devices._replace(rounds=grid.in_rounds(devices.mesh))
    model = models.build(CONFIG, dtype=dtype, grid=devices)
    pairs = examples(8 * steps)
    order = [np.arange(8) + 8 * i for i in range(steps)]
    groups = devices.devices * accumulate
    prompts = "prompt" in objective.needs
    shapes = data.plan(pairs, order, row_length=64, pack=pack, multiple_of=groups, prompts=prompts)
    shapes = shapes._replace(lengths=tuple((length, shapes.scored) for length in lengths))
    params, ref_params = (drawn(seed) for seed in (0, 1))
    ready = prepare(model, objective, optax.sgd(0.05, momentum=0.9), shapes, params, devices, each=True)
    ref_params = jax.tree.map(jax.device_put, ref_params, ready.where.params)
    batches = [
        grid.put_batch(devices, data.pack([pairs[int(i)] for i in index], shapes, index.astype(np.int32)))
        for index in order
    ]
    if "ref" in objective.needs and not online:
        in_order = scores.scorer(model, shapes, devices)
        batches = [batch._replace(ref=in_order(ref_params, batch)[0]) for batch in batches]
    state, frozen, seen = ready.state, Frozen(reference=ref_params if online else None), []
    train_step = ready.train_step if lengths else compiled(ready.train_step, state, frozen, batches[0])
    for batch in batches:
        state, metrics = train_step(state, frozen, batch)
        seen.append({name: np.asarray(value) for name, value in metrics.items()})
        for name in metrics.keys() - {"grad_norm"}:
            if not name.startswith(EACH):
                np.testing.assert_allclose(seen[-1][f"{EACH}{name}"].mean(), seen[-1][name], rtol=1e-5, atol=1e-6)
    return seen, jax.tree.map(np.asarray, state.params), state


@functools.cache
def drawn(seed):
    """Parameters large enough for gradients that matter."""
    return jax.tree.map(lambda x: np.asarray(x) * 4, jax.jit(models.build(CONFIG).init)(jax.random.key(seed)))


def agree(got, expected, tolerance=1e-5):
    for ours, theirs in zip(got[0], expected[0], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance), got[1], expected[1])


def sizes_in(text: str) -> set[tuple[int, ...]]:
    """Of all arrays of a compiled program."""
    return {tuple(map(int, shape.split(","))) for shape in re.findall(r"\[([\d,]+)\]", text)}


HERE = __name__
WITH_PROMPT = "reference_free.orpo_with_prompt"
OBJECTIVES = ["dpo.sigmoid"]
MORE = [
    WITH_PROMPT,
    "slpo.shift",
    "sft.token_mean",
    f"{HERE}.sorted_like",
    f"dpo.sigmoid + 0.5 * {HERE}.running",
]


@pytest.mark.parametrize("objective", OBJECTIVES + [pytest.param(name, marks=pytest.mark.check) for name in MORE])
def test_accumulation_changes_no_number(objective):
    whole = two_steps(objective)
    assert whole[0][0]["grad_norm"] > 1e-3  # or the test would say nothing
    agree(two_steps(objective, accumulate=4), whole)


MESHES = [(2, 2, 2)]
MORE_MESHES = [(1, 8, 1), (8, 1, 1), (1, 1, 4), (4, 1, 2), (2, 4, 1), (4, 2, 1), (1, 4, 2), (1, 2, 4)]


@pytest.mark.parametrize(
    "sizes", MESHES + [pytest.param(sizes, marks=pytest.mark.check) for sizes in MORE_MESHES], ids=str
)
def test_eight_devices_equal_one(sizes):
    agree(two_steps("dpo.sigmoid", mesh_sizes=sizes), two_steps("dpo.sigmoid"))


@pytest.mark.check
@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2)], ids=str)
def test_gradients_scattered_in_two_rounds_are_the_same(sizes):
    got = two_steps("dpo.sigmoid", mesh_sizes=sizes, accumulate=2, rounds=True)
    agree(got, two_steps("dpo.sigmoid"))


@pytest.mark.check
def test_weights_travel_between_devices_and_activations_stay():
    config = CONFIG | {"hidden_size": 384, "intermediate_size": 1536}  # a weight is larger than the states of all rows
    devices, length = grid_of(1, 8, 1), attention.SHORT + 32
    model, objective = models.build(config, grid=devices), objectives.build("sft.token_mean")
    pairs = examples(8)
    shapes = data.plan(pairs, [np.arange(8)], row_length=length, pack=False, multiple_of=8)._replace(length=length)
    batch = grid.put_batch(devices, data.pack([pairs[i] for i in range(8)], shapes))
    params = jax.jit(model.init)(jax.random.key(0))
    ready = prepare(model, objective, optax.sgd(0.1), shapes, params, devices)
    inputs = (ready.state, Frozen(), batch)
    # Some kernels say nothing of how their results are split, and then the weights' split by width would win.
    states = f"tensor<{shapes.rows}x{length}x{config['hidden_size']}xf32>"
    asked = re.findall(f"sharding_constraint .*{states}", ready.train_step.lower(*inputs).as_text())
    by_columns = [line for line in asked if '[{"data"}, {}, {"fsdp"}]' in line]  # rows of the embedding, there and back
    assert len(by_columns) == 2 and len(asked) >= 6, asked
    assert all('[{"data", "fsdp"}, {}, {}]' in line for line in asked if line not in by_columns), asked
    sizes = sizes_in(compiled(ready.train_step, *inputs).as_text())
    of_cells = [shape for shape in sizes if length in shape]
    assert max(map(math.prod, of_cells)) >= length * config["hidden_size"]  # of one row, the device's own
    assert max(map(math.prod, of_cells)) <= config["num_hidden_layers"] * length * config["intermediate_size"], of_cells


@pytest.mark.check
@pytest.mark.parametrize("sizes", [(8, 8, 1)], ids=str)
def test_gradients_over_a_pod_are_reduced_and_scattered_and_those_over_data_once_a_step(sizes):
    """Read off the step compiled for 64 chips that are not there, with two micro-batches a chip."""
    try:
        devices = topology.make("v5e:8x8", **dict(zip(grid.AXES, sizes, strict=True)))
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        pytest.skip(f"{error} (pip install 'jax[tpu]', or point TPU_LIBRARY_PATH at its libtpu.so)")
    width = 1024 if sizes[0] > 1 else 2048  # so that a chip's part of a weight fills tiles
    model = CONFIG | {"hidden_size": width, "intermediate_size": 4 * width, "vocab_size": 4 * width}
    changes = {"batch_size": 512, "accumulate": 128, "data.row_length": 1024, "model.attention": "dense"}
    config = settings.replace(settings.load_file("configs/dpo_hh.py"), changes)
    method = training.method(config)
    layout = training.layout(config, method, [examples(512, times=20)], devices)
    setup = training.make(config, bench.of_model(config, model, devices), method, layout)
    batch = training.batch_like(layout.train, devices, cached=True)
    found = topology.collectives(setup.step.lower(setup.like, Frozen(), batch).compile().as_text())
    matrices = [x for x in jax.tree.leaves(setup.like.params) if math.prod(x.shape[-2:]) >= 2**20]

    assert layout.train.groups == 2 * devices.devices
    # Of the gradients of two micro-batches little is summed whole, what an all-reduce in bfloat16 would send twice.
    whole = 2 * 2 * 2 * sum(math.prod(x.shape) for x in matrices)
    summed = [c for c in found if c.kind == "all-reduce" and c.times > 1 and "transpose(" in c.name]
    assert sum(c.sent for c in summed) < 0.15 * whole, topology.table(summed)
    once = sum(c.size for c in found if c.kind == "all-reduce" and c.times == 1)
    held = 4 * sum(math.prod(x.sharding.shard_shape(x.shape)) for x in matrices)
    assert once > held if sizes[0] > 1 else once < 2**20, topology.table(found)


RUNNING = [
    "anchored.bco_pair",
    "unpaired.bco_unpaired",
    "unpaired.bco_unpaired_pooled",
    "batchwise.beta_dpo",
    "batchwise.alpha_dpo",
]
COUPLED = [*RUNNING, "unpaired.kto", "batchwise.aot", "batchwise.aot_unpaired", "batchwise.dr_dpo"]


@pytest.mark.check
@pytest.mark.parametrize(
    "objective",
    [
        f"{HERE}.kto_like",
        # One compilation for all: every term is a metric, and has its part of the state.
        pytest.param(" + ".join(COUPLED), id="together"),
        WITH_PROMPT,
    ],
)
def test_a_coupled_objective_means_the_global_batch_on_a_mesh_with_accumulation(objective):
    split, whole = two_steps(objective, mesh_sizes=(2, 2, 2), accumulate=2), two_steps(objective)
    agree(split, whole)
    statistics = [jax.tree.leaves(run[2].objective) for run in (split, whole)]
    assert bool(statistics[0]) == any(name in objective for name in RUNNING)
    for ours, theirs in zip(*statistics, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.check
def test_bfloat16_computes_and_float32_remembers():
    ours, exact = two_steps("dpo.sigmoid", dtype="bfloat16"), two_steps("dpo.sigmoid")
    kept = jax.tree.leaves((ours[2].params, ours[2].optimizer))
    assert {x.dtype for x in kept} == {np.dtype("float32")}
    for got, expected in zip(ours[0], exact[0], strict=True):
        # Every weight and state is rounded to 2^-9 of itself: some hundredths of a nat in the sum of a response.
        assert got["loss"] != expected["loss"]
        np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-2)
        np.testing.assert_allclose(got["grad_norm"], expected["grad_norm"], rtol=5e-2)
    # The change of two steps, much of it below bfloat16's spacing of the weights, is kept.
    moved, truth = (jax.tree.map(lambda a, b: a - b, run[1], drawn(0)) for run in (ours, exact))
    assert optax.tree.norm(jax.tree.map(lambda a, b: a - b, moved, truth)) < 0.15 * optax.tree.norm(truth)


def test_no_array_of_the_step_holds_both_the_scored_tokens_and_the_vocabulary(monkeypatch):
    words, positions = 2003, 8  # prime: its parts are of one stretch
    monkeypatch.setattr(head, "POSITIONS_AT_ONCE", positions)
    model = models.build(CONFIG | {"vocab_size": words})
    pairs = examples(8)
    shapes = data.plan(pairs, [np.arange(8)], row_length=32)  # attention takes little
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = data.pack([pairs[i] for i in range(8)], shapes)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), params)
    ready = prepare(model, objectives.build("dpo.sigmoid"), optax.sgd(1.0), shapes, zeros, grid_of(1, 1, 1))
    sizes = sizes_in(compiled(ready.train_step, ready.state, Frozen(reference=zeros), batch).as_text())
    assert (words, CONFIG["hidden_size"]) in sizes and any(shapes.scored in shape for shape in sizes)
    largest = max(map(math.prod, sizes))
    assert largest < 0.5 * shapes.scored * words, [shape for shape in sizes if math.prod(shape) == largest]
    assert max(math.prod(shape) for shape in sizes if words in shape) == words * CONFIG["hidden_size"]
    logits = [shape for shape in sizes if shapes.scored in shape and math.prod(shape) > shapes.scored * 64]
    assert logits and max(map(math.prod, logits)) <= 1.2 * positions * words, logits


@pytest.mark.check
def test_online_reference_equals_the_cached_one():
    agree(two_steps("dpo.sigmoid", online=True, accumulate=2), two_steps("dpo.sigmoid"))


@pytest.mark.check
def test_packed_rows_equal_rows_of_one_example():
    agree(two_steps("dpo.sigmoid"), two_steps("dpo.sigmoid", pack=False))


@pytest.mark.check
def test_rows_of_two_lengths_change_no_number():
    lengths = examples(16).lengths
    first, second = (lengths.prompt + lengths.response.sum(axis=1)).reshape(2, 8).max(axis=1).tolist()
    assert first != second  # so each of the two batches has a length of its own
    agree(two_steps("dpo.sigmoid", pack=False, lengths=(min(first, second), 64)), two_steps("dpo.sigmoid"))


def test_running_statistics_follow_the_steps():
    seen, _, state = two_steps(f"{HERE}.running")
    assert seen[1]["mean"] == pytest.approx(float(state.objective["mean"]), rel=1e-6)
    assert abs(seen[0]["mean"]) < abs(seen[1]["mean"])


def test_which_objectives_couple_examples():
    shapes = Shapes(8, 2, 12, 4, 64, 32)
    expected = dict.fromkeys([*OBJECTIVES, *MORE], True) | {"dpo.sigmoid": False, "slpo.shift": False}
    assert {name: step.couples_examples(objectives.build(name), shapes) for name in expected} == expected


def lowered(depth: int, shapes: Shapes, optimizer: optax.GradientTransformation):
    """The train step of a model of some depth on one device, lowered; and its state."""
    model, objective = models.build(CONFIG | {"num_hidden_layers": depth}), objectives.build("sft.token_mean")
    params = jax.jit(model.init)(jax.random.key(0))
    ready = prepare(model, objective, optimizer, shapes, params, grid_of(1, 1, 1))
    pairs, index = examples(4), np.arange(4, dtype=np.int32)
    batch = data.pack([pairs[int(i)] for i in index], shapes, index)
    return ready.train_step.lower(ready.state, Frozen(), batch), ready.state


@pytest.mark.check
def test_the_step_is_as_long_a_program_for_eight_layers_as_for_two_and_writes_over_its_state():
    optimizer = optim.build(
        "adamw",
        learning_rate=1e-3,
        schedule="constant",
        warmup_steps=0,
        total_steps=10,
        clip_norm=1.0,
        moments="bfloat16",
    )
    shapes = data.plan(examples(4), [np.arange(4)], row_length=64)
    (two, state), (eight, _) = (lowered(depth, shapes, optimizer) for depth in (2, 8))
    assert len(two.as_text().splitlines()) == len(eight.as_text().splitlines())
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.dtype != state.key.dtype)
    assert two.compile().memory_analysis().alias_size_in_bytes >= held


@pytest.mark.check
@pytest.mark.parametrize("name", ["sft.token_mean", f"{HERE}.running"])
def test_micro_batches_add_up_their_gradients_in_place(name):
    config = CONFIG | {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6}
    model = models.build(config, remat="layer")
    pairs = examples(4)
    shapes = data.plan(pairs, [np.arange(4)], row_length=64, multiple_of=2)
    params, objective = jax.jit(model.init)(jax.random.key(0)), objectives.build(name)
    ready = prepare(model, objective, optax.sgd(0.1), shapes, params, grid_of(1, 1, 1))
    batch = data.pack([pairs[i] for i in range(4)], shapes)
    temporary = ready.train_step.lower(ready.state, Frozen(), batch).compile().memory_analysis().temp_size_in_bytes
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    assert temporary < 1.9 * held  # 1.6: the sum and activations; with a gradient of every micro-batch it was 2.4


@pytest.mark.check
def test_steps_that_differ_in_seed_rate_and_beta_are_one_program():
    """Two steps of four runs, mapped over their states and hyperparameters; each alone, and as it was built."""
    devices, pairs = grid_of(1, 1, 1), examples(8)
    model = models.build(CONFIG, grid=devices)
    shapes = data.plan(pairs, [np.arange(8)], row_length=64)
    batch = grid.put_batch(devices, data.pack([pairs[i] for i in range(8)], shapes))
    frozen = Frozen(reference=drawn(9))

    def optimizer(rate):
        options = {"schedule": "linear", "warmup_steps": 1, "total_steps": 9, "clip_norm": 1.0}
        return optim.build("adamw", learning_rate=rate, **options)

    def update(rate, beta):
        method = step.Method(objectives.build("dpo.sigmoid", beta=beta))
        return step.update(model, step.WHOLE, method, optimizer(rate), shapes, devices)

    def two(update, state, hyper):
        program = compiled(jax.jit(update), state, frozen, batch, hyper)
        for _ in range(2):
            state, metrics = program(state, frozen, batch, hyper)
        return state.params, metrics

    runs = [(0, 1e-3, 0.1), (1, 1e-3, 0.5), (0, 1e-2, 0.5), (1, 1e-2, 0.1)]  # seed, rate, beta
    states = [
        State(jnp.int32(0), drawn(seed), optimizer(1.0).init(drawn(seed)), None, jax.random.key(seed))
        for seed, *_ in runs
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    rates, betas = (jnp.float32([run[i] for run in runs]) for i in (1, 2))
    hyper = step.Hyper(learning_rate=rates, objective={"beta": betas})
    params, metrics = two(jax.vmap(update(1.0, 1.0), in_axes=(0, None, None, 0)), stacked, hyper)
    traced = compiled(jax.jit(update(1.0, 1.0)), states[0], frozen, batch, jax.tree.map(lambda x: x[0], hyper))
    for i, state in enumerate(states):
        alone = state
        for _ in range(2):
            alone, numbers = traced(alone, frozen, batch, jax.tree.map(lambda x, i=i: x[i], hyper))
        np.testing.assert_allclose(metrics["loss"][i], numbers["loss"], rtol=1e-6)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, atol=1e-6), params, alone.params)
    built, numbers = two(update(*runs[2][1:]), states[2], step.AS_BUILT)
    np.testing.assert_allclose(metrics["loss"][2], numbers["loss"], rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[2], y, atol=1e-6), params, built)


@pytest.mark.check
def test_a_selector_follows_the_objective_s_beta_where_that_is_an_array_too():
    policy = Logps(jnp.log(jnp.float32([[[0.1], [0.9], [0.2]]])), jnp.zeros((1, 3, 1)), jnp.ones((1, 3), jnp.int32))
    ref = policy._replace(token=jnp.log(jnp.full((1, 3, 1), 0.5)))
    inputs, key = {"policy": policy, "ref": ref, "score": jnp.zeros((1, 3))}, jax.random.key(0)

    def run(built, **hyper):
        objective = objectives.build("listwise.rnce", beta=built)
        selector = selectors.build("mc_kernel", objective=objective.hyperparameters)
        program = functools.partial(step.on_examples, objective, selector=selector)
        return jax.jit(lambda hyper: program(inputs, key, hyper=hyper)[:2])(step.Hyper(**hyper))

    expected = run(0.9)
    assert expected[1]["selector/effective"] != run(0.1)[1]["selector/effective"]
    both = run(0.1, objective={"beta": jnp.float32(0.9)})
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), both, expected)
    own = run(0.1, objective={"beta": jnp.float32(0.9)}, selector={"beta": jnp.float32(0.1)})
    assert own[1]["selector/effective"] == run(0.1)[1]["selector/effective"]


# ---- TRL 1.16 on its tiny Llama: batches in order, policy != reference -----------------------------------------------


class Trl(NamedTuple):
    """What TRL was given, and what it gave."""

    golden: dict
    folder: pathlib.Path
    model: Model
    params: Params
    ref_params: Params
    shapes: Shapes
    batches: list[Batch]


@pytest.fixture(scope="module")
def trl(shared_goldens):
    folder = shared_goldens / "trl_tiny_llama"
    golden = json.loads((shared_goldens / "trl.json").read_text())["e2e"]
    rows = json.loads((folder / "dataset.json").read_text())
    tokenizer = data.load_tokenizer(str(folder / "tokenizer"))
    listed = []
    for i, texts in enumerate(zip(rows["prompt"], rows["chosen"], rows["rejected"], strict=True)):
        ids = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32) for text in texts]
        ids[1:] = [np.append(x, tokenizer.eos_token_id).astype(np.int32) for x in ids[1:]]
        listed.append(Example(ids[0], tuple(ids[1:]), (1.0, 0.0), i))
    pairs = data.build(listed, candidates=2)
    order = [np.arange(4) + 4 * i for i in range(10)]
    shapes = data.plan(pairs, order, row_length=64)
    model = models.build(hf.read_config(folder / "policy"))
    batches = [data.pack([pairs[int(i)] for i in index], shapes, index.astype(np.int32)) for index in order]
    # On the host: a step consumes what it is given.
    both = (jax.tree.map(np.asarray, hf.load(folder / name, model)) for name in ("policy", "ref"))
    return Trl(golden, folder, model, *both, shapes, batches)


@pytest.mark.check
def test_the_first_batch_equals_trl(trl, tmp_path):
    """Tokens, every log-prob of policy and reference, the loss, and every entry of every gradient."""
    batch, k = trl.batches[0], trl.golden
    for example, tokens in zip(range(4), k["tokenized"], strict=True):
        ids = [tokens["prompt_ids"], tokens["chosen_ids"], tokens["rejected_ids"]]
        place = np.argwhere((batch.rows.token == ids[0][0]) & (batch.rows.position == 0))
        assert any(
            batch.rows.token[r, c : c + sum(map(len, ids))].tolist() == sum(ids, []) for r, c in place.tolist()
        ), example
    devices = grid_of(1, 1, 1)
    logps_of = scores.scorer(trl.model, trl.shapes, devices)
    # TRL's rows: the chosen of all four pairs, then the rejected; a log-prob stands before the token it predicts.
    scored = np.array(k["first_batch"]["completion_mask"])[:, 1:] == 1
    for who, params in (("policy", trl.params), ("ref", trl.ref_params)):
        ours, theirs = logps_of(params, batch)[0], np.array(k[f"first_batch_{who}_token_logps"])
        for row in range(8):
            got = np.asarray(ours.token)[row % 4, row // 4][: int(batch.length[row % 4, row // 4])]
            np.testing.assert_allclose(got, theirs[row][scored[row]], rtol=1e-5, atol=1e-5)
    ready = prepare(
        trl.model, objectives.build("dpo.sigmoid", beta=0.1), optax.trace(0.0), trl.shapes, trl.params, devices
    )
    state, metrics = ready.train_step(ready.state, Frozen(reference=trl.ref_params), batch)
    assert float(metrics["loss"]) == pytest.approx(k["first_batch_loss"], rel=1e-5)
    ours = named(state.optimizer.trace, trl.model, hf.read_config(trl.folder / "policy"), tmp_path / "gradient")
    theirs = load_file(trl.folder / "first_batch_grads.safetensors")
    assert ours.keys() == theirs.keys() == k["first_batch_grad_norms"].keys()
    for name, gradient in theirs.items():
        np.testing.assert_allclose(ours[name], gradient, rtol=0, atol=1e-5 * np.abs(gradient).max(), err_msg=name)
        assert np.linalg.norm(ours[name]) == pytest.approx(k["first_batch_grad_norms"][name], rel=1e-5), name


@pytest.mark.parametrize("loss_type", ["sigmoid", pytest.param("ipo", marks=pytest.mark.check)])
def test_ten_steps_equal_trl(trl, tmp_path, loss_type):
    """AdamW at 1e-3, clipping at 1.0."""
    run = trl.golden["runs"][loss_type]
    optimizer = optim.build(
        "adamw", learning_rate=1e-3, schedule="constant", warmup_steps=0, total_steps=10, clip_norm=1.0
    )
    objective = objectives.build(f"dpo.{loss_type}", beta=run["config"].get("beta", 0.1))
    devices = grid_of(1, 1, 1)
    ready = prepare(trl.model, objective, optimizer, trl.shapes, trl.params, devices)
    state = ready.state
    names = {"loss": "loss", "grad_norm": "grad_norm"} | {
        name: name
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
    }
    log = [row for row in run["log"] if "loss" in row][:10]
    assert len(log) == 10
    for batch, expected in zip(trl.batches, log, strict=True):
        state, metrics = ready.train_step(state, Frozen(reference=trl.ref_params), grid.put_batch(devices, batch))
        for ours, theirs in names.items():
            np.testing.assert_allclose(float(metrics[ours]), expected[theirs], rtol=1e-4, atol=1e-4, err_msg=ours)
    if loss_type == "sigmoid":
        final = jax.tree.map(np.asarray, state.params)
        ours = named(final, trl.model, hf.read_config(trl.folder / "policy"), tmp_path / "final")
        theirs = load_file(trl.folder / "policy_after_10_steps.safetensors")
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)
