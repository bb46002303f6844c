"""Train a policy on preferences: `python -m slpojax.train --config=configs/slpo_hh.py`.

The whole run, from top to bottom: model, data, reference, state, loop, export. This is the one place that sees the
configuration, the model and the objective; what it calls gets plain values.
"""

import functools
import json
import pathlib
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from slpojax import (
    beside,
    checkpoint,
    data,
    flops,
    grid,
    hf,
    logger,
    logps,
    measure,
    models,
    objectives,
    optim,
    reference,
    run,
    selectors,
    settings,
    step,
    worlds,
)
from slpojax.base import Key, Params, Shapes, State
from slpojax.needs import of_source, takes_reference, takes_reference_weights
from slpojax.run import Part, Run

DEFAULT = "configs/quickstart.py"
HERE = pathlib.Path(__file__).parent

# What `data.load` is told of the configuration's data, and the cache of a frozen model's log-probs depends on.
_DATA = (
    *("format", "candidates", "max_length", "max_prompt_length", "too_long", "bos", "chat_template"),
    *("ties", "pairs", "accept", "accept_beta", "unpair", "mismatched", "degrade"),
)

CHOICES: settings.Choices = {
    "objective": objectives.defaults,
    "selector": selectors.defaults,
    "optimizer": optim.defaults,
}


class Plan(NamedTuple):
    """How long a run is, and the sizes of its batches: shuffled for training, in order for all else.

    `picked` are those of the training batches once a selector has scored all candidates, or None where the step itself
    reads all of them.
    """

    steps: int
    train: Shapes
    scan: Shapes
    picked: Shapes | None


def main() -> None:
    """Run what the command line asks for."""
    config = settings.from_command_line(sys.argv[1:], default=DEFAULT, choices=CHOICES)
    grid.start(config.mesh.distributed)
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


