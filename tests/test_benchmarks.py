"""Every benchmark runs to its end at a size that says nothing of speed: its command is ready when a machine is."""

import importlib.util
import os
import pathlib
import subprocess
import sys
from functools import partial

import hurry
import pytest
from conftest import REPOSITORY

pytestmark = [pytest.mark.check, pytest.mark.optimised]

COMMANDS = (
    "objectives --model tiny --batch 2 --rounds 1 --only orpo_with_prompt",
    "candidates --model tiny --batch 2 --rounds 1 --candidates 2",
    "head --width 16 --tokens 256 --vocabulary 97 --rounds 1",
    "sampling --width 32 --layers 2 --vocabulary 997 --prompts 4 --samples 2 --new 8 --rounds 1 --sides slpojax",
    "attention --names tiles --rounds 1",
    "attention --names splash --topology v5e:2x2",
    "attention --names cudnn --topology h200:2",
    "gpu --model tiny --check tiny --attention tiles --dtype float32 --remat none --lengths 1024 --tokens 4096 "
    "--product 64 --rounds 1",
    "memory --remat none layer --width 32 --layers 2 --heads 2 --rows 1 --rounds 1",
    "memory --configs sft_hh mcpo_nectar mcpo_ranked --off (none) --width 32 --layers 2 --heads 2",
    "memory --configs slpo_hh --off (none) --width 256 --layers 2 --heads 2 --topology v5e:2x4",
    "memory --configs slpo_hh --off donation --width 256 --layers 2 --heads 2 --topology h200:8",
    "ablation PAIRS TOKENIZER --model tiny --rows 0:100 --batch 2 --batches 1 --rounds 1",
    "packing PAIRS TOKENIZER --rows 0:200 --batch 8",
    "vs_trl --help",
    "loading --help",
    "fits --help",
    "plans --help",
    "bound --model tiny --batch 4 --rounds 1 --product 64 --remat none",
)
# Who compiles for devices that are not there, and how a machine comes by it.
COMPILERS = {
    "v5e": (pathlib.Path(os.environ.get("TPU_LIBRARY_PATH", "")).is_file, "`make check` installs libtpu"),
    "h200": (partial(importlib.util.find_spec, "jax_cuda13_plugin"), "pip install 'jax[cuda13]'"),
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_benchmark_runs(line, request, tmp_path):
    name, *command = line.split()
    for kind, (there, how) in COMPILERS.items():
        if kind in line and not there():
            pytest.skip(f"nothing here compiles for {kind}: {how}")
    if "PAIRS" in command:
        shared = request.getfixturevalue("shared_data")
        places = {
            "PAIRS": shared / "hh" / "helpful-base.test.jsonl.gz",
            "TOKENIZER": shared / "tokenizers" / "neox-20b",
        }
        command = [str(places.get(word, word)) for word in command]
    if name == "gpu":
        command += ["--out", str(tmp_path)]
    script = [sys.executable, str(REPOSITORY / "benchmarks" / f"{name}.py"), *command]
    environment = os.environ | {"XLA_FLAGS": hurry.FLAGS, "JAX_NUMPY_RANK_PROMOTION": "allow"}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    if command != ["--help"]:
        assert "|" in done.stdout or "TFLOP" in done.stdout
