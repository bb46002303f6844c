# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradient fields: who moves, how far, and when it stops
#
# An objective reads two numbers of a pair above all: how far $\log P$ of the chosen and of the rejected have moved from
# the reference. `explore.field` gives its loss and slopes over both.
#
# 1. The fields of DPO, IPO, SimPO, KTO, SLPO and MC-PO's loss side by side.
# 2. Following the arrows: where training ends.
# 3. Several rejected responses: whom MC-PO's loss pushes.
# 4. Separate temperatures for policy and reference: when does learning happen?

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from slpojax import explore, objectives

GRID = {"alpha": 0.25}
# One setting for all: 60 tokens each, 2 nats a token under the reference, for both responses.
SETTING = {"logp": (-120.0, -120.0), "length": (60, 60)}
FIVE = {"logp": (-120.0,) * 5, "length": (60,) * 5}

DESK = {
    "DPO (beta 0.1)": (objectives.build("dpo.sigmoid"), SETTING),
    "IPO (tau 0.1, by length)": (objectives.build("dpo.ipo"), SETTING),
    "SimPO (beta 2, gamma 1)": (objectives.build("reference_free.simpo", beta=2.0, gamma=1.0), SETTING),
    "KTO (beta 0.1)": (objectives.build("unpaired.kto"), SETTING),
    "SLPO shift (alpha 0.9)": (objectives.build("slpo.shift"), SETTING),
    "RNCE, 4 rejected (beta 0.1)": (objectives.build("listwise.rnce"), FIVE),
}
for name, (objective, _) in DESK.items():
    print(f"{name:30}{objective.name:24}{objective.hyperparameters}")

# %% [markdown]
# ## 1. Six fields
#
# The start, policy = reference, is the cross at (0, 0); arrows are what gradient descent on the two log-probabilities
# does, their length is the size of the slope relative to the largest in the panel; colours are the loss above its least
# in view.
#
# **See**
# - DPO, IPO and SimPO push along one diagonal, since they read the *margin*: the chosen up exactly as hard as the
#   rejected down, whatever each of them does. DPO's arrows shrink with the margin and never end; IPO, which averages
#   over 60 tokens and asks for a margin of 5 nats *a token*, that is 300 in all, has hardly begun in this window.
# - KTO treats each response by itself: whoever is far from the reference, right or wrong, gets no more arrow.
# - SLPO is the only one with a floor in sight: arrows from all sides, to the rejected at -2.3 and the chosen at +0.6 nats.
# - RNCE with three more rejected responses, which stay, pushes the chosen up harder than this one down, and forgets this
#   one once it lies below the others.

# %%
axis = jnp.linspace(-30, 30, 61)
near = jnp.linspace(-6, 4, 61)  # SLPO has a window of its own
fields = {}
for name, (objective, setting) in DESK.items():
    at = near if "SLPO" in name else axis
    fields[name] = explore.field(objective, at, at, **setting)

fig, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
for ax, (name, field) in zip(axes.ravel(), fields.items()):
    at = near if "SLPO" in name else axis
    above = field.loss - field.loss.min()
    filled = ax.contourf(at, at, above.T, levels=12, cmap="viridis")
    fig.colorbar(filled, ax=ax, format="%.2g", label="loss above the least in view")
    pick = slice(5, None, 10)
    arrows = -field.chosen[pick, pick], -field.rejected[pick, pick]
    largest = float(np.hypot(*arrows).max())
    step = float(at[10] - at[0])
    ax.quiver(
        *np.meshgrid(at[pick], at[pick], indexing="ij"), *arrows, angles="xy", scale_units="xy", scale=largest / step, color="w", width=0.006
    )
    ax.plot(0, 0, "w+", ms=10, mew=1.5)
    ax.set_title(f"{name}\nlongest arrow: {largest:.2g} nats per nat", fontsize=9)
fig.supxlabel("change of log P(chosen) (nats)", fontsize=10)
fig.supylabel("change of log P(rejected) (nats)", fontsize=10)
plt.show()

# %% [markdown]
# ## 2. Following the arrows
#
# Gradient descent on the two log-probabilities themselves, as if each response had a parameter of its own; in a model
# they share them, which is the subject of `03_entanglement`. Time is scaled so that every objective starts with the same
# speed, one nat per unit of time for the faster response. A line ends where the chosen is certain, 120 nats up. **See**
# who stops: SLPO, after some ten units. IPO keeps its speed for 100 nats, up to where it has no more chosen to raise;
# DPO, KTO, SimPO and RNCE go on for ever, ever more slowly, like the logarithm of time, DPO the slowest since its margin
# counts both responses at full weight.


