"""What each way of doing less work is worth on HH: switched off in turn, counted from lengths and measured.

    python benchmarks/ablation.py PAIRS.jsonl.gz TOKENIZER_FOLDER [--rounds 5] [--batch 16] [--model small]

The step is DPO's, with everything on: the prompt once for both responses, several examples a row, the vocabulary at
scored positions alone, the reference's log-probs cached. Off means
    prompt sharing   every response in a row cell of its own with a copy of its prompt; the objective still sees pairs
    packing          one example a row, rows as long as the longest example
    scored only      every cell of the rows meets the vocabulary, padding too
    cached reference the reference's forward pass in every step
and "all" is what a plain program does. What is off changes no number: the losses of all are compared with those of the
full step, under a reference that is another random model. The learning rate is 0, so every step starts from the same
parameters.

"Counted" is the ratio of floating-point operations as `slpojax.flops` counts them (6 a weight and cell, 2 for the
reference), of all cells that are computed, padding too, plus attention at the pairs of cells that see each other; it
knows nothing of the optimiser, of norms, or of the head's second pass over the vocabulary. Every round takes one step
of each, in turn; the ratios are to the full step of the same round, medians with the smallest and the largest.
"""

import argparse

import jax
import numpy as np
import parts
from common import MODELS, header, in_turn, over, spread

from slpojax import bench, data, flops, grid
from slpojax.base import Batch, Frozen, Scored, Shapes
from slpojax.data.pipeline import make_batch
from slpojax.models.attention import Cells, sees

