"""The parts of the data of a run: loaded, refused where they lack what is asked for, and described.

Knows a configuration's groups of data keys and a method; knows no model and no step.
"""

from collections.abc import Sequence

import numpy as np

from slpojax import data, log, models, selectors, vocabulary
from slpojax.base import Shapes
from slpojax.bench import Bench
from slpojax.columns import Part
from slpojax.grid import Grid
from slpojax.settings import Config
from slpojax.step import Method


def load(config: Config, bench: Bench) -> list[Part]:
    """Load what is trained on and, if there is any, what is held out; refuse tokens that the policy does not know."""
    d = config.data
    if not d.path:
        raise ValueError("config.data.path is empty: give a hub name, a folder or a file with preference pairs")
    chosen = settings(config)

    def part(name: str, path: str, split: str, rows: str) -> Part:
        source = data.Source(path, split, rows)
        return Part(name, *data.load(source, chosen, tokenizer=bench.tokenizer, seed=config.seed))

    parts = [part("train", d.path, d.split, d.rows)]
    if d.eval_path or d.eval_split or d.eval_rows:
        held_out = part("eval", d.eval_path or d.path, d.eval_split or d.split, d.eval_rows)
        report = data.with_overlap(held_out.report, held_out.examples, parts[0].examples)
        parts.append(held_out._replace(report=report))
    vocabulary.require_ids(
        {part.name: part.examples for part in parts},
        models.vocabulary(bench.hf_config, max_length=d.max_length, family=config.model.family),
        key="model.path",
        tokenizer=bench.tokenizer,
    )
    return parts


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


def settings(config: Config) -> data.Settings:
    """Return what the examples are made by."""
    return data.settings({name: config.data[name] for name in data.FIELDS})


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
        log.say("no evaluation: no data.eval_path, eval_split, eval_rows")
