"""Sampling beside `transformers.generate`: useful tokens a second of the same model on the same prompts.

    python benchmarks/sampling.py [--prompts 32] [--samples 4] [--new 64] [--slots 64] [--rounds 5] [--sides slpojax]
    python benchmarks/sampling.py --vllm FOLDER/bin/vllm    # where an environment of its own holds vLLM

A random Llama of 30M parameters with 50,304 words answers prompts of 32 to 64 tokens. Two in a hundred words end an
answer, so that answers are 36 tokens long on average where 64 are the most. Useful are the tokens up to the end of an
answer, that included. In every round every side answers all prompts at temperature 1, then with top-p 0.95, in turn,
after a round that is not timed; transformers takes all answers as one batch, as `num_return_sequences` does. The bars:
at least twice as many useful tokens a second as transformers, of the clock. Needs torch, but for `--sides slpojax`.

With `--vllm`, vLLM serves the same folder on loopback, and is asked for ids and log-probs by the client of
`generate.engine`; all prompts are under way at once, and processor time is that of the client alone. The bar there: no
fewer tokens a second than vLLM.
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from common import header, in_turn, over, spread, verdict

from slpojax import engines, hf, models, servers
from slpojax.draws import Draw
from slpojax.sampling import generate

DRAWS = {"temperature 1": Draw(), "top-p 0.95": Draw(top_p=0.95)}
BARS = {"transformers": 2.0, "vLLM": 1.0}
Side = Callable[[], int]  # answers all prompts and returns how many useful tokens there are


def config(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": args.vocabulary,
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": args.width * 43 // 16,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def ours(model: Any, params: Any, prompts: list[np.ndarray], eos: list[int], draw: Draw, args: Any) -> Side:
    calls = iter(range(10**6))
    options = {"max_new_tokens": args.new, "eos": eos, "samples": args.samples, "draw": draw, "slots": args.slots}

    def run() -> int:
        found = generate(model, params, prompts, key=jax.random.key(next(calls)), **options)
        return sum(len(response.token) for of_prompt in found for response in of_prompt)

    return run


def theirs(folder: str, prompts: list[np.ndarray], eos: list[int], draw: Draw, args: Any) -> Side:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    width = max(map(len, prompts))
    token, mask = np.zeros((2, len(prompts), width), np.int64)
    for row, seen, prompt in zip(token, mask, prompts):
        row[width - len(prompt) :], seen[width - len(prompt) :] = prompt, 1
    options = {
        "max_new_tokens": args.new,
        "do_sample": True,
        "num_return_sequences": args.samples,
        "eos_token_id": eos,
        "pad_token_id": 0,
        "temperature": draw.temperature,
        "top_k": 0,
        "top_p": draw.top_p,
    }

    def run() -> int:
        with torch.inference_mode():
            out = model.generate(torch.from_numpy(token), attention_mask=torch.from_numpy(mask), **options)
        ends = np.isin(out[:, width:].numpy(), eos)
        return int(np.where(ends.any(1), ends.argmax(1) + 1, ends.shape[1]).sum())

    return run


@contextlib.contextmanager
def vllm(program: str, folder: str, eos: list[int], most: int) -> Iterator[str]:
    """Serve a folder by vLLM for as long as the context lasts; the value is its URL."""
    (pathlib.Path(folder) / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", pathlib.Path(folder) / "vllm.log"
    command = [program, "serve", folder, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "512", "--enforce-eager", "--max-num-seqs", str(most), "--skip-tokenizer-init"]
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    settings |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    with log.open("w") as said:
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **settings})
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            if server.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {server.returncode}:\n{log.read_text()[-3000:]}")
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait()


def served(url: str, prompts: list[np.ndarray], draw: Draw, args: Any) -> Side:
    server = servers.connect(url, in_flight=len(prompts))
    asked = engines.Asked((draw.temperature,) * args.samples, 0, draw.top_p, 0.0, args.new, ())
    engine = engines.connect(
        server, model="", vocabulary=args.vocabulary, prompt=prompts[0], as_text=lambda _: "", asked=asked
    )

    def run() -> int:
        return sum(len(one.ids) for found in engines.answers(engine, enumerate(prompts), asked) for one in found)

    return run


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new", type=int, default=64, help="the most tokens of an answer")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=("slpojax", "transformers"), default=("slpojax", "transformers"))
    parser.add_argument("--vllm", default="", help="the program vllm of another environment; it serves, and is asked")
    args = parser.parse_args()

    print(header(args, *(["torch", "transformers"] if "transformers" in args.sides else [])), flush=True)
    rng = np.random.default_rng(0)
    lengths = rng.integers(32, 65, args.prompts)
    eos = [*range(args.vocabulary // 50)]
    prompts = [rng.integers(len(eos), args.vocabulary, n).astype(np.int32) for n in lengths]
    model = models.build(config(args))
    params = jax.device_put(jax.jit(model.init)(jax.random.key(0)))
    print(f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.1f}M parameters", flush=True)
    runs: dict[tuple[str, str], Side] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        hf.save(folder, params, model, config(args))
        url = stack.enter_context(vllm(args.vllm, folder, eos, args.prompts * args.samples)) if args.vllm else ""
        for name, draw in DRAWS.items():
            if "slpojax" in args.sides:
                runs[name, "slpojax"] = ours(model, params, prompts, eos, draw, args)
            if "transformers" in args.sides:
                runs[name, "transformers"] = theirs(folder, prompts, eos, draw, args)
            if url:
                runs[name, "vLLM"] = served(url, prompts, draw, args)
        tokens: dict[Any, list[int]] = {key: [] for key in runs}

        def counted(key: Any, run: Side) -> Callable[[], None]:
            return lambda: tokens[key].append(run())

        times = in_turn({key: counted(key, run) for key, run in runs.items()}, args.rounds)
    print("| draw | side | useful tokens | s | useful tokens/s | of processor time |")
    print("|---|---|---|---|---|---|")
    rates = {}
    for key, (wall, cpu) in times.items():
        rates[key] = [over(tokens[key][1:], seconds) for seconds in (wall, cpu)]
        cells = spread(tokens[key][1:], 0), spread(wall), spread(rates[key][0], 0), spread(rates[key][1], 0)
        print("|", " | ".join([*key, *cells]), "|", flush=True)
    for name, side in [key for key in rates if key[1] != "slpojax" and "slpojax" in args.sides]:
        ratios, bar = [over(*x) for x in zip(rates[name, "slpojax"], rates[name, side])], BARS[side]
        met = verdict(statistics.median(ratios[0]) >= bar)
        processor = f", {spread(ratios[1], unit='x')} of processor time" * (side == "transformers")
        print(f"{name}: {spread(ratios[0], unit='x')} of {side}{processor}; at least {bar:.0f}x: {met}")


if __name__ == "__main__":
    main()