def train(config: ConfigDict, score: measure.Score | None = None) -> None:
    """Train, evaluate, keep checkpoints and export, as `config` says; go on where an earlier process stopped.

    Args:
        config: every key of configs/base.py, resolved.
        score: measures a policy at every evaluation, beside the held-out preferences.

    Raises:
        ValueError: something in the configuration, the model folder or the data is wrong; the message says what to do.
        FloatingPointError: a loss or gradient is not finite.
    """
    output = pathlib.Path(config.output)
    if config.compiled:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(config.compiled).absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the many small programs add up
        compilation_cache.reset_cache()  # JAX settles at the first program of a process whether there is a cache
    if config.model.dtype == "float32":  # TPUs and GPUs would round the operands of a float32 product
        jax.config.update("jax_default_matmul_precision", "float32")

    # Mesh, model, objective, and which candidates it sees.
    mesh = grid.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    everywhere, devices = grid.replicated(mesh), grid.batch_devices(mesh)
    folder = hf.resolve(config.model.path)
    hf_config = hf.read_config(folder)
    model = models.build(
        hf_config,
        dtype=config.model.dtype,
        remat=config.model.remat,
        attention=config.model.attention,
        max_length=config.data.max_length,
        mesh=mesh,
    )
    objective = objectives.build(**config.objective)
    selector = _selector(config.selector, objective)
    needs = objective.needs | (selector.needs if selector else frozenset())

    # Data, its report, and the sizes of the batches.
    own = config.data.tokenizer
    tokenizer_folder = hf.resolve(own, key="data.tokenizer", files=(*hf.TOKENIZER, "config.json")) if own else folder
    tokenizer = data.load_tokenizer(str(tokenizer_folder))
    pairs, held_out = _load(config, tokenizer)
    _check_needs(objective, needs, config, pairs, held_out)
    _check_candidates(objective, selector, config, pairs.examples)
    plan = _plan(config, selector, pairs, held_out, devices, "prompt" in needs)
    scan = functools.partial(
        logps.distribution_function, model, plan.scan, rows_per_device=plan.scan.rows // devices, everywhere=everywhere
    )
    wanted = sorted(needs & set(of_source("head", "reader")))
    numbers = scan(wanted=wanted)
    plain = scan() if wanted else numbers
    work = Run(mesh, folder, model, plan.scan, numbers, lambda params, batch: plain(params, batch, None)[0])

    # The frozen models: log-probs from the cache, or weights that stay beside the policy's.
    pairs, held_out, ref_params = _frozen(config, work, needs, tokenizer, pairs, held_out)
    moving = step.Moving(config.reference.every, config.reference.mix) if config.reference.mode == "moving" else None

    # The state, new or from the newest checkpoint, on its devices.
    optimizer = optim.build(
        **config.optimizer,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        total_steps=plan.steps,
        clip_norm=config.clip_norm,
        moments=config.moments,
    )
    shape = jax.eval_shape(model.init, jax.random.key(0))
    learned = run.learned_beside(model, shape, objective.needs, pairs.examples.candidates)
    make_state = functools.partial(_make_state, optimizer, objective, learned, jax.random.key(config.seed))
    like = jax.eval_shape(make_state, shape, shape if moving else None)
    state_sharding, notes = grid.tree(mesh, model.sharding, like)
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
        new = jax.jit(make_state, out_shardings=state_sharding, donate_argnums=0)
        state, start = new(_first_params(config, work), ref_params if moving else None), 0
    if moving:
        ref_params = None  # from here on it is `state.reference`

    # The step, the stream of batches and the evaluation.
    train_step = step.make_train_step(
        model,
        objective,
        optimizer,
        plan.picked or plan.train,
        accumulate=plan.train.groups // devices,
        batch_devices=devices,
        everywhere=everywhere,
        state_sharding=state_sharding,
        selector=None if plan.picked else selector,
        moving=moving,
    )
    narrow = run.narrower(work, selector, pairs, plan.train, plan.picked) if selector and plan.picked else None
    order = {"seed": config.seed, "steps": plan.steps, "kind": config.data.order}
    stream = data.batches(
        pairs.examples, plan.train, columns=pairs.ref, previous=pairs.previous, **order, **run.hosts()
    )
    if restored:
        stream.set_state(restored.data)
    look = measure.measurer(work, objective, held_out, ref_params, score, config.seed)
    if config.diagnostics and held_out:
        look = measure.diagnosed(
            look,
            work,
            objective,
            selector,
            held_out,
            ref_params,
            forward_model=models.build(
                hf_config, dtype=config.model.dtype, attention="whole", max_length=config.data.max_length
            ),
            count=config.diagnostics,
            packing={"row_length": config.data.row_length, "pack": config.data.pack},
            seed=config.seed,
        )

    log = logger.open_log(
        output,
        total=plan.steps,
        step=start if restored else None,
        every=config.log_every,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        config=config.to_dict(),
        abort=config.abort_on_nonfinite,
        peak=flops.peak(jax.devices()[0].device_kind, jax.device_count()),
    )
    body, head = flops.weights(shape, jax.eval_shape(model.unembed, shape))
    cost = functools.partial(flops.of_step, body, head)
    extra = functools.partial(_reference_cost, moving is not None or ref_params is not None)
    training = flops.TRAIN + extra(objective.needs if plan.picked else needs)
    scoring = flops.FORWARD + extra(selector.needs) if selector and plan.picked else 0
    picks: dict[str, jax.Array] = {}  # what a selector tells that has picked ahead of the step
    trace = run.tracer(output / "profile", config.profile)
    for note in notes:
        log.say(f"sharding: {note}")
    log.say(f"resumed behind step {start} of {plan.steps}" if restored else f"{_size(like.params)}, {plan.steps} steps")
    if jax.process_index() == 0:
        (output / "config.json").write_text(settings.dump(config))

    try:
        if not restored:
            if "ref" in needs:
                log.say(measure.sanity(work, state, ref_params, pairs))
            _record(log, 0, look(0, state))
        for n, batch in enumerate(stream, start + 1):
            came, whole = time.perf_counter(), run.counts(batch, plan.train)
            if narrow:
                batch, picks = narrow(state, ref_params, batch)
            counts = run.counts(batch, plan.picked) if plan.picked else whole
            trace.before(n, state.step)
            placed = grid.put_batch(mesh, batch)
            asked = came if narrow else time.perf_counter()  # scoring first keeps the device busy, too
            state, metrics = train_step(state, ref_params, placed)
            log.write(n, metrics | picks, asked=asked, **counts, flops=cost((training, counts), (scoring, whole)))
            last = n == plan.steps
            due = config.eval_every and n % config.eval_every == 0
            measured = _record(log, n, look(n, state)) if due or last else None
            every = config.checkpoint_every
            if every >= 0 and (last or (every and n % every == 0)):
                log.flush()
                checkpoint.save(
                    checkpoints, n, state, data=stream.get_state(), config=config.to_dict(), metrics=measured
                )
    finally:
        trace.close()
        log.close()
        checkpoint.close(checkpoints)

    if config.export:
        run.export(output / "hf", beside.without(state.params), work, hf_config, tokenizer_folder)


