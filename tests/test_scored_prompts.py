"""Prompts whose own tokens are scored: where they go, what log-probs they get, and what trains on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from model_tools import logits_of, plain
from step_tools import compiled, grid_of, prepare
from test_rows import ragged, random_examples
from test_train import configuration
from test_train_candidates import RANKED

from slpojax import data, explore, grid, metrics, models, objectives, selectors, step, train, training
from slpojax.base import ABSENT, Frozen, Logps, Shapes
from slpojax.data import orders, pipeline, planning, report, rows
from slpojax.data.examples import Example

NAME = "reference_free.orpo_with_prompt"
CONFIG = {
    "model_type": "llama",
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
}


def ids(*values) -> np.ndarray:
    return np.array(values, np.int32)


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_where_the_tokens_of_two_prompts_go():
    listed = [
        Example(ids(11, 12, 13), (ids(21), ids(31, 32)), (1.0, 0.0), 0),
        Example(ids(14), (ids(22, 23), ids()), (1.0, 0.0), 1),
    ]
    examples, order = data.build(listed, candidates=2), [np.arange(2)]
    shapes = data.plan(examples, order, row_length=9, prompts=True)
    assert shapes == Shapes(2, 2, 2, 1, 9, 8, prompt=2)
    batch, without = data.pack(listed, shapes), data.pack(listed, data.plan(examples, order, row_length=9))
    assert batch.rows.token.tolist() == [[11, 12, 13, 21, 31, 32, 14, 22, 23]]
    jax.tree.map(np.testing.assert_array_equal, batch.rows, without.rows)
    # The first prompt's last two tokens behind the eight slots of responses; of the second's one there is none.
    assert batch.scored.source.tolist() == [[0, 1, 2, 2, 4, 6, 7, 0]]
    assert batch.scored.target.tolist() == [[12, 13, 21, 31, 32, 22, 23, 0]]
    assert batch.scored.slot.tolist() == [[8, 9, 0, 2, 3, 4, 5, 12]]
    assert without.scored.slot.tolist() == [[0, 2, 3, 4, 5, 8, 8, 8]]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_every_token_but_the_first_of_a_prompt_is_scored_once(seed, pack, groups):
    listed = ragged(seed, random_examples(seed, 12))
    stored, order = data.build(listed, candidates=3), [np.arange(12)]
    shapes = planning.plan(stored, order, row_length=64, pack=pack, multiple_of=groups, prompts=True)
    batch, before = rows.pack(listed, shapes), 12 * 3 * shapes.response
    token, seen = batch.rows.token.reshape(groups, -1), {}
    for g, s in np.argwhere((batch.scored.slot >= before) & (batch.scored.slot < before + 12 * shapes.prompt)):
        seen[int(batch.scored.slot[g, s])] = token[g, batch.scored.source[g, s]], batch.scored.target[g, s]
    expected = {
        before + b * shapes.prompt + t: (e.prompt[t], e.prompt[t + 1])
        for b, e in enumerate(listed)
        for t in range(len(e.prompt) - 1)
    }
    assert seen == expected
    plainly = planning.plan(stored, order, row_length=64, pack=pack, multiple_of=groups)
    responses = np.sort(batch.scored.slot[batch.scored.slot < before])
    slots = rows.pack(listed, plainly).scored.slot
    np.testing.assert_array_equal(responses, np.sort(slots[slots < before]))


@pytest.mark.parametrize("picks", [0, 1])
def test_a_plan_holds_the_prompts_of_every_batch(picks):
    stored, draw = data.build(random_examples(0, 60), candidates=3), np.random.default_rng(0)
    order = orders.order(stored.lengths, 8, seed=1, steps=10)
    shapes = planning.plan(stored, order, row_length=90, multiple_of=2, picks=picks, prompts=True)
    assert shapes.prompt == stored.lengths.prompt.max() - 1
    end, most, used = 8 * (shapes.candidates * shapes.response + shapes.prompt), 0, 0
    for index in order:
        if picks:
            chosen = np.stack([np.zeros(8, int), draw.integers(1, 3, 8)], axis=1)
            batch = pipeline.make_picked(stored, shapes, index, chosen)
        else:
            batch = pipeline.make_batch(stored, shapes, index)
        here = (batch.scored.slot < end).sum(axis=1)
        assert here.sum() == batch.length.sum() + stored.lengths.prompt[index].sum() - 8
        assert training.counts(batch, shapes, grid.one_device())["scored"] == here.sum()
        most, used = max(most, here.max()), used + here.sum()
    assert most <= shapes.scored
    if not picks:
        assert shapes.scored < most + 8
        made = report.make("", 60, report.tally(), stored, "")
        packing = report.with_packing(made, stored, order, shapes).packing
        np.testing.assert_allclose(packing.unscored, 1 - used / (len(order) * 2 * shapes.scored))


def test_what_does_not_fit_is_refused_and_a_single_token_has_a_place():
    listed = random_examples(0, 4, candidates=2)
    shapes = data.plan(data.build(listed, candidates=2), [np.arange(4)], row_length=64, prompts=True)
    with pytest.raises(ValueError, match="prompts of up to .* do not fit"):
        data.pack(listed, shapes._replace(prompt=shapes.prompt - 1))
    short = [example._replace(prompt=example.prompt[:1]) for example in listed]
    assert data.plan(data.build(short, candidates=2), [np.arange(4)], row_length=64, prompts=True).prompt == 1


# ---- log-probs -------------------------------------------------------------------------------------------------------


@functools.cache
def setting(count: int = 5):
    """A tiny model, its parameters, and examples with prompts of one token and more."""
    rng = np.random.default_rng(2)

    def text(low, high):
        return rng.integers(0, 41, rng.integers(low, high)).astype(np.int32)

    listed = [Example(text(1, 9), (text(1, 7), text(1, 7)), (1.0, 0.0), i) for i in range(count)]
    listed[1] = listed[1]._replace(prompt=listed[1].prompt[:1])
    model = models.build(CONFIG)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape) / 2), shapes), listed


def planned(listed, size: int, groups: int = 1, prompts: bool = True) -> Shapes:
    order = [np.pad(np.arange(len(listed)), (0, size - len(listed)), constant_values=-1)]
    stored = data.build(listed, candidates=2)
    return data.plan(stored, order, row_length=40, multiple_of=groups, prompts=prompts)


def test_the_log_probs_are_those_of_the_text_read_alone():
    model, params, listed = setting()

    def found(prompts):
        shapes = planned(listed, 6, groups=2, prompts=prompts)
        score = compiled(jax.jit(explore.scorer(model, shapes, data.pack(listed, shapes))), params)
        return jax.tree.map(np.asarray, score(params))

    (policy, rest), (alone, nothing) = found(True), found(False)
    prompt = rest["prompt"]
    assert nothing == {} and rest.keys() == {"prompt"}
    np.testing.assert_array_equal(prompt.length, [*(len(e.prompt) - 1 for e in listed), 0])
    np.testing.assert_array_equal(policy.length, alone.length)
    # The same numbers in other places of an array: the products are summed in another order.
    np.testing.assert_allclose(policy.token, alone.token, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(policy.other, alone.other, rtol=1e-5, atol=1e-6)
    texts = [np.concatenate([e.prompt, e.responses[0]]) for e in listed]
    alone = np.stack([np.pad(text, (0, 16 - len(text))) for text in texts])  # what comes after a text, it does not see
    read = compiled(jax.jit(functools.partial(logits_of, model)), params, plain(alone))
    logits = np.float64(read(params, plain(alone)))
    logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    for b, (example, text) in enumerate(zip(listed, texts, strict=True)):
        token, n = logp[b, np.arange(len(text) - 1), text[1:]], len(example.prompt) - 1
        np.testing.assert_allclose(prompt.token[b, :n], token[:n], atol=1e-5)
        np.testing.assert_allclose(prompt.other[b, :n], np.log(-np.expm1(token[:n])), atol=1e-5)
        np.testing.assert_allclose(policy.token[b, 0, : len(text) - len(example.prompt)], token[n:], atol=1e-5)
        assert not prompt.token[b, n:].any() and (prompt.other[b, n:] == np.float32(ABSENT)).all()


@pytest.mark.check
def test_the_diagnostics_gradient_has_the_prompts_in_it():
    """Pulled back example by example, it is the step's, which is one pass; responses alone have theirs as ever."""
    model, params, listed = setting()
    shapes, devices, objective = planned(listed, 5), grid_of(1, 1, 1), objectives.build(NAME)
    batch = data.pack(listed, shapes)
    ready = prepare(model, objective, optax.sgd(0.0), shapes, params, devices)
    expected = compiled(ready.train_step, ready.state, Frozen(), batch)(ready.state, Frozen(), batch)[1]["grad_norm"]
    diagnose = explore.make_diagnostics(model, objective, shapes, devices)
    given = {name: getattr(batch, name) for name in ("ref", "score", "label", "weight")}
    got = diagnose(params, batch, given, None, jax.random.key(0))
    np.testing.assert_allclose(got["diagnostic/grad_norm"], expected, rtol=1e-5)
    without = planned(listed, 5, prompts=False)
    sides = [
        jax.jit(functools.partial(explore.entanglement, explore.scorer(model, of, data.pack(listed, of))))(params)
        for of in (shapes, without)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), *sides)


