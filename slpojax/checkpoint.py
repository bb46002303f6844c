"""Checkpoints: everything a run needs to go on bit for bit, saved in the background, whole or not at all.

A checkpoint is a folder `<step>` that orbax writes under another name and renames when it is complete, so a process
killed at any moment leaves the older ones as they were. Deleting renames first, too. Knows states, JSON and orbax;
knows no model, no objective and no mesh beyond the shardings it is handed.
"""

import json
import logging
import math
import pathlib
import re
import shutil
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from slpojax import named, settings
from slpojax.base import Params, State
from slpojax.defaults import CHANGE_NO_NUMBER

LENGTH = ("steps", "epochs")  # change no number either under a constant schedule: no step before the end knows them

_ITEMS = ("state", "data", "config")
_TRASH = "deleted"


class Checkpoints(NamedTuple):
    """An open folder of checkpoints.

    Attributes:
        folder: where they are.
        manager: orbax's.
        best_metric: what "best" means; lower is better, with a leading "-" higher is.
    """

    folder: pathlib.Path
    manager: ocp.CheckpointManager
    best_metric: str


class Restored(NamedTuple):
    """What a checkpoint held: its step, the state on its devices, and the state of the data iterator."""

    step: int
    state: State
    data: Any


def open_folder(
    folder: str | pathlib.Path, *, keep_last: int = 2, keep_best: int = 1, best_metric: str = "eval/loss"
) -> Checkpoints:
    """Open a folder of checkpoints, making it if need be. What a killed process left half done is set aside, loudly.

    Args:
        folder: where; a local path.
        keep_last: how many of the newest stay, at least 1.
        keep_best: how many of the best stay besides.
        best_metric: the metric that ranks them, lower is better; "-name" for higher is better.

    Raises:
        ValueError: `keep_last` is below 1, so there would be nothing to resume from.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}, expected at least 1: a run resumes from its newest checkpoint")
    folder = pathlib.Path(folder).absolute()
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _set_aside_torn(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints are tidy")

    def cost(metrics: Mapping[str, float]) -> float:
        return _cost(best_metric, metrics) if metrics else math.inf

    # BestN keeps the end of its sorted list. orbax stores metrics only where there is a best_fn.
    policies = [LatestN(keep_last), BestN(get_metric_fn=cost, reverse=True, n=keep_best)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(policies), best_fn=cost, best_mode="min", todelete_subdir=_TRASH
    )
    return Checkpoints(folder, ocp.CheckpointManager(folder, item_names=_ITEMS, options=options), best_metric)


def save(
    checkpoints: Checkpoints,
    step: int,
    state: State,
    *,
    data: Any,
    config: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Save in the background; returns as soon as the arrays are copied off, so the state may be donated.

    Write out the metrics up to `step` before (`Log.flush`): a resumed run starts behind them and cannot again.

    Args:
        checkpoints: from `open_folder`.
        step: the number of finished steps; nothing happens if it is saved already.
        state: arrays on any mesh; typed keys are welcome.
        data: the state of the data iterator, JSON, the same on every host.
        config: the run's configuration, JSON.
        metrics: of the evaluation at this step, by their flat names ("eval/loss"); None where there was none.

    Raises:
        ValueError: the metrics lack the one that decides which checkpoint is best.
    """
    named = {name: float(value) for name, value in (metrics or {}).items()}
    if metrics is not None:
        _cost(checkpoints.best_metric, named)
    checkpoints.manager.wait_until_finished()
    if step == checkpoints.manager.latest_step():
        return
    if jax.process_index() == 0:
        shutil.rmtree(checkpoints.folder / _TRASH, ignore_errors=True)
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(jax.tree.map(_as_data, state)),
        data=ocp.args.JsonSave(data),
        config=ocp.args.JsonSave(json.loads(json.dumps(config))),
    )
    checkpoints.manager.save(step, args=items, metrics=named, force=True)


def restore(checkpoints: Checkpoints, like: State, *, config: Mapping[str, Any]) -> Restored | None:
    """Restore the newest checkpoint, or return None where there is none.

    Args:
        checkpoints: from `open_folder`.
        like: a state of arrays or of `jax.ShapeDtypeStruct` with shardings: the shapes, and where each array goes.
            The mesh may be another than the one that saved.
        config: the configuration of this run, compared with the saved one, see `differences`.

    Raises:
        ValueError: the checkpoint belongs to a run with another configuration.
    """
    step = checkpoints.manager.latest_step()
    if step is None:
        return None
    require_same(checkpoints, config)
    abstract = jax.tree.map(_abstract, like)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
    found = checkpoints.manager.restore(step, args=items)
    return Restored(step, jax.tree.map(_as_like, found["state"], like), found["data"])


