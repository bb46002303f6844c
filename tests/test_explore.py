"""The gradient desk against closed forms, finite differences, enumeration and separate passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp

from slpojax import data, explore, grid, models, objectives
from slpojax.base import ABSENT, Logps, Rows, Shapes
from slpojax.data.examples import Example
from slpojax.models.attention import SHORT
from tests.model_tools import logits_of, plain

RNG = np.random.default_rng(0)


def from_tokens(token, length=None) -> Logps:
    """Logps of given token log-probs; padding where a token's is 0."""
    token = np.asarray(token, float)
    other = np.where(token < 0, np.log(-np.expm1(np.where(token < 0, token, -1.0))), ABSENT)
    return Logps(jnp.asarray(token), jnp.asarray(other), jnp.asarray((token < 0).sum(-1), jnp.int32))


def drawn(batch=2, candidates=2, length=5):
    """Token log-probs of policy and reference, the last response one token shorter."""
    token = -RNG.uniform(0.05, 3.0, (2, batch, candidates, length))
    token[:, -1, -1, -1] = 0.0
    return token


# The upper half: arrays.


def test_responses_have_the_log_probs_that_were_asked_for():
    y = explore.responses([[-6.0, -1e-3], [-300.0, -4.0]], [3, 2], width=4)
    np.testing.assert_allclose(np.sum(y.token, -1), [[-6.0, -1e-3], [-300.0, -4.0]], rtol=1e-6)
    expected = np.log(-np.expm1([[-2.0, -5e-4], [-100.0, -2.0]]))
    np.testing.assert_allclose(y.other[..., 0], expected, rtol=1e-6)
    assert y.length.tolist() == [[3, 2], [3, 2]]
    assert not np.any(y.token[:, 1, 2:]) and np.all(y.other[:, 1, 2:] == ABSENT)


