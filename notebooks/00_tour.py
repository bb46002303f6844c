# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The library in five minutes
#
# 1. An objective is a function of log-probabilities.
# 2. Its gradient, and what DPO and SLPO do with a response of 60 tokens.
# 3. The probability mass of everything that is *not* the response.
# 4. Real train steps on a tiny Llama.

# %%
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

warnings.filterwarnings("ignore", message="IProgress")  # a progress bar that is not drawn here

from slpojax import bench, data, defaults, grid, measure, objectives, scores, sequence, settings, train, training
from slpojax.base import Frozen, Logps
from slpojax.numerics import log1mexp

# %% [markdown]
# ## 1. An objective on arrays
#
# What an objective reads is `Logps`: of every response token its log-probability and that of everything else at this
# position. Let us write them by hand for one example, two responses of three tokens each, the preferred one first.


# %%
def from_probabilities(p) -> Logps:
    p = jnp.float32(p)
    return Logps(token=jnp.log(p), other=jnp.log1p(-p), length=jnp.full(p.shape[:-1], p.shape[-1]))


policy = from_probabilities([[0.6, 0.5, 0.9], [0.3, 0.4, 0.8]])  # chosen, rejected
ref = from_probabilities([[0.5, 0.5, 0.9], [0.4, 0.4, 0.8]])

dpo = objectives.build("dpo.sigmoid", beta=0.1)
slpo = objectives.build("slpo.shift", alpha=0.9)
for objective in (dpo, slpo):
    loss, metrics = objective.function(policy=policy, ref=ref)
    print(f"{objective.name} {objective.hyperparameters}\n  {'loss':22}{loss:8.4f}")
    print("".join(f"  {name:22}{value:8.4f}\n" for name, value in metrics.items()))

# %% [markdown]
# `logps/*` are nats of the whole response. DPO's rewards are $\beta$ times the log-ratio of policy and reference, and
# its loss is $-\log\sigma$ of their margin. SLPO instead fixes a *target mass* for each response: the share $\alpha$ of
# the mass that the reference gives the rejected is to move to the chosen. `mass/gap_*` says how far each is from its
# target: the chosen is too unlikely still, the rejected too likely.
#
# ## 2. The gradient
#
# It is `jax.grad`, here with respect to the log-probability of every token.


# %%
def loss_of(objective, token, ref):
    policy = Logps(token, log1mexp(token), ref.length)
    return objective.function(policy=policy, ref=ref)[0]


for objective in (dpo, slpo):
    chosen, rejected = jax.grad(loss_of, argnums=1)(objective, policy.token, ref)
    print(f"{objective.name:12} chosen {chosen}  rejected {rejected}")

# %% [markdown]
# All tokens of a response get the same number, as both methods look at $\log P(y)$ only. Now a realistic length: 60
# tokens, $\log P_{ref}(y) = -120$ nats for both responses. One response moves, evenly over its tokens, the other stays.
# SLPO's slope is smaller the longer the response is, so its numbers are drawn times 60; Adam takes such a factor back.

# %%
T, TOTAL = 60, -120.0
ref60 = from_probabilities(jnp.full((2, T), jnp.exp(TOTAL / T)))
moved = jnp.linspace(-20, 12, 321)  # nats of the whole response


def curve(objective, candidate):
    """Loss and slope over log P(y) of one candidate."""

    def at(nats):
        return loss_of(objective, ref60.token.at[candidate].add(nats / T), ref60)

    return jax.vmap(jax.value_and_grad(at))(moved)


fig, axes = plt.subplots(2, 2, figsize=(9, 5.6), sharex=True, sharey="row", layout="constrained")
targets = {"rejected": np.log(1 - 0.9), "chosen": np.log(1 + 0.9)}
for column, (name, candidate) in zip(axes.T, {"rejected": 1, "chosen": 0}.items()):
    for objective, colour, times in ((dpo, "C0", 1), (slpo, "C1", T)):
        for ax, values in zip(column, curve(objective, candidate)):
            ax.plot(moved, times * values, colour, label=objective.name + f", times {times}" * (times > 1))
    for ax in column:
        ax.axhline(0, color="k", lw=0.6)
        ax.axvline(targets[name], color="C1", ls=":", label=f"SLPO's target, {targets[name]:+.2f} nats")
        ax.grid(alpha=0.25)
    column[0].set(title=f"The {name} moves", ylim=(-0.2, 4))
    column[0].legend(fontsize=8, loc="upper center")
    column[1].set(xlabel=f"log P / P_ref of the {name} (nats)", ylim=(-0.55, 0.55))
axes[0, 0].set_ylabel("loss (nats)")
axes[1, 0].set_ylabel("d loss / d log P (nats per nat)")
plt.show()

# %% [markdown]
# **What to see:** DPO's slope keeps its sign and never ends, however far the rejected has fallen or the chosen has
# risen, while SLPO is a bowl, whose slope crosses zero at a finite target: the rejected at a tenth of its mass, the
# chosen having received the rest. (At that point on the right the loss is not 0, as the rejected still stands at the
# reference.)
#
# `slpo.shift` divides the log-odds of a mass by the response's length, which is close to the T-th root of the mass.
# Without it, $P(y) = e^{-120}$ has no gradient that float32 can hold:

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of just this
    unrooted = objectives.build("slpo.shift", temperature=1.0, scale=1.0)
    for objective in (unrooted, slpo):
        slope = jax.grad(loss_of, argnums=1)(objective, ref60.token, ref60)[1, 0]
        print(f"temperature {objective.hyperparameters['temperature']!s:8} d loss / d log P(rejected) = {slope:.2e}")

