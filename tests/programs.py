"""Small runs of the whole program, one for every way through it: what they are, and the numbers that they write.

`python tests/programs.py > tests/goldens/programs.json`, run from the root of the repository, writes the golden numbers
that `tests/test_programs.py` holds the program against. Weights and data come from NumPy alone, so that a golden number
changes only where the program's arithmetic, or one of its streams of random keys, does.
"""

import json
import pathlib
import sys

import numpy as np
import tiny
from safetensors.numpy import load_file, save_file

RANKED = {
    "data.format": "ranked",
    "data.chat_template": "dialogue",
    "data.candidates": 4,
    "data.row_length": 64,
    "data.path": "ranked.jsonl",
}
PICKED = RANKED | {"objective.name": "listwise.rnce"}
PROGRAMS = {
    "dpo": {"objective.name": "dpo.sigmoid"},
    "dpo accumulated": {
        "objective.name": "dpo.sigmoid",
        "accumulate": 16,
        "mesh.fsdp": 4,
        "batch_size": 16,
        "epochs": 4.0,
    },
    "slpo tensor": {"objective.name": "slpo.shift", "mesh.tensor": 2, "accumulate": 4},
    "sft unpacked": {
        "objective.name": "sft.token_mean",
        "data.candidates": 1,
        "reference.mode": "none",
        "data.pack": False,
    }
    | {"data.row_length": 0},
    "online": {"objective.name": "token_level.tdpo2", "reference.mode": "online"},
    "moving": {"reference.mode": "moving", "reference.every": 2, "reference.mix": 0.5},
    "previous": {"objective.name": "games.inpo", "reference.previous": "other"},
    "mixture": {"objective.name": "0.8 * dpo.sigmoid + 0.2 * anchored.bco_pair + sft.token_mean", "accumulate": 16}
    | {"mesh.data": 2, "mesh.tensor": 2},
    "likeliest first": PICKED | {"selector.name": "likeliest", "selection": "score_first"},
    "likeliest together": PICKED | {"selector.name": "likeliest", "selection": "together", "data.order": "shuffled"},
    "kernel": PICKED
    | {"selector.name": "mc_kernel", "selector.temperature": 0.1, "selection": "together", "accumulate": 8},
    "nca": RANKED | {"objective.name": "listwise.nca", "data.ties": "keep"},
    "pairs": RANKED | {"data.pairs": "all", "data.accept": 3, "data.candidates": 4, "seed": 3},
    "kto": {"objective.name": "unpaired.kto", "data.unpair": True, "data.mismatched": True},
    "matched": {"objective.name": "unpaired.bco_unpaired", "data.unpair": True, "data.match_prompts": True},
    "prompts": {"objective.name": "reference_free.orpo_with_prompt", "reference.mode": "none"},
    "sparse": {"objective.name": "token_level.sparsepo", "reference.mode": "online"},
    "degrees": {"objective.name": "self_supervised.spo", "data.degrade": 1, "data.row_length": 64},
    "adafactor": {"optimizer.name": "adafactor", "optimizer.min_dim_size_to_factor": 4, "moments": "bfloat16"},
    "diagnosed": {"diagnostics": 4, "optimizer.name": "rmsprop", "schedule": "linear", "warmup_steps": 2},
}
# Names of what a run writes that are times or memory.
TIMES = ("_per_second", "step_seconds", "device_waited_share", "peak_bytes", "mfu")


def make(folder: pathlib.Path) -> pathlib.Path:
    """Write a tiny model with weights from NumPy, another one of its shape, and data, into a folder."""
    tiny.make(folder)
    for name, seed in (("model", 0), ("other", 1)):
        _weights(folder / "model", folder / name, np.random.default_rng(seed))
    return folder


def _weights(source: pathlib.Path, target: pathlib.Path, rng: np.random.Generator) -> None:
    d, f, v = (tiny.MODEL[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    layer = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (d, d), "self_attn.v_proj": (d, d)}
    layer |= {"self_attn.o_proj": (d, d), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    sizes = {"model.embed_tokens.weight": (v, d), "lm_head.weight": (v, d), "model.norm.weight": (d,)}
    for i in range(tiny.MODEL["num_hidden_layers"]):
        sizes |= {f"model.layers.{i}.{name}.weight": size for name, size in layer.items()}
        sizes |= {f"model.layers.{i}.{name}.weight": (d,) for name in ("input_layernorm", "post_attention_layernorm")}
    drawn = {name: rng.normal(0.0, 0.3, size).astype(np.float32) + (len(size) == 1) for name, size in sizes.items()}
    target.mkdir(exist_ok=True)
    save_file(drawn, target / "model.safetensors")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if source != target:
            (target / file).write_bytes((source / file).read_bytes())


def changes(folder: pathlib.Path, name: str) -> dict:
    """What a run of `PROGRAMS` sets."""
    values = tiny.changes(folder, name.replace(" ", "_")) | {"model.weights": "load", "steps": 4, "eval_every": 2}
    values |= {"reference.path": str(folder / "other")} if name != "diagnosed" else {}
    for key, value in PROGRAMS[name].items():
        is_path = key in ("data.path", "reference.previous")
        values[key] = str(folder / value) if is_path else value
    return values


def run(folder: pathlib.Path, name: str) -> dict:
    """Run a program of `PROGRAMS`; return every metric of every step and the norm of every exported tensor."""
    from configs import base
    from slpojax import settings, train

    values = changes(folder, name)
    train.train(settings.resolve(base.get_config(), values, choices=train.CHOICES))
    return written(pathlib.Path(values["output"]))


def written(output: pathlib.Path) -> dict:
    """Return every metric of every step that a run wrote, and the norm of every exported tensor."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    metrics = {f"{row.pop('split')} {row.pop('step')}": _numbers(row) for row in rows}
    tensors = load_file(output / "hf" / "model.safetensors")
    norms = {tensor: float(np.linalg.norm(value.astype(np.float64))) for tensor, value in tensors.items()}
    return {"metrics": metrics, "norms": norms}


def _numbers(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.endswith(TIMES)}


def main() -> None:
    """Print the golden numbers of all programs, or of those that the command line names."""
    import tempfile

    folder = make(pathlib.Path(tempfile.mkdtemp()))
    sys.stdout, out = sys.stderr, sys.stdout
    made = {name: run(folder, name) for name in sys.argv[1:] or PROGRAMS}
    print(json.dumps(made, indent=1), file=out)


if __name__ == "__main__":
    import conftest  # noqa: F401  # eight fake devices

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    main()
