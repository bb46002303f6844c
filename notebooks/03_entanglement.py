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
# # Entangled gradients, and how far a step may go
#
# `02_gradient_fields` moved the two log-probabilities of a pair freely. In a model they hang on the same parameters:
# with $g_w, g_l$ the gradients of $\log P$ of the chosen and the rejected, a small step on a loss of their margin changes
#
# $$\Delta \log P(y_w) \propto |g_w|^2 - g_w \cdot g_l, \qquad \Delta \log P(y_l) \propto g_w \cdot g_l - |g_l|^2,$$
#
# so both move the *same* way once the inner product exceeds one of the squared norms (Yuan et al., 2024,
# arXiv:2410.13828). Here on a real, tiny Llama: stories260K, 260,032 parameters trained on TinyStories.
#
# 1. The model, and pairs of its own stories that share more or less of their tokens.
# 2. Inner products, norms, angles.
# 3. Which objectives drive both log-probabilities down together, and whether the first order tells what training does.
# 4. Safe step sizes from one forward derivative, against where the loss really turns.

# %%
import os
import pathlib
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

warnings.filterwarnings("ignore", message="IProgress")  # a progress bar that is not drawn here

from slpojax import data, explore, grid, hf, models, objectives, optim, sampling, step
from slpojax.base import Frozen, Rows, State

GRID = {"alpha": 0.25}

# %% [markdown]
# ## 1. A model and pairs
#
# The checkpoint is read from `$SLPOJAX_SHARED/llama-stories260k`, or from `shared/data` beside the repository.
# Where there is none, the quickstart's Llama learns its small language in its place; all that follows runs on it too, but
# the words below are about the stories.

# %%
here = pathlib.Path.cwd()
roots = [os.environ.get("SLPOJAX_SHARED", ""), *(folder / "shared" / "data" for folder in (here, *here.parents))]
places = [pathlib.Path(root) / "llama-stories260k" for root in roots if root]
folder = next((path for path in places if path.is_dir()), None)


def make_step(name, shapes, params, learning_rate, steps, **hyperparameters):
    """The first state and the train step of an objective; the rate is constant."""
    objective = objectives.build(name, **hyperparameters)
    optimizer = optim.build("adamw", learning_rate=learning_rate, schedule="constant", warmup_steps=0, total_steps=steps, clip_norm=1.0)
    start = State(jnp.int32(0), params, optimizer.init(params), objective.state, jax.random.key(1))
    return start, jax.jit(step.update(model, step.WHOLE, step.Method(objective), optimizer, shapes, grid.one_device()))


PAIRS, LONGEST = 12, 32
if folder:
    model = models.build(hf.read_config(folder))
    params, tokenizer = jax.device_put(hf.load(folder, model)), data.load_tokenizer(str(folder))
    names, friends = ("Lily", "Tim", "Sue", "Ben"), ("dog", "cat", "friend")
    openings = [f"Once upon a time, {name} and a little {friend}" for name in names for friend in friends]
    prompts = [np.array(tokenizer.encode(text), np.int32) for text in openings]
    eos = (tokenizer.eos_token_id,)
    decode = tokenizer.decode
    print(f"stories260K: {sum(x.size for x in jax.tree.leaves(params)):,} parameters")
else:
    from slpojax.worlds.reviews import LLAMA, language

    rng = np.random.default_rng(0)
    eos = (language.words().index(language.EOS),)
    model = models.build(LLAMA | {"vocab_size": len(language.words())})
    texts = [(language.encode(p), np.int32([*language.encode(" ".join(language.write(t, rng))), *eos])) for t, p in language.prompts(1280)]
    texts = data.build([data.Example(p, (y,), (0.0,), i) for i, (p, y) in enumerate(texts)], candidates=1)
    order = [rng.permutation(len(texts))[:32] for _ in range(150)]
    shapes = data.plan(texts, order, row_length=128)
    state, train = make_step("sft.token_mean", shapes, model.init(jax.random.key(0)), 5e-3, len(order))
    for index in order:
        state, metrics = train(state, Frozen(), data.pack([texts[i] for i in index], shapes))
    params, decode = state.params, lambda ids: " ".join(language.decode(ids))
    prompts = [language.encode(prompt) for _, prompt in language.prompts(PAIRS)]
    print(f"NO stories260K here, a toy instead; loss {metrics['loss']:.3f} nats per token")

