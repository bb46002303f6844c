"""The objectives without a reference, for single responses and for games: papers, identities, states, refusals."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import papers_others as paper
import pytest
from mpmath import mp, mpf

from slpojax import objectives
from slpojax.base import ABSENT, Logps, Shapes
from slpojax.step import couples_examples


def logps(examples) -> Logps:
    """Logps [B, K, T] in float64 of responses given by token log-odds, padded; [] is absent."""
    lengths = np.array([[len(y) for y in example] for example in examples])
    odds = np.array([[[*y, *[0.0] * (lengths.max() - len(y))] for y in example] for example in examples])
    here = np.arange(odds.shape[-1]) < lengths[..., None]
    token, other = np.where(here, -np.logaddexp(0, -odds), 0.0), np.where(here, -np.logaddexp(0, odds), ABSENT)
    return Logps(jnp.asarray(token), jnp.asarray(other), jnp.asarray(lengths, jnp.int32))


class Data:
    """Four examples of three responses, under three models, as lists and as what objectives get."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        lengths = [(3, 5, 2), (1, 1, 4), (6, 2, 3), (2, 4, 1)]
        self.policy, self.ref, self.previous = (
            [[[float(d) for d in rng.normal(-1, 1, n)] for n in example] for example in lengths] for _ in range(3)
        )
        self.good = [True, False, False, True]
        self.won = [True, True, False, False]

    def given(self) -> dict:
        score = np.array([[2.0, 1.0, 0.0] if won else [1.0, 2.0, 0.0] for won in self.won])
        models = {name: logps(getattr(self, name)) for name in ("policy", "ref", "previous")}
        one = {"label": jnp.asarray(self.good, float), "weight": jnp.ones(len(self.good))}
        return {**models, **one, "score": jnp.asarray(score), "probability": jnp.asarray(score) / 2}


@functools.cache
def data() -> Data:
    return Data()


def apply(name: str, given: dict, **hyperparameters):
    """(losses [B], metrics [B] each, new state or None)."""
    objective = objectives.build(name, **hyperparameters)
    given = {k: {"state": objective.state, **given}[k] for k in objective.needs}
    axes = ({k: None if k == "state" else 0 for k in given},)
    out = (0, 0, None) if "state" in given else 0
    result = jax.vmap(lambda x: objective.function(**x), axes, out, axis_name="batch")(given)
    return (*result, None)[:3]


def gradient(name: str, given: dict, **hyperparameters):
    def mean(token):
        return apply(name, given | {"policy": given["policy"]._replace(token=token)}, **hyperparameters)[0].mean()

    return jax.grad(mean)(given["policy"].token)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


# ---- against the papers ----------------------------------------------------------------------------------------------


def plus(terms, weight: float, likelihoods):
    return [t + mpf(weight) * n for t, n in zip(terms, likelihoods, strict=True)]


def of_pairs(function, *args, start: int = 0):
    return [function(*example[start : start + 2], *args) for example in data().policy]


def first(reduction: str):
    return paper.nll([example[0] for example in data().policy], reduction)


def kto(beta: float, weights: tuple[float, float]):
    rho, mismatched = (paper.ratios([e[k] for e in data().policy], [e[k] for e in data().ref]) for k in (0, 1))
    return paper.kto(rho, mismatched, data().good, beta, weights)


def unpaired_zero(beta: float, weights: tuple[float, float]):
    rho = paper.ratios([e[0] for e in data().policy], [e[0] for e in data().ref])
    return paper.kto(rho, [mpf(0)], data().good, beta, weights)


def inpo(eta: float, tau: float):
    models = zip(data().policy, data().ref, data().previous, strict=True)
    return [paper.inpo(*(responses[:2] for responses in example), eta, tau) for example in models]


def xpo(beta: float, alpha: float, square: bool):
    examples = zip(data().policy, data().ref, data().won, strict=True)
    return [paper.xpo(y[:2], ref[:2], won, beta, alpha, square) for y, ref, won in examples]


def hypo(beta: float, weight: float):
    return [paper.hypo(y, ref, beta, weight) for y, ref in zip(data().policy, data().ref, strict=True)]


def qrpo(beta: float):
    scores = np.asarray(data().given()["probability"]).tolist()
    return [paper.qrpo(*x, beta) for x in zip(data().policy, data().ref, scores, strict=True)]


