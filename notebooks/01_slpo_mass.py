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
# # SLPO and the mass of everything else
#
# SLPO gives the chosen and the rejected response the probability mass they *should* have, and needs the mass of every
# other response, $P(\bar y)$, to do so. This notebook looks at that mass.
#
# 1. The tree of all responses, and $P(\bar y)$ as a scan over positions.
# 2. Why the plain loss has no gradient on real text, and what the root does.
# 3. Three of the five losses of that name, compared: who moves, and where it ends.
# 4. Where float32 breaks, and which form holds.

# %%
import itertools
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import mpmath
import numpy as np

from slpojax import explore, objectives, sequence
from slpojax.base import ABSENT, Logps

warnings.filterwarnings("ignore", message="objective.temperature = 1")  # SLPO without a root: here on purpose
GRID = {"alpha": 0.25}

# %% [markdown]
# ## 1. The tree of sequences
#
# A language of three words and four positions has 81 responses. Each rectangle below is a prefix, as tall as it is
# probable; the four blue ones are the prefixes of one response $y$. **See** that every other response leaves $y$ at
# exactly one of the orange places. Their heights, over all columns, and the last blue one add up to 1: nothing else is
# needed for $P(\bar y)$, and each column's orange is what the blue one before it has to give, times $1 - p_t$.

# %%
WORDS, LENGTH = "abc", 4
rng = np.random.default_rng(4)
table = {  # p(next word | prefix)
    prefix: rng.dirichlet(np.full(len(WORDS), 1.5))
    for n in range(LENGTH)
    for prefix in itertools.product(range(len(WORDS)), repeat=n)
}
y = (1, 2, 0, 1)

fig, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")


def draw(prefix, low, height):
    for word, p in enumerate(table[prefix]):
        here, tall = (*prefix, word), height * p
        on_path, leaves = here == y[: len(here)], prefix == y[: len(prefix)] and word != y[len(prefix)]
        colour = "C0" if on_path else "C1" if leaves else "0.9"
        ax.bar(len(here), tall, bottom=low, width=0.96, color=colour, edgecolor="w", linewidth=0.8)
        if tall > 0.035:
            ax.text(len(here), low + tall / 2, "".join(WORDS[w] for w in here), ha="center", va="center", fontsize=8)
        if len(here) < LENGTH:
            draw(here, low, tall)
        low += tall


draw((), 0.0, 1.0)
ax.set(xticks=range(1, LENGTH + 1), xlabel="position t", ylabel="probability of the prefix", xlim=(0.4, LENGTH + 1.9))
for colour, text in (("C0", f"prefixes of y = {''.join(WORDS[w] for w in y)}"), ("C1", "another response leaves y here")):
    ax.bar(0, 0, color=colour, label=text)
ax.bar(0, 0, color="0.9", label="after it has left")
ax.legend(loc="upper right", fontsize=8)
plt.show()

# %% [markdown]
# So $P(\bar y) = \sum_t (\prod_{k<t} p_k)(1 - p_t)$. Two neighbouring stretches of tokens combine by an associative
# rule, so the sum is an associative scan (`sequence.mass`); it telescopes to $1 - \prod_t p_t$ (`sequence.mass_closed`,
# the form that trains). Here both, for every one of the 81 responses, against adding up the other 80:


# %%
def conditionals(response):
    return [table[response[:t]][word] for t, word in enumerate(response)]


every = list(itertools.product(range(len(WORDS)), repeat=LENGTH))
tokens = np.array([conditionals(response) for response in every])
probability = tokens.prod(axis=1)
others = np.array([probability[np.arange(len(every)) != i].sum() for i in range(len(every))])

logps = Logps(jnp.log(jnp.float32(tokens)), jnp.log1p(-jnp.float32(tokens)), jnp.full(len(every), LENGTH))
print(f"probabilities of all {len(every)} responses add up to {probability.sum():.12f}")
for form in (sequence.mass, sequence.mass_closed):
    kept, left = form(logps)
    print(
        f"{form.__name__:12} largest error over all responses:  P(y) {np.abs(np.exp(kept) - probability).max():.1e}"
        f"   P(not y) {np.abs(np.exp(left) - others).max():.1e}"
    )

