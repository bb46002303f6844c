"""The program, killed again and again without warning, ends with the very numbers of one that nobody touched."""

import json
import os
import pathlib
import signal
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from starter import Starter

from slpojax import hf, models

STEPS = 240
# How a start ends, in turn: behind some steps, amid the writing of a checkpoint, anywhere (while it starts, too), or
# asked to end. 25 of 30 are SIGKILL, 15 of them amid a checkpoint.
WAYS = ("step", "save", "any", "save", "term", "save")
STARTS = 30
# How the only numbers end that may differ: times and memory.
TIMES = ("_per_second", "step_seconds", "device_waited_share", "peak_bytes")

CONFIG = f"""
from ml_collections import ConfigDict
from configs import base

def get_config():
    c = base.get_config()
    c.steps, c.batch_size, c.warmup_steps, c.learning_rate = {STEPS}, 8, 5, 1e-3
    c.model.path, c.model.weights = "model", "random"
    c.data.path, c.data.format, c.data.rows, c.data.eval_rows = "pairs.jsonl", "pairs", "0:40", "40:48"
    c.data.max_length, c.data.max_prompt_length, c.data.row_length = 32, 16, 64
    c.objective = ConfigDict({{"name": "dpo.sigmoid"}})
    c.eval_every, c.checkpoint_every = 10, 2
    return c
"""
MESHES = {1: [], 8: ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]}

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> pathlib.Path:
    """A folder with a tiny model, 48 pairs and the configuration."""
    import tokenizers

    folder = tmp_path_factory.mktemp("resume")
    words = [f"w{i}" for i in range(60)]
    vocabulary = {word: i for i, word in enumerate(["<eos>", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (folder / "model").mkdir()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "unk_token": "<eos>"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(special))
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": len(vocabulary)}))
    rng = np.random.default_rng(0)
    text = lambda: " ".join(rng.choice(words, rng.integers(2, 12)))  # noqa: E731
    rows = [{"prompt": text() + " ", "chosen": text(), "rejected": text()} for _ in range(48)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.py").write_text(CONFIG)
    return folder


def losses(output: pathlib.Path) -> dict[tuple[str, int], dict[str, float]]:
    """Return every number of a metrics.jsonl but times and memory, by split and step; each has one line."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    numbers = {
        (row.pop("split"), row.pop("step")): {k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows
    }
    assert len(numbers) == len(rows), "a step was written twice"
    return numbers


def require_near(output: pathlib.Path, other: pathlib.Path) -> None:
    """See that a run over hosts is another run to 1e-5: its lines, what they say of the pairs, and its weights."""
    found, expected = losses(output), losses(other)
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        for name in ("loss", "logps/chosen", "rewards/margins"):
            np.testing.assert_allclose(found[step][name], values[name], atol=1e-5, err_msg=f"{step} {name}")
    ours, theirs = (load_file(folder / "hf" / hf.WEIGHTS) for folder in (output, other))
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-5, err_msg=name)


def moment(starter: Starter, said: pathlib.Path, output: pathlib.Path, rng: np.random.Generator, how: str, limit: int):
    """Wait for a random moment of a kind.

    However fast the machine is, the wait ends at step `limit`, so that the steps last for all starts.
    """
    until, begun = time.monotonic() + rng.uniform(0, 3), False
    more, first, writing = rng.integers(1, 4), 0, set()
    while starter.poll() is None:
        begun = begun or "parameters on" in said.read_text() or "resumed behind" in said.read_text()
        now = newest(output / "metrics.jsonl") if begun else 0
        first = first or now
        writing.update(p.name for p in (output / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        some = begun and now >= first + more
        reached = {"any": time.monotonic() >= until, "step": some, "term": some, "save": len(writing) >= more}[how]
        if (reached and (begun or how == "any")) or now >= limit:
            break
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.03))


def newest(path: pathlib.Path) -> int:
    """Return the last step that is written whole, 0 if none."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


@pytest.mark.check
@pytest.mark.optimised
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("devices", MESHES)
def test_losses_are_bit_identical_after_thirty_ends(workplace, devices):
    starter, rng = Starter("train", workplace, devices, MESHES[devices]), np.random.default_rng(devices)
    torn, killed = 0, 0
    whole, output = (workplace / f"{name}{devices}" for name in ("whole", "killed"))
    said = starter.start(whole.name)
    assert starter.wait() == 0, said.read_text()[-3000:]
    assert len(losses(whole)) == STEPS + STEPS // 10 + 1
    for i in range(STARTS):
        how = WAYS[i % len(WAYS)]
        said = starter.start(output.name)
        moment(starter, said, output, rng, how, STEPS * (i + 1) // (STARTS + 4))
        assert starter.poll() is None, f"over before end {i + 1}: {said.read_text()[-3000:]}"
        os.kill(starter.pid, signal.SIGTERM if how == "term" else signal.SIGKILL)
        status = starter.wait()
        assert status == (128 + signal.SIGTERM if how == "term" else -signal.SIGKILL), said.read_text()[-3000:]
        assert ("stopped by SIGTERM behind step" in said.read_text()) == (how == "term")
        killed += how != "term"
        torn += any((output / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
    said = starter.start(output.name)
    assert starter.wait() == 0, said.read_text()[-3000:]
    starter.close()
    assert killed == 25 and torn >= 5, f"{torn} kills hit a checkpoint that was being written"
    assert losses(output) == losses(whole)
    weights = [(folder / "hf" / "model.safetensors").read_bytes() for folder in (output, whole)]
    assert weights[0] == weights[1]


ADAPTERS = {"train.what": "lora", "lora.rank": 4, "lora.beside": "norm", "model.frozen_dtype": "bfloat16"}
ADAPTERS |= {"model.path": "start", "model.weights": "load", "reference.mode": "online", "steps": 40}


@pytest.mark.check
@pytest.mark.optimised
def test_a_run_of_adapters_killed_ends_bit_for_bit(workplace):
    """Its checkpoints hold the adapters, and what is trained beside them, alone."""
    config = json.loads((workplace / "model" / "config.json").read_text())
    model = models.build(config)
    beside = hf.Beside(workplace / "model")
    hf.save(workplace / "start", jax.jit(model.init)(jax.random.key(0)), model, config, beside=beside)
    starter = Starter("train", workplace, arguments=[f"--config.{key}={value}" for key, value in ADAPTERS.items()])
    rng, whole, output = np.random.default_rng(0), workplace / "adapters", workplace / "adapters killed"
    said = starter.start(whole.name)
    assert starter.wait() == 0, said.read_text()[-3000:]
    ways = ("save", "any", "step", "save")
    for i, how in enumerate(ways):
        said = starter.start(output.name)
        moment(starter, said, output, rng, how, 40 * (i + 1) // (len(ways) + 2))
        assert starter.poll() is None, f"over before end {i + 1}: {said.read_text()[-3000:]}"
        os.kill(starter.pid, signal.SIGKILL)
        assert starter.wait() == -signal.SIGKILL, said.read_text()[-3000:]
    said = starter.start(output.name)
    assert starter.wait() == 0, said.read_text()[-3000:]
    starter.close()
    assert "resumed behind step" in said.read_text()
    assert losses(output) == losses(whole)
    one, other = (folder / "hf" / "adapter_model.safetensors" for folder in (output, whole))
    assert one.read_bytes() == other.read_bytes()
    moved = [np.abs(tensor).max() for name, tensor in load_file(one).items() if "lora_B" in name]
    assert min(moved) > 0
