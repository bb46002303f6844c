"""Traces of some steps of a run, for XProf.

Knows numbers of steps and JAX's profiler; knows no step and no configuration.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from slpojax import log, metrics


class Tracer(NamedTuple):
    """Two functions: `before` takes the number of the step that begins and an output of the last one; `close` ends."""

    before: Callable[[int, Any], None]
    close: Callable[[], None]


def tracer(folder: pathlib.Path, steps: str) -> Tracer:
    """Return what traces some steps for XProf, as many of them as this start of the program takes.

    Args:
        folder: where the trace goes.
        steps: "first:last" of those that are traced; "" for none.

    Raises:
        ValueError: `steps` is something else.
    """
    chosen = metrics.profile_steps(steps)
    if chosen is None:
        return Tracer(lambda n, last: None, lambda: None)
    first, end = chosen[0], chosen[-1]
    traced: list[int] = []
    running = False

    def before(n: int, last: Any) -> None:
        nonlocal running
        if n > end:
            stop(last)
        elif n >= first:
            if not running:
                jax.block_until_ready(last)
                jax.profiler.start_trace(str(folder), profiler_options=_options())
                running = True
            traced.append(n)

    def stop(last: Any = None) -> None:
        nonlocal running
        if running:
            running = False
            jax.block_until_ready(last)
            jax.profiler.stop_trace()
            log.say(f"wrote {folder}, a trace of steps {traced[0]} to {traced[-1]} for XProf")

    def close() -> None:
        stop()
        if not traced:
            log.say(f"no trace: this start of the program took none of steps {first} to {end} (config.profile)")

    return Tracer(before, close)


def _options() -> jax.profiler.ProfileOptions:
    """Return what a trace holds: what devices and JAX's runtime do, and no calls of Python.

    To record those, JAX sets a hook in every thread, also in one that begins or ends at that moment (orbax's, the
    loader's), which now and then kills the program with a segmentation fault.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options