# %% [markdown]
# ## 2. No gradient without a root
#
# Real text has about 2 nats a token, so a response of $T$ tokens has $P(y) = e^{-2T}$. SLPO's cross-entropy between a
# target mass and $P(y)$ then has a gradient of that size. **See** the plain loss fall off a cliff: at $T = 8$ (dotted)
# its gradient is less than a millionth of DPO's, and beyond $T = 40$ float32 holds nothing at all. The root brings it
# back; `scale` decides how its size depends on the length.

# %%
lengths = np.unique(np.round(np.geomspace(1, 512, 40)).astype(int))
variants = {
    "DPO, beta 0.1": objectives.build("dpo.sigmoid"),
    'SLPO, root, scale "temperature_squared"': objectives.build("slpo.shift", scale="temperature_squared"),
    'SLPO, root, scale "temperature" (default)': objectives.build("slpo.shift"),
    "SLPO, root, scale 1": objectives.build("slpo.shift", scale=1.0),
    "SLPO without a root": objectives.build("slpo.shift", temperature=1.0, scale=1.0),
}
batch = explore.responses(np.stack([-2.0 * lengths] * 2, 1), np.stack([lengths] * 2, 1))

fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for name, objective in variants.items():
    slope = np.abs(explore.gradient(objective, batch, batch).response[:, 1])
    there = slope > 0
    (line,) = ax.loglog(lengths[there], slope[there], "k--" if "DPO" in name else "o-", ms=3, label=name)
    if not there.all():
        last = lengths[there].max()
        ax.annotate(
            f"exactly 0 beyond {last} tokens", (last, slope[there].min()), (60, 1e-36), color=line.get_color(), fontsize=8
        )
ax.axvline(8, color="k", lw=0.6, ls=":")
ax.set(xlabel="response length T (tokens, 2 nats each)", ylabel="|d loss / d log P(rejected)|\n(nats per nat)", ylim=(1e-40, 10))
ax.legend(fontsize=8, loc="lower left")
ax.grid(**GRID)
plt.show()

# %% [markdown]
# The root divides the log-odds of the mass by a temperature $N$, the response's length unless told otherwise:
# $p = \sigma(\frac{1}{N} \log \frac{P}{1 - P})$, close to the geometric mean of the token probabilities. It is a number
# that can be taught. **See** on the left that every length starts at the same $p$ (2 nats a token), and that a change
# of the *whole* response by some nats moves $p$ the less, the longer it is; on the right the loss under the default
# scale, times $T$: bowls of one shape around one target, which only the shortest response tells from a parabola.

# %%
change = jnp.linspace(-8, 8, 161)
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
for colour, T in zip(("C0", "C1", "C2"), (8, 60, 512)):
    moved = explore.responses(-2.0 * T + change, jnp.full(change.shape, T), T)
    kept, other = sequence.mass_closed(moved)
    left.plot(change, jax.nn.sigmoid((kept - other) / T), colour, label=f"T = {T}: P = exp(-{2 * T})")
    field = explore.field(variants['SLPO, root, scale "temperature" (default)'], jnp.zeros(1), change, logp=(-2.0 * T,) * 2, length=(T, T))
    right.plot(change, T * (field.loss[0] - field.loss[0].min()), colour, label=f"T = {T}")
goal = np.log(1 - 0.9)
right.axvline(goal, color="k", ls=":", label=f"the target, {goal:.2f} nats")
left.set(xlabel="change of log P(y) (nats)", ylabel="rooted probability p")
right.set(xlabel="change of log P(rejected) (nats)", ylabel="T times the loss above its least (nats)", ylim=0)
for ax in (left, right):
    ax.legend(fontsize=8)
    ax.grid(**GRID)
plt.show()

# %% [markdown]
# ## 3. Listing, shift and joint
#
# Five losses go by the name of SLPO (OBJECTIVES.md has them all); the recommended one is `slpo.shift`. Three of them are
# compared here: the paper's listing (the chosen takes over the rejected's mass, which is to keep
# none), the author's later form (a share $\alpha$ shifts) and the paper's equations (the pair's mass is pooled, one
# three-way cross-entropy). 60 tokens, $\log P_{ref} = -120$ nats for the chosen; the rejected as likely, 5 nats
# likelier, or 5 nats less likely. One response moves, the other stays.
#
# **See** in the upper rows that the target of the chosen is where the reference puts the *rejected*, if that is
# likelier, and hardly above the start, if it is not: SLPO teaches the chosen where the reference ranks the pair wrongly.
# In the lower rows the listing pushes the rejected down for ever (its slope never crosses zero), the other two stop.
# And mind the last column: pooling gives the rejected a tenth of the pair's mass, which here is *more* than it had, so
# `joint` pushes it up.