def _selector(config: ConfigDict, objective: objectives.Objective) -> selectors.Selector | None:
    """Build the selector, and say where it takes a hyperparameter from the objective; None where it picks all."""
    if config.name == "everything":
        return None
    selector = selectors.build(objective=objective.hyperparameters, **config)
    for key, value in selector.hyperparameters.items():
        if config.get(key) == selectors.FOLLOW != value:
            logger.tell(f"selector {selector.name}: {key}={value!r}, the objective's")
    return selector


def _check_needs(
    objective: objectives.Objective, needs: frozenset[str], config: ConfigDict, pairs: Part, held_out: Part | None
) -> None:
    """Refuse a run whose data or frozen models cannot give what the objective asks for, and say which keys do."""
    name = objective.name
    mode, modes = config.reference.mode, ("cached", "online", "moving", "none")
    if mode not in modes:
        raise ValueError(f"config.reference.mode={mode!r}: expected one of {', '.join(modes)}")
    if "ref" in needs and mode == "none":
        raise ValueError(
            f"objective {name} compares with a reference, but config.reference.mode is 'none'; "
            "set --config.reference.mode=cached or online"
        )
    of_weights = list(takes_reference_weights(needs))
    if of_weights and mode not in ("online", "moving"):
        raise ValueError(
            f"objective {name} asks for {', '.join(of_weights)} at every token, which takes the reference's weights, "
            f"but config.reference.mode is {mode!r}; set --config.reference.mode=online"
        )
    if "previous" in needs and not config.reference.previous:
        raise ValueError(
            f"objective {name} compares with a second frozen model, the iterate that training starts from; set "
            "--config.reference.previous to its folder"
        )
    if "label" in needs and not pairs.examples.labelled:
        mismatched = " --config.data.mismatched=True" if objective.fewest > 1 else ""
        raise ValueError(
            f"objective {name} asks for labels, which data.format={config.data.format} does not give; set "
            f"--config.data.unpair=True{mismatched} to make two labelled examples of each pair, or take labelled data "
            f"with --config.data.format=unpaired --config.data.candidates=1{mismatched}"
        )
    if needs & {"score", "probability"} and not np.any(pairs.examples.score):
        raise ValueError(
            f"objective {name} asks for the candidates' scores, but the data has none; take pairs with the fields "
            "score_chosen and score_rejected, or a format of ranked responses, such as --config.data.format=ranked"
        )
    if config.data.match_prompts and not ("weight" in needs and pairs.examples.labelled):
        raise ValueError(
            f"data.match_prompts=True weighs examples, which objective {name} does not read; set it to False, or take "
            "an objective that does, such as unpaired.bco_unpaired"
        )
    if "degree" in needs and not config.data.degrade:
        raise ValueError(
            f"objective {name} tells how much of a response's key content was removed, but config.data.degrade is 0; "
            "set --config.data.degrade=3 to add three copies of each response, with more and more removed"
        )
    if config.data.degrade and "degree" not in needs:
        raise ValueError(
            f"config.data.degrade={config.data.degrade} adds copies of the responses, which objective {name} does not "
            "read; set it to 0, or take an objective that does, such as self_supervised.spo"
        )
    for part in filter(None, (pairs, held_out)) if "probability" in needs else ():
        _check_probabilities(name, part)
    if mode == "moving" and not (config.reference.every >= 1 and 0 < config.reference.mix <= 1):
        raise ValueError(
            f"config.reference.every={config.reference.every} and mix={config.reference.mix}: expected steps from 1 "
            "and a share above 0, up to 1"
        )


