"""Sample answers of a policy: `python -m slpojax.generate --config=configs/quickstart.py --config.generate.samples=4`.

Reads prompts, and writes <output>/samples.jsonl, a line a sample with its token ids and their log-probs; a superset of
AlpacaEval's outputs. The policy samples in this process, or a server of its folder does. Killed anywhere, the same
command goes on and ends with the same bytes (a server's draws are its own).
"""

import functools
import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from slpojax import bench as benches
from slpojax import (
    checkpoint,
    data,
    engines,
    errors,
    frozen,
    hosts,
    log,
    models,
    named,
    outputs,
    parts,
    places,
    samples,
    sampling,
    servers,
    settings,
    simulate,
    stages,
    sums,
    training,
    worlds,
)
from slpojax.base import Params
from slpojax.bench import Bench
from slpojax.data import asking, sources
from slpojax.data.asking import Asked
from slpojax.engines import Completion
from slpojax.samples import Sample
from slpojax.sampling import players
from slpojax.settings import Config

DEFAULT = "configs/quickstart.py"
CHOICES = training.CHOICES

FILE = "samples.jsonl"
_VERSION = 1  # of how samples are made from what the seal names
_HOTTEST = 100.0  # temperature


class Plan(NamedTuple):
    """What is sampled, and how.

    Attributes:
        prompts: in order.
        first: number of the first of them among all that can be asked.
        temperatures: [K] of the answers to each.
        most: tokens of an answer.
        ends: ids that end one.
        model: digest of the weights.
        generator: what the file calls who answers.
        second: who gives the last of the K answers; "" for the policy, as the others.
    """

    prompts: Sequence[Asked]
    first: int
    temperatures: tuple[float, ...]
    most: int
    ends: tuple[int, ...]
    model: str
    generator: str
    second: str = ""


def main() -> None:
    """Sample what the command line asks for."""
    config = settings.from_command_line(sys.argv[1:], default=DEFAULT, choices=CHOICES)
    with errors.as_lines():
        hosts.start(config.mesh.distributed, config.mesh.patience)
        run(config)


def run(config: Config, params: Params | None = None, *, bench: Bench | None = None) -> pathlib.Path:
    """Sample answers to prompts, or find them sampled; return the file.

    Args:
        config: every key of slpojax/defaults.py; `generate` says what is asked and how.
        params: the policy's parameters, on their devices; None for those of `start`, or of model.path.
        bench: what is prepared already; None to prepare it.

    Raises:
        ValueError: a key, the model, a prompt's file or the server is not as it should be; says which and what to do.
    """
    config = _with_model(config)
    check(config)
    if bench is None:  # weights that a server holds need not be here
        bench = benches.make(
            settings.replace(config, {"model.weights": "random"}) if config.generate.engine else config
        )
    plan = make_plan(config, bench, _digest(config, bench, params))
    folder = outputs.check(
        config.generate.to or config.output, "config.generate.to" if config.generate.to else "config.output"
    )
    stage = stages.Stage(folder / FILE, _key(config, bench, plan), "prompts sampled")
    produce = _by_server if config.generate.engine else functools.partial(_in_process, params=params)
    with outputs.alone(folder, lock="generate.lock"):
        stages.fill(stage, len(plan.prompts), lambda first: produce(config, bench, plan, first))
    log.say(summary(stage.path))
    return stage.path


def check(config: Config) -> None:
    """Refuse what the configuration alone shows to be wrong.

    Raises:
        ValueError: names the key.
    """
    g = config.generate
    for key in ("prompts", "to"):
        places.require(f"generate.{key}", g[key])
    heat, count = g.temperature, g.samples
    good = heat and all(isinstance(t, int | float) and 0 <= t <= _HOTTEST for t in heat)
    named.require(bool(good), "config.generate.temperature", heat, f"numbers from 0 (greedy) to {_HOTTEST:g}")
    if count % len(heat):
        raise ValueError(
            f"config.generate.samples={count}: expected a multiple of the {len(heat)} temperatures, so that each has "
            "as many samples"
        )
    named.require(
        all(isinstance(text, str) and text for text in g.stop),
        "config.generate.stop",
        g.stop,
        "texts, none of them empty",
    )
    if parts.longest_answer(config) < 1 or parts.longest_answer(config) >= config.data.max_length:
        raise ValueError(
            f"config.generate.max_new_tokens={parts.longest_answer(config)}: expected 1 or more, and less than "
            f"config.data.max_length={config.data.max_length}, which holds prompt and answer"
        )
    sources.parse_range(g.rows)
    if g.second:
        _check_second(config)


