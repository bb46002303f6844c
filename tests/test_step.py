"""The step: any accumulation, mesh or reference mode gives the same numbers; ten steps equal TRL's ten steps."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from slpojax import data, hf, logps, models, objectives, optim, sharding, step
from slpojax.base import Logps, Shapes, State
from slpojax.data.examples import Example

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


def examples(count: int, candidates: int = 2) -> data.Examples:
    rng = np.random.default_rng(3)

    def text(low, high):
        return rng.integers(4, 97, rng.integers(low, high)).astype(np.int32)

    return data.build(
        [
            Example(text(1, 9), tuple(text(1, 12) for _ in range(candidates)), (1.0,) + (0.0,) * (candidates - 1), i)
            for i in range(count)
        ],
        candidates=candidates,
    )


@functools.cache
def two_steps(name, *, mesh_sizes=(1, 1, 1), accumulate=1, online=False, pack=True, lengths=()):
    """Two SGD steps of the same batches; returns the metrics of both, the final parameters and the state."""
    objective, steps = objectives.build(name), 2
    devices = jax.devices()[: int(np.prod(mesh_sizes))]
    mesh = sharding.make_mesh(*mesh_sizes, devices=devices)
    everywhere, split = sharding.replicated(mesh), sharding.batch_devices(mesh)
    model = models.build(CONFIG)
    pairs = examples(8 * steps)
    order = [np.arange(8) + 8 * i for i in range(steps)]
    shapes = data.plan(pairs, order, row_length=64, pack=pack, multiple_of=split * accumulate)
    shapes = shapes._replace(lengths=tuple((length, shapes.scored) for length in lengths))
    optimizer = optax.sgd(0.05, momentum=0.9)
    params, ref_params = (drawn(seed) for seed in (0, 1))

    state = State(
        jnp.int32(0), params, optimizer.init(params), jax.tree.map(jnp.float32, objective.state), jax.random.key(0)
    )
    where, _ = sharding.tree(mesh, model.sharding, state)
    state = jax.tree.map(jax.device_put, state, where)
    ref_params = jax.tree.map(jax.device_put, ref_params, where.params)
    train_step = step.make_train_step(
        model,
        objective,
        optimizer,
        shapes,
        accumulate=accumulate,
        batch_devices=split,
        everywhere=everywhere,
        state_sharding=where,
    )
    in_order = logps.logps_function(model, shapes, rows_per_device=1, everywhere=everywhere) if not online else None
    seen = []
    for index in order:
        batch = sharding.put_batch(mesh, data.pack([pairs[int(i)] for i in index], shapes, index.astype(np.int32)))
        if in_order and "ref" in objective.needs:
            batch = batch._replace(ref=in_order(ref_params, batch))
        state, metrics = train_step(state, ref_params if online else None, batch)
        seen.append({k: float(v) for k, v in metrics.items()})
    return seen, jax.tree.map(np.asarray, state.params), state


@functools.cache
def drawn(seed):
    """Parameters large enough for gradients that matter."""
    return jax.tree.map(lambda x: np.asarray(x) * 4, models.build(CONFIG).init(jax.random.key(seed)))


def agree(got, expected, tolerance=1e-5):
    for ours, theirs in zip(got[0], expected[0], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance), got[1], expected[1])


HERE = __name__
OBJECTIVES = [
    "dpo.sigmoid",
    "slpo.shift",
    "sft.token_mean",
    f"{HERE}.kto_like",
    f"{HERE}.sorted_like",
    f"{HERE}.running",
    f"dpo.sigmoid + 0.5 * {HERE}.running",
]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_accumulation_changes_no_number(objective):
    whole = two_steps(objective)
    assert whole[0][0]["grad_norm"] > 1e-3  # or the test would say nothing
    agree(two_steps(objective, accumulate=4), whole)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 1, 4), (2, 2, 2), (4, 1, 2)], ids=str)
def test_eight_devices_equal_one(sizes):
    agree(two_steps("dpo.sigmoid", mesh_sizes=sizes), two_steps("dpo.sigmoid"))


COUPLED = [f"{HERE}.kto_like", "batchwise.beta_dpo"]
COUPLED += [pytest.param(name, marks=pytest.mark.check) for name in ("anchored.bco_pair", "batchwise.aot")]


@pytest.mark.parametrize("objective", COUPLED)
def test_a_coupled_objective_means_the_global_batch_on_a_mesh_with_accumulation(objective):
    split, whole = two_steps(objective, mesh_sizes=(2, 2, 1), accumulate=2), two_steps(objective)
    agree(split, whole)
    for ours, theirs in zip(*(jax.tree.leaves(run[2].objective) for run in (split, whole)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_online_reference_equals_the_cached_one():
    agree(two_steps("dpo.sigmoid", online=True, accumulate=2), two_steps("dpo.sigmoid"))


def test_packed_rows_equal_rows_of_one_example():
    agree(two_steps("dpo.sigmoid"), two_steps("dpo.sigmoid", pack=False))


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
    expected = dict.fromkeys(OBJECTIVES, True) | {"dpo.sigmoid": False, "slpo.shift": False}
    assert {name: step.couples_examples(objectives.build(name), shapes) for name in expected} == expected


def lowered(depth: int, shapes: Shapes, optimizer: optax.GradientTransformation):
    """The train step of a model of some depth on one device, lowered; and its state's shapes."""
    model, objective = models.build(CONFIG | {"num_hidden_layers": depth}), objectives.build("sft.token_mean")
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])

    def start(params):
        return State(jnp.int32(0), params, optimizer.init(params), None, jax.random.key(0))

    state = jax.eval_shape(lambda: start(model.init(jax.random.key(0))))
    where, _ = sharding.tree(mesh, model.sharding, state)
    train_step = step.make_train_step(
        model,
        objective,
        optimizer,
        shapes,
        accumulate=1,
        batch_devices=1,
        everywhere=sharding.replicated(mesh),
        state_sharding=where,
    )
    pairs, index = examples(4), np.arange(4, dtype=np.int32)
    batch = data.pack([pairs[int(i)] for i in index], shapes, index)
    return train_step.lower(state, None, batch), state


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


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_ten_steps_equal_trl(shared_goldens, tmp_path, loss_type):
    """TRL 1.16 on its tiny Llama: batches in order, AdamW at 1e-3, clipping at 1.0, policy != reference."""
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

    hf_config = hf.read_config(folder / "policy")
    model = models.build(hf_config)
    params, ref_params = hf.load(folder / "policy", model), hf.load(folder / "ref", model)
    objective = objectives.build(f"dpo.{loss_type}", beta=golden["runs"][loss_type]["config"].get("beta", 0.1))
    optimizer = optim.build(
        "adamw", learning_rate=1e-3, schedule="constant", warmup_steps=0, total_steps=10, clip_norm=1.0
    )
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    state = State(jnp.int32(0), params, optimizer.init(params), None, jax.random.key(0))
    where, _ = sharding.tree(mesh, model.sharding, state)
    train_step = step.make_train_step(
        model,
        objective,
        optimizer,
        shapes,
        accumulate=1,
        batch_devices=1,
        everywhere=sharding.replicated(mesh),
        state_sharding=where,
    )
    names = {"loss": "loss", "grad_norm": "grad_norm"} | {
        name: name
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
    }
    log = [row for row in golden["runs"][loss_type]["log"] if "loss" in row][:10]
    assert len(log) == 10
    for index, expected in zip(order, log, strict=True):
        batch = data.pack([pairs[int(i)] for i in index], shapes, index.astype(np.int32))
        state, metrics = train_step(state, ref_params, sharding.put_batch(mesh, batch))
        for ours, theirs in names.items():
            np.testing.assert_allclose(float(metrics[ours]), expected[theirs], rtol=1e-4, atol=1e-4, err_msg=ours)
    if loss_type == "sigmoid":
        hf.save(tmp_path, jax.tree.map(np.asarray, state.params), model, hf_config)
        ours = load_file(tmp_path / "model.safetensors")
        theirs = load_file(folder / "policy_after_10_steps.safetensors")
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)