def a_star(beta: float, value_beta: float):
    scores = np.asarray(data().given()["score"]).tolist()
    examples = zip(data().policy, data().ref, scores, strict=True)
    return [paper.a_star(y[0], ref[0], s, beta, value_beta) for y, ref, s in examples]


FREE = "reference_free."
LIKELIHOOD = "token_mean"
CASES = {
    "sft.dco": [
        ({"samples": n}, lambda n=n: [paper.coverage(paper.probability(e[0]), n)[0] for e in data().policy])
        for n in (1, 4.0, 300.0)
    ],
    f"{FREE}simpo": [
        ({"beta": b, "gamma": g, "label_smoothing": e}, lambda *x: of_pairs(paper.alphapo, 0.0, *x), b, g, e)
        for b, g, e in ((2.0, 1.0, 0.0), (10.0, 3.0, 0.1))
    ],
    f"{FREE}alphapo": [
        ({"alpha": a, "beta": 2.5, "gamma": 0.1}, lambda a: of_pairs(paper.alphapo, a, 2.5, 0.1), a)
        for a in (0.25, -0.5, 1.0)
    ],
    f"{FREE}simper": [({}, of_pairs, paper.inverse_perplexity)],
    f"{FREE}repo": [({"gamma": g}, of_pairs, paper.hinge_of_means, g) for g in (0.6, 0.05, 2.0)],
    f"{FREE}confpo": [({"beta": b, "gamma": g}, of_pairs, paper.confpo, b, g) for b, g in ((2.0, 1.0), (0.5, 0.0))],
    f"{FREE}cpo": [
        (
            {"beta": 0.3, "label_smoothing": e, "cpo_alpha": a, "nll": n},
            lambda e, a, n: plus(of_pairs(paper.contrast, 0.3, e), a, first(n)),
            *(e, a, n),
        )
        for e, a, n in ((0.0, 1.0, LIKELIHOOD), (0.2, 0.5, "sequence_sum"), (0.0, 2.0, "sequence_mean"))
    ],
    f"{FREE}cpo_hinge": [({"beta": 0.3}, lambda: plus(of_pairs(paper.hinge, 0.3, 1.0), 1, first(LIKELIHOOD)))],
    f"{FREE}cpo_ipo": [({"beta": 0.3}, lambda: plus(of_pairs(paper.square_of_means, 0.3), 1, first(LIKELIHOOD)))],
    f"{FREE}slic_hf": [
        (
            {"delta": 1.5, "nll_weight": 0.2},
            lambda: plus(of_pairs(paper.hinge, 1.0, 1.5), 0.2, first("sequence_sum")),
        )
    ],
    f"{FREE}orpo": [({"beta": 0.3}, lambda: plus(of_pairs(paper.odds_ratio, 0.3), 1, first(LIKELIHOOD)))],
    f"{FREE}tpo": [({"beta": 0.3}, lambda: plus(of_pairs(paper.contrast, 0.3, start=1), 1, first(LIKELIHOOD)))],
    f"{FREE}tpo_hinge": [({"beta": 0.3}, lambda: plus(of_pairs(paper.hinge, 0.3, 1, start=1), 1, first(LIKELIHOOD)))],
    f"{FREE}tpo_ipo": [
        ({"beta": 0.3}, lambda: plus(of_pairs(paper.square_of_means, 0.3, start=1), 1, first(LIKELIHOOD)))
    ],
    f"{FREE}tpo_l": [
        (
            {"beta": 2.0, "gamma": 1.6, "tpo_alpha": 0.05, "nll": "sequence_sum"},
            lambda: plus(of_pairs(paper.alphapo, 0.0, 2.0, 1.6, start=1), 0.05, first("sequence_sum")),
        )
    ],
    **{
        name: [
            ({"beta": b, "desirable_weight": w[0], "undesirable_weight": w[1]}, formula, b, w)
            for b, w in ((0.1, (1.0, 1.0)), (0.7, (1.5, 0.5)))
        ]
        for name, formula in (("unpaired.kto", kto), ("unpaired.apo_zero_unpaired", unpaired_zero))
    },
    "games.inpo": [({"eta": 0.5, "tau": t}, inpo, 0.5, t) for t in (0.1, 0.5)],
    "games.xpo": [({"beta": 0.3, "alpha": 0.01}, xpo, 0.3, 0.01, False)],
    "games.xpo_ipo": [({"beta": 0.3, "alpha": 0.01}, xpo, 0.3, 0.01, True)],
    "pointwise.qrpo": [({"beta": b}, qrpo, b) for b in (0.1, 2.0, 0.02)],
    "pointwise.a_star_po": [({"beta": b, "value_beta": v}, a_star, b, v) for b, v in ((0.01, 0.5), (0.7, 3.0))],
    "hybrid.hypo": [({"beta": 0.3, "weight": 0.2}, hypo, 0.3, 0.2)],
}


