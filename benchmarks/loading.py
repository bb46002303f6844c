"""Reading and tokenising pairs beside TRL: the first start of a run, and the second, which finds what the first kept.

    python benchmarks/loading.py PAIRS.jsonl.gz TOKENIZER_FOLDER [--count 160000]

One process tree; every start is a process of its own, the sides in turn. HH pairs are repeated until there are
`--count` of them, each with its number at the end of its prompt, so that no two are alike, and written as prompt,
chosen and rejected into one JSON lines file that both sides read. slpojax: `data.load` with a cache. TRL:
`datasets.load_dataset` and the DPOTrainer's own preparation of it, over as many processes as there are cores, with its
caches of `datasets`; its model is a tiny one, so that nothing else counts. Seconds are those of the loading, without
imports; processor time and peak memory are those of the whole process. Needs the parity extra (`make check` installs
it).
"""

import argparse
import gzip
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

from common import MODELS, ROOT, header

LENGTH = 512
STARTS = ("slpojax, first", "TRL, first", "slpojax, second", "TRL, second")


def main() -> None:
    """Start every side twice and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", type=pathlib.Path)
    parser.add_argument("tokenizer", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=160_000)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "output" / "loading")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("pairs", "tokenizer", "out"):
        setattr(args, name, getattr(args, name).absolute())
    if args.child:
        (slpojax if args.child.startswith("slpojax") else trl)(args)
        return
    print(header(args, "torch", "transformers", "trl", "datasets"), flush=True)
    shutil.rmtree(args.out, ignore_errors=True)
    prepare(args)
    print("| start | loading, s | processor time, s | peak memory, GB | examples |\n|---|---|---|---|---|", flush=True)
    for start in STARTS:
        print(f"| {start} | {' | '.join(child(start, args))} |", flush=True)


def prepare(args: argparse.Namespace) -> None:
    """Write the pairs that both sides read, a tokenizer, and TRL's tiny model."""
    import torch
    import transformers

    from slpojax.data import formats

    args.out.mkdir(parents=True)
    with gzip.open(args.pairs, "rt") as lines:
        parsed = [formats.hh(json.loads(line)) for line in lines if line.strip()]
    pairs = [p for p in parsed if all(text.strip() for text in p.responses)]
    with open(args.out / "pairs.jsonl", "w") as f:
        for i in range(args.count):
            one = pairs[i % len(pairs)]
            prompt = one.prompt.replace("Human:", f"Human: ({i})", 1)
            f.write(json.dumps(dict(zip(("prompt", "chosen", "rejected"), (prompt, *one.responses)))) + "\n")
    shape = MODELS["tiny"] | {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(transformers.GPTNeoXConfig(**shape)).save_pretrained(
        args.out / "model"
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(args.tokenizer / "tokenizer.json"), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(args.out / "model")


def child(start: str, args: argparse.Namespace) -> tuple[str, ...]:
    """Start one side in a process of its own; return the cells of its row."""
    command = [sys.executable, os.path.abspath(__file__), str(args.pairs), str(args.tokenizer), "--child", start]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(args.out / "datasets"), "JAX_PLATFORMS": "cpu"}
    with open(args.out / f"{start.replace(', ', '_')}.log", "w") as log:
        done = subprocess.run(
            [*command, "--out", str(args.out)], stdout=subprocess.PIPE, stderr=log, env=env, check=True
        )
    made = json.loads(done.stdout.splitlines()[-1])
    return f"{made['seconds']:.1f}", f"{made['cpu']:.0f}", f"{made['peak'] / 1e9:.2f}", f"{made['examples']:,}"


def told(seconds: float, examples: int) -> None:
    """Print what a start took; the memory is that of the largest of its processes."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    peak = max(one.ru_maxrss for one in used) * 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "examples": examples}))


def slpojax(args: argparse.Namespace) -> None:
    """Load with slpojax."""
    from slpojax import data

    tokenizer = data.load_tokenizer(str(args.out / "model"))
    chosen = data.settings({"format": "pairs", "max_length": LENGTH, "max_prompt_length": LENGTH // 2})
    begun = time.perf_counter()
    source = data.Source(str(args.out / "pairs.jsonl"))
    examples, _ = data.load(source, chosen, tokenizer=tokenizer, cache=str(args.out / "examples"))
    told(time.perf_counter() - begun, len(examples))


def trl(args: argparse.Namespace) -> None:
    """Load with TRL."""
    import datasets
    import transformers
    from trl import DPOConfig, DPOTrainer

    model = transformers.AutoModelForCausalLM.from_pretrained(args.out / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.out / "model")
    config = DPOConfig(
        str(args.out / "trl"), max_length=LENGTH, dataset_num_proc=os.cpu_count(), use_cpu=True, report_to="none"
    )
    begun = time.perf_counter()
    pairs = datasets.load_dataset("json", data_files=str(args.out / "pairs.jsonl"), split="train")
    trainer = DPOTrainer(model=model, args=config, train_dataset=pairs, processing_class=tokenizer)
    told(time.perf_counter() - begun, len(trainer.train_dataset))


if __name__ == "__main__":
    main()
