"""The evaluation: one global batch in the order of the data, however it is cut into batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import base
from slpojax import bench, grid, loop, measure, objectives, settings, step
from slpojax.base import Batch, Frozen, Logps, State

COUNT, HERE = 7, __name__


def sampled(policy: Logps, key: jax.Array):
    """Samples, and couples the examples of a batch."""
    mean = jax.lax.pmean(jnp.sum(policy.token), "batch")
    return jnp.sum(policy.token) * jax.random.uniform(key) - mean**2, {"mean": mean}


@pytest.mark.parametrize("order", [[[6, 2, 4], [0, 5, -1], [1, 3, -1]], [[0, 1, 2, 3, 4, 5, 6, -1]]], ids=str)
def test_neither_the_batches_nor_their_fillers_change_a_number(order):
    seen = []

    class Late:
        """An array on its way from the device, as far as anybody can tell."""

        def __init__(self, values):
            self.values = values
            seen.append("dispatch")

        def __array__(self, dtype=None, copy=None):
            seen.append("fetch")
            return self.values

    logp = -np.random.default_rng(0).uniform(1, 5, (COUNT, 2, 3)).astype(np.float32)

    def batches():
        return [Batch(*[None] * 6, np.array(index), None, None) for index in order]

    def given(batch):
        token = logp[batch.index] * (batch.index >= 0)[:, None, None]
        policy = Logps(Late(token), token, np.full(token.shape[:2], 3))
        return {"policy": policy, "score": np.zeros(token.shape[:2])}

    objective, key = objectives.build(f"{HERE}.sampled"), jax.random.key(0)
    got = measure.evaluation(objective, batches, key)(given, None)
    policy, score = Logps(logp, logp, np.full((COUNT, 2), 3)), np.zeros((COUNT, 2))
    loss, metrics = measure.objective_step(objective)({"policy": policy, "score": score, "state": None}, key)
    assert got == {"loss": float(loss), "mean": float(metrics["mean"])}
    # The next batch is on its way before one is fetched.
    assert seen == ["dispatch", *["dispatch", "fetch"] * (len(order) - 1), "fetch"]


SCORER = """
def best_token(config, bench):
    return lambda params, step: {"largest": params["bias"].max(), "step": step + config.batch_size}
"""


def test_a_scorer_of_ones_own_is_found_by_its_name_and_logged_as_a_score(tmp_path, monkeypatch):
    (tmp_path / "scorer_of_a_test.py").write_text(SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    state = State(jnp.int32(3), {"bias": jnp.float32([1.0, 2.5])}, (), (), jax.random.key(0))

    def configured(**changes):
        return settings.resolve(base.get_config(), {"scorer": "scorer_of_a_test.best_token"} | changes, choices={})

    at = bench.of_model(configured(), tiny.MODEL, grid.one_device())
    assert measure._from_scorer(configured(best_metric="-eval/score/largest"), at, step.WHOLE, Frozen())(3, state) == {
        "score/largest": 2.5,
        "score/step": 67.0,
    }
    with pytest.raises(ValueError, match="near: eval/score/largest"):  # at step 0, before anything is trained
        measure._from_scorer(configured(best_metric="eval/score/lagest"), at, step.WHOLE, Frozen())(0, state)
    with pytest.raises(
        ValueError, match="unknown config.scorer 'scorer_of_a_test.bst'; expected any importable module"
    ):
        measure.scorer_metrics(configured(scorer="scorer_of_a_test.bst"))
    loop.refuse(configured(best_metric="eval/score/any"), measure.scorer_metrics(configured()))
    with pytest.raises(ValueError, match="eval/score/NAME of best_token"):
        loop.refuse(configured(best_metric="eval/lss"), measure.scorer_metrics(configured()))


def lengths(policy: Logps):
    """Couples nothing."""
    return jnp.sum(policy.token), {"of_first": jnp.sum(policy.token[0])}


def test_a_mixture_is_measured_source_by_source():
    logp = -np.random.default_rng(0).uniform(1, 5, (COUNT, 2, 3)).astype(np.float32)

    def given(batch):
        token = logp[batch.index] * (batch.index >= 0)[:, None, None]
        return {"policy": Logps(token, token, np.full(token.shape[:2], 3)), "score": np.zeros(token.shape[:2])}

    batches = [Batch(*[None] * 6, np.array(index), None, None) for index in ([6, 2, 4], [0, 5, -1], [1, 3, -1])]
    objective, sources = objectives.build(f"{HERE}.lengths"), {"a": np.array([0, 3, 4]), "b": np.array([1, 2, 5, 6])}
    got = measure.evaluation(objective, lambda: batches, jax.random.key(0), sources)(given, None)
    for source, indices in sources.items():
        of = logp[indices].astype(np.float64)
        assert got[f"source/{source}/loss"] == pytest.approx(of.sum((1, 2)).mean(), rel=1e-6)
        assert got[f"source/{source}/of_first"] == pytest.approx(of[:, 0].sum(1).mean(), rel=1e-6)
    assert got["loss"] == pytest.approx(logp.astype(np.float64).sum((1, 2)).mean(), rel=1e-6)
