"""Reward models against transformers, and whole runs of the program against whole runs of TRL's RewardTrainer."""

import contextlib
import functools
import gzip
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import reward_tools
import trl_tools
from safetensors.numpy import load_file
from test_trl_live import CLIP, LEARNING_RATE, MOVED, ROOT, TOLERANCE, WEIGHTS, relative
from trl_tools import EPS

from slpojax import grid, hf, rewards

# The program runs in a process of its own, so the warnings that go unheard here are those of TRL and of what it uses.
pytestmark = [pytest.mark.check, pytest.mark.optimised, pytest.mark.filterwarnings("ignore")]

STEPS, BATCH, HELD_OUT = 10, 4, 8
HH = pathlib.Path("hh", "helpful-base.test.jsonl.gz")


@pytest.mark.parametrize("family", reward_tools.FAMILIES)
def test_rewards_equal_transformers(family, tmp_path):
    """Messages and texts, one at a time and padded together; relative to 1 + their size."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    folder = reward_tools.make(tmp_path / "ours", family)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path / "theirs")  # its config.json and tensors, and what else it writes
    for file in (folder / name for name in hf.TOKENIZER):
        if file.is_file():
            (tmp_path / "theirs" / file.name).write_bytes(file.read_bytes())
    pairs = zip(reward_tools.PROMPTS, reward_tools.ANSWERS, strict=True)
    ids = [[reward_tools.texts(prompt, answer) for answer in some] for prompt, some in pairs]
    longest = max(len(one) for some in ids for one in some)
    padded = torch.tensor([one + [259] * (longest - len(one)) for some in ids for one in some])
    with torch.no_grad():
        alone = [[theirs(torch.tensor([one])).logits.item() for one in some] for some in ids]
        together = theirs(padded, attention_mask=(padded != 259).long()).logits[:, 0].reshape(3, 3)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    rewarder = rewards.load(tmp_path / "theirs", grid.one_device())
    jax.tree.map(np.testing.assert_array_equal, rewarder.params, hf.load(folder, rewarder.model))
    found = rewards.scores(rewarder, reward_tools.PROMPTS, reward_tools.ANSWERS)
    errors = np.abs(found - alone) / (1 + np.abs(alone))
    print(f"{family}: rewards {np.min(alone):.2f} to {np.max(alone):.2f}, error {errors.max():.1e}", file=sys.stderr)
    assert errors.max() < TOLERANCE and np.ptp(alone) > 0.1


# ---- whole runs against TRL ------------------------------------------------------------------------------------------

FAMILIES = ("llama", "gpt_neox", "qwen3")
CASES = {"plain": {}, "centred": {"centre": 0.05}, "margin": {"margin": True, "centre": 0.01}}
NAMES = {"loss": "loss", "grad_norm": "grad_norm", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
OBJECTIVES = {"margin": "reward.bradley_terry_margin"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> pathlib.Path:
    """A folder with a random reward model per family, its tokenizer, and pairs.jsonl: HH's where they are at hand."""
    pytest.importorskip("torch", reason="the witness is torch: make check installs it")
    pytest.importorskip("trl", reason="the witness is TRL: make check installs it")
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("rewards")
    rows = list(pairs_of_text())
    vocabulary = {"<eos>": 0, "<pad>": 1}
    for row in rows:
        for word in (row["prompt"] + row["chosen"] + row["rejected"]).split():
            vocabulary.setdefault(word, len(vocabulary))
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<eos>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", pad_token="<pad>")
    for family in FAMILIES:
        size = reward_tools.FAMILIES[family] | {"vocab_size": len(vocabulary), "max_position_embeddings": 256}
        reward_tools.write(folder / family, size | {"pad_token_id": 1}, scale=0.2)
        tokenizer.save_pretrained(folder / family)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def texts() -> Iterator[tuple[str, ...]]:
    """Prompts with two answers of up to 30 words each: HH's last turns where they are at hand, else made-up ones."""
    file = pathlib.Path(os.environ.get("SLPOJAX_SHARED") or ROOT.parent / "shared" / "data") / HH
    rng, words = np.random.default_rng(0), [f" w{i}" for i in range(60)]
    with gzip.open(file, "rt") if file.is_file() else contextlib.nullcontext(()) as lines:
        for record in map(json.loads, lines):
            prompt, chosen = record["chosen"].rsplit("\n\nAssistant:", 1)
            other, rejected = record["rejected"].rsplit("\n\nAssistant:", 1)
            found = (f"{prompt}\n\nAssistant:", chosen, rejected)
            if prompt == other and chosen != rejected and all(1 < len(text.split()) <= 30 for text in found):
                yield found
    while True:
        yield tuple("".join(rng.choice(words, rng.integers(1, most))) for most in (12, 20, 20))


def pairs_of_text() -> Iterator[dict]:
    """Prompts and two answers, with scores that differ in half steps."""
    for i, (prompt, chosen, rejected) in enumerate(itertools.islice(texts(), STEPS * BATCH + HELD_OUT)):
        scores = {"score_chosen": 1 + 0.5 * (i % 4), "score_rejected": 0.5}
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected} | scores


