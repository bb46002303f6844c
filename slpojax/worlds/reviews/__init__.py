"""Controlled sentiment without a download: short reviews with a known gold reward.

The analogue of the IMDb experiment of Rafailov et al., Direct Preference Optimization, 2023, arXiv 2305.18290. A small
grammar writes reviews; a tiny Llama learns it (the reference); pairs of the reference's own samples are labelled by
the gold reward (Bradley-Terry); whatever then trains on the pairs is judged by the gold reward that it gains and the KL
that it pays. Knows how to prepare a run and to judge a policy; knows no objective.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from rich.console import Console
from rich.table import Table

from slpojax import hf, logger, models, plots, sampling, settings
from slpojax.base import Key, Model, Params
from slpojax.worlds.reviews import language

TEXTS, PAIRS, HELD_OUT = 6000, 12288, 512
BATCH = 512  # reviews sampled at once
JUDGED = 1020  # reviews an evaluation samples, the same prompts and keys each time; a multiple of the prompts

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
# Enough for a held-out loss within 1% of the grammar's own entropy, 1.127 nats a token: a reference that knows less
# pays more KL for the same reward.
SFT: dict[str, Any] = {
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "warmup_steps": 10,
    "steps": 600,
    "batch_size": 64,
    "eval_every": 300,
    "checkpoint_every": 300,
}
SHOWN = {  # the head of the final table
    "world/gold_reward": "gold reward",
    "world/gold_lift": "gained, in standard deviations of the reference",
    "world/kl": "KL to the reference, nats per review",
    "rewards/accuracies": "preference accuracy",
    "rewards/margins": "implicit reward margin",
    "logps/chosen": "log-prob of chosen",
    "logps/rejected": "log-prob of rejected",
}


def prepare(config: ConfigDict, run: Callable[[ConfigDict], Any]) -> FrozenConfigDict:
    """Make reference and pairs under <output>/reference, or find them there; return the config that trains on them.

    Args:
        config: a resolved configuration; its seed draws texts, weights, samples and labels.
        run: trains what a configuration says and exports it to <output>/hf.
    """
    folder = pathlib.Path(config.output) / "reference"
    sft, made_from = _sft(config, folder), folder / "made_from"
    train, held_out = folder / "pairs.train.jsonl", folder / "pairs.eval.jsonl"
    mark = _mark(sft, folder)
    if folder.exists() and (not made_from.exists() or made_from.read_text() != mark):
        aside = _set_aside(folder, pathlib.Path(config.output) / "checkpoints")
        _say(f"world: {folder} was made from other settings; it, and what trained on it, is now in {aside}")
    if held_out.exists():
        _say(f"world: reference and pairs found in {folder}; remove the folder to make them anew")
    else:
        _write_start(folder, config.seed)
        made_from.write_text(mark)
        _say(f"world: a tiny model learns {TEXTS} reviews of the grammar, {sft.steps} steps; it is the reference")
        run(sft)
        _say(f"world: the reference writes {PAIRS + HELD_OUT} pairs of reviews; the gold reward labels them")
        pairs = _pairs(folder / "hf", PAIRS + HELD_OUT, config.seed)
        _write_jsonl(train, pairs[:PAIRS])
        _write_jsonl(held_out, pairs[PAIRS:])
    paths = {"model.path": folder / "hf", "data.path": train, "data.eval_path": held_out}
    return settings.replace(config, {key: str(path) for key, path in paths.items()})


def scorer(config: ConfigDict) -> Callable[[Params, int], dict[str, float]]:
    """Return (params, step) -> the policy's gold reward and its KL to the reference.

    Every call answers the same prompts with the same keys, so that what differs is the policy. `world/kl` is the mean
    over the policy's samples y of log P(y) - log P_ref(y), in nats per review; `world/gold_lift` is the gold reward
    gained over the reference's samples, in standard deviations of their reward.

    Args:
        config: what `prepare` returned.
    """
    model = models.build(hf.read_config(config.model.path), dtype=config.model.dtype)
    ref = jax.device_put(hf.load(config.model.path, model))
    prompts = [language.encode(prompt) for _, prompt in language.prompts(JUDGED)]
    key = jax.random.fold_in(jax.random.key(config.seed), 2)

    def sample(params: Params) -> tuple[list[sampling.Response], np.ndarray]:
        responses = _sample(model, params, prompts, key)
        return responses, np.array([language.reward(language.decode(response.token)) for response in responses])

    _, base = sample(ref)

    def score(params: Params, step: int) -> dict[str, float]:
        del step  # a policy is worth the same at every step
        responses, gold = sample(params)
        tokens = [response.token for response in responses]
        under_ref = sampling.score(model, ref, prompts, tokens, max_new_tokens=language.LONGEST, batch=BATCH)
        log_ratio = [np.sum(y.logp - logp, dtype=np.float64) for y, logp in zip(responses, under_ref, strict=True)]
        return {
            "world/gold_reward": float(gold.mean()),
            "world/gold_lift": float((gold.mean() - base.mean()) / base.std()),
            "world/kl": float(np.mean(log_ratio)),
            "world/spread": float(gold.std()),
            "world/finished": float(np.mean([response.finished for response in responses])),
        }

    return score


def report(config: ConfigDict) -> None:
    """Show what training did: the first and the last evaluation as a table, and the curves as a picture."""
    output = pathlib.Path(config.output)
    rows = logger.read_jsonl(output / "metrics.jsonl", "eval")
    Console().print(table(config.objective.name, rows[0], rows[-1]))
    try:
        plots.curves(output / "metrics.jsonl", output / "curves.png", title=f"{config.objective.name} on reviews")
        _say(f"curves: {output / 'curves.png'}")
    except ImportError as error:
        _say(f"no picture of the curves: {error}")


def table(title: str, before: logger.Row, after: logger.Row) -> Table:
    """Return two evaluations side by side: the world's metrics first, then every other one."""
    named = {name: label for name, label in SHOWN.items() if name in before or name in after}
    named |= {name: name for name in after if name not in (*named, "step", "split")}
    made = Table("", title=f"{title}, held-out pairs and fresh samples")
    for row in (before, after):
        made.add_column(f"step {row['step']}", justify="right")
    for name, label in named.items():
        made.add_row(label, *(f"{row[name]:.4g}" if name in row else "" for row in (before, after)))
    return made


