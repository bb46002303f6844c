"""The objectives against the numbers of their authors' code and of TRL's (tests/goldens/objectives.py names both)."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import objectives, sequence
from slpojax.base import ABSENT, Logps

GOLDENS = pathlib.Path(__file__).parent / "goldens"
SLPO = json.loads((GOLDENS / "slpo.json").read_text())
TRL = json.loads((GOLDENS / "trl.json").read_text())
PAIR = ("chosen", "rejected")
unrooted = pytest.mark.filterwarnings("ignore:objective.temperature = 1")


def logps_of_totals(*totals, dtype) -> Logps:
    """Responses of one token; the gradient flows through the complement."""
    token = jnp.stack([jnp.asarray(x, dtype) for x in totals])[:, None]
    return Logps(token, jnp.log(-jnp.expm1(token)), jnp.ones(len(totals), jnp.int32))


# ---- the author's code on logits -------------------------------------------------------------------------------------


def case_logits(case: dict, stream: int, prompt: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [T, V] of policy and reference that predict a response, and its tokens, by the goldens' formulas."""
    spec = case["spec"]
    k, vocabulary, positions = stream, spec["V"], spec["S"]
    s, v = np.arange(positions, dtype=np.int64)[:, None], np.arange(vocabulary, dtype=np.int64)[None, :]

    def noise(k):
        h = ((s + 1) * 7919 + (v + 1) * 104729 + (k + 1) * 1299709 + (s + 1) * (v + 1) * 31) % 10007
        return 2 * h / 10006 - 1

    token = ((s[:, 0] + 1) * 611953 + (k + 1) * 15485863 + 7 * s[:, 0] ** 2) % vocabulary
    policy = spec["amp"] * noise(k)
    boost = spec["boost"][0 if stream % 10 == 1 else 1]
    policy[np.arange(positions - 1), token[1:]] += boost
    ref = policy + spec["eps"] * noise(k + 50)
    predicts = slice(prompt - 1, prompt + length - 1)
    return policy[predicts], ref[predicts], token[prompt : prompt + length]


def logps_of_logits(logits, tokens, length: int) -> tuple:
    """Token log-odds from logits, the sum over the others first; padded to `length`."""
    others = jnp.where(np.arange(logits.shape[-1])[None, :] == tokens[:, None], -jnp.inf, logits)
    odds = jnp.take_along_axis(logits, jnp.asarray(tokens)[:, None], 1)[:, 0] - jax.nn.logsumexp(others, axis=-1)
    pad = (0, length - len(tokens))
    token = jnp.pad(-jax.nn.softplus(-odds), pad)
    return token, jnp.pad(-jax.nn.softplus(odds), pad, constant_values=ABSENT), jnp.int32(len(tokens))


def case_function(case: dict, dtype):
    """(objective -> ((loss, metrics), gradient by chosen and rejected logits)) of a case."""
    ((prompt, *lengths),) = case["spec"]["pairs"]
    data = [case_logits(case, k, prompt, n) for k, n in zip((1, 2), lengths)]

    def logps(logits):
        sides = [logps_of_logits(x, d[2], max(lengths)) for x, d in zip(logits, data)]
        return Logps(*(jnp.stack(field) for field in zip(*sides)))

    if case["ref_override"]:
        bare = logps_of_totals(*case["ref_override"][0], dtype=dtype)
        pad = ((0, 0), (0, max(lengths) - 1))
        ref = Logps(jnp.pad(bare.token, pad), jnp.pad(bare.other, pad, constant_values=ABSENT), jnp.int32(lengths))
    else:
        ref = logps([jnp.asarray(d[1], dtype) for d in data])
    logits = tuple(jnp.asarray(d[0], dtype) for d in data)

    def run(*objectives):
        """One compilation for all: their losses and metrics, and their gradients by the logits."""

        def values(x):
            return [
                jax.value_and_grad(lambda x, f=objective.function: f(policy=logps(x), ref=ref), has_aux=True)(x)
                for objective in objectives
            ]

        return jax.jit(values)(logits)

    return run, [d[2] for d in data]


