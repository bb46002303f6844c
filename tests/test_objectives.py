"""How an objective is found, bound and refused; and every one against its paper's formula, setting by setting."""

import functools
import itertools
import math
import pathlib
import re
import textwrap

import hurry
import jax
import jax.numpy as jnp
import numpy as np
import papers
import pytest

from slpojax import objectives
from slpojax.base import ABSENT, Logps
from slpojax.sequence import TooFewCandidates

unrooted = pytest.mark.filterwarnings("ignore:objective.temperature = 1")


def logps(*responses) -> Logps:
    """Logps [K, T] in float64 of responses given by token log-odds, padded."""
    length = max(map(len, responses))
    odds = np.array([[*r, *[0.0] * (length - len(r))] for r in responses])
    lengths = np.array([len(r) for r in responses])
    here = np.arange(length)[None, :] < lengths[:, None]
    token, other = np.where(here, -np.logaddexp(0, -odds), 0.0), np.where(here, -np.logaddexp(0, odds), ABSENT)
    return Logps(jnp.asarray(token), jnp.asarray(other), jnp.asarray(lengths, jnp.int32))


# ---- against the papers ----------------------------------------------------------------------------------------------

CASES = {
    "sft.sequence_mean": [({}, lambda p: -papers.logp(p.chosen) / len(p.chosen))],
    "sft.sequence_sum": [({}, lambda p: -papers.logp(p.chosen))],
    "dpo.sigmoid": [({"beta": b}, lambda p, b=b: papers.dpo(p, b)) for b in (0.01, 0.1, 2.0)],
    "dpo.conservative": [
        ({"beta": 0.5, "label_smoothing": e}, lambda p, e=e: papers.conservative(p, 0.5, e)) for e in (0.0, 0.1, 0.3)
    ],
    "dpo.robust": [({"beta": 0.5, "label_smoothing": e}, lambda p, e=e: papers.robust(p, 0.5, e)) for e in (0.0, 0.4)],
    "dpo.ipo": [({"beta": 0.1, "length_normalize": n}, lambda p, n=n: papers.ipo(p, 0.1, n)) for n in (True, False)],
    "dpo.hinge": [({"beta": b}, lambda p, b=b: papers.hinge(p, b)) for b in (0.1, 2.0)],
    "dpo.beta_gamma": [
        ({"beta": 0.2, "gamma": g}, lambda p, g=g: papers.beta_gamma(p, 0.2, g)) for g in (0.0, 0.1, 0.2, 1.0)
    ],
    "dpo.beta_gamma_hinge": [
        ({"beta": 0.2, "gamma": g, "margin": m}, lambda p, g=g, m=m: papers.beta_gamma_hinge(p, 0.2, g, m))
        for g, m in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0))
    ],
    "slpo.listing": [({"scale": "1"}, papers.listing), ({"scale": 8}, lambda p: 8 * papers.listing(p))],
    "slpo.shift": [
        (
            {"alpha": a, "temperature": t, "scale": "1"},
            lambda p, a=a, t=t: papers.shift(p, a, None if t == "length" else t),
        )
        for a, t in ((0.0, "length"), (0.5, "length"), (0.9, 512.0), (1.0, "length"), (0.3, 1.0))
    ],
    "slpo.mse": [
        (
            {"alpha": a, "temperature": t, "scale": s},
            lambda p, a=a, t=t, s=s: s * papers.mse(p, a, None if t == "length" else t),
        )
        for a, t, s in ((0.0, "length", 1), (0.5, "length", 2), (0.9, 512.0, 1), (1.0, "length", 1), (0.3, 1.0, 1))
    ],
    "slpo.pooled": [
        (
            {"alpha": a, "temperature": n, "scale": "1"},
            lambda p, a=a, n=n: papers.pooled(p, a, None if n == "length" else n),
        )
        for a, n in ((0.6, "length"), (0.9, 20.0), (0.9, 1.0), (1.0, "length"))
    ],
    "slpo.joint": [
        ({"alpha": 0.9, "temperature": 1.0, "scale": "1"}, lambda p: papers.joint(p, 0.9)),
        ({"alpha": 1.0, "temperature": 1.0, "scale": "1"}, lambda p: papers.joint(p, 1.0)),
        ({"alpha": 1.0, "temperature": "length", "scale": "1"}, lambda p: papers.joint_rooted(p, 1.0)),
        ({"alpha": 0.6, "temperature": 20.0, "scale": "1"}, lambda p: papers.joint_rooted(p, 0.6, 20.0)),
    ],
}


