"""Compare methods in a world: `python -m slpojax.frontier --config=configs/frontier_reviews.py`.

A grid of methods, strengths and seeds; each point of it is a run of a program (`slpojax.train`, `slpojax.online`) in a
folder of its own, all in one folder, so that the runs of a seed share the world's reference, its pairs and its pools.
Some run at once. Killed anywhere, the same command goes on with what is missing; where nothing is, it draws. What comes
out is reward against KL as a picture (frontier.png, frontier.svg), a page (frontier.md) and numbers (frontier.json).
"""

import importlib
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from slpojax import errors, jobs, log, named, outputs, resuming, settings, simulate, wording
from slpojax.jobs import Job
from slpojax.settings import Config
from slpojax.tradeoff import best_possible, page, picture, results

DEFAULT = "configs/frontier_reviews.py"

_METHOD: Mapping[str, Any] = {
    "label": "",  # in the legend; the method's own name where it is empty
    "program": "train",  # of this package: train | online
    "config": "",  # the experiment that it starts from; the frontier's own where it is empty
    "keys": (),  # what it sets, as on the command line: "objective.name=dpo.ipo"
    "strength": "",  # the key whose values trace the curve, or several, comma-separated
    "values": (),
}
_SHARED = {"compiled": "compiled", "reference.cache": "reference_cache"}  # key -> folder that all runs use
_PROGRAMS = ("train", "online")
_LENGTH = ("steps", "epochs")  # change no step before the last, but where a run ends
_MANY = 200  # answers of the reference to a prompt from which on the best possible is computed prompt by prompt
_LINES = 200  # points of its curve

_Taken: TypeAlias = Mapping[str, tuple[results.Run, results.Known]]  # name of a job -> its run, and the file of it


class Run(NamedTuple):
    """A point of the grid: a job, what it computes, and where it stands in the results."""

    job: Job
    config: Config
    method: str
    strength: str
    seed: int


def main() -> None:
    """Run what is missing of the grid that the command line names, then draw all of it."""
    config = settings.from_command_line(sys.argv[1:], default=DEFAULT, choices=_choices("train"))
    path, overrides = settings.parse(sys.argv[1:], default=DEFAULT)
    with errors.as_lines():
        runs = plan(config, path, overrides)
        outputs.check(config.output)
        with outputs.alone(config.output):
            elsewhere = known(config, runs)
            missing = [run for run in runs if not finished(run) and run.job.name not in elsewhere]
            failed = work(config, missing, len(runs))
            show(config, runs, failed, elsewhere)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again")


def plan(config: Config, path: str, overrides: Mapping[str, str]) -> list[Run]:
    """Return every run of the grid, seed by seed, all methods and strengths of each.

    Args:
        config: of the frontier, resolved.
        path: of its file, from which its methods start unless they name another.
        overrides: dotted key -> text; every run gets them, too.

    Raises:
        ValueError: there is nothing to compare, or a method or a key of one cannot be; names it.
    """
    asked = config.frontier
    methods = {name: method(config, name) for name in asked.methods}
    only = [name.strip() for name in asked.only.split(",") if name.strip()] or [*methods]
    for name in only:
        named.choose("config.frontier.only", name, methods)
    if not config.world or not only or not asked.seeds:
        raise ValueError(
            f"--config={path}: a frontier needs config.world (now {config.world!r}), methods in "
            f"config.frontier.methods (now {len(methods)}) and seeds in config.frontier.seeds (now {len(asked.seeds)})"
        )
    shared = {key: text for key, text in overrides.items() if key not in ("output", "seed")}
    return [
        _run(config, path, shared, name, value, seed)
        for seed in asked.seeds
        for name in only
        for value in methods[name]["values"]
    ]


def method(config: Config, name: str) -> dict[str, Any]:
    """Return what a configuration says of a method, spelt out.

    Raises:
        ValueError: it says something that no method has, or lacks what each has.
    """
    key, said = f"config.frontier.methods.{name}", config.frontier.methods[name].to_dict()
    named.check_keys("frontier method", name, _METHOD, said)
    found = {field: named.typed(f"{key}.{field}", said.get(field, like), like) for field, like in _METHOD.items()}
    named.choose(f"{key}.program", found["program"], dict.fromkeys(_PROGRAMS))
    named.require(found["strength"], f"{key}.strength", found["strength"], "a key, as objective.beta")
    named.require(len(found["values"]) > 0, f"{key}.values", found["values"], "values of the strength, as (0.1, 0.3)")
    for text in found["keys"]:
        named.require("=" in str(text), f"{key}.keys", text, "KEY=VALUE, as objective.name=dpo.ipo")
    return found | {"label": found["label"] or name}


