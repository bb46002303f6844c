"""The program, killed again and again without warning, ends with the very numbers of one that nobody touched."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 150
KILLS = 24
# How the only numbers end that may differ: times and memory.
TIMES = ("_per_second", "step_seconds", "device_waited_share", "peak_bytes")

CONFIG = f"""
from ml_collections import ConfigDict
from configs import base

def get_config():
    c = base.get_config()
    c.steps, c.batch_size, c.warmup_steps, c.learning_rate = {STEPS}, 4, 5, 1e-3
    c.model.path, c.model.weights = "model", "random"
    c.data.path, c.data.format, c.data.rows, c.data.eval_rows = "pairs.jsonl", "pairs", "0:40", "40:48"
    c.data.max_length, c.data.max_prompt_length, c.data.row_length = 32, 16, 64
    c.objective = ConfigDict({{"name": "dpo.sigmoid"}})
    c.eval_every, c.checkpoint_every, c.mesh.data = 10, 2, 1
    return c
"""

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
    """A folder with a tiny model, 48 pairs, the configuration, and the finished run `whole` of one process."""
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

    run(folder, "whole")
    assert len(losses(folder / "whole")) == STEPS + STEPS // 10 + 1
    return folder


def start(folder: pathlib.Path, output: str) -> tuple[subprocess.Popen, pathlib.Path]:
    """Start the program on one CPU device, in a process group of its own; return it and what it says."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "HF_HUB_OFFLINE": "1",
        # Compiled once for all starts, which take most of the time of this test.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "slpojax.train", "--config=tiny.py", f"--config.output={output}"]
    said = folder / f"{output}.{len(list(folder.glob(f'{output}.*.log')))}.log"
    with said.open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True), said


def run(folder: pathlib.Path, output: str) -> None:
    """Let the program run to its end."""
    process, said = start(folder, output)
    assert process.wait(timeout=300) == 0, said.read_text()[-3000:]


def losses(output: pathlib.Path) -> dict[tuple[str, int], dict[str, float]]:
    """Return every number of a metrics.jsonl but times and memory, by split and step; each has one line."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    numbers = {
        (row.pop("split"), row.pop("step")): {k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows
    }
    assert len(numbers) == len(rows), "a step was written twice"
    return numbers


def moment(
    process: subprocess.Popen, said: pathlib.Path, output: pathlib.Path, rng: np.random.Generator, how: str, limit: int
) -> None:
    """Wait for a random moment of a kind: any (starting up, too), a few steps on, or amid the writing of a checkpoint.

    However fast the machine is, the wait ends at step `limit`, so that the steps last for all kills.
    """
    until, begun = time.monotonic() + rng.uniform(0, 12), False
    more, first, writing = rng.integers(1, 6), 0, set()
    while process.poll() is None:
        begun = begun or "parameters on" in said.read_text() or "resumed behind" in said.read_text()
        now = newest(output / "metrics.jsonl") if begun else 0
        first = first or now
        writing.update(p.name for p in (output / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        reached = {"any": time.monotonic() >= until, "step": now >= first + more, "save": len(writing) >= more}[how]
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
@pytest.mark.timeout(1200)  # some 26 starts of the program
def test_losses_are_bit_identical_after_two_dozen_kills(workplace):
    rng, output, torn = np.random.default_rng(0), workplace / "killed", 0
    for i in range(KILLS):
        process, said = start(workplace, output.name)
        moment(process, said, output, rng, ("step", "save", "any", "save")[i % 4], STEPS * (i + 1) // (KILLS + 4))
        assert process.poll() is None, (
            f"over before kill {i + 1}, status {process.returncode}: {said.read_text()[-3000:]}"
        )
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        torn += "skipped checkpoint" in said.read_text()
    run(workplace, output.name)
    assert torn > 0, "no kill hit a checkpoint that was being written"
    assert losses(output) == losses(workplace / "whole")
    weights = [(folder / "hf" / "model.safetensors").read_bytes() for folder in (output, workplace / "whole")]
    assert weights[0] == weights[1]
