"""Train a policy on preferences: `python -m slpojax.train --config=configs/slpo_hh.py`.

The whole run, from top to bottom: model, data, reference, state, loop, export. This is the one place that sees the
configuration, the model and the objective; what it calls gets plain values.
"""

import functools
import json
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import rich
from jax.sharding import Mesh
from ml_collections import ConfigDict

from slpojax import (
    checkpoint,
    data,
    evaluate,
    hf,
    logger,
    logps,
    models,
    objectives,
    optim,
    reference,
    settings,
    sharding,
    step,
    worlds,
)
from slpojax.base import Batch, Key, Logps, Model, Params, Shapes, State

DEFAULT = "configs/quickstart.py"
HERE = pathlib.Path(__file__).parent

# (params, step) -> metrics of a policy in a world whose right answers are known.
Score = Callable[[Params, int], dict[str, float]]


class Plan(NamedTuple):
    """How long a run is, and the sizes of its batches: shuffled for training, in order for all else."""

    steps: int
    train: Shapes
    scan: Shapes


class Part(NamedTuple):
    """One part of the data, "train" or "eval", with the reference's log-probs once they are known."""

    name: str
    examples: data.Examples
    report: data.Report
    columns: reference.Columns | None = None


class Run(NamedTuple):
    """What a run works with and never changes.

    Attributes:
        mesh: the devices.
        folder: of the model that the policy starts from.
        model: the policy's and the reference's.
        scan: sizes of the batches that go through a part in order.
        logps: (params, batch of those sizes) -> log-probs on every device.
    """

    mesh: Mesh
    folder: pathlib.Path
    model: Model
    scan: Shapes
    logps: Callable[[Params, Batch], Logps]


def main() -> None:
    """Run what the command line asks for."""
    choices = {"objective": objectives.defaults, "optimizer": optim.defaults}
    config = settings.from_command_line(sys.argv[1:], default=DEFAULT, choices=choices)
    sharding.start(config.mesh.distributed)
    try:
        if config.world:
            world = worlds.build(config.world)
            config = world.prepare(config, train)
            train(config, world.scorer(config))
            world.report(config)
        else:
            train(config)
    except (ValueError, FloatingPointError) as error:
        # What this package raises is about the input, and the message says all; anything else is a bug: show where.
        if pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(HERE):
            raise SystemExit(f"error: {error}") from error
        raise


