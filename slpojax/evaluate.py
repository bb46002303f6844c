"""Say whether a policy is better, and by how much: `python -m slpojax.evaluate --config.evaluate.run=output/mine`.

The policy is a checkpoint of a run, or a model folder. It is held against a reference on held-out preferences and on
its own samples, and against a baseline by a judge. One page comes out: a table in the terminal, and report.md with its
pictures and report.json in a folder. What is not given is left out, and the page says so.
"""

import hashlib
import json
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slpojax import (
    adapters,
    answers,
    calibration,
    columns,
    contest,
    data,
    errors,
    folders,
    frozen,
    generate,
    hosts,
    judge,
    leaderboards,
    log,
    measure,
    models,
    outputs,
    page,
    parts,
    plots,
    quantities,
    sampling,
    scores,
    settings,
    simulate,
    stages,
    step,
    training,
    winrate,
)
from slpojax import bench as benches
from slpojax import samples as records
from slpojax.base import Params, Shapes, State
from slpojax.bench import Bench
from slpojax.columns import Part
from slpojax.page import Line, Section
from slpojax.samples import Sample
from slpojax.settings import Config
from slpojax.step import Method

DEFAULT = "configs/base.py"
CHOICES: settings.Choices = {**training.CHOICES, **judge.CHOICES}
SAME = "config.reference.path is empty, so the policy's folder would be its own reference: give the reference's"
BATCH = 64  # samples that the reference scores at once


class Policy(NamedTuple):
    """What is evaluated.

    Attributes:
        name: of it, for the page.
        bench: devices, model and tokenizer; None where files of answers alone are compared.
        params: its weights, on their devices; None likewise.
        digest: of its weights, where they lie in a model folder; "" where they do not.
        alone: why there is no reference; "" where there is one.
    """

    name: str
    bench: Bench | None
    params: Params | None
    digest: str
    alone: str


def main() -> None:
    """Evaluate what the command line asks for."""
    config = settings.from_command_line(sys.argv[1:], default=DEFAULT, choices=CHOICES)
    with errors.as_lines():
        if config.evaluate.run:
            _, overrides = settings.parse(sys.argv[1:], default=DEFAULT)
            config = of_run(config.evaluate.run, overrides)
        hosts.start(config.mesh.distributed, config.mesh.patience)
        run(config)


def of_run(folder: str, overrides: dict[str, Any]) -> Config:
    """Return the configuration of a run, with what is asked of its evaluation.

    Args:
        folder: the output folder of the run.
        overrides: dotted key -> value; `output` is the folder, wherever the run believed to write.

    Raises:
        ValueError: no run is there, or a key is wrong.
    """
    here = {"output": folder, "evaluate.run": folder}
    return settings.resolve(settings.of_run(folder), {**here, **overrides}, choices=CHOICES)


def run(config: Config, params: Params | None = None) -> pathlib.Path:
    """Evaluate a policy; return the folder of the report.

    Args:
        config: every key of slpojax/defaults.py, resolved.
        params: the policy's, where they are in memory; None loads what the configuration names.

    Raises:
        ValueError: something in the configuration, the models, the data or the files of answers is wrong.
    """
    asked = config.evaluate
    folder = outputs.check(asked.to or str(pathlib.Path(config.output) / "evaluation"), key="config.evaluate.to")
    with outputs.alone(folder):
        policy = load(config, params)
        sections, more = [], {"policy": policy.name, "objective": config.objective.name}
        if policy.bench:
            sections.append(preferences(config, policy, folder, more))
            if config.world:
                sections.append(world(config, policy))
        config = ask(config, policy, folder)
        if not asked.samples:  # the policy itself has answered, from memory: its folder's digest is not the samples'
            policy = policy._replace(digest="")
        if config.evaluate.samples:
            sections.append(drawn(config, policy, config.evaluate.samples, folder))
        if config.evaluate.judged:
            sections.append(judged(config, policy, config.evaluate.judged, folder))
        if not sections:
            raise ValueError(
                "nothing to evaluate: give --config.evaluate.run or --config.model.path, or files of answers "
                "(--config.evaluate.samples, --config.evaluate.judged)"
            )
        _show(f"Evaluation of {policy.name}", sections, more, folder)
    return folder


