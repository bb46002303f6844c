"""What MC-PO's step costs beside DPO's, for K candidates: a gradient through all, or all scored first.

    python benchmarks/candidates.py [--rounds 5] [--batch 16] [--candidates 2,3,4,5,6,7,8] [--model small]

A GPT-NeoX (50,304 words) drawn at random, prompts of 138 tokens and responses of 50, the means of HH, in rows of the
length that the program chooses; the reference's log-probs are columns of the batch. Every round times each way once, in
turn, in one process; the ratios are to the DPO step of the same round on the same prompts, medians with the smallest
and the largest. The rule that chooses between the ways is `slpojax.selectors.cheaper`; the bar is 2x at K = 8 for the
way that it takes.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
import parts
from common import MODELS, header, in_turn, over, spread, verdict
from jax.sharding import Mesh

from slpojax import data, grid, models, selectors, step
from slpojax.base import Batch, Model, Shapes, State

PROMPT, RESPONSE = 138, 50


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
    runs = {("DPO", 2): together(args, 2, objective="dpo.sigmoid", selector=None)}
    for k in numbers:
        runs["together", k] = together(args, k)
        runs["score_first", k] = score_first(args, k)
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


class Pool(NamedTuple):
    """What both ways share."""

    mesh: Mesh
    model: Model
    examples: data.Examples
    shapes: Shapes
    optimizer: optax.GradientTransformation
    state: State
    columns: list
    batch: Batch


def pool(args: argparse.Namespace, candidates: int) -> Pool:
    """Make the examples, and score them once, as the reference's cache does."""
    mesh, model, optimizer = parts.one_device(), models.build(MODELS[args.model]), optax.adamw(1e-5)
    response = np.full((args.batch, candidates), RESPONSE)
    made = parts.examples([PROMPT] * args.batch, response, MODELS[args.model]["vocab_size"])
    shapes = data.plan(made, [np.arange(args.batch)], row_length=0)
    state = parts.first_state(mesh, model, optimizer)
    batch = next(data.evaluation_batches(made, shapes))
    got = grid.gather(parts.scorer(mesh, model, shapes)(state.params, grid.put_batch(mesh, batch)))
    own = [[list(x[batch.index == b][0, :, :RESPONSE]) for x in (got.token, got.other)] for b in range(args.batch)]
    batch = next(data.evaluation_batches(made, shapes, ref=own))
    return Pool(mesh, model, made, shapes, optimizer, state, own, batch)


def together(
    args: argparse.Namespace, k: int, objective: str = "listwise.rnce", selector: str | None = "mc_kernel"
) -> Callable:
    """A gradient through all candidates."""
    p = pool(args, k)
    chosen = selectors.build(selector, beta=0.1) if selector else None
    one = parts.train_step(p.mesh, p.model, objective, p.optimizer, p.shapes, p.state, selector=chosen)
    return parts.repeated(one, [p.state], [grid.put_batch(p.mesh, p.batch)])


def score_first(args: argparse.Namespace, k: int) -> Callable:
    """All scored, the picked packed anew on the host and trained on."""
    p = pool(args, k)
    picked = data.plan(p.examples, [np.arange(args.batch)], row_length=0, picks=1)
    whole, everywhere = grid.put_batch(p.mesh, p.batch), grid.replicated(p.mesh)
    selector = selectors.build("mc_kernel", beta=0.1)
    picks = step.make_picks(p.model, selector, p.shapes, batch_devices=1, everywhere=everywhere)
    one = parts.train_step(p.mesh, p.model, "listwise.rnce", p.optimizer, picked, p.state)
    held = [p.state]

    def run() -> None:
        chosen = grid.gather(picks(held[0], None, whole)[0])
        narrow = data.make_picked(p.examples, picked, p.batch.index, chosen, p.columns)
        held[0], metrics = one(held[0], None, grid.put_batch(p.mesh, narrow))
        jax.block_until_ready(metrics)

    return run


if __name__ == "__main__":
    main()