def pairs() -> list[papers.Pair]:
    rng = np.random.default_rng(0)
    lengths = [(1, 1), (3, 5), (6, 2)]
    return [
        papers.Pair(*([float(d) for d in rng.normal(-1, 1, n)] for n in (w, l, w, l)))
        for w, l in lengths  # noqa: E741
    ]


@unrooted
@pytest.mark.parametrize("name", CASES)
def test_the_papers_formula(name):
    with jax.enable_x64(True):
        for pair, (hyperparameters, paper) in itertools.product(pairs(), CASES[name]):
            policy, ref = logps(pair.chosen, pair.rejected), logps(pair.ref_chosen, pair.ref_rejected)
            objective, given = objectives.build(name, **hyperparameters), {"policy": policy, "ref": ref}
            loss, _ = objective.function(**{key: given[key] for key in objective.needs})
            np.testing.assert_allclose(loss, float(paper(pair)), rtol=1e-10, atol=1e-13, err_msg=str(hyperparameters))


@unrooted
def test_the_joint_form_is_a_divergence_over_every_response():
    """Equation 7 by enumeration: two responses of all V^T, the others pooled."""
    vocabulary, length, alpha = 4, 3, 0.8
    rng = np.random.default_rng(2)

    def model():
        tables = {
            prefix: rng.dirichlet(np.ones(vocabulary))
            for t in range(length)
            for prefix in itertools.product(range(vocabulary), repeat=t)
        }
        every = itertools.product(range(vocabulary), repeat=length)
        return tables, {y: np.prod([tables[y[:t]][y[t]] for t in range(length)]) for y in every}

    (policy, p), (ref, r) = model(), model()
    w, l = (0, 1, 2), (3, 3, 0)  # noqa: E741
    pool = r[w] + r[l]
    target = np.array([alpha * pool, (1 - alpha) * pool, sum(v for y, v in r.items() if y not in (w, l))])
    masses = np.array([p[w], p[l], sum(v for y, v in p.items() if y not in (w, l))])

    def of(tables):
        steps = [[tables[y[:t]][y[t]] for t in range(length)] for y in (w, l)]
        return logps(*(list(np.log(s) - np.log1p(-np.array(s))) for s in steps))

    with jax.enable_x64(True):
        function = objectives.build("slpo.joint", alpha=alpha, temperature=1, scale=1).function
        loss, metrics = function(policy=of(policy), ref=of(ref))
        np.testing.assert_allclose(loss, np.sum(target * np.log(target / masses)), rtol=1e-12)
        got = [metrics["mass/model_chosen"], metrics["mass/model_rejected"]]
        np.testing.assert_allclose(got, masses[:2], rtol=1e-12)


# ---- SFT's reductions, kinks, scales ---------------------------------------------------------------------------------


def test_the_token_mean_is_that_of_the_batch_whatever_fills_it():
    y = logps([0.3, -1.0, -2.0], [0.1], [])
    one = jax.tree.map(lambda x: x[:, None], y)
    losses, _ = jax.vmap(objectives.build("sft.token_mean").function, axis_name="batch")(one)
    tokens = -float(jnp.sum(y.token)) / 4
    np.testing.assert_allclose(losses.sum() / 2, tokens, rtol=1e-6)  # two examples are there
    assert losses[2] == 0


def test_the_kinks():
    y = logps([0.3, -1.0], [0.1])

    def slope(name, **hyperparameters):
        function = objectives.build(name, **hyperparameters).function
        return jax.grad(lambda token: function(policy=y._replace(token=token), ref=y)[0])(y.token)[0, 0]

    # At policy == reference, beta == gamma, no margin: training starts.
    np.testing.assert_allclose(slope("dpo.beta_gamma_hinge", beta=0.25, gamma=0.25), -0.25)
    np.testing.assert_allclose(slope("dpo.beta_gamma_hinge", beta=0.25, gamma=0.25, margin=1.0), -0.25)
    np.testing.assert_allclose(slope("dpo.hinge", beta=0.25), -0.25)