# ---- the objective ---------------------------------------------------------------------------------------------------


def drawn(rng, *lengths) -> Logps:
    """Log-probs in float64 of texts of given lengths, [N, the longest]."""
    here = np.arange(max(lengths)) < np.array(lengths)[:, None]
    token = np.where(here, -rng.exponential(1.0, here.shape) - 0.01, 0.0)
    other = np.where(here, np.log(-np.expm1(np.where(here, token, -1.0))), ABSENT)
    return Logps(jnp.asarray(token), jnp.asarray(other), jnp.asarray(lengths, jnp.int32))


def on_batch(policy: Logps, prompt: Logps, **hyperparameters):
    """(the mean loss, (losses, metrics)) and its gradient by the log-probs of responses and of prompts."""
    objective = objectives.build(NAME, **hyperparameters)

    def mean(tokens):
        given = {"policy": policy._replace(token=tokens[0]), "prompt": prompt._replace(token=tokens[1])}
        losses, metrics = jax.vmap(lambda given: objective.function(**given), axis_name="batch")(given)
        return jnp.mean(losses), metrics

    return jax.tree.map(np.asarray, jax.value_and_grad(mean, has_aux=True)((policy.token, prompt.token)))


@pytest.mark.parametrize("nll", ["token_mean", "sequence_mean", "sequence_sum"])
def test_the_loss_and_its_gradient_in_float64(nll):
    rng, beta = np.random.default_rng(0), 0.3
    with jax.enable_x64(True):
        prompt, y = drawn(rng, 4, 0, 2), drawn(rng, 3, 1, 2, 5, 4, 2)
        policy = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), y)
        (loss, metrics), (by_policy, by_prompt) = on_batch(policy, prompt, beta=beta, nll=nll)
    x, w, n_x, n = (np.asarray(a) for a in (prompt.token, policy.token, prompt.length, policy.length))
    texts, sizes = -(x.sum(1) + w[:, 0].sum(1)), n_x + n[:, 0]
    # What a token of each example weighs: all alike; by its text's length; or as its text does.
    each = {
        "token_mean": 1 / sizes.sum() + 0 * sizes,
        "sequence_mean": 1 / sizes / 3,
        "sequence_sum": 1 / 3 + 0 * sizes,
    }
    mean = w.sum(-1) / n
    odds = mean - np.log1p(-np.exp(mean))
    gap = odds[:, 0] - odds[:, 1]
    likelihood = (each[nll] * texts).sum()
    np.testing.assert_allclose(loss, likelihood + beta * np.logaddexp(0, -gap).mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics["nll_loss"].mean(), likelihood, rtol=1e-12)
    np.testing.assert_allclose(metrics["log_odds_chosen"], gap, rtol=1e-12)
    there = np.arange(x.shape[1]) < n_x[:, None]
    np.testing.assert_allclose(by_prompt[there], np.broadcast_to(-each[nll][:, None], x.shape)[there], rtol=1e-12)
    pull = beta / 3 / (1 + np.exp(gap))[:, None] / (1 - np.exp(mean)) / n  # by a token's log-prob, from the odds
    slope = np.stack([-pull[:, 0] - each[nll], pull[:, 1]], axis=1)
    there = np.arange(w.shape[2]) < n[..., None]
    np.testing.assert_allclose(by_policy[there], np.broadcast_to(slope[..., None], w.shape)[there], rtol=1e-11)


