"""slpojax and TRL in turn on the same pairs: pairs a second, peak memory, and the losses of both, which must agree.

    python benchmarks/vs_trl.py PAIRS.jsonl.gz TOKENIZER_FOLDER [--rounds 3] [--steps 5] [--batch 16]
    python benchmarks/vs_trl.py PAIRS TOKENIZER --adapters 16
    python benchmarks/vs_trl.py PAIRS TOKENIZER --device gpu --dtype bfloat16 --model pythia-1b \
        --sides "slpojax,TRL best,TRL cached,TRL defaults" --config.model.attention=cudnn --config.model.remat=layer

One process tree; every run is a process of its own, and the sides take turns within every round. All start from one
model folder drawn by torch, read the same HH pairs in the same batches (those that fit into 512 tokens whole, so that
no cut differs), and train with DPO and AdamW.

The order of the pairs is that of slpojax's balanced batches, its default, in which batches trade examples until they
are equal in tokens. It is written into the file that both sides read from top to bottom, so that every batch holds the
same pairs on both. TRL pads to the longest of a batch, which trading neither lengthens nor shortens on average; the
share of its cells that hold a token is printed for the order that was taken and for the others, grouped by length among
them, which TRL would fill better and which trains on other batches. `--order source` takes the pairs as they come, the
worst for packed rows.

`--adapters RANK` trains LoRA adapters of all linear maps of the layers instead, TRL's with peft: both start from one
folder that peft wrote, and the reference is the model without them.

TRL's "defaults" keep the reference model and recompute activations. Its "best" caches the reference's log-probs and
does not recompute; "cached" does both, for models whose activations do not fit otherwise. The fused head, which meets
the vocabulary in tiles and at response tokens alone, is TRL 1.16's only one: every side has it. Its padding-free mode
is switched off in that release.

The rate is that of the steps but for the first, which compiles or warms up. "Whole run" is the wall time of the process
from its start to its end: imports, loading, the pass that caches the reference, compilation and all steps. Peak memory
is that of the process (the parent imports nothing large, as a child starts from its parent's mark), on a GPU what the
framework's allocator says. Neither side keeps checkpoints. Nothing in the environment that speaks to JAX or XLA gets
through. `--config.KEY=VALUE` goes to slpojax. The exit status is 1 if a side fails or a loss differs by more than
--tolerance. Needs the parity extra (`make check` installs it).
"""

import argparse
import itertools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from common import MODELS, ROOT, header, spread, verdict

LENGTH, LEARNING_RATE, BETA = 512, 1e-4, 0.1
SIDES = {
    "slpojax": None,
    "TRL best": {"precompute_ref_log_probs": True, "gradient_checkpointing": False},
    "TRL cached": {"precompute_ref_log_probs": True},
    "TRL defaults": {},
}
# What the first side has to reach against each: times the pairs a second, share of the peak memory.
BARS = {("cpu", "TRL defaults"): (15, 0.4), ("cpu", "TRL best"): (11, 0.4)}
BARS |= {("gpu", "TRL defaults"): (4, None), ("gpu", "TRL best"): (2.5, None)}
FOREIGN = ("XLA_", "JAX_", "LIBTPU_", "TF_", "PYTORCH_", "HF_", "PYTHONPATH")