# %% [markdown]
# The model goes on with each opening twice. Three kinds of pairs are made of that, from most to least alike: one *token*
# of the response differs (the second choice of the model at the place where it hesitated most); its *halves* change
# places; two *independent* responses to the same opening.

# %%
answers = sampling.generate(
    model, params, prompts, key=jax.random.key(3), max_new_tokens=LONGEST, eos=eos, samples=2, slots=2 * PAIRS
)
first, second = ([np.asarray(y[k].token, np.int32) for y in answers] for k in (0, 1))


@jax.jit
def second_choices(params, rows):
    """The model's second choice at every position, and by how little it is one [R, L]."""
    hidden, _ = model.apply(params, rows, None)
    best, index = jax.lax.top_k(jnp.einsum("rld,dv->rlv", hidden, model.unembed(params)), 2)
    return index, best[..., 0] - best[..., 1]


def one_token(prompt, y, index, gap):
    """The response with another token where the model's choice was the closest, but for the last one."""
    start = len(prompt) - 1
    place = int(np.argmin(gap[start : start + len(y) - 1]))
    one, two = index[start + place]
    other = y.copy()
    other[place] = two if y[place] == one else one
    return other


def halves(y):
    """The response with its halves exchanged, EOS or the last token staying where it is."""
    middle = (len(y) - 1) // 2
    return np.concatenate([y[middle:-1], y[:middle], y[-1:]])


ids = np.zeros((PAIRS, max(map(len, prompts)) + LONGEST), np.int32)
for row, p, y in zip(ids, prompts, first):
    row[: len(p) + len(y)] = [*p, *y]
one = np.ones_like(ids)
seconds = jax.device_get(second_choices(params, Rows(ids, np.cumsum(one, axis=1, dtype=np.int32) - 1, one, 0 * one)))
rejected = {
    "one token differs": [one_token(*x) for x in zip(prompts, first, *seconds)],
    "halves change places": [halves(y) for y in first],
    "independent": second,
}
examples = {}
for kind, others in rejected.items():
    rows = enumerate(zip(prompts, first, others))
    examples[kind] = data.build([data.Example(p, (w, l), (1.0, 0.0), i) for i, (p, w, l) in rows], candidates=2)
    print(f"{kind}\n   chosen   {decode(first[1])}\n   rejected {decode(others[1])}")

KINDS = tuple(examples)

# The same shapes for every kind, so that a program compiles once: all pairs packed in one batch, and a batch for each.
fits = [data.plan(e, [np.arange(PAIRS)], row_length=128) for e in examples.values()]
shapes = type(fits[0])(*map(max, zip(*fits)))
single = shapes._replace(examples=1, rows=1, length=96, scored=2 * shapes.response)
batches = {kind: data.pack(list(e), shapes) for kind, e in examples.items()}
alone = {
    kind: jax.tree.map(lambda *x: jnp.stack(x), *(data.pack([pair], single) for pair in e)) for kind, e in examples.items()
}

# %% [markdown]
# ## 2. Inner products, norms, angles
#
# `explore.entanglement` gives them, here for all pairs at once by `jax.vmap`. **See** that the more two responses share,
# the more their gradients do: independent stories are at right angles, those whose halves change places at some 60
# degrees, and with one token changed it is 45. Above the diagonal on the right the inner product would exceed the smaller
# squared norm, and a step on the pair's margin move both responses the same way, to the will of the one with the larger
# gradient: no pair is there yet, though several with one token changed come near. (The rejected's gradient is the larger
# one where the model did not write it itself: what is unlikely has a large gradient.)

