"""The objectives of `slpojax.objectives.token_level` against their papers on full distributions, and TRL."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import objectives
from slpojax.base import ABSENT, Logps

K, T, V, N = 2, 5, 7, 3
LENGTHS = (5, 3)
TRL = json.loads((pathlib.Path(__file__).parent / "goldens" / "trl_token_level.json").read_text())


# ---- the papers, in float64 NumPy, from the probabilities of every word ----------------------------------------------


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


class Case:
    """Logits [K, T, V] of the policy and of the reference, the words of two responses, activities, and two masks."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.ref = 2 * rng.normal(size=(K, T, V))
        self.policy = self.ref + 0.7 * rng.normal(size=(K, T, V))
        self.words = rng.integers(0, V, (K, T))
        self.active = rng.normal(size=(K, T, N))
        self.masks = np.maximum(rng.normal(0.5, 1.0, (2, K, T)), 0.0)


def log_ratio(case, policy, k):
    p, q = softmax(policy), softmax(case.ref)
    return sum(np.log(p[k, t, case.words[k, t]] / q[k, t, case.words[k, t]]) for t in range(LENGTHS[k]))


def divergence(case, policy, k):
    p, q = softmax(policy), softmax(case.ref)
    return sum(q[k, t, v] * np.log(q[k, t, v] / p[k, t, v]) for t in range(LENGTHS[k]) for v in range(V))


def weight(case, policy, k):
    p = softmax(policy)
    ratios = [p[k, t, case.words[k, t]] / np.sum(p[k, t] ** 2) for t in range(LENGTHS[k])]
    return np.prod(ratios) ** (1 / len(ratios))


def dpo(h, beta):
    return np.log(1 + np.exp(-beta * h))


def margin(case, policy):
    return log_ratio(case, policy, 0) - log_ratio(case, policy, 1)


# Each formula is of (case, policy's logits, the logits that what is held still is computed from).


def tdpo1(case, policy, held, beta=0.3):
    return dpo(margin(case, policy) - (divergence(case, policy, 1) - divergence(case, policy, 0)), beta)


def tdpo2(case, policy, held, beta=0.3, alpha=0.7):
    return dpo(margin(case, policy) - alpha * (divergence(case, policy, 1) - divergence(case, held, 0)), beta)


def wpo(case, policy, held, beta=0.3, most=np.inf):
    return min(weight(case, held, 0) * weight(case, held, 1), most) * dpo(margin(case, policy), beta)


def masked(case, policy, on_ratio, on_kl, beta):
    """TDPO1 with masks [K][T] on the log-ratios and on the divergences."""
    p, q = softmax(policy), softmax(case.ref)

    def value(k):
        gains = [np.log(p[k, t, case.words[k, t]] / q[k, t, case.words[k, t]]) for t in range(LENGTHS[k])]
        kls = [np.sum(q[k, t] * np.log(q[k, t] / p[k, t])) for t in range(LENGTHS[k])]
        return sum(on_ratio[k][t] * gains[t] + on_kl[k][t] * kls[t] for t in range(LENGTHS[k]))

    return dpo(value(0) - value(1), beta)


def rescaled(values):
    return [(a - min(values)) / (max(values) - min(values)) for a in values]


def mapo(case, policy, held, beta=0.3):
    masks = [np.mean([rescaled(case.active[k, : LENGTHS[k], n]) for n in range(N)], axis=0) for k in range(K)]
    return masked(case, policy, masks, masks, beta)


def mapo_logits(case, policy, held, beta=0.3):
    masks = [rescaled([case.ref[k, t].mean() for t in range(LENGTHS[k])]) for k in range(K)]
    return masked(case, policy, masks, masks, beta)


def norm(masks):
    return sum(masks[k][t] for k in range(K) for t in range(LENGTHS[k]))


def sparsepo(case, policy, held, beta=0.3, l1=0.2):
    return masked(case, policy, case.masks[0], case.masks[0], beta) + l1 * norm(case.masks[0])