def main() -> None:
    """Run every side in turn and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", type=pathlib.Path)
    parser.add_argument("tokenizer", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--order", choices=("balanced", "source"), default="balanced")
    parser.add_argument("--model", choices=tuple(MODELS), default="small")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--adapters", type=int, default=0, help="their rank; 0 trains all weights")
    parser.add_argument("--sides", default="slpojax,TRL best,TRL defaults")
    parser.add_argument("--tolerance", type=float, help="of a loss; 1e-4 in float32, 2e-2 in bfloat16")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "output" / "vs_trl")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args()
    if unknown := [x for x in overrides if not x.startswith("--config.")]:
        parser.error(f"{' '.join(unknown)}: expected an option above, or --config.KEY=VALUE")
    if unknown := [side for side in args.sides.split(",") if side not in SIDES]:
        parser.error(f"--sides: {', '.join(unknown)}; there are {', '.join(SIDES)}")
    if args.steps < 2 or args.rounds < 1:
        parser.error("--steps is at least 2, as the first step is not timed, and --rounds at least 1")
    for name in ("pairs", "tokenizer", "out"):
        setattr(args, name, getattr(args, name).absolute())
    if args.child:
        {"prepare": prepare, "slpojax": slpojax}.get(args.child, trl)(args, overrides)
        return
    tolerance = args.tolerance or {"float32": 1e-4, "bfloat16": 2e-2}[args.dtype]
    print(header(args, "torch", "transformers", "trl", device=args.device), flush=True)
    shutil.rmtree(args.out, ignore_errors=True)
    prepared = child("prepare", args, overrides, args.out / "prepare")
    if prepared is None:
        sys.exit(f"no pairs: see {args.out / 'prepare' / 'log'}")
    print(prepared["summary"], flush=True)
    sides = args.sides.split(",")
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for n, side in itertools.product(range(args.rounds), sides):
        measured = child(side, args, overrides, args.out / f"{side.replace(' ', '_')}_{n}")
        if measured:
            runs[side].append(measured)
            print(f"round {n + 1}, {side}: {show(measured, args.batch)}", flush=True)
    failed = [side for side in sides if len(runs[side]) < args.rounds]
    agree = table({side: many for side, many in runs.items() if many}, args, tolerance)
    if failed:
        print(f"failed: {', '.join(failed)}")
    sys.exit(1 if failed or not agree else 0)


def child(name: str, args: argparse.Namespace, overrides: Sequence[str], folder: pathlib.Path) -> dict | None:
    """Run one side in a process of its own; return what it wrote, its whole time and its peak memory in bytes."""
    folder.mkdir(parents=True)
    command = [sys.executable, os.path.abspath(__file__), str(args.pairs), str(args.tokenizer)]
    command += ["--child", name, "--folder", str(folder), "--out", str(args.out)]
    for option in ("steps", "batch", "order", "model", "device", "dtype", "adapters"):
        command += [f"--{option}", str(getattr(args, option))]
    env = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}
    begun = time.perf_counter()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([*command, *overrides], stdout=log, stderr=subprocess.STDOUT, env=env)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    if status:
        print(f"{name} failed, see {folder / 'log'}:\n" + (folder / "log").read_text()[-1500:], flush=True)
        return None
    measured = json.loads((folder / "result.json").read_text())
    return {"whole": seconds, "peak": usage.ru_maxrss * 1024} | measured


def prepare(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Write the model folder and the pairs, in the order of the batches, that both sides read."""
    import numpy as np
    import torch
    import transformers

    from slpojax import data
    from slpojax.data import formats, sources

    folder = args.out / "model"
    torch.manual_seed(0)
    shape = MODELS[args.model] | {"bos_token_id": 0, "eos_token_id": 0, "attention_dropout": 0.0, "hidden_dropout": 0.0}
    model = transformers.AutoModelForCausalLM.from_config(transformers.GPTNeoXConfig(**shape))
    model.save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(args.tokenizer / "tokenizer.json"), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    if args.adapters:
        import peft

        wanted = peft.LoraConfig(
            target_modules="all-linear", r=args.adapters, lora_alpha=2 * args.adapters, task_type="CAUSAL_LM"
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)  # whose folder the adapter's then names
        peft.get_peft_model(model, wanted).save_pretrained(args.out / "adapter")
        tokenizer.save_pretrained(args.out / "adapter")
    chosen = data.settings({"format": "hh", "max_length": LENGTH, "too_long": "drop"})
    examples, _ = data.load(data.Source(str(args.pairs)), chosen, tokenizer=data.load_tokenizer(str(folder)))
    records = sources.read(str(args.pairs)).records
    fits = []
    for i, row in enumerate(examples.row.tolist()):
        parsed = formats.hh(records[row])
        if all(text.strip() for text in parsed.responses):
            fits.append((i, dict(zip(("prompt", "chosen", "rejected"), (parsed.prompt, *parsed.responses)))))
    count = args.steps * args.batch
    if len(fits) < count:
        sys.exit(f"{args.pairs} has {len(fits)} pairs that fit into {LENGTH} tokens; {count} were asked for")
    fits = fits[:count]
    examples = examples.take([i for i, _ in fits])

    def batches(kind: str) -> np.ndarray:
        return np.stack(data.order(examples.lengths, args.batch, seed=0, steps=args.steps, kind=kind))

    def filled(order: np.ndarray) -> str:
        """The share of TRL's cells that hold a token: a row for every response, as long as the batch's longest."""
        length = (examples.lengths.prompt[:, None] + examples.lengths.response)[order]
        return f"{length.sum() / (length.max(axis=(1, 2)).sum() * 2 * args.batch):.1%}"

    taken = batches(args.order)
    grouped = np.argsort((examples.lengths.prompt[:, None] + examples.lengths.response).max(axis=1), kind="stable")
    orders = {kind: batches(kind) for kind in ("balanced", "source", "shuffled")}
    orders["grouped by length"] = grouped.reshape(args.steps, args.batch)
    shapes = data.plan(examples, taken, row_length=0)
    size = examples.lengths.prompt.sum() + examples.lengths.response.sum()
    (args.out / "pairs.jsonl").write_text("".join(json.dumps(fits[i][1]) + "\n" for i in taken.reshape(-1).tolist()))
    summary = (
        f"{count} pairs, {size / count:.0f} tokens each with the prompt once; {args.order} batches fill "
        f"{size / (args.steps * shapes.rows * shapes.length):.1%} of slpojax's {shapes.rows} x {shapes.length} cells; "
        f"of TRL's: {', '.join(f'{filled(order)} {kind}' for kind, order in orders.items())}"
    )
    (args.folder / "result.json").write_text(json.dumps({"summary": summary}))


