"""Every number that TRL's trainers beside DPO's give on fixed log-probs: KTO, CPO, ORPO, TPO, BCO, XPO, Nash-MD."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import objectives
from slpojax.base import ABSENT, Logps

GOLDEN = json.loads((pathlib.Path(__file__).parent / "goldens" / "trl_trainers.json").read_text())
INPUTS = GOLDEN["inputs"]
# TRL computes in float64, so only the order of sums differs; ORPO's own code goes to float32.
DOUBLE, SINGLE = {"rtol": 1e-8, "atol": 1e-12}, {"rtol": 1e-5, "atol": 1e-7}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def of_tokens(token, lengths) -> Logps:
    """Logps of token log-probs [B, K, T], 0 where there is no token."""
    here = jnp.asarray(np.arange(token.shape[-1]) < np.asarray(lengths)[..., None])
    other = jnp.where(here, jnp.log(-jnp.expm1(jnp.where(here, token, -1.0))), ABSENT)
    return Logps(token, other, jnp.asarray(lengths, jnp.int32))


def main(who: str) -> Logps:
    """The pairs of `main`, [8, 2, T]."""
    sides = [INPUTS["main"][f"{who}_{side}_token_logps"] for side in ("chosen", "rejected")]
    lengths = np.array([[len(y) for y in side] for side in sides]).T
    token = [[[*y, *[0.0] * (lengths.max() - len(y))] for y in side] for side in sides]
    return of_tokens(jnp.asarray(np.swapaxes(token, 0, 1)), lengths)


def of_sums(*sums) -> Logps:
    """Responses of one token, [B, K, 1]. Some of the log-probs are above 0: only their sums count."""
    token = jnp.stack([jnp.asarray(x, jnp.float64) for x in sums], axis=1)[..., None]
    return Logps(token, jnp.zeros_like(token), jnp.ones(token.shape[:2], jnp.int32))


def apply(name: str, given: dict, **hyperparameters):
    """(losses [B], metrics [B] each, state) and the gradient of the mean loss by the policy's token log-probs."""
    objective = objectives.build(name, **hyperparameters)
    given = {"state": objective.state, **given}

    def run(token):
        arguments = {k: given[k] for k in objective.needs} | {"policy": given["policy"]._replace(token=token)}
        axes = ({k: None if k == "state" else 0 for k in arguments},)
        stateful = "state" in objective.needs
        result = jax.vmap(lambda x: objective.function(**x), axes, (0, 0, None) if stateful else 0, axis_name="batch")(
            arguments
        )
        return jnp.mean(result[0]), (*result, None)[:3]

    (_, result), grad = jax.value_and_grad(run, has_aux=True)(given["policy"].token)
    return *result, grad


def ids(rows: list[dict]) -> list[str]:
    settings = (list(row["config"].values())[:6] for row in rows)
    return [
        "-".join(f"{x:g}" if isinstance(x, float) else x for x in row if type(x) in (float, str)) for row in settings
    ]


@pytest.mark.parametrize("row", GOLDEN["kto"], ids=ids(GOLDEN["kto"]))
def test_kto(row):
    config, data = dict(row["config"]), INPUTS["kto"]
    name, kl = config.pop("loss_type"), config.pop("ref_KL")
    given = {
        "policy": of_sums(data["policy_logps"], data["policy_KL_logps"]),
        "ref": of_sums(data["ref_logps"], data[kl]),
        "label": jnp.asarray(data["label"], jnp.float64),
    }
    losses, metrics, _, grad = apply(f"unpaired.{name}", given, **config)
    np.testing.assert_allclose(losses.mean(), row["mean_loss"], **DOUBLE)
    np.testing.assert_allclose(grad[:, 0, 0], row["grad_policy_logps"], **DOUBLE)
    assert not np.any(grad[:, 1])
    told = row["metrics"] if name == "kto" else {k: v for k, v in row["metrics"].items() if k != "kl"}
    for key, value in told.items():
        np.testing.assert_allclose(metrics[key].mean(), value, **DOUBLE, err_msg=key)