def _sft(config: ConfigDict, folder: pathlib.Path) -> FrozenConfigDict:
    """Return the configuration that trains the reference from random weights on the grammar's texts."""
    c = ConfigDict(config.to_dict())
    c.update(SFT)
    c.world, c.output = "", str(folder)
    c.objective, c.optimizer = ConfigDict({"name": "sft.token_mean"}), ConfigDict({"name": "adamw"})
    c.model.path, c.model.weights = str(folder / "start"), "random"
    c.data.path, c.data.eval_path = str(folder / "texts.train.jsonl"), str(folder / "texts.eval.jsonl")
    c.data.format, c.data.candidates, c.data.tokenizer = "prompt_response", 1, ""
    c.data.unpair, c.data.mismatched, c.data.pairs, c.data.accept, c.data.degrade = False, False, "", 0, 0
    c.data.match_prompts, c.diagnostics, c.selector = False, 0, ConfigDict({"name": "everything"})
    c.reference.mode = "none"
    c.best_metric, c.tensorboard, c.wandb, c.export = "eval/loss", False, "", True
    return FrozenConfigDict(c)


def _mark(sft: ConfigDict, folder: pathlib.Path) -> str:
    """Return a digest of all that the reference and the pairs depend on; where they lie is not part of it."""
    sources = [file.read_text() for file in (pathlib.Path(__file__), pathlib.Path(language.__file__))]
    text = "".join([*sources, settings.dump(sft).replace(json.dumps(str(folder))[1:-1], "")])
    return hashlib.sha256(text.encode()).hexdigest()


def _set_aside(*folders: pathlib.Path) -> pathlib.Path:
    """Move folders into a new one beside them: a policy must not go on from checkpoints of another reference."""
    output = folders[0].parent
    aside = output / f"earlier-{1 + len(list(output.glob('earlier-*')))}"
    aside.mkdir()
    for folder in filter(pathlib.Path.exists, folders):
        folder.rename(aside / folder.name)
    return aside


def _write_start(folder: pathlib.Path, seed: int) -> None:
    """Write what the reference starts from: its shape, its tokenizer and the texts."""
    tokenizer = language.tokenizer()
    tokenizer.save_pretrained(folder / "start")
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    hf_config = LLAMA | {"vocab_size": len(language.words())} | special
    (folder / "start" / "config.json").write_text(json.dumps(hf_config, indent=1))
    rng = np.random.default_rng([seed, 0])
    texts = [
        {"prompt": prompt, "response": _text(language.write(topic, rng))}
        for topic, prompt in language.prompts(TEXTS + HELD_OUT)
    ]
    _write_jsonl(folder / "texts.train.jsonl", texts[:TEXTS])
    _write_jsonl(folder / "texts.eval.jsonl", texts[TEXTS:])


def _pairs(path: pathlib.Path, count: int, seed: int) -> list[dict[str, str | float]]:
    """Return pairs of the reference's reviews, one preferred with the Bradley-Terry probability of the gold reward.

    Two equal reviews are no pair and are left out. The gold rewards go along as scores, for objectives that read them;
    that of the preferred review may be the lower one.
    """
    model = models.build(hf.read_config(path))
    params = jax.device_put(hf.load(path, model))
    key, rng = jax.random.fold_in(jax.random.key(seed), 1), np.random.default_rng([seed, 1])
    prompts = [prompt for _, prompt in language.prompts(count)]
    pairs: list[dict[str, str | float]] = []
    for start in logger.track(range(0, count, BATCH), -(-count // BATCH), "pairs, in batches"):
        here = prompts[start : start + BATCH]
        twice = [language.encode(prompt) for prompt in here for _ in range(2)]
        reviews = [language.decode(y.token) for y in _sample(model, params, twice, key, first=2 * start)]
        for prompt, a, b in zip(here, reviews[::2], reviews[1::2], strict=True):
            a_wins = rng.random() < 1 / (1 + math.exp(language.reward(b) - language.reward(a)))
            chosen, rejected = (a, b) if a_wins else (b, a)
            if a != b:
                texts = {"prompt": prompt, "chosen": _text(chosen), "rejected": _text(rejected)}
                scores = {"score_chosen": language.reward(chosen), "score_rejected": language.reward(rejected)}
                pairs.append(texts | scores)
    return pairs


def _sample(
    model: Model, params: Params, prompts: Sequence[np.ndarray], key: Key, *, first: int = 0
) -> list[sampling.Response]:
    eos = (language.words().index(language.EOS),)
    return sampling.generate(
        model, params, prompts, key=key, max_new_tokens=language.LONGEST, eos=eos, batch=BATCH, first=first
    )


def _text(review: Sequence[str]) -> str:
    """Return a review as text that follows its prompt."""
    return " " + " ".join(review)


def _write_jsonl(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a file that is there only once it is whole."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(record) + "\n" for record in records))
    part.replace(path)


def _say(text: str) -> None:
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
