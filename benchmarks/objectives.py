"""What every objective costs over DPO in the whole step: one batch, one model, the objectives in turn.

    python benchmarks/objectives.py [--rounds 5] [--batch 16] [--only slpo] [--model small]

Dialogues of HH's lengths, packed, and a GPT-NeoX with HH's share of the head: 50,304 words and few layers, so that the
vocabulary takes most of the time, as it does in no large model; what an objective asks of the vocabulary (entropy,
collision, KL) weighs more here than there. The reference's log-probs are columns of the batch; the few objectives that
need the reference's weights pay for its forward pass, which "asks for" shows.

Every round takes one step of each. The ratios are to `dpo.sigmoid` of the same round, medians with the smallest and the
largest, of processor time (all threads, which other work on the machine disturbs least) and of the clock. DPO runs once
more at the end of every round, as "dpo.sigmoid again": what differs there is noise. The bar is 2% for SLPO. One
objective takes about as long to compile as ten steps; --only takes a regular expression, and DPO always runs.
"""

import argparse
import re
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parts
from common import MODELS, header, in_turn, over, spread, verdict

from slpojax import bench, data, grid, objectives, scores
from slpojax.base import Batch, Frozen, Params, Shapes, State
from slpojax.settings import Config

BASE, AGAIN, BAR = "dpo.sigmoid", "dpo.sigmoid again", 1.02


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", default="", help="a regular expression on the names")
    parser.add_argument("--model", choices=tuple(MODELS), default="small")
    args = parser.parse_args()
    print(header(args, device=jax.devices()[0].device_kind), flush=True)
    hf_config = MODELS[args.model]
    pool = parts.examples(*parts.lengths(args.batch), hf_config["vocab_size"])
    shapes, with_prompts = (
        data.plan(pool, [np.arange(args.batch)], row_length=0, prompts=scored) for scored in (False, True)
    )
    at, of_base = parts.setup(configure(BASE), hf_config, shapes)
    reference, held = parts.other_params(at), [of_base.first(bench.draw_params(at), None)]
    batch = parts.batch_of(pool, shapes)
    placed = grid.put_batch(at.grid, batch)
    ref = parts.scorer(at, shapes)(reference, placed)
    label = jnp.arange(args.batch) % 2  # as many desirable as undesirable
    placed = placed._replace(ref=ref, previous=ref, label=label.astype(jnp.float32))
    longer = grid.put_batch(at.grid, parts.batch_of(pool, with_prompts))
    longer = longer._replace(ref=placed.ref, previous=placed.previous, label=placed.label)
    batches = {False: (shapes, placed), True: (with_prompts, longer)}

    names = [BASE, *(name for name in objectives.names() if name != BASE and re.search(args.only, name))]
    runs, refused = {}, []
    for name in names:
        try:
            runs[name] = stepper(name, hf_config, batches, held, reference)
        except ValueError as error:  # of the objective itself: two candidates are too few for it
            refused.append(f"{name}: {error}")
    times = in_turn({**runs, AGAIN: runs[BASE]}, args.rounds)
    base = times[BASE]
    filled = np.count_nonzero(batch.rows.example) / batch.rows.example.size
    print(f"{BASE}: {spread(base.wall)} s a step; {shapes.rows} x {shapes.length} cells, {filled:.0%} filled\n")
    print("| objective | asks for | processor time | clock |\n|---|---|---|---|")
    for name, of_name in times.items():
        asks = sorted(objectives.build(name).needs - {"policy"}) if name != AGAIN else []
        wall, cpu = (spread(over(*x), 3, "x") for x in zip(of_name, base, strict=True))
        print(f"| {name} | {' '.join(asks)} | {cpu} | {wall} |")
    print("", *refused, sep="\n")
    noise = statistics.median(over(times[AGAIN].cpu, base.cpu))
    for name in (name for name in runs if name.startswith("slpo.")):
        got = statistics.median(over(times[name].cpu, base.cpu))
        print(f"{name}: {got:.3f}x, at most {BAR}x: {verdict(got <= BAR)} (DPO against itself: {noise:.3f}x)")


def configure(name: str) -> Config:
    """Return the configuration of a step that moves nothing."""
    return parts.configure({"objective.name": name, "learning_rate": 0.0, "warmup_steps": 0})


def stepper(
    name: str,
    hf_config: dict[str, Any],
    batches: dict[bool, tuple[Shapes, Batch]],
    held: list[State],
    reference: Params,
) -> Callable[[], Any]:
    """Return what takes one step of an objective; all step from one state, but for what an objective adds to it.

    Args:
        name: of the objective.
        hf_config: the content of the model's config.json.
        batches: without and with the prompts' tokens scored: sizes, and the batch on the device.
        held: the one state, without an objective's statistics.
        reference: its weights, for objectives that ask for more than its log-probs.
    """
    needs = objectives.build(name).needs
    shapes, batch = batches["prompt" in needs]
    at, steps = parts.setup(configure(name), hf_config, shapes)
    frozen = Frozen(reference=reference if scores.takes_weights(needs) else None)
    if steps.like.params.keys() != held[0].params.keys():  # readers are trained, too: the optimiser's state has theirs
        return parts.repeated(steps, [steps.first(bench.draw_params(at), None)], [batch], frozen)
    # On its device as the step returns it, or the second step would compile once more.
    statistics = [jax.device_put(jax.tree.map(np.float32, steps.method.objective.state), at.grid.everywhere)]

    def run() -> None:
        state, metrics = steps.step(held[0]._replace(objective=statistics[0]), frozen, batch)
        held[0], statistics[0] = state._replace(objective=None), state.objective
        jax.block_until_ready(metrics)

    return run


if __name__ == "__main__":
    main()
