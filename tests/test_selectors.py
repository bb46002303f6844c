"""Which candidates are picked, how often, and what the objective then learns: the statements of MC-PO's paper."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from slpojax import needs, objectives, selectors
from slpojax.base import ABSENT, Logps
from slpojax.selectors import plain
from slpojax.selectors.kernel import mc_kernel
from slpojax.step import on_examples

DRAWS = 10_000
NAMES = selectors.names()
SAMPLERS = ("uniform", "mc_kernel")


def of_totals(totals, lengths) -> Logps:
    """Responses of one token; the totals of absent ones are left out."""
    lengths = jnp.asarray(lengths, jnp.int32)
    token = jnp.where(lengths > 0, jnp.asarray(totals, jnp.float32), 0.0)[..., None]
    return Logps(token, jnp.where(lengths[..., None] > 0, -1.0, ABSENT), lengths)


# Five candidates: all there; two absent, one of them between; the likeliest absent; one left; none left.
LENGTHS = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0], [1, 1, 1, 0, 1], [1, 0, 0, 1, 0], [1, 0, 0, 0, 0]])
POLICY = of_totals(np.tile([-9.0, -6.0, -8.0, -3.0, -7.0], (5, 1)), LENGTHS)
REF = of_totals(np.tile([-9.0, -8.0, -7.0, -7.0, -3.0], (5, 1)), LENGTHS)


@functools.cache
def draws(name, **hyperparameters):
    """[5, draws, picks], the same for the same settings."""
    selector = selectors.build(name, {"beta": 0.1}, **hyperparameters)
    keys = jax.random.split(jax.random.key(7), (len(LENGTHS), DRAWS))

    def one(policy, ref, key):
        inputs = {"policy": policy, "ref": ref, "key": key}
        return selectors.choose(selector, inputs)[0][1:]

    return np.asarray(jax.jit(jax.vmap(jax.vmap(one, in_axes=(None, None, 0))))(POLICY, REF, keys))


def agrees(picks, probability):
    """Chi-square of picks [draws, ...] against {index, or tuple of them: probability}."""
    found, counts = np.unique(picks.reshape(len(picks), -1), axis=0, return_counts=True)
    counts = {tuple(map(int, k)): int(n) for k, n in zip(found, counts)}
    expected = {k if isinstance(k, tuple) else (k,): p * len(picks) for k, p in probability.items() if p > 0}
    assert counts.keys() <= expected.keys(), f"picked {counts.keys() - expected.keys()}"
    np.testing.assert_allclose(sum(expected.values()), len(picks))
    assert min(expected.values()) > 5, "too rare for the test"
    if len(expected) > 1:
        result = stats.chisquare([counts.get(k, 0) for k in expected], list(expected.values()))
        assert result.pvalue > 1e-3, f"{counts} instead of {expected}"


def softmax(weights):
    """{index: probability} of {index: log weight}."""
    total = sum(np.exp(w) for w in weights.values())
    return {k: np.exp(w) / total for k, w in weights.items()}


def log_weights(example, start=1, weight="reward", beta=1.0, temperature=1.0):
    """{index: log weight} of the candidates of an example that may be picked."""
    policy, ref = (np.asarray(x.token[example, :, 0], float) for x in (POLICY, REF))
    value = beta * (policy - ref) if weight == "reward" else policy
    return {int(k): value[k] / temperature for k in np.flatnonzero(LENGTHS[example]) if k >= start}


# ---- how often -------------------------------------------------------------------------------------------------------

SETTINGS = [
    {"beta": 0.3},
    {"beta": 0.6, "temperature": 2.0},
    {"weight": "policy", "temperature": 3.0},
    {"beta": 0.3, "include_state": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_kernel_draws_from_its_softmax(settings):
    weights = {"start": 1 - settings.get("include_state", False)}
    weights |= {key: value for key, value in settings.items() if key != "include_state"}
    picks = draws("mc_kernel", **settings)
    for example in range(4):
        agrees(picks[example], softmax(log_weights(example, **weights)))


def test_picks_with_replacement_are_independent():
    one = softmax(log_weights(0, beta=0.3))
    pairs = {(a, b): one[a] * one[b] for a, b in itertools.product(one, repeat=2)}
    agrees(draws("mc_kernel", beta=0.3, picks=2)[0], pairs)


def test_picks_without_replacement_are_successive_draws():
    picks = draws("mc_kernel", beta=0.3, picks=2, replacement=False)
    for example in range(3):
        weights = log_weights(example, beta=0.3)
        one, pairs = softmax(weights), {}
        for a in weights:
            rest = softmax({k: w for k, w in weights.items() if k != a})
            pairs |= {(a, b): one[a] * p for b, p in rest.items()}
        agrees(picks[example], pairs)


def test_uniform_is_uniform():
    for example in range(4):
        there = log_weights(example)
        agrees(draws("uniform")[example], dict.fromkeys(there, 1 / len(there)))


@pytest.mark.parametrize("replacement", [True, False])
def test_at_the_reference_the_kernel_is_exactly_uniform(replacement):
    """The same keys give the same picks as a draw without weights."""
    settings = {"picks": 3, "replacement": replacement}
    keys = jax.random.split(jax.random.key(1), 500)
    for y in (jax.tree.map(lambda x, i=i: x[i], POLICY) for i in range(2)):
        drawn = jax.vmap(lambda key, y=y: mc_kernel(y, y, key, beta=0.1, **settings)[0])(keys)
        uniform = jax.vmap(lambda key, y=y: plain.uniform(y, key, **settings))(keys)
        np.testing.assert_array_equal(drawn, uniform)


# ---- several steps, and part of the candidates -----------------------------------------------------------------------


def one_step(weights, state, pool):
    """{index: probability} after one step from a state, or from none: by every fresh pool there can be."""
    others = [k for k in weights if k != state]
    after = dict.fromkeys(weights, 0.0)
    pools = list(itertools.combinations(others, min(pool, len(others))))
    for fresh in pools:
        for k, p in softmax({k: weights[k] for k in {*fresh, state} & weights.keys()}).items():
            after[k] += p / len(pools)
    return after


def chain(weights, state, pool, steps):
    """{index: probability} after so many steps."""
    now = one_step(weights, state, pool)
    for _ in range(steps - 1):
        moves = {k: one_step(weights, k, pool) for k in weights}
        now = {k: sum(now[j] * moves[j][k] for j in weights) for k in weights}
    return now


def distance(a, b):
    return sum(abs(a[k] - b[k]) for k in a) / 2


@pytest.mark.parametrize("include_state", [False, pytest.param(True, marks=pytest.mark.check)])
def test_a_chain_on_fresh_pools(include_state):
    settings = {"include_state": True} if include_state else {"picks": 2}  # those of the other tests
    picks = draws("mc_kernel", beta=0.3, steps=3, pool=2, **settings)
    for example in range(4):
        weights = log_weights(example, 1 - include_state, beta=0.3)
        agrees(picks[example, :, 0], chain(weights, 0 if include_state else None, 2, 3))


def test_every_pick_walks_for_itself():
    one = chain(log_weights(0, beta=0.3), None, 2, 3)
    pairs = {(a, b): one[a] * one[b] for a, b in itertools.product(one, repeat=2)}
    agrees(draws("mc_kernel", beta=0.3, steps=3, pool=2, picks=2)[0], pairs)


@pytest.mark.parametrize(("steps", "pool"), [(1, 4), (2, 0)])
def test_with_all_in_the_pool_the_first_step_is_exact(steps, pool):
    picks = draws("mc_kernel", beta=0.3, steps=steps, pool=pool)
    for example in range(4):
        weights = log_weights(example, beta=0.3)
        assert distance(chain(weights, None, 4, steps), softmax(weights)) < 1e-12
        agrees(picks[example], softmax(weights))


@pytest.mark.check
def test_with_part_of_them_the_chain_reaches_the_softmax():
    weights = log_weights(0, beta=0.5)
    target = softmax(weights)
    moves = {k: one_step(weights, k, 1) for k in weights}
    for a, b in itertools.combinations(weights, 2):
        np.testing.assert_allclose(target[a] * moves[a][b], target[b] * moves[b][a])  # each step leaves it as it is
    ahead = []
    for steps in (1, 3, 12):
        picks = draws("mc_kernel", beta=0.5, steps=steps, pool=1)[0, :, 0]
        ahead.append(distance({k: np.mean(picks == k) for k in weights}, target))
    assert ahead[0] > 2 * ahead[1] > 4 * ahead[2] and ahead[2] < 0.015, ahead


# ---- candidates that are absent --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_absent_candidates_come_only_behind_all_that_are_there(name):
    picks = draws(name, picks=4, replacement=False)
    for example, there in enumerate(np.flatnonzero(n[1:]) + 1 for n in LENGTHS):
        first, rest = np.split(np.sort(picks[example, :, : len(there)], axis=1), 1)[0], picks[example, :, len(there) :]
        assert np.all(first == there) and not np.isin(rest, [0, *there]).any()


def test_where_no_negative_is_left_the_loss_is_zero():
    rnce = jax.jit(objectives.build("listwise.rnce").function)
    for settings in ({}, {"steps": 3, "pool": 2}):
        picks = draws("mc_kernel", beta=0.3, picks=2, **settings)[4]
        assert picks.min() > 0
        y, ref = (selectors.take(jax.tree.map(lambda x: x[4], x), np.array([0, *picks[0]])) for x in (POLICY, REF))
        assert rnce(policy=y, ref=ref)[0] == 0


def test_the_likeliest_and_the_least_likely():
    for name, weight, want in (
        ("likeliest", "reward", [3, 1, 2, 4]),
        ("likeliest", "policy", [3, 1, 4, 2]),
        ("least_likely", "reward", [4, 2, 1, 3]),
        ("least_likely", "policy", [2, 4, 1, 3]),
    ):
        selector = selectors.build(name, picks=4, weight=weight)
        for picked, n in zip(np.asarray(jax.vmap(selector.function)(policy=POLICY, ref=REF)), LENGTHS):
            there = [k for k in want if n[k]]
            np.testing.assert_array_equal(picked, there + [k for k in (1, 2, 3, 4) if not n[k]])
    y = jax.tree.map(lambda x: x[1], POLICY)
    assert int(plain.likeliest(y, y)[0]) == int(plain.least_likely(y, y)[0]) == 1  # a tie


def test_the_last_is_the_last_that_is_there():
    for picked, n in zip(np.asarray(jax.vmap(selectors.build("last", picks=4).function)(policy=POLICY)), LENGTHS):
        there = [k for k in (4, 3, 2, 1) if n[k]]
        np.testing.assert_array_equal(picked, there + [k for k in (1, 2, 3, 4) if not n[k]])


# ---- what the objective then learns from -----------------------------------------------------------------------------


def test_one_random_negative_is_dpo_on_that_pair():
    """The gradient tells which pair; absent candidates never are."""
    policy, ref = (jax.tree.map(lambda x: x[:4], y) for y in (POLICY, REF))
    rnce, dpo = objectives.build("listwise.rnce", beta=0.2), objectives.build("dpo.sigmoid", beta=0.2)
    score, selector = jnp.zeros(policy.length.shape), selectors.build("uniform")

    def losses(token, objective=rnce, selector=selector, reference=ref):
        inputs = {"policy": policy._replace(token=token), "ref": reference, "score": score[: len(token)]}
        inputs["policy"] = inputs["policy"] if selector else Logps(token, token, reference.length)
        value = on_examples(objective, inputs, jax.random.key(3), selector=selector)[0]
        return value.sum(), value

    (_, ours), gradient = jax.jit(jax.value_and_grad(losses, has_aux=True))(policy.token)
    touched = [np.flatnonzero(row) for row in np.asarray(gradient)[:, :, 0]]
    assert all(pair[0] == 0 and len(pair) == 2 and n[pair].all() for pair, n in zip(touched, LENGTHS))
    pick = jax.vmap(selectors.take)
    pairs, refs = (pick(x, np.stack(touched)) for x in (policy, ref))
    (_, theirs), slope = jax.jit(jax.value_and_grad(lambda token: losses(token, dpo, None, refs), has_aux=True))(
        pairs.token
    )
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(pick(gradient, np.stack(touched)), slope, rtol=1e-6)


# Every response of two tokens from a vocabulary of three; the parameters are the logits after each prefix.
RESPONSES = np.array(list(itertools.product(range(3), repeat=2)))
BETA = 0.7


def model(logits) -> Logps:
    """The log-probs of all nine responses, [9, 2]."""
    table = jax.nn.log_softmax(logits)  # after nothing, and after each first token
    token = jnp.stack([table[0, RESPONSES[:, 0]], table[1 + RESPONSES[:, 0], RESPONSES[:, 1]]], axis=1)
    return Logps(token, jnp.log(-jnp.expm1(token)), jnp.full(9, 2, jnp.int32))


@pytest.fixture
def world():
    """(parameters, the reference's log-probs, mu, p) in float64: p(y) is mu(y) exp(r(y)) / Z."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        theirs, ours = (jnp.asarray(rng.normal(0.0, 1.0, (4, 3))) for _ in range(2))
        ref = model(theirs)
        mu = np.exp(np.sum(ref.token, axis=1))
        weight = mu * np.exp(BETA * np.sum(model(ours).token - ref.token, axis=1))
        np.testing.assert_allclose(mu.sum(), 1.0)
        yield ours, ref, mu, weight / weight.sum()


def reward(logits, ref):
    return BETA * jnp.sum(model(logits).token - ref.token, axis=1)


def log_z(logits, ref, mu):
    return jax.nn.logsumexp(reward(logits, ref) + jnp.log(mu))


@functools.partial(jax.jit, static_argnames="name")
def gradient(name, logits, ref, tuples, probability):
    """Of the objective's mean loss over tuples of responses [N, 1 + M] with inputs probabilities."""
    function = objectives.build(name, beta=BETA).function

    def loss(logits):
        policy = model(logits)
        sides = [selectors.take(y, tuples) for y in (policy, ref)]
        return jnp.sum(probability * jax.vmap(lambda y, r: function(policy=y, ref=r)[0])(*sides))

    return jax.grad(loss)(logits)


slopes = jax.jit(jax.jacobian(reward))  # of each response's reward


@pytest.mark.parametrize("negatives", [1, 2])
def test_proposition_3_3(world, negatives):
    """With y_0 drawn from the model itself the estimate of the gradient of log Z is unbiased; else it is not.

    The estimate is log Z-hat, with Z-hat the mean of exp(r) over y_0 and M negatives drawn from mu.
    """
    logits, ref, mu, p = world
    exact = jax.jit(jax.grad(log_z))(logits, ref, mu)
    tuples = np.array(list(itertools.product(range(9), repeat=1 + negatives)))

    def error(first):
        probability = first[tuples[:, 0]] * np.prod(mu[tuples[:, 1:]], axis=1)
        rnce = gradient("listwise.rnce", logits, ref, tuples, probability)  # of log Z-hat - r_0 + log(M + 1)
        estimate = rnce + np.tensordot(first, np.asarray(slopes(logits, ref)), axes=1)
        return np.abs(estimate - exact).max()

    assert error(p) < 1e-14
    assert error(mu) > 1e-2 and error(np.eye(9)[4]) > 1e-2


def test_lemma_3_1(world):
    """Averaged over the kernel's draw from all, its state included, contrastive divergence is RNCE's gradient."""
    logits, ref, *_ = world
    drawn = np.array([3, 7, 0, 7])
    share = jax.nn.softmax(reward(logits, ref)[drawn])
    pairs = np.stack([np.full(4, 3), drawn], axis=1)
    kernel = gradient("listwise.contrastive_divergence", logits, ref, pairs, share)
    rnce = gradient("listwise.rnce", logits, ref, drawn[None], np.ones(1))
    np.testing.assert_allclose(kernel, rnce, rtol=1e-12, atol=1e-15)


def test_lemma_3_2(world):
    """With one negative the gradient is that of the margin, weighed by how wrong the pair is."""
    logits, ref, *_ = world
    rnce = gradient("listwise.rnce", logits, ref, np.array([[3, 7]]), np.ones(1))
    r, slope = reward(logits, ref), slopes(logits, ref)
    np.testing.assert_allclose(rnce, -jax.nn.sigmoid(r[7] - r[3]) * (slope[3] - slope[7]), rtol=1e-12, atol=1e-15)


def test_contrastive_divergence_is_the_gradient_of_the_likelihood(world):
    """Equation 8, the negative drawn from the model."""
    logits, ref, mu, p = world
    log_z_slope = jax.jit(jax.grad(log_z))(logits, ref, mu)
    for chosen in (0, 5):
        pairs = np.stack([np.full(9, chosen), np.arange(9)], axis=1)
        ours = gradient("listwise.contrastive_divergence", logits, ref, pairs, p)
        np.testing.assert_allclose(ours, log_z_slope - slopes(logits, ref)[chosen], rtol=1e-11, atol=1e-14)


# ---- found, bound, counted, refused ----------------------------------------------------------------------------------


def test_the_names():
    assert set(NAMES) == {"everything", "uniform", "likeliest", "least_likely", "last", "mc_kernel"}


def test_every_candidate():
    np.testing.assert_array_equal(plain.everything(jax.tree.map(lambda x: x[1], POLICY)), [1, 2, 3, 4])
    assert selectors.count(selectors.build("everything"), 7) == 7


@pytest.mark.check
def test_a_noise_candidate_is_passed_over_once_it_has_fallen():
    """The trap of section 5.4: a response unlike any other has a larger gradient, here three times, and falls sooner.

    The kernel then lets it be, where DPO on it goes on pushing and teaches nothing else.
    """
    size, steps, pull = 32, 60, jnp.array([[1.0, 1.0, 1.0, 1.0, 3.0]])
    rnce, ref = objectives.build("listwise.rnce", beta=1.0), jnp.full((size, 5, 1), -50.0)

    def ratios(name, lengths, **settings):
        selector = selectors.build(name, **settings)
        lengths = jnp.tile(lengths, (size, 1))

        def policy(theta):
            moved = jnp.where(lengths[..., None] > 0, ref + (pull * theta)[..., None], 0.0)
            return Logps(moved, jnp.where(lengths[..., None] > 0, -1.0, ABSENT), lengths)

        def step(theta, key):
            inputs = {"policy": policy(theta), "ref": policy(jnp.zeros_like(theta)), "score": theta}

            def loss(theta):
                return on_examples(rnce, inputs | {"policy": policy(theta)}, key, selector=selector)[0].sum()

            return theta - 0.1 * jax.grad(loss)(theta), None

        return pull * jax.lax.scan(step, jnp.zeros((size, 5)), jax.random.split(jax.random.key(0), steps))[0]

    pool, alone = jnp.ones(5, jnp.int32), jnp.array([1, 0, 0, 0, 1])
    after = {"kernel": ratios("mc_kernel", pool, beta=1.0), "uniform": ratios("uniform", pool)}
    after["DPO"] = ratios("uniform", alone)
    chance = jax.nn.softmax(after["kernel"][:, 1:], axis=-1).mean(0)
    assert chance[-1] < 0.5 * chance[:-1].min()
    trap = {name: float(x[:, -1].mean()) for name, x in after.items()}
    assert trap["DPO"] < trap["uniform"] < trap["kernel"] < 0
    assert after["kernel"][:, 1:4].mean() < after["uniform"][:, 1:4].mean() < 0 == after["DPO"][:, 1:4].mean()


# ---- metrics of the picked -------------------------------------------------------------------------------------------


def reported(name, example, **settings):
    inputs = jax.tree.map(lambda x: x[example], {"policy": POLICY, "ref": settings.pop("ref", REF)})
    selector = selectors.build(name, **settings)
    picked, metrics = selectors.choose(selector, inputs | {"key": jax.random.key(0)})
    return np.asarray(picked), {key.removeprefix("selector/"): float(value) for key, value in metrics.items()}


@pytest.mark.check
def test_the_place_of_the_picked_is_reported():
    assert reported("likeliest", 0)[1] == {"rank": 1, "hardest": 1}
    assert reported("least_likely", 0, picks=2)[1] == {"rank": 3.5, "hardest": 0}
    assert reported("least_likely", 1)[1] == {"rank": 2, "hardest": 0}  # of the two that are there
    assert reported("likeliest", 4)[1] == {"rank": 0, "hardest": 0}  # there is none
    # With no reference the order is that of log P: candidate 4, at -7, stands behind those at -3 and -6.
    assert reported("least_likely", 0, ref=REF, weight="policy")[1]["rank"] == 3
    inputs = jax.tree.map(lambda x: x[0], {"policy": POLICY}) | {"ref": None, "key": jax.random.key(0)}
    picked, metrics = selectors.choose(selectors.build("uniform", picks=4, replacement=False), inputs)
    assert float(metrics["selector/rank"]) == 2.5 and sorted(picked.tolist()) == [0, 1, 2, 3, 4]


def test_equal_ones_share_their_places():
    assert reported("uniform", 0, ref=POLICY)[1] == {"rank": 2.5, "hardest": 0.25}
    assert reported("mc_kernel", 1, ref=POLICY, beta=1)[1] == {"rank": 1.5, "hardest": 0.5, "effective": 2}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_kernel_reports_what_its_softmax_is_worth(settings):
    weights = {"start": 1 - settings.get("include_state", False)}
    weights |= {key: value for key, value in settings.items() if key != "include_state"}
    for example in range(4):
        share = np.array(list(softmax(log_weights(example, **weights)).values()))
        effective = reported("mc_kernel", example, **settings)[1]["effective"]
        np.testing.assert_allclose(effective, 1 / np.sum(share**2), rtol=1e-5)
    assert reported("mc_kernel", 4, beta=1)[1]["effective"] == 0


def test_a_beta_follows_the_objectives_unless_it_has_its_own():
    assert selectors.build("mc_kernel", {"beta": 0.5}).hyperparameters["beta"] == 0.5
    assert selectors.build("mc_kernel", {"beta": 0.5}, beta=0.2).hyperparameters["beta"] == 0.2
    with pytest.raises(ValueError, match=r"selector.beta = 'objective': expected .* an objective that has a beta"):
        selectors.build("mc_kernel", {"sigmoid_beta": 0.5, "hinge_beta": 0.5})
    selectors.build("mc_kernel", weight="policy")  # draws by no reward


def test_what_is_taken():
    y, array = selectors.take((jax.tree.map(lambda x: x[0], POLICY), np.arange(5.0)), np.array([0, 3, 3]))
    np.testing.assert_array_equal(y.token[:, 0], [-9, -3, -3])
    np.testing.assert_array_equal(y.length, [1, 1, 1])
    np.testing.assert_array_equal(array, [0, 3, 3])


@pytest.mark.parametrize("picks", [1, 2, 4])
def test_the_rule(picks):
    for prompt, response, candidates in itertools.product((0.0, 100.0, 138.0, 400.0), (10.0, 50.0), (2, 3, 5, 8, 20)):
        together = 3 * prompt + 3 * candidates * response
        first = prompt + candidates * response + 3 * prompt + 3 * (1 + picks) * response
        want = "score_first" if first < together else "together"
        assert selectors.cheaper(prompt, response, candidates, picks) == want
    assert selectors.cheaper(100.0, 50.0, 4, 1) == "together"  # 900 either way


def test_the_numbers_of_the_rule():
    for candidates, numbers in {2: "714       952", 5: "1164      1102", 8: "1614      1252"}.items():
        together, first = 3 * (138 + candidates * 50), (138 + candidates * 50) + 3 * (138 + 2 * 50)
        assert [int(n) for n in numbers.split()] == [together, first] and numbers in selectors.cheaper.__doc__


OWN = """
import jax.numpy as jnp

def worst(policy, score, *, picks=1):
    return jnp.argsort(score)[:picks]

def labels(policy, label):
    return jnp.arange(1)

def one(policy):
    return jnp.int32(1)

def soft(policy):
    return policy.token[1:, 0]

def both(policy):
    return jnp.arange(1), jnp.arange(1)

def third(policy, score):
    return jnp.where(score[3] > score[1], jnp.int32([3]), 1)

def rows(policy):
    return jnp.arange(1), {"rows": jnp.arange(1)}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_selectors.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_selector_in_a_file_of_ones_own(own):
    selector = selectors.build("own_selectors.worst", picks=2)
    assert selector.needs == {"policy", "score"} and selectors.defaults("own_selectors.worst") == {"picks": 1}
    assert selectors.count(selector, 5) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mc_kernl", "unknown selector 'mc_kernl' .near: mc_kernel.; there are mc_kernel, everything, uniform, "),
        ("selectors.likeliest", "unknown selector"),
        ("take", "unknown selector"),
        ("own_selectors.labels", "asks for 'label'; it may ask for policy, ref, score, key"),
        ("own_selectors.one", "expected the indices of candidates"),
        ("own_selectors.soft", "expected the indices of candidates"),
        ("own_selectors.both", "expected the indices of candidates"),
        ("own_selectors.rows", "expected .* those and {name: scalar}"),
    ],
)
def test_what_is_no_selector_is_refused(own, name, message):
    with pytest.raises(ValueError, match=message):
        selectors.build(name)


def test_an_unknown_hyperparameter_lists_those_there_are():
    with pytest.raises(ValueError, match="no hyperparameter 'temprature' .near: temperature.; it has picks, beta"):
        selectors.build("mc_kernel", temprature=1.0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("uniform", {"picks": 0}),
        ("likeliest", {"picks": -1}),
        ("least_likely", {"weight": "rewards"}),
        ("mc_kernel", {"picks": 0}),
        ("mc_kernel", {"beta": 0}),
        ("mc_kernel", {"temperature": 0.0}),
        ("mc_kernel", {"temperature": float("nan")}),
        ("mc_kernel", {"beta": float("inf")}),
        ("mc_kernel", {"beta": "objectives"}),
        ("mc_kernel", {"weight": "score"}),
        ("mc_kernel", {"steps": 0}),
        ("mc_kernel", {"pool": -1}),
        ("mc_kernel", {"replacement": False, "steps": 2}),
        ("mc_kernel", {"replacement": False, "pool": 2}),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_when_it_is_built(name, settings):
    with pytest.raises(ValueError, match=rf"selector\.{next(iter(settings))} = .*expected "):
        selectors.build(name, {"beta": 0.1}, **settings)


def test_the_contract_describes_what_a_selector_may_ask_for():
    assert needs.prose(needs.where(selectors=True)) in selectors.__doc__
    assert needs.where(selectors=True) == ("policy", "ref", "score", "key")


def test_what_follows_the_objective_is_named():
    assert selectors.build("mc_kernel", {"beta": 0.5}).follows == ("beta",)
    assert selectors.build("mc_kernel", {"beta": 0.5}, beta=0.2).follows == ()


def test_numbers_may_be_arrays():
    """One program for many betas and temperatures; the picks are those of Python numbers."""
    selector = selectors.build("mc_kernel", beta=0.3)
    assert selectors.numeric(selector) == ("beta", "temperature")
    assert [selectors.numeric(selectors.build(name)) for name in ("uniform", "likeliest", "everything")] == [()] * 3
    inputs = jax.tree.map(lambda x: x[0], {"policy": POLICY, "ref": REF}) | {"key": jax.random.key(1)}
    values = jnp.float32([[0.3, 1.0], [3.0, 0.5]])

    def picks(beta, temperature):
        return selectors.choose(selector, inputs, beta=beta, temperature=temperature)

    together = jax.jit(jax.vmap(picks))(*values.T)
    for i, (beta, temperature) in enumerate(values.tolist()):
        alone = selectors.choose(selectors.build("mc_kernel", beta=beta, temperature=temperature), inputs)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-6), together, alone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"degrade": 2}, "selector uniform picks among the copies that config.data.degrade=2 makes"),
        ({"fewest": 4}, "reads 4 responses .* selector uniform leaves 2 of 5; set --config.selector.picks=3"),
        ({"fewest": 4, "candidates": 3}, "uniform leaves 2 of 3; set --config.data.candidates=4, with data"),
    ],
)
def test_a_selector_refuses_in_its_own_words(settings, message):
    asked = {"objective": "ideas.mine", "fewest": 2, "candidates": 5, "degrade": 0}
    selector = selectors.build("uniform")
    selectors.refuse(selector, **asked)
    with pytest.raises(ValueError, match=message):
        selectors.refuse(selector, **(asked | settings))


def test_a_candidate_beyond_the_last_is_no_pick(own):
    selector = selectors.build("own_selectors.third")
    assert selectors.count(selector, 4) == 2
    with pytest.raises(ValueError, match="'own_selectors.third' reads candidate 3, the example has 3"):
        selectors.count(selector, 3)


@pytest.mark.parametrize(
    ("name", "settings", "candidates"),
    [
        ("uniform", {"picks": 3, "replacement": False}, 3),
        ("mc_kernel", {"picks": 3, "replacement": False}, 3),
        ("mc_kernel", {"picks": 4, "replacement": False, "include_state": True}, 3),
        ("likeliest", {"picks": 3}, 3),
        ("uniform", {}, 1),
    ],
    ids=str,
)
def test_more_picks_than_candidates_are_refused_when_they_are_counted(name, settings, candidates):
    selector = selectors.build(name, {"beta": 0.1}, **settings)
    with pytest.raises(ValueError, match=r"selector.picks = .*ask for fewer, give more \(config.data.candidates\)"):
        selectors.count(selector, candidates)
    assert selectors.count(selector, candidates + 1) == 1 + settings.get("picks", 1)