def test_without_prompts_it_is_orpo_and_a_prompt_without_its_chosen_is_nothing():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        policy = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), drawn(rng, 3, 1, 2, 5, 0, 2))
        prompt = drawn(rng, 4, 3, 2)
        none = jax.tree.map(lambda x, absent: jnp.full_like(x, absent), prompt, Logps(0.0, ABSENT, 0))
        theirs = jax.vmap(objectives.build("reference_free.orpo").function, axis_name="batch")(policy=policy)
        (loss, metrics), _ = on_batch(policy, none)
        np.testing.assert_allclose(loss, theirs[0].mean(), rtol=1e-12)
        assert metrics.keys() == theirs[1].keys()
        (_, metrics), (_, by_prompt) = on_batch(policy, prompt)
        # The mean is over the examples that have a text: 12 tokens of two of the three.
        np.testing.assert_allclose(by_prompt[np.asarray(prompt.token < 0) & (ids(1, 1, 0) > 0)[:, None]], -2 / 3 / 12)
        assert not by_prompt[2].any() and metrics["nll_loss"][2] == 0


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("scored_prompts"))


def losses(folder, output, **changes):
    """[(loss, nll_loss)] of the steps, then of the evaluations, of a run without a reference."""
    changes = {"objective.name": NAME, "reference.mode": "none", "export": False, "checkpoint_every": -1} | changes
    train.train(configuration(folder, output, **changes))
    parts = (metrics.read_jsonl(folder / output / "metrics.jsonl", split) for split in ("train", "eval"))
    return [(row["loss"], row["nll_loss"]) for part in parts for row in part]