# %%
forms = {
    "slpo.listing": objectives.build("slpo.listing"),
    "slpo.shift, alpha 0.9": objectives.build("slpo.shift", alpha=0.9),
    "slpo.joint, alpha 0.9": objectives.build("slpo.joint", alpha=0.9),
}
gaps = {"equally likely": 0.0, "rejected 5 nats likelier": 5.0, "rejected 5 nats less likely": -5.0}
change = jnp.linspace(-8, 8, 81)
still = 40  # the index of no change
fields = {
    (name, gap): explore.field(objective, change, change, logp=(-120.0, -120.0 + gap), length=(60, 60))
    for name, objective in forms.items()
    for gap in gaps.values()
}

fig, axes = plt.subplots(4, 3, figsize=(11, 10), sharex=True, sharey="row", layout="constrained")
for column, (title, gap) in zip(axes.T, gaps.items()):
    for name in forms:
        field = fields[name, gap]
        curves = (
            field.loss[:, still] - field.loss[:, still].min(),
            field.chosen[:, still],
            field.loss[still] - field.loss[still, still],
            field.rejected[still],
        )
        for ax, values in zip(column, curves):
            ax.plot(change, values, label=name)
    column[0].set_title(f"under the reference: {title}", fontsize=9)
labels = (
    "the chosen moves\nloss above its least (nats)",
    "the chosen moves\nd loss / d log P(chosen)\n(nats per nat)",
    "the rejected moves\nloss less that of the start (nats)",
    "the rejected moves\nd loss / d log P(rejected)\n(nats per nat)",
)
for row, label in zip(axes, labels):
    row[0].set_ylabel(label)
axes[2, 0].set_ylim(-0.12, 0.12)
for ax in axes.ravel():
    ax.axhline(0, color="k", lw=0.6)
    ax.axvline(0, color="k", lw=0.6)
    ax.grid(**GRID)
axes[0, 0].legend(fontsize=8)
fig.supxlabel("change of log P of the response that moves (nats)", fontsize=10)
plt.show()

# %% [markdown]
# The first case as a landscape over both changes, with the arrows of gradient descent on the two log-probabilities.
# **See** the floor of the bowl, a cross at a finite place, for `shift` (the chosen takes nine tenths of the rejected:
# log 1.9, log 0.1) and for `joint` (nine tenths of the pair's mass: log 1.8, log 0.2); the listing's floor is nowhere
# in sight, and what little it has to say about the chosen is drowned.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 4), sharex=True, sharey=True, layout="constrained")
view, arrows = slice(10, 66), slice(12, 66, 6)
for ax, name in zip(axes, forms):
    field = fields[name, 0.0]
    loss = field.loss[view, view]
    above = np.log10(np.maximum(loss - loss.min(), 1e-5))
    filled = ax.contourf(change[view], change[view], above.T, levels=np.linspace(-4, 0, 17), cmap="viridis", extend="both")
    at = np.meshgrid(change[arrows], change[arrows], indexing="ij")
    ax.quiver(*at, -field.chosen[arrows, arrows], -field.rejected[arrows, arrows], color="w", width=0.006)
    if name != "slpo.listing":
        best = np.unravel_index(np.argmin(loss), loss.shape)
        ax.plot(change[view][best[0]], change[view][best[1]], "rx", ms=9, mew=2)
    ax.set(xlabel="change of log P(chosen) (nats)")
    ax.set_title(name, fontsize=10)
axes[0].set_ylabel("change of log P(rejected) (nats)")
fig.colorbar(filled, ax=axes, label="log10 of the loss above\nthe least in view (nats)")
plt.show()

# %% [markdown]
# ## 4. Where float32 breaks
#
# Three ways to $\log P(\bar y)$ in float32 against 60 digits. Left, tokens that are nearly certain: 16 of them, each
# with $1 - p$ as on the axis. Right, real responses of growing length, where $\log P(\bar y) \approx -e^{-2T}$.
#
# **See** that each of the simple forms fails at one end. Left, `log1p(-exp(sum))` knows the log-probs alone, which round
# to 0 as $p \to 1$; the scan reads `other`, the token's own $\log(1 - p)$, which the head computes exactly. Right, the
# scan is a sum of numbers of size one and returns its own rounding noise instead of something tiny. The closed form
# takes the better one on either side.

