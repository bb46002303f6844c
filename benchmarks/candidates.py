"""What MC-PO's step costs beside DPO's, for K candidates: a gradient through all, or all scored first.

    python benchmarks/candidates.py [--rounds 5] [--batch 16] [--candidates 2,5,8]

A GPT-NeoX (50,304 words) drawn at random, prompts of 138 tokens and responses of 50, the means of HH; the reference's
log-probs are columns of the batch. Every round times each way once, in turn, in one process; medians, as ratios to the
DPO step on the same prompts. The rule that chooses between the ways is `slpojax.selectors.cheaper`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slpojax import data, logps, models, objectives, selectors, sharding, step
from slpojax.base import Shapes, State

PROMPT, RESPONSE, VOCABULARY = 138, 50, 50304
CONFIG = {
    "model_type": "gpt_neox",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "rotary_pct": 0.25,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def main() -> None:
    """Time every way for every K and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--candidates", default="2,5,8")
    args = parser.parse_args()
    numbers = [int(k) for k in args.candidates.split(",")]
    runs = {("DPO", 2): dpo(args.batch)}
    for k in numbers:
        runs["together", k] = together(args.batch, k)
        runs["score first", k] = score_first(args.batch, k)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for n in range(args.rounds + 1):
        for key, run in runs.items():
            begun = time.perf_counter()
            run()
            if n:  # the first round compiles
                seconds[key].append(time.perf_counter() - begun)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    base = median["DPO", 2]
    print(f"DPO step: {base:.2f} s ({jax.devices()[0].device_kind}, {args.batch} prompts)\n")
    print("| K | together | score first | counted | the rule takes |\n|---|---|---|---|---|")
    for k in numbers:
        one = 3 * (PROMPT + 2 * RESPONSE)
        all_of_them, first = 3 * (PROMPT + k * RESPONSE) / one, (PROMPT + k * RESPONSE + one) / one
        print(
            f"| {k} | {median['together', k] / base:.2f}x | {median['score first', k] / base:.2f}x | "
            f"{all_of_them:.2f}x, {first:.2f}x | {selectors.cheaper(PROMPT, RESPONSE, k, 1)} |"
        )


def examples(count: int, candidates: int) -> data.Examples:
    """Make examples of the mean sizes."""
    rng = np.random.default_rng(0)

    def text(size: int) -> np.ndarray:
        return rng.integers(0, VOCABULARY, size).astype(np.int32)

    scores = tuple(float(candidates - k) for k in range(candidates))
    return data.build(
        [data.Example(text(PROMPT), tuple(text(RESPONSE) for _ in range(candidates)), scores, i) for i in range(count)],
        candidates=candidates,
    )


def parts(batch: int, candidates: int, picks: int = 0) -> tuple:
    """Return what all ways share: examples, shapes, the mesh, the model, and a state."""
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    model = models.build(CONFIG)
    pool = examples(batch, candidates)
    order = [np.arange(batch)]
    shapes = data.plan(pool, order, row_length=1024)
    picked = data.plan(pool, order, row_length=1024, picks=picks) if picks else shapes
    optimizer = optax.adamw(1e-5)
    params = jax.jit(model.init)(jax.random.key(0))
    state = State(jnp.int32(0), params, optimizer.init(params), None, jax.random.key(0))
    where, _ = sharding.tree(mesh, model.sharding, state)
    state = jax.tree.map(jax.device_put, state, where)
    return mesh, model, pool, shapes, picked, optimizer, state


def train_step(mesh, model, shapes: Shapes, objective: str, optimizer, state: State, selector=None) -> Callable:
    """Compile the step of one way."""
    where, _ = sharding.tree(mesh, model.sharding, state)
    return step.make_train_step(
        model,
        objectives.build(objective),
        optimizer,
        shapes,
        accumulate=1,
        batch_devices=1,
        everywhere=sharding.replicated(mesh),
        state_sharding=where,
        selector=selector,
    )


def with_reference(mesh, model, pool: data.Examples, shapes: Shapes, state: State) -> list:
    """Score the pool once, as the reference's cache does."""
    scorer = logps.logps_function(model, shapes, rows_per_device=shapes.rows, everywhere=sharding.replicated(mesh))
    got = sharding.gather(scorer(state.params, sharding.put_batch(mesh, next(data.evaluation_batches(pool, shapes)))))
    return [
        (
            tuple(got.token[b, k, :RESPONSE] for k in range(pool.candidates)),
            tuple(got.other[b, k, :RESPONSE] for k in range(pool.candidates)),
        )
        for b in range(len(pool))
    ]


def dpo(batch: int) -> Callable[[], None]:
    """The step to compare with."""
    return together(batch, 2, objective="dpo.sigmoid", selected=False)


def together(batch: int, k: int, objective: str = "listwise.rnce", selected: bool = True) -> Callable[[], None]:
    """A gradient through all candidates."""
    mesh, model, pool, shapes, _, optimizer, state = parts(batch, k)
    columns = with_reference(mesh, model, pool, shapes, state)
    whole = sharding.put_batch(mesh, next(data.evaluation_batches(pool, shapes, columns=columns)))
    one = train_step(
        mesh, model, shapes, objective, optimizer, state, selectors.build("mc_kernel", beta=0.1) if selected else None
    )
    held = [state]

    def run() -> None:
        held[0], metrics = one(held[0], None, whole)
        jax.block_until_ready(metrics)

    return run


def score_first(batch: int, k: int) -> Callable[[], None]:
    """All scored, the picked packed anew on the host and trained on."""
    mesh, model, pool, shapes, picked, optimizer, state = parts(batch, k, picks=1)
    columns = with_reference(mesh, model, pool, shapes, state)
    host = next(data.evaluation_batches(pool, shapes, columns=columns))
    whole = sharding.put_batch(mesh, host)
    everywhere = sharding.replicated(mesh)
    selector = selectors.build("mc_kernel", beta=0.1)
    picks = step.make_picks(model, selector, shapes, batch_devices=1, everywhere=everywhere)
    one = train_step(mesh, model, picked, "listwise.rnce", optimizer, state)
    held = [state]

    def run() -> None:
        chosen = sharding.gather(picks(held[0], None, whole)[0])
        narrow = data.make_picked(pool, picked, host.index, chosen, columns)
        held[0], metrics = one(held[0], None, sharding.put_batch(mesh, narrow))
        jax.block_until_ready(metrics)

    return run


if __name__ == "__main__":
    main()
