"""Masks of tokens, learned from the reference's layers: against NumPy, through models, and through a whole run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import base
from slpojax import grid, metrics, models, readers, scores, settings, train
from slpojax.base import Rows, Scored, Shapes
from slpojax.readers import masks

WIDTH, LAYERS = 16, 3
MODELS = {
    family: {
        "model_type": family,
        "vocab_size": 31,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
    }
    for family in ("llama", "gpt_neox")
}


def draw(seed: int, *names: str):
    """The weights of masks, as they stand beside a policy's parameters."""
    return readers.draw(jax.random.key(seed), dict.fromkeys(names, (LAYERS, WIDTH)))


def alone(token: list[int]) -> Rows:
    row = np.array([token], np.int32)
    return Rows(row, np.arange(row.size, dtype=np.int32)[None], np.ones_like(row), np.zeros_like(row))


@pytest.mark.check
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_layers_are_those_of_shallower_models(family):
    """What layer n puts out is what a model of n layers has before its final norm."""
    model = models.build(MODELS[family])
    params, rows = jax.jit(model.init)(jax.random.key(0)), alone([3, 1, 4, 1, 5])
    hidden, found = jax.jit(lambda p: model.layers(p, rows, lambda x: x))(params)
    assert found.shape == (LAYERS, 1, 5, WIDTH)
    np.testing.assert_array_equal(hidden, jax.jit(lambda p: model.apply(p, rows, None)[0])(params))
    for n in range(1, LAYERS):
        shallow = models.build(MODELS[family] | {"num_hidden_layers": n})
        cut = params | {"layers": jax.tree.map(lambda x, n=n: x[:n], params["layers"])}
        x = np.asarray(found[n - 1], np.float64)
        if family == "gpt_neox":
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        else:
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(jax.jit(shallow.apply)(cut, rows, None)[0], x, atol=2e-5)


def test_numbers_and_their_gradients():
    """In float64 NumPy, one token and one layer at a time; the reference's states get no gradient."""
    rng = np.random.default_rng(0)
    states = rng.normal(1.0, 2.0, (LAYERS, 2, 4, WIDTH))
    with jax.enable_x64(True):
        drawn = readers.of(draw(1, "kl_mask", "reward_mask"))
    drawn = jax.tree.map(lambda x: 3 * np.asarray(x, np.float64), drawn)

    def mask(own, g, s):
        total = 0.0
        for n in range(LAYERS):
            h = states[n, g, s]
            h = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
            total += max(0.0, float(own["weight"][n] @ h + own["bias"][n]))
        return total / LAYERS

    def ours(own, states):
        return masks.read(own, states, ["kl_mask", "layer_activity", "reward_mask"])

    small, held = jax.tree.map(jnp.float32, drawn), jnp.float32(states)
    found = jax.jit(ours)(small, held)
    for name in ("kl_mask", "reward_mask"):
        want = [[mask(drawn[name], g, s) for s in range(4)] for g in range(2)]
        assert 0 < np.mean(np.array(want) > 0)
        np.testing.assert_allclose(found[name], want, atol=1e-5)
    np.testing.assert_allclose(found["layer_activity"], states.mean(-1).transpose(1, 2, 0), atol=1e-5)

    by_masks, by_states = jax.grad(lambda *x: ours(*x)["kl_mask"][1, 2], argnums=(0, 1))(small, held)
    assert not np.any(by_states) and not np.any(by_masks["reward_mask"]["weight"])
    step = 1e-6
    for index in [(0, 3), (2, 7)]:
        sides = []
        for sign in (1, -1):
            moved = {k: v.copy() for k, v in drawn["kl_mask"].items()}
            moved["weight"][index] += sign * step
            sides.append(mask(moved, 1, 2))
        np.testing.assert_allclose(by_masks["kl_mask"]["weight"][index], np.subtract(*sides) / (2 * step), atol=1e-4)