# Those in `make check` alone; their examples and the laws run every time.
LATER = (f"{FREE}simper", f"{FREE}repo", f"{FREE}confpo", "pointwise.qrpo", "pointwise.a_star_po")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.check] if name in LATER else []) for name in CASES]
)
def test_the_papers_formula(name):
    for hyperparameters, formula, *arguments in CASES[name]:
        losses, _, _ = apply(name, data().given(), **hyperparameters)
        want = [float(x) for x in formula(*arguments)]
        np.testing.assert_allclose(losses, want, rtol=1e-10, atol=1e-13, err_msg=str(hyperparameters))


# ---- coverage --------------------------------------------------------------------------------------------------------


@pytest.mark.check
@pytest.mark.parametrize("samples", [1.0, 2.0, 256.0, 1e6])
@pytest.mark.parametrize("dtype, rtol", [("float32", 2e-5), ("float64", 1e-11)])
def test_coverage_from_e_to_the_minus_200_to_one(samples, dtype, rtol):
    # Around e^-16 / N another formula takes over.
    logs = np.concatenate([-np.geomspace(200, 1e-3, 60), [-np.log(samples) - 16 + x for x in (-0.01, 0.01)]])
    odds = logs - np.log(-np.expm1(logs))
    function = jax.vmap(objectives.build("sft.dco", samples=samples).function)

    def run(odds):
        d = odds[:, None, None]
        losses, metrics = function(Logps(-jax.nn.softplus(-d), -jax.nn.softplus(d), jnp.ones(d.shape[:2], jnp.int32)))
        return losses.sum(), (losses, metrics["coverage/weight"])

    with jax.enable_x64(dtype == "float64"):
        (_, (losses, weight)), grad = jax.value_and_grad(run, has_aux=True)(jnp.asarray(odds, dtype))
        by_logp = -grad * (1 + jnp.exp(jnp.asarray(odds, dtype)))  # d log P = (1 - P) d odds
    want = [paper.coverage(paper.probability([float(d)]), samples) for d in np.asarray(odds, dtype)]
    values, slopes = (np.array([float(w[k]) for w in want]) for k in (0, 1))
    np.testing.assert_allclose(losses, values, rtol=rtol, atol=1e-30)
    for got in (weight, by_logp):
        np.testing.assert_allclose(got, slopes, rtol=10 * rtol, atol=1e-15)


# ---- identities ------------------------------------------------------------------------------------------------------


def same_length() -> dict:
    rng = np.random.default_rng(1)
    models = [[[list(rng.normal(-1, 1, 4)) for _ in range(3)] for _ in range(4)] for _ in range(2)]
    return {"policy": logps(models[0]), "ref": logps(models[1])}


def close(a, b, rtol=1e-12):
    np.testing.assert_allclose(a[0], b[0], rtol=rtol)


def test_one_sample_is_the_likelihood():
    given = data().given()
    close(apply("sft.dco", given, samples=1), apply("sft.sequence_sum", given))


def test_simpo_without_a_margin_on_responses_of_one_length_is_cpos_preference():
    given = same_length()
    close(apply(f"{FREE}simpo", given, beta=2.0, gamma=0), apply(f"{FREE}cpo", given, beta=0.5, cpo_alpha=0))


def test_alphapo_tends_to_simpo():
    given = data().given()
    simpo = apply(f"{FREE}simpo", given, beta=2.5, gamma=0.5)
    close(apply(f"{FREE}alphapo", given, alpha=1e-9, beta=2.5, gamma=0.5), simpo, rtol=1e-7)
    close(apply(f"{FREE}alphapo", given, alpha=0, beta=2.5, gamma=0.5), simpo)