def sparsepo_independent(case, policy, held, beta=0.3, l1_reward=0.2, l1_kl=0.1):
    price = l1_reward * norm(case.masks[0]) + l1_kl * norm(case.masks[1])
    return masked(case, policy, *case.masks, beta) + price


FORMULAS = {
    "mapo": (mapo, {}),
    "mapo_logits": (mapo_logits, {}),
    "sparsepo": (sparsepo, {"l1": 0.2}),
    "sparsepo_independent": (sparsepo_independent, {"l1_reward": 0.2, "l1_kl": 0.1}),
    "tdpo1": (tdpo1, {}),
    "tdpo2": (tdpo2, {"alpha": 0.7}),
    "wpo": (wpo, {"max_weight": 0.0}),
}


# ---- the package, from the same logits -------------------------------------------------------------------------------


def given(case, policy):
    """What the step would give, of one example."""
    here = jnp.arange(T)[None, :] < jnp.asarray(LENGTHS)[:, None]
    p, q = jax.nn.log_softmax(policy), jax.nn.log_softmax(jnp.asarray(case.ref))

    def logps(logp):
        token = jnp.take_along_axis(logp, jnp.asarray(case.words)[..., None], -1)[..., 0]
        return Logps(
            jnp.where(here, token, 0.0), jnp.where(here, jnp.log(-jnp.expm1(token)), ABSENT), jnp.int32(LENGTHS)
        )

    return {
        "policy": logps(p),
        "ref": logps(q),
        "kl": jnp.where(here, jnp.sum(jnp.exp(q) * (q - p), -1), 0.0),
        "activity": jnp.where(here, jnp.mean(jnp.asarray(case.ref), -1), 0.0),
        "layer_activity": jnp.where(here[..., None], jnp.asarray(case.active), 0.0),
        "reward_mask": jnp.where(here, case.masks[0], 0.0),
        "kl_mask": jnp.where(here, case.masks[1], 0.0),
        "collision": jnp.where(here, jax.nn.logsumexp(2 * p, -1), 0.0),
    }


def run(name, case, policy, **hyperparameters):
    objective = objectives.build(f"token_level.{name}", **hyperparameters)
    arguments = given(case, policy)
    return objective.function(**{key: arguments[key] for key in objective.needs})


def test_gradients_by_the_masks():
    """A mask's gradient is what the token adds to the margin, times the slope of the loss, and its price."""
    with jax.enable_x64(True):
        case = Case(6)
        arguments = given(case, jnp.asarray(case.policy))
        objective = objectives.build("token_level.sparsepo_independent", beta=0.3, l1_reward=0.2, l1_kl=0.1)

        def loss(masks):
            changed = arguments | dict(zip(("reward_mask", "kl_mask"), masks, strict=True))
            return objective.function(**{key: changed[key] for key in objective.needs})[0]

        grads = jax.grad(loss)((arguments["reward_mask"], arguments["kl_mask"]))
        step = 1e-6
        for which, k, t in [(0, 0, 1), (0, 1, 2), (1, 0, 4), (1, 1, 0)]:
            moved = [Case(6) for _ in range(2)]
            moved[0].masks[which, k, t] += step
            moved[1].masks[which, k, t] -= step
            slope = np.subtract(*(sparsepo_independent(x, x.policy, None) for x in moved)) / (2 * step)
            np.testing.assert_allclose(grads[which][k, t], slope, atol=1e-8)


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_and_gradients_by_every_logit_equal_the_paper(name):
    formula, hyperparameters = FORMULAS[name]
    with jax.enable_x64(True):
        case = Case(0)
        loss, grad = jax.jit(jax.value_and_grad(lambda x: run(name, case, x, beta=0.3, **hyperparameters)[0]))(
            jnp.asarray(case.policy)
        )
        np.testing.assert_allclose(loss, formula(case, case.policy, case.policy), rtol=1e-10)
        step, slopes = 1e-5, np.zeros_like(case.policy)
        for index in np.ndindex(*case.policy.shape):
            moved = [case.policy.copy() for _ in range(2)]
            moved[0][index] += step
            moved[1][index] -= step
            slopes[index] = np.subtract(*(formula(case, x, case.policy) for x in moved)) / (2 * step)
        np.testing.assert_allclose(grad, slopes, atol=1e-9)