# %%
def follow(objective, setting, times):
    """Changes of chosen and rejected [times, 2] when both follow their slopes from the reference on."""
    ref = jax.tree.map(lambda x: x[None], explore.responses(setting["logp"], setting["length"]))
    single = "label" in objective.needs
    given = {"label": jnp.float32([1, 0])} if single else {}

    def slopes(change):
        moved = jnp.asarray(setting["logp"]).at[:2].add(change)
        moved = jnp.minimum(moved, -1e-3)  # certain
        policy = jax.tree.map(lambda x: x[None], explore.responses(moved, setting["length"], ref.token.shape[-1]))
        if single:  # the second candidate, of KTO's estimate of the divergence, stays
            order = jnp.array([[0, 1], [1, 0]])
            rest = jax.tree.map(lambda x: x[0][order], ref)
            policy = jax.tree.map(lambda p, r: r.at[:, 0].set(p[0, :2]), policy, rest)
            return explore.gradient(objective, policy, rest, **given).response[:, 0]
        return explore.gradient(objective, policy, ref if "ref" in objective.needs else None).response[0, :2]

    first = jnp.max(jnp.abs(slopes(jnp.zeros(2))))

    def one(change, dt):  # Heun's method; the steps grow with time as the slopes shrink
        k = -slopes(change) / first
        after = -slopes(change + dt * k) / first
        change = change + dt * (k + after) / 2
        return change, change

    return jax.jit(lambda dts: jax.lax.scan(one, jnp.zeros(2), dts)[1])(jnp.diff(times))


times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.05, 20, 200), jnp.arange(20.5, 2000, 0.5)])
fig, axes = plt.subplots(1, 2, figsize=(10.5, 4), sharex=True, layout="constrained")
for i, (name, (objective, setting)) in enumerate(DESK.items()):
    path = np.array(follow(objective, setting, times))
    path[np.maximum.accumulate(path[:, 0] > 119.9)] = np.nan
    for ax, values in zip(axes, path.T):
        ax.semilogx(times[1:], values, f"C{i}", label=name)
for ax, which in zip(axes, ("chosen", "rejected")):
    ax.set(xlabel="time (1 = one nat at the speed of the start)", ylabel=f"change of log P({which}) (nats)")
    ax.set_yscale("symlog", linthresh=1)
    ax.axhline(0, color="k", lw=0.6)
    ax.grid(**GRID)
axes[0].axhline(120, color="k", ls=":", lw=0.8)
axes[0].text(0.06, 130, "the chosen is certain", fontsize=8)
axes[1].legend(fontsize=8, loc="upper right", ncols=2)
plt.show()

# %% [markdown]
# ## 3. Several rejected responses
#
# MC-PO trains `listwise.rnce`, $-\log\, e^{r_0} / \sum_i e^{r_i}$ with $r = \beta \log P / P_{ref}$, on rejected responses that
# a kernel has picked. Here four of them, one after the other likelier by some nats than the reference makes it, beside
# DPO on each pair alone. **See** that the sum over the rejected equals the push on the chosen, and that the hard one, on
# the right, takes most of it once its log-ratio stands out by some $1/\beta = 10$ nats.

# %%
ref5 = jax.tree.map(lambda x: x[None], explore.responses(FIVE["logp"], FIVE["length"]))
stands_out = jnp.linspace(0, 60, 31)


def slopes_of_hard(nats):
    moved = jnp.asarray(FIVE["logp"]).at[4].add(nats)
    policy = jax.tree.map(lambda x: x[None], explore.responses(moved, FIVE["length"], 60))
    rnce = explore.gradient(DESK["RNCE, 4 rejected (beta 0.1)"][0], policy, ref5).response[0]
    pair = jax.tree.map(lambda x: x[:, jnp.array([0, 4])], policy)
    dpo = explore.gradient(DESK["DPO (beta 0.1)"][0], pair, jax.tree.map(lambda x: x[:, :2], ref5)).response[0]
    return rnce, dpo