@pytest.mark.check
def test_repo_is_the_limit_of_simpo_over_beta():
    given = data().given()
    simpo = apply(f"{FREE}simpo", given, beta=1e6, gamma=0.3e6)
    np.testing.assert_allclose(apply(f"{FREE}repo", given, gamma=0.3)[0], simpo[0] / 1e6, rtol=1e-5, atol=1e-6)


def test_cpos_preference_is_dpo_without_the_references_part():
    given = data().given()
    close(apply(f"{FREE}cpo", given, beta=0.2, cpo_alpha=0), apply("dpo.beta_gamma", given, beta=0.2, gamma=0))


def test_slic_hf_is_the_hinge_of_beta_gamma():
    given = data().given()
    slic = apply(f"{FREE}slic_hf", given, delta=2, nll_weight=0)
    close(slic, apply("dpo.beta_gamma_hinge", given, beta=1, gamma=0, margin=2))


def test_kto_where_responses_in_general_fall_is_apo_zero():
    given = data().given()
    lower = given["ref"]._replace(token=given["ref"].token.at[:, 1].set(0.0))  # mismatched log-ratios below 0
    kto = apply("unpaired.kto", given | {"ref": lower})
    assert np.all(kto[1]["kl"] == 0)
    close(kto, apply("unpaired.apo_zero_unpaired", given | {"ref": lower}))


@pytest.mark.parametrize("labels", [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
def test_there_is_no_margin_where_a_batch_has_one_label_alone(labels):
    metrics = apply("unpaired.apo_zero_unpaired", data().given() | {"label": jnp.float32(labels)})[1]
    there, absent = ("chosen", "rejected") if labels[0] else ("rejected", "chosen")
    assert np.all(metrics["rewards/margins"] == 0) and np.all(metrics[f"rewards/{absent}"] == 0)
    assert np.all(metrics[f"rewards/{there}"] != 0)


def test_inpo_with_tau_at_eta_is_ipo_in_sums():
    given = data().given()
    inpo = apply("games.inpo", given, eta=0.2, tau=0.2)
    close(inpo, apply("dpo.ipo", given, beta=0.2, length_normalize=False))


def test_inpo_of_one_frozen_model_is_ipo_whatever_tau():
    given = data().given()
    given["previous"] = given["ref"]
    close(apply("games.inpo", given, eta=0.2, tau=0.07), apply("dpo.ipo", given, beta=0.2, length_normalize=False))


@pytest.mark.parametrize("name, plain", [("xpo", "dpo.sigmoid"), ("xpo_ipo", "dpo.ipo")])
def test_xpo_without_optimism_is_preference_optimisation_of_winner_over_loser(name, plain):
    given = data().given() | {"score": jnp.asarray([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]] * 2)}  # a tie is the first's
    rest = {} if plain == "dpo.sigmoid" else {"length_normalize": False}
    close(apply(f"games.{name}", given, alpha=0), apply(plain, given, **rest))


def test_bco_of_classes_of_one_size_pools_them():
    given = data().given()
    close(apply("unpaired.bco_unpaired", given), apply("unpaired.bco_unpaired_pooled", given))


def test_tpo_l_is_simpo_and_sft():
    given = data().given()
    policy = jax.tree.map(lambda x: x[:, 1:], given["policy"])
    tpo = apply(f"{FREE}tpo_l", given, beta=2, gamma=1, tpo_alpha=0.5)
    simpo, gold = apply(f"{FREE}simpo", {"policy": policy}), apply("sft.token_mean", given)
    np.testing.assert_allclose(tpo[0], simpo[0] + 0.5 * gold[0], rtol=1e-12)
    np.testing.assert_allclose(tpo[1]["nll_loss"], gold[0], rtol=1e-12)


# ---- batches ---------------------------------------------------------------------------------------------------------


def labelled(count: int, seed: int, absent=()) -> tuple[dict, list[mpf], list[bool]]:
    """What BCO gets of responses drawn at random, their log-ratios, and their labels."""
    rng = np.random.default_rng(seed)
    lengths = [0 if i in absent else int(n) for i, n in enumerate(rng.integers(1, 5, count))]
    policy, ref = ([[[float(d) for d in rng.normal(-1, 1, n)], [0.3]] for n in lengths] for _ in range(2))
    good = [bool(x) for x in rng.random(count) < 0.3]
    there = [i for i, n in enumerate(lengths) if n]
    rho = paper.ratios([policy[i][0] for i in there], [ref[i][0] for i in there])
    given = {"policy": logps(policy), "ref": logps(ref), "label": jnp.asarray(good, float)}
    given["weight"] = jnp.ones(count)
    return given, rho, [good[i] for i in there]


def test_bcos_shift_over_steps_is_the_papers():
    history, state = [], objectives.build("unpaired.bco_unpaired").state
    for step in range(3):
        absent = (2,) if step == 1 else ()
        given, rho, good = labelled(7, step + 1, absent)
        losses, metrics, state = apply("unpaired.bco_unpaired", given | {"state": state}, beta=0.5)
        rewards = [mpf(0.5) * r for r in rho]
        history += list(zip(rewards, good, strict=True))
        delta = paper.bco_shift(history)
        np.testing.assert_allclose(metrics["delta"], float(delta), rtol=1e-12)
        here = [i for i in range(7) if i not in absent]
        np.testing.assert_allclose(
            losses[np.array(here)], [float(x) for x in paper.bco(rewards, good, delta)], rtol=1e-12
        )
        assert (state[0][1], state[1][1]) == (sum(g for _, g in history), sum(not g for _, g in history))


@pytest.mark.check
@pytest.mark.parametrize("name", ["bco_unpaired", "bco_unpaired_pooled"])
def test_bcos_state_does_not_know_how_the_data_was_cut(name):
    given, rho, _ = labelled(12, 5, absent=(3,))
    whole = apply(f"unpaired.{name}", given)[2]
    state = objectives.build(f"unpaired.{name}").state
    for piece in (slice(0, 2), slice(2, 5), slice(5, 12)):
        state = apply(f"unpaired.{name}", jax.tree.map(lambda x, p=piece: x[p], given) | {"state": state})[2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), state, whole)
    if name == "bco_unpaired_pooled":
        np.testing.assert_allclose(whole[0], 0.01 * float(mp.fsum(rho) / len(rho)), rtol=1e-12)