def test_rewards_and_metrics():
    with jax.enable_x64(True):
        case = Case(1)
        divergences = [divergence(case, case.policy, k) for k in range(K)]
        values = [log_ratio(case, case.policy, k) + divergences[k] for k in range(K)]
        for name in ("tdpo1", "tdpo2"):
            metrics = run(name, case, jnp.asarray(case.policy), beta=0.3)[1]
            for k, side in enumerate(("chosen", "rejected")):
                np.testing.assert_allclose(metrics[f"rewards/{side}"], 0.3 * values[k], rtol=1e-10)
                np.testing.assert_allclose(metrics[f"kl/{side}"], divergences[k], rtol=1e-10)
        metrics = run("wpo", case, jnp.asarray(case.policy), beta=0.3, max_weight=0.0)[1]
        np.testing.assert_allclose(metrics["rewards/margins"], 0.3 * margin(case, case.policy), rtol=1e-10)
        np.testing.assert_allclose(metrics["weight"], np.prod([weight(case, case.policy, k) for k in range(K)]))


def test_what_reduces_to_dpo():
    """TDPO1 with equal divergences, TDPO2 without them, WPO where every word is as likely as any other."""
    with jax.enable_x64(True):
        case = Case(2)
        policy = jnp.asarray(case.policy)
        arguments = given(case, policy)
        plain = objectives.build("dpo.sigmoid", beta=0.3).function(policy=arguments["policy"], ref=arguments["ref"])
        equal = jnp.array([[0.2, 0.2, 0.2, 0.2, 0.1], [0.3, 0.3, 0.3, 0.0, 0.0]])
        same = objectives.build("token_level.tdpo1", beta=0.3).function(
            policy=arguments["policy"], ref=arguments["ref"], kl=equal
        )
        np.testing.assert_allclose(same[0], plain[0], rtol=1e-12)
        np.testing.assert_allclose(run("tdpo2", case, policy, beta=0.3, alpha=0.0)[0], plain[0], rtol=1e-12)
        flat = run("wpo", case, jnp.zeros_like(policy), beta=0.3)
        arguments = given(case, jnp.zeros_like(policy))
        plain = objectives.build("dpo.sigmoid", beta=0.3).function(policy=arguments["policy"], ref=arguments["ref"])
        np.testing.assert_allclose(flat[0], plain[0], rtol=1e-12)
        assert flat[1]["weight"] == pytest.approx(1.0)


def test_masks_of_one_are_tdpo1():
    with jax.enable_x64(True):
        case = Case(4)
        here = jnp.arange(T)[None, :] < jnp.asarray(LENGTHS)[:, None]
        arguments = given(case, jnp.asarray(case.policy)) | {
            "activity": jnp.full((K, T), 3.0),
            "layer_activity": jnp.full((K, T, N), 3.0),
            "reward_mask": jnp.where(here, 1.0, 0.0),
            "kl_mask": jnp.where(here, 1.0, 0.0),
        }
        plain, *others = (
            objective.function(**{key: arguments[key] for key in objective.needs})
            for name in ("tdpo1", "mapo", "mapo_logits", "sparsepo", "sparsepo_independent")
            for objective in [objectives.build(f"token_level.{name}", beta=0.3)]
        )
        for loss, metrics in others:
            np.testing.assert_allclose(loss, plain[0], rtol=1e-12)
            np.testing.assert_allclose(metrics["rewards/margins"], plain[1]["rewards/margins"], rtol=1e-12)
            assert metrics["mask/chosen"] == metrics["mask/rejected"] == 1 and metrics["mask/zeros"] == 0