# %%
DESK = {
    "DPO": ("dpo.sigmoid", {}),
    "IPO": ("dpo.ipo", {}),
    "SimPO": ("reference_free.simpo", {"beta": 2.0, "gamma": 1.0}),
    "CPO (with NLL)": ("reference_free.cpo", {}),
    "SLPO listing": ("slpo.listing", {}),
    "SLPO shift": ("slpo.shift", {}),
}
built = {name: objectives.build(function, **hyperparameters) for name, (function, hyperparameters) in DESK.items()}


@jax.jit
def of_pairs(policy_params, ref_params, pairs):
    """The gradients of every pair, each by itself, and what a step of every objective does to it."""

    def one(pair):
        score = explore.scorer(model, single, pair)
        policy, ref = score(policy_params)[0], score(ref_params)[0]
        odds = [explore.gradient(o, policy, ref if "ref" in o.needs else None).odds for o in built.values()]
        return explore.entanglement(score, policy_params, odds)

    return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(pairs))


entangled = {kind: of_pairs(params, params, pairs) for kind, pairs in alone.items()}

fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for i, (kind, e) in enumerate(entangled.items()):
    axes[0].hist(e.cosine, bins=np.linspace(-0.2, 1, 37), color=f"C{i}", alpha=0.7, label=kind)
    larger, smaller = np.maximum(e.chosen, e.rejected), np.minimum(e.chosen, e.rejected)
    axes[1].plot(smaller / larger, e.cosine, f"C{i}o", ms=4, label=kind)
axes[1].plot([0, 1], [0, 1], "k:")
axes[1].text(0.42, 0.94, "dotted: inner product = smaller squared norm", fontsize=8)
axes[0].set(xlabel="cosine of the gradients of log P(chosen) and log P(rejected)", ylabel="pairs")
axes[1].set(xlabel="smaller norm / larger norm", ylabel="cosine", xlim=(0.4, 1.02))
for ax in axes:
    ax.grid(**GRID)
axes[0].set_ylim(0, 5.6)
axes[0].legend(fontsize=8)
plt.show()
print("norms of the gradients, nats per unit of the parameters' norm: " + ", ".join(f"{kind} {float(e.chosen.mean()):.0f}" for kind, e in entangled.items()))
print("pairs above the diagonal: " + ", ".join(f"{kind} {float((e.inner > np.minimum(e.chosen, e.rejected) ** 2).mean()):.0%}" for kind, e in entangled.items()))

# %% [markdown]
# ## 3. Who drives both down?
#
# The first-order change of both log-probabilities under one small gradient step on the pair alone, for six objectives at
# policy = reference, each scaled so that the larger of the two is 1. **See** the quadrants: lower right is what one
# wants, lower left (red) is "both fall", upper right "both rise".
#
# - The margin losses (DPO, IPO, SimPO) weigh both responses alike and part every pair. But where the two share their
#   tokens most of it is the rejected's fall: the chosen rises by a tenth to a half of what the rejected loses.
# - SLPO drives both down on every pair that shares its tokens. It treats the responses one by one, and next to a
#   reference that finds both about equally likely it has little to say to the chosen, so the step is the rejected's
#   alone, and takes the chosen along. On independent pairs it does so only now and then.
# - CPO's NLL raises the chosen, and the rejected with it; independent pairs it parts as the others do.