def finished(run: Run) -> bool:
    """Say whether a run has ended well, with the configuration that is asked for now.

    Raises:
        ValueError: it ended with another one; names the keys.
    """
    done = jobs.finished(run.job)
    if done is None:
        return False
    then, now = done["config"], json.loads(settings.dump(run.config))
    changed = resuming.differences(then, now)
    changed |= {key: (then[key], now[key]) for key in _LENGTH if then[key] != now[key]}
    if changed:
        listed = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items())
        raise ValueError(
            f"{run.job.folder} holds a finished run with another configuration: {listed}. Set this back, choose "
            "another folder (--config.output=...), or remove that folder to run it anew"
        )
    return True


def known(config: Config, runs: Sequence[Run]) -> _Taken:
    """Return the runs of the grid that `frontier.known` holds: name of the job -> the run, and where it stands.

    Args:
        config: of the frontier.
        runs: of the whole grid.

    Raises:
        ValueError: a file is none, or holds a run of the grid with another configuration; names it.
    """
    found = {}
    for name in filter(None, map(str.strip, config.frontier.known.split(","))):
        file = results.known(name)
        of = {(run.method, run.strength, run.seed): run for run in file.runs}
        for run in runs:
            one = of.get((run.method, run.strength, run.seed))
            if one and one.digest != _digest(run):
                raise ValueError(
                    f"config.frontier.known={name}: its run {run.job.name} has another configuration than the one that "
                    "is asked for now. Leave the file out to run it anew, or set the keys that it had"
                )
            if one:
                found[run.job.name] = (one, file)
    return found


