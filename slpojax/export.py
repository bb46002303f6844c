"""Export a checkpoint as a folder that transformers loads: `python -m slpojax.export output/mine --step=best`.

A run exports its last step by itself; this is for the best one, or any other that is kept.
"""

import argparse
import sys
from collections.abc import Sequence

from slpojax import bench as benches
from slpojax import errors, outputs, places, settings
from slpojax import parts as data


def main(arguments: Sequence[str] | None = None) -> None:
    """Export what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m slpojax.export", description=__doc__)
    parser.add_argument("run", type=places.path, help="the output folder of a run")
    parser.add_argument("--step", default="best", help="best (by the run's best_metric), newest, or a number")
    parser.add_argument("--to", type=places.path, help="the folder to write; RUN/hf-STEP unless set")
    asked = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with errors.as_lines(), outputs.alone(asked.run):
        export(asked.run, asked.step, asked.to)


def export(run: places.Path, step: str = "best", to: places.Path | None = None) -> places.Path:
    """Write the policy of a checkpoint; return the folder.

    Args:
        run: the output folder of a run, whose model and data are where its config.json says.
        step: best, newest or a number.
        to: the folder to write; <run>/hf-<step> where None.

    Raises:
        ValueError: the folder holds no run, or no such checkpoint.
    """
    config = settings.of_run(run)
    bench = benches.make(config)
    (train, *_) = data.load(config, bench)  # what ends its responses ends the exported model's
    number, params = benches.restore_params(config, bench, run, step)
    to = to or run / f"hf-{number}"
    benches.export(bench, to, params, train.examples)
    return to


if __name__ == "__main__":
    main()
