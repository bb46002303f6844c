"""The evaluation on held-out preferences.

The log-probs of the whole split are brought to the host; the objective then runs on them once, as if the split were
one global batch, in the order of the data, and on all candidates, whatever a selector picks in training. So an
objective that couples examples means the same thing here as in training, and neither the batch size nor a last,
incomplete batch changes a number, also where an objective samples.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from slpojax import grid
from slpojax.base import ABSENT, Batch, Key, Logps
from slpojax.objectives import Objective
from slpojax.step import Given, make_objective_step


def make_evaluation(
    objective: Objective, batches: Callable[[], Iterable[Batch]], key: Key
) -> Callable[[Callable[[Batch], Given], Any], dict[str, float]]:
    """Return (given, objective state) -> metrics on a whole split.

    Args:
        objective: see `slpojax.objectives`.
        batches: gives every example of the split exactly once, on the device.
        key: for what samples; the same at every evaluation, so that they compare.

    `given` maps a batch to what `step.on_examples` may be given, on every device. The metrics are `loss` and the
    objective's own.
    """
    step = make_objective_step(objective)

    def evaluate(given: Callable[[Batch], Given], state: Any) -> dict[str, float]:
        seen = []
        for index, found in grid.gathered((batch.index, given(batch)) for batch in batches()):
            seen.append(jax.tree.map(lambda x, real=index >= 0: x[real], (index, found)))
        index, whole = jax.tree.map(lambda *x: np.concatenate(x), *seen)
        order = np.argsort(index)
        loss, metrics = step(jax.tree.map(lambda x: x[order], whole) | {"state": state}, key)
        return {name: float(value) for name, value in {"loss": loss, **metrics}.items()}

    return evaluate


def sanity_of_start(policy: Logps, ref: Logps) -> str:
    """Say how far the policy is from the reference before the first step: each margin should be exactly 0.

    Args:
        policy: [B, K, T] log-probs of the first batch.
        ref: the same under the reference.
    """
    difference = np.where(np.asarray(policy.other) > ABSENT, np.asarray(policy.token) - np.asarray(ref.token), 0.0)
    ratio = difference.sum(-1)
    margin = ratio[:, 0] - ratio[:, 1] if ratio.shape[1] > 1 else ratio[:, 0]
    largest = float(np.abs(margin).max())
    if largest == 0.0:
        return "step 0: policy == reference, every margin is exactly 0 (DPO's loss is log 2 = 0.6931)"
    if largest < 1e-3:
        return f"step 0: policy == reference up to rounding, largest |margin| {largest:.1e} nats (0 expected)"
    return f"step 0: policy != reference, largest |margin| {largest:.3g} nats, mean {float(margin.mean()):+.3g}"