@functools.cache
def ours(workplace: pathlib.Path, family: str, case: str) -> tuple[list[dict], dict, pathlib.Path]:
    """Run the program; return what it logged step by step, on the held-out pairs at the end, and the export."""
    output = workplace / f"ours_{family}_{case}"
    centre = CASES[case].get("centre", 0.0)
    overrides = {
        "output": output,
        "model.path": workplace / family,
        "data.path": workplace / "pairs.jsonl",
        "data.eval_split": "",
        "data.format": "pairs",
        "data.order": "source",
        "data.rows": f"0:{STEPS * BATCH}",
        "data.eval_rows": f"{STEPS * BATCH}:{STEPS * BATCH + HELD_OUT}",
        "data.max_length": 64,
        "data.max_prompt_length": 32,
        "data.row_length": 128,
        "objective.name": OBJECTIVES.get(case, "reward.bradley_terry"),
        "objective.centre": centre,
        "optimizer.name": "adamw",
        "optimizer.eps": EPS,
        "model.dtype": "float32",
        "model.remat": "none",
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "warmup_steps": 0,
        "clip_norm": CLIP,
        "batch_size": BATCH,
        "accumulate": 2 if case == "centred" else 1,
        "steps": STEPS,
        "eval_every": 0,
        "checkpoint_every": 0,
    }
    env = os.environ | {
        "XLA_FLAGS": "",  # one device
        "JAX_COMPILATION_CACHE_DIR": str(workplace / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "slpojax.train", "--config=configs/reward_hh.py"]
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["split"] == "train"]
    (held_out,) = (row for row in rows if row["split"] == "eval" and row["step"] == STEPS)
    return steps, held_out, output / "hf"


def theirs(workplace: pathlib.Path, family: str, case: str) -> tuple[list[dict], dict, dict]:
    """Run TRL's trainer: CPU, float32, examples in order, no dropout."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = [json.loads(line) for line in (workplace / "pairs.jsonl").read_text().splitlines()]
    kept = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    if "margin" in CASES[case]:
        kept = [k | {"margin": r["score_chosen"] - r["score_rejected"]} for k, r in zip(kept, rows, strict=True)]
    output = workplace / f"theirs_{family}_{case}"
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(workplace / family, dtype=torch.float32),
        args=trl.RewardConfig(
            str(output),
            center_rewards_coefficient=CASES[case].get("centre"),
            **trl_tools.arguments(
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=HELD_OUT,
                max_steps=STEPS,
                learning_rate=LEARNING_RATE,
                max_grad_norm=CLIP,
                logging_nan_inf_filter=False,
            ),
        ),
        train_dataset=Dataset.from_list(kept[: STEPS * BATCH]),
        eval_dataset=Dataset.from_list(kept[STEPS * BATCH :]),
        processing_class=AutoTokenizer.from_pretrained(workplace / family),
    )
    trainer.train()
    held_out = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    trainer.save_model(str(output))
    return [row for row in trainer.state.log_history if "loss" in row], held_out, load_file(output / WEIGHTS)


@pytest.mark.parametrize(("family", "case"), [("llama", "margin"), ("qwen3", "plain"), ("gpt_neox", "centred")])
def test_a_run_equals_trl(workplace, family, case):
    expected, expected_held_out, weights = theirs(workplace, family, case)
    got, held_out, folder = ours(workplace, family, case)
    assert len(expected) == len(got) == STEPS
    errors = {}
    for step, (mine, yours) in enumerate(zip(got, expected, strict=True), 1):
        errors |= {f"{name}, step {step}": relative(mine[name], yours[other]) for name, other in NAMES.items()}
        mean = (mine["rewards/chosen"] + mine["rewards/rejected"]) / 2
        errors[f"mean reward, step {step}"] = relative(mean, yours["mean_reward"])
    for name in NAMES.keys() - {"grad_norm"}:
        errors[f"{name}, held out"] = relative(held_out[name], expected_held_out[NAMES[name]])
    worst = max(errors, key=errors.get)

    ended, begun = load_file(folder / WEIGHTS), load_file(workplace / family / WEIGHTS)
    assert ended.keys() == weights.keys() == begun.keys()
    apart = {name: np.abs(ended[name] - value).max() for name, value in weights.items()}
    moved = {name: np.abs(begun[name] - value).max() for name, value in weights.items()}
    furthest = max(apart, key=apart.get)
    print(
        f"\n{family} {case}: {worst} {errors[worst]:.1e}; {furthest} {apart[furthest]:.1e}; moved by at least "
        f"{min(moved.values()):.1e}; losses {expected[0]['loss']:.3f} to {expected[-1]['loss']:.3f}",
        file=sys.stderr,
    )
    assert errors[worst] < TOLERANCE, (worst, errors)
    assert apart[furthest] < TOLERANCE, (furthest, apart)
    assert min(moved.values()) > MOVED, moved


@pytest.mark.parametrize(("family", "case"), [("qwen3", "plain"), ("gpt_neox", "centred")])
def test_transformers_finds_the_logged_rewards_in_the_export(workplace, family, case):
    """Padded together, with the folder's own tokenizer; the last evaluation is of the exported weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _, held_out, folder = ours(workplace, family, case)
    model, tokenizer = (of.from_pretrained(folder) for of in (AutoModelForSequenceClassification, AutoTokenizer))
    rows = [json.loads(line) for line in (workplace / "pairs.jsonl").read_text().splitlines()][STEPS * BATCH :]
    rewarder = rewards.load(folder, grid.one_device())
    found = rewards.scores(rewarder, [r["prompt"] for r in rows], [[r["chosen"], r["rejected"]] for r in rows])
    for k, which in enumerate(("chosen", "rejected")):
        texts = [row["prompt"] + row[which] + tokenizer.eos_token for row in rows]
        with torch.no_grad():
            got = model.eval()(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0].numpy()
        assert relative(held_out[f"rewards/{which}"], got.mean()) < TOLERANCE
        np.testing.assert_allclose(found[:, k], got, atol=TOLERANCE)
    assert jax.default_backend() == "cpu"