def require_same(checkpoints: Checkpoints, config: Mapping[str, Any]) -> None:
    """Refuse to go on with another run's checkpoints.

    Raises:
        ValueError: the newest one was saved under another configuration, see `differences`.
    """
    step = checkpoints.manager.latest_step()
    if step is None:
        return
    saved = checkpoints.manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
    if changed := differences(saved, config):
        listed = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items())
        raise ValueError(
            f"{checkpoints.folder} holds step {step} of a run with another configuration: {listed}. "
            "Set these keys back to go on with it, or start a new run in its own folder: --config.output=..."
        )


def require_none(checkpoints: Checkpoints) -> None:
    """Refuse to start from scratch in a folder that holds checkpoints, so that nobody's run is ever overwritten.

    Raises:
        ValueError: there is a checkpoint.
    """
    if (step := checkpoints.manager.latest_step()) is not None:
        raise ValueError(
            f"resume is off, but {checkpoints.folder} holds a run up to step {step}: go on with it "
            "(--config.resume=True), choose another folder (--config.output=...), or move this one away"
        )


def close(checkpoints: Checkpoints) -> None:
    """Wait until the last checkpoint is complete, and let go of the folder."""
    checkpoints.manager.wait_until_finished()
    checkpoints.manager.close()
    if jax.process_index() == 0:
        shutil.rmtree(checkpoints.folder / _TRASH, ignore_errors=True)


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ between two configurations and matter, each with the saved and the current value.

    Keys that change no number do not matter. A folder whose name ends with the digest of what it holds, as a world's
    does, is the same one wherever it lies.

    Example:
        >>> differences({"seed": 0, "objective": {"beta": 0.1}}, {"seed": 0, "objective": {"beta": 0.2}, "wandb": "p"})
        {'objective.beta': (0.1, 0.2)}
        >>> differences({"model": {"path": "a/w-0123456789ab/hf"}}, {"model": {"path": "/b/w-0123456789ab/hf"}})
        {}
    """
    old, new = (settings.flat(json.loads(json.dumps(config))) for config in (saved, current))
    free = CHANGE_NO_NUMBER + (LENGTH if old.get("schedule") == new.get("schedule") == "constant" else ())
    matters = [k for k in sorted(old.keys() | new.keys()) if not any(k == f or k.startswith(f + ".") for f in free)]
    return {k: (old.get(k), new.get(k)) for k in matters if _content(old.get(k)) != _content(new.get(k))}


def check_best_metric(best_metric: str, names: Collection[str], groups: Collection[str] = ()) -> None:
    """Refuse a `best_metric` that no evaluation reports, before anything takes time.

    Args:
        best_metric: a name, with a leading "-" where higher is better.
        names: of the evaluations' metrics, as far as they are known; none where nothing is evaluated, and all is well.
        groups: beginnings of names that are known no further, such as "eval/diagnostic/".

    Raises:
        ValueError: it is none of them; lists the near ones.
    """
    name = best_metric.removeprefix("-")
    if names and name not in names and not name.startswith(tuple(groups)):
        raise named.unknown("config.best_metric", name, sorted(names))


def _content(value: Any) -> Any:
    """Return a path from its last folder on that is named by a digest, and any other value as it is."""
    named_by_digest = re.search(r"[^/]+-[0-9a-f]{12}(?:/.*)?$", value) if isinstance(value, str) else None
    return named_by_digest.group() if named_by_digest else value


def _set_aside_torn(folder: pathlib.Path) -> None:
    """Remove what was being written or deleted, and rename finished checkpoints that lack a part; say so."""
    shutil.rmtree(folder / _TRASH, ignore_errors=True)
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        if ".orbax-checkpoint-tmp" in path.name:
            logging.warning("skipped checkpoint %s: the process ended while it was written", path.name.split(".")[0])
            shutil.rmtree(path)
        elif path.name.isdigit():
            missing = [item for item in _ITEMS if not (path / item).is_dir() or not any((path / item).iterdir())]
            if missing:
                aside = path.with_name(f"torn-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                logging.warning("skipped checkpoint %s: it lacks %s; now %s", path.name, ", ".join(missing), aside)


def _cost(best_metric: str, metrics: Mapping[str, float]) -> float:
    """Return what ranks a checkpoint, lower is better; NaN is the worst."""
    name = best_metric.removeprefix("-")
    if name not in metrics:
        raise named.unknown("config.best_metric", name, sorted(metrics))
    value = float(metrics[name]) * (-1.0 if best_metric.startswith("-") else 1.0)
    return math.inf if math.isnan(value) else value


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _as_data(x: Any) -> Any:
    """Return an array as it is stored: a typed key as its numbers."""
    return jax.random.key_data(x) if _is_key(x) else x


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Return shape, dtype and placement of an array as it is stored."""
    stored = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=x.sharding)


def _as_like(x: Any, like: Any) -> Params:
    """Return a stored array as the state holds it."""
    return jax.random.wrap_key_data(x) if _is_key(like) else x