def test_bco_before_a_class_has_come_centres_on_the_other():
    given, rho, _ = labelled(4, 6)
    metrics = apply("unpaired.bco_unpaired", given | {"label": jnp.ones(4)})[1]
    np.testing.assert_allclose(metrics["delta"], 0.01 * float(mp.fsum(rho) / 4), rtol=1e-12)


def test_ktos_reference_point_is_the_mean_of_the_mismatched_responses_that_are_there():
    given = data().given()
    policy, ref = given["policy"], given["ref"]
    token = ref.token.at[:, 1].set(
        policy.token[:, 1] - jnp.asarray([0.5, 1.0, 1.5, 7.0])[:, None] / policy.length[:, 1, None]
    )
    here = jnp.arange(policy.token.shape[-1])[None, None] < policy.length[..., None]
    ref = ref._replace(token=jnp.where(here, token, 0.0))
    metrics = apply("unpaired.kto", given | {"ref": ref})[1]
    np.testing.assert_allclose(metrics["kl"], 2.5, rtol=1e-12)
    gone = policy._replace(token=policy.token.at[3, 1].set(0.0), length=policy.length.at[3, 1].set(0))
    metrics = apply("unpaired.kto", given | {"policy": gone, "ref": ref})[1]
    np.testing.assert_allclose(metrics["kl"], 1.0, rtol=1e-12)
    grad = gradient("unpaired.kto", given | {"ref": ref})
    assert not np.any(grad[:, 1])


def test_the_metrics_of_labelled_responses_are_means_over_the_class():
    given, rho, good = labelled(9, 7, absent=(1, 4))
    metrics = apply("unpaired.apo_zero_unpaired", given, beta=0.5)[1]
    here = np.array([i for i in range(9) if i not in (1, 4)])
    for side, member in (("chosen", True), ("rejected", False)):
        want = np.mean([0.5 * float(r) for r, g in zip(rho, good, strict=True) if g is member])
        np.testing.assert_allclose(np.mean(metrics[f"rewards/{side}"][here]), want, rtol=1e-12)
        assert not np.any(metrics[f"rewards/{side}"][np.array([1, 4])])
    alone = apply("unpaired.apo_zero_unpaired", given | {"label": jnp.ones(9)})[1]
    assert not np.any(alone["rewards/rejected"]) and not np.any(alone["logps/rejected"])


