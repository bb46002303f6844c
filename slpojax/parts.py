"""The parts of the data of a run: loaded, refused where they lack what is asked for, and described.

Knows a configuration's groups of data keys and a method; knows no model and no step.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from slpojax import data, log, models, selectors, vocabulary, worlds
from slpojax.base import Shapes
from slpojax.bench import Bench
from slpojax.columns import Part
from slpojax.grid import Grid
from slpojax.settings import Config, evaluated
from slpojax.step import Method


def check(config: Config) -> None:
    """Refuse what the keys of the data alone show to be wrong.

    Raises:
        ValueError: a mixture beside what it stands for, or sources that cannot be mixed; names the keys.
    """
    d = config.data
    if not d.mixture:
        return
    beside = ["data.path"] * bool(d.path) + ["world"] * bool(config.world)
    if beside:
        raise ValueError(
            f"config.{beside[0]} and config.data.mixture both say what is trained on; leave one of them out"
        )
    if (d.eval_split or d.eval_rows) and not d.eval_path:
        raise ValueError(
            "config.data.eval_split and eval_rows read data.path, and a mixture has none; set those of its sources, as "
            "config.data.mixture.NAME.eval_rows, or data.eval_path"
        )
    weighted = [name for name, one in d.mixture.items() if one.weight]
    for name, one in d.mixture.items():
        key = f"config.data.mixture.{name}"
        if not one.path:
            raise ValueError(f"{key}.path is empty: give a hub name, a folder or a file")
        if one.weight and one.count:
            raise ValueError(f"{key} has a weight and a count; set one of them to 0")
        if weighted and not one.weight and not one.count:
            raise ValueError(f"{key} has neither weight nor count, and {weighted[0]} has a weight; give it one of them")


def longest_answer(config: Config) -> int:
    """Return the most tokens of an answer that is sampled.

    Args:
        config: `generate.max_new_tokens`, `world`, and of `data` the lengths.
    """
    asked = config.generate.max_new_tokens
    if not asked and config.world:
        return worlds.find(config.world)[1].longest
    return asked or config.data.max_length - config.data.max_prompt_length


def load(config: Config, bench: Bench) -> list[Part]:
    """Load what is trained on and, if there is any, what is held out; refuse tokens that the policy does not know."""
    check(config)
    d = config.data
    if not has_data(config):
        raise ValueError(
            "config.data.path is empty: give a hub name, a folder or a file with preference pairs, or several of them "
            "in config.data.mixture"
        )
    if d.mixture:
        parts = [_mixture(config, bench, "train", _sources(config))]
    else:
        parts = [_part(config, bench, "train", data.Source(d.path, d.split, d.rows, d.samples), d.format)]
    if evaluated(config):
        held = _held_out(config, bench)
        report = data.with_overlap(held.report, held.examples, parts[0].examples)
        parts.append(held._replace(report=report))
    _require_ids(config, bench, parts)
    return parts


def has_data(config: Config) -> bool:
    """Say whether there is data to train on."""
    return bool(config.data.path or config.data.mixture)


def held_out_sources(config: Config) -> list[str]:
    """Return the names of the sources of a mixture of which something is held out; none where `data.eval_path` is."""
    every = {} if config.data.eval_path else config.data.mixture
    return [name for name, one in every.items() if one.eval_path or one.eval_split or one.eval_rows]


def held_out(config: Config, bench: Bench) -> Part:
    """Load what is held out, or where nothing is, all that is trained on; refuse tokens that the policy lacks."""
    part = _held_out(config, bench)
    _require_ids(config, bench, [part])
    return part


def _held_out(config: Config, bench: Bench) -> Part:
    d, form = config.data, config.data.eval_format or config.data.format
    if d.mixture and not d.eval_path:
        return _mixture(config, bench, "eval", _held_out_sources(config))
    source = data.Source(d.path, d.split, d.rows)
    if evaluated(config):
        source = data.Source(d.eval_path or d.path, d.eval_split or d.split, d.eval_rows)
    return _part(config, bench, "eval", source._replace(samples=d.samples, held_out=True), form)


def _sources(config: Config) -> dict[str, data.Source]:
    """Return the sources of a mixture, what is trained on."""
    d = config.data
    return {name: data.Source(one.path, one.split, one.rows, d.samples) for name, one in d.mixture.items()}


def _held_out_sources(config: Config) -> dict[str, data.Source]:
    """Return what is held out of the sources of a mixture, or where nothing is, all that is trained on."""
    every, named = config.data.mixture, held_out_sources(config)
    found = {
        name: data.Source(
            every[name].eval_path or every[name].path,
            every[name].eval_split or every[name].split,
            every[name].eval_rows,
        )
        for name in named
    }
    return {
        name: source._replace(samples=config.data.samples, held_out=True)
        for name, source in (found or _sources(config)).items()
    }


def _mixture(config: Config, bench: Bench, name: str, sources: Mapping[str, data.Source]) -> Part:
    """Load sources and mix them; what is evaluated on is all of each."""
    loaded, every = {}, config.data.mixture
    for of, source in sources.items():
        try:
            loaded[of] = _load(config, bench, source, every[of].format or config.data.format)
        except ValueError as error:
            raise ValueError(f"config.data.mixture.{of}: {error}") from error
    available = {of: len(examples) for of, (examples, _) in loaded.items()}
    trained = name == "train"
    weights = {of: every[of].weight for of in sources if every[of].weight and trained}
    counts = {of: every[of].count for of in sources if every[of].count and trained}
    drawn = data.sizes(available, weights, counts)
    of_each = (f"{drawn[of]:,} of the {count:,} examples of {of}" for of, count in available.items())
    mixed = data.mix(loaded, drawn, seed=config.seed, line=f"a mixture: {', '.join(of_each)}")
    return Part(name, *mixed)


def _part(config: Config, bench: Bench, name: str, source: data.Source, form: str) -> Part:
    return Part(name, *_load(config, bench, source, form))


def _load(config: Config, bench: Bench, source: data.Source, form: str) -> tuple[data.Examples, data.Report]:
    chosen, cache = settings(config, form), config.data.cache
    return data.load(source, chosen, tokenizer=bench.tokenizer, seed=config.seed, cache=cache)


def _require_ids(config: Config, bench: Bench, parts: Sequence[Part]) -> None:
    vocabulary.require_ids(
        {part.name: part.examples for part in parts},
        models.vocabulary(bench.hf_config, max_length=config.data.max_length, family=config.model.family),
        key="model.path",
        tokenizer=bench.tokenizer,
    )


def refuse(config: Config, method: Method, parts: Sequence[Part]) -> None:
    """Refuse data that lacks what the method asks for, before anything is compiled."""
    objective, selector = method.objective, method.selector
    if selector:
        selectors.refuse(
            selector,
            objective=objective.name,
            fewest=objective.fewest,
            candidates=parts[0].examples.candidates,
            degrade=config.data.degrade,
        )
    data.refuse(
        method.asked,
        settings(config),
        {part.name: part.examples for part in parts},
        objective=objective.name,
        fewest=objective.fewest,
        match_prompts=config.data.match_prompts,
        diagnostics=config.diagnostics,
    )


def settings(config: Config, form: str = "") -> data.Settings:
    """Return what the examples are made by, with another parser where it is named."""
    fields = {name: config.data[name] for name in data.FIELDS}
    fields["chat_template_kwargs"] = fields["chat_template_kwargs"].to_dict()
    return data.settings({**fields, "format": form} if form else fields)


def describe(
    config: Config, parts: Sequence[Part], order: Sequence[np.ndarray], shapes: Shapes, unused: int, devices: Grid
) -> None:
    """Show what became of the data, and how it fills the rows.

    Args:
        config: every key of slpojax/defaults.py.
        parts: of the data, what is trained on first.
        order: the examples of every batch.
        shapes: sizes of these batches.
        unused: examples of the last pass that no full batch is left for.
        devices: over which the rows are split.
    """
    packed = data.with_packing(parts[0].report, parts[0].examples, order, shapes, unused=unused)
    log.say(data.render(packed))
    log.say(
        f"step      accumulate={config.accumulate} on {devices.devices} device(s): {shapes.groups // devices.devices} "
        f"micro-batch(es) of {shapes.rows // shapes.groups} row(s) on each"
    )
    for part in parts[1:]:
        log.say(data.render(part.report))
    if len(parts) == 1:
        log.say(
            "no evaluation: no data.eval_path, eval_split, eval_rows" + " of any source" * bool(config.data.mixture)
        )