def train(config: ConfigDict, score: Score | None = None) -> None:
    """Train, evaluate, keep checkpoints and export, as `config` says; go on where an earlier process stopped.

    Args:
        config: every key of configs/base.py, resolved.
        score: measures a policy at every evaluation, beside the held-out preferences.

    Raises:
        ValueError: something in the configuration, the model folder or the data is wrong; the message says what to do.
        FloatingPointError: a loss or gradient is not finite.
    """
    output = pathlib.Path(config.output)
    if config.model.dtype == "float32":  # TPUs and GPUs would round the operands of a float32 product
        jax.config.update("jax_default_matmul_precision", "float32")

    # Mesh, model and objective.
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    everywhere, devices = sharding.replicated(mesh), sharding.batch_devices(mesh)
    folder = hf.resolve(config.model.path)
    hf_config = hf.read_config(folder)
    model = models.build(
        hf_config, dtype=config.model.dtype, remat=config.model.remat, max_length=config.data.max_length
    )
    objective = objectives.build(**config.objective)
    _check_needs(objective, config)

    # Data, its report, and the sizes of the batches.
    tokenizer = data.load_tokenizer(config.data.tokenizer or str(folder))
    pairs, held_out = _load(config, tokenizer)
    plan = _plan(config, pairs, held_out, devices)
    scan_rows = plan.scan.rows // devices
    in_order = logps.logps_function(model, plan.scan, rows_per_device=scan_rows, everywhere=everywhere)
    run = Run(mesh, folder, model, plan.scan, in_order)

    # The reference, which never moves: log-probs from the cache, or weights that stay beside the policy's.
    ref_params = None
    if "ref" in objective.needs:
        pairs, held_out, ref_params = _reference(config, run, tokenizer, pairs, held_out)

    # The state, new or from the newest checkpoint, on its devices.
    optimizer = optim.build(
        **config.optimizer,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        total_steps=plan.steps,
        clip_norm=config.clip_norm,
    )
    make_state = functools.partial(_make_state, optimizer, objective, jax.random.key(config.seed))
    like = jax.eval_shape(lambda key: make_state(model.init(key)), jax.random.key(0))
    state_sharding, notes = sharding.tree(mesh, model.sharding, like)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, state_sharding)
    checkpoints = checkpoint.open_folder(
        output / "checkpoints",
        keep_last=config.keep_last,
        keep_best=config.keep_best if held_out or score else 0,
        best_metric=config.best_metric,
    )
    if not config.resume:
        checkpoint.require_none(checkpoints)
    restored = checkpoint.restore(checkpoints, like, config=config.to_dict())
    if restored:
        state, start = restored.state, restored.step
    else:
        start = 0
        state = jax.jit(make_state, out_shardings=state_sharding, donate_argnums=0)(_first_params(config, run))

    # The step, the stream of batches and the evaluation.
    train_step = step.make_train_step(
        model,
        objective,
        optimizer,
        plan.train,
        accumulate=config.accumulate,
        batch_devices=devices,
        everywhere=everywhere,
        state_sharding=state_sharding,
    )
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    order = {"seed": config.seed, "steps": plan.steps, "kind": config.data.order}
    stream = data.batches(pairs.examples, plan.train, columns=pairs.columns, **order, **hosts)
    if restored:
        stream.set_state(restored.data)
    measure = _measure(run, objective, held_out, ref_params, score, config.seed)

    log = logger.open_log(
        output,
        total=plan.steps,
        step=start if restored else None,
        every=config.log_every,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        config=config.to_dict(),
        abort=config.abort_on_nonfinite,
    )
    for note in notes:
        log.say(f"sharding: {note}")
    log.say(f"resumed behind step {start} of {plan.steps}" if restored else f"{_size(like.params)}, {plan.steps} steps")
    if jax.process_index() == 0:
        (output / "config.json").write_text(settings.dump(config))

    try:
        if not restored:
            if "ref" in objective.needs:
                log.say(_sanity(run, state.params, ref_params, pairs))
            _record(log, 0, measure(0, state))
        for n, batch in enumerate(stream, start + 1):
            counts = _counts(batch, plan.train)
            state, metrics = train_step(state, ref_params, sharding.put_batch(mesh, batch))
            log.write(n, metrics, **counts)
            last = n == plan.steps
            due = config.eval_every and n % config.eval_every == 0
            measured = _record(log, n, measure(n, state)) if due or last else None
            if last or (config.checkpoint_every and n % config.checkpoint_every == 0):
                log.flush()
                checkpoint.save(
                    checkpoints, n, state, data=stream.get_state(), config=config.to_dict(), metrics=measured
                )
    finally:
        log.close()
        checkpoint.close(checkpoints)

    if config.export:
        _export(output / "hf", state.params, run, hf_config)


def _check_needs(objective: objectives.Objective, config: ConfigDict) -> None:
    """Refuse a run whose data or reference cannot give what the objective asks for."""
    missing = objective.needs - {"policy", "ref", "score", "key", "state"}
    if missing:
        raise ValueError(f"objective {objective.name} asks for {', '.join(missing)}, which no data source gives")
    modes = ("cached", "online", "none")
    if config.reference.mode not in modes:
        raise ValueError(f"config.reference.mode={config.reference.mode!r}: expected one of {', '.join(modes)}")
    if "ref" in objective.needs and config.reference.mode == "none":
        raise ValueError(
            f"objective {objective.name} compares with a reference, but config.reference.mode is 'none'; "
            "set it to 'cached' or 'online'"
        )


