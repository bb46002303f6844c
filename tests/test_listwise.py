"""The objectives over all candidates against their papers' formulas, ragged or not, and against each other."""

import functools
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import objectives
from slpojax.base import ABSENT, Logps

# ---- the papers' formulas, from the rewards of the candidates that are there -----------------------------------------


def softmax(x):
    return np.exp(x - np.max(x)) / np.sum(np.exp(x - np.max(x)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def paper_rnce(r, s):
    return -math.log(math.exp(r[0]) / sum(math.exp(x) for x in r))


def paper_infonca(r, s, alpha):
    return -np.sum(softmax(s / alpha) * np.log(softmax(r)))


def paper_nca(r, s, alpha):
    if len(r) < 2:
        return 0.0
    return -np.sum(softmax(s / alpha) * np.log(sigmoid(r)) + np.log(sigmoid(-r)) / len(r))


def paper_exo(r, s, beta_r):
    p, q = softmax(r), softmax(s / beta_r)
    return np.sum(p * np.log(p / q))


def paper_plackett_luce(r, s):
    """Minus the log of the probability that the items are drawn in this order, without replacement."""
    probability, left = 1.0, list(r)
    while left:
        probability *= math.exp(left[0]) / sum(math.exp(x) for x in left)
        left.pop(0)
    return -math.log(probability)


def paper_contrastive_divergence(r, s):
    return np.mean(r[1:]) - r[0] if len(r) > 1 else 0.0


PAPERS = {
    "listwise.rnce": [({"beta": b}, paper_rnce) for b in (0.1, 1.0)],
    "listwise.infonca": [
        ({"beta": b, "alpha": a}, lambda r, s, a=a: paper_infonca(r, s, a)) for b, a in ((0.1, 0.5), (0.5, 2.0))
    ],
    "listwise.nca": [
        ({"beta": b, "alpha": a}, lambda r, s, a=a: paper_nca(r, s, a)) for b, a in ((0.1, 0.5), (0.5, 2.0))
    ],
    "listwise.exo": [
        ({"beta": b, "beta_r": a}, lambda r, s, a=a: paper_exo(r, s, a)) for b, a in ((0.5, 0.5), (0.1, 2.0))
    ],
    "listwise.plackett_luce": [({"beta": b}, paper_plackett_luce) for b in (0.1, 1.0)],
    "listwise.contrastive_divergence": [({"beta": 0.1}, paper_contrastive_divergence)],
}
NAMES = sorted(PAPERS)
# Lengths of five candidates, 0 where one is absent: all there, gaps at the end and between, two, one, none.
LENGTHS = [[4, 3, 6, 1, 2], [5, 2, 4], [3, 0, 6, 0, 2], [6, 4], [2, 0, 0, 0, 3], [4], [0, 3], []]


def examples(lengths=LENGTHS, seed=0):
    """(policy, ref, score) of a batch, in the precision that is on; the score misleads where no candidate is.

    Of one size whatever the lengths, so that an objective is compiled once.
    """
    rng, lengths = np.random.default_rng(seed), np.array([[*n, *[0] * (5 - len(n))] for n in lengths])
    lengths = np.pad(lengths, ((0, 8 - len(lengths)), (0, 0)))
    here = np.arange(6)[None, None, :] < lengths[..., None]

    def logps(odds):
        token, other = -np.logaddexp(0, -odds), -np.logaddexp(0, odds)
        token, other = np.where(here, token, 0.0), np.where(here, other, ABSENT)
        return Logps(jnp.asarray(token), jnp.asarray(other), jnp.asarray(lengths, jnp.int32))

    odds = rng.normal(-1.0, 2.0, here.shape)
    score = -np.sort(-rng.normal(0.0, 1.0, lengths.shape))
    return logps(odds + rng.normal(0.0, 1.0, here.shape)), logps(odds), jnp.asarray(np.where(lengths > 0, score, 9.0))


def rewards(policy, ref, score, beta):
    """[(rewards, scores, indices) of the candidates that are there] of a batch, in float64."""
    reward = beta * np.sum(np.asarray(policy.token, float) - np.asarray(ref.token, float), axis=-1)
    present = [np.flatnonzero(n) for n in np.asarray(policy.length)]
    return [(r[k], np.asarray(s, float)[k], k) for r, s, k in zip(reward, np.asarray(score), present, strict=True)]


@functools.cache
def compiled(name, hyperparameters):
    objective = objectives.build(name, **dict(hyperparameters))

    def loss(token, given):
        given = given | {"policy": given["policy"]._replace(token=token)}
        return objective.function(**{key: given[key] for key in objective.needs})

    return jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))


