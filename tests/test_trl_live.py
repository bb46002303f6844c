"""Whole runs of the program against whole runs of TRL: what both log, what both save, and what the export says."""

import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import trl_tools
from safetensors.numpy import load_file
from trl_tools import EPS

# The program runs in a process of its own, so the warnings that go unheard here are those of TRL and of what it uses.
pytestmark = [pytest.mark.check, pytest.mark.optimised, pytest.mark.filterwarnings("ignore")]

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, BATCH, HELD_OUT = 6, 4, 8
# A clipping norm that some steps of the Llama's `sigmoid` reach and others do not.
LEARNING_RATE, CLIP = 1e-3, 2.5
# float32 in two frameworks. What is logged differs by 2e-6 relative to 1 + its size; weights differ by 1e-5 (the
# bias of `trl_tools.EPS` by 4e-5), while six steps move every tensor by more than 4e-3.
TOLERANCE, MOVED = 1e-4, 1e-3
WEIGHTS = "model.safetensors"
NAMES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
# What ORPO's trainer calls logps are means over tokens.
NAMES_OF_ORPO = (*NAMES[:-2], "nll_loss", "log_odds_ratio", "log_odds_chosen")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS = {
    "llama": SIZES | {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": False},
    "gpt_neox": SIZES | {"model_type": "gpt_neox", "rotary_pct": 0.25, "tie_word_embeddings": False},
}
# Hyperparameters have the same names in both.
LOSSES = {
    "sigmoid": {"beta": 0.1},
    "ipo": {"beta": 0.1},
    "hinge": {"beta": 0.5},
    "robust": {"beta": 0.3, "label_smoothing": 0.2},
    "orpo": {"beta": 0.5},
}
OBJECTIVES = {"orpo": "reference_free.orpo_with_prompt"}  # the others are `dpo.` and the loss


class Run(NamedTuple):
    """What a run logged, step by step and on the held-out split at the end, and the weights it saved."""

    steps: list[dict[str, float]]
    held_out: dict[str, float]
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> pathlib.Path:
    """A folder with two random models per family, policy and reference, their tokenizer, and pairs.jsonl."""
    torch = pytest.importorskip("torch", reason="the witness is torch: make check installs it")
    pytest.importorskip("trl", reason="the witness is TRL: make check installs it")
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("trl")
    words = [f"w{i}" for i in range(SIZES["vocab_size"] - 1)]
    vocabulary = {word: i for i, word in enumerate(["<eos>", *words])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<eos>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    # Padding with EOS, as Pythia does: EOS must be trained all the same.
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", pad_token="<eos>")
    for family, config in MODELS.items():
        for seed, role in enumerate(("policy", "reference")):
            torch.manual_seed(seed)
            network = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
            with torch.no_grad():
                for parameter in network.parameters():  # scales and biases, too
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
            network.save_pretrained(folder / family / role)
            tokenizer.save_pretrained(folder / family / role)

    # Whole words, each with the blank before it: tokens of prompt and response apart are those of both together.
    rng = np.random.default_rng(0)
    text = lambda low, high: "".join(f" {word}" for word in rng.choice(words, rng.integers(low, high)))  # noqa: E731
    rows = [
        {"prompt": text(1, 9), "chosen": text(1, 12), "rejected": text(1, 12)} for _ in range(STEPS * BATCH + HELD_OUT)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@functools.cache
def ours(workplace: pathlib.Path, family: str, loss: str, accumulate: int) -> tuple[Run, pathlib.Path]:
    """Run the program from its command line; return the exported folder, too."""
    output = workplace / f"ours_{family}_{loss}_{accumulate}"
    steps = run(workplace, output.name, family, loss, accumulate)
    (held_out,) = (row for row in logged(output) if row["split"] == "eval" and row["step"] == STEPS)
    return Run(steps, held_out, load_file(output / "hf" / WEIGHTS)), output / "hf"


def run(workplace, name: str, family: str, loss: str, accumulate: int, changes: dict | None = None) -> list[dict]:
    """Run the program from its command line, with some keys changed; return what it logged of its steps."""
    output = workplace / name
    overrides = {
        "output": output,
        "model.path": workplace / family / "policy",
        "reference.path": workplace / family / "reference",
        "data.path": workplace / "pairs.jsonl",
        "data.eval_path": "",
        "data.eval_split": "",
        "data.format": "pairs",
        "data.order": "source",
        "data.rows": f"0:{STEPS * BATCH}",
        "data.eval_rows": f"{STEPS * BATCH}:{STEPS * BATCH + HELD_OUT}",
        "data.max_length": 32,
        "data.max_prompt_length": 16,
        "data.row_length": 64,
        "objective.name": OBJECTIVES.get(loss, f"dpo.{loss}"),
        **{f"objective.{name}": value for name, value in LOSSES[loss].items()},
        "optimizer.name": "adamw",
        "optimizer.eps": EPS,
        "model.dtype": "float32",
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0,
        "clip_norm": CLIP,
        "batch_size": BATCH,
        "accumulate": accumulate,
        "steps": STEPS,
        "eval_every": 0,
        "checkpoint_every": 0,
        **(changes or {}),
    }
    env = os.environ | {
        "XLA_FLAGS": "",  # one device
        "JAX_COMPILATION_CACHE_DIR": str(workplace / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "slpojax.train", "--config=configs/dpo_hh.py"]
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    steps = [row for row in logged(output) if row["split"] == "train"]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    return steps


def logged(output: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def theirs(workplace: pathlib.Path, family: str, loss: str, accumulate: int) -> Run:
    """Run TRL's trainer: CPU, float32, examples in order, no dropout."""
    import torch
    import trl
    import trl.experimental.orpo
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy, reference = (
        AutoModelForCausalLM.from_pretrained(workplace / family / role, dtype=torch.float32)
        for role in ("policy", "reference")
    )
    rows = pairs(workplace)
    output = workplace / f"theirs_{family}_{loss}_{accumulate}"
    configuration, trainer_of = trl.DPOConfig, functools.partial(trl.DPOTrainer, ref_model=reference)
    if loss == "orpo":
        configuration, trainer_of = trl.experimental.orpo.ORPOConfig, trl.experimental.orpo.ORPOTrainer
    arguments = configuration(
        str(output),
        **({} if loss == "orpo" else {"loss_type": [loss]}),
        **LOSSES[loss],
        **trl_tools.arguments(
            per_device_train_batch_size=BATCH // accumulate,
            gradient_accumulation_steps=accumulate,
            per_device_eval_batch_size=HELD_OUT,
            max_steps=STEPS,
            learning_rate=LEARNING_RATE,
            max_grad_norm=CLIP,
            logging_nan_inf_filter=False,
        ),
    )
    trainer = trainer_of(
        model=policy,
        args=arguments,
        train_dataset=Dataset.from_list(rows[: STEPS * BATCH]),
        eval_dataset=Dataset.from_list(rows[STEPS * BATCH :]),
        processing_class=AutoTokenizer.from_pretrained(workplace / family / "policy"),
    )
    trainer.train()
    held_out = trainer.evaluate()
    trainer.save_model(str(output))
    steps = [row for row in trainer.state.log_history if "loss" in row]
    return Run(
        steps,
        {name.removeprefix("eval_"): value for name, value in held_out.items()},
        load_file(output / WEIGHTS),
    )


def pairs(workplace: pathlib.Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (workplace / "pairs.jsonl").read_text().splitlines()]


CASES = [
    ("llama", "sigmoid", 1),
    ("llama", "sigmoid", 2),
    ("llama", "ipo", 1),
    ("llama", "hinge", 1),
    ("llama", "robust", 1),
    ("llama", "orpo", 1),
    ("gpt_neox", "sigmoid", 1),
]


@pytest.mark.parametrize(("family", "loss", "accumulate"), CASES)
def test_a_run_equals_trl(workplace, family, loss, accumulate):
    """In both, the batch of a step is BATCH pairs; TRL's micro-batches are BATCH // accumulate of them."""
    expected = theirs(workplace, family, loss, accumulate)
    got, _ = ours(workplace, family, loss, accumulate)
    assert len(expected.steps) == STEPS
    if (family, loss) == ("llama", "sigmoid"):
        clipped = [row["grad_norm"] > CLIP for row in expected.steps]
        assert any(clipped) and not all(clipped)

    errors, names = {}, NAMES_OF_ORPO if loss == "orpo" else NAMES
    for step, (mine, yours) in enumerate(zip(got.steps, expected.steps, strict=True), 1):
        errors |= {f"{name}, step {step}": relative(mine[name], yours[name]) for name in (*names, "grad_norm")}
    errors |= {f"{name}, held out": relative(got.held_out[name], expected.held_out[name]) for name in names}
    worst = max(errors, key=errors.get)

    begun = load_file(workplace / family / "policy" / WEIGHTS)
    assert got.weights.keys() == expected.weights.keys() == begun.keys()
    apart = {name: np.abs(got.weights[name] - value).max() for name, value in expected.weights.items()}
    moved = {name: np.abs(begun[name] - value).max() for name, value in expected.weights.items()}
    furthest = max(apart, key=apart.get)
    print(
        f"\n{family} {loss} {accumulate}: {worst} {errors[worst]:.1e}; {furthest} {apart[furthest]:.1e}; "
        f"moved by at least {min(moved.values()):.1e}",
        file=sys.stderr,
    )
    assert errors[worst] < TOLERANCE, (worst, errors)
    assert apart[furthest] < TOLERANCE, (furthest, apart)
    assert min(moved.values()) > MOVED, moved  # or equal weights would say little


def relative(got: float, expected: float) -> float:
    return abs(got - expected) / (1 + abs(expected))


@pytest.mark.parametrize("family", MODELS)
def test_transformers_finds_the_reported_logps_in_the_export(workplace, family):
    """One sequence at a time, with the folder's own tokenizer; the last evaluation is of the exported weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    got, folder = ours(workplace, family, "sigmoid", 1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for which in ("chosen", "rejected"):
        sums = []
        for row in pairs(workplace)[STEPS * BATCH :]:
            prompt, answer = tokenizer(row["prompt"])["input_ids"], tokenizer(row[which])["input_ids"]
            ids = torch.tensor([prompt + answer + [tokenizer.eos_token_id]])
            with torch.no_grad():
                logps = model(ids).logits.double().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
            sums.append(logps[len(prompt) - 1 :].sum().item())
        assert relative(got.held_out[f"logps/{which}"], np.mean(sums)) < TOLERANCE