def test_only_the_likelihood_over_the_batchs_tokens_couples_examples():
    shapes = Shapes(4, 3, 5, 1, 1, 1)
    for name, couples in {"token_mean": True, "sequence_mean": False, "sequence_sum": False}.items():
        assert couples_examples(objectives.build(f"{FREE}cpo", nll=name), shapes) is couples
    assert not couples_examples(objectives.build(f"{FREE}tpo", tpo_alpha=0), shapes)


# ---- Nash-MD by enumeration ------------------------------------------------------------------------------------------


def test_nash_mds_expectation_is_the_gradient_of_the_regularised_game():
    vocabulary, length, beta = 3, 3, 0.4
    rng = np.random.default_rng(3)
    everything = list(itertools.product(range(vocabulary), repeat=length))
    prefixes = [y for t in range(length) for y in itertools.product(range(vocabulary), repeat=t)]
    rows = np.array([[prefixes.index(y[:t]) for t in range(length)] for y in everything])
    words = np.array(everything)
    ref_logits = jnp.asarray(rng.normal(size=(len(prefixes), vocabulary)))
    logits = jnp.asarray(rng.normal(size=(len(prefixes), vocabulary)))
    preference = jnp.asarray(rng.random(len(everything)))  # P(y > y') against a fixed opponent

    def tokens(logits):
        return jax.nn.log_softmax(logits)[rows, words]  # [responses, T]

    ref = tokens(ref_logits)

    def game(logits):
        logp = tokens(logits).sum(1)
        return jnp.sum(jnp.exp(logp) * (beta * (logp - ref.sum(1)) - preference))

    def surrogate(name):
        probability = jax.lax.stop_gradient(jnp.exp(tokens(logits).sum(1)))
        lengths = jnp.full((len(everything), 1), length, jnp.int32)

        def expected(logits):
            policy, reference = (Logps(x[:, None], jnp.zeros_like(x[:, None]), lengths) for x in (tokens(logits), ref))
            given = {"policy": policy, "ref": reference, "probability": preference[:, None]}
            return jnp.sum(probability * apply(name, given, beta=beta)[0])

        return jax.grad(expected)(logits)

    exact = jax.grad(game)(logits)
    np.testing.assert_allclose(surrogate("games.nash_md"), exact, rtol=1e-10, atol=1e-14)
    assert np.max(np.abs(surrogate("games.nash_md_per_token") - exact)) > 0.01  # TRL's is biased


@pytest.mark.check
def test_the_reverse_divergences_surrogate_is_its_gradient():
    """Over all sequences of three tokens of a model of two words."""
    rng = np.random.default_rng(6)
    everything = np.array([*itertools.product(range(2), repeat=3)])
    rows = [[0, 1 + a, 3 + 2 * a + b] for a, b, _ in everything]
    logits, ref_logits = (jnp.asarray(rng.normal(size=(7, 2))) for _ in range(2))

    def tokens(logits):
        return jax.nn.log_softmax(logits)[np.array(rows), everything]

    def divergence(logits):
        logp = tokens(logits).sum(1)
        return jnp.sum(jnp.exp(logp) * (logp - tokens(ref_logits).sum(1)))

    def expected(logits):
        chances = jax.lax.stop_gradient(jnp.exp(tokens(logits).sum(1)))
        lengths = jnp.full((len(everything), 1), 3, jnp.int32)
        models = (Logps(x[:, None], 0 * x[:, None], lengths) for x in (tokens(logits), tokens(ref_logits)))
        losses, metrics, _ = apply("distil.reverse_kl", dict(zip(("policy", "ref"), models, strict=True)))
        return jnp.sum(chances * losses), jnp.sum(chances * metrics["kl"])

    gradient, kl = jax.grad(expected, has_aux=True)(logits)
    np.testing.assert_allclose(gradient, jax.grad(divergence)(logits), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(kl, divergence(logits), rtol=1e-10)


@pytest.mark.check
def test_forward_distillation_draws_every_tokens_distribution_to_the_teachers():
    """By the logits of a token its gradient is the difference of the distributions, over the number of tokens."""
    rng = np.random.default_rng(7)
    logits, teacher = (rng.normal(size=(4, 1, 3, 5)) for _ in range(2))  # [B, K, T, words]
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits, teacher))
    policy = Logps(jnp.log(p[..., 0]), jnp.zeros(p.shape[:-1]), jnp.full((4, 1), 3, jnp.int32))

    def mean(logits):
        kl = jnp.sum(q * (np.log(q) - jax.nn.log_softmax(logits)), -1)
        return apply("distil.forward_kl", {"policy": policy, "kl": kl})[0].mean()

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(logits))
    np.testing.assert_allclose(value, np.mean(np.sum(q * np.log(q / p), -1)), rtol=1e-10)
    np.testing.assert_allclose(gradient, (p - q) / 12, rtol=1e-10, atol=1e-15)


