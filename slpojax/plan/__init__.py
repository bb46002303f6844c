"""What fits, and how fast: `python -m slpojax.plan --config=configs/slpo_hh.py --topology=v5e-16`.

Compiles the step of a configuration, the run's own, for devices that are not there, and says what memory it takes, what
its devices send each other, and how fast it could be. Needs no weights and, with `plan.lengths=hh`, no data.
`--topology=X` stands for `--config.plan.topology=X`, and `--search` for `--config.plan.search=true`.
"""

import sys
from collections.abc import Sequence

from slpojax import errors, judges, log, settings, topology, training
from slpojax.plan import making, report, search
from slpojax.settings import Config

DEFAULT = "configs/quickstart.py"
CHOICES: settings.Choices = {**training.CHOICES, "judge": judges.defaults}


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan what the command line asks for."""
    given = written_out(sys.argv[1:] if arguments is None else arguments)
    config = settings.from_command_line(given, default=DEFAULT, choices=CHOICES)
    with errors.as_lines():
        topology.prepare(config.plan.topology)
        log.say(plan(config))


def plan(config: Config) -> str:
    """Return a plan as text, or where `plan.search` is set the ranking of several.

    Args:
        config: every key of slpojax/defaults.py.

    Raises:
        ValueError: the configuration, the topology or the mesh is wrong; says which key helps.
    """
    return search.run(config) if config.plan.search else report.render(making.make(config))


def written_out(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the keys that the short ones stand for.

    Example:
        >>> written_out(["--config=configs/dpo_hh.py", "--topology=v5e-16", "--search"])
        ['--config=configs/dpo_hh.py', '--config.plan.topology=v5e-16', '--config.plan.search=true']
    """
    made = []
    for argument in arguments:
        if argument == "--search":
            argument = "--config.plan.search=true"
        elif argument.split("=")[0] in ("--topology", "--search"):
            argument = argument.replace("--", "--config.plan.", 1)
        made.append(argument)
    return made
