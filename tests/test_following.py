"""References that follow the policy: bias-corrected averages against NumPy, and whole runs with them."""

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
import tiny
from safetensors.numpy import load_file

from configs import base
from slpojax import bench as benches
from slpojax import checkpoint, following, metrics, named, parts, settings, train, training
from slpojax.following import Averages, Bema


def test_averages_are_those_of_the_paper_and_move_when_they_should():
    rule, rng = Bema(every=2, ema_power=0.7, bias_power=0.3, lag=5.0), np.random.default_rng(0)
    steps = rng.normal(size=(7, 3))
    move = jax.jit(lambda held, policy, step: following.move(rule, held, policy, step))
    held = following.held_first(rule, {"x": jnp.zeros(3)}, {"x": jnp.float32(steps[0])})
    mean, reference = steps[0].copy(), np.zeros(3)  # a reference of its own until the first move
    for t, policy in enumerate(steps[1:], 1):
        held = move(held, {"x": jnp.float32(policy)}, jnp.int32(t))
        if t % 2 == 0:
            mean += (5 + t) ** -0.7 * (policy - mean)
            reference = mean + (5 + t) ** -0.3 * (policy - steps[0])
        np.testing.assert_allclose(held.mean["x"], mean, rtol=1e-5)
        np.testing.assert_allclose(following.parameters(held)["x"], reference, rtol=1e-5)
    np.testing.assert_array_equal(held.start["x"], np.float32(steps[0]))


def configuration(folder, output, **changes):
    values = tiny.changes(folder, output) | {"model.weights": "load", "reference.mode": "bema", "reference.every": 2}
    values |= {"export_dtype": "float32", "compiled": str(folder / "compiled")}
    return settings.resolve(base.get_config(), values | changes, choices=train.CHOICES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return programs.make(tmp_path_factory.mktemp("following"))


@pytest.mark.check
@pytest.mark.parametrize("what", ["all", "^head/|layers/0/mlp/"])
def test_a_run_is_resumed_and_its_reference_is_that_of_its_policies(folder, what):
    """The policy behind step 2 is that of a run of two steps; of its parameters alone the reference is made."""
    name = what.partition("/")[0].strip("^")
    changes = {"train.what": what, "eval_every": 1, "reference.lag": 2.0, "objective.name": "humanline(dpo.sigmoid)"}
    for output, steps in ((f"{name} whole", (3,)), (f"{name} parts", (2, 3))):
        for count in steps:
            config = configuration(folder, output, steps=count, **changes)
            train.train(config)
            if count == 2:
                second = load_file(folder / output / "hf" / "model.safetensors")
    rows = [metrics.read_jsonl(folder / f"{name} {which}" / "metrics.jsonl", "eval") for which in ("whole", "parts")]
    margins = [[row["rewards/margins"] for row in every] for every in rows]
    assert margins[0] == margins[1] and margins[0][0] == 0 and len({*margins[0]}) == 4

    bench = benches.make(config)
    method = training.method(config)
    assert method.moving == Bema(2, 0.5, 0.2, 2.0)
    held, first = _state(config, bench, method), load_file(folder / "model" / "model.safetensors")
    assert isinstance(held, Averages)
    for path, leaf in named.flatten(held.reference).items():
        line = next(line for line in bench.model.tensors if line.param == path)
        tensor = line.file.format(0)
        policy, start = second[tensor].astype(np.float64), first[tensor].astype(np.float64)
        expected = start + 0.5 * (policy - start) + 4**-0.2 * (policy - start)  # beta is 4^-0.5
        np.testing.assert_allclose(leaf[0] if "{}" in line.file else leaf, expected, atol=1e-6)


def _state(config, bench, method):
    """What the newest checkpoint holds of the reference."""
    like = training.make(config, bench, method, _layout(config, bench, method)).like
    return checkpoint.last_state(config.output, like).reference


def _layout(config, bench, method):
    return training.layout(config, method, [part.examples for part in parts.load(config, bench)], bench.grid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.what": "lora"}, r"config.reference.mode=bema with train.what=lora: .*reference.mix=1"),
        ({"reference.lag": 0.5}, r"config.reference.lag = 0.5: expected a number from 1 to"),
    ],
)
def test_what_cannot_be_is_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        train.train(configuration(folder, "refused", **changes))
