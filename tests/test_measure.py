"""The evaluation: one global batch in the order of the data, however it is cut into batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import measure, objectives
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