# ---- rewards of single responses -------------------------------------------------------------------------------------


@pytest.mark.check
def test_a_star_po_is_nothing_for_the_optimal_policy():
    """Of four answers of one token, that the reference gives as often; its samples are each of them once."""
    beta, scores = 0.4, np.array([1.0, 0.0, 0.3, -0.5])
    optimum = np.exp(scores / beta) / np.exp(scores / beta).sum()
    examples = np.array([[k, 0, 1, 2, 3] for k in range(4)])
    lengths = jnp.ones(examples.shape, jnp.int32)

    def model(p):
        token = jnp.log(jnp.asarray(p))[examples][..., None]
        return Logps(token, jnp.zeros_like(token), lengths)

    given = {"policy": model(optimum), "ref": model(np.full(4, 0.25)), "score": jnp.asarray(scores)[examples]}
    losses, metrics, _ = apply("pointwise.a_star_po", given, beta=beta, value_beta=beta)
    np.testing.assert_allclose(losses, 0.0, atol=1e-25)
    np.testing.assert_allclose(metrics["reward/value"], beta * np.log(np.exp(scores / beta).mean()), rtol=1e-12)


@pytest.mark.check
def test_absent_responses_are_no_part_of_a_regression():
    given = data().given()
    fewer = {name: jax.tree.map(lambda x: x.at[:, 2:].set(0), given[name]) for name in ("policy", "ref")}
    two = {
        name: jax.tree.map(lambda x: x[:, :2], x) for name, x in given.items() if name != "label" and name != "weight"
    }
    for name in ("pointwise.qrpo", "pointwise.a_star_po"):
        close(apply(name, given | fewer), apply(name, two))
        none = {key: jax.tree.map(lambda x: x.at[:, 1:].set(0), given[key]) for key in fewer}
        alone = apply(name, given | none)[0]
        assert np.all(alone == 0) if name == "pointwise.a_star_po" else np.all(alone > 0)


# ---- HyPO by enumeration ---------------------------------------------------------------------------------------------