def _check_second(config: Config) -> None:
    g, mode = config.generate, config.reference.mode
    if g.samples < 2:
        raise ValueError(
            f"config.generate.samples={g.samples}: with generate.second={g.second} the last answer to a prompt is not "
            "the policy's; expected 2 or more"
        )
    if g.engine:
        raise ValueError(
            f"config.generate.second={g.second} samples in this process, and generate.engine serves the policy alone; "
            "leave one of them out"
        )
    if mode not in ("cached", "online"):
        raise ValueError(
            f"config.generate.second={g.second} asks a reference that stays, but config.reference.mode is {mode!r}; "
            "set --config.reference.mode=cached or online"
        )


# ---- what is asked ---------------------------------------------------------------------------------------------------


def make_plan(config: Config, bench: Bench, digest: str) -> Plan:
    """Read the prompts, and return what is sampled."""
    g = config.generate
    share = g.samples // len(g.temperature)
    prompts = _prompts(config, bench)[: g.count or None]
    if g.count > len(prompts):
        raise ValueError(f"config.generate.count={g.count:,}: only {len(prompts):,} prompts can be asked; lower it")
    start, stop = sources.parse_range(g.rows)
    if not prompts[start:stop]:
        raise ValueError(f"config.generate.rows={g.rows!r}: of {len(prompts):,} prompts none is left")
    size = models.vocabulary(bench.hf_config, max_length=config.data.max_length, family=config.model.family)
    for one in prompts[start:stop]:
        if int(one.ids.max()) >= size:
            raise ValueError(
                f"prompt {one.number}: token id {int(one.ids.max())}, but the model of config.model.path knows {size}; "
                "set config.data.tokenizer to the one that belongs to it"
            )
    return Plan(
        prompts=prompts[start:stop],
        first=start,
        temperatures=tuple(float(t) for t in g.temperature for _ in range(share)),
        most=parts.longest_answer(config),
        ends=_ends(bench),
        model=digest,
        generator=g.generator or pathlib.Path(config.model.path).name,
        second=g.second,
    )


def _prompts(config: Config, bench: Bench) -> list[Asked]:
    """Return all prompts that can be asked: of a file, of a world, or of the data."""
    g = config.generate
    if not g.prompts and config.world:
        _, world = worlds.find(config.world)
        return asking.of_texts(world.prompts(g.count or world.judged), bench.tokenizer)
    path, form, split, rows = g.prompts, g.format, g.split, ""
    if not path:
        path, form, split, rows = config.data.path, config.data.format, config.data.split, config.data.rows
    if not path:
        raise ValueError(
            "config.generate.prompts is empty, as are config.world and config.data.path: give a file; a mixture is not "
            "asked"
        )
    found, report = asking.load(
        data.Source(path, split, rows),
        parts.settings(config),
        format=form,
        tokenizer=bench.tokenizer,
        most=config.data.max_length - parts.longest_answer(config),
    )
    log.say(data.render(report))
    return found


def _with_model(config: Config) -> Config:
    """Return the configuration with the reference of its world as model, where no model is named."""
    if config.world and not config.model.path:
        return settings.replace(config, {"model.path": simulate.reference(config)})
    return config


def _ends(bench: Bench) -> tuple[int, ...]:
    """Return the ids that end an answer: the tokenizer's EOS, and those that the model's folder names."""
    also = bench.beside.generation.get("eos_token_id")
    listed = also if isinstance(also, list) else [also]
    assert bench.tokenizer is not None
    return tuple(sorted({bench.tokenizer.eos_token_id, *(i for i in listed if isinstance(i, int))}))