@pytest.mark.check
@pytest.mark.parametrize("length", [16, 64, 256])
def test_scaled_by_the_squared_temperature_the_gradient_is_dpos_at_any_length(length):
    y = logps([-1.5] * length, [-1.5] * length)

    def slopes(name, **hyperparameters):
        function = objectives.build(name, **hyperparameters).function
        return jax.grad(lambda token: function(policy=y._replace(token=token), ref=y)[0])(y.token)[:, 0]

    squared = slopes("slpo.shift", scale="temperature_squared")
    assert -0.05 < squared[0] < -0.01 and 0.05 < squared[1] < 0.15, squared
    chosen, rejected = slopes("slpo.listing")
    assert -0.05 < chosen < -1e-4 and 0.05 < rejected < 0.15, (chosen, rejected)
    plain = slopes("slpo.shift", scale="1")
    np.testing.assert_allclose(plain * length**2, squared, rtol=1e-5)
    np.testing.assert_allclose(plain * length, slopes("slpo.shift"), rtol=1e-5)


def test_alpha_zero_asks_for_the_reference():
    y = logps([0.3, -1.0, -2.0], [0.1, 0.2])
    loss, metrics = objectives.build("slpo.shift", alpha=0.0).function(policy=y, ref=y)
    assert loss == 0 and metrics["mass/gap_chosen"] == 0 and metrics["mass/shift_chosen"] == 0


def test_the_squared_form_is_four_times_the_divergence_near_even_odds():
    y = logps([0.0], [0.0])
    squared, divergence = (objectives.build(name, alpha=1e-3).function for name in ("slpo.mse", "slpo.shift"))
    np.testing.assert_allclose(squared(policy=y, ref=y)[0], 4 * divergence(policy=y, ref=y)[0], rtol=5e-3)


def test_the_squared_form_where_the_targets_add_up_to_more_than_one():
    pair = papers.Pair([0.4, 1.0], [0.2], [3.0, 2.5], [2.0])
    with jax.enable_x64(True):
        policy, ref = logps(pair.chosen, pair.rejected), logps(pair.ref_chosen, pair.ref_rejected)
        loss, metrics = objectives.build("slpo.mse", scale=1).function(policy=policy, ref=ref)
        np.testing.assert_allclose(loss, float(papers.mse(pair, 0.9)), rtol=1e-12)
        assert metrics["mass/clamped"] == 1 and metrics["mass/target_chosen"] == 1


def test_training_on_the_log_odds_reaches_the_target():
    y = logps([-0.5, -1.0, -2.0], [0.1, 0.2])
    function = objectives.build("slpo.shift", alpha=0.5, scale="temperature_squared").function

    def loss(d):
        token, other = -jax.nn.softplus(-d), -jax.nn.softplus(d)
        here = jnp.asarray(y.token) < 0
        return function(policy=Logps(jnp.where(here, token, 0.0), jnp.where(here, other, ABSENT), y.length), ref=y)

    d = jnp.asarray(jnp.where(y.token < 0, y.token - y.other, 0.0))
    step = jax.jit(lambda d: d - 0.5 * jax.grad(lambda d: loss(d)[0])(d))
    for _ in range(400):
        d = step(d)
    value, metrics = loss(d)
    assert value < 1e-6 and abs(metrics["mass/gap_chosen"]) < 1e-2 and abs(metrics["mass/gap_rejected"]) < 1e-2


# ---- finding, binding, refusing --------------------------------------------------------------------------------------


def test_the_names():
    assert {"sft.token_mean", "dpo.sigmoid", "dpo.beta_gamma_hinge", "slpo.shift"} <= set(objectives.names())
    assert not [name for name in objectives.names() if "._" in name]


@pytest.mark.parametrize(
    "name, near",
    [
        ("dpo.sigmoyd", "near: dpo.sigmoid"),
        ("slpo.shft", "near: slpo.shift"),
        ("sigmoid", "near: dpo.sigmoid"),
        ("nothing", "there are [0-9]+ .python -m slpojax.objectives., or any importable module.function"),
        ("dpo.", "there are"),
    ],
)
def test_an_unknown_objective_lists_the_near_ones(name, near):
    with pytest.raises(ValueError, match="unknown objective.*" + near):
        objectives.build(name)