@pytest.mark.parametrize("name", ["dpo.ipo", "slpo.shift", "slpo.joint", "dpo.beta_gamma"])
def test_the_gradient_is_what_a_moved_token_changes(name):
    objective = objectives.build(name)
    with jax.enable_x64(True):
        token, ref = drawn()
        loss = jax.jit(lambda policy, ref: explore.gradient(objective, policy, ref))
        out, h = loss(from_tokens(token), from_tokens(ref)), 1e-5
        assert out.token[-1, -1, -1] == out.odds[-1, -1, -1] == 0
        for at in np.argwhere(token < 0)[::3]:
            moved = [token.copy(), token.copy()]
            moved[0][tuple(at)] += h
            moved[1][tuple(at)] -= h
            up, down = (loss(from_tokens(x), from_tokens(ref)).loss.sum() for x in moved)
            np.testing.assert_allclose(out.token[tuple(at)], (up - down) / (2 * h), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(out.odds, out.token * -np.expm1(token), rtol=1e-12)
        lengths = (token < 0).sum(-1)
        np.testing.assert_allclose(out.response, np.sum(out.token, -1) / lengths, rtol=1e-12)


def test_dpo_in_closed_form():
    token, ref = np.float32(drawn(batch=3))
    out = explore.gradient(objectives.build("dpo.sigmoid", beta=0.3), from_tokens(token), from_tokens(ref))
    ratio = (token - ref).sum(-1)
    slope = 0.3 / (1 + np.exp(0.3 * (ratio[:, 0] - ratio[:, 1])))
    np.testing.assert_allclose(out.response, np.stack([-slope, slope], -1), rtol=1e-5)
    np.testing.assert_allclose(out.loss, np.log1p(np.exp(-0.3 * (ratio[:, 0] - ratio[:, 1]))), rtol=1e-5)


def centred(policy: Logps, *, beta: float = 1.0):
    """Couples examples: the square of the distance from the batch's mean."""
    x = jnp.sum(policy.token[0])
    return (x - jax.lax.pmean(x, "batch")) ** 2, {}


def scored(policy: Logps, score: jax.Array, label: jax.Array, *, beta: float = 1.0):
    return jnp.dot(score, jnp.sum(policy.token, -1)) * label, {}


def test_examples_that_are_coupled():
    token = np.float32(drawn(batch=3)[0])
    out = explore.gradient(objectives.build("tests.test_explore.centred"), from_tokens(token))
    x = token[:, 0].sum(-1)
    np.testing.assert_allclose(out.response[:, 0], 2 * (x - x.mean()), rtol=1e-5)
    np.testing.assert_allclose(out.loss, (x - x.mean()) ** 2, rtol=1e-5)


def test_what_an_objective_asks_for_is_given_by_name():
    policy = from_tokens(np.float32(drawn()[0]))
    objective = objectives.build("tests.test_explore.scored")
    score, label = jnp.float32([[3.0, -1.0], [2.0, 5.0]]), jnp.float32([1.0, 0.5])
    out = explore.gradient(objective, policy, score=score, label=label)
    np.testing.assert_allclose(out.response, score * label[:, None], rtol=1e-6)
    with pytest.raises(
        ValueError, match="asks for label, score; give it by name: label=..., 1 where .*; score=..., .K. scores"
    ):
        explore.gradient(objective, policy)


def test_a_certain_token_has_a_gradient_by_its_logit():
    """At p = 1 the log-prob cannot rise, so that only the logit's gradient has a value for certain."""
    sure = Logps(jnp.zeros((1, 2, 1)), jnp.full((1, 2, 1), -120.0), jnp.ones((1, 2), jnp.int32))
    half = from_tokens(np.full((1, 2, 1), np.log(0.5)))
    out = jax.jit(lambda *x: explore.gradient(objectives.build("slpo.shift"), *x))(sure, half)
    assert np.all(np.isfinite(out.odds)) and out.odds[0, 0, 0] > 0


def test_the_field_of_dpo():
    chosen, rejected = np.linspace(-30, 20, 6), np.linspace(-40, 10, 5)
    out = explore.field(objectives.build("dpo.sigmoid"), chosen, rejected, logp=(-120, -80), length=(60, 31))
    z = 0.1 * (chosen[:, None] - rejected[None, :])
    np.testing.assert_allclose(out.loss, np.log1p(np.exp(-z)), rtol=1e-4)
    np.testing.assert_allclose(out.chosen, -0.1 / (1 + np.exp(z)), rtol=1e-4)
    np.testing.assert_allclose(out.rejected, 0.1 / (1 + np.exp(z)), rtol=1e-4)


def test_the_field_of_slpo_has_its_rest_at_the_target():
    """Of equal log-probs, the chosen is to gain log(1 + alpha), the rejected log(1 - alpha): the slopes cross zero."""
    goal, around = np.log1p([0.8, -0.8]), np.array([-1.0, 0.0, 1.0])
    out = explore.field(objectives.build("slpo.shift", alpha=0.8), goal[0] + around, goal[1] + around)
    np.testing.assert_allclose(out.loss[1, 1], 0, atol=1e-8)
    assert np.all(np.sign(out.chosen[::2]) == [[-1], [1]]) and np.all(np.sign(out.rejected[:, ::2]) == [[-1, 1]])
    np.testing.assert_allclose(out.chosen[1], 0, atol=1e-6)
    np.testing.assert_allclose(out.rejected[:, 1], 0, atol=1e-6)


def test_the_field_of_an_objective_of_single_responses():
    change = np.float32([-20.0, 0.0, 15.0])
    out = explore.field(objectives.build("unpaired.kto", beta=0.2), change, change)
    sigmoid = 1 / (1 + np.exp(-0.2 * change))
    np.testing.assert_allclose(out.loss, (1 - sigmoid)[:, None] + sigmoid[None, :], rtol=1e-5)
    slope = 0.2 * sigmoid * (1 - sigmoid)
    np.testing.assert_allclose(out.chosen, np.stack([-slope] * 3, 1), rtol=1e-4)
    np.testing.assert_allclose(out.rejected, np.stack([slope] * 3, 0), rtol=1e-4)


def test_further_candidates_stay_and_batches_of_a_field_have_one_example():
    change = np.float32([-2.0, 0.0, 3.0])
    more = explore.field(
        objectives.build("tests.test_explore.centred"), change, change, logp=(-9.0,) * 3, length=(3, 3, 4)
    )
    np.testing.assert_allclose(more.loss, 0, atol=1e-9)
    with pytest.raises(ValueError, match="rejected: a change of 3 nats takes log P = -2"):
        explore.field(objectives.build("dpo.sigmoid"), change, change, logp=(-9.0, -2.0))


@pytest.mark.parametrize("weights", [[1.0] * 7, [1.0, 0, 0, 0], [0.5, 0.3, 0.2], [1e-30, 2e-30]])
def test_effective_sample_size(weights):
    weights = np.float64(weights)
    logs = np.where(weights > 0, np.log(np.where(weights > 0, weights, 1)), ABSENT)
    expected = weights.sum() ** 2 / (weights**2).sum()
    np.testing.assert_allclose(explore.effective_sample_size(jnp.float32(logs + 50)), expected, rtol=1e-4)


def test_the_pair_radius_is_where_the_taylor_series_ends():
    """The root test on the series of log(1 + exp(-(margin + rate t))), in 60 digits."""
    mp.dps = 60
    for margin, rate in ((0.0, 1.0), (2.5, -0.7), (-6.0, 3.0)):
        series = mp.taylor(lambda t, m=margin, r=rate: mp.log1p(mp.exp(-(m + r * t))), 0, 40)
        inverse = max(abs(c) ** (mp.mpf(1) / n) for n, c in enumerate(series) if n > 30)
        radius = explore.safe_radius_pair(jnp.float32(margin), jnp.float32(rate))
        np.testing.assert_allclose(radius, float(1 / inverse), rtol=0.15)  # |c_n| = 2 / (n rho^n) at most
        exact = abs((mp.mpc(0, mp.pi) - margin) / rate)  # 1 + exp(-(margin + rate t)) = 0
        np.testing.assert_allclose(radius, float(exact), rtol=1e-6)


def test_no_zero_of_the_partition_function_lies_within_the_safe_radius():
    """Counted by the turns of sum_v exp(z_v + t a_v) around 0 as t runs around the circle."""
    circle = np.exp(2j * np.pi * np.arange(4096) / 4096)
    beyond = 0
    for _ in range(50):
        z, a = 2 * RNG.standard_normal((2, 6))
        radius = float(explore.safe_radius(jnp.float32(np.ptp(a))))

        def turns(r, z=z, a=a):
            f = np.exp(z[:, None] + r * circle * a[:, None]).sum(0)
            return round(np.angle(np.roll(f, -1) / f).sum() / (2 * np.pi))

        assert turns(0.999 * radius) == 0
        beyond += turns(4 * radius) > 0
    assert beyond > 25, "the bound is of the right size: most have a zero within four times the radius"
    assert explore.safe_radius(jnp.float32(0.0)) == np.inf


# The lower half: parameters.


def table(phi, targets):
    """A scorer whose logits are phi @ W, [B, K, T, D] times [D, V]."""

    def score(params):
        logits = jnp.einsum("bktd,dv->bktv", phi, params["w"])
        token = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return Logps(token, jnp.log(-jnp.expm1(token)), jnp.full(targets.shape[:2], targets.shape[2], jnp.int32)), {}

    return score


def test_entanglement_of_a_table_of_logits():
    b, k, t, d, v = 3, 2, 4, 5, 6
    phi, w = np.float32(RNG.standard_normal((b, k, t, d))), np.float32(RNG.standard_normal((d, v)))
    targets = RNG.integers(0, v, (b, k, t))
    score, params = table(jnp.asarray(phi), jnp.asarray(targets)), {"w": jnp.asarray(w)}
    objective = objectives.build("dpo.sigmoid", beta=0.5)
    ref = score({"w": jnp.asarray(0.9 * w)})[0]
    slopes = explore.gradient(objective, score(params)[0], ref)
    got = explore.entanglement(score, params, [slopes.odds])

    # By hand: the gradient of log p(y_t) is the outer product of phi_t and (one-hot of y_t - p_t).
    logits = phi.astype(float) @ w
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    g = np.einsum("bktd,bktv->bkdv", phi, np.eye(v)[targets] - p).reshape(b, k, -1)
    np.testing.assert_allclose(got.chosen, np.linalg.norm(g[:, 0], axis=-1), rtol=1e-5)
    np.testing.assert_allclose(got.rejected, np.linalg.norm(g[:, 1], axis=-1), rtol=1e-5)
    inner = (g[:, 0] * g[:, 1]).sum(-1)
    np.testing.assert_allclose(got.inner, inner, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.cosine, inner / np.linalg.norm(g, axis=-1).prod(-1), rtol=1e-4, atol=1e-6)
    step = np.einsum("bk,bkg->bg", slopes.response, g)  # DPO's slope is the same for every token
    np.testing.assert_allclose(got.change[:, 0], -np.einsum("bkg,bg->bk", g, step), rtol=1e-4, atol=1e-6)


CONFIG = {
    "model_type": "llama",
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@functools.cache
def setting(candidates=2, devices=1, row_length=64):
    """A tiny Llama, its parameters, and a packed batch of four examples, one of them a filler."""
    model = models.build(CONFIG)
    params = jax.tree.map(lambda x: np.asarray(x) * 3, model.init(jax.random.key(1)))
    rng = np.random.default_rng(5)

    def text(low, high):
        return rng.integers(1, 53, rng.integers(low, high)).astype(np.int32)

    listed = [
        Example(text(2, 6), tuple(text(3, 9) for _ in range(candidates)), (1.0, 0.0, 0.0)[:candidates], i)
        for i in range(3)
    ]
    examples = data.build(listed, candidates=candidates)
    shapes = data.plan(examples, [np.array([0, 1, 2, -1])], row_length=row_length, multiple_of=devices)
    return model, params, listed, shapes, data.pack(listed, shapes)


@functools.cache
def alone():
    """(params, ids [N, 16], first scored position, one past the last) -> log P of N responses, each read by itself."""
    model, *_ = setting()

    def logps(params, ids, start, end):
        one = jnp.ones_like(ids)
        rows = Rows(ids, jnp.arange(ids.shape[1])[None] * one, one, 0 * one)
        logp = jax.nn.log_softmax(logits_of(model, params, rows))[:, :-1]
        logp = jnp.take_along_axis(logp, ids[:, 1:, None], -1)[..., 0]
        at = jnp.arange(ids.shape[1] - 1)[None]
        return jnp.where((at >= start[:, None] - 1) & (at < end[:, None] - 1), logp, 0.0).sum(-1)

    return logps


def separate():
    """Every response of the real examples as a sequence of its own: ids, where the response starts, where it ends."""
    _, _, listed, _, _ = setting()
    sequences = [(e.prompt, y) for e in listed for y in e.responses]
    ids = np.stack([np.pad(np.concatenate(s), (0, 16 - sum(map(len, s)))) for s in sequences])
    return ids, np.array([len(x) for x, _ in sequences]), np.array([len(x) + len(y) for x, y in sequences])


@functools.cache
def separate_gradients():
    """Of log P of every response of the real examples, from passes of their own: [(chosen, rejected), ...]."""
    _, params, listed, _, _ = setting()
    one = jax.grad(lambda params, *x: alone()(params, *(a[None] for a in x))[0])
    stacked = jax.device_get(jax.jit(lambda *x: jax.lax.map(lambda y: one(params, *y), x))(*separate()))
    return [[jax.tree.map(lambda g, n=2 * i + k: g[n], stacked) for k in (0, 1)] for i in range(len(listed))]


def dot(a, b):
    return sum(float(np.vdot(np.float64(x), np.float64(y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@functools.cache
def diagnosed(name, candidates=2, mesh_sizes=(1, 1, 1), row_length=64):
    """Diagnostics of the batch under a reference that is the policy scaled by 0.9; and the objective."""
    devices = grid.make(*mesh_sizes, devices=jax.devices()[: int(np.prod(mesh_sizes))])
    model, params, _, shapes, batch = setting(candidates, devices.devices, row_length)
    objective = objectives.build(name)
    ref = jax.jit(explore.scorer(model, shapes, batch))(jax.tree.map(lambda x: 0.9 * x, params))[0]
    diagnose = explore.make_diagnostics(
        model,
        objective,
        shapes,
        devices,
        forward_model=models.build(CONFIG, attention="dense") if row_length > SHORT else None,
    )
    placed, _ = grid.tree(devices, model.sharding, params)
    given = {"ref": ref, "score": batch.score, "label": batch.label, "weight": batch.weight}
    out = diagnose(
        jax.tree.map(jax.device_put, params, placed), grid.put_batch(devices, batch), given, None, jax.random.key(0)
    )
    return {key: float(value) for key, value in out.items()}, ref


@pytest.mark.check
def test_entanglement_of_a_llama_equals_separate_passes():
    model, params, _, shapes, batch = setting()
    got = jax.jit(lambda params: explore.entanglement(explore.scorer(model, shapes, batch), params))(params)
    for i, (w, r) in enumerate(separate_gradients()):
        np.testing.assert_allclose(got.chosen[i], np.sqrt(dot(w, w)), rtol=1e-4)
        np.testing.assert_allclose(got.rejected[i], np.sqrt(dot(r, r)), rtol=1e-4)
        np.testing.assert_allclose(got.inner[i], dot(w, r), rtol=1e-3, atol=1e-3)
    assert got.chosen[3] == got.rejected[3] == got.cosine[3] == 0, "a filler has no gradient"


@pytest.mark.check
def test_diagnostics_equal_separate_passes():
    model, params, _, _, _ = setting()
    found, ref = diagnosed("dpo.sigmoid")
    gradients = separate_gradients()
    ratio = np.asarray(alone()(params, *separate())).reshape(3, 2) - np.asarray(ref.token).sum(-1)[:3]
    slope = 0.1 / (1 + np.exp(0.1 * (ratio[:, 0] - ratio[:, 1])))
    own = [jax.tree.map(lambda w, r, s=s: s * (r - w), *pair) for s, pair in zip(slope, gradients)]
    mean = jax.tree.map(lambda *x: sum(x) / 4, *own)  # the filler counts in the mean of four
    norm = np.sqrt(dot(mean, mean))
    change = np.array([[-dot(g, mean) / norm for g in pair] for pair in gradients])
    own_change = np.array([[-dot(g, o) for g in pair] for pair, o in zip(gradients, own)])
    gram = np.array([[dot(w, w), dot(r, r), dot(w, r)] for w, r in gradients])
    z, rate = 0.1 * (ratio[:, 0] - ratio[:, 1]), 0.1 * (change[:, 0] - change[:, 1])
    expected = {
        "norm_chosen": np.sqrt(gram[:, 0]).mean(),
        "norm_rejected": np.sqrt(gram[:, 1]).mean(),
        "cosine": (gram[:, 2] / np.sqrt(gram[:, 0] * gram[:, 1])).mean(),
        "entanglement": (gram[:, 2] / gram[:, :2].min(-1)).mean(),
        "slope_chosen": -slope.mean(),
        "slope_rejected": slope.mean(),
        "change_chosen": change[:, 0].mean(),
        "change_rejected": change[:, 1].mean(),
        "both_fall": (change < 0).all(-1).mean(),
        "both_rise": (change > 0).all(-1).mean(),
        "own_both_fall": (own_change < 0).all(-1).mean(),
        "grad_norm": norm,
        "safe_radius": np.pi / token_spreads(jax.tree.map(lambda x: -x / norm, mean)).max(),
        "safe_radius_pair": (np.sqrt(z**2 + np.pi**2) / np.abs(rate)).min(),
    }
    assert found.keys() == {f"diagnostic/{name}" for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(found[f"diagnostic/{name}"], value, rtol=5e-3, atol=1e-4, err_msg=name)


def token_spreads(direction, h=1e-3):
    """How far the rates of change of the logits lie apart at every scored token: a small way along, and back."""
    model, params, _, _, _ = setting()
    ids, start, end = separate()
    logits = jax.jit(lambda params: logits_of(model, params, plain(ids)))
    up, down = (logits(jax.tree.map(lambda p, d, s=s: p + s * h * d, params, direction)) for s in (1, -1))
    spread = np.ptp(np.asarray(up - down) / (2 * h), axis=-1)
    return np.concatenate([row[a - 1 : b - 1] for row, a, b in zip(spread, start, end)])


@pytest.mark.check
def test_the_spread_of_the_logits_of_every_scored_token():
    model, params, _, shapes, batch = setting()
    direction = separate_gradients()[0][0]
    direction = jax.tree.map(lambda x: x / np.sqrt(dot(direction, direction)), direction)
    spread = jax.jit(lambda *x: explore.logit_spread(model, *x, shapes, batch))(params, direction)
    expected = token_spreads(direction)
    np.testing.assert_allclose(np.sort(spread[spread > 0]), np.sort(expected), rtol=5e-3, atol=1e-3 * expected.max())


@pytest.mark.check
def test_diagnostics_on_a_mesh_and_in_long_rows_equal_those_of_one_device():
    """In long rows the attention that trains has no forward derivative."""
    one, _ = diagnosed("slpo.shift", candidates=3)
    many, _ = diagnosed("slpo.shift", candidates=3, mesh_sizes=(2, 2, 2), row_length=SHORT + 32)
    assert one.keys() == many.keys() and 1 <= one["diagnostic/effective_sample_size"] <= 2
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_one_candidate_has_no_pair():
    objective, shapes = objectives.build("sft.token_mean"), Shapes(1, 1, 4, 1, 16, 8)
    with pytest.raises(ValueError, match="compare two responses"):
        explore.make_diagnostics(setting()[0], objective, shapes, grid.one_device())
