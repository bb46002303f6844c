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
# # Hard negatives: MC-PO's kernel at work
#
# With several rejected responses per prompt, which should a pair loss see? MC-PO draws in proportion to what the policy
# gives them now: $P(m) = \text{softmax}_m(\beta \log P(y_m) / P_{ref}(y_m))$, `selectors.mc_kernel` before `listwise.rnce`.
# `uniform`, `likeliest` and `least_likely` are what its paper compares with (Chen et al., 2025, arXiv:2502.04567).
#
# 1. A small world: prompts with one chosen and five rejected responses, judged by a known reward.
# 2. How the kernel sharpens as training goes, and whom it picks.
# 3. What each selector reaches.
# 4. The trap of the paper's section 5.4: a rejected response that is the chosen one with two tokens exchanged.
#
# All of it is one seed of a model of 50,000 parameters: it shows mechanisms, not which method is better.

# %%
import re
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

warnings.filterwarnings("ignore", message="IProgress")  # a progress bar that is not drawn here

from slpojax import data, explore, grid, models, objectives, optim, sampling, selectors, step
from slpojax.base import Frozen, State
from slpojax.worlds.reviews import language

GRID = {"alpha": 0.25}

# %% [markdown]
# ## 1. The world
#
# The reviews of the quickstart. A tiny Llama learns their grammar; it is the reference. It then writes six responses to
# each of 120 prompts, and the gold reward ranks them: the best is the chosen, the others are the pool. The seventh place
# is kept for the trap.