@pytest.mark.parametrize("selection", ["together", "score_first"])
def test_prompts_are_scored_where_the_objective_reads_them(folder, selection):
    stored = data.build(random_examples(0, 24), candidates=3)
    config = configuration(folder, "", **{"data.row_length": 0}, selection=selection, steps=2)
    layouts = [
        training.layout(config, step.Method(objectives.build(name), selectors.build("uniform")), [stored], grid_of(1))
        for name in (NAME, "reference_free.orpo")
    ]
    plan = layouts[0]
    first = selection == "score_first"
    assert (plan.train.prompt > 0) != first and plan.scan.prompt == stored.lengths.prompt.max() - 1
    assert plan.picked.prompt == plan.scan.prompt if first else plan.picked is None
    assert not any(shapes.prompt for shapes in layouts[1][3:] if shapes)


@pytest.mark.check
def test_accumulation_and_what_is_scored_first_change_no_loss_of_a_run(folder):
    whole = losses(folder, "whole", steps=3, diagnostics=2)
    assert len(whole) == 5 and all(loss > likelihood > 0 for loss, likelihood in whole)
    assert whole[3] != whole[4]  # the held-out split, before and after
    last = metrics.read_jsonl(folder / "whole" / "metrics.jsonl", "eval")[-1]
    assert last["diagnostic/grad_norm"] > 0
    np.testing.assert_allclose(losses(folder, "parts", steps=3, accumulate=16), whole, rtol=1e-5)
    ranked = RANKED | {"data.path": str(folder / "ranked.jsonl"), "selector.name": "uniform", "steps": 3}
    del ranked["objective.name"], ranked["selector.temperature"]
    together = losses(folder, "together", **ranked, selection="together")
    np.testing.assert_allclose(losses(folder, "first", **ranked, selection="score_first"), together, rtol=1e-5)