def run(name, policy, ref, score, **hyperparameters):
    """(losses [B], metrics, gradient by the tokens [B, K, T])."""
    given = {"policy": policy, "ref": ref, "score": score}
    (losses, metrics), gradient = compiled(name, tuple(hyperparameters.items()))(policy.token, given)
    return jax.tree.map(np.asarray, (losses, metrics, gradient))


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_formula(name):
    with jax.enable_x64(True):
        batch = examples()
        for hyperparameters, paper in PAPERS[name]:
            losses, _, gradient = run(name, *batch, **hyperparameters)
            for i, (r, s, there) in enumerate(rewards(*batch, hyperparameters["beta"])[:6]):
                np.testing.assert_allclose(losses[i], paper(r, s), rtol=1e-11, atol=1e-13)
                # Central differences of the formula: good to 1e-9 in float64.
                step = 1e-5 * np.eye(len(r))
                slope = [(paper(r + d, s) - paper(r - d, s)) / 2e-5 for d in step]
                by_token = np.zeros(gradient.shape[1:])
                by_token[there] = hyperparameters["beta"] * np.array(slope)[:, None]
                np.testing.assert_allclose(gradient[i], by_token, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_float32(name):
    batch = examples()
    hyperparameters, paper = PAPERS[name][0]
    losses, _, _ = run(name, *batch, **hyperparameters)
    want = [paper(r, s) for r, s, _ in rewards(*batch, hyperparameters["beta"])[:6]]
    np.testing.assert_allclose(losses[:6], want, rtol=1e-5, atol=1e-6)


# ---- candidates that are absent --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_there_has_no_weight_and_no_gradient(name):
    with jax.enable_x64(True):
        policy, _, score = examples([[4], [0, 3], [], [0, 4, 2], [4, 2]])
        # The reference's are there: a micro-batch holds only its own share of the policy's.
        _, ref, _ = examples([[4, 3, 2, 4, 5]] * 5)
        losses, metrics, gradient = run(name, policy, ref, score, **PAPERS[name][0][0])
    assert np.all(losses[:3] == 0) and not np.any(gradient[:3])
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[np.asarray(policy.length) == 0])
    assert losses[4] != 0 and np.any(gradient[4])
    assert all(np.all(np.isfinite(value)) for value in metrics.values())
    np.testing.assert_array_equal(metrics["candidates/effective"][:3], [0, 1, 0])
    if name in ("listwise.rnce", "listwise.contrastive_divergence"):  # there is nobody to prefer
        assert losses[3] == 0 and not np.any(gradient[3])


# ---- each other, DPO and TRL -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["listwise.rnce", "listwise.plackett_luce"])
def test_two_candidates_are_dpo(name):
    with jax.enable_x64(True):
        batch = examples([[4, 3], [1, 6], [5, 5]])
        losses, metrics, gradient = run(name, *batch, beta=0.1)
        dpo_losses, dpo_metrics, dpo_gradient = run("dpo.sigmoid", *batch, beta=0.1)
    ours, theirs = (
        (losses, gradient, {key: metrics[key] for key in dpo_metrics}),
        (dpo_losses, dpo_gradient, dpo_metrics),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:3], b[:3], rtol=1e-14, atol=1e-16), ours, theirs)


def test_a_target_on_the_preferred_candidate_makes_infonca_rnce():
    with jax.enable_x64(True):
        policy, ref, _ = examples()
        score = jnp.zeros(policy.length.shape).at[:, 0].set(1e4)
        ours = run("listwise.infonca", policy, ref, score, **PAPERS["listwise.infonca"][0][0])
        theirs = run("listwise.rnce", policy, ref, score, beta=0.1)
    # But where candidate 0 is absent, RNCE has nobody to prefer.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:6], b[:6], rtol=1e-12, atol=1e-14), ours, theirs)


def test_the_first_choice_of_a_ranking_is_rnce():
    with jax.enable_x64(True):
        batch = examples([[4, 3, 6, 1, 2]])
        rest = jax.tree.map(lambda x: x.at[:, 0].set(0), batch)  # without candidate 0
        whole, others = (run("listwise.plackett_luce", *x, beta=0.1)[0][0] for x in (batch, rest))
        np.testing.assert_allclose(whole, run("listwise.rnce", *batch, beta=0.1)[0][0] + others, rtol=1e-12)


def test_the_rankings_of_three_add_up_to_one():
    with jax.enable_x64(True):
        orders = np.array([[*order, 3, 4] for order in itertools.permutations(range(3))])
        batch = jax.tree.map(lambda x: jnp.pad(x[0][orders], [(0, 2)] + [(0, 0)] * (x.ndim - 1)), examples([[4, 3, 6]]))
        losses, *_ = run("listwise.plackett_luce", *batch, beta=0.1)
        np.testing.assert_allclose(np.sum(np.exp(-losses[:6])), 1.0, rtol=1e-12)


GOLDENS = json.loads((pathlib.Path(__file__).parent / "goldens" / "trl.json").read_text())
TRL = GOLDENS["inputs"]["main"]


