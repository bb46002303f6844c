"""Weighted sums of objectives: how their names read, whose a hyperparameter is, and that the parts add up."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import objectives
from slpojax.base import ABSENT, Logps, Shapes
from slpojax.objectives import mixture
from slpojax.step import couples_examples, on_examples

COUNT, LENGTH = 6, 5

OWN = '''
import jax

def running(policy, state=(0.0,), *, decay=0.5):
    """Adds a running mean of the batch."""
    mean = jax.lax.pmean(jax.lax.stop_gradient(policy.token.sum()), "batch")
    return (policy.token[0].sum() - state[0]) ** 2, {"mean": mean}, (decay * state[0] + (1 - decay) * mean,)

def noisy(policy, key):
    draw = jax.random.normal(key)
    return draw * policy.token[0].sum(), {"draw": draw}

def noisier(policy, key):
    draw = jax.random.normal(key)
    return draw * policy.token[1].sum(), {"draw": draw}
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "mixed_ideas.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def batch() -> tuple[jax.Array, dict]:
    """Token log-odds of the policy [B, 2, T], and what an objective may be given beside it."""
    rng = np.random.default_rng(0)
    odds = rng.normal(-1, 1, (2, COUNT, 2, LENGTH))
    return jnp.float32(odds[0]), {"ref": logps(jnp.float32(odds[1])), "score": jnp.zeros((COUNT, 2))}


def logps(odds: jax.Array) -> Logps:
    here = jnp.arange(LENGTH)[None, None, :] < jnp.array([LENGTH, LENGTH - 2])[None, :, None]
    token, other = -jax.nn.softplus(-odds), -jax.nn.softplus(odds)
    lengths = jnp.broadcast_to(here.sum(-1), odds.shape[:2]).astype(jnp.int32)
    return Logps(jnp.where(here, token, 0.0), jnp.where(here, other, ABSENT), lengths)


def run(name: str, **hyperparameters):
    """Mean loss, its gradient by the log-odds, the metrics of every example, and the new state."""
    objective = objectives.build(name, **hyperparameters)
    odds, given = batch()

    def mean(odds):
        arguments = given | {"policy": logps(odds), "state": objective.state}
        losses, metrics, state = on_examples(objective, arguments, jax.random.key(1))
        return losses.mean(), (metrics, state)

    (loss, (metrics, state)), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(odds)
    return loss, gradient, metrics, state


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, weights",
    [
        ("dpo.sigmoid + 0.005 * sft.sequence_sum", {"dpo.sigmoid": 1.0, "sft.sequence_sum": 0.005}),
        ("dpo.sigmoid+.5*sft.sequence_sum", {"dpo.sigmoid": 1.0, "sft.sequence_sum": 0.5}),
        ("  2*a.b.c  +1e+3 * d.e_2 + 1E-3*f.g ", {"a.b.c": 2.0, "d.e_2": 1e3, "f.g": 1e-3}),
        ("0.5 * dpo.sigmoid", {"dpo.sigmoid": 0.5}),
        ("0 * dpo.sigmoid + sft.token_mean", {"dpo.sigmoid": 0.0, "sft.token_mean": 1.0}),
    ],
)
def test_a_name_reads_as_a_weighted_sum(name, weights):
    assert mixture.parse(name) == weights


@pytest.mark.parametrize(
    "name, message",
    [
        ("dpo.sigmoid +", "cannot read ''"),
        ("dpo.sigmoid + 2 sft.token_mean", "cannot read ' 2 sft"),
        ("dpo.sigmoid + beta * sft.token_mean", "cannot read ' beta"),
        ("dpo.sigmoid + -1 * sft.token_mean", "the weight -1: expected a finite number from 0"),
        ("dpo.sigmoid + inf * sft.token_mean", "the weight inf: expected a finite"),
        ("nan * dpo.sigmoid", "the weight nan: expected a finite"),
        ("1.2.3 * dpo.sigmoid", "the weight 1.2.3: expected a finite"),
        ("0 * dpo.sigmoid", "trains nothing: expected a weight above 0"),
        ("dpo.sigmoid + 0.5 * dpo.sigmoid", "the term dpo.sigmoid twice"),
        ("dpo.sigmoyd + sft.token_mean", "unknown objective 'dpo.sigmoyd' .near: dpo.sigmoid"),
    ],
)
def test_what_is_no_weighted_sum_is_refused(name, message):
    for function in (objectives.defaults, objectives.build):
        with pytest.raises(ValueError, match=message):
            function(name)


# ---- hyperparameters -------------------------------------------------------------------------------------------------


def test_a_hyperparameter_of_one_term_keeps_its_name_and_a_shared_one_names_its_function():
    assert objectives.defaults("dpo.sigmoid + 0.1 * sft.token_mean") == {"beta": 0.1}
    assert objectives.defaults("dpo.sigmoid + dpo.ipo") == {
        "sigmoid_beta": 0.1,
        "ipo_beta": 0.1,
        "length_normalize": True,
    }
    owners = mixture.owners({"dpo.sigmoid": ["beta"], "other.sigmoid": ["beta", "gamma"]})
    assert owners == {
        "dpo_sigmoid_beta": ("dpo.sigmoid", "beta"),
        "other_sigmoid_beta": ("other.sigmoid", "beta"),
        "gamma": ("other.sigmoid", "gamma"),
    }


def test_hyperparameters_reach_their_terms():
    built = objectives.build("dpo.sigmoid + 2 * dpo.robust", sigmoid_beta=1, label_smoothing=0.2)
    assert built.hyperparameters == {"sigmoid_beta": 1.0, "robust_beta": 0.1, "label_smoothing": 0.2}
    loss = run("dpo.sigmoid + 2 * dpo.robust", sigmoid_beta=1, label_smoothing=0.2)[0]
    parts = run("dpo.sigmoid", beta=1)[0] + 2 * run("dpo.robust", label_smoothing=0.2)[0]
    np.testing.assert_allclose(loss, parts, rtol=1e-6)


def test_an_unknown_hyperparameter_lists_those_there_are():
    with pytest.raises(
        ValueError, match="no hyperparameter 'beta' .near: ipo_beta.; it has sigmoid_beta, ipo_beta, len"
    ):
        objectives.build("dpo.sigmoid + dpo.ipo", beta=1.0)


def test_a_value_that_a_term_refuses_names_the_term():
    with pytest.raises(
        ValueError, match=r"objective.beta = -1.0: expected .*in the term dpo.ipo of 'dpo.sigmoid \+ dpo"
    ):
        objectives.build("dpo.sigmoid + dpo.ipo", ipo_beta=-1.0)


# ---- the sum ---------------------------------------------------------------------------------------------------------


def test_losses_gradients_and_state_are_the_weighted_sums_of_the_parts(own):
    name = "0.8 * dpo.sigmoid + 0.25 * sft.token_mean + 3 * mixed_ideas.running + mixed_ideas.noisy"
    loss, gradient, metrics, state = run(name)
    weights = mixture.parse(name)
    parts = {term: run(term) for term in weights}
    np.testing.assert_allclose(loss, sum(w * parts[t][0] for t, w in weights.items()), rtol=1e-5)
    np.testing.assert_allclose(gradient, sum(w * parts[t][1] for t, w in weights.items()), rtol=1e-5, atol=1e-7)
    for term, (part, _, own_metrics, _) in parts.items():
        np.testing.assert_allclose(metrics[f"loss/{term}"].mean(), part, rtol=1e-6, err_msg=term)
        for key, value in own_metrics.items():
            got = metrics[f"{term}/{key}" if term == "sft.token_mean" and key == "logps/chosen" else key]
            np.testing.assert_allclose(got, value, rtol=1e-6, err_msg=f"{term}: {key}")
    assert state[:2] == (None, None) and state[3] is None
    np.testing.assert_allclose(state[2][0], parts["mixed_ideas.running"][3][0], rtol=1e-6)


def test_one_term_with_a_weight():
    loss, gradient, metrics, _ = run("0.5 * dpo.sigmoid")
    part, part_gradient, part_metrics, _ = run("dpo.sigmoid")
    np.testing.assert_allclose(loss, 0.5 * part, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0.5 * part_gradient, rtol=1e-6)
    assert set(metrics) == {*part_metrics, "loss/dpo.sigmoid"}


def test_terms_that_sample_draw_apart(own):
    _, _, metrics, _ = run("mixed_ideas.noisy + mixed_ideas.noisier")
    draws = np.concatenate([metrics["draw"], metrics["mixed_ideas.noisier/draw"]])
    assert len(np.unique(draws)) == 2 * COUNT


def test_what_a_mixture_needs_and_says(own):
    built = objectives.build("sft.sequence_sum + dpo.ipo + mixed_ideas.noisy")
    assert built.needs == {"policy", "ref", "key"} and built.state is None
    assert {"loss/sft.sequence_sum", "loss/dpo.ipo", "logps/chosen", "dpo.ipo/logps/chosen"} <= set(built.metrics)
    assert objectives.build("dpo.ipo + mixed_ideas.running").state == (None, (0.0,))


def test_a_mixture_couples_examples_if_a_term_does(own):
    names = {
        "dpo.sigmoid + sft.sequence_sum": False,
        "dpo.sigmoid + sft.token_mean": True,
        "mixed_ideas.running + dpo.ipo": True,
    }
    shapes = Shapes(COUNT, 2, LENGTH, 1, 1, 1)
    assert {name: couples_examples(objectives.build(name), shapes) for name in names} == names


def test_the_recipes_build():
    for recipe in mixture.RECIPES:
        built = objectives.build(recipe.name, **recipe.hyperparameters)
        assert built.hyperparameters == recipe.hyperparameters and "arXiv:" in recipe.reference


@pytest.mark.check
def test_cal_dpo_is_a_sum_of_dpo_and_of_sppo():
    """As its paper has it: DPO's loss of the plain log-ratios, and their distances from plus and minus 1 / (2 beta)."""
    recipe = next(r for r in mixture.RECIPES if r.method.startswith("Cal-DPO"))
    beta = recipe.hyperparameters["sppo_hard_beta"]
    token, ref = jnp.float32([[-1.0, -2.0], [-0.5, -3.0]]), jnp.float32([[-1.5, -1.0], [-1.0, -1.0]])
    policy, reference = (Logps(x, jnp.full_like(x, ABSENT), jnp.int32([2, 2])) for x in (token, ref))
    function = objectives.build(recipe.name, **recipe.hyperparameters).function
    chosen, rejected = -0.5, -1.5
    want = np.log1p(np.exp(rejected - chosen)) + ((chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2) / 2
    np.testing.assert_allclose(function(policy=policy, ref=reference)[0], want, rtol=1e-6)


# ---- TRL's lists of losses -------------------------------------------------------------------------------------------

GOLDENS = pathlib.Path(__file__).parent / "goldens"
TRL = json.loads((GOLDENS / "trl_mixtures.json").read_text())["rows"]
TRL_TERMS = {
    "sigmoid": "dpo.sigmoid",
    "sft": "sft.token_mean",
    "bco_pair": "anchored.bco_pair_unshifted",
    "nca_pair": "anchored.nca_pair",
}


def trl_inputs() -> tuple[Logps, Logps]:
    """Policy and reference [B, 2, T], float64; no objective here reads `other`."""
    inputs = json.loads((GOLDENS / "trl.json").read_text())["inputs"]["main"]
    result = []
    for who in ("policy", "ref"):
        pairs = list(zip(*(inputs[f"{who}_{side}_token_logps"] for side in ("chosen", "rejected"))))
        longest = max(len(row) for pair in pairs for row in pair)
        token = np.array([[[*row, *[0.0] * (longest - len(row))] for row in pair] for pair in pairs])
        length = np.array([[len(row) for row in pair] for pair in pairs])
        result.append(Logps(jnp.asarray(token), jnp.full(token.shape, ABSENT), jnp.asarray(length, jnp.int32)))
    return result[0], result[1]


@pytest.mark.parametrize("row", TRL, ids=["+".join(row["config"]["loss_type"]) for row in TRL])
def test_trls_lists_of_losses(row):
    config = row["config"]
    terms = [TRL_TERMS[name] for name in config["loss_type"]]
    weights = config.get("loss_weights", [1.0] * len(terms))
    name = " + ".join(f"{weight} * {term}" for weight, term in zip(weights, terms, strict=True))
    betas = {key: config["beta"] for key in objectives.defaults(name) if key.endswith("beta")}
    with jax.enable_x64(True):
        policy, ref = trl_inputs()
        objective = objectives.build(name, **betas)

        def mean(token):
            given = {"policy": policy._replace(token=token), "ref": ref, "score": jnp.zeros(policy.length.shape)}
            losses, metrics, _ = on_examples(objective, given, jax.random.key(0))
            return losses.mean(), metrics

        (loss, metrics), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(policy.token)
        np.testing.assert_allclose(loss, row["mean_loss"], rtol=1e-10)
        for k, side in enumerate(("chosen", "rejected")):
            want = np.array(row[f"grad_policy_{side}_logps"])  # by the sum over a response: the same for its tokens
            np.testing.assert_allclose(gradient[:, k, 0], want, rtol=1e-8, atol=1e-12)
        for key, value in row["metrics"].items():
            got = np.asarray(metrics[key])
            got = got == 1 if key == "rewards/accuracies" else got  # TRL counts a tie as wrong
            np.testing.assert_allclose(got.mean(), value, rtol=1e-8, atol=1e-12, err_msg=key)