# %% [markdown]
# ## 3. The mass of everything else
#
# SLPO needs $P(\bar y)$, the mass of all responses but $y$. Another response leaves $y$ at exactly one position, so
# $P(\bar y) = \sum_t (\prod_{k<t} p_k)(1 - p_t)$: an associative scan over positions, `sequence.mass`. A language of
# three words and four positions is small enough to add up all 81 responses instead.

# %%
V, LENGTH = 3, 4
keys = jax.random.split(jax.random.key(0), LENGTH)
conditional = [jax.nn.softmax(2 * jax.random.normal(key, (V,) * (t + 1))) for t, key in enumerate(keys)]

joint = jnp.ones(())
for p in conditional:  # p(y_t | y_<t): one axis per position, the last one is y_t
    joint = joint[..., None] * p

y = (0, 2, 2, 2)
others = joint.at[y].set(0).sum()  # brute force: every response but y
tokens = from_probabilities([p[y[: t + 1]] for t, p in enumerate(conditional)])

print(f"{'':14}{'P(y)':>12}{'P(not y)':>12}")
print(f"{'enumeration':14}{joint[y]:12.7f}{others:12.7f}")
for form in (sequence.mass, sequence.mass_closed):
    of_y, of_others = form(tokens)
    print(f"{form.__name__:14}{jnp.exp(of_y):12.7f}{jnp.exp(of_others):12.7f}")

# %% [markdown]
# The sum telescopes to $1 - P(y)$, which is `mass_closed`, the form that trains; it falls back on the sum where $P(y)$
# nears one. For the 60 tokens above, $\log P(\bar y)$ is $-8 \cdot 10^{-53}$; the scan returns its rounding noise
# instead, the closed form does not:

# %%
for form in (sequence.mass, sequence.mass_closed):
    print(f"{form.__name__:14}log P(not y) = {form(ref60)[1][0]:.1e}")

# %% [markdown]
# ## 4. Train steps
#
# What a run does with a configuration, here with eight random pairs and a Llama with random weights. The *bench* is
# what never changes: devices, model, random keys. The *method* is the objective, and a selector where there is one. The
# *layout* packs several pairs in a row, each prompt stored once, and says which sizes the batches then have.

# %%
rng = np.random.default_rng(0)


def words(low, high):
    return rng.integers(1, 64, rng.integers(low, high)).astype(np.int32)


pairs = data.build(
    [data.Example(words(3, 8), (words(8, 12), words(8, 12)), (1.0, 0.0), i) for i in range(8)], candidates=2
)
config = settings.resolve(
    defaults.get_config(),
    {
        "objective.name": "slpo.shift",
        "batch_size": 8,
        "steps": 20,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "data.row_length": 64,
    },
    choices=train.CHOICES,
)
llama = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
at = bench.of_model(config, llama, grid.one_device())
method = training.method(config)
layout = training.layout(config, method, [pairs], at.grid)
setup = training.make(config, at, method, layout)
print(layout.train)

# %% [markdown]
# The reference is the policy that training starts from; its log-probs are columns of the batch.

# %%
params = bench.draw_params(at)
batch = grid.put_batch(at.grid, data.pack(list(pairs), layout.train))
score = scores.scorer(at.model, layout.train, at.grid)
batch = batch._replace(ref=score(params, batch)[0])
print(measure.difference(score(params, batch)[0], batch.ref))

# %% [markdown]
# A step takes the state, the weights that stay frozen (none here), and a batch. Twenty of them on the same eight pairs:

# %%
state = setup.first(params, None)
log = []
for _ in range(20):
    state, metrics = setup.step(state, Frozen(), batch)
    log.append({name: float(value) for name, value in metrics.items()})
print(f"loss {log[0]['loss']:.3f} -> {log[-1]['loss']:.3f}; margin at the start {log[0]['rewards/margins']}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot([row["loss"] for row in log], "C1")
left.set(xlabel="optimiser step", ylabel="loss (nats)", ylim=0)
goals = {"chosen": log[0]["mass/shift_chosen"], "rejected": targets["rejected"]}
for (name, goal), colour in zip(goals.items(), ("C2", "C3")):
    right.plot([row[f"rewards/{name}"] for row in log], colour, label=name)
    right.axhline(goal, color=colour, ls=":", label=f"its target, {goal:+.2f} nats")
right.set(xlabel="optimiser step", ylabel="mean log P / P_ref (nats)")
right.legend(fontsize=8)
for ax in (left, right):
    ax.set_xticks(range(0, 20, 5))
    ax.grid(alpha=0.25)
plt.show()

# %% [markdown]
# **What to see:** the loss falls towards zero, and both responses move to their targets and are held there. (That of
# the chosen, a mean over the pairs, is far up: next to a longer chosen, a short rejected has a lot of mass to give.)
#
# `make quickstart` does the same with data, evaluation and checkpoints; the README says where to go from here.