def load(config: Config, params: Params | None) -> Policy:
    """Load the policy: a run's checkpoint, a model folder, or the parameters that are given."""
    asked = config.evaluate
    if not config.model.path:
        return Policy(_short(asked.judged or asked.samples), None, None, "", "no model was given (config.model.path)")
    bench = benches.make(config)
    if params is not None:
        return Policy("the policy", bench, params, "", "")
    if asked.run:
        number, params = benches.restore_params(config, bench, pathlib.Path(asked.run), asked.step)
        return Policy(f"{_short(asked.run)} step {number}", bench, params, "", "")
    digest = benches.first_digest(bench)
    return Policy(
        _short(config.model.path),
        bench,
        benches.first_params(config, bench),
        digest,
        SAME * (not config.reference.path),
    )


def _short(path: str) -> str:
    """Return what tells a folder or file from others: the last two parts of its path."""
    return "/".join(pathlib.Path(path.partition("::")[0]).parts[-2:])


def preferences(config: Config, policy: Policy, folder: pathlib.Path, more: dict[str, Any]) -> Section:
    """Return what the objective reports of held-out preferences, with errors, and how well its reward is calibrated.

    Args:
        config: its data, objective and reference.
        policy: whose rewards.
        folder: of the picture.
        more: gets the bins of the calibration, for report.json.
    """
    title, method, bench = "Held-out preferences", training.method(config), policy.bench
    assert bench is not None
    learned = scores.learned(bench.model, jax.eval_shape(bench.model.init, bench.keys.init), method.objective.needs, 2)
    for holds, why in (
        (not parts.has_data(config), "no data was given (config.data.path)"),
        ("ref" in method.needs and policy.alone, f"no rewards of {method.objective.name}: {policy.alone}"),
        (learned, f"{method.objective.name} learns weights beside the policy, which are not at hand; name another one"),
    ):
        if holds:
            return Section(title, [], [why])
    notes = []
    if config.reference.mode in frozen.MOVING:
        config = settings.replace(config, {"reference.mode": "cached"})
        notes.append("the reference of this run moved; rewards are against where it began")
    part = parts.held_out(config, bench)
    log.say(data.render(part.report))
    values = _of_examples(config, policy, method, part)
    prompt = answers.numbers([part.examples[i].prompt.tobytes() for i in range(len(part.examples))])
    lines = [_metric(name, values[name], prompt) for name in quantities.order(list(values))]
    notes.append(f"data: {part.report.source}; {part.report.kept:,} examples of {part.report.read:,} records")
    if part.examples.labelled or not {"rewards/margins", "rewards/chosen"} <= values.keys():
        return Section(title, lines, [*notes, f"no calibration: {method.objective.name} has no reward of pairs"])
    margin = values["rewards/margins"]
    found = calibration.reliability(margin, bins=config.evaluate.bins)
    area = calibration.auc(values["rewards/chosen"], values["rewards/rejected"])
    of, none = f"{len(margin):,} pairs", float("nan")
    lines += [
        Line("AUC of the reward", area, none, "share of all pairs", of),
        Line("expected calibration error", found.ece, none, "share of pairs", f"{of}, {config.evaluate.bins} bins"),
        Line("log-loss of the reward", found.log_loss, none, "nats; 0.693 for none", of),
    ]
    more["reliability"] = found._asdict()
    picture = folder / "preferences.png"
    drawing = jax.process_index() == 0 and contest.pictured(notes, lambda: plots.reliability(found, margin, picture))
    caption = "How often pairs are ranked right of which the reward is so sure, and its margins"
    return Section(title, lines, notes, picture.name if drawing else "", caption)


def _of_examples(config: Config, policy: Policy, method: Method, part: Part) -> dict[str, np.ndarray]:
    """Return the objective's loss and metrics of every example, [N] each."""
    bench, objective = policy.bench, method.objective
    assert bench is not None
    scan = _scan(config, bench, method, part)
    (part,), weights, _, ref_model = frozen.prepare(config, bench, method, scan, [part])
    views = step.WHOLE._replace(reference_model=ref_model)
    statistics = jax.tree.map(jnp.float32, objective.state)
    state = State(jnp.zeros((), jnp.int32), policy.params, (), statistics, bench.keys.step)
    inputs = measure.model_inputs(bench, objective, views, scan, weights)
    whole = measure.whole(lambda batch: inputs(state, batch), columns.batches(bench.grid, part, scan))
    return measure.of_examples(objective, whole | {"state": statistics}, bench.keys.measure)