rnce, dpo = jax.jit(jax.vmap(slopes_of_hard))(stands_out)
fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
ax.stackplot(stands_out, rnce[:, 4], *rnce[:, 1:4].T, colors=["C3", "0.75", "0.82", "0.89"], labels=["RNCE: the hard one", "RNCE: the three others"])
ax.plot(stands_out, -rnce[:, 0], "k", label="RNCE: minus the chosen's")
ax.plot(stands_out, dpo[:, 1], "C0--", label="DPO on the hard one alone")
ax.set(xlabel="log P / P_ref of one rejected response (nats); the others stay", ylabel="d loss / d log P (nats per nat)", xlim=(0, 60))
ax.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# ## 4. When does learning happen?
#
# Cho separates DPO's temperature of the policy, beta, from that of the reference, gamma: the loss is $-\log\sigma(z)$ or
# the hinge $\max(0, -z)$ of
# $z = \beta \log\frac{P(y_w)}{P(y_l)} - \gamma \log\frac{P_{ref}(y_w)}{P_{ref}(y_l)}$
# (`dpo.beta_gamma`, `dpo.beta_gamma_hinge`). gamma = beta is DPO, gamma = 0 forgets the reference. The question is on
# which pairs a gradient remains. Both tables: beta = 0.1, a ranking that is right or wrong by 40 nats, and the size of
# the slope $|\partial L / \partial \log P|$ as a share of beta, its largest possible value.


# %%
def share(name, gamma, ref_gap, policy_gap):
    """|d loss / d log P(chosen)| / beta where reference and policy rank the pair by so many nats."""
    policy, ref = (jax.tree.map(lambda x: x[None], explore.responses([-120 + gap / 2, -120 - gap / 2], [60, 60])) for gap in (policy_gap, ref_gap))
    out = explore.gradient(objectives.build(name, beta=0.1, gamma=gamma), policy, ref)
    return abs(float(out.response[0, 0])) / 0.1


GAMMAS = {"0": 0.0, "beta / 2": 0.05, "beta": 0.1, "10 beta": 1.0}
CASES = {"right, right": (40, 40), "right, wrong": (40, -40), "wrong, right": (-40, 40), "wrong, wrong": (-40, -40)}
tables = {}
for name in ("dpo.beta_gamma", "dpo.beta_gamma_hinge"):
    tables[name] = np.array([[share(name, gamma, *case) for gamma in GAMMAS.values()] for case in CASES.values()])
    print(f"{name}: share of beta that is left as slope\n{'reference, policy':20}" + "".join(f"gamma = {g:12}" for g in GAMMAS))
    for case, row in zip(CASES, tables[name]):
        print(f"{case:20}" + "".join(f"{value:<20.3f}" for value in row))
    print()

# %% [markdown]
# **Read:** with gamma = 0 it is the pairs that the *policy* ranks wrongly that teach. With gamma much above beta it is
# those that the *reference* ranks right, whatever the policy does: they ask for ever more. At gamma = beta, DPO, what
# counts is whether the policy has improved on the reference: the two cases on the diagonal (right, right) and (wrong,
# wrong), a policy that equals its reference, keep half the slope with the sigmoid. The hinge stands on its kink there,
# where a convention decides; here the gradient is that of the active side, so that training starts.
#
# The same as pictures: the share of beta over both rankings, for the sigmoid. **See** the border between learning and
# not turn: it is horizontal at gamma = 0, the diagonal at gamma = beta, and nearly vertical at gamma = 10 beta.

# %%
gaps = jnp.linspace(-60, 60, 61)


def weights(gamma):
    objective = objectives.build("dpo.beta_gamma", beta=0.1, gamma=gamma)

    def at(ref_gap, policy_gap):
        half = jnp.array([0.5, -0.5])
        policy, ref = (jax.tree.map(lambda x: x[None], explore.responses(-120 + gap * half, [60, 60])) for gap in (policy_gap, ref_gap))
        return jnp.abs(explore.gradient(objective, policy, ref).response[0, 0]) / 0.1

    return jax.jit(jax.vmap(jax.vmap(at, (None, 0)), (0, None)))(gaps, gaps)


fig, axes = plt.subplots(1, 4, figsize=(12, 3.3), sharex=True, sharey=True, layout="constrained")
for ax, (name, gamma) in zip(axes, GAMMAS.items()):
    filled = ax.contourf(gaps, gaps, np.minimum(weights(gamma).T, 0.9999), levels=np.linspace(0, 1, 11), cmap="magma")
    ax.plot(gaps, gaps, "w:", lw=1)
    ax.set(title=f"gamma = {name}", xlabel="reference: log P(y_w) / P(y_l) (nats)", ylim=(-60, 60))
    ax.xaxis.label.set_size(8)
axes[0].set_ylabel("policy: log P(y_w) / P(y_l) (nats)")
fig.colorbar(filled, ax=axes, label="slope, share of beta")
plt.show()

# %% [markdown]
# The dotted line is a policy that equals its reference: where DPO starts, at half its slope for every pair. Reference:
# Kyunghyun Cho's post on DPO with separate beta and gamma, 2024.