def _load(config: ConfigDict, tokenizer: data.Tokenizer) -> tuple[Part, Part | None]:
    """Load what is trained on and what is held out."""
    d = config.data
    if not d.path:
        raise ValueError("config.data.path is empty: give a hub name, a folder or a file with preference pairs")
    load = functools.partial(
        data.load,
        tokenizer=tokenizer,
        format=d.format,
        candidates=d.candidates,
        max_length=d.max_length,
        max_prompt_length=d.max_prompt_length,
        too_long=d.too_long,
        bos=d.bos,
        chat_template=d.chat_template,
    )
    pairs = Part("train", *load(d.path, split=d.split, rows=d.rows))
    if not (d.eval_path or d.eval_split or d.eval_rows):
        return pairs, None
    return pairs, Part("eval", *load(d.eval_path or d.path, split=d.eval_split or d.split, rows=d.eval_rows))


def _plan(config: ConfigDict, pairs: Part, held_out: Part | None, devices: int) -> Plan:
    """Find the length of the run and the sizes of its batches; show what the data is and how it fills them."""
    count, size = len(pairs.examples), config.batch_size
    steps, unused = data.passes(count, size, epochs=config.epochs, steps=config.steps)
    order = data.order(count, size, seed=config.seed, steps=steps, kind=config.data.order)
    plan = functools.partial(data.plan, row_length=config.data.row_length, pack=config.data.pack)
    train = plan(pairs.examples, order, multiple_of=devices * config.accumulate)
    scans = []
    for part in filter(None, (pairs, held_out)):
        scans.append(plan(part.examples, data.evaluation_order(len(part.examples), size), multiple_of=devices))
    _say(data.render(data.with_packing(pairs.report, pairs.examples, order, train, unused=unused)))
    _say(data.render(held_out.report) if held_out else "no evaluation: no data.eval_path, eval_split or eval_rows")
    return Plan(steps, train, Shapes(*map(max, zip(*scans, strict=True))))


def _first_params(config: ConfigDict, run: Run) -> Params:
    """Load, or draw, the parameters that the policy starts from, on their devices."""
    if config.model.weights == "load":
        return _load_params(run, run.folder)
    if config.model.weights != "random":
        raise ValueError(f"config.model.weights={config.model.weights!r}: expected 'load' or 'random'")
    key = jax.random.key(config.seed)
    where, _ = sharding.tree(run.mesh, run.model.sharding, jax.eval_shape(run.model.init, key))
    return jax.jit(run.model.init, out_shardings=where)(key)


def _load_params(run: Run, folder: pathlib.Path) -> Params:
    params = hf.load(folder, run.model)
    where, _ = sharding.tree(run.mesh, run.model.sharding, params)
    return jax.tree.map(jax.device_put, params, where)


