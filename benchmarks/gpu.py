"""A DPO step of Pythia-2.8B's shapes on one GPU, against what the machine's own matrix product reaches.

    python benchmarks/gpu.py [--model pythia-2.8b] [--lengths 1024 2048] [--tokens 16384] [--rounds 5] [--out FOLDER]

Needs no tokenizer, no data set and no checkpoint. Full fine-tuning from random weights as in `configs/dpo_hh.py`:
float32 master weights, computation in bfloat16, its optimiser, packed rows of dialogues of HH's lengths, the
reference's log-probs cached. It prints
    the rate of a large bfloat16 matrix product and of the model's own largest one, which bound everything after;
    how far bfloat16 log-probs lie from float32 ones, and losses on the GPU from those on the processor, on a small
    model: before any speed, the numbers;
    for every row length tokens/s (computed ones, padding left out), MFU by `slpojax.flops` (recomputation not counted)
    of the data sheet's peak and of the product's rate, the latter also with the recomputed layers and the head's second
    pass over the vocabulary counted, which is what the kernels reach; the time of a forward pass alone; peak memory.
and writes a trace of one step for XProf to the folder. The bar is an MFU of 60% of the product's rate.
"""

import argparse
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parts
from common import MODELS, ROOT, header, in_turn, spread, verdict

from slpojax import bench, flops, grid, models
from slpojax.base import Batch, Frozen, Shapes, State

BAR = 0.6


def main() -> None:
    """Print what the machine can do, whether the numbers hold, and what a step reaches."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="pythia-2.8b")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--tokens", type=int, default=16384, help="cells of a step's rows")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--attention", choices=tuple(models.ATTENTIONS), default="cudnn")
    parser.add_argument("--remat", default="layer")
    parser.add_argument("--optimizer", default="rmsprop")
    parser.add_argument("--product", type=int, default=8192, help="side of the large matrix product")
    parser.add_argument("--check", choices=tuple(MODELS), default="small", help="model of the comparisons of numbers")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "output" / "gpu")
    args = parser.parse_args()
    print(header(args, device=jax.devices()[0].device_kind), flush=True)
    rate = products(args)
    numbers(args)
    measure(args, rate)


def products(args: argparse.Namespace) -> float:
    """Print the rates of bfloat16 products; return the best median in operations a second."""
    width, rates = MODELS[args.model]["hidden_size"], {}
    for m, k, n in ((args.product,) * 3, (args.tokens, width, 4 * width)):
        a, b = jnp.ones((m, k), jnp.bfloat16), jnp.ones((k, n), jnp.bfloat16)
        one, many = jax.jit(jnp.dot), 16

        def run(a: jax.Array = a, b: jax.Array = b, one: object = one, many: int = many) -> None:
            for _ in range(many):  # dispatched ahead: the device never waits for the host
                out = one(a, b)
            out.block_until_ready()

        taken = in_turn({"product": run}, args.rounds)["product"].wall
        rates[m, k, n] = [2 * m * k * n * many / seconds for seconds in taken]
        print(f"bfloat16 product {m} x {k} x {n}: {spread((r / 1e12 for r in rates[m, k, n]), 1)} TFLOP/s", flush=True)
    return max(statistics.median(r) for r in rates.values())


def numbers(args: argparse.Namespace) -> None:
    """Compare log-probs of both dtypes, and losses of the device with the processor's."""
    hf_config = MODELS[args.check]
    shapes, batch = parts.full_rows(2, 1024, hf_config["vocab_size"])
    adamw = {"optimizer.name": "adamw", "learning_rate": 1e-4, "warmup_steps": 0}
    at, _ = parts.setup(parts.configure(adamw), hf_config, shapes)
    first, reference = grid.gather((bench.draw_params(at), parts.other_params(at)))

    def score(dtype: str, attention: str) -> np.ndarray:
        config = parts.configure({"model.dtype": dtype, "model.attention": attention})
        at = bench.of_model(config, hf_config, grid.one_device())
        params = jax.device_put(first, at.grid.everywhere)
        return np.asarray(parts.scorer(at, shapes)(params, grid.put_batch(at.grid, batch)).token)

    def losses(device: jax.Device) -> np.ndarray:
        at, steps = parts.setup(parts.configure(adamw), hf_config, shapes, grid.one_device(device))
        params, frozen = jax.device_put((first, Frozen(reference=reference)), at.grid.everywhere)
        run = parts.repeated(steps, [steps.first(params, None)], [grid.put_batch(at.grid, batch)], frozen)
        return np.array([float(run()["loss"]) for _ in range(3)])

    with jax.default_matmul_precision("float32"):
        exact = score("float32", "tiles")
        device, processor = losses(jax.devices()[0]), losses(jax.devices("cpu")[0])
    rounded, there = score("bfloat16", args.attention if args.dtype == "bfloat16" else "tiles"), exact != 0
    token, total = np.abs(rounded - exact)[there], np.abs((rounded - exact).sum(axis=-1))
    print(
        f"bfloat16 against float32 log-probs, {args.check}: a token {token.mean():.1e} nats in the mean, "
        f"{token.max():.1e} at most; a response {total.mean():.1e}, {total.max():.1e}"
    )
    apart = np.abs(device / processor - 1).max()
    print(f"losses here {device} and on the processor {processor}: {apart:.1e} apart (relative)", flush=True)


