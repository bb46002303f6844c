"""Learn from one's own samples: `python -m slpojax.online --config=configs/onmcpo_quickstart.py`.

A run is cut into segments. At the start of each the current policy answers prompts, a judge scores the answers, and
training goes on over them, with the optimiser's state. Methods differ in their configuration alone: how many answers,
which judge, which of the answers an objective sees. Every stage is a program of its own whose result is a file in
`<output>/segment-N`; a run that is killed anywhere goes on with the stage that is not done.
"""

import pathlib
import shlex
import subprocess
import sys

import jax

from slpojax import bench as benches
from slpojax import (
    errors,
    generate,
    hosts,
    judge,
    log,
    measure,
    metrics,
    outcome,
    outputs,
    settings,
    simulate,
    train,
    training,
)
from slpojax.settings import Config

# How training reads the judged answers, by online.answers; "beside_pairs" is not among them.
FORMATS = {
    "ranked": "samples",
    **{answers: f"samples_{answers}" for answers in ("in_order", "versus_last", "quantiles")},
}
_DONE = "done"  # the file in a segment's folder that is written last
DEFAULT = "configs/onmcpo_quickstart.py"
CHOICES: settings.Choices = {**train.CHOICES, **judge.CHOICES}


def main() -> None:
    """Run what the command line asks for."""
    config = settings.from_command_line(sys.argv[1:], default=DEFAULT, choices=CHOICES)
    with errors.as_lines():
        hosts.start(config.mesh.distributed, config.mesh.patience)
        refuse(config)
        if config.world:
            config = simulate.prepare(config, train.train)
            online(config, simulate.judge(config))
        else:
            online(config)
        outcome.show(config.output, f"{config.objective.name}, online in {config.online.segments} segments")


def online(config: Config, score: measure.Score | None = None) -> pathlib.Path:
    """Sample, judge and train in turn; return the folder of the last policy.

    Args:
        config: every key of slpojax/defaults.py, resolved.
        score: judges a policy at every evaluation, beside the held-out preferences.

    Raises:
        ValueError: something in the configuration, the models, the prompts or the judge's answers is wrong.
        FloatingPointError: a loss or gradient is not finite.
        Stopped: a signal asked the run to end, and it can go on.
    """
    refuse(config)
    outputs.check(config.output)
    with outputs.alone(config.output, lock="online.lock"):
        for number in range(1, config.online.segments + 1):
            part = segment(config, number)
            if not finished(part):
                log.say(f"segment {number} of {config.online.segments}: {part.output}")
                sample(part)
                train.train(part, score)
            _gather(config, number)
    return pathlib.Path(part.output) / "hf"


def sample(part: Config) -> None:
    """Let the policy that a segment starts from answer, and the judge judge; what is done already is found.

    Answers that stand beside given pairs are not judged.

    Args:
        part: the configuration of the segment.
    """
    bench = benches.make(part)
    params = benches.policy_params(part, bench)
    if part.generate.engine and part.online.serve:
        model = str(pathlib.Path(part.start) / "hf") if part.start else part.model.path
        serve(part.online.serve, model)
    file = generate.run(part, params, bench=bench)
    if part.online.answers in FORMATS:
        judge.run(part, file, params=params, devices=bench.grid)


def serve(command: str, model: str) -> None:
    """Let a command start the server of a model folder anew, from the first host.

    Args:
        command: as in a shell's line; the folder is its last argument. It ends once the server answers.
        model: the folder.

    Raises:
        ValueError: it fails; with its status.
    """
    ended = subprocess.run([*shlex.split(command), model], check=False) if jax.process_index() == 0 else None
    if not outputs.agreed(ended is None or ended.returncode == 0):
        status = f" with status {ended.returncode}" if ended else ""
        raise ValueError(f"config.online.serve={command!r} failed{status} for {model}; run it by hand to see why")


def segment(config: Config, number: int) -> Config:
    """Return the configuration of a segment: of its samples, its judgements and its training.

    Args:
        config: of the whole run.
        number: of the segment, from 1.
    """
    output, before = folder(config, number), folder(config, number - 1)
    count, steps = config.generate.count // config.online.segments, config.steps // config.online.segments
    changes = {
        "output": str(output),
        "steps": steps,
        "schedule_steps": config.schedule_steps or config.steps,
        "generate.rows": f"{(number - 1) * count}:{number * count}",
        **_learnt(config, number),
    }
    judged = config.online.answers in FORMATS
    if judged and not config.world and not config.generate.prompts:  # ask what the data asks, which is replaced here
        of_data = {"prompts": config.data.path, "format": config.data.format, "split": config.data.split}
        changes |= {f"generate.{key}": value for key, value in of_data.items()}
    if number > 1:
        changes["start"] = str(before)
    for key in _following(config):
        if number > 1:
            changes[f"reference.{key}"] = str(before / "hf")
        elif key == "previous":
            changes["reference.previous"] = config.reference.previous or config.model.path
    return settings.replace(config, changes)


