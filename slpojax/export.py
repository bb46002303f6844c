"""Export a checkpoint as a folder that transformers loads: `python -m slpojax.export output/mine --step=best`.

A run exports its last step by itself; this is for the best one, or any other that is kept.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax

from slpojax import bench as benches
from slpojax import checkpoint, errors, grid, outputs, settings
from slpojax import parts as data

STEPS = ("best", "newest")


def main(arguments: Sequence[str] | None = None) -> None:
    """Export what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m slpojax.export", description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="the output folder of a run")
    parser.add_argument("--step", default="best", help="best (by the run's best_metric), newest, or a number")
    parser.add_argument("--to", type=pathlib.Path, help="the folder to write; RUN/hf-STEP unless set")
    asked = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with errors.as_lines(), outputs.alone(asked.run):
        export(asked.run, asked.step, asked.to)


def export(run: pathlib.Path, step: str = "best", to: pathlib.Path | None = None) -> pathlib.Path:
    """Write the policy of a checkpoint; return the folder.

    Args:
        run: the output folder of a run, whose model and data are where its config.json says.
        step: best, newest or a number.
        to: the folder to write; <run>/hf-<step> where None.

    Raises:
        ValueError: the folder holds no run, or no such checkpoint.
    """
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} holds no config.json; give the output folder of a run")
    config = settings.load((run / "config.json").read_text())
    bench = benches.make(config)
    (train, *_) = data.load(config, bench)  # what ends its responses ends the exported model's
    checkpoints = checkpoint.open_folder(run / "checkpoints", best_metric=config.best_metric)
    try:
        number = _number(checkpoints, step)
        shapes = jax.eval_shape(bench.model.init, bench.keys.init)
        where, _ = grid.tree(bench.grid, bench.model.sharding, shapes)
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)
        params = checkpoint.restore_params(checkpoints, number, like)
    finally:
        checkpoint.close(checkpoints)
    to = to or run / f"hf-{number}"
    benches.export(bench, to, params, train.examples)
    return to


def _number(checkpoints: checkpoint.Checkpoints, step: str) -> int:
    """Return the step that a word or a number names."""
    manager = checkpoints.manager
    found = {"best": manager.best_step, "newest": manager.latest_step}.get(step, lambda: None)()
    if found is None and step in STEPS:
        raise ValueError(f"{checkpoints.folder} holds no checkpoint that is {step}; give a number: --step=N")
    if found is None and not step.isdecimal():
        raise ValueError(f"--step={step}: expected {', '.join(STEPS)} or a number")
    return int(step) if found is None else found


if __name__ == "__main__":
    main()
