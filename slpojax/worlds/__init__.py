"""Worlds: places where the right answer is known, so that a run can be judged without a human.

A world is a module of this package with three functions:

    prepare(config, run) -> config   make a reference model and pairs under <output>/reference, and fill in their paths;
                                     run(config) trains and exports what a configuration says
    scorer(config) -> score          score(params, step) -> {name: number}: what the policy is truly worth
    report(config)                   print what training did, from <output>/metrics.jsonl

Knows how to find a world by name; knows nothing about any of them.
"""

import difflib
import importlib
import pkgutil
from types import ModuleType


def build(name: str) -> ModuleType:
    """Return the world called `name`, a module of this package.

    Raises:
        ValueError: there is no such world; the message lists those there are.
    """
    worlds = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in worlds:
        near = difflib.get_close_matches(name, worlds, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"config.world: got {name!r}, expected a module of slpojax.worlds: {hint}there are {worlds}")
    return importlib.import_module(f"{__name__}.{name}")
