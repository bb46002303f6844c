"""The bound on a step, as `python -m slpojax.plan` has it, against a step that runs: on this machine's processor.

    python benchmarks/bound.py [--model small] [--batch 16] [--rounds 5] [--product 2048] [--remat none layer]

The rates that a data sheet would give are measured first: a large float32 matrix product, and a copy of an array that
no cache holds. Then DPO's step of `configs/dpo_hh.py` in float32 on pairs of HH's lengths: what a plan counts of it
(operations of the padded rows, weights and state moved), the bound that follows, and the time that it takes. Their
ratio is what the bound leaves out: attention, norms, activations that are written and read, and products too small for
the full rate. It says nothing of other devices than that the counts are those of a step. All times are of the
processor, over its cores, so that other work on the machine does not count.
"""

import argparse
import statistics

import jax
import jax.numpy as jnp
import parts
from common import MODELS, header, in_turn, spread

from slpojax import bench, data, grid
from slpojax.base import Frozen
from slpojax.plan import programs
from slpojax.roofline import Bound


def main() -> None:
    """Print the two rates and one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--product", type=int, default=2048, help="side of the matrix product")
    parser.add_argument("--remat", nargs="+", default=["none", "layer"])
    args = parser.parse_args()
    print(header(args, device=jax.devices()[0].device_kind), flush=True)
    product, memory = rates(args)
    print("| remat | GFLOP | GB moved | products ms | memory ms | at least ms | none overlaps | took ms | of least |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for remat in args.remat:
        print(f"| {remat} | {measured(args, remat, product, memory)} |", flush=True)


def rates(args: argparse.Namespace) -> tuple[float, float]:
    """Print the rates of a product and of a copy; return the medians, in operations and bytes a second."""
    side = args.product
    a, x = jnp.ones((side, side), jnp.float32), jnp.ones(args.product * args.product * 16, jnp.float32)
    runs = {"product": parts.runner(jax.jit(jnp.dot), a, a), "copy": parts.runner(jax.jit(lambda x: x + 1), x)}
    times = in_turn(runs, args.rounds)
    product = [2 * side**3 / seconds for seconds in times["product"].cpu]
    copied = [2 * x.nbytes / seconds for seconds in times["copy"].cpu]
    print(f"float32 product of {side}: {spread((rate / 1e9 for rate in product), 0)} GFLOP a second of a core")
    print(f"copy of {x.nbytes / 1e6:.0f} MB: {spread((rate / 1e9 for rate in copied), 1)} GB a second of a core\n")
    return statistics.median(product), statistics.median(copied)


def measured(args: argparse.Namespace, remat: str, product: float, memory: float) -> str:
    """Return the cells of a line: what is counted, the bound, and the time of the step."""
    changes = {"model.dtype": "float32", "model.remat": remat, "model.attention": "tiles"}
    changes |= {"batch_size": args.batch, "accumulate": 1, "data.row_length": 0}
    config = parts.configure(changes, of="dpo_hh")
    planned = programs.prepare(config, MODELS[args.model], grid.one_device())
    setup, work, at = planned.setup, programs.work(planned), planned.bench
    shapes, first = setup.layout.train, bench.draw_params(at)
    batches = []
    for chosen in setup.layout.order[:4]:
        placed = grid.put_batch(at.grid, data.pack([planned.examples[i] for i in chosen], shapes))
        batches.append(placed._replace(ref=parts.scorer(at, shapes)(first, placed)))
    run = parts.repeated(setup, [setup.first(first, None)], batches, Frozen())
    taken = in_turn({"step": run}, args.rounds)["step"].cpu
    bound = Bound(products=work.executed / product, memory=work.moved / memory, links=0.0)
    return (
        f"{work.executed / 1e9:.0f} | {work.moved / 1e9:.2f} | {1e3 * bound.products:.0f} | {1e3 * bound.memory:.0f} | "
        f"{1e3 * bound.least:.0f} | {1e3 * bound.most:.0f} | {spread((1e3 * s for s in taken), 0)} | "
        f"{statistics.median(taken) / bound.least:.2f}x"
    )


if __name__ == "__main__":
    main()