# What float32 keeps. The sums of a response and of its reference near -1,500 carry 1e-4 nats of a target 0.7 nats away.
# Most of them belong to `make check`.
CASES = [
    pytest.param(case, id=case["name"], marks=pytest.mark.check if case["name"][:3] not in ("g01", "g08") else [])
    for case in SLPO["cases"]
]
FLOAT32 = {"value": 2e-3, "gradient": 1e-3}


@unrooted
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(jnp.float64, id="float64"), pytest.param(jnp.float32, id="float32", marks=pytest.mark.check)],
)
@pytest.mark.parametrize("case", CASES)
def test_the_authors_forms(case, dtype):
    """The loss of December 2025 (shift), the proposal to regress (mse) and the paper's listing, from logits."""
    spec, main, mse, oracle = case["spec"], case["main"], case["pr19_mse"], case["oracle_50digit"]
    winner, loser = case["listing"]["winner"], case["listing"]["loser"]
    double = dtype is jnp.float64
    value, gradient = (1e-8, 1e-8) if double else (FLOAT32["value"], FLOAT32["gradient"])
    near_one = case["name"].startswith("g08")
    own = {"alpha": spec["alpha"], "temperature": spec["t"], "scale": "1"}
    forms = [("slpo.shift", own), ("slpo.mse", own), ("slpo.listing", {"scale": "1"})]
    with jax.enable_x64(double):
        run, tokens = case_function(case, dtype)
        results = run(*(objectives.build(name, **rest) for name, rest in forms))
    ((loss, metrics), grads), ((mse_loss, mse_metrics), mse_grads), ((listing_loss, listed), listing_grads) = results

    def same(got, want, rtol, **rest):
        np.testing.assert_allclose(np.float64(got), np.float64(want), rtol=rtol, **rest)

    same(loss, main["loss"][0], value)
    same(loss, oracle["main_loss"][0], value)
    same(mse_loss, mse["loss"][0], value)
    same(mse_loss, (mse["loss_w"][0] + mse["loss_l"][0]) / 2, value)
    # That code's listing gives NaN for the rejected, whose value is that of its formula.
    same(listing_loss, oracle["listing_winner_loss"] + oracle["listing_loser_loss"], value)
    same(oracle["listing_loser_loss"], loser["loss_masked"], 1e-8)

    for name, side, grad, token in zip(PAIR, "wl", grads, tokens, strict=True):
        norm = np.linalg.norm(grad)
        same(norm, main[f"grad_norm_{name}"], gradient)
        same(grad[0, :5], main[f"grad_{name}_row_first5"], gradient, atol=gradient * norm)
        same(grad[0, token[0]], main[f"grad_{name}_at_label"], gradient, atol=gradient * norm)
        for what in ("model", "target"):
            p, small = np.float64(metrics[f"mass/{what}_{name}"]), 1e-8 if double else 1e-5
            same(p, np.exp(np.float64(main[f"{what}_{side}"][0])), small)
            same(1 - p, np.exp(np.float64(main[f"{what}_{side}bar"][0])), small, atol=0 if double else 1e-7)
        reward = mse[f"reward_{side}"][0]
        same(mse_metrics[f"rewards/{name}"], reward, small, atol=1e-12 if double else 1e-4)
    norm = np.sqrt(sum(np.sum(np.square(np.float64(g))) for g in mse_grads))
    same(norm, mse["grad_norm_total"], gradient)
    same(mse_grads[0][0, :5], mse["grad_chosen_row_first5"], 1e-7 if double else gradient, atol=gradient * norm)

    for name, side, grad, token in zip(PAIR, (winner, loser), listing_grads, tokens, strict=True):
        # What this code printed for a near-certain response keeps seven digits: it forms 1 - P from log P.
        loose = 1e-6 if near_one and double else gradient
        digits = min(loose, 1e-5)
        same(np.linalg.norm(grad), side["grad_norm"], loose)
        same(grad[0, :5], side["grad_row0_first5"], loose, atol=loose * side["grad_norm"])
        same(grad[0, token[0]], side["grad_row0_at_label"], loose, atol=loose * side["grad_norm"])
        p = np.float64(listed[f"mass/model_{name}"])
        same([p, 1 - p], np.exp(np.float64(side["logp_rooted"])), digits, atol=0 if double else 1e-7)
        q = np.float64(listed[f"mass/target_{name}"])
        same([q, 1 - q], np.exp(np.float64(side["q_rooted"])), digits, atol=0 if double else 1e-7)