def _learnt(config: Config, number: int) -> dict[str, str | int]:
    """Return the keys of what a segment trains on: judged answers, or given pairs with answers behind them."""
    if config.online.answers not in FORMATS:
        drawn = folder(config, number) / generate.FILE
        return {"data.samples": str(drawn), "data.candidates": 2 + config.generate.samples}
    judged = range(1 if config.online.keep else number, number + 1)
    return {
        "data.path": ",".join(str(folder(config, n) / "judged.jsonl") for n in judged),
        "data.format": FORMATS[config.online.answers],
        "data.split": "train",
        "data.rows": "",
        "data.eval_format": config.data.eval_format or config.data.format,
    }


def refuse(config: Config) -> None:
    """Refuse what the configuration alone shows to be wrong, before anything takes time.

    Raises:
        ValueError: names the keys.
    """
    segments, steps, count = config.online.segments, config.steps, config.generate.count
    for key, value in (("steps", steps), ("generate.count", count)):
        if value < segments or value % segments:
            raise ValueError(
                f"config.{key}={value}: expected a multiple of config.online.segments={segments}, so that all segments "
                "are of one size"
            )
    judged = config.online.answers in FORMATS
    if not judged and (config.online.keep or config.generate.second):
        key = "online.keep" if config.online.keep else "generate.second"
        raise ValueError(
            f"config.{key}: online.answers=beside_pairs trains on the policy's own answers of a segment; leave it out"
        )
    if config.data.mixture:
        raise ValueError(
            "config.data.mixture: a segment trains on the answers to one source's prompts; set data.path in its place, "
            "and data.eval_path to what is evaluated on"
        )
    if judged and not config.judge.name:
        raise ValueError("config.judge.name is empty: say who ranks the samples, such as reward_model.score")
    if config.generate.engine and segments > 1 and not config.online.serve:
        raise ValueError(
            "config.generate.engine: a server keeps the model that it was started with, and every segment has another; "
            "set config.online.serve to a command that starts it anew with a folder, or sample in process"
        )
    if config.generate.engine and segments > 1 and config.train.what == "lora" and not config.export_merged:
        raise ValueError(
            "config.generate.engine: a server starts with a model's folder, and train.what=lora exports an adapter's; "
            "set --config.export_merged=true, or sample in process"
        )
    if config.checkpoint_every < 0:
        raise ValueError("config.checkpoint_every=-1: a segment starts from the checkpoint of the one before; set 0")
    if (_following(config) or config.generate.engine) and not config.export:
        raise ValueError(
            "config.export=False, but each segment's export is read by the next one (online.follow, an objective with "
            "a second frozen model, or generate.engine); set it"
        )
    generate.check(config)
    train.check(config, training.method(config))


def folder(config: Config, number: int) -> pathlib.Path:
    """Return where a segment lies."""
    return pathlib.Path(config.output) / f"segment-{number}"


def finished(part: Config) -> bool:
    """Tell whether a segment has come to its end."""
    return outputs.agreed((pathlib.Path(part.output) / _DONE).exists())


def _following(config: Config) -> list[str]:
    """Return the keys of frozen models that are, in each segment, the policy that the segment starts from."""
    previous = "previous" in training.method(config).needs
    return ["path"] * (config.online.follow == "segment") + ["previous"] * previous


def _gather(config: Config, number: int) -> None:
    """Mark a segment as done, and write the metrics of all so far as those of one run."""
    if jax.process_index():
        return
    output, rows = pathlib.Path(config.output), []
    (folder(config, number) / _DONE).touch()
    for n in range(1, number + 1):
        before = (n - 1) * (config.steps // config.online.segments)
        for row in metrics.read_jsonl(folder(config, n) / "metrics.jsonl"):
            if n == 1 or row["step"]:  # a segment begins where the one before was evaluated
                rows.append({**row, "step": row["step"] + before})
    (output / "config.json").write_text(settings.dump(config))
    metrics.write_jsonl(output / "metrics.jsonl", rows)


if __name__ == "__main__":
    main()
