"""The pairwise objectives with a reference: papers, identities, batches with gaps, states, extremes, refusals."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import papers
import papers_pairs as paper
import pytest
from mpmath import mp, mpf

from slpojax import objectives
from slpojax.base import ABSENT, Logps, Shapes
from slpojax.objectives.batchwise import _share_of
from slpojax.objectives.divergence import _LOSSES as MARGIN_LOSSES
from slpojax.step import couples_examples

LENGTHS = [(3, 5), (1, 1), (6, 2), (4, 4)]
SCORES = [(2.0, 0.5), (0.75, 0.5), (1.0, -3.0), (0.0, -0.25)]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def logps(examples) -> Logps:
    """Logps [B, K, T] of responses given by token log-odds, padded; [] is absent."""
    lengths = np.array([[len(y) for y in example] for example in examples])
    odds = np.array([[[*y, *[0.0] * (lengths.max() - len(y))] for y in example] for example in examples])
    here = np.arange(odds.shape[-1]) < lengths[..., None]
    token, other = np.where(here, -np.logaddexp(0, -odds), 0.0), np.where(here, -np.logaddexp(0, odds), ABSENT)
    return Logps(jnp.asarray(token), jnp.asarray(other), jnp.asarray(lengths, jnp.int32))


@functools.cache
def pairs(seed: int = 0) -> list[papers.Pair]:
    rng = np.random.default_rng(seed)
    return [
        papers.Pair(*([float(d) for d in rng.normal(-1, 1, n)] for n in (w, l, w, l)))
        for w, l in LENGTHS  # noqa: E741
    ]


def given(batch: list[papers.Pair], seed: int = 0) -> dict:
    return {
        "policy": logps([(p.chosen, p.rejected) for p in batch]),
        "ref": logps([(p.ref_chosen, p.ref_rejected) for p in batch]),
        **dict.fromkeys(("score", "probability"), jnp.asarray(SCORES * 2)[: len(batch)]),
        "key": jax.random.split(jax.random.key(seed), len(batch)),
    }


def apply(name: str, arguments: dict, **hyperparameters):
    """(losses [B], metrics [B] each, new state or None)."""
    objective = objectives.build(name, **hyperparameters)
    arguments = {k: {"state": objective.state, **arguments}[k] for k in objective.needs}
    axes = ({k: None if k == "state" else 0 for k in arguments},)
    out = (0, 0, None) if "state" in arguments else 0
    result = jax.vmap(lambda x: objective.function(**x), axes, out, axis_name="batch")(arguments)
    return (*result, None)[:3]


def gradient(name: str, arguments: dict, **hyperparameters):
    """Of the mean loss, by the log-prob of every token."""

    def mean(token):
        moved = arguments | {"policy": arguments["policy"]._replace(token=token)}
        return apply(name, moved, **hyperparameters)[0].mean()

    return jax.grad(mean)(arguments["policy"].token)


# ---- against the papers ----------------------------------------------------------------------------------------------


def scored(function, *args):
    return [function(pair, scores, *args) for pair, scores in zip(pairs(), SCORES, strict=True)]


def each(function, *args):
    return [function(pair, *args) for pair in pairs()]


def shifted(beta: float):
    delta = mp.fsum(mpf(beta) * r for pair in pairs() for r in paper.ratios(pair)) / (2 * len(pairs()))
    return each(paper.bco, beta, delta)


CASES = {
    "margin.exo_pair": [
        ({"beta": b, "label_smoothing": e}, each, paper.exo, b, e) for b, e in ((0.1, 1e-3), (2.0, 0.1), (0.5, 1e-9))
    ],
    "margin.sigmoid_norm": [({"beta": b}, each, paper.per_token, b) for b in (5.0, 0.3)],
    "margin.discopop": [
        ({"beta": b, "tau": t}, each, paper.discopop, b, t) for b, t in ((0.05, 0.05), (2.0, 1.0), (1.0, 0.01))
    ],
    "margin.dpop": [({"beta": b, "penalty": w}, each, paper.dpop, b, w) for b, w in ((0.3, 50.0), (0.1, 0.5))],
    "margin.odpo": [({"beta": b, "alpha": a}, scored, paper.odpo, b, a) for b, a in ((0.1, 1.0), (1.0, 0.3))],
    "margin.r_dpo": [({"beta": b, "alpha": a}, each, paper.by_length, b, a) for b, a in ((0.1, 0.01), (1.0, 0.3))],
    "margin.ld_dpo": [({"beta": 0.7, "alpha": a}, each, paper.desensitised, 0.7, a) for a in (0.0, 0.4, 1.0)],
    "margin.spce": [({"beta": b, "eta": e}, scored, paper.soft, b, e) for b, e in ((0.1, 1.0), (2.0, 0.3))],
    "margin.dpo_shift": [
        ({"beta": b, "rejected_weight": w}, each, paper.rejected_counts_less, b, w)
        for b, w in ((0.1, 0.5), (2.0, 0.9), (0.3, 0.0))
    ],
    "margin.todo": [
        ({"beta": b, "alpha": a}, scored, paper.todo, b, a) for b, a in ((0.1, 0.5), (2.0, 1e-3), (1.0, 30))
    ],
    "divergence.chi_po": [
        ({"beta": b, "reward_bound": r}, each, paper.chi_po, b, r or 1e9)
        for b, r in ((0.05, 0.0), (2.0, 0.3), (0.3, 5.0))
    ],
    "margin.hybrid_dpo": [({"beta": b}, each, paper.hybrid, b) for b in (0.1, 2.0)],
    **{
        f"margin.rpo_{name}": [
            ({"beta": b, "eta": e}, scored, paper.reward_aware, b, e, name.removesuffix("_kl"))
            for b, e in ((0.2, 1.0), (2.0, 0.3))
        ]
        for name in ("squared", "backward_kl", "forward_kl")
    },
    "anchored.nca_pair": [({"beta": b}, each, paper.nca, b) for b in (0.01, 2.0)],
    "anchored.bco_pair": [({"beta": b}, shifted, b) for b in (0.01, 2.0)],
    "anchored.bco_pair_unshifted": [({"beta": b}, each, paper.bco, b, mpf(0)) for b in (0.01, 2.0)],
    "anchored.sppo": [({"beta": b}, scored, paper.sppo, b) for b in (1e-3, 2.0)],
    "anchored.sppo_hard": [({"beta": b}, each, paper.sppo, (1.0, 0.0), b) for b in (1e-3, 2.0)],
    "anchored.apo_zero": [({"beta": b}, each, paper.apo_zero, b) for b in (0.1, 2.0)],
    "anchored.apo_down": [({"beta": b}, each, paper.apo_down, b) for b in (0.1, 2.0)],
}
DIVERGENCES = {
    "reverse_kl": [({}, paper.reverse)],
    "forward_kl": [({}, paper.forward)],
    "js": [({}, paper.jensen_shannon)],
    "alpha": [({"alpha": a}, paper.power(a)) for a in (0.5, 0.1, 0.99, -1.5)],
}


# Those in `make check` alone; their examples and the laws run every time.
LATER = ("margin.dpo_shift", "margin.todo", "divergence.chi_po")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.check] if name in LATER else []) for name in CASES]
)
def test_the_papers_formula(name):
    for hyperparameters, function, *args in CASES[name]:
        losses, *_ = apply(name, given(pairs()), **hyperparameters)
        want = [float(x) for x in function(*args)]
        np.testing.assert_allclose(losses, want, rtol=1e-10, atol=1e-13, err_msg=str(hyperparameters))


@pytest.mark.parametrize("loss", MARGIN_LOSSES)
def test_every_divergence_in_every_loss_of_a_margin(loss):
    for name, settings in DIVERGENCES.items():
        for hyperparameters, f in settings:
            losses, *_ = apply(f"divergence.{name}", given(pairs()), beta=0.3, loss=loss, **hyperparameters)
            want = [float(x) for x in each(paper.f_dpo, f, 0.3, loss)]
            np.testing.assert_allclose(losses, want, rtol=1e-10, err_msg=f"{name} {hyperparameters}")


def test_the_metrics_are_of_the_true_log_ratios():
    want = np.array([[0.3 * float(r) for r in paper.ratios(pair)] for pair in pairs()])
    for name in ("divergence.forward_kl", "divergence.js", "margin.sigmoid_norm", "anchored.bco_pair", "batchwise.aot"):
        metrics = apply(name, given(pairs()), beta=0.3)[1]
        got = [metrics[f"rewards/{side}"] for side in ("chosen", "rejected")]
        np.testing.assert_allclose(np.stack(got, 1), want, rtol=1e-10, err_msg=name)


# ---- limiting identities ---------------------------------------------------------------------------------------------

EPSILON = 0.1
LABEL = float(np.log((1 - EPSILON) / EPSILON))
SAME = [
    ("margin.dpop", {"penalty": 0}, "dpo.sigmoid", {}),
    ("margin.odpo", {"alpha": 0}, "dpo.sigmoid", {}),
    ("margin.r_dpo", {"alpha": 0}, "dpo.sigmoid", {}),
    ("margin.dpo_shift", {"rejected_weight": 1}, "dpo.sigmoid", {}),
    ("batchwise.beta_dpo", {"a": 0, "keep": 1}, "dpo.sigmoid", {}),
    ("dpo.conservative", {"label_smoothing": 0}, "dpo.sigmoid", {}),
    ("divergence.alpha", {"alpha": 0}, "dpo.sigmoid", {}),
    ("divergence.alpha", {"alpha": 1}, "divergence.forward_kl", {}),
    *(("divergence.reverse_kl", {"loss": loss}, loss, {}) for loss in MARGIN_LOSSES),
    *(("margin.ld_dpo", {"alpha": 1, "loss": loss}, loss, {}) for loss in ("dpo.ipo", "anchored.apo_zero")),
]


@pytest.mark.parametrize("name, own, other, others", SAME, ids=[f"{a} {b} = {c}" for a, b, c, _ in SAME])
def test_what_is_the_same(name, own, other, others):
    arguments = given(pairs())
    got, want = apply(name, arguments, beta=0.4, **own), apply(other, arguments, beta=0.4, **others)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    for key, value in want[1].items():
        np.testing.assert_allclose(got[1][key], value, rtol=1e-12, err_msg=key)


def test_scores_that_say_what_a_label_says():
    """One difference of scores for all pairs, the log-odds of a label that is wrong with probability epsilon."""
    arguments = given(pairs()) | {"score": jnp.tile(jnp.array([LABEL, 0.0]), (len(pairs()), 1))}
    conservative, *_ = apply("dpo.conservative", arguments, beta=0.4, label_smoothing=EPSILON)
    soft, *_ = apply("margin.spce", arguments, beta=0.4)
    np.testing.assert_allclose(soft, conservative, rtol=1e-12)
    entropy = -(1 - EPSILON) * np.log(1 - EPSILON) - EPSILON * np.log(EPSILON)
    np.testing.assert_allclose(apply("margin.rpo_backward_kl", arguments, beta=0.4)[0], soft - entropy, rtol=1e-12)
    exo, *_ = apply("margin.exo_pair", arguments, beta=0.4, label_smoothing=EPSILON)
    np.testing.assert_allclose(apply("margin.rpo_forward_kl", arguments, beta=0.4)[0], exo, rtol=1e-12)


def test_hybrid_dpo_is_dpo_or_leaves_the_reference_out():
    arguments = given(pairs())
    reference = jnp.sum(arguments["ref"].token, -1)
    agrees = reference[:, 0] > reference[:, 1]
    assert 0 < agrees.sum() < len(agrees)
    dpo, free = (apply(*x, beta=0.4)[0] for x in (("dpo.sigmoid", arguments), ("margin.hybrid_dpo", arguments)))
    alone = apply("dpo.beta_gamma", arguments, beta=0.4, gamma=0)[0]
    np.testing.assert_allclose(free, jnp.where(agrees, dpo, alone), rtol=1e-12)


def test_an_order_of_scores_that_is_none_teaches_nothing():
    arguments = given(pairs()) | {"score": jnp.array([[1.0, 1.0], [0.0, 2.0], [3.0, 1.0], [1.0, 1.0 - 1e-300]])}
    losses, metrics, _ = apply("margin.odpo", arguments)
    np.testing.assert_array_equal(metrics["score/ordered"], [0, 0, 1, 0])
    np.testing.assert_array_equal(np.asarray(losses) == 0, [True, True, False, True])
    grad = gradient("margin.odpo", arguments)
    assert not np.any(grad[:2]) and np.all(grad[2, 0, :6])


@pytest.mark.check
def test_a_tie_pulls_the_rewards_together():
    """And its probability, a win's and a loss's are all there are."""
    arguments = given(pairs()) | {"score": jnp.ones((len(pairs()), 2))}
    losses, metrics, _ = apply("margin.todo", arguments, beta=0.7, alpha=0.4)
    np.testing.assert_allclose(losses, [float(paper.todo(p, (1.0, 1.0), 0.7, 0.4)) for p in pairs()], rtol=1e-10)
    assert np.all(metrics["score/tied"] == 1)
    margins = np.asarray(metrics["rewards/margins"])
    won = np.asarray(apply("margin.todo", given(pairs()), beta=0.7, alpha=0.4)[0])
    lost = np.log1p(np.exp(0.4 + margins))
    np.testing.assert_allclose(np.exp(-losses) + np.exp(-won) + np.exp(-lost), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(np.sign(gradient("margin.todo", arguments, beta=0.7)[:, 0, 0]), np.sign(margins))


@pytest.mark.check
def test_sampo_draws_every_subset_of_the_longer_response_as_often():
    pair, draws = papers.Pair([0.5, -1.0], [0.3, -0.2, 1.5, -2.0], [0.1, 0.2], [-0.5, 0.5, 0.0, 1.0]), 3000
    one = jax.tree.map(lambda x: x[0], {name: given([pair])[name] for name in ("policy", "ref")})
    function = jax.jit(jax.vmap(lambda key: objectives.build("margin.sampo", beta=0.7).function(**one, key=key)[0]))
    drawn = np.asarray(function(jax.random.split(jax.random.key(1), draws)))
    wanted = [float(paper.on_tokens(pair, 0.7, (0, 1), kept)) for kept in itertools.combinations(range(4), 2)]
    which = np.argmin(np.abs(drawn[:, None] - wanted), axis=1)
    np.testing.assert_allclose(drawn, np.array(wanted)[which], rtol=1e-10)
    share = np.bincount(which, minlength=len(wanted)) / draws
    np.testing.assert_allclose(share, 1 / len(wanted), atol=4 * np.sqrt(5 / 36 / draws))


@pytest.mark.check
def test_sampo_of_responses_of_one_length_is_dpo():
    arguments = given([pair for pair in pairs() if len(pair.chosen) == len(pair.rejected)])
    got, want = (apply(name, arguments, beta=0.7)[0] for name in ("margin.sampo", "dpo.sigmoid"))
    np.testing.assert_allclose(got, want, rtol=1e-12)


# ---- batches ---------------------------------------------------------------------------------------------------------


def with_gaps() -> tuple[dict, dict]:
    """A batch with an example that is absent and one without a rejected response; and the same without the two."""
    empty, half = papers.Pair([], [], [], []), papers.Pair([0.3, 1.0], [], [0.1, -0.5], [])
    first, *others = pairs()
    return given([first, empty, *others[:1], half, *others[1:]]), given(pairs())


PRESENT = [0, 2, 4, 5]


@pytest.mark.check
@pytest.mark.parametrize(
    "name, hyperparameters",
    [
        ("aot", {"label_smoothing": 0.1}),
        ("aot_unpaired", {"label_smoothing": 0.1}),
        ("beta_dpo", {"keep": 1}),
        ("alpha_dpo", {}),
        ("dr_dpo", {"beta_prime": 0.3}),
    ],
)
def test_the_absent_change_nothing(name, hyperparameters):
    gaps, whole = with_gaps()
    name, hyperparameters = f"batchwise.{name}", hyperparameters | {"beta": 0.4}
    (got, *_, before), (want, *_, after) = (apply(name, x, **hyperparameters) for x in (gaps, whole))
    np.testing.assert_allclose(np.asarray(got)[PRESENT], want, rtol=1e-12)
    grad = gradient(name, gaps, **hyperparameters)
    width = whole["policy"].token.shape[-1]
    scale = len(gaps["score"]) / len(whole["score"])  # the mean is over more examples
    np.testing.assert_allclose(grad[jnp.array(PRESENT), :, :width] * scale, gradient(name, whole, **hyperparameters))
    assert not np.any(np.delete(grad, PRESENT, 0))
    if before is not None:
        np.testing.assert_allclose(before, after, rtol=1e-12)


def test_aot_sorts_the_batch():
    arguments = given([*pairs(0), *pairs(1)])
    policy, ref = (np.asarray(jnp.sum(arguments[x].token, -1)) for x in ("policy", "ref"))
    rho = policy - ref
    for name, sides in (("aot", (policy[:, 0] - policy[:, 1], ref[:, 0] - ref[:, 1])), ("aot_unpaired", rho.T)):
        losses, *_ = apply(f"batchwise.{name}", arguments, beta=0.4, label_smoothing=0.1)
        want = getattr(paper, name)(*sides, 0.4, 0.1)
        np.testing.assert_allclose(np.asarray(losses)[np.argsort(sides[0])], want, rtol=1e-12)


def test_bcos_shift_is_the_mean_of_all_rewards_so_far_and_has_no_gradient():
    gaps, _ = with_gaps()
    batches, state, seen, beta = [given(pairs(1)), gaps, given(pairs(2))], (0.0, 0.0), [], 0.4
    for arguments in batches:
        arguments = arguments | {"state": state}
        reward = np.asarray(beta * jnp.sum(arguments["policy"].token - arguments["ref"].token, -1))
        seen.extend(reward[np.asarray(arguments["policy"].length) > 0])
        _, metrics, state = apply("anchored.bco_pair", arguments, beta=beta)
        np.testing.assert_allclose(metrics["delta"], np.mean(seen), rtol=1e-12)
        np.testing.assert_allclose(state, (np.mean(seen), len(seen)), rtol=1e-12)
        slopes = gradient("anchored.bco_pair", arguments, beta=beta)[:, :, 0] * len(reward)
        centred = reward - np.mean(seen)
        want = np.stack([-beta / (1 + np.exp(centred[:, 0])), beta / (1 + np.exp(-centred[:, 1]))], 1)
        here = np.asarray(arguments["policy"].length) > 0
        np.testing.assert_allclose(slopes[here], want[here], rtol=1e-10)


def test_beta_dpo_over_three_batches():
    state, beta, a, decay, keep = (0.0, 0.0), 0.4, 0.6, 0.9, 0.75
    for seed in range(3):
        arguments = given([*pairs(seed), *pairs(seed + 10)], seed) | {"state": state}
        h = np.asarray(jnp.sum(arguments["policy"].token - arguments["ref"].token, -1)) @ [1, -1]
        knobs = {"beta": beta, "a": a, "decay": decay, "keep": keep}
        losses, metrics, new = apply("batchwise.beta_dpo", arguments, **knobs)
        kept = np.asarray(metrics["kept"]) == 1
        assert kept.sum() == 6
        loss, used, state = paper.beta_dpo(h, kept, state, beta, a, decay)
        np.testing.assert_allclose(losses.mean(), loss, rtol=1e-12)
        np.testing.assert_allclose(metrics["beta"], used, rtol=1e-12)
        np.testing.assert_allclose(new, state, rtol=1e-12)
        slopes = gradient("batchwise.beta_dpo", arguments, **knobs)[:, 0, 0]
        np.testing.assert_allclose(slopes, np.where(kept, -used / (1 + np.exp(used * h)), 0) / 6, rtol=1e-10)


@pytest.mark.check
def test_alpha_dpo_over_three_batches():
    state, knobs = (0.0, 0.0), {"beta": 2.5, "gamma": 0.5, "alpha": 0.3}
    for seed in range(3):
        arguments = given([*pairs(seed), *pairs(seed + 10)]) | {"state": state}
        length = np.asarray(arguments["policy"].length)
        policy, ref = (np.asarray(jnp.sum(arguments[x].token, -1)) / length for x in ("policy", "ref"))
        losses, _, new = apply("batchwise.alpha_dpo", arguments, **knobs)
        want, state = paper.alpha_dpo(policy @ [1, -1], (policy - ref) @ [1, -1], state, **knobs)
        np.testing.assert_allclose(losses, want, rtol=1e-10)
        np.testing.assert_allclose(new, state, rtol=1e-12)
        slopes = gradient("batchwise.alpha_dpo", arguments, **knobs)[:, 0, 0] * len(length) * length[:, 0]
        np.testing.assert_allclose(slopes, -2.5 * -np.expm1(-want), rtol=1e-10)  # of the margin held, SimPO's


@pytest.mark.check
def test_alpha_dpo_at_the_reference_and_without_alpha_is_simpo():
    arguments = given(pairs())
    simpo = apply("reference_free.simpo", arguments, beta=2.5, gamma=0.5)[0]
    same = arguments | {"ref": arguments["policy"]._replace(token=arguments["policy"].token * (1 + 1e-9))}
    for near, alpha in ((same, 0.3), (arguments, 0.0)):
        losses, *_ = apply("batchwise.alpha_dpo", near, beta=2.5, gamma=0.5, alpha=alpha)
        np.testing.assert_allclose(losses, simpo, rtol=1e-12)


@pytest.mark.check
@pytest.mark.parametrize("loss", ["dpo.sigmoid", "anchored.apo_zero"])
def test_dr_dpo_weighs_the_pairs_by_their_losses(loss):
    arguments = given([*pairs(0), *pairs(1)])
    each = np.asarray(apply(loss, arguments, beta=0.7)[0])
    for scale in (0.5, 1e6):
        losses, metrics, _ = apply("batchwise.dr_dpo", arguments, beta=0.7, beta_prime=scale, loss=loss)
        want, weights = paper.soft_minimum(each, scale)
        np.testing.assert_allclose(losses, want, rtol=1e-8)
        np.testing.assert_allclose(metrics["weight"], weights, rtol=1e-10)
        got = gradient("batchwise.dr_dpo", arguments, beta=0.7, beta_prime=scale, loss=loss)
        alone = gradient(loss, arguments, beta=0.7)
        np.testing.assert_allclose(got, weights[:, None, None] * alone, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(want, each.mean(), rtol=1e-5)


def test_beta_dpo_draws_by_weight_and_without_replacement():
    arguments, state, draws = given([*pairs(3), *pairs(4)][:5]), (0.3, 0.9), 4000
    h = np.asarray(jnp.sum(arguments["policy"].token - arguments["ref"].token, -1)) @ [1, -1]

    @jax.jit
    @jax.vmap
    def kept(key):
        keys = jax.random.split(key, len(h))
        return apply("batchwise.beta_dpo", arguments | {"key": keys, "state": state}, keep=0.6)[1]["kept"]

    drawn = np.asarray(kept(jax.random.split(jax.random.key(7), draws)))
    assert np.all(drawn.sum(1) == 3)
    middle, width = 0.9 * 0.3 + 0.1 * h.mean(), 0.9 * 0.9 + 0.1 * h.std(ddof=1)
    want = paper.chance_of_being_drawn(np.exp(-(((h - middle) / width) ** 2) / 2), 3)
    assert want.min() < 0.3 and want.max() > 0.8
    np.testing.assert_allclose(drawn.mean(0), want, atol=4 * 0.5 / np.sqrt(draws))


@pytest.mark.parametrize(
    "keep, count, kept", [(0.8, 5, 4), (0.9, 10, 9), (0.7, 10, 7), (0.8, 1, 1), (0.3, 2, 1), (1.0, 3, 3), (0.8, 64, 51)]
)
def test_how_many_beta_dpo_keeps(keep, count, kept):
    assert _share_of(jnp.float32(count), keep) == kept


def test_which_objectives_couple_the_examples():
    modules = ("margin.", "anchored.", "divergence.", "batchwise.")
    names = [name for name in objectives.names() if name.startswith(modules)]
    coupled = {name for name in names if couples_examples(objectives.build(name), Shapes(4, 2, 6, 1, 1, 1))}
    assert coupled == {
        "anchored.bco_pair",
        "batchwise.aot",
        "batchwise.aot_unpaired",
        "batchwise.beta_dpo",
        "batchwise.alpha_dpo",
        "batchwise.dr_dpo",
    }


# ---- extremes --------------------------------------------------------------------------------------------------------


@pytest.mark.check
@pytest.mark.parametrize("loss", MARGIN_LOSSES)
def test_a_response_that_is_lost_leaves_f_dpo_finite(loss):
    with jax.enable_x64(False):
        far = jnp.array([[[-300.0], [-1.0]], [[-1.0], [-300.0]], [[-300.0], [-300.0]]])
        policy = Logps(far, jnp.full_like(far, -1e-6), jnp.ones((3, 2), jnp.int32))
        arguments = {"policy": policy, "ref": policy._replace(token=jnp.full_like(far, -1.0))}
        for name, alpha in (("forward_kl", {}), ("alpha", {"alpha": -2.0})):
            losses, *_ = apply(f"divergence.{name}", arguments, loss=loss, **alpha)
            grad = gradient(f"divergence.{name}", arguments, loss=loss, **alpha)
            assert np.all(np.isfinite(losses)) and np.isfinite(np.sum(np.square(grad))), f"{name} {alpha}"


def test_discopop_far_out():
    with jax.enable_x64(False):
        token = jnp.array([[[-1000.0], [-1.0]], [[-1.0], [-1000.0]]])
        policy = Logps(token, jnp.full_like(token, -1e-6), jnp.ones((2, 2), jnp.int32))
        arguments = {"policy": policy, "ref": policy._replace(token=jnp.full_like(token, -1.0))}
        losses, *_ = apply("margin.discopop", arguments, beta=1.0, tau=1.0)
        np.testing.assert_allclose(losses, [1000.0, 0.0], atol=1.1)
        assert np.all(np.isfinite(gradient("margin.discopop", arguments, beta=1.0, tau=1.0)))


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, key, value",
    [
        *(("margin." + name, "beta", 0.0) for name in ("exo_pair", "dpop", "ld_dpo", "rpo_squared")),
        *(("anchored." + name, "beta", -1.0) for name in ("nca_pair", "bco_pair", "sppo", "apo_zero")),
        *(("batchwise." + name, "beta", float("nan")) for name in ("aot", "aot_unpaired", "beta_dpo")),
        ("divergence.js", "beta", 0.0),
        ("margin.exo_pair", "label_smoothing", 0.0),
        ("margin.exo_pair", "label_smoothing", 0.5),
        ("margin.discopop", "tau", 0.0),
        ("margin.discopop", "tau", 1.5),
        ("margin.dpop", "penalty", -1.0),
        ("margin.odpo", "alpha", -1.0),
        ("margin.r_dpo", "alpha", -0.1),
        ("margin.dpo_shift", "rejected_weight", 1.1),
        ("margin.todo", "alpha", 0.0),
        ("margin.sampo", "beta", 0.0),
        ("divergence.chi_po", "reward_bound", -1.0),
        ("margin.ld_dpo", "alpha", 1.1),
        ("margin.ld_dpo", "loss", "slpo.shift"),
        ("margin.ld_dpo", "loss", "anchored.bco_pair"),
        ("margin.spce", "eta", 0.0),
        ("margin.rpo_forward_kl", "eta", -1.0),
        ("divergence.alpha", "alpha", float("inf")),
        ("divergence.alpha", "max_exponent", 0.0),
        ("divergence.forward_kl", "max_exponent", float("inf")),
        ("divergence.js", "loss", "anchored.nca_pair"),
        ("batchwise.aot", "label_smoothing", 0.5),
        ("batchwise.aot_unpaired", "label_smoothing", -0.1),
        ("batchwise.alpha_dpo", "alpha", -0.1),
        ("batchwise.alpha_dpo", "decay", 1.0),
        ("batchwise.dr_dpo", "beta_prime", 0.0),
        ("batchwise.dr_dpo", "loss", "batchwise.aot"),
        ("batchwise.beta_dpo", "a", -0.1),
        ("batchwise.beta_dpo", "keep", 0.0),
        ("batchwise.beta_dpo", "keep", 1.1),
        ("batchwise.beta_dpo", "decay", 1.0),
    ],
)
def test_a_value_out_of_range_is_refused_when_it_is_built(name, key, value):
    with pytest.raises(ValueError, match=rf"objective\.{key} = .*expected "):
        objectives.build(name, **{key: value})