DPO_ROWS = {
    "beta0.1": ("dpo.sigmoid", {}),
    "beta0.1_ls0.1": ("dpo.conservative", {"label_smoothing": 0.1}),
    "ipo_beta0.1": ("dpo.ipo", {"length_normalize": False}),
    "beta0.1_reference_free": ("dpo.beta_gamma", {"gamma": 0.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_mitchells_dpo(case):
    with jax.enable_x64(True):
        run, _ = case_function(case, jnp.float64)
        results = run(*(objectives.build(name, beta=0.1, **rest) for name, rest in DPO_ROWS.values()))
    for row, ((loss, _), grads) in zip(DPO_ROWS, results, strict=True):
        golden = case["dpo"][row]
        np.testing.assert_allclose(loss, golden["loss"][0], rtol=1e-8)
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in grads))
        np.testing.assert_allclose(norm, golden["grad_norm_total"], rtol=1e-8)


# ---- the author's loss on totals -------------------------------------------------------------------------------------


@pytest.mark.check
@unrooted
def test_the_authors_loss_on_totals():
    rows = SLPO["logp_space_main"]["rows"]
    assert len(rows) == 45
    with jax.enable_x64(True):
        table = jnp.asarray([[r[k] for k in ("logp_w", "logp_l", "ref_w", "ref_l")] for r in rows])
        for alpha, t in sorted({(r["alpha"], r["t"]) for r in rows}):
            function = objectives.build("slpo.shift", alpha=alpha, temperature=t, scale="1").function

            def loss(x, function=function):
                y, ref = (logps_of_totals(*pair, dtype=x.dtype) for pair in (x[:2], x[2:]))
                return function(policy=y, ref=ref)[0]

            # Without jit: every operation of all settings is compiled once.
            losses, grads = jax.vmap(jax.value_and_grad(loss))(table)
            for i, row in enumerate(rows):
                if (row["alpha"], row["t"]) != (alpha, t):
                    continue
                # That code subtracts logarithms of order one: below 1e-8 its digits end. At t = 1 a P below 1e-17
                # leaves it with rounding noise, some of it of the wrong sign: there both are nothing.
                value, gradient = {"rtol": 1e-8, "atol": 1e-16}, {"rtol": 1e-8, "atol": 1e-15}
                if t == 1 and max(row["logp_w"], row["logp_l"]) < -30:
                    value = gradient = {"rtol": 0, "atol": 1e-42}
                np.testing.assert_allclose(losses[i], row["loss"], **value, err_msg=str(row))
                want = [row["dloss_dlogp_w"], row["dloss_dlogp_l"]]
                np.testing.assert_allclose(grads[i, :2], want, **gradient, err_msg=str(row))


FACTS = SLPO["repo_unit_facts"]


@unrooted
def test_the_authors_targets():
    facts = FACTS["calc_targets_t2"]
    with jax.enable_x64(True):
        function = objectives.build("slpo.shift", alpha=facts["alpha"], temperature=facts["t"], scale="1").function
        y = logps_of_totals(np.log(facts["w"]), np.log(facts["l"]), dtype=jnp.float64)
        metrics = function(policy=y, ref=y)[1]
        for side, name in zip("wl", PAIR, strict=True):
            target = metrics[f"mass/target_{name}"]
            np.testing.assert_allclose(np.log(target), facts[f"target_{side}"], rtol=1e-12)
            np.testing.assert_allclose(np.log1p(-target), facts[f"target_{side}bar"], rtol=1e-12)


@pytest.mark.check
def test_the_authors_masses():
    """Their unit tests: the mass of a response and of all others, from the probabilities of every word."""
    *tables, shifted = FACTS["y_ybar"]
    assert tables[1].pop("probs") == "uniform V=2,T=2"
    tables[1] |= {"probs": [[0.5, 0.5]] * 2, "y": [0, 1]}
    shifted |= {"y": shifted["labels_after_shift"], "p_not_y": 1 - shifted["p_y"]}
    with jax.enable_x64(True):
        for fact in (*tables, shifted):
            y = Logps(*logps_of_logits(jnp.log(jnp.asarray(fact["probs"])) + 1.5, np.array(fact["y"]), len(fact["y"])))
            for mass in (sequence.mass, sequence.mass_closed):
                np.testing.assert_allclose(np.exp(mass(y)), [fact["p_y"], fact["p_not_y"]], rtol=1e-12)
        for count in (7, 6, 5, 4):  # the log-prob of uniform words: -count ln V
            y = Logps(*logps_of_logits(jnp.zeros((count, 16)), np.arange(count), 7))
            np.testing.assert_allclose(sequence.total(y), -count * np.log(16), rtol=1e-12)


# ---- TRL -------------------------------------------------------------------------------------------------------------


def trl_logps(inputs: dict, who: str, dtype) -> Logps:
    sides = [inputs[f"{who}_{side}_token_logps"] for side in PAIR]
    length = max(len(row) for side in sides for row in side)
    token = np.array([[[*row, *[0.0] * (length - len(row))] for row in pair] for pair in zip(*sides)])
    absent = np.array([[[False] * len(r) + [True] * (length - len(r)) for r in pair] for pair in zip(*sides)])
    with np.errstate(divide="ignore"):
        other = np.where(absent, ABSENT, np.log(-np.expm1(token)))
    lengths = jnp.asarray([[len(row) for row in pair] for pair in zip(*sides)], jnp.int32)
    return Logps(jnp.asarray(token, dtype), jnp.asarray(other, dtype), lengths)


TRL_NAMES = {
    "sft": "sft.token_mean",
    "bco_pair": "anchored.bco_pair_unshifted",
    "aot_pair": "batchwise.aot_unpaired",
    **{name: f"dpo.{name}" for name in ("sigmoid", "robust", "ipo", "hinge")},
    **{name: f"margin.{name}" for name in ("exo_pair", "sigmoid_norm", "discopop")},
    **{name: f"anchored.{name}" for name in ("nca_pair", "sppo_hard", "apo_zero", "apo_down")},
    **{name: f"batchwise.{name}" for name in ("aot", "aot_unpaired")},
}
TRL_DIVERGENCES = {
    "js_divergence": "divergence.js",
    "forward_kl": "divergence.forward_kl",
    "alpha_divergence": "divergence.alpha",
}


def trl_objective(row: dict) -> tuple[str, dict]:
    """The objective that stands for a row of TRL's, and its hyperparameters."""
    config, legacy = row["config"], row["legacy"]
    name = TRL_NAMES[config["loss_type"]]
    if legacy:
        name = {"bco_pair": "anchored.bco_pair"}.get(config["loss_type"], name)
    smoothing = config.get("label_smoothing") or 0.0
    if name == "dpo.sigmoid" and smoothing:
        assert legacy, "TRL 1.x ignores label_smoothing here"
        name = "dpo.conservative"
    own = {
        "beta": config["beta"],
        "label_smoothing": smoothing,
        "length_normalize": not legacy,
        "tau": config.get("discopop_tau", 0.05),
    }
    own = {key: value for key, value in own.items() if key in objectives.defaults(name)}
    if "ld_alpha" in config:
        return "margin.ld_dpo", {"beta": config["beta"], "alpha": config["ld_alpha"], "loss": name}
    divergence = TRL_DIVERGENCES.get(config.get("f_div") or config.get("f_divergence_type"))
    if divergence is None:
        return name, own
    assert own | {"beta": 0} == objectives.defaults(name) | {"beta": 0}, "the loss of f-DPO takes its defaults"
    rest = {"beta": config["beta"], "loss": name}
    if divergence == "divergence.alpha":
        rest["alpha"] = config["alpha (paper convention)"] if legacy else 1 - config["f_coef"]
        rest["max_exponent"] = 80  # TRL's in float32
    return divergence, rest


def trl_rows(rows: list[list[list[float]]]) -> np.ndarray:
    """[2][pairs][tokens] -> [pairs, 2, T]."""
    length = max(len(row) for side in rows for row in side)
    return np.array([[[*row, *[0.0] * (length - len(row))] for row in pair] for pair in zip(*rows)])


IDS = [
    "-".join(map(str, [*r["config"].values(), r["inputs"], r["dtype"], "0.24" if r["legacy"] else "1.16"]))
    for r in TRL["rows"]
]


@pytest.mark.parametrize("row", TRL["rows"], ids=IDS)
def test_trl(row):
    double = row["dtype"] == "float64"
    name, hyperparameters = trl_objective(row)
    rtol = 1e-8 if double else 1e-5
    if "exo_pair" in (row["config"]["loss_type"], hyperparameters.get("loss", "").rpartition(".")[2]):
        rtol = 1e-5  # TRL's epsilon is a float32 there
    if "delta" in row:
        rtol = 2e-7  # and so is its running mean
    with jax.enable_x64(double):
        dtype = jnp.float64 if double else jnp.float32
        inputs = TRL["inputs"][row["inputs"]]
        policy, ref = trl_logps(inputs, "policy", dtype), trl_logps(inputs, "ref", dtype)
        objective = objectives.build(name, **hyperparameters)

        def run(token):
            given = {"policy": policy._replace(token=token), "ref": ref}
            given = {key: given[key] for key in objective.needs - {"state"}}
            losses, metrics = jax.vmap(lambda x: objective.function(**x)[:2], axis_name="batch")(given)
            return losses.mean(), (losses, metrics)

        (mean, (losses, metrics)), grad = jax.value_and_grad(run, has_aux=True)(policy.token)
        np.testing.assert_allclose(mean, row["mean_loss"], rtol=rtol)
        if "losses" in row and name != "sft.token_mean":  # where TRL's per-example numbers come from batches of one
            # TRL gives those of a sorted batch in its order.
            order = np.sort if name.startswith("batchwise.") else np.asarray
            np.testing.assert_allclose(order(losses), order(row["losses"]), rtol=rtol, atol=rtol)

        here = np.arange(policy.token.shape[-1]) < np.asarray(policy.length)[..., None]
        if "ld_alpha" in row["config"]:
            want = trl_rows([row[f"grad_policy_{side}_token_logps"] for side in PAIR])
        else:  # of the sum of a response's log-probs: the same for each of its tokens
            want = np.array([row[f"grad_policy_{side}_logps"] for side in PAIR], np.float64).T[..., None] * here
        largest = np.abs(want).max()
        np.testing.assert_allclose(np.where(here, grad, 0.0), want, rtol=rtol, atol=rtol * largest)

        if name != "sft.token_mean":
            small = 1e-12 if double else 1e-6
            for side in PAIR:
                if f"{side}_rewards" in row:
                    rewards = metrics[f"rewards/{side}"]
                    np.testing.assert_allclose(rewards, row[f"{side}_rewards"], rtol=rtol, atol=small)
            for key, value in row.get("metrics", {}).items():
                got = metrics[key] == 1 if key == "rewards/accuracies" else metrics[key]  # TRL counts a tie as wrong
                np.testing.assert_allclose(np.mean(got), value, rtol=rtol, atol=small, err_msg=key)
        if "delta" in row:
            np.testing.assert_allclose(metrics["delta"], row["delta"], rtol=rtol)