FEATURES = ("prompt sharing", "packing", "scored only", "cached reference")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs")
    parser.add_argument("tokenizer")
    parser.add_argument("--rows", default="0:2000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=4, help="different ones, taken in turn")
    parser.add_argument("--model", choices=tuple(MODELS), default="small")
    args = parser.parse_args()
    print(header(args, device=jax.devices()[0].device_kind), flush=True)
    tokenizer = data.load_tokenizer(args.tokenizer)
    examples, _ = data.load(data.Source(args.pairs, rows=args.rows), tokenizer=tokenizer)
    order = data.order(examples.lengths, args.batch, seed=0, steps=args.batches)
    config = parts.configure({"learning_rate": 0.0, "warmup_steps": 0})
    shapes, batches = layout(examples, order, frozenset())
    at, full = parts.setup(config, MODELS[args.model], shapes)
    ref_params, held = parts.other_params(at), [full.first(bench.draw_params(at), None)]
    body, head = flops.weights(held[0].params, jax.eval_shape(at.model.unembed, held[0].params))
    score = parts.scorer(at, shapes)
    refs = [grid.gather(score(ref_params, grid.put_batch(at.grid, batch))) for batch in batches]
    variants = {"nothing": frozenset(), **{name: frozenset({name}) for name in FEATURES}, "all": frozenset(FEATURES)}
    runs, losses, lines, operations = {}, {}, {}, {}
    for name, off in variants.items():
        shapes, batches = layout(examples, order, off)
        online, cells = "cached reference" in off, shapes.rows * shapes.length
        if not online:
            batches = [batch._replace(ref=ref) for batch, ref in zip(batches, refs, strict=True)]
        _, steps = parts.setup(config, MODELS[args.model], shapes)
        placed = [grid.put_batch(at.grid, batch) for batch in batches]
        runs[name] = run = parts.repeated(steps, held, placed, Frozen(reference=ref_params if online else None))
        losses[name] = np.array([float(run()["loss"]) for _ in placed])
        pairs = np.mean([seen(batch) for batch in batches])
        attention = (12 + 4 * online) * MODELS[args.model]["hidden_size"] * MODELS[args.model]["num_hidden_layers"]
        computed = {"tokens": cells, "scored": shapes.groups * shapes.scored}
        each = flops.TRAIN + online * flops.FORWARD
        operations[name] = attention * pairs + flops.of_step(body, head, (each, computed))
        filled = np.mean([np.count_nonzero(batch.rows.example) for batch in batches]) / cells
        lines[name] = f"{shapes.rows} x {shapes.length}, {filled:.0%} | {shapes.groups * shapes.scored}"
    times = in_turn(runs, args.rounds)
    base = times["nothing"]
    print(f"full step: {spread(base.wall)} s, {operations['nothing'] / args.batch / 1e9:.1f} GFLOP a pair\n")
    print("| off | rows, filled | scored | counted | measured | processor time | loss apart |")
    print("|---|---|---|---|---|---|---|")
    for name in variants:
        wall, cpu = (spread(over(*x), unit="x") for x in zip(times[name], base, strict=True))
        apart = np.abs(losses[name] - losses["nothing"]).max()
        counted = operations[name] / operations["nothing"]
        print(f"| {name} | {lines[name]} | {counted:.2f}x | {wall} | {cpu} | {apart:.1e} |", flush=True)


def layout(examples: data.Examples, order: list[np.ndarray], off: frozenset[str]) -> tuple[Shapes, list[Batch]]:
    """Lay out the batches with some of the features off."""
    pool, numbers = examples, order
    if "prompt sharing" in off:
        # Response k of example i is example 2 i + k of a pool of single responses. Their slots, (2 b + k) T + t, are
        # those of pairs: the step reads the rows as they are and finds both responses of a pair side by side.
        index = np.unique(np.concatenate(order))
        every = [examples[int(i)] for i in range(index.max() + 1)]
        alone = (e._replace(responses=(r,), score=(s,)) for e in every for r, s in zip(e.responses, e.score))
        pool = data.build(alone, candidates=1)
        numbers = [(2 * batch[:, None] + np.arange(2)).reshape(-1) for batch in order]
    shapes = data.plan(pool, numbers, row_length=0, pack="packing" not in off)
    shapes = shapes._replace(response=int(examples.lengths.response.max()))
    batches = [make_batch(pool, shapes, batch) for batch in numbers]
    if "prompt sharing" in off:
        shapes = shapes._replace(examples=shapes.examples // 2, candidates=2)
        batches = [as_pairs(batch) for batch in batches]
    if "scored only" in off:
        everywhere = [everything(batch, shapes) for batch in batches]
        most = max(scored.source.shape[1] for scored in everywhere)
        spare = shapes.examples * shapes.candidates * shapes.response
        shapes = shapes._replace(scored=most)
        batches = [batch._replace(scored=fill(scored, most, spare)) for batch, scored in zip(batches, everywhere)]
    return shapes, batches


def as_pairs(batch: Batch) -> Batch:
    """Read single responses, two by two, as pairs."""
    length, score = batch.length.reshape(-1, 2), batch.score.reshape(-1, 2)
    return batch._replace(length=length, score=score, label=batch.label[::2], index=batch.index[::2] // 2)


def everything(batch: Batch, shapes: Shapes) -> Scored:
    """Add to what is scored every cell that predicts nothing of it; what comes of those is dropped."""
    spare = shapes.examples * shapes.candidates * shapes.response
    used = batch.scored.slot[0] < spare
    rest = np.setdiff1d(np.arange(batch.rows.token.size), batch.scored.source[0][used])
    more = (rest, batch.rows.token.reshape(-1)[rest], np.full(rest.shape, spare))
    scored = zip(batch.scored[:3], more, strict=True)
    return Scored(*(np.concatenate([old[0][used], new]).astype(np.int32)[None] for old, new in scored))


def fill(scored: Scored, size: int, spare: int) -> Scored:
    room = ((0, 0), (0, size - scored.slot.shape[1]))
    return Scored(*(np.pad(x, room, constant_values=unused) for x, unused in zip(scored, (0, 0, spare))))


def seen(batch: Batch) -> int:
    """Count the pairs of cells, neither of them padding, of which one sees the other."""
    total = 0
    for example, branch in zip(batch.rows.example, batch.rows.branch, strict=True):
        cells = Cells(np.arange(len(example))[None], example[None], branch[None])
        total += int(np.count_nonzero(np.asarray(sees(cells, cells))[0] & (example > 0)[:, None]))
    return total


if __name__ == "__main__":
    main()