# %%
fig, axes = plt.subplots(len(KINDS), len(DESK), figsize=(12.5, 6.6), sharex=True, sharey=True, layout="constrained")
for row, (kind, e) in zip(axes, entangled.items()):
    for j, (ax, name) in enumerate(zip(row, DESK)):
        change = np.array(e.change[:, j])
        change = change / np.abs(change).max(axis=-1, keepdims=True)
        both_fall, both_rise = (change < 0).all(-1), (change > 0).all(-1)
        ax.axvspan(-1.15, 0, 0, 0.5, color="C3", alpha=0.1, lw=0)
        ax.plot(*change.T, "C0o", ms=3.5, alpha=0.7)
        ax.axhline(0, color="k", lw=0.6)
        ax.axvline(0, color="k", lw=0.6)
        ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
        ax.text(-1.1, -0.85, f"both fall: {both_fall.mean():.0%}", fontsize=8)
        ax.text(0.9, 0.9, f"both rise: {both_rise.mean():.0%}", fontsize=8, ha="right")
    row[0].set_ylabel(kind, fontsize=9)
for ax, name in zip(axes[0], DESK):
    ax.set_title(name, fontsize=10)
fig.supxlabel("change of log P(chosen), relative", fontsize=10)
fig.supylabel("change of log P(rejected), relative", fontsize=10)
plt.show()

# %% [markdown]
# Does the first order tell what training does? 24 AdamW steps on all 12 pairs together, with three of the objectives.
# **See** on the pairs that share their tokens (left, middle) that each begins as predicted: DPO parts the two, CPO lifts
# both, SLPO lowers both. Then SLPO comes back and holds both near their targets, while DPO, which has no target, lets the
# rejected fall without end and after some ten steps takes the chosen down with it, below where it began.

# %%
TRAINED, STEPS = ("DPO", "CPO (with NLL)", "SLPO shift"), 24
score = jax.jit(lambda params, batch: explore.scorer(model, shapes, batch)(params)[0])
ref = {kind: score(params, batch) for kind, batch in batches.items()}
trained = {}
fig, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), sharex=True, layout="constrained")
for i, name in enumerate(TRAINED):
    function, hyperparameters = DESK[name]
    start, train = make_step(function, shapes, params, 2e-4, STEPS, **hyperparameters)
    for ax, (kind, batch) in zip(axes, batches.items()):
        state, path = start, []
        for _ in range(STEPS):
            state, metrics = train(state, Frozen(), batch._replace(ref=ref[kind]))
            path.append((metrics["logps/chosen"], metrics["logps/rejected"]))
        trained[name, kind], path = state.params, np.array(jax.device_get(path))
        for side, style in zip((0, 1), ("-", "--")):
            ax.plot(path[:, side] - path[0, side], f"C{i}{style}", label=f"{name}, {('chosen', 'rejected')[side]}")
for ax, kind in zip(axes, batches):
    ax.axhline(0, color="k", lw=0.6)
    ax.set_title(kind, fontsize=10)
    ax.set_xlabel("optimiser step")
    ax.grid(**GRID)
axes[0].set_ylabel("mean change of log P (nats)")
axes[0].legend(fontsize=7, loc="lower left")
plt.show()

# %% [markdown]
# What has changed for DPO? The desk, asked again at the end of those steps. **Read** that the gradients have about doubled,
# and that the first pairs with one token changed are entangled now: a step on such a pair alone moves both its responses
# down. (Details of what is trained here differ between machines, as training magnifies rounding.)

# %%
print(f"{'DPO':24}{'|g_w|':>10}{'|g_l|':>10}{'cosine':>10}{'both fall':>12}{'both rise':>12}")
for kind in KINDS:
    for when, at in (("start", params), (f"after {STEPS} steps", trained["DPO", kind])):
        e = of_pairs(at, params, alone[kind])
        change = np.array(e.change[:, 0])
        shares = [f"{x.all(-1).mean():12.0%}" for x in (change < 0, change > 0)]
        print(f"{kind if when == 'start' else '   ' + when:24}" + "".join(f"{float(x.mean()):10.2f}" for x in (e.chosen, e.rejected, e.cosine)) + "".join(shares))