def work(config: Config, missing: Sequence[Run], total: int) -> list[jobs.Ended]:
    """Run what is missing, so many at once, with progress; return those that failed.

    Args:
        config: of the frontier.
        missing: runs that have not ended well yet.
        total: runs of the whole grid.
    """
    log.say(f"frontier: {total} runs, {total - len(missing)} of them finished; {config.frontier.at_once} at once")
    of, failed = {run.job.name: run.config for run in missing}, list[jobs.Ended]()
    before = signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: the runs under way are asked to save and to end
    try:
        made = jobs.run(
            [run.job for run in missing],
            config.frontier.at_once,
            lambda job: simulate.is_made(of[job.name]),  # the first run of a seed makes what its others share
            os.environ,
        )
        for ended in log.track(made, len(missing), "runs"):
            job, seconds = ended.job, log.clock(ended.seconds)
            if ended.status == 0:
                asked = json.loads(settings.dump(of[job.name]))
                jobs.finish(job, {"config": asked, "seconds": round(ended.seconds, 1)})
                log.say(f"{job.name}: {results.last(job.folder)}, in {seconds}")
            else:
                failed.append(ended)
                log.say(f"{job.name}: failed after {seconds}: {ended.last} (all of it: {job.folder / jobs.LOG})")
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def show(
    config: Config,
    runs: Sequence[Run],
    failed: Sequence[jobs.Ended],
    elsewhere: _Taken,
) -> None:
    """Draw and write what the finished runs say, into the folder and where `frontier.page` says.

    Args:
        config: of the frontier.
        runs: of the whole grid.
        failed: those that are to be named as missing.
        elsewhere: of `known`; a run that has finished here, too, is the one that is shown.
    """
    asked = config.frontier
    there = [run for run in runs if jobs.finished(run.job)]
    taken = {name: one for name, one in elsewhere.items() if name not in {run.job.name for run in there}}
    found = [
        _read(run) if run in there else taken[run.job.name][0] for run in runs if run in there or run.job.name in taken
    ]
    known = {name: method(config, name) for name in dict.fromkeys(run.method for run in runs)}
    methods = results.collect(found, {name: (one["label"], one["strength"]) for name, one in known.items()})
    if not methods:
        log.say("frontier: no run has finished, so there is nothing to draw")
        return
    seeds, title = len({run.seed for run in found}), f"Reward against KL in the world {config.world}"
    bounds = _bounds(there, taken, max(float(run.path.kl.max()) for run in found))
    missing = [f"{ended.job.name}: {ended.last}" for ended in failed]
    gone = [run.job.name for run in runs if run not in there and run.job.name not in taken]
    missing += [name for name in gone if name not in {ended.job.name for ended in failed}]
    for place in [pathlib.Path(config.output) / "frontier", *([pathlib.Path(asked.page)] if asked.page else [])]:
        place.parent.mkdir(parents=True, exist_ok=True)
        pictures = [place.with_name(f"{place.name}.{kind}") for kind in ("png", "svg")]
        said = [
            f"# {title}",
            f"![Gold reward gained against KL]({pictures[0].name})",
            *_circumstances(config, there, taken),
        ]
        said += [page.table(methods, asked.budgets, seeds), "## Where the runs end", page.ends(methods)]
        said += ["## Missing", "\n".join(f"- {line}" for line in missing)] if missing else []
        place.with_name(f"{place.name}.md").write_text("\n\n".join(said) + "\n")
        numbers = {"commit": _commit(), "seconds": _seconds(there) + sum(one.seconds for one in _files(taken))}
        numbers |= {"methods": page.numbers(methods, asked.budgets), "bounds": page.bounds(bounds)}
        place.with_name(f"{place.name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
        means = f": means over {seeds} seeds, ± one standard deviation" if seeds > 1 else ", one seed"
        picture.draw(methods, pictures, title=title + means, bound=_mean_bound(bounds))
        log.say(f"frontier: {place}.md, .json, .png, .svg")


def _run(config: Config, path: str, shared: Mapping[str, str], name: str, value: Any, seed: int) -> Run:
    """Return a run of the grid.

    Raises:
        ValueError: its program or one of its keys cannot be; names the method.
    """
    one = method(config, name)
    traced = _traced(name, one["strength"], value)
    folder = pathlib.Path(config.output) / f"{name}-{'-'.join(traced.values())}-seed{seed}"
    keys = dict(str(text).split("=", 1) for text in one["keys"])
    own = {key: str(pathlib.Path(config.output) / place) for key, place in _SHARED.items()}
    own |= {**shared, **keys, **traced}
    own |= {"output": str(folder), "seed": str(seed)}
    start, module = one["config"] or path, f"slpojax.{one['program']}"
    try:
        resolved = settings.resolve(settings.load_file(start), own, choices=_choices(one["program"]))
    except ValueError as error:
        raise ValueError(f"frontier method {name}: {error}") from error
    command = (
        sys.executable,
        "-m",
        module,
        f"--config={start}",
        *(f"--config.{key}={text}" for key, text in own.items()),
    )
    return Run(Job(folder.name, folder, command, f"seed {seed}"), resolved, name, ", ".join(traced.values()), seed)


def _traced(name: str, strength: str, value: Any) -> dict[str, str]:
    """Return the keys of a strength, each with its value as text."""
    keys, values = [key.strip() for key in strength.split(",")], value if isinstance(value, tuple) else (value,)
    as_many = len(keys) == len(values)
    named.require(
        as_many, f"config.frontier.methods.{name}.values", value, f"{len(keys)} value(s), of {strength}, each"
    )
    return {key: str(one) for key, one in zip(keys, values, strict=True)}


def _choices(program: str) -> settings.Choices:
    """Return what a configuration of a program may name."""
    return importlib.import_module(f"slpojax.{program}").CHOICES


def _digest(run: Run) -> str:
    return resuming.digest(json.loads(settings.dump(run.config)))


def _read(run: Run) -> results.Run:
    folder, digest = run.job.folder, _digest(run)
    return results.read(folder, method=run.method, strength=run.strength, seed=run.seed, digest=digest)


def _files(taken: _Taken) -> list[results.Known]:
    """Return the files that runs are taken from, each once."""
    return [*{file.file: file for _, file in taken.values()}.values()]


def _bounds(runs: Sequence[Run], taken: _Taken, furthest: float) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return seed -> (KL, the most that any policy can gain there), as far as the pairs can tell."""
    budgets = np.linspace(0, np.sqrt(max(furthest, 0.0)), _LINES) ** 2
    found = {seed: bound for file in _files(taken) for seed, bound in file.bounds.items()}
    found = {seed: bound for seed, bound in found.items() if seed in {run.seed for run, _ in taken.values()}}
    for run in {run.seed: run for run in runs}.values():
        scores = [*simulate.scores(run.config).values()]
        apart = min(map(len, scores)) >= _MANY  # else all prompts as one, which bounds it, too
        found[run.seed] = budgets, best_possible(scores if apart else [np.concatenate(scores)], budgets)
    return found


def _mean_bound(bounds: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return KL and the mean over seeds, as far as the shortest of them goes."""
    budgets = max((kl for kl, _ in bounds.values()), key=lambda kl: float(kl[-1]))
    gains = [np.interp(budgets, kl, gain, right=np.nan) for kl, gain in bounds.values()]
    return budgets, np.mean(gains, axis=0)


def _circumstances(config: Config, runs: Sequence[Run], taken: _Taken) -> list[str]:
    """Say what a reader needs to repeat it."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy"))
    seeds = wording.few(sorted({run.seed for run in runs} | {run.seed for run, _ in taken.values()}))
    others = [
        f"{sum(one.file == file.file for _, one in taken.values())} runs of commit {file.commit}"
        for file in _files(taken)
    ]
    command = f"python -m slpojax.frontier {' '.join(argument for argument in sys.argv[1:])}".strip()
    return [
        f"`{command}`, commit {_commit()}, {versions}, {os.cpu_count()} cores; {len(runs)} runs, "
        f"{log.clock(_seconds(runs))} of run time in all, {config.frontier.at_once} at once"
        f"{''.join(f'; beside them {said}, with their numbers' for said in others)}; seeds {seeds}."
    ]


def _seconds(runs: Sequence[Run]) -> float:
    return float(sum((jobs.finished(run.job) or {}).get("seconds", 0.0) for run in runs))


def _commit() -> str:
    """Return the commit of the checkout that this file lies in, and whether it was changed; "unknown" without one."""
    where = pathlib.Path(__file__).resolve().parent
    try:
        told = [
            subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told[0] + ", changed" * bool(told[1])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