def trl(**config) -> dict:
    """What TRL 1.16 gives on those inputs in float64: losses, and gradients of the mean loss by the log-probs."""
    (row,) = (r for r in GOLDENS["rows"] if r["config"] == config and r["dtype"] == "float64" and not r["legacy"])
    assert row["inputs"] == "main"
    return row


@pytest.mark.parametrize(
    ("name", "hyperparameters", "score", "golden", "rtol"),
    [
        ("listwise.nca", {"beta": 0.5, "alpha": 1e-3}, 1.0, trl(loss_type="nca_pair", beta=0.5), 1e-9),
        (
            "listwise.exo",
            {"beta": 0.5, "beta_r": 1.0},
            math.log(0.9 / 0.1),
            trl(loss_type="exo_pair", beta=0.5, label_smoothing=0.1),
            5e-6,  # TRL keeps epsilon in float32
        ),
    ],
    ids=["nca_pair", "exo_pair"],
)
def test_two_candidates_are_trls(name, hyperparameters, score, golden, rtol):
    with jax.enable_x64(True):
        lengths = np.stack([TRL["chosen_lengths"], TRL["rejected_lengths"]], axis=1)

        def logps(model):
            sides = zip(TRL[f"{model}_chosen_token_logps"], TRL[f"{model}_rejected_token_logps"], strict=True)
            token = np.array([[y + [0.0] * (lengths.max() - len(y)) for y in pair] for pair in sides])
            return Logps(jnp.asarray(token), jnp.full(token.shape, ABSENT), jnp.asarray(lengths, jnp.int32))

        scores = jnp.tile(jnp.array([[score, 0.0]]), (len(lengths), 1))
        losses, _, gradient = run(name, logps("policy"), logps("ref"), scores, **hyperparameters)
        np.testing.assert_allclose(losses, golden["losses"], rtol=rtol, atol=rtol)
        for k, side in enumerate(("chosen", "rejected")):
            want = golden[f"grad_policy_{side}_logps"]
            np.testing.assert_allclose(gradient[:, k, 0] / len(lengths), want, rtol=rtol, atol=0.01 * rtol)


# ---- numerics, metrics, refusals -------------------------------------------------------------------------------------


def of_one_token(*token, ref):
    """An example of five candidates, of which those with 0 are absent."""
    token, ref = (jnp.float32(x)[None, :, None] for x in (token, ref))
    length = jnp.int32(token[..., 0] < 0)
    return *(Logps(x, jnp.full(x.shape, -1.0), length) for x in (token, ref)), jnp.zeros(length.shape)


def test_a_preferred_candidate_far_ahead_has_an_exact_gradient():
    batch = of_one_token(-0.5, -60.5, 0.0, -70.5, 0.0, ref=[-0.5, -0.5, 0.0, -0.5, 0.0])
    _, _, gradient = run("listwise.rnce", *batch, beta=1.0)
    small = np.exp([-60, -70])
    np.testing.assert_allclose(gradient[0, :, 0], [-np.sum(small), small[0], 0, small[1], 0], rtol=1e-5)


def test_metrics_of_ragged_candidates():
    batch = of_one_token(-1.0, -3.0, 0.0, -1.0, -2.0, ref=[-2.0, -2.0, 0.0, -2.0, -4.0])
    _, metrics, _ = run("listwise.rnce", *batch, beta=1.0)
    weight = softmax(np.array([-1.0, 1.0, 2.0]))
    want = {
        "rewards/chosen": 1.0,
        "rewards/rejected": 2 / 3,
        "rewards/margins": 1 / 3,
        "rewards/accuracies": (1 + 0.5 + 0) / 3,
        "logps/chosen": -1.0,
        "logps/rejected": -2.0,
        "candidates/effective": 1 / np.sum(weight**2),
    }
    assert metrics.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(metrics[key][0], value, rtol=1e-6, err_msg=key)


def test_at_the_reference_every_candidate_counts():
    policy, _, score = examples([[4, 3, 6, 1, 2], [4, 0, 6, 0, 2]])
    losses, metrics, _ = run("listwise.rnce", policy, policy, score, beta=0.1)
    np.testing.assert_allclose(losses[:2], np.log([5, 3]), rtol=1e-6)
    np.testing.assert_allclose(metrics["candidates/effective"][:2], [4, 2], rtol=1e-6)
    assert np.all(metrics["rewards/margins"] == 0) and np.all(metrics["rewards/accuracies"] == 0.5)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *((name, "beta") for name in NAMES),
        ("listwise.infonca", "alpha"),
        ("listwise.nca", "alpha"),
        ("listwise.exo", "beta_r"),
    ],
)
def test_a_value_out_of_range_is_refused(name, key):
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"objective\.{key} = .*expected a (number above 0|finite number)"):
            objectives.build(name, **{key: value})


def test_data_of_one_candidate_is_refused():
    y = jax.tree.map(lambda x: x[0, :1], examples()[0])
    with pytest.raises(ValueError, match="more responses per prompt"):
        objectives.build("listwise.rnce").function(policy=y, ref=y)
