"""A DPO step of Pythia-2.8B's shapes on one GPU, against what the machine's own matrix product reaches.

    python benchmarks/gpu.py [--model pythia-2.8b] [--lengths 1024 2048] [--tokens 16384] [--rounds 5] [--out FOLDER]

Needs jax, flax, optax and numpy alone: no tokenizer, no data set, no checkpoint. Full fine-tuning from random weights:
float32 master weights, computation in bfloat16, the optimiser of `configs/dpo_hh.py`, packed rows of dialogues of HH's
lengths, the reference's log-probs cached. It prints
    the rate of a large bfloat16 matrix product and of the model's own largest one, which bound everything after;
    how far bfloat16 log-probs lie from float32 ones, and losses on the GPU from those on the processor, on a small
    model: before any speed, the numbers;
    for every row length tokens/s (computed ones, padding left out), MFU by `slpojax.flops` (recomputation not counted)
    of the data sheet's peak and of the product's rate, the latter also with the recomputed layers and the head's second
    look at the vocabulary counted, which is what the kernels reach; the time of a forward pass alone; peak memory.
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
import optax
import parts
from common import MODELS, ROOT, header, in_turn, spread, verdict

from slpojax import flops, grid, models, optim
from slpojax.base import Batch, Shapes

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
    steps(args, rate)


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
    vocabulary = MODELS[args.check]["vocab_size"]
    shapes, batch = parts.full_rows(2, 1024, vocabulary)
    optimizer = optax.adamw(1e-4)

    def score(dtype: str, attention: str) -> np.ndarray:
        mesh, model = parts.one_device(), models.build(MODELS[args.check], dtype=dtype, attention=attention)
        params = jax.jit(model.init)(jax.random.key(0))
        return np.asarray(parts.scorer(mesh, model, shapes)(params, grid.put_batch(mesh, batch)).token)

    def losses(device: jax.Device) -> np.ndarray:
        mesh, model = parts.one_device(device), models.build(MODELS[args.check])
        held = [parts.first_state(mesh, model, optimizer)]
        one = parts.train_step(mesh, model, "dpo.sigmoid", optimizer, shapes, held[0])
        ref_params = jax.device_put(jax.jit(model.init)(jax.random.key(1)), grid.replicated(mesh))
        run = parts.repeated(one, held, [grid.put_batch(mesh, batch)], ref_params)
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


def steps(args: argparse.Namespace, rate: float) -> None:
    """Time a step for every row length and print the table."""
    device = jax.local_devices()[0]
    mesh, config = parts.one_device(), MODELS[args.model]
    model = models.build(config, dtype=args.dtype, remat=args.remat, attention=args.attention)
    settings = {"learning_rate": 1e-6, "schedule": "constant", "warmup_steps": 150, "clip_norm": 10.0}
    optimizer = optim.build(args.optimizer, total_steps=1000, **settings)
    held = [parts.first_state(mesh, model, optimizer)]
    body, head = flops.weights(held[0].params, jax.eval_shape(model.unembed, held[0].params))
    peak = flops.peak(device.device_kind, 1)
    print("\n| rows | filled | s a step | tokens/s | pairs/s | MFU of the peak | of the product | with recomputation |")
    print("|---|---|---|---|---|---|---|---|")
    for length in args.lengths:
        shapes, batch = parts.full_rows(args.tokens // length, length, config["vocab_size"], args.accumulate)
        placed = grid.put_batch(mesh, batch)
        forward = parts.scorer(mesh, model, shapes)
        placed = placed._replace(ref=forward(held[0].params, placed))
        one = parts.train_step(mesh, model, "dpo.sigmoid", optimizer, shapes, held[0], accumulate=args.accumulate)
        begun = time.perf_counter()
        run = parts.repeated(one, held, [placed])
        run()
        compiling = time.perf_counter() - begun
        times = in_turn({"step": run}, args.rounds)["step"].wall
        memory = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)

        def ahead(forward: Any = forward, placed: Batch = placed) -> None:
            jax.block_until_ready(forward(held[0].params, placed))

        alone = in_turn({"forward": ahead}, args.rounds)["forward"].wall
        print(row(args, shapes, batch, times, (body, head), peak, rate))
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