@pytest.mark.check
@pytest.mark.parametrize("count", [1, 2, 3])
def test_hypos_expectation_is_the_gradient_of_dpo_and_of_the_divergence(count):
    """Over all draws of `count` samples from a model of four responses of two tokens."""
    rng, beta, weight = np.random.default_rng(5), 0.3, 0.7
    everything = np.array([*itertools.product(range(2), repeat=2)])
    rows = np.stack([0 * everything[:, 0], 1 + everything[:, 0]], axis=1)  # of the logits: at the start, behind a word
    logits, ref_logits = (jnp.asarray(rng.normal(size=(3, 2))) for _ in range(2))
    draws = np.array([*itertools.product(range(4), repeat=count)])
    examples = np.concatenate([np.tile([2, 1], (len(draws), 1)), draws], axis=1)  # one pair, and all samples behind it

    def tokens(logits):
        return jax.nn.log_softmax(logits)[rows, everything]  # [responses, T]

    def given(logits):
        token, lengths = tokens(logits)[examples], jnp.full(examples.shape, 2, jnp.int32)
        return Logps(token, jnp.zeros_like(token), lengths)

    chances = jax.lax.stop_gradient(jnp.exp(jnp.sum(tokens(logits).sum(1)[draws], axis=1)))
    ref = given(ref_logits)

    def expected(logits):
        losses, metrics, _ = apply("hybrid.hypo", {"policy": given(logits), "ref": ref}, beta=beta, weight=weight)
        return jnp.sum(chances * losses), jnp.sum(chances * metrics["kl"])

    def divergence(logits):
        logp = tokens(logits).sum(1)
        return jnp.sum(jnp.exp(logp) * (logp - tokens(ref_logits).sum(1)))

    def exact(logits):
        pair = apply("dpo.sigmoid", {"policy": given(logits), "ref": ref}, beta=beta)[0][0]
        return pair + weight * divergence(logits)

    gradient, kl = jax.grad(expected, has_aux=True)(logits)
    np.testing.assert_allclose(gradient, jax.grad(exact)(logits), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(kl, divergence(logits), rtol=1e-10)


def test_hypo_leaves_absent_samples_out():
    """Two samples and an absent one are two; none at all is DPO."""
    given = data().given()
    two = {name: jax.tree.map(lambda x: jnp.concatenate([x, x[:, :1]], 1), given[name]) for name in ("policy", "ref")}
    gone = {name: jax.tree.map(lambda x: jnp.concatenate([x, 0 * x[:, :1]], 1), two[name]) for name in two}
    close(apply("hybrid.hypo", two), apply("hybrid.hypo", gone))
    none = {name: jax.tree.map(lambda x: x.at[:, 2:].set(0), given[name]) for name in two}
    close(apply("hybrid.hypo", none), apply("dpo.sigmoid", given))


# ---- refusals and edges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("sft.dco", "samples", 0.5),
        (f"{FREE}simpo", "beta", 0.0),
        (f"{FREE}simpo", "gamma", -0.1),
        (f"{FREE}simpo", "label_smoothing", 0.5),
        (f"{FREE}alphapo", "alpha", float("nan")),
        (f"{FREE}repo", "gamma", -0.1),
        (f"{FREE}confpo", "beta", 0.0),
        (f"{FREE}cpo", "cpo_alpha", -1.0),
        (f"{FREE}cpo", "nll", "tokens"),
        (f"{FREE}cpo_hinge", "beta", -1.0),
        (f"{FREE}cpo_ipo", "beta", 0.0),
        (f"{FREE}slic_hf", "delta", -1.0),
        (f"{FREE}slic_hf", "nll_weight", -1.0),
        (f"{FREE}orpo", "beta", 0.0),
        (f"{FREE}orpo_with_prompt", "nll", "tokens"),
        (f"{FREE}tpo", "tpo_alpha", -1.0),
        ("unpaired.kto", "beta", 0.0),
        ("unpaired.kto", "desirable_weight", -1.0),
        ("unpaired.apo_zero_unpaired", "undesirable_weight", -1.0),
        ("unpaired.bco_unpaired", "beta", float("nan")),
        ("games.inpo", "tau", 0.1),
        ("games.inpo", "tau", 0.0),
        ("games.inpo", "eta", -1.0),
        ("games.xpo", "alpha", -1.0),
        ("games.xpo_ipo", "beta", 0.0),
        ("games.nash_md", "beta", -0.1),
        ("hybrid.hypo", "weight", -0.1),
        ("pointwise.qrpo", "beta", 0.0),
        ("pointwise.a_star_po", "value_beta", 0.0),
    ],
)
def test_a_value_that_no_training_can_mean_is_refused(name, key, value):
    with pytest.raises(ValueError, match=f"objective.{key} = "):
        objectives.build(name, **{key: value})


def test_tpo_needs_three_candidates():
    two = jax.tree.map(lambda x: x[:, :2], data().given()["policy"])
    with pytest.raises(ValueError, match="reads 3 candidates, the example has 2"):
        apply(f"{FREE}tpo", {"policy": two})


def test_none_of_those_without_a_reference_asks_for_one():
    names = [name for name in objectives.names() if name.startswith(FREE)]
    assert len(names) == 15 and all(objectives.build(name).needs <= {"policy", "prompt"} for name in names)


@pytest.mark.check
def test_alphapo_of_an_impossible_response_stays_finite():
    policy = logps([[[-500.0, -500.0], [-1.0]]])
    assert np.all(np.isfinite(gradient(f"{FREE}alphapo", {"policy": policy})))
    assert np.isfinite(apply(f"{FREE}alphapo", {"policy": policy})[0][0])


def test_a_pairs_target_under_inpo_is_a_margin_of_one_half():
    given = data().given()
    losses, metrics, _ = apply("games.inpo", given, eta=0.5, tau=0.2)
    np.testing.assert_allclose(losses, ((metrics["rewards/margins"] - 0.5) / 0.5) ** 2, rtol=1e-12)