def cpo_objective(config: dict) -> tuple[str, dict]:
    kind, beta, smoothing = config["loss_type"], config["beta"], config["label_smoothing"]
    if kind == "simpo":
        shape = {"alpha": config["alpha"]} if config["alpha"] else {}
        rest = {"beta": beta, "gamma": config["simpo_gamma"], "label_smoothing": smoothing, **shape}
        return "reference_free.alphapo" if shape else "reference_free.simpo", rest
    if kind == "sigmoid":
        return "reference_free.cpo", {"beta": beta, "cpo_alpha": 0.0, "label_smoothing": smoothing}
    return f"reference_free.cpo_{kind}", {"beta": beta, "cpo_alpha": 0.0}


@pytest.mark.parametrize("row", GOLDEN["cpo"], ids=ids(GOLDEN["cpo"]))
def test_cpo(row):
    name, hyperparameters = cpo_objective(row["config"])
    policy = main("policy")
    losses, metrics, _, grad = apply(name, {"policy": policy}, **hyperparameters)
    np.testing.assert_allclose(losses, row["losses"], **DOUBLE)
    np.testing.assert_allclose(losses.mean(), row["mean_loss"], **DOUBLE)
    summed = row["config"]["log_probs"] == "summed"
    for k, side in enumerate(("chosen", "rejected")):
        np.testing.assert_allclose(metrics[f"rewards/{side}"], row[f"{side}_rewards"], **DOUBLE)
        divisor = 1 if summed else np.asarray(policy.length)[:, k]
        want = np.asarray(row[f"grad_policy_{side}_logps"]) / divisor  # of the log-prob as TRL's function gets it
        here = np.asarray(policy.other)[:, k] > ABSENT
        np.testing.assert_allclose(grad[:, k][here], np.broadcast_to(want[:, None], here.shape)[here], **DOUBLE)


@pytest.mark.parametrize("row", GOLDEN["orpo"], ids=ids(GOLDEN["orpo"]))
def test_orpo(row):
    policy = main("policy")
    # TRL's likelihood has the prompt in it: here the odds term alone, the loss less the likelihood's.
    losses, metrics, _, grad = apply(
        "reference_free.orpo", {"policy": policy}, beta=row["config"]["beta"], nll="sequence_sum"
    )
    np.testing.assert_allclose(metrics["nll_loss"], -policy.token.sum(-1)[:, 0], **DOUBLE)
    np.testing.assert_allclose(metrics["nll_loss"] - losses, row["or_term"], **SINGLE)
    for ours, theirs in (("log_odds_ratio", "log_odds_ratio_mean"), ("log_odds_chosen", "log_odds_chosen_mean")):
        np.testing.assert_allclose(metrics[ours].mean(), row[theirs], **SINGLE)
    grad = grad.at[:, 0].add(1 / 8)
    for k, side in enumerate(("chosen", "rejected")):
        np.testing.assert_allclose(metrics[f"rewards/{side}"], row[f"{side}_rewards"], **SINGLE)
        by_mean = grad[:, k, 0] * np.asarray(policy.length)[:, k]
        np.testing.assert_allclose(by_mean, row[f"grad_policy_{side}_logps"], **SINGLE)


@pytest.mark.parametrize("row", GOLDEN["tpo"], ids=ids(GOLDEN["tpo"]))
def test_tpo(row):
    config, data = row["config"], INPUTS["tpo"]
    name = {"sigmoid": "tpo", "hinge": "tpo_hinge", "ipo": "tpo_ipo", "tpo-l": "tpo_l"}[config["loss_type"]]
    rest = {"gamma": config["tpo_l_gamma"]} if name == "tpo_l" else {}
    objective = objectives.build(f"reference_free.{name}", beta=config["beta"], tpo_alpha=config["tpo_alpha"], **rest)
    target = np.asarray(data["input_ids"])[:, 1:]
    mask = np.asarray(data["completion_mask"])[:, 1:] == 1

    def loss(logits):
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), target[..., None], -1)[..., 0]
        chosen, rejected, gold = np.split(np.arange(9), 3)
        order = np.stack([gold, chosen, rejected], axis=1)
        policy = of_tokens(jnp.where(mask, logp, 0.0)[order], mask.sum(-1)[order])
        return jax.vmap(lambda y: objective.function(policy=y), axis_name="batch")(policy)[0].mean()

    value, grad = jax.value_and_grad(loss)(jnp.asarray(data["logits"]))
    np.testing.assert_allclose(value, row["mean_loss"], **DOUBLE)
    np.testing.assert_allclose(np.abs(grad).sum(), row["grad_logits_sum_abs"], **DOUBLE)
    np.testing.assert_allclose(grad[0], row["grad_logits_row0"], **DOUBLE)


