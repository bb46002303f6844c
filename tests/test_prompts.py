"""The weights of undesirable examples whose prompts are not as the desirable ones'."""

import json

import jax
import numpy as np
import pytest
import tiny

from configs import base
from slpojax import grid, loop, models, objectives, prompts, settings, train
from slpojax.base import Logps


def test_the_odds_are_the_ratio_of_two_known_densities():
    rng, away = np.random.default_rng(0), np.array([0.5, -0.3, 0.0])
    x = np.concatenate([rng.normal(size=(3000, 3)) + away, rng.normal(size=(1000, 3)) - away])
    label = np.arange(4000) < 3000  # three of four are desirable, which is no part of the ratio
    classifier = prompts.fit(x, label.astype(float))
    slope = classifier.weight / classifier.scale
    np.testing.assert_allclose(slope, 2 * away, atol=0.15)  # log N(x; m, 1) / N(x; -m, 1) = 2 m . x
    assert abs(classifier.bias - slope @ classifier.mean) < 0.15
    weight = prompts.weights(classifier, x, label.astype(float))
    assert np.all(weight[label] == 1)
    log_ratio = 2 * (x @ away)[~label]
    inside = (log_ratio > np.log(0.5) + 0.3) & (log_ratio < np.log(10) - 0.3)
    np.testing.assert_allclose(np.log(weight[~label][inside]), log_ratio[inside], atol=0.3)
    assert weight.min() == np.float32(0.5) and weight.max() <= 10
    # Under the weights the undesirable prompts are where the desirable ones are, but for what the limits keep back.
    before, after = x[~label].mean(0), np.average(x[~label], axis=0, weights=weight[~label])
    assert np.linalg.norm(after - away) < 0.4 * np.linalg.norm(before - away)


def test_the_fit_is_the_minimum_and_prompts_that_do_not_differ_weigh_one():
    rng = np.random.default_rng(1)
    x, label = rng.normal(size=(40, 60)), np.arange(40) % 2.0  # separable: more numbers than prompts
    classifier = prompts.fit(x, label, penalty=0.5)
    z = ((x - classifier.mean) / classifier.scale) @ classifier.weight + classifier.bias
    residual = 1 / (1 + np.exp(-z)) - label
    slope = ((x - classifier.mean) / classifier.scale).T @ residual + 0.5 * classifier.weight
    np.testing.assert_allclose(slope, 0, atol=1e-3)
    np.testing.assert_allclose(residual.sum(), 0, atol=1e-3)
    twice = np.concatenate([x, x])
    same = prompts.fit(twice, np.repeat([1.0, 0.0], 40))
    np.testing.assert_allclose(prompts.weights(same, twice, np.zeros(80)), 1, atol=1e-6)
    with pytest.raises(ValueError, match="compares the prompts of 40 desirable and 0 undesirable"):
        prompts.fit(x, np.ones(40))


@pytest.mark.check
def test_a_prompt_is_the_mean_of_its_own_states_whatever_it_is_batched_with():
    model = models.build(tiny.MODEL)
    params = jax.jit(model.init)(jax.random.key(0))
    devices = grid.make(2, 2, 2)
    listed = [np.array(ids, np.int32) for ids in ([1, 2, 3], [4], [5, 6, 7, 8, 9, 1], [2, 2], [3, 1])]
    got = prompts.embed(model, params, listed, batch=4, grid=devices)
    assert got.shape == (5, tiny.MODEL["hidden_size"])
    order = [4, 2, 0, 1, 3]
    again = prompts.embed(model, params, [listed[i] for i in order], batch=4, grid=devices)
    np.testing.assert_allclose(again, got[order], atol=1e-6)
    row = np.array([[5, 6, 7, 8, 9, 1]], np.int32)
    one, zero, place = np.ones_like(row), np.zeros_like(row), np.arange(6, dtype=np.int32)[None]
    hidden, _ = model.apply(params, prompts.Rows(row, place, one, zero), None)
    np.testing.assert_allclose(got[2], np.asarray(hidden)[0].mean(0), atol=1e-5)


@pytest.fixture
def labelled(tmp_path):
    """A folder with a model, and labelled responses: of the undesirable half have prompts that no desirable one has."""
    folder = tiny.make(tmp_path)
    records = [
        {"prompt": "w1 w2" if i % 4 else "w9 w9 w9", "completion": f" w{3 + i % 5}", "label": i % 2 == 1}
        for i in range(40)
    ]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def configuration(folder, **changes):
    values = tiny.changes(folder, "run") | {
        "data.path": str(folder / "labelled.jsonl"),
        "data.format": "unpaired",
        "data.candidates": 1,
        "data.rows": "",
        "data.eval_rows": "",
        "data.match_prompts": True,
        "objective.name": "unpaired.bco_unpaired",
        "steps": 1,
        "export": False,
    }
    return settings.resolve(base.get_config(), values | changes, choices=train.CHOICES)


@pytest.mark.check
def test_prompts_that_the_desirable_lack_weigh_less_in_training(labelled, capsys, monkeypatch):
    seen = []
    batches = loop.data.batches
    monkeypatch.setattr(
        loop.data, "batches", lambda examples, *a, **k: (seen.append(examples), batches(examples, *a, **k))[1]
    )
    train.train(configuration(labelled))
    (examples,) = seen
    alone = examples.lengths.prompt == 3
    assert alone.sum() == 10 and not examples.label[alone].any()
    assert np.all(examples.weight[examples.label > 0.5] == 1)
    assert np.all(examples.weight[alone] == np.float32(0.5))
    shared = examples.weight[(examples.label < 0.5) & ~alone]
    assert np.all(shared > 1.2)  # the desirable have twice as many of their prompts as the undesirable
    told = " ".join(capsys.readouterr().out.split())
    assert "weights of the prompts: computing" in told and "undesirable responses: 0.50 to" in told


def test_an_objective_that_reads_no_weight_is_refused(labelled):
    with pytest.raises(ValueError, match="which objective unpaired.apo_zero_unpaired does not read"):
        train.train(configuration(labelled, **{"objective.name": "unpaired.apo_zero_unpaired"}))


def test_the_weight_scales_the_loss_and_not_the_shift():
    objective = objectives.build("unpaired.bco_unpaired")
    token = np.float32([[[-0.3]], [[-2.0]], [[-1.2]]])
    policy, ref = (Logps(x, x - 1, np.ones((3, 1), np.int32)) for x in (token, token * 0.7))

    def losses(weight):
        given = {"policy": policy, "ref": ref, "label": np.float32([1, 0, 0]), "weight": np.float32(weight)}
        apply = jax.vmap(
            lambda given: objective.function(**given, state=objective.state), out_axes=(0, 0, None), axis_name="batch"
        )
        return apply(given)

    plain, weighed = losses([1, 1, 1]), losses([1, 0.5, 10])
    np.testing.assert_allclose(weighed[0], plain[0] * np.float32([1, 0.5, 10]), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, weighed[1:], plain[1:])