def _scan(config: Config, bench: Bench, method: Method, part: Part) -> Shapes:
    """Return the sizes of batches that go through a part once."""
    kind = "balanced" if config.data.pack else "by_length"
    at_once = min(config.reference.batch_size or config.batch_size, len(part.examples))
    order = data.evaluation_order(part.examples.lengths, at_once, kind=kind)
    return data.plan_together(
        [(part.examples, order)],
        multiple_of=bench.grid.devices,
        prompts="prompt" in method.needs,
        row_length=config.data.row_length,
        pack=config.data.pack,
    )


def world(config: Config, policy: Policy) -> Section:
    """Return the gold reward of a policy in its world, and the KL that it pays."""
    if policy.alone:
        return Section(f"World {config.world}", [], [f"no gold reward: {policy.alone}"])
    if config.reference.path and not config.evaluate.run:  # the world's judge takes what the policy started from
        config = settings.replace(config, {"model.path": config.reference.path})
    found = simulate.judge(config)(policy.params, 0)
    lines = []
    for name in quantities.order(list(found)):
        quantity = quantities.find(name)
        unit, digits = (quantity.unit, quantity.digits or 4) if quantity else ("", 4)
        lines.append(Line(quantities.label(name), found[name], float("nan"), unit, "fresh samples", digits))
    return Section(f"World {config.world}", lines)


def drawn(config: Config, policy: Policy, path: str, folder: pathlib.Path) -> Section:
    """Return lengths, variety, entropy and KL of a policy's samples.

    Args:
        config: its reference.
        policy: whose samples.
        path: of them.
        folder: of the picture.

    Raises:
        ValueError: the file is none of samples, or its tokens are not the reference's.
    """
    _require_whole(path)
    every = list(records.read(path))
    found = [one for one in every if records.PLAYER not in one.about]
    if not found:
        raise ValueError(f"config.evaluate.samples={path}: holds no sample; generate some")
    ref_logps = None if policy.alone else _reference_logps(config, policy, path, found)
    picture = folder / "samples.png" if jax.process_index() == 0 else None
    section = contest.samples(found, ref_logps, policy.alone, picture)
    if others := len(every) - len(found):
        section = section._replace(notes=[*section.notes, f"{others:,} answers of another player are left out"])
    if policy.digest and any(one.model != policy.digest for one in found):
        note = f"warning: {path} was written by other weights than those of {policy.name}"
        section = section._replace(notes=[*section.notes, note])
    return section


def _reference_logps(config: Config, policy: Policy, path: str, found: list[Sample]) -> list[np.ndarray]:
    """Return log p of every sample's tokens under the reference."""
    bench = policy.bench
    assert bench is not None
    size = models.vocabulary(bench.hf_config, max_length=config.data.max_length, family=config.model.family)
    for row, one in enumerate(found, 1):
        if max([*one.ids, *one.prompt_ids]) >= size:
            raise ValueError(
                f"{path}, line {row}: ids: one is above the vocabulary of {size:,}; another model's samples?"
            )
    source = frozen.reference(config, bench)
    longest = max(max(len(one.ids) for one in found), 1)
    return sampling.score(
        source.model,
        source.params(),
        [one.prompt_ids for one in found],
        [one.ids for one in found],
        max_new_tokens=longest,
        batch=min(config.reference.batch_size or BATCH, len(found)),
        grid=bench.grid,
    )


def judged(config: Config, policy: Policy, path: str, folder: pathlib.Path) -> Section:
    """Return scores and win rates; write them in the shapes of AlpacaEval and Arena-Hard.

    Args:
        config: its group `evaluate`.
        policy: whose answers.
        path: of them, judged.
        folder: of the files.

    Raises:
        ValueError: a file is none of judged answers, or two do not compare.
    """
    asked = config.evaluate
    for file in (path, asked.baseline, asked.reference, asked.control):
        _require_whole(file.partition("::")[0])
    given = {
        key: answers.read(asked[key], f"evaluate.{key}") for key in ("baseline", "reference", "control") if asked[key]
    }
    ours = answers.read(path, "evaluate.judged")
    against = given.pop("baseline", None) or given.pop("reference", None)
    writes = jax.process_index() == 0
    section, contests = contest.win_rates(ours, against, given, folder / "win_rates.png" if writes else None)
    if not contests or against is None or not writes:
        return section
    questions = leaderboards.read_questions(asked.questions) if asked.questions else []
    said = contest.write(folder, policy.name, ours, against, contests[0], questions, time.time())
    return section._replace(notes=[*section.notes, *said])