def test_an_unknown_hyperparameter_lists_those_there_are():
    with pytest.raises(ValueError, match="no hyperparameter 'label_smothing' .near: label_smoothing.; it has beta, "):
        objectives.build("dpo.robust", label_smothing=0.1)
    with pytest.raises(ValueError, match="it has none"):
        objectives.build("sft.token_mean", beta=0.1)


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("dpo.sigmoid", "beta", 0.0),
        ("dpo.ipo", "beta", -1.0),
        ("dpo.hinge", "beta", float("nan")),
        ("dpo.conservative", "label_smoothing", 0.5),
        ("dpo.robust", "label_smoothing", 0.5),
        ("dpo.robust", "label_smoothing", -0.1),
        ("dpo.beta_gamma", "gamma", -0.1),
        ("dpo.beta_gamma_hinge", "margin", -1.0),
        ("slpo.shift", "alpha", 1.1),
        ("slpo.joint", "alpha", 0.5),
        ("slpo.pooled", "alpha", 0.5),
        ("slpo.shift", "temperature", 0.0),
        ("slpo.listing", "temperature", "lenght"),
        ("slpo.joint", "scale", "length"),
        ("slpo.shift", "scale", "-1"),
        ("slpo.shift", "scale", "inf"),
    ],
)
def test_a_value_out_of_range_is_refused_when_it_is_built(name, key, value):
    with pytest.raises(ValueError, match=rf"objective\.{key} = .*expected "):
        objectives.build(name, **{key: value})


@pytest.mark.parametrize("name", ["slpo.shift", "slpo.joint", "slpo.listing"])
def test_no_root_warns(name):
    with pytest.warns(UserWarning, match="no gradient"):
        objectives.build(name, temperature=1.0)


def test_numbers_as_a_command_line_gives_them():
    assert objectives.build("dpo.sigmoid", beta=1).hyperparameters == {"beta": 1.0}
    text, number = (objectives.build("slpo.shift", temperature=t, scale="1").function for t in ("512", 512))
    y, ref = logps([0.3, -1.0], [0.1, 0.2]), logps([0.1, -1.0], [0.1, 0.5])
    assert text(policy=y, ref=ref)[0] == number(policy=y, ref=ref)[0] > 0


OWN = """
import jax

def mine(policy, ref, *, beta=0.1):
    return beta * (policy.token - ref.token).sum(), {"twice": 2 * policy.token.sum()}

def counting(policy, state=(0.0,), *, decay=0.9):
    mean = jax.lax.pmean(policy.token.sum(), "batch")
    return policy.token.sum() - state[0], {}, (decay * state[0] + (1 - decay) * mean,)

def greedy(policy, logits):
    return policy.token.sum(), {}

def vector(policy):
    return policy.token.sum(), {"tokens": policy.token[0]}

def bare(policy):
    return policy.token.sum()

def stubborn(policy, *, beta=0.1):
    return (beta if beta > 0 else -beta) * policy.token.sum(), {}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_ideas.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)


def test_an_objective_in_a_file_of_ones_own(own):
    objective = objectives.build("own_ideas.mine", beta=2)
    assert objective.needs == {"policy", "ref"} and objective.metrics == ("twice",)
    assert objectives.defaults("own_ideas.mine") == {"beta": 0.1}
    objective = objectives.build("own_ideas.counting")
    assert objective.state == (0.0,) and objective.needs == {"policy", "state"}


@pytest.mark.parametrize(
    "name, message",
    [
        ("own_ideas.greedy", "asks for 'logits'; it may ask for policy, ref, "),
        ("own_ideas.vector", "'tokens' of one example has shape"),
        ("own_ideas.bare", "expected .loss, .name: scalar"),
        ("own_ideas.absent", "unknown objective"),
    ],
)
def test_what_is_no_objective_is_refused(own, name, message):
    with pytest.raises(ValueError, match=message):
        objectives.build(name)


def test_what_a_module_of_ones_own_misses_is_said(own):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        objectives.build("own_broken.mine")


@pytest.mark.parametrize("name", objectives.names())
def test_a_number_that_float32_does_not_compute_with_is_refused(name):
    for key, default in objectives.defaults(name).items():
        for value in (math.inf, -math.inf, math.nan, 1e38) if isinstance(default, float) else ():
            with pytest.raises(ValueError, match=rf"objective.{key} = {re.escape(str(value))}: expected a finite"):
                objectives.build(name, **{key: value})


@pytest.mark.parametrize(
    "name, hyperparameters, message",
    [
        (
            "unpaired.kto",
            {"desirable_weight": 0, "undesirable_weight": 0},
            r"objective.undesirable_weight = 0.0: expec",
        ),
        ("token_level.wpo", {"loss": "slpo.shift"}, r"objective.loss = 'slpo.shift': expected .* and has a beta"),
        ("token_level.wpo", {"loss": "batchwise.aot"}, r"objective.loss = 'batchwise.aot': expected"),
        ("token_level.wpo", {"loss": "dpo.sigmoid + dpo.hinge"}, r"objective.loss = 'dpo.sigmoid \+ dpo.hinge': expec"),
        ("margin.ld_dpo", {"loss": "dpo.sigmoyd"}, r"unknown objective 'dpo.sigmoyd'"),
    ],
)
def test_what_makes_no_objective_is_refused(name, hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        objectives.build(name, **hyperparameters)


# ---- how many candidates ---------------------------------------------------------------------------------------------

COUNTS = """
import jax
import jax.numpy as jnp
from slpojax.sequence import TooFewCandidates, first, log_ratio, preference_metrics