def _check_probabilities(name: str, part: Part) -> None:
    """Refuse scores that are no probabilities, where an objective reads them as such."""
    score = part.examples.score
    outside = np.flatnonzero(np.any((score < 0) | (score > 1), axis=1))
    if outside.size:
        raise ValueError(
            f"objective {name} reads the candidates' scores as probabilities to win, but those of the {part.name} data "
            f"go from {score.min():g} to {score.max():g} ({outside.size} of {len(score)} examples, first that of row "
            f"{part.examples.row[outside[0]]}); expected 0 to 1: give a preference model's probabilities as scores, "
            "set --config.data.format=bradley_terry, which makes probabilities of scored pairs, or take an objective "
            "that reads an order, such as anchored.sppo_hard"
        )


def _check_candidates(
    objective: objectives.Objective, selector: selectors.Selector | None, config: ConfigDict, examples: data.Examples
) -> None:
    """Refuse a run whose examples, once picked from, lack candidates that the objective, or the diagnostics, read."""
    if selector and config.data.degrade:
        raise ValueError(
            f"selector {selector.name} picks among the copies that config.data.degrade={config.data.degrade} makes, "
            "which the objective knows by their place; set --config.selector.name=everything"
        )
    count, fewest = examples.candidates, objective.fewest
    seen = selectors.count(selector, count) if selector else count
    if seen < fewest:
        more = f"--config.data.candidates={fewest}, with data that has as many"
        if "label" in objective.needs and not config.data.mismatched:
            more = "--config.data.mismatched=True, which adds a response to another prompt"
        elif selector and seen < count:
            more = f"--config.selector.picks={fewest - 1}: {selector.name} leaves {seen} of {count}"
        raise ValueError(
            f"objective {objective.name} reads {fewest} responses of an example, the data gives {seen}; set {more}"
        )
    if config.diagnostics and (count < 2 or examples.labelled or config.data.mismatched):
        raise ValueError(
            f"config.diagnostics={config.diagnostics} compares a chosen with a rejected response to the same prompt, "
            "which labelled, mismatched and single responses do not have; set it to 0"
        )


def _load(config: ConfigDict, tokenizer: data.Tokenizer) -> tuple[Part, Part | None]:
    """Load what is trained on and what is held out."""
    d = config.data
    if not d.path:
        raise ValueError("config.data.path is empty: give a hub name, a folder or a file with preference pairs")

    def load(path: str, *, split: str, rows: str) -> tuple[data.Examples, data.Report]:
        given = {name: d[name] for name in _DATA}
        return data.load(path, tokenizer=tokenizer, split=split, rows=rows, seed=config.seed, **given)

    pairs = Part("train", *load(d.path, split=d.split, rows=d.rows))
    if not (d.eval_path or d.eval_split or d.eval_rows):
        if config.diagnostics:
            raise ValueError(
                f"config.diagnostics={config.diagnostics} looks at held-out examples, but there are none: set "
                "data.eval_path, eval_split or eval_rows, or diagnostics=0"
            )
        return pairs, None
    return pairs, Part("eval", *load(d.eval_path or d.path, split=d.eval_split or d.split, rows=d.eval_rows))