def _reference(
    config: ConfigDict, run: Run, tokenizer: data.Tokenizer, pairs: Part, held_out: Part | None
) -> tuple[Part, Part | None, Params | None]:
    """Give both parts the reference's log-probs, or return its parameters."""
    folder = hf.resolve(config.reference.path) if config.reference.path else run.folder

    @functools.cache
    def params() -> Params:  # on the devices only where no cache makes it needless
        return _load_params(run, folder) if config.reference.path else _first_params(config, run)

    if config.reference.mode == "online":
        return pairs, held_out, params()
    drawn = config.model.weights == "random" and not config.reference.path
    tokens = ("format", "max_length", "max_prompt_length", "too_long", "bos", "chat_template", "candidates")
    key = {
        "weights": f"drawn, seed {config.seed}, jax {jax.__version__}" if drawn else reference.weights_digest(folder),
        "model": json.dumps(hf.read_config(folder), sort_keys=True),
        "dtype": config.model.dtype,
        "tokenizer": data.tokenizer_digest(tokenizer),
        **{f"data.{name}": str(config.data[name]) for name in tokens},
    }
    cache = pathlib.Path(config.reference.cache or pathlib.Path(config.output) / "reference_cache")

    def with_columns(part: Part) -> Part:
        def make() -> reference.Columns:
            batches = logger.track(
                _batches(run, part), -(-len(part.examples) // run.scan.examples), f"reference log-probs ({part.name})"
            )
            lengths = np.asarray(part.examples.lengths.response)
            return reference.compute(lambda batch: sharding.gather(run.logps(params(), batch)), batches, lengths)

        kept = reference.cached(cache, part.name, {**key, "examples": part.examples.digest()}, make, _say)
        return part._replace(columns=kept)

    return with_columns(pairs), held_out and with_columns(held_out), None


def _batches(run: Run, part: Part) -> Iterator[Batch]:
    """Yield every example once, in order, on the devices."""
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for batch in data.evaluation_batches(part.examples, run.scan, columns=part.columns, **hosts):
        yield sharding.put_batch(run.mesh, batch)


def _make_state(
    optimizer: optax.GradientTransformation, objective: objectives.Objective, key: Key, params: Params
) -> State:
    """Make the state before the first step."""
    zero = jax.numpy.zeros((), jax.numpy.int32)
    return State(zero, params, optimizer.init(params), jax.tree.map(jax.numpy.float32, objective.state), key)


def _measure(
    run: Run,
    objective: objectives.Objective,
    held_out: Part | None,
    ref_params: Params | None,
    score: Score | None,
    seed: int,
) -> Callable[[int, State], dict[str, float]]:
    """Return (step, state) -> the metrics of the held-out preferences and of the world."""
    evaluation = held_out and evaluate.make_evaluation(objective, lambda: _batches(run, held_out), jax.random.key(seed))
    ref = ref_params and (lambda batch: sharding.gather(run.logps(ref_params, batch)))

    def measure(n: int, state: State) -> dict[str, float]:
        metrics = {}
        if evaluation:
            metrics = evaluation(lambda batch: sharding.gather(run.logps(state.params, batch)), ref, state.objective)
        return metrics | (score(state.params, n) if score else {})

    return measure


def _sanity(run: Run, params: Params, ref_params: Params | None, pairs: Part) -> str:
    """Compare policy and reference on the first batch in order."""
    batch = next(_batches(run, pairs))
    ref = batch.ref or run.logps(ref_params, batch)
    return evaluate.sanity_of_start(run.logps(params, batch), ref)


def _record(log: logger.Logger, n: int, metrics: Mapping[str, float]) -> dict[str, float] | None:
    """Write an evaluation, and name its metrics as `best_metric` does."""
    if not metrics:
        return None
    log.record(n, "eval", metrics)
    return {f"eval/{name}": value for name, value in metrics.items()}


def _counts(batch: Batch, shapes: Shapes) -> dict[str, int]:
    """Count what a batch holds, over all hosts."""
    hosts = jax.process_count()
    tokens = int(np.count_nonzero(batch.rows.example)) * hosts  # of this host, as an estimate for the others
    return {"examples": shapes.examples, "tokens": tokens, "slots": shapes.rows * shapes.length}


def _export(path: pathlib.Path, params: Params, run: Run, hf_config: Mapping[str, Any]) -> None:
    """Bring the parameters to the host, one tensor at a time, and write them as a folder that transformers loads."""
    params = jax.tree.map(lambda x: np.asarray(jax.device_put(x, sharding.replicated(run.mesh))), params)
    if jax.process_index() == 0:
        hf.save(path, params, run.model, hf_config, tokenizer_from=run.folder)
    _say(f"wrote {path}, which transformers loads")


def _size(params: Params) -> str:
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    return f"{count:,} parameters on {jax.device_count()} {jax.devices()[0].device_kind} device(s)"


def _say(text: str) -> None:
    if jax.process_index() == 0:
        rich.get_console().print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