def _require_whole(name: str) -> None:
    """Refuse a file that its program has not finished, or that was changed since; "" is none."""
    path = pathlib.Path(name)
    if name and (not path.exists() or path.with_suffix(".made.json").exists()):
        stages.read_seal(path)


def ask(config: Config, policy: Policy, folder: pathlib.Path) -> Config:
    """Let the policy and its reference answer, and a judge judge, where a judge is named and no file is.

    Args:
        config: `generate` says what is asked, `judge` and `ranking` who judges and how.
        policy: who answers.
        folder: of the report; the answers lie in it.

    Returns:
        The configuration with the files of samples and judgements: of the policy, of the reference as baseline where
        there is one, and of one constant answer as control.
    """
    if not config.judge.name or config.evaluate.judged or policy.bench is None:
        return config

    def answered(name: str, **changes: Any) -> pathlib.Path:
        where = {"generate.to": str(folder / name), "generate.generator": name, "generate.second": "", **changes}
        params, bench = (policy.params, policy.bench) if name == "policy" else (None, None)
        return generate.run(settings.replace(config, where), params, bench=bench)

    files = {"policy": answered("policy")}
    if not policy.alone:
        theirs: dict[str, Any] = {"model.path": config.reference.path or config.model.path, "start": ""}
        if config.reference.path and adapters.is_one(folders.resolve(config.reference.path, key="reference.path")):
            theirs |= {"train.what": "all", "model.frozen_dtype": "float32"}  # not the adapter that the run trains
        files["reference"] = answered("reference", **theirs)
    count, text = config.generate.samples, config.evaluate.constant
    several = [[*records.read(str(file))] for file in files.values()]
    if text:
        several.append(answers.constant(several[0], text))
    names = [*files, *["control"] * bool(text)]
    keys = {"policy": "judged", "reference": "baseline", "control": "control"}
    if config.ranking == "scores":
        for name, drawn_by in zip(names, several, strict=True):
            if name not in files:
                files[name] = _write(folder / name, [*records.by_prompt(drawn_by)])
        judgements = {keys[name]: str(judge.run(config, file, params=policy.params)) for name, file in files.items()}
    else:
        pooled = _write(folder / "pooled", [*answers.pool(several)])
        path = judge.run(config, pooled, params=policy.params)
        ends = np.cumsum([count] * len(files) + [1] * bool(text)).tolist()
        starts = [0, *ends[:-1]]
        judgements = {keys[n]: f"{path}::{a}:{b}" for n, a, b in zip(names, starts, ends, strict=True)}
    found = {f"evaluate.{key}": file for key, file in judgements.items()}
    return settings.replace(config, {"evaluate.samples": str(files["policy"]), **found})


def _write(folder: pathlib.Path, groups: list[list[Sample]]) -> pathlib.Path:
    """Write samples, prompt by prompt, as the program that samples does; return the file."""
    made_of = hashlib.sha256(json.dumps(groups).encode()).hexdigest()
    stage = stages.Stage(folder / generate.FILE, {"samples": made_of}, "prompts")
    stages.fill(stage, len(groups), lambda first: ([records.as_record(one) for one in g] for g in groups[first:]))
    return stage.path


def _metric(name: str, values: np.ndarray, prompt: np.ndarray) -> Line:
    """Return the line of an objective's metric; one that is the same for all examples is the batch's, without error."""
    found = winrate.mean(np.asarray(values, np.float64), prompt)
    if np.ptp(values) == 0:
        found = found._replace(error=float("nan"))
    quantity = quantities.find(name)
    unit, digits = (quantity.unit, quantity.digits) if quantity else ("", None)
    return page.line(quantities.label(name), found, unit, "examples", digits=4 if digits is None else digits)


def _show(title: str, sections: list[Section], more: dict[str, Any], folder: pathlib.Path) -> None:
    """Print the table, and write report.md and report.json."""
    log.say(page.table(title, sections))
    for section in sections:
        for note in section.notes:
            log.say(f"{section.title}: {note}")
    if jax.process_index() == 0:
        (folder / "report.md").write_text(page.markdown(title, sections), encoding="utf-8")
        (folder / "report.json").write_text(page.as_json(title, sections, more), encoding="utf-8")
    log.say(f"wrote {folder / 'report.md'} and report.json")


if __name__ == "__main__":
    main()