@pytest.mark.check
def test_they_come_to_their_places():
    """Masks of packed responses are those of the same responses alone, read where their tokens are predicted."""
    model = models.build(MODELS["gpt_neox"])
    ref, policy = jax.jit(model.init)(jax.random.key(0)), jax.jit(model.init)(jax.random.key(1))
    own = draw(2, "reward_mask")
    prompt, answers = [7, 8, 9], ([3, 4, 5], [6])
    token = np.array([[*prompt, *answers[0], *answers[1], 0]], np.int32)
    rows = Rows(
        token,
        np.array([[0, 1, 2, 3, 4, 5, 3, 0]], np.int32),
        np.array([[1, 1, 1, 1, 1, 1, 1, 0]], np.int32),
        np.array([[0, 0, 0, 1, 1, 1, 2, 0]], np.int32),
    )
    scored = Scored(
        np.array([[2, 3, 4, 2]], np.int32), np.array([[3, 4, 5, 6]], np.int32), np.array([[0, 1, 2, 3]], np.int32)
    )
    shapes = Shapes(1, 2, 3, 1, 8, 4)
    score = scores.token_scorer(model, shapes, grid.one_device(), ["reward_mask", "layer_activity"])
    tokens = jax.jit(score)(policy | own, rows, scored, ref)
    _, placed = scores.place(tokens, scored, jnp.array([[3, 1]]), shapes)
    assert placed["reward_mask"].shape == (1, 2, 3) and placed["layer_activity"].shape == (1, 2, 3, LAYERS)

    @jax.jit
    def separately(rows):
        states = model.layers(ref, rows, lambda x: x)[1][:, :, len(prompt) - 1 : -1]
        return masks.read(readers.of(own), states, ["reward_mask", "layer_activity"])

    for k, answer in enumerate(answers):
        for name, value in separately(alone([*prompt, *answer])).items():
            np.testing.assert_allclose(placed[name][0, k, : len(answer)], value[0], atol=1e-5)
            assert not np.any(placed[name][0, k, len(answer) :])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("masks"))


def run(folder, output, **changes):
    wanted = {"objective.name": "token_level.sparsepo", "objective.beta": 0.5, "reference.mode": "online", "steps": 4}
    values = tiny.changes(folder, output) | wanted | changes
    train.train(settings.resolve(base.get_config(), values, choices=train.CHOICES))
    rows = metrics.read_jsonl(folder / output / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k in ("step", "loss", "grad_norm") or "/" in k} for row in rows]


@pytest.mark.check
def test_a_run_learns_the_mask_and_exports_the_model_alone(folder):
    rows = run(folder, "plain", **{"learning_rate": 0.03, "objective.l1": 5.0, "steps": 24, "eval_every": 12})
    first, last = rows[0], rows[-1]
    assert first["mask/chosen"] > 0.02 and first["mask/zeros"] < 0.9
    assert last["mask/chosen"] < 0.5 * first["mask/chosen"]  # its price is felt
    assert sorted(path.name for path in (folder / "plain" / "hf").glob("*.safetensors")) == ["model.safetensors"]


@pytest.mark.check
def test_meshes_accumulation_and_resume_change_no_number(folder):
    whole = run(folder, "whole", **{"mesh.fsdp": 1, "checkpoint_every": 2})
    for output, changes in {
        "mesh": {"mesh.fsdp": 4, "mesh.tensor": 2},
        "cut": {"mesh.fsdp": 2, "mesh.tensor": 2, "accumulate": 8},
    }.items():
        for ours, theirs in zip(run(folder, output, **changes), whole, strict=True):
            assert ours.keys() == theirs.keys()
            # At the start the divergence in a margin is zero but for rounding, and who wins is its chance.
            decided = abs(theirs["rewards/margins"]) > 1e-6
            for name in theirs if decided else theirs.keys() - {"rewards/accuracies"}:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    run(folder, "parts", **{"mesh.fsdp": 1, "checkpoint_every": 2, "steps": 2})
    assert run(folder, "parts", **{"mesh.fsdp": 1, "checkpoint_every": 2})[-1] == whole[-1]


@pytest.mark.check
def test_a_moving_reference_has_no_masks(folder):
    """The reference follows the model's parameters alone, and both masks are read off it."""
    changes = {"reference.mode": "moving", "reference.every": 2, "objective.name": "token_level.sparsepo_independent"}
    rows = run(folder, "moving", **changes)
    assert all(np.isfinite(value) for row in rows for value in row.values())


@pytest.mark.check
def test_diagnostics_see_the_masks(folder):
    rows = run(folder, "diagnosed", diagnostics=2, steps=2)
    found = next(row for row in rows if any(name.startswith("diagnostic/") for name in row))
    assert all(np.isfinite(value) for name, value in found.items() if name.startswith("diagnostic/"))


def test_they_need_the_references_weights(folder):
    with pytest.raises(ValueError, match="asks for kl, reward_mask at every token.*--config.reference.mode=online"):
        run(folder, "cached", **{"reference.mode": "cached"})