# %%
mpmath.mp.dps = 60
softplus = jax.nn.softplus


def naive(logps):
    kept = logps.token.sum(-1)
    return kept, jnp.log1p(-jnp.exp(kept))


FORMS = {"log1p(-exp(sum of log p))": naive, "sequence.mass (scan)": sequence.mass, "sequence.mass_closed": sequence.mass_closed}
STYLES = ("C3s-", "C0o-", "C2^-")
LONGEST = 45


def logps_of(odds, T):
    """A response of T tokens of the given log-odds, padded."""
    here = jnp.arange(LONGEST) < T
    return Logps(jnp.where(here, -softplus(-odds), 0.0), jnp.where(here, -softplus(odds), ABSENT), T)


def exact_mass(odds, T):
    p = 1 / (1 + mpmath.exp(-mpmath.mpf(float(odds))))
    return p**T, 1 - p**T


def draw_errors(ylabel, got, truth):
    """Relative errors of got(form, odds, T), compiled once per form, against truth(odds, T)."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    sure, many = np.geomspace(1e-1, 1e-12, 23), np.arange(1, LONGEST, 2)
    odds = np.float32(np.log1p(-sure) - np.log(sure)), np.full(len(many), np.float32(-np.log(np.expm1(2.0))))
    lengths = np.full(len(sure), 16), many
    for ax, x, d, T in zip(axes, (sure, many), odds, lengths):
        exact = [truth(*case) for case in zip(d, map(int, T))]
        for (name, form), style in zip(FORMS.items(), STYLES):
            values = jax.jit(jax.vmap(lambda odds, T: got(form, odds, T)))(d, T)  # noqa: B023
            errors = [
                float(abs((mpmath.mpf(float(v)) - e) / e)) if np.isfinite(v) else 1e3 for v, e in zip(values, exact)
            ]
            ax.loglog(x, np.clip(errors, 1e-9, 1e3), style, ms=4, label=name)
        ax.axhline(1, color="k", lw=0.6, ls=":")
        ax.grid(**GRID)
    axes[0].set(xlabel="1 - p of each of 16 tokens", ylabel=ylabel)
    axes[0].invert_xaxis()
    axes[1].set(xlabel="response length T (tokens of 2 nats)", xscale="linear")
    axes[0].legend(fontsize=8, loc="upper left")
    plt.show()


draw_errors(
    "relative error of log P(not y)\n(1e3: that or more, or not finite)",
    lambda form, odds, T: form(logps_of(odds, T))[1],
    lambda odds, T: mpmath.log(exact_mass(odds, T)[1]),
)

# %% [markdown]
# What counts in training is the gradient of the loss, which a value that is off by 100% of nothing need not spoil. So
# last, the rooted loss's gradient through each form: a response at its reference whose target is a tenth of its mass.
# **See** that in real responses (right) all three serve, as the log-odds are then all $\log P(y)$; where tokens are
# nearly certain (left) the log-probs alone break the gradient too, and completely.


# %%
def slope(form, odds, T):
    """d loss / d log p of a token; the loss is the cross-entropy of the rooted target and the rooted mass."""

    def loss(change):
        kept, left = form(logps_of(odds + change, T))
        z = (kept - left) / T
        return softplus(z) - jax.nn.sigmoid(target) * z

    kept, left = form(logps_of(odds, T))
    target = (kept + jnp.log(0.1) - jnp.log1p(-0.1 * jnp.exp(kept))) / T
    by_logits = jax.grad(lambda change: loss(change * (jnp.arange(LONGEST) == 0)))(0.0)
    return by_logits * jnp.exp(softplus(odds))  # d log p = (1 - p) d logit


def exact_slope(odds, T):
    P, rest = exact_mass(odds, T)
    z, target = mpmath.log(P / rest) / T, mpmath.log(P / 10 / (1 - P / 10)) / T
    p, q = (1 / (1 + mpmath.exp(-x)) for x in (z, target))
    return (p - q) / (T * rest)


draw_errors("relative error of d loss / d log p\n(1e3: that or more, or not finite)", slope, exact_slope)

# %% [markdown]
# The package's own losses go one step further and never let the large numbers meet: they subtract policy and reference
# per token first and measure the distance to the target, not the two masses (`slpo.py`, `numerics.categorical_kl`);
# `tests/test_objectives_accuracy.py` holds them to 120 digits.
