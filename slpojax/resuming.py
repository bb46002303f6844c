"""What a run must have in common with the checkpoint that it goes on from, and how it is told what differs.

Knows configurations and digests; knows no files.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from slpojax import log, named
from slpojax.defaults import CHANGE_NO_NUMBER, PLACES

LENGTH = ("steps", "epochs")  # change no number either under a constant schedule: no step before the end knows them


def require_same(
    folder: pathlib.Path,
    step: int,
    run: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    contents: Mapping[str, str] | None,
    force: bool,
) -> None:
    """Refuse to go on with another run's checkpoint.

    Args:
        folder: of the checkpoints.
        step: of this one.
        run: what it says that its state belongs to.
        config: of this run, see `differences`.
        contents: digests of this run; None where they are not known yet.
        force: whether to say what differs and to go on.

    Raises:
        ValueError: something differs that changes numbers; names it.
    """
    changed = differences(run["config"], config)
    listed = [f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items()]
    if contents is not None:
        saved = run["contents"]
        listed += [f"the {x} changed" for x in sorted({*saved, *contents}) if saved.get(x) != contents.get(x)]
    if listed and force:
        log.say(f"going on from step {step} although {'; '.join(listed)} (config.resume=force)")
    elif listed:
        raise ValueError(
            f"{folder} holds step {step} of a run with another configuration: {'; '.join(listed)}. Set this back to "
            "go on with it, start a new run in its own folder (--config.output=...), or go on regardless "
            "(--config.resume=force)"
        )


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ between two configurations and matter, each with the saved and the current value.

    Keys that change no number do not matter; nor do those that name a place, as what lies there is compared by its
    digest.

    Example:
        >>> differences({"seed": 0, "objective": {"beta": 0.1}}, {"seed": 0, "objective": {"beta": 0.2}, "wandb": "p"})
        {'objective.beta': (0.1, 0.2)}
        >>> differences({"model": {"path": "a/hf"}}, {"model": {"path": "/b/hf"}})
        {}
    """
    old, new = (named.flatten(json.loads(json.dumps(config)), ".") for config in (saved, current))
    free = CHANGE_NO_NUMBER + PLACES + (LENGTH if old.get("schedule") == new.get("schedule") == "constant" else ())
    matters = [k for k in sorted(old.keys() | new.keys()) if not any(k == f or k.startswith(f + ".") for f in free)]
    return {k: (old.get(k), new.get(k)) for k in matters if old.get(k) != new.get(k)}