def slpojax(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Train with slpojax and write what it took."""
    settings = {
        "output": args.folder,
        "model.path": args.out / "model",
        "model.dtype": args.dtype,
        "model.remat": "none",
        "data.path": args.out / "pairs.jsonl",
        "data.eval_split": "",
        "data.format": "pairs",
        "data.order": "source",  # that of the file, which is that of the batches
        "data.row_length": 0,
        "data.max_length": LENGTH,
        "objective.beta": BETA,
        "optimizer.name": "adamw",
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0,
        "clip_norm": 1.0,
        "batch_size": args.batch,
        "accumulate": 1,
        "steps": args.steps,
        "eval_every": 0,
        "checkpoint_every": -1,
        "export": False,
        "mesh.fsdp": 1,
        "mesh.data": 1,
    }
    if args.adapters:
        settings |= {"model.path": args.out / "adapter", "train.what": "lora"}
        settings |= {"lora.rank": args.adapters, "lora.alpha": 2.0 * args.adapters}
    config = [f"--config={ROOT / 'configs' / 'dpo_hh.py'}", *(f"--config.{key}={x}" for key, x in settings.items())]
    sys.argv = ["slpojax.train", *config, *overrides]
    import jax

    from slpojax import metrics, train

    train.main()
    rows = metrics.read_jsonl(args.folder / "metrics.jsonl", "train")
    measured = {"seconds": [row["step_seconds"] for row in rows[1:]], "losses": [row["loss"] for row in rows]}
    if args.device == "gpu":
        measured["peak"] = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    (args.folder / "result.json").write_text(json.dumps(measured))


def trl(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Train with TRL and write what it took."""
    import torch
    import transformers
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def now() -> float:
        if args.device == "gpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    class Clock(transformers.TrainerCallback):
        """Wall time of every optimiser step, from its beginning to the beginning of the next, and its loss."""

        def __init__(self) -> None:
            self.at: list[float] = []

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.at.append(now())

        def on_train_end(self, *_: object, **__: object) -> None:
            self.at.append(now())

    config = DPOConfig(
        str(args.folder),
        beta=BETA,
        max_length=LENGTH,
        per_device_train_batch_size=args.batch,
        max_steps=args.steps,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        use_cpu=args.device == "cpu",
        bf16=args.dtype == "bfloat16",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **SIDES[args.child],
    )
    folder, clock = args.out / "model", Clock()
    rows = [json.loads(line) for line in (args.out / "pairs.jsonl").read_text().splitlines()]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if args.adapters:
        import peft

        model = peft.PeftModel.from_pretrained(model, args.out / "adapter", is_trainable=True)
    trainer = DPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        callbacks=[clock],
    )
    trainer.train()
    measured = {"seconds": [b - a for a, b in itertools.pairwise(clock.at)][1:]}
    measured["losses"] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if args.device == "gpu":
        measured["peak"] = torch.cuda.max_memory_allocated()
    (args.folder / "result.json").write_text(json.dumps(measured))


def show(measured: dict, batch: int) -> str:
    """One run in a line."""
    losses = " ".join(f"{loss:.5f}" for loss in measured["losses"])
    rate, peak = batch / statistics.median(measured["seconds"]), measured["peak"] / 2**30
    return f"{rate:.2f} pairs/s, {peak:.2f} GiB, {measured['whole']:.0f} s in all, losses {losses}"


def table(runs: dict[str, list[dict]], args: argparse.Namespace, tolerance: float) -> bool:
    """Print medians over the rounds with the smallest and the largest; return whether all losses agree."""
    rates = {side: [args.batch / statistics.median(run["seconds"]) for run in many] for side, many in runs.items()}
    rate = {side: statistics.median(many) for side, many in rates.items()}
    peaks = {side: [run["peak"] / 2**30 for run in many] for side, many in runs.items()}
    peak = {side: statistics.median(many) for side, many in peaks.items()}
    first = next(iter(runs), "")
    print(f"\n| side | pairs/s | {first} is faster by | peak, GiB | {first}'s share | whole run, s | loss apart |")
    print("|---|---|---|---|---|---|---|")
    agree, bars, marks = True, [], {} if args.adapters else BARS
    for side, many in runs.items():
        apart = max(
            abs(a - b)
            for ours, theirs in itertools.product(runs[first], many)
            for a, b in zip(ours["losses"], theirs["losses"], strict=True)
        )
        agree = agree and apart <= tolerance
        faster, share = rate[first] / rate[side], peak[first] / peak[side]
        print(
            f"| {side} | {spread(rates[side])} | {faster:.1f}x | {spread(peaks[side])} | {share:.0%} | "
            f"{spread((run['whole'] for run in many), 0)} | {apart:.1e} |"
        )
        for bar, got, met in zip(marks.get((args.device, side), ()), (faster, share), (faster.__ge__, share.__le__)):
            if bar is not None and side != first:
                what = f"{got:.1f}x, at least {bar}x" if got is faster else f"{got:.0%} of the peak, at most {bar:.0%}"
                bars.append(f"{side}: {what}: {verdict(met(bar))}")
    print("", *bars, f"losses of all rounds within {tolerance:g}: {'yes' if agree else 'NO'}", sep="\n")
    return agree


if __name__ == "__main__":
    main()
