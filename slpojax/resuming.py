"""What a run must have in common with the checkpoint that it goes on from, and how it is told what differs.

Knows configurations and digests; knows no files.
"""

import fnmatch
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from slpojax import defaults, log, named
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
    digest. A key that one of them lacks, as it was added later, has its default there.

    Example:
        >>> differences({"seed": 0, "objective": {"beta": 0.1}}, {"seed": 0, "objective": {"beta": 0.2}, "wandb": "p"})
        {'objective.beta': (0.1, 0.2)}
        >>> differences({"model": {"path": "a/hf"}}, {"model": {"path": "/b/hf"}})
        {}
        >>> differences({}, {"lora": {"rank": 16, "alpha": 8.0}})
        {'lora.alpha': (32.0, 8.0)}
    """
    old, new, usual = map(_flat, (saved, current, defaults.get_config().to_dict()))
    free = LENGTH if old.get("schedule") == new.get("schedule") == "constant" else ()
    matters = [k for k in sorted(old.keys() | new.keys()) if _matters(k) and k not in free]
    both = {key: (old.get(key, usual.get(key)), new.get(key, usual.get(key))) for key in matters}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}


def digest(config: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that name what a configuration sets of the keys that change numbers.

    The length of a run counts, a key at its default does not: so a key that a later version adds changes no digest.

    Example:
        >>> digest({"seed": 1, "output": "a"}) == digest({"seed": 1, "output": "b"}) != digest({"seed": 2})
        True
    """
    return hashlib.sha256(json.dumps(changes(config), sort_keys=True).encode()).hexdigest()[:16]


def changes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration sets, by dotted keys, of those that change numbers and are not at their defaults.

    Example:
        >>> changes({"seed": 1, "output": "a", "objective": {"beta": 0.2}, "steps": defaults.get_config().steps})
        {'objective.beta': 0.2, 'seed': 1}
    """
    flat, usual = map(_flat, (config, defaults.get_config().to_dict()))
    return {key: flat[key] for key in sorted(flat) if _matters(key) and usual.get(key) != flat[key]}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration by dotted keys, with values as a file of JSON gives them back."""
    return named.flatten(json.loads(json.dumps(config)), ".")


def _matters(key: str) -> bool:
    free = CHANGE_NO_NUMBER + PLACES
    return not any(fnmatch.fnmatchcase(key, name) or key.startswith(f"{name}.") for name in free)