def test_what_is_said_of_masks():
    with jax.enable_x64(True):
        case = Case(5)
        _, metrics = run("sparsepo", case, jnp.asarray(case.policy))
        inside = [case.masks[0][k, : LENGTHS[k]] for k in range(K)]
        np.testing.assert_allclose(metrics["mask/chosen"], inside[0].mean(), rtol=1e-12)
        np.testing.assert_allclose(metrics["mask/rejected"], inside[1].mean(), rtol=1e-12)
        np.testing.assert_allclose(metrics["mask/zeros"], np.mean(np.concatenate(inside) == 0), rtol=1e-12)


def test_the_weight_is_cut_at_one():
    """Where both responses take the likeliest words, the product of the weights is above one."""
    with jax.enable_x64(True):
        case = Case(3)
        case.words = case.policy.argmax(-1)
        policy = jnp.asarray(case.policy)
        assert wpo(case, case.policy, case.policy) > 1.5 * dpo(margin(case, case.policy), 0.3)
        loss, metrics = run("wpo", case, policy, beta=0.3)
        np.testing.assert_allclose(loss, dpo(margin(case, case.policy), 0.3), rtol=1e-10)
        assert metrics["weight"] == 1


@pytest.mark.parametrize("loss", ["listwise.mine", "dpo.nothing", "token_level.wpo", "token_level.tdpo1"])
def test_what_cannot_be_weighted_is_refused(loss):
    with pytest.raises(ValueError, match="objective"):
        objectives.build("token_level.wpo", loss=loss)


# ---- TRL -------------------------------------------------------------------------------------------------------------


def rows(values):
    """[pairs][2][tokens] -> [pairs, 2, T], 0 where there is no token."""
    length = max(len(row) for side in values for row in side)
    return np.array([[[*row, *[0.0] * (length - len(row))] for row in pair] for pair in zip(*values)])


def test_trl_weighs_ipo():
    row, inputs = TRL["row"], TRL["inputs"]
    sides = ("chosen", "rejected")
    lengths = np.array([[len(x) for x in pair] for pair in zip(*(inputs[f"policy_{s}_token_logps"] for s in sides))])
    here = np.arange(lengths.max())[None, None, :] < lengths[..., None]

    def logps(who):
        token = rows([inputs[f"{who}_{side}_token_logps"] for side in sides])
        other = np.where(here, np.log(-np.expm1(np.where(here, token, -1.0))), ABSENT)
        return Logps(jnp.asarray(token), jnp.asarray(other), jnp.asarray(lengths, jnp.int32))

    with jax.enable_x64(True):
        objective = objectives.build("token_level.wpo", loss="dpo.ipo", beta=row["config"]["beta"], max_weight=0)
        policy, ref = logps("policy"), logps("ref")
        collision = jnp.asarray(rows([inputs[f"wpo_log_sum_sq_{side}"] for side in sides]))

        def mean(token):
            arguments = {"policy": policy._replace(token=token), "ref": ref, "collision": collision}
            losses, metrics = jax.vmap(lambda x: objective.function(**x), axis_name="batch")(arguments)
            return losses.mean(), (losses, metrics)

        (loss, (losses, metrics)), grad = jax.value_and_grad(mean, has_aux=True)(policy.token)
    np.testing.assert_allclose(loss, row["mean_loss"], rtol=1e-8)
    np.testing.assert_allclose(losses, row["losses"], rtol=1e-8)
    want = rows([row[f"grad_policy_{side}_token_logps"] for side in sides])
    np.testing.assert_allclose(np.where(here, grad, 0.0), want, rtol=1e-8, atol=1e-12)
    for side in sides:
        np.testing.assert_allclose(metrics[f"rewards/{side}"], row[f"{side}_rewards"], rtol=1e-8, atol=1e-12)
    for key, value in row["metrics"].items():
        np.testing.assert_allclose(np.mean(np.asarray(metrics[key])), value, rtol=1e-8, atol=1e-12, err_msg=key)
