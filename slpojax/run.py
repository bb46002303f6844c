"""What a run works with and never changes: a model on a mesh, the parts of its data, and the models that are frozen.

Knows how to bring parameters to their devices, and the log-probs of frozen models to the data; gets plain values and
knows no configuration and no objective.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from slpojax import data, degrees, grid, hf, logger, masks, prompts, reference, step
from slpojax.base import Batch, Logps, Model, Params, Rows, Shapes, State
from slpojax.selectors import Selector


class Part(NamedTuple):
    """One part of the data, "train" or "eval", with the log-probs of frozen models once they are known."""

    name: str
    examples: data.Examples
    report: data.Report
    ref: reference.Columns | None = None
    previous: reference.Columns | None = None


class Run(NamedTuple):
    """What a run works with.

    Attributes:
        mesh: the devices.
        folder: of the model that the policy starts from.
        model: the policy's and the frozen ones'.
        scan: sizes of the batches that go through a part once.
        numbers: (params, batch of those sizes, ref_params) -> (log-probs, what else the objective asks for), on every
            device.
        logps: (params, batch of those sizes) -> the log-probs alone.
    """

    mesh: Mesh
    folder: pathlib.Path
    model: Model
    scan: Shapes
    numbers: Callable[[Params, Batch, Params | None], tuple[Logps, dict[str, Any]]]
    logps: Callable[[Params, Batch], Logps]


def hosts() -> dict[str, Any]:
    """Return this process and their number, as the streams of batches take them."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def learned_beside(model: Model, params: Params, needs: Collection[str], candidates: int) -> dict[str, Any]:
    """Return the sizes of what an objective learns beside the policy, by name; see `slpojax.beside.draw`.

    Args:
        model: the policy's, and the reference's.
        params: like its parameters; shapes do.
        needs: of the objective.
        candidates: K of the data.
    """
    names = {*masks.NAMES, "degree"} & {*needs}
    if not names:
        return {}
    one = np.ones((1, 1), np.int32)
    rows = Rows(one, one, one, one)
    layers, *_, width = jax.eval_shape(lambda params: model.layers(params, rows, lambda x: x)[1], params).shape
    sizes = {
        **dict.fromkeys(masks.NAMES, (layers, width)),
        "degree": degrees.sizes(width=width, classes=candidates // 2),
    }
    return {name: sizes[name] for name in names}


def batches(run: Run, part: Part, order: Sequence[np.ndarray] | None = None) -> Iterator[Batch]:
    """Yield every example once, on the devices, or those batches of `data.scan_order` that `order` names."""
    stream = data.evaluation_batches(
        part.examples, run.scan, order, columns=part.ref, previous=part.previous, **hosts()
    )
    for batch in stream:
        yield grid.put_batch(run.mesh, batch)


def given(run: Run, params: Params, ref_params: Params | None, batch: Batch) -> dict[str, Any]:
    """Return what an objective may ask for of a batch, on every device; it may still be on its way."""
    policy, distribution = run.numbers(params, batch, ref_params)
    ref = run.logps(ref_params, batch) if batch.ref is None and ref_params is not None else batch.ref
    return {"policy": policy, **distribution, **step.columns(batch), "ref": ref}


def load_params(run: Run, folder: pathlib.Path) -> Params:
    """Load a model folder's parameters, each to its devices."""
    params = hf.load(folder, run.model)
    where, _ = grid.tree(run.mesh, run.model.sharding, params)
    return jax.tree.map(jax.device_put, params, where)


def draw_params(run: Run, seed: int) -> Params:
    """Draw parameters at random, each on its devices."""
    key = jax.random.key(seed)
    where, _ = grid.tree(run.mesh, run.model.sharding, jax.eval_shape(run.model.init, key))
    return jax.jit(run.model.init, out_shardings=where)(key)


def columns(
    run: Run, part: Part, params: Callable[[], Params], *, name: str, cache: pathlib.Path, key: dict[str, str]
) -> reference.Columns:
    """Return a frozen model's log-probs of a part, from the cache if it has them.

    The rows of every batch are split over the devices of all hosts, and each host packs its own; the log-probs come
    back to all of them, so that every host holds all columns. See `slpojax.reference` for who reads and writes.

    Args:
        run: see `Run`.
        part: whose responses are scored.
        params: brings the frozen model to the devices; called only where the cache has nothing.
        name: of the model in what is told and kept, "reference" or "previous".
        cache: folder.
        key: what the numbers depend on, but for the examples.
    """

    def make(done: np.ndarray) -> Iterator[reference.Piece]:
        order = data.scan_order(part.examples, run.scan)
        left = [index for index in order if not done[index[index >= 0]].all()]
        tracked = logger.track(batches(run, part, left), len(left), f"{name} log-probs ({part.name})")
        return reference.compute(lambda batch: run.logps(params(), batch), tracked)

    key, lengths = {**key, "examples": part.examples.digest()}, np.asarray(part.examples.lengths.response)
    return reference.cached(cache, name, part.name, key, lengths, make, logger.tell)


def match_prompts(
    run: Run,
    parts: list[Part],
    params: Callable[[], Params],
    *,
    file: pathlib.Path,
    key: dict[str, str],
    batch: int,
    seed: int,
) -> list[Part]:
    """Weigh the undesirable examples so that their prompts are as the desirable ones'; the first part decides for all.

    Args:
        run: see `Run`.
        parts: what is trained on, and what is held out, if anything.
        params: brings the frozen model to the devices; called only where the file does not have the weights.
        file: keeps them.
        key: what the model's numbers depend on, but for the examples.
        batch: prompts that are read at once, rounded up to a number that the devices share.
        seed: of the draw of prompts, where there are many.
    """
    devices, examples = grid.batch_devices(run.mesh), [part.examples for part in parts]
    batch = -(-batch // devices) * devices

    def make() -> list[np.ndarray]:
        where = {"rows": grid.split_rows(run.mesh), "everywhere": grid.replicated(run.mesh)}
        embedded = [
            prompts.embed(run.model, params(), [own[i].prompt for i in range(len(own))], batch=batch, **where)
            for own in examples
        ]
        classifier = prompts.fit(embedded[0], examples[0].label, seed=seed)
        return [prompts.weights(classifier, x, own.label) for x, own in zip(embedded, examples, strict=True)]

    key = key | {f"examples {i}": own.digest() for i, own in enumerate(examples)} | {"seed": str(seed)}
    weights = prompts.cached(file, key, make, logger.tell)
    lost = weights[0][examples[0].label < 0.5]
    logger.tell(f"weights of the prompts of undesirable responses: {lost.min():.2f} to {lost.max():.2f}")
    return [
        part._replace(examples=dataclasses.replace(part.examples, weight=weight))
        for part, weight in zip(parts, weights, strict=True)
    ]


def narrower(
    run: Run, selector: Selector, part: Part, whole: Shapes, picked: Shapes
) -> Callable[[State, Params | None, Batch], tuple[Batch, dict[str, Any]]]:
    """Return (state, ref_params, batch of all candidates) -> (the batch of the picked ones, the selector's metrics).

    It scores all candidates without gradient, has the selector pick, and packs the batch anew.

    Args:
        run: see `Run`.
        selector: see `slpojax.selectors`.
        part: what is trained on.
        whole: sizes of the batches of all candidates.
        picked: sizes of those of the picked ones.
    """
    devices, everywhere = grid.batch_devices(run.mesh), grid.replicated(run.mesh)
    picks = step.make_picks(run.model, selector, whole, batch_devices=devices, everywhere=everywhere)

    def narrow(state: State, ref_params: Params | None, batch: Batch) -> tuple[Batch, dict[str, Any]]:
        chosen, metrics = picks(state, ref_params, grid.put_batch(run.mesh, batch))
        narrowed = data.make_picked(
            part.examples,
            picked,
            batch.index,
            grid.gather(chosen),
            columns=part.ref,
            previous=part.previous,
            **hosts(),
        )
        return narrowed, metrics

    return narrow


def counts(batch: Batch, shapes: Shapes) -> dict[str, int]:
    """Count what a batch holds, over all hosts: this one's part as an estimate for the others."""
    many, rows = jax.process_count(), batch.rows
    tokens, of_prompt = np.count_nonzero(rows.example), (rows.example > 0) & (rows.branch == 0)
    prompts = np.count_nonzero(of_prompt)
    targets = np.count_nonzero(of_prompt & (rows.position > 0)) if shapes.prompt else 0
    responses = np.count_nonzero(np.asarray(batch.length)) / shapes.examples  # of an example
    return {
        "examples": shapes.examples,
        "tokens": int(tokens) * many,
        "effective_tokens": int(tokens + (responses - 1) * prompts) * many,
        "scored": int(batch.length.sum()) + int(targets) * many,
        "slots": rows.token.size * many,
    }


class Tracer(NamedTuple):
    """Two functions: `before` takes the number of the step that begins and an output of the last one; `close` ends."""

    before: Callable[[int, Any], None]
    close: Callable[[], None]


def tracer(folder: pathlib.Path, steps: str) -> Tracer:
    """Return what traces some steps for XProf, as many of them as this start of the program takes.

    Args:
        folder: where the trace goes.
        steps: "first:last" of those that are traced; "" for none.

    Raises:
        ValueError: `steps` is something else.
    """
    if not steps:
        return Tracer(lambda n, last: None, lambda: None)
    first, _, end = steps.partition(":")
    if not (first.isdigit() and end.isdigit() and 0 < int(first) <= int(end)):
        raise ValueError(f"config.profile={steps!r}: expected first:last, as in 10:12, or nothing")
    traced: list[int] = []
    running = False

    def before(n: int, last: Any) -> None:
        nonlocal running
        if n > int(end):
            stop(last)
        elif n >= int(first):
            if not running:
                jax.block_until_ready(last)
                jax.profiler.start_trace(str(folder))
                running = True
            traced.append(n)

    def stop(last: Any = None) -> None:
        nonlocal running
        if running:
            running = False
            jax.block_until_ready(last)
            jax.profiler.stop_trace()
            logger.tell(f"wrote {folder}, a trace of steps {traced[0]} to {traced[-1]} for XProf")

    def close() -> None:
        stop()
        if not traced:
            logger.tell(f"no trace: this start of the program took none of steps {first} to {end} (config.profile)")

    return Tracer(before, close)


def export(path: pathlib.Path, params: Params, run: Run, hf_config: dict[str, Any], tokenizer: pathlib.Path) -> None:
    """Bring the parameters to the host, one tensor at a time, and write them as a folder that transformers loads.

    The tokenizer of the folder `tokenizer`, which made the tokens that were trained on, goes along.
    """
    params = jax.tree.map(lambda x: np.asarray(jax.device_put(x, grid.replicated(run.mesh))), params)
    if jax.process_index() == 0:
        hf.save(path, params, run.model, hf_config, tokenizer_from=tokenizer, generation_from=run.folder)
    logger.tell(f"wrote {path}, which transformers loads")