@pytest.mark.parametrize("row", GOLDEN["bco"], ids=ids(GOLDEN["bco"]))
def test_bco(row):
    policy, ref = (np.asarray(main(who).token.sum(-1)) for who in ("policy", "ref"))
    label = jnp.asarray([1.0] * 8 + [0.0] * 5)
    reference = of_sums(np.concatenate([ref[:, 0], ref[:5, 1]]))
    state = objectives.build("unpaired.bco_unpaired_pooled").state
    for k, step in enumerate(row["steps"]):
        moved = of_sums(np.concatenate([policy[:, 0] + 0.3 * k, policy[:5, 1] - 0.2 * k]))
        given = {"policy": moved, "ref": reference, "label": label, "weight": jnp.ones(13), "state": state}
        beta = row["config"]["beta"]
        losses, metrics, state, grad = apply("unpaired.bco_unpaired_pooled", given, beta=beta)
        np.testing.assert_allclose(losses, step["losses"], **DOUBLE)
        np.testing.assert_allclose(losses.mean(), step["mean_loss"], **DOUBLE)
        # TRL keeps the running mean in float32.
        np.testing.assert_allclose(metrics["delta"], step["delta"], rtol=3e-7)
        np.testing.assert_allclose(state, [step["running"]["mean"], step["running"]["count"]], rtol=3e-7)
        want = [*step["grad_policy_chosen_logps"], *step["grad_policy_rejected_logps"]]
        np.testing.assert_allclose(grad[:, 0, 0], want, **DOUBLE)
        for side in ("chosen", "rejected"):
            np.testing.assert_allclose(metrics[f"rewards/{side}"].mean(), np.mean(step[f"{side}_rewards"]), **DOUBLE)


@pytest.mark.parametrize("row", GOLDEN["xpo"], ids=ids(GOLDEN["xpo"]))
def test_xpo(row):
    config, policy = row["config"], main("policy")
    won = np.asarray(config["chosen_mask (model sample wins)"], np.float64)
    given = {"policy": policy, "ref": main("ref"), "score": jnp.asarray(np.stack([won, 1 - won], axis=1))}
    name = "games.xpo" if config["loss_type"] == "sigmoid" else "games.xpo_ipo"
    losses, metrics, _, grad = apply(name, given, beta=config["beta"], alpha=config["alpha"])
    np.testing.assert_allclose(losses.mean(), row["mean_loss"], **DOUBLE)
    optimism = config["alpha"] * metrics["logps/reference_sample"]
    np.testing.assert_allclose(optimism, row["xpo_losses"], **DOUBLE)
    np.testing.assert_allclose(losses - optimism, row["dpo_losses"], **DOUBLE)
    np.testing.assert_allclose(grad[:, 0, 0], row["grad_model_data_logps"], **DOUBLE)
    np.testing.assert_allclose(grad[:, 1, 0], row["grad_ref_data_logps"], **DOUBLE)


@pytest.mark.parametrize("row", GOLDEN["nash_md"])
def test_nash_md(row):
    policy, preference = main("policy"), jnp.asarray(row["config"]["probability"])
    given = {"policy": policy, "ref": main("ref"), "probability": preference[:, None]}
    losses, metrics, _, grad = apply("games.nash_md_per_token", given, beta=row["config"]["beta"])
    np.testing.assert_allclose(losses.mean(), row["mean_loss"], **DOUBLE)
    np.testing.assert_allclose(metrics["kl"], row["kl"], **DOUBLE)
    score = (metrics["preference"] - 0.5) * metrics["logps/policy_sample"]
    np.testing.assert_allclose(score, row["score"], **DOUBLE)
    for example, want in enumerate(row["grad_token_logps"]):
        np.testing.assert_allclose(grad[example, 0, : len(want)], want, **DOUBLE)