def _plan(
    config: ConfigDict,
    selector: selectors.Selector | None,
    pairs: Part,
    held_out: Part | None,
    devices: int,
    prompts: bool = False,
) -> Plan:
    """Find the length of the run and the sizes of its batches; show what the data is and how it fills them.

    With `prompts` their tokens are scored wherever an objective reads the batch; a selector reads responses alone.
    """
    count, size = len(pairs.examples), config.batch_size
    steps, unused = data.passes(count, size, epochs=config.epochs, steps=config.steps)
    order = data.order(pairs.examples.lengths, size, seed=config.seed, steps=steps, kind=config.data.order)
    rows = {"row_length": config.data.row_length, "pack": config.data.pack}
    if config.accumulate < 1:
        raise ValueError(f"config.accumulate={config.accumulate}: expected a number of micro-batches from 1")
    each = -(-config.accumulate // devices)  # micro-batches of a device: those of one device, shared out
    multiple_of = devices * each
    score_first = selector is not None and _score_first(config.selection, selector, pairs.examples)
    train = data.plan(pairs.examples, order, multiple_of=multiple_of, prompts=prompts and not score_first, **rows)
    parts = [part.examples for part in (pairs, held_out) if part]
    at_once, kind = _at_once(config, parts), "balanced" if config.data.pack else "by_length"
    scans = [(examples, data.evaluation_order(examples.lengths, at_once, kind=kind)) for examples in parts]
    scan = data.plan_together(scans, multiple_of=devices, prompts=prompts, **rows)
    logger.tell(data.render(data.with_packing(pairs.report, pairs.examples, order, train, unused=unused)))
    logger.tell(
        f"step      accumulate={config.accumulate} on {devices} device(s): {each} micro-batch(es) "
        f"of {train.rows // multiple_of} row(s) on each"
    )
    logger.tell(data.render(held_out.report) if held_out else "no evaluation: no data.eval_path, eval_split, eval_rows")
    picked = None
    if selector and score_first:
        picks = selectors.count(selector, train.candidates) - 1
        picked = data.plan(pairs.examples, order, multiple_of=multiple_of, picks=picks, prompts=prompts, **rows)
    return Plan(steps, train, scan, picked)


def _at_once(config: ConfigDict, parts: list[data.Examples]) -> int:
    """Return how many examples are scored at once where there is no gradient."""
    # Where a micro-batch can be trained on, four times the rows can be scored: without a gradient the activations of
    # one layer exist at a time; a step keeps those of all layers, or of one layer with all that its derivative takes.
    # Measured for 4 layers of width 256: 88 MB, where a step takes from 107 MB (remat=layer) to 400 MB (none).
    micro = -(-config.batch_size // config.accumulate)
    # The same sizes serve both parts, so the smaller one, most often the held-out one, should fill its batches.
    count = [len(examples) for examples in parts]
    batches = -(-min(count) // (4 * micro))
    size = config.reference.batch_size or max(micro, -(-min(count) // batches))
    if size < 1:
        raise ValueError(f"config.reference.batch_size={size}: expected examples, or 0 for a number that fits")
    return min(size, max(count))


def _score_first(selection: str, selector: selectors.Selector, examples: data.Examples) -> bool:
    """Whether all candidates are scored without gradient before the picked ones are trained on."""
    if selection == "cheaper":
        picks = selectors.count(selector, examples.candidates) - 1
        tokens = float(examples.lengths.prompt.mean()), float(examples.lengths.response.mean())
        selection = selectors.cheaper(*tokens, examples.candidates, picks)
        logger.tell(f"selection: {selection} is the cheaper way to {selector.name} here")
    elif selection not in ("together", "score_first"):
        raise ValueError(f"config.selection={selection!r}: expected cheaper, together or score_first")
    return selection == "score_first"


def _first_params(config: ConfigDict, work: Run) -> Params:
    """Load, or draw, the parameters that the policy starts from, on their devices."""
    if config.model.weights not in ("load", "random"):
        raise ValueError(f"config.model.weights={config.model.weights!r}: expected 'load' or 'random'")
    return run.load_params(work, work.folder) if config.model.weights == "load" else run.draw_params(work, config.seed)


def _frozen(
    config: ConfigDict,
    work: Run,
    needs: frozenset[str],
    tokenizer: data.Tokenizer,
    pairs: Part,
    held_out: Part | None,
) -> tuple[Part, Part | None, Params | None]:
    """Give both parts what frozen models say of them, or return the reference's parameters."""
    cache = pathlib.Path(config.reference.cache or pathlib.Path(config.output) / "reference_cache")
    parts = [part for part in (pairs, held_out) if part]
    paths = {"reference": config.reference.path, "previous": config.reference.previous}
    keys = {"reference": "reference.path", "previous": "reference.previous"}

    @functools.cache
    def folder(name: str) -> pathlib.Path:
        return hf.resolve(paths[name], key=keys[name]) if paths[name] else work.folder

    @functools.cache  # until this function returns: whose log-probs are kept, its weights go
    def params(name: str) -> Params:
        return run.load_params(work, folder(name)) if paths[name] else _first_params(config, work)

    @functools.cache
    def depends(name: str) -> dict[str, str]:
        """What the numbers of a frozen model depend on, but for the examples."""
        loaded = paths[name] or config.model.weights == "load"
        drawn = f"drawn, seed {config.seed}, jax {jax.__version__}"
        return {
            "weights": reference.weights_digest(folder(name)) if loaded else drawn,
            "model": json.dumps(hf.read_config(folder(name)), sort_keys=True),
            "dtype": config.model.dtype,
            "tokenizer": data.tokenizer_digest(tokenizer),
            **{f"data.{key}": str(config.data[key]) for key in _DATA},
        }

    def columns(name: str) -> list[reference.Columns]:
        bring = functools.partial(params, name)
        return [run.columns(work, part, bring, name=name, cache=cache, key=depends(name)) for part in parts]

    if "previous" in needs:
        parts = [part._replace(previous=own) for part, own in zip(parts, columns("previous"), strict=True)]
        params.cache_clear()  # one frozen model at a time
    if config.data.match_prompts:
        bring, file = functools.partial(params, "reference"), cache / "prompt_weights.npz"
        parts = run.match_prompts(
            work, parts, bring, file=file, key=depends("reference"), batch=config.batch_size, seed=config.seed
        )
    mode, ref_params = config.reference.mode, None
    if "ref" in needs and mode == "cached":
        parts = [part._replace(ref=own) for part, own in zip(parts, columns("reference"), strict=True)]
    elif "ref" in needs or mode == "moving":
        ref_params = params("reference")
    return parts[0], parts[1] if held_out else None, ref_params


def _make_state(
    optimizer: optax.GradientTransformation,
    objective: objectives.Objective,
    learned: Mapping[str, Any],
    key: Key,
    params: Params,
    ref_params: Params | None,
) -> State:
    """Make the state before the first step."""
    params = params | beside.draw(key, learned)
    zero, statistics = jax.numpy.zeros((), jax.numpy.int32), jax.tree.map(jax.numpy.float32, objective.state)
    return State(zero, params, optimizer.init(params), statistics, key, ref_params)


def _record(log: logger.Logger, n: int, metrics: Mapping[str, float]) -> dict[str, float] | None:
    """Write an evaluation, and name its metrics as `best_metric` does."""
    if not metrics:
        return None
    log.record(n, "eval", metrics)
    return {f"eval/{name}": value for name, value in metrics.items()}


def _reference_cost(online: bool, needs: frozenset[str]) -> int:
    """Return the operations for a token and a weight of the reference, which goes through a batch where it is asked."""
    return flops.FORWARD if online and takes_reference(needs) else 0


def _size(params: Params) -> str:
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    return f"{count:,} parameters on {jax.device_count()} {jax.devices()[0].device_kind} device(s)"


if __name__ == "__main__":
    main()
