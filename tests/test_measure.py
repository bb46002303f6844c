"""The evaluation: one global batch in the order of the data, however it is cut into batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import base
from slpojax import measure, metrics, objectives, settings, train
from slpojax.base import Batch, Logps

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


SCORER = '''
"""A scorer of one's own: the norm of the final layer, and the step."""

import jax.numpy as jnp


def norm(config, bench):
    assert bench.tokenizer is not None and config.batch_size == 4
    return lambda params, step: {"norm": jnp.linalg.norm(params["final_norm"]["weight"]), "step": step}
'''


@pytest.mark.check
def test_a_scorer_of_ones_own_is_found_by_name_logged_and_may_choose_the_best_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "scorer_of_a_test.py").write_text(SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tiny.make(tmp_path)
    changes = tiny.changes(folder, "run") | {"steps": 1, "scorer": "scorer_of_a_test.norm"}
    changes |= {"data.eval_rows": "", "best_metric": "-eval/score/norm", "reference.mode": "none"}
    changes |= {"objective.name": "sft.token_mean", "data.candidates": 1}

    def run(**more):
        train.train(settings.resolve(base.get_config(), changes | more, choices=train.CHOICES))

    run()
    rows = metrics.read_jsonl(folder / "run" / "metrics.jsonl", "eval")
    assert [row["score/step"] for row in rows] == [0, 1] and rows[0]["score/norm"] == pytest.approx(4.0)
    for more, says in [
        ({"scorer": "scorer_of_a_test.nrm"}, "unknown config.scorer 'scorer_of_a_test.nrm'"),
        ({"best_metric": "eval/loss"}, "eval/score/NAME of norm"),
        ({"best_metric": "eval/score/nrm", "output": str(folder / "other")}, "near: eval/score/norm"),
    ]:
        with pytest.raises(ValueError, match=says):
            run(**more)