def _digest(config: Config, bench: Bench, params: Params | None) -> str:
    """Return the digest of the weights that sample."""
    if params is not None:
        bits = json.dumps(sums.of(params).bits, sort_keys=True)
        return hashlib.sha256(bits.encode()).hexdigest()
    if config.start:
        return checkpoint.last_digest(config.start)
    if config.model.weights == "load":
        return benches.first_digest(bench)
    return hashlib.sha256(json.dumps([bench.hf_config, config.seed], sort_keys=True).encode()).hexdigest()


def _key(config: Config, bench: Bench, plan: Plan) -> dict[str, str]:
    """Return all that the samples depend on."""
    g = config.generate
    asked = [[one.number, one.prompt, one.ids.tolist(), dict(one.about)] for one in plan.prompts]
    return {
        "version": str(_VERSION),
        "prompts": hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest(),
        "rows": str(plan.first),
        "model": plan.model,
        "tokenizer": data.tokenizer_digest(bench.tokenizer),
        "dtype": config.model.dtype,
        "engine": "a server" if g.engine else "in process",
        "seed": "" if g.engine else str(config.seed),
        "temperatures": str(plan.temperatures),
        "top_k, top_p, min_p": str([g.top_k, g.top_p, g.min_p]),
        "max_new_tokens": str(plan.most),
        "ends": str(plan.ends),
        "stop": str(tuple(g.stop)),
        "generator": plan.generator,
        **(_key_of_second(config, bench) if g.second else {}),
    }


def _key_of_second(config: Config, bench: Bench) -> dict[str, str]:
    """Return what the answers of the second player depend on beside the policy."""
    second, depends = config.generate.second, frozen.reference(config, bench).key
    share = {"mixture": str(config.generate.mixture)} if second == "mixture" else {}
    return {"second": second, "reference": depends["weights"], "reference's model": depends["model"], **share}


# ---- who answers -----------------------------------------------------------------------------------------------------


def _in_process(
    config: Config, bench: Bench, plan: Plan, first: int, *, params: Params | None
) -> Iterator[list[dict[str, Any]]]:
    """Yield the records of every prompt from the `first` on; the policy samples on the devices.

    Prompts are sampled in chunks that depend on the configuration alone, and one that was begun is sampled from its
    start: so no bit depends on where an earlier process stopped.
    """
    if first == len(plan.prompts):  # an earlier process sampled all of them, and wrote no seal
        return
    if params is None:
        params = benches.policy_params(config, bench)
    g, count = config.generate, len(plan.temperatures)
    stop, stream = asking.stop(bench.tokenizer, g.stop), sampling.stream
    if g.second:
        stream = functools.partial(players.stream, _second(config, bench, params))
    size = sampling.prompts_at_once(g.slots, count)
    for start in range(first - first % size, len(plan.prompts), size):
        chunk = plan.prompts[start : start + size]
        answers = stream(
            bench.model,
            params,
            [one.ids for one in chunk],
            key=bench.keys.sample,
            max_new_tokens=plan.most,
            eos=plan.ends,
            samples=count,
            temperatures=plan.temperatures,
            draw=sampling.Draw(top_k=g.top_k, top_p=g.top_p, min_p=g.min_p),
            stop=stop,
            slots=g.slots,
            first=plan.first + start,
            grid=bench.grid,
        )
        for number, (one, found) in enumerate(zip(chunk, answers, strict=True), start):
            if number >= first:
                own = [_cut(Completion([*map(int, r.token)], _short(r.logp), bool(r.finished)), stop) for r in found]
                yield _records(bench, plan, one, own, seed=config.seed)


def _second(config: Config, bench: Bench, params: Params) -> players.Player:
    """Return who gives the last answer to every prompt, with the weights on the devices."""
    source = frozen.reference(config, bench)
    reference = players.Player(source.model, source.params())
    if config.generate.second == "reference":
        return reference
    return players.mixture(players.Player(bench.model, params), reference, config.generate.mixture)


