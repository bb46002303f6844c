"""What MC-PO's step costs beside DPO's, for K candidates: a gradient through all, or all scored first.

    python benchmarks/candidates.py [--rounds 5] [--batch 16] [--candidates 2,3,4,5,6,7,8] [--model small]

A GPT-NeoX (50,304 words) drawn at random, prompts of 138 tokens and responses of 50, the means of HH, in rows of the
length that the program chooses; the reference's log-probs are columns of the batch. A step is all that a run does
between two batches, picking and packing included. Every round times each way once, in turn, in one process; the ratios
are to the DPO step of the same round on the same prompts, medians with the smallest and the largest. The rule that
chooses between the ways is `slpojax.selectors.cheaper`; the bar is 2x at K = 8 for the way that it takes.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import parts
from common import MODELS, header, in_turn, over, spread, verdict

from slpojax import bench, data, grid, selectors, training
from slpojax.base import Frozen

PROMPT, RESPONSE = 138, 50
MCPO = {"objective.name": "listwise.rnce", "selector.name": "mc_kernel"}


def main() -> None:
    """Time every way for every K and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--candidates", default="2,3,4,5,6,7,8")
    parser.add_argument("--model", choices=tuple(MODELS), default="small")
    args = parser.parse_args()
    print(header(args, device=jax.devices()[0].device_kind), flush=True)
    numbers = [int(k) for k in args.candidates.split(",")]
    runs = {("DPO", 2): stepper(args, 2, {"objective.name": "dpo.sigmoid"})}
    for way, k in itertools.product(("together", "score_first"), numbers):
        runs[way, k] = stepper(args, k, MCPO | {"selection": way})
    times = in_turn(runs, args.rounds)
    base = times["DPO", 2].wall
    ratios = {way: over(of_way.wall, base) for way, of_way in times.items()}
    print(f"DPO step: {spread(base)} s\n")
    print("| K | together | score first | counted | the rule takes |\n|---|---|---|---|---|")
    for k in numbers:
        one = 3 * (PROMPT + 2 * RESPONSE)
        all_of_them, first = 3 * (PROMPT + k * RESPONSE) / one, (PROMPT + k * RESPONSE + one) / one
        print(
            f"| {k} | {spread(ratios['together', k], unit='x')} | {spread(ratios['score_first', k], unit='x')} | "
            f"{all_of_them:.2f}x, {first:.2f}x | {selectors.cheaper(PROMPT, RESPONSE, k, 1)} |"
        )
    if 8 in numbers:
        got = statistics.median(ratios[selectors.cheaper(PROMPT, RESPONSE, 8, 1), 8])
        print(f"\nK = 8: {got:.2f}x, at most 2x: {verdict(got <= 2)}")


def stepper(args: argparse.Namespace, candidates: int, changes: dict[str, Any]) -> Callable[[], None]:
    """Return what takes the program's step on one batch, picking and packing included, and waits for it.

    Args:
        args: of the script.
        candidates: K.
        changes: keys of the configuration: the objective, and how candidates are picked.
    """
    config = parts.configure({"batch_size": args.batch, "learning_rate": 1e-5, "warmup_steps": 0, **changes})
    at, method = bench.of_model(config, MODELS[args.model], grid.one_device()), training.method(config)
    response = np.full((args.batch, candidates), RESPONSE)
    examples = parts.examples([PROMPT] * args.batch, response, MODELS[args.model]["vocab_size"])
    layout = training.layout(config, method, [examples], at.grid)
    setup, params = training.make(config, at, method, layout), bench.draw_params(at)
    part = parts.with_reference(at, layout.scan, examples, params)
    batch = next(data.batches(examples, layout.train, seed=config.seed, steps=1, kind=config.data.order, ref=part.ref))
    take = training.take(setup, at, part)
    held = [setup.first(params, None)]

    def run() -> None:
        stepped = take(held[0], Frozen(), batch)
        held[0] = stepped.state
        jax.block_until_ready(stepped.metrics)

    return run


if __name__ == "__main__":
    main()