# %% [markdown]
# ## 4. How far may a step go?
#
# The Taylor series of the loss along a direction converges only up to the nearest complex zero of the softmax's
# denominator. If the logits move linearly, one forward derivative bounds that radius: $\rho = \pi / \Delta_a$ with
# $\Delta_a$ the spread of the logits' rates of change, the largest over all tokens (`explore.logit_spread`,
# `explore.safe_radius`; Sao, 2026, arXiv:2603.13552). For the logistic loss of a margin $\delta$ it is
# $\sqrt{\delta^2 + \pi^2} / |\dot\delta|$, exactly.
#
# Here the loss along its own steepest descent from the reference. **See** the radius of the tokens' softmax (dotted),
# that of the pairs' logistic loss (dashed, the least of the 12 pairs), and where the loss really turns (dot).

# %%
LINES = {"DPO": 1.2, "SimPO": 1.2, "SLPO shift": 0.15}  # how far to look, in the parameters' norm


def along(name):
    """(batch, ref) -> distances along the step, losses there, the softmax's radius and the margins of the pairs."""
    objective = built[name]

    def line(batch, ref):
        def evaluate(params):
            inputs = {"policy": explore.scorer(model, shapes, batch)(params)[0], "ref": ref, "score": batch.score}
            losses, metrics, _ = step.on_examples(objective, inputs, jax.random.key(0))
            return losses.mean(), metrics["rewards/margins"]

        grads = jax.grad(evaluate, has_aux=True)(params)[0]
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
        direction = jax.tree.map(lambda g: -g / norm, grads)
        radius = explore.safe_radius(explore.logit_spread(model, params, direction, shapes, batch).max())
        at = jnp.concatenate([jnp.array([0.0, 1e-3]), jnp.linspace(0, LINES[name], 61)[1:]])
        losses, margins = jax.lax.map(lambda t: evaluate(jax.tree.map(lambda p, d: p + t * d, params, direction)), at)
        return at, losses, margins, radius

    return jax.jit(line)


fig, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
for ax, name in zip(axes, LINES):
    run = along(name)
    for i, kind in enumerate(("one token differs", "independent")):
        at, losses, margins, radius = run(batches[kind], ref[kind])
        turn = int(np.argmin(losses))
        text = f"{name:12}{kind:18} softmax {radius:.3f}"
        if name != "SLPO shift":  # the argument of the logistic loss, and its rate from the first stretch of the line
            z = margins - built[name].hyperparameters.get("gamma", 0.0)
            pair = float(explore.safe_radius_pair(z[0], (z[1] - z[0]) / at[1]).min())
            ax.axvline(pair, color=f"C{i}", ls="--")
            text += f", logistic loss {pair:.3f}"
        where = f"at {at[turn]:.3f}, {float(at[turn] / radius):.1f} softmax radii" if turn < len(at) - 1 else "beyond the picture"
        print(f"{text}; the loss turns {where}")
        ax.plot(at, losses / losses[0], f"C{i}", label=kind)
        ax.axvline(radius, color=f"C{i}", ls=":")
        if turn < len(at) - 1:
            ax.plot(at[turn], losses[turn] / losses[0], f"C{i}o")
    ax.set(title=name, xlabel="step length (norm of the parameters' change)", ylim=(0, 1.6), xlim=0)
    ax.grid(**GRID)
axes[0].set_ylabel("loss along the step,\nshare of the start's")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# The exact radius of the logistic loss, the least of all pairs, is the right scale and on the safe side: the loss turns at
# three to five times that distance. The softmax's bound, which must hold for the worst of all tokens and any phase, is
# smaller by another factor, three to fourteen here. SLPO is a bowl: with one token changed its floor lies about one
# softmax radius away, and a step of a length that suits DPO ends far up on the other side. A radius of convergence
# limits how far a step can be *foreseen*; it is no step size.
#
# All of this is computed during training, on a few held-out pairs at every evaluation, with `--config.diagnostics=4`
# (`explore.make_diagnostics`): `diagnostic/entanglement`, `diagnostic/both_fall`, `diagnostic/safe_radius` and others.