# %%
model = models.build(
    {
        "model_type": "llama",
        "vocab_size": len(language.words()),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
)
EOS = language.words().index(language.EOS)
rng = np.random.default_rng(0)


def make_step(objective, shapes, params, learning_rate, steps, selector=None):
    """The first state and the train step; the rate falls linearly."""
    optimizer = optim.build("adamw", learning_rate=learning_rate, schedule="linear", warmup_steps=0, total_steps=steps, clip_norm=1.0)
    start = State(jnp.int32(0), params, optimizer.init(params), objective.state, jax.random.key(1))
    method = step.Method(objective, selector)
    return start, jax.jit(step.update(model, step.WHOLE, method, optimizer, shapes, grid.one_device()))


def ids(words):
    return np.append(language.encode(" ".join(words)), EOS).astype(np.int32)


SIZE, STEPS = 32, 150
texts = data.build(
    [
        data.Example(language.encode(prompt), (ids(language.write(topic, rng)),), (0.0,), i)
        for i, (topic, prompt) in enumerate(language.prompts(SIZE * 40))
    ],
    candidates=1,
)
order = [rng.permutation(len(texts))[:SIZE] for _ in range(STEPS)]
shapes = data.plan(texts, order, row_length=128)
state, train = make_step(objectives.build("sft.token_mean"), shapes, model.init(jax.random.key(0)), 6e-3, STEPS)
for index in order:
    state, metrics = train(state, Frozen(), data.pack([texts[i] for i in index], shapes))
reference = state.params
print(f"loss {metrics['loss']:.3f} nats per token (the grammar's own entropy: 1.127)")

# %%
PROMPTS, POOL = 120, 5
prompts = language.prompts(PROMPTS)
ANSWERS = 6 * PROMPTS


def sample(params, key, topics=prompts, times=6):
    encoded = [language.encode(prompt) for _, prompt in topics]
    answers = sampling.generate(
        model, params, encoded, key=key, max_new_tokens=language.LONGEST, eos=(EOS,), samples=times, slots=120
    )
    return [prompt for prompt in encoded for _ in range(times)], [y for of_prompt in answers for y in of_prompt]


def exchanged(response):
    """The response with two tokens exchanged, which are not equal."""
    while True:
        i, j = rng.choice(len(response) - 1, 2, replace=False)
        if response[i] != response[j]:
            out = response.copy()
            out[[i, j]] = out[[j, i]]
            return out


_, answers = sample(reference, jax.random.key(2))
gold = np.array([language.reward(language.decode(answer.token)) for answer in answers])
NOTHING = np.zeros(0, np.int32)
pools = {"clean": [], "trap": [], "trap alone": []}  # the last is the pair of chosen and exchanged
for i, (topic, prompt) in enumerate(prompts):
    here = 6 * i + np.argsort(-gold[6 * i : 6 * i + 6], kind="stable")
    best, *rest = (answers[k].token for k in here)
    score = tuple(float(x) for x in gold[here])
    trap = exchanged(best)
    for name, candidates in (("clean", (*rest, NOTHING)), ("trap", (*rest, trap)), ("trap alone", (*[NOTHING] * POOL, trap))):
        pools[name].append(data.Example(language.encode(prompt), (best, *candidates), (*score, -9.0), i))
for name, response in (("chosen", best), ("rejected, best", rest[0]), ("rejected, worst", rest[-1]), ("trap", trap)):
    print(f"{name:16} {' '.join(language.decode(response))}")

# %% [markdown]
# Training: `listwise.rnce` on the chosen and one picked response, 80 steps of 12 prompts. One run for each selector, and
# later one for each pool; along the way a probe of 36 prompts tells the kernel's weights.

# %%
BETA, BATCH, STEPS = 0.2, 12, 80
order = np.stack([rng.permutation(PROMPTS)[:BATCH] for _ in range(STEPS)])
built = {name: data.build(examples, candidates=2 + POOL) for name, examples in pools.items()}
probe_index = np.arange(36)
shapes = type(shapes)(*map(max, zip(*(data.plan(e, order, row_length=160) for e in built.values()))))
probe_shapes = type(shapes)(*map(max, zip(*(data.plan(e, [probe_index], row_length=160) for e in built.values()))))
score_all = jax.jit(lambda params, batch: explore.scorer(model, shapes, batch)(params)[0])
score_probe = jax.jit(lambda params, batch: explore.scorer(model, probe_shapes, batch)(params)[0])
batches, probes, probe_refs = {}, {}, {}
for name, examples in pools.items():
    batches[name] = []
    for index in order:
        batch = data.pack([examples[i] for i in index], shapes)
        batches[name].append(batch._replace(ref=score_all(reference, batch)))
    probes[name] = data.pack([examples[i] for i in probe_index], probe_shapes)
    probe_refs[name] = score_probe(reference, probes[name])

SELECTORS = {
    "uniform": selectors.build("uniform"),
    "mc_kernel": selectors.build("mc_kernel", beta=BETA),
    "likeliest": selectors.build("likeliest"),
    "least_likely": selectors.build("least_likely"),
}
rnce = objectives.build("listwise.rnce", beta=BETA)
steps_of = {name: make_step(rnce, shapes, reference, 1e-3, STEPS, selector) for name, selector in SELECTORS.items()}


def run(selector, pool):
    """The trained parameters, and log P / P_ref of the probe's candidates every tenth step [times, prompts, K]."""
    state, train = steps_of[selector]
    seen = []
    for n, batch in enumerate(batches[pool]):
        if n % 10 == 0:
            seen.append(score_probe(state.params, probes[pool]).token - probe_refs[pool].token)
        state, _ = train(state, Frozen(), batch)
    seen.append(score_probe(state.params, probes[pool]).token - probe_refs[pool].token)
    return state.params, np.array(jnp.stack(seen)).sum(-1)


runs = {(selector, "clean"): run(selector, "clean") for selector in SELECTORS}

# %% [markdown]
# ## 2. The kernel sharpens
#
# At the start policy = reference, all rewards are 0 and the kernel is uniform: MC-PO begins as DPO on a random negative.
# **See** on the left how the effective number of candidates (what the softmax of five rewards is worth in equal ones)
# falls as the policy moves, but only to some four: at this beta the kernel stays a mild one. `likeliest` presses down whoever
# stands out and so keeps all rewards level; `least_likely` tramples on those that are down already, and tears them apart. In the
# middle, the chance of each place of the gold ranking to be picked: the runner-up gets the most, as it shares most with
# the chosen and falls least (right). Hard negatives are the *nearly as good* ones.

# %%
at = np.append(np.arange(0, STEPS, 10), STEPS)
ratio = runs["mc_kernel", "clean"][1][:, :, 1 : 1 + POOL]  # [times, prompts, five rejected, best first]
weights = np.array(jax.nn.softmax(BETA * ratio, axis=-1))
fig, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
for name in SELECTORS:
    r = runs[name, "clean"][1][:, :, 1 : 1 + POOL]
    axes[0].plot(at, explore.effective_sample_size(BETA * r).mean(-1), "o-", ms=3, label=f"trained with {name}")
axes[0].set(xlabel="train step", ylabel=f"effective number of the {POOL} rejected", ylim=(1, POOL + 0.1))
axes[0].legend(fontsize=8, loc="lower left")
for place in range(POOL):
    axes[1].plot(at, weights[:, :, place].mean(-1), color=plt.cm.viridis(place / (POOL - 1)), label=f"place {place + 2}")
    axes[2].plot(at, ratio[:, :, place].mean(-1), color=plt.cm.viridis(place / (POOL - 1)))
axes[1].axhline(1 / POOL, color="k", lw=0.6, ls=":")
axes[2].plot(at, runs["mc_kernel", "clean"][1][:, :, 0].mean(-1), "k", label="the chosen")
axes[1].set(xlabel="train step (with mc_kernel)", ylabel="mean chance to be picked")
axes[2].set(xlabel="train step (with mc_kernel)", ylabel="mean log P / P_ref (nats)")
axes[1].legend(fontsize=8, title="of the gold ranking", title_fontsize=8)
axes[2].legend(fontsize=8)
for ax in axes:
    ax.grid(**GRID)
plt.show()
print(f"chance that the kernel picks what `likeliest` would: start {1 / POOL:.2f}, end {weights[-1].max(-1).mean():.2f}; what `least_likely` would: {weights[-1].min(-1).mean():.2f}")

# %% [markdown]
# ## 3. What each selector reaches
#
# 360 fresh responses of each policy. The gold reward is what training is after, the KL to the reference what it costs,
# and the share that the grammar could have written tells damage. **Read** the reward together with the other two: `least_likely`
# pays much of its language for hardly any reward; `likeliest` moves least and keeps most; the kernel lies between
# `likeliest` and `uniform` in what it pays. (± is the standard error of the samples; another seed of the training moves the
# numbers by more than that.)

# %%
WORD = f"(?:(?:very|quite|not|hardly) )?(?:{'|'.join(w for _, w in language.GRAMMAR['WORD'])})"
VERB = f"(?:(?:really|never) )?(?:{'|'.join(w for _, w in language.GRAMMAR['VERB'])})"


def grammatical(topic, words):
    clause = f"(?:the (?:{language.TOPICS[topic].replace(' ', '|')}) (?:was|is) {WORD}|i {VERB} it)"
    return bool(re.fullmatch(rf"{clause}(?: (?:and|,|but) {clause}){{0,2}} \.", " ".join(words)))


def judge(params):
    encoded, responses = sample(params, jax.random.key(9), prompts, 3)
    texts_ = [language.decode(y.token) for y in responses]
    reward = np.array([language.reward(text) for text in texts_])
    under_ref = sampling.score(model, reference, encoded, [y.token for y in responses], max_new_tokens=language.LONGEST, batch=120)
    kl = np.array([np.sum(y.logp - ref) for y, ref in zip(responses, under_ref)])
    right = np.mean([grammatical(topic, text) for (topic, _), text in zip([p for p in prompts for _ in range(3)], texts_)])
    return reward.mean(), reward.std() / len(reward) ** 0.5, kl.mean(), right


judged = {("reference", ""): judge(reference)} | {key: judge(params) for key, (params, _) in runs.items()}


def show(keys):
    print(f"{'policy':28}{'gold reward':>18}{'KL (nats)':>12}{'grammatical':>14}")
    for key in keys:
        reward, error, kl, right = judged[key]
        print(f"{' '.join(key):28}{reward:11.2f} ± {error:.2f} {kl:12.2f}{right:14.0%}")


show(judged)

# %% [markdown]
# ## 4. The trap
#
# The paper (section 5.4) puts a noise response among the candidates: the chosen with two tokens exchanged. As DPO's
# rejected it wrecks the model; in MC-PO's pool it does little harm. Here: DPO on the pair of chosen and exchanged
# ("uniform, trap alone": with one candidate every selector is DPO), against selectors whose pool has it as a sixth.
# **Read** that DPO on the trap learns hardly anything of what is preferred, as its pairs say nothing of it, while the
# pools of six, the trap among them, end about where the clean ones did. (This small model is not *wrecked* by the trap,
# unlike the paper's: most of its language stays whole.)

# %%
for key in (("uniform", "trap alone"), ("uniform", "trap"), ("mc_kernel", "trap"), ("likeliest", "trap")):
    runs[key] = run(*key)
    judged[key] = judge(runs[key][0])
show(judged)

# %% [markdown]
# **See** why: any training pushes the trap down at once, since it is not even grammatical (middle), and then the kernel,
# which picks what the policy still finds likely, leaves it alone (right, red). DPO on the trap has no choice and goes on
# pushing. The same pull to likely responses that makes the kernel look for hard negatives makes it pass over noise.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
names = {("uniform", "trap alone"): "DPO on chosen and trap", ("uniform", "trap"): "uniform, trap in the pool", ("mc_kernel", "trap"): "mc_kernel, trap in the pool", ("mc_kernel", "clean"): "mc_kernel, clean pool"}
for i, (key, name) in enumerate(names.items()):
    r = runs[key][1]
    axes[0].plot(at, r[:, :, 0].mean(-1), f"C{i}", label=name)
    if key[1] != "clean":
        axes[1].plot(at, r[:, :, 1 + POOL].mean(-1), f"C{i}")
    if key == ("mc_kernel", "trap"):
        chance = np.array(jax.nn.softmax(BETA * r[:, :, 1:], axis=-1)).mean(1)
        for place in range(POOL):
            axes[2].plot(at, chance[:, place], color=plt.cm.viridis(place / (POOL - 1)), label=f"place {place + 2}")
        axes[2].plot(at, chance[:, POOL], "C3", lw=2, label="the trap")
axes[0].set(xlabel="train step", ylabel="mean log P / P_ref of the chosen (nats)")
axes[1].set(xlabel="train step", ylabel="mean log P / P_ref of the trap (nats)")
axes[2].set(xlabel="train step (mc_kernel)", ylabel="mean chance to be picked")
axes[1].legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="upper right")
axes[2].legend(fontsize=8, ncols=2)
for ax in axes:
    ax.grid(**GRID)
plt.show()
