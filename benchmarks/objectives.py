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

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parts
from common import MODELS, header, in_turn, over, spread, verdict

from slpojax import beside, data, grid, models, needs, objectives, step
from slpojax.base import Batch, Model, Params, Shapes, State
from slpojax.run import learned_beside

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
    mesh, model, optimizer = parts.one_device(), models.build(MODELS[args.model]), optax.adamw(0.0)
    held, ref_params = [parts.first_state(mesh, model, optimizer)], jax.jit(model.init)(jax.random.key(1))
    pool = parts.examples(*parts.lengths(args.batch), MODELS[args.model]["vocab_size"])
    shapes, with_prompts = (
        data.plan(pool, [np.arange(args.batch)], row_length=0, prompts=scored) for scored in (False, True)
    )
    batch = parts.batch_of(pool, shapes)
    placed = grid.put_batch(mesh, batch)
    ref = parts.scorer(mesh, model, shapes)(ref_params, placed)
    label = jnp.arange(args.batch) % 2  # as many desirable as undesirable
    placed = placed._replace(ref=ref, previous=ref, label=label.astype(jnp.float32))
    longer = grid.put_batch(mesh, parts.batch_of(pool, with_prompts))
    longer = longer._replace(ref=placed.ref, previous=placed.previous, label=placed.label)
    batches = {False: (shapes, placed), True: (with_prompts, longer)}
    setting = (mesh, model, optimizer, batches, held, ref_params)

    names = [BASE, *(name for name in objectives.names() if name != BASE and re.search(args.only, name))]
    runs, refused = {}, []
    for name in names:
        try:
            runs[name] = stepper(name, *setting)
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


def stepper(
    name: str,
    mesh: jax.sharding.Mesh,
    model: Model,
    optimizer: optax.GradientTransformation,
    batches: dict[bool, tuple[Shapes, Batch]],
    held: list[State],
    ref_params: Params,
) -> Callable[[], None]:
    """Return what takes one step of an objective; all take theirs on one state, but for what is an objective's own.

    `batches` holds the batch without and with the prompts' tokens scored.
    """
    objective = objectives.build(name)
    shapes, batch = batches["prompt" in objective.needs]
    step.couples_examples(objective, shapes)  # traces it
    state = held[0]._replace(objective=jax.tree.map(jnp.float32, objective.state))
    learned = learned_beside(model, state.params, objective.needs, shapes.candidates)
    if learned:
        params = state.params | beside.draw(jax.random.key(2), learned)
        state = state._replace(params=params, optimizer=optimizer.init(params))
    # Placed as the step gives it back, or the second step would compile once more.
    state = jax.tree.map(jax.device_put, state, parts.where(mesh, model, state))
    own = [state.objective]
    one = parts.train_step(mesh, model, name, optimizer, shapes, state)
    reference = ref_params if needs.takes_reference_weights(objective.needs) else None
    if learned:
        state = jax.tree.map(jnp.copy, state)  # what is held stays whole when this one is donated
        return parts.repeated(one, [state], [batch], reference)

    def run() -> None:
        state, metrics = one(held[0]._replace(objective=own[0]), reference, batch)
        held[0], own[0] = state._replace(objective=None), state.objective
        jax.block_until_ready(metrics)

    return run


if __name__ == "__main__":
    main()