def clamped(policy, ref, *, beta=0.1, margin=1.0):
    reward = beta * log_ratio(policy, ref)
    return jax.nn.relu(margin - (reward[0] - reward[1])), {}

def reported(policy, ref, *, beta=0.1):
    reward = beta * log_ratio(policy, ref)
    return jax.nn.softplus(reward[1] - reward[0]), preference_metrics(policy, reward)

def unpacked(policy):
    chosen, rejected = policy.token.sum(-1)[:2]
    return rejected - chosen, {}

def four(policy):
    return first(policy, 4).token.sum(), {}

def fifth(policy, score):
    return jax.lax.stop_gradient(score[4]) * policy.token[4].sum(), {}

def every(policy):
    return policy.token.sum(), {"mean": policy.token.mean()}

def eleventh(policy):
    return policy.token[10].sum(), {}

def late(policy, layer_activity):
    return policy.token[0, 40] + layer_activity[0, 0, 20], {}
"""


@pytest.fixture
def counts(tmp_path, monkeypatch):
    (tmp_path / "counting_ideas.py").write_text(COUNTS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("name", "fewest"),
    {"clamped": 2, "reported": 2, "unpacked": 2, "four": 4, "fifth": 5, "every": 1, "late": 1}.items(),
)
def test_how_many_candidates_an_objective_reads(counts, name, fewest):
    """JAX reads reward[1] of a single candidate as reward[0]; of a 40th token nobody knows whether it is there."""
    objective = objectives.build(f"counting_ideas.{name}")
    assert objective.fewest == fewest
    objectives.refuse(objective, candidates=fewest, mismatched=False)
    if fewest > 1:
        with pytest.raises(
            ValueError, match=f"reads {fewest} responses of an example, the data gives {fewest - 1}; .*"
        ):
            objectives.refuse(objective, candidates=fewest - 1, mismatched=False)


def test_an_objective_of_too_many_candidates_is_refused(counts):
    with pytest.raises(ValueError, match="'counting_ideas.eleventh' reads candidate 8, or beyond .* at most 8"):
        objectives.build("counting_ideas.eleventh")


def test_a_term_counts_for_the_whole_mixture(counts):
    assert objectives.build("sft.token_mean + 0.1 * counting_ideas.four").fewest == 4


def test_labelled_responses_lack_a_mismatched_one():
    kto = objectives.build("unpaired.kto")
    with pytest.raises(
        ValueError, match="unpaired.kto reads 2 .*, the data gives 1; set --config.data.mismatched=True"
    ):
        objectives.refuse(kto, candidates=1, mismatched=False)
    with pytest.raises(ValueError, match="set --config.data.candidates=2"):
        objectives.refuse(kto, candidates=1, mismatched=True)


def code(text: str, function: str) -> str:
    """The lines of an example from its first import on to the end of a function."""
    lines = textwrap.dedent(text).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"def {function}("))
    end = next((i for i in range(start + 1, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
    return "\n".join(["import jax", *(line for line in lines[:start] if line.startswith("from ")), *lines[start:end]])


@pytest.mark.parametrize("where", ["README.md", "the contract"])
def test_the_examples_refuse_a_single_candidate(where, tmp_path, monkeypatch):
    if where == "README.md":
        readme = (pathlib.Path(__file__).parents[1] / where).read_text()
        name, text = "hinge", readme.split("## Adding an objective")[1].split("```python")[1].split("```")[0]
    else:
        name, text = "mine", objectives.__doc__.split("::", 1)[1].split("Put it in")[0]
    module = f"example_of_{name}"
    (tmp_path / f"{module}.py").write_text(code(text, name))
    monkeypatch.syspath_prepend(tmp_path)
    objective = objectives.build(f"{module}.{name}")
    assert objective.fewest == 2 and objective.needs == {"policy", "ref"}
    single = logps([0.3, -1.0])
    with pytest.raises(TooFewCandidates, match="reads 2 candidates, the example has 1"):
        objective.function(policy=single, ref=single)


# ---- numbers as arrays -----------------------------------------------------------------------------------------------

SWEPT = {
    "dpo.sigmoid": "beta",
    "dpo.ipo": "beta",
    "slpo.shift": "alpha",
    "reference_free.simpo": "gamma",
    "reference_free.alphapo": "alpha",
    "divergence.alpha": "alpha",
    "token_level.wpo": "max_weight",
    "0.5 * dpo.sigmoid + dpo.robust": "robust_beta",
}


@pytest.mark.parametrize("name", SWEPT)
def test_one_program_serves_many_values(name):
    """A sweep as one vmap: losses and gradients are those of objectives that were built with each value."""
    key, values = SWEPT[name], (0.0, 0.7) if "alpha" in SWEPT[name] else (0.1, 0.4)
    y, ref = logps([0.3, -1.0, 0.4], [0.1, 0.2]), logps([0.1, -1.0, 0.5], [0.1, 0.5])
    inputs = {"ref": ref, "collision": -0.1 * (y.token != 0)}

    def loss(token, function, **arrays):
        return function(**{n: (inputs | {"policy": y._replace(token=token)})[n] for n in objective.needs}, **arrays)[0]

    objective = objectives.build(name)
    assert key in objectives.numeric(objective)
    jit = functools.partial(jax.jit, compiler_options=hurry.OPTIONS)
    sweep = jit(jax.vmap(lambda x: jax.value_and_grad(loss)(y.token, objective.function, **{key: x})))
    together = sweep(jnp.asarray(values))
    for i, value in enumerate(values):
        function = objectives.build(name, **{key: value}).function
        alone = jit(jax.value_and_grad(lambda token, function=function: loss(token, function)))(y.token)
        jax.tree.map(lambda x, a, i=i: np.testing.assert_allclose(x[i], a, rtol=1e-5, atol=1e-6), together, alone)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("slpo.shift", {}, ("alpha",)),
        ("slpo.shift", {"temperature": 512, "scale": 2}, ("alpha", "temperature", "scale")),
        ("slpo.shift", {"alpha": 1}, ()),
        ("dpo.ipo", {"length_normalize": False}, ("beta",)),
        ("reference_free.cpo", {}, ("beta", "cpo_alpha", "label_smoothing")),
        ("reference_free.cpo", {"cpo_alpha": 0}, ("beta", "label_smoothing")),
        ("margin.ld_dpo", {}, ("beta", "alpha")),
        ("dpo.sigmoid + 0.1 * dpo.hinge", {}, ("sigmoid_beta", "hinge_beta")),
        ("own_ideas.mine", {}, ("beta",)),
        ("own_ideas.stubborn", {}, ()),
    ],
    ids=str,
)
def test_which_numbers_may_be_arrays(own, name, settings, expected):
    assert objectives.numeric(objectives.build(name, **settings)) == expected


def test_mse_of_a_mass_of_exactly_one_is_finite():
    """No token of a complement that is `ABSENT`: a square of 1e30 would be no float32."""
    ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
    sure = Logps(jnp.float32([[0.0], [-1.0]]), jnp.float32([[ABSENT], [-0.46]]), jnp.int32([1, 1]))
    loss, gradient = jax.value_and_grad(lambda token: objectives.find("slpo.mse")(sure._replace(token=token), ref)[0])(
        sure.token
    )
    assert np.isfinite(loss) and np.all(np.isfinite(gradient)) and gradient[0, 0] > 0
