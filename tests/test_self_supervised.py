"""SPO: the objective against NumPy, the copies with content removed, the network that tells them, and a whole run."""

import shutil

import data_tools
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_tools
import tiny

from configs import base
from slpojax import grid, hf, metrics, models, objectives, readers, scores, settings, train
from slpojax.base import ABSENT, Logps, Rows, Scored, Shapes
from slpojax.data import degrade
from slpojax.readers import degrees

K, T, C = 6, 4, 3
LENGTHS = (4, 2, 3, 0, 1, 1)  # the copies of short responses are absent
WIDTH = 16


def draw():
    """Token log-probs [K, T] of the policy and of the reference, and logits [K, T, C]; more than the lengths say."""
    rng = np.random.default_rng(0)
    return -rng.exponential(1.0, (K, T)), -rng.exponential(1.0, (K, T)), rng.normal(0.0, 2.0, (K, T, C))


def responses(token) -> Logps:
    here = np.arange(T)[None] < np.array(LENGTHS)[:, None]
    return Logps(jnp.where(here, token, 0.0), jnp.where(here, -1.0, ABSENT), jnp.array(LENGTHS))


def term(logits):
    """The loss of the task, and how many candidates' degrees have the largest logit; one candidate at a time."""
    losses, right = [], 0
    for k, length in enumerate(LENGTHS):
        if length:
            z = logits[k, length - 1]
            losses.append(np.log(np.sum(np.exp(z))) - z[k // 2])
            right += int(np.argmax(z) == k // 2)
    return np.mean(losses), right / len(losses)


def paper(policy, ref, logits, beta, gamma):
    chosen, rejected = (sum(policy[k, : LENGTHS[k]]) - sum(ref[k, : LENGTHS[k]]) for k in (0, 1))
    return np.log1p(np.exp(-beta * (chosen - rejected))) + gamma * term(logits)[0]


def test_the_formula_and_its_gradients():
    policy, ref, logits = draw()
    objective = objectives.build("self_supervised.spo", beta=0.3, gamma=0.7)
    with jax.enable_x64(True):

        def loss(policy, logits):
            return objective.function(policy=responses(policy), ref=responses(ref), degree=logits)

        (value, metrics), by = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(policy, logits)
        np.testing.assert_allclose(value, paper(policy, ref, logits, 0.3, 0.7), rtol=1e-12)
        np.testing.assert_allclose((metrics["degree/loss"], metrics["degree/accuracy"]), term(logits), rtol=1e-12)
        step = 1e-6
        for which, array in enumerate((policy, logits)):
            slope = np.zeros_like(array)
            for index in np.ndindex(array.shape):
                sides = []
                for sign in (1, -1):
                    moved = [policy.copy(), logits.copy()]
                    moved[which][index] += sign * step
                    sides.append(paper(moved[0], ref, moved[1], 0.3, 0.7))
                slope[index] = np.subtract(*sides) / (2 * step)
            assert np.abs(slope).max() > 0.05
            np.testing.assert_allclose(by[which], slope, atol=1e-9)


def test_the_task_alone_joins_any_loss():
    policy, ref, logits = (jnp.float32(x) for x in draw())
    given = {"policy": responses(policy), "ref": responses(ref), "degree": logits}
    mixed = objectives.build("dpo.sigmoid + 0.7 * self_supervised.removal", beta=0.3)
    whole = objectives.build("self_supervised.spo", beta=0.3, gamma=0.7)
    np.testing.assert_allclose(mixed.function(**given)[0], whole.function(**given)[0], rtol=1e-6)
    assert {*whole.metrics} == {*mixed.metrics} - {"loss/dpo.sigmoid", "loss/self_supervised.removal"}
    assert mixed.fewest == whole.fewest == 3


def test_more_degrees_than_logits_are_refused():
    with pytest.raises(ValueError, match="6 candidates and the network 2 degrees; expected 2 candidates for each"):
        objectives.build("self_supervised.removal").function(policy=responses(draw()[0]), degree=jnp.zeros((K, T, 2)))


# ---- the copies ------------------------------------------------------------------------------------------------------


def test_key_content_is_what_a_response_says_and_the_others_do_not():
    # Of 4 responses, 1 stands in all of them, 2 in two, the others in one each; 0 is EOS.
    listed = [np.array(ids) for ids in ([1, 2, 2, 3, 4, 0], [1, 5, 1, 2, 0], [1, 9, 8, 6, 7, 0], [1, 0])]
    # log 4 each for 3 and 4, twice log 2 for 2: a tie, which the smaller id wins; then half of each response's tokens.
    assert [ids.tolist() for ids in degrade.key_content(listed)] == [[2, 3], [5], [6, 7], []]


def test_copies_lack_more_and_more_and_end_as_the_response_does():
    response = np.array([5, 6, 7, 5, 8, 9, 6])  # cut by its budget: the last token is no EOS, and one of the key tokens
    lacking = [copy.tolist() for copy in degrade.copies(response, np.array([5, 6, 9]), 2)]
    assert lacking == [[7, 8, 9, 6], [7, 8, 6]]  # of three key tokens two, then all
    assert [copy.tolist() for copy in degrade.copies(response, np.array([5]), 1)] == [[6, 7, 8, 9, 6]]
    assert [len(copy) for copy in degrade.copies(response, np.array([5, 6]), 3)] == [0, 0, 0]


def test_pairs_get_copies_by_degree_and_the_report_counts_short_ones(tmp_path):
    records = [data_tools.pair("a", "bcdd", "xyzw"), data_tools.pair("a", "bcee", "x")]
    stored, told = data_tools.load(tmp_path, records, degrade=1)
    # d and e stand twice in one response alone, each the one key token of three; x stands in two, so w and y are key.
    assert [data_tools.decoded(stored[i])[1:] for i in range(2)] == [
        ["bcdd<eos>", "xyzw<eos>", "bc<eos>", "xz<eos>"],
        ["bcee<eos>", "x<eos>", "bc<eos>", ""],
    ]
    assert told.noted["response too short for copies with content removed"] == (1, (1,))
    assert list(told.sizes) == ["prompt", "chosen", "rejected", "chosen, copy 1", "rejected, copy 1"]
    assert told.candidates == (2.0, 2, 2, 0.0) and stored.candidates == 4


# ---- the network -----------------------------------------------------------------------------------------------------


def network(own, states):
    """In NumPy: the logits of one state."""
    inner, outer = ({name: np.asarray(x, np.float64) for name, x in own[layer].items()} for layer in ("inner", "outer"))
    return outer["weight"] @ np.tanh(inner["weight"] @ states + inner["bias"]) + outer["bias"]


@pytest.mark.check
def test_it_reads_the_states_that_predict_and_its_gradient_reaches_them():
    """Of packed responses as of the same responses alone, in the places of their tokens."""
    model = models.build(tiny.MODEL)
    params = jax.jit(model.init)(jax.random.key(0))
    own = readers.linear(jax.random.key(1), degrees.learned(readers.Sizes(1, WIDTH, 4), "degree"))
    token = np.array([[7, 8, 9, 3, 4, 5, 6, 0]], np.int32)
    rows = Rows(
        token,
        np.array([[0, 1, 2, 3, 4, 5, 3, 0]], np.int32),
        np.array([[1, 1, 1, 1, 1, 1, 1, 0]], np.int32),
        np.array([[0, 0, 0, 1, 1, 1, 2, 0]], np.int32),
    )
    source, target, slot = (np.array([ids], np.int32) for ids in ([2, 3, 4, 2], [3, 4, 5, 6], [0, 1, 2, 3]))
    scored, shapes = Scored(source, target, slot), Shapes(1, 2, 3, 1, 8, 4)
    score = scores.token_scorer(model, shapes, grid.one_device(), ["degree"])

    def placed(params):
        _, found = scores.place(score(params, rows, scored), scored, jnp.array([[3, 1]]), shapes)
        return found["degree"][0, 0, 2, 1], found["degree"][0]

    whole = params | {readers.KEY: {"degree": own}}
    grad, found = step_tools.compiled(jax.jit(jax.grad(placed, has_aux=True)), whole)(whole)
    hidden = np.asarray(jax.jit(lambda p: model.apply(p, rows, None)[0])(params), np.float64)[0]
    want = [[network(own, hidden[i]) for i in of] for of in ([2, 3, 4], [2])]
    np.testing.assert_allclose(found[0], want[0], atol=1e-5)
    np.testing.assert_allclose(found[1, :1], want[1], atol=1e-5)
    assert not np.any(found[1, 1:])
    for name in ("inner", "outer"):
        assert np.any(grad[readers.KEY]["degree"][name]["weight"])
    layers = jax.tree.leaves(grad["layers"])
    assert all(np.any(x) for x in layers) and not np.any(grad["head"]["weight"])

    by_states = jax.grad(lambda x: degrees.read({"degree": own}, x[None, None], ["degree"])["degree"][0, 0, 1])(
        jnp.float32(hidden[4])
    )
    step = 1e-6 * np.eye(WIDTH)
    slope = [(network(own, hidden[4] + e)[1] - network(own, hidden[4] - e)[1]) / 2e-6 for e in step]
    np.testing.assert_allclose(by_states, slope, atol=1e-5)


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("self_supervised"))


def run(folder, output, **changes):
    wanted = {"objective.name": "self_supervised.spo", "objective.gamma": 1.0, "data.degrade": 1, "mesh.fsdp": 1}
    values = tiny.changes(folder, output) | wanted | changes
    train.train(settings.resolve(base.get_config(), values, choices=train.CHOICES))
    rows = metrics.read_jsonl(folder / output / "metrics.jsonl", "train")
    return [{k: v for k, v in row.items() if k in ("step", "loss", "grad_norm") or "/" in k} for row in rows]


@pytest.mark.check
def test_a_run_learns_to_tell_and_exports_the_model_alone(folder):
    rows = run(folder, "long", **{"steps": 120, "eval_every": 0, "checkpoint_every": -1, "learning_rate": 5e-3})
    assert rows[0]["degree/loss"] > 0.5 * np.log(2)
    assert np.mean([row["degree/loss"] for row in rows[-10:]]) < 0.5 * np.log(2)
    exported = folder / "long" / "hf"
    hf.load(exported, models.build(hf.read_config(exported)))  # refuses a tensor that is none of the model's


@pytest.mark.check
def test_meshes_accumulation_and_resume_change_no_number(folder):
    short = {"steps": 4, "data.degrade": 2, "data.row_length": 64, "eval_every": 2, "checkpoint_every": 2}
    whole = run(folder, "whole", **short)
    for ours, theirs in zip(
        run(folder, "mesh", **short | {"mesh.fsdp": 2, "mesh.tensor": 2, "accumulate": 8}), whole, strict=True
    ):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    cut = shutil.copytree(folder / "whole", folder / "cut")
    shutil.rmtree(cut / "checkpoints" / "4")
    assert run(folder, "cut", **short)[-1] == whole[-1]


@pytest.mark.check
def test_a_moving_reference_has_no_network(folder):
    """The reference follows the model's parameters alone."""
    rows = run(folder, "moving", **{"reference.mode": "moving", "reference.every": 2, "steps": 3})
    assert all(np.isfinite(value) for row in rows for value in row.values())


@pytest.mark.check
def test_diagnostics_look_at_the_pair_alone(folder):
    run(folder, "diagnosed", diagnostics=2, steps=2)
    found = metrics.read_jsonl(folder / "diagnosed" / "metrics.jsonl", "eval")[-1]
    assert np.isfinite(found["diagnostic/cosine"]) and "diagnostic/effective_sample_size" not in found