def _by_server(config: Config, bench: Bench, plan: Plan, first: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the records of every prompt from the `first` on; a server samples. The first host asks, and it writes."""
    g, rest = config.generate, plan.prompts[first:]
    if jax.process_index() > 0 or not rest:
        yield from ([] for _ in rest)
        return
    stop, tokenizer = asking.stop(bench.tokenizer, g.stop), bench.tokenizer
    assert tokenizer is not None
    server = servers.connect(g.engine, key_variable=g.engine_key, timeout=g.engine_timeout, in_flight=g.engine_requests)
    asked = engines.Asked(plan.temperatures, g.top_k, g.top_p, g.min_p, plan.most, g.stop)
    engine = engines.connect(
        server,
        model=g.engine_model,
        vocabulary=models.vocabulary(bench.hf_config, max_length=config.data.max_length, family=config.model.family),
        prompt=rest[0].ids,
        as_text=functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False),
        asked=asked,
    )
    try:
        answers = engines.answers(engine, ((one.number, one.ids) for one in rest), asked)
        for one, found in zip(rest, answers, strict=True):
            yield _records(bench, plan, one, [_cut(answer, stop) for answer in found], seed=-1)
    finally:
        log.say(servers.counted(server))


def _records(bench: Bench, plan: Plan, one: Asked, found: Sequence[Completion], *, seed: int) -> list[dict[str, Any]]:
    """Return the records of the answers to a prompt.

    Raises:
        ValueError: an answer is none, such as one with a log-prob that is no number; names the prompt.
    """
    texts = asking.answers(bench.tokenizer, one.ids.tolist(), [answer.ids for answer in found])
    own = len(found) - bool(plan.second)
    made = [
        Sample(
            instruction=one.instruction,
            output=text,
            generator=plan.generator if k < own else f"{plan.generator} ({plan.second})",
            prompt=one.prompt,
            prompt_id=one.number,
            sample_id=k,
            seed=seed,
            temperature=plan.temperatures[k],
            prompt_ids=one.ids.tolist(),
            ids=answer.ids,
            logps=answer.logps,
            finished=answer.finished,
            model=plan.model,
            about=one.about if k < own else {**one.about, samples.PLAYER: plan.second},
        )
        for k, (text, answer) in enumerate(zip(texts, found, strict=True))
    ]
    try:
        return [samples.as_record(sample) for sample in made]
    except ValueError as error:
        raise ValueError(f"prompt {one.number}: {error}; are the model's weights whole?") from None


def _cut(answer: Completion, stop: asking.Stop | None) -> Completion:
    """Return an answer up to the text that ends it."""
    keep = stop(np.array(answer.ids)) if stop else None
    return answer if keep is None else Completion(answer.ids[:keep], answer.logps[:keep], True)


def _short(logps: np.ndarray) -> list[float]:
    """Return float32 numbers with as many digits as tell them apart, none above 0."""
    return [
        min(0.0, float(str(logp))) if math.isfinite(logp) else float(logp) for logp in np.asarray(logps, np.float32)
    ]


# ---- the line at the end ---------------------------------------------------------------------------------------------


def summary(path: pathlib.Path) -> str:
    """Return a line on a file of samples: how many, how long, how many ended by themselves, and how many are alike."""
    count = prompts = tokens = finished = alike = 0
    for answers in samples.by_prompt(samples.read(path)):
        prompts, count = prompts + 1, count + len(answers)
        tokens += sum(len(one.ids) for one in answers)
        finished += sum(one.finished for one in answers)
        alike += samples.alike([one.ids for one in answers])
    same = f"; those of {alike:,} prompts are all alike" * (alike > 0)
    return (
        f"{path}: {count:,} answers to {prompts:,} prompts, {tokens / max(count, 1):.1f} tokens on average, "
        f"{finished / max(count, 1):.0%} ended by themselves{same}"
    )


if __name__ == "__main__":
    main()