def measure(args: argparse.Namespace, rate: float) -> None:
    """Time a step for every row length and print the table."""
    device = jax.local_devices()[0]
    hf_config, computed = MODELS[args.model], {name: getattr(args, name) for name in ("dtype", "remat", "attention")}
    changes = {f"model.{name}": value for name, value in computed.items()} | {"optimizer.name": args.optimizer}
    config, held = parts.configure(changes, of="dpo_hh"), list[State]()
    peak = flops.peak(device.device_kind, 1)
    print("\n| rows | filled | s a step | tokens/s | pairs/s | MFU of the peak | of the product | with recomputation |")
    print("|---|---|---|---|---|---|---|---|")
    for length in args.lengths:
        shapes, batch = parts.full_rows(args.tokens // length, length, hf_config["vocab_size"], args.accumulate)
        at, steps = parts.setup(config, hf_config, shapes)
        if not held:
            held.append(steps.first(bench.draw_params(at), None))
        weights = flops.weights(held[0].params, jax.eval_shape(at.model.unembed, held[0].params))
        forward, placed = parts.scorer(at, shapes), grid.put_batch(at.grid, batch)
        placed = placed._replace(ref=forward(held[0].params, placed))
        begun = time.perf_counter()
        run = parts.repeated(steps, held, [placed], Frozen())
        run()
        compiling = time.perf_counter() - begun
        times = in_turn({"step": run}, args.rounds)["step"].wall
        memory = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)

        def ahead(forward: Any = forward, placed: Batch = placed) -> None:
            jax.block_until_ready(forward(held[0].params, placed))

        alone = in_turn({"forward": ahead}, args.rounds)["forward"].wall
        print(row(args, shapes, batch, times, weights, peak, rate))
        print(
            f"<!-- {length}: {compiling:.0f} s to compile, forward alone {spread(alone, 3)} s, peak "
            f"memory {memory / 2**30:.1f} GiB -->",
            flush=True,
        )
        with jax.profiler.trace(str(args.out / f"profile_{length}")):
            run()
    print(f"\ntraces for XProf in {args.out}")


def row(
    args: argparse.Namespace,
    shapes: Shapes,
    batch: Batch,
    times: list[float],
    weights: tuple[int, int],
    peak: float | None,
    rate: float,
) -> str:
    """Return a line of the table."""
    seconds, (body, head) = statistics.median(times), weights
    tokens, scored = int(np.count_nonzero(batch.rows.example)), int(batch.length.sum())
    useful = flops.of_step(body, head, (flops.TRAIN, {"tokens": tokens, "scored": scored}))
    again = {"layer": 8, "offload": 8}.get(args.remat, 6) / 6  # a body's weights once more in the backward pass
    done = useful + (again - 1) * 6 * body * tokens + 2 * head * scored
    of_rate = useful / seconds / rate
    return (
        f"| {shapes.rows} x {shapes.length} | {tokens / shapes.rows / shapes.length:.1%} | {spread(times, 3)} | "
        f"{tokens / seconds:,.0f} | {shapes.examples / seconds:.1f} | "
        f"{f'{useful / seconds / peak:.1%}' if peak else '-'} | {of_rate:.1%}, "
        f"{verdict(of_rate >= BAR)} | {done / seconds / rate:.1%} |"
    )


if __name__ == "__main__":
    main()
