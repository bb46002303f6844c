"""Checkpoints: everything a run needs to go on bit for bit, saved in the background, whole or not at all.

A checkpoint is a folder `<step>` that orbax writes under another name and renames when it is complete, or in a bucket
(gs://) marks by a last object, so a process killed at any moment leaves the older ones as they were. Beside the state
it holds what the state belongs to, and sums over the bits of every array, see `slpojax.sums`: numbers that are not
those that were saved are never trained on. Knows states, JSON and orbax; knows no model, no objective and no mesh
beyond the shardings it is handed.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from slpojax import log, places, resuming, sums, torn, wording
from slpojax.base import Params, State

MODEL = "model that training starts from"  # the name of its digest among the contents

_ITEMS = ("state", "run")
_TRASH = "deleted"


class Checkpoints(NamedTuple):
    """An open folder of checkpoints.

    Attributes:
        folder: where they are.
        manager: orbax's.
        best_metric: what "best" means; lower is better, with a leading "-" higher is.
        saved: steps that this process has saved and not yet opened again.
    """

    folder: places.Path
    manager: ocp.CheckpointManager
    best_metric: str
    saved: list[int]


class Run(NamedTuple):
    """What a state belongs to; JSON, the same on every host.

    Attributes:
        data: the state of the data iterator.
        config: the run's configuration.
        contents: digests of what the configuration names by its place, by name.
        notes: what the loop wants back.
    """

    data: Any
    config: Mapping[str, Any]
    contents: Mapping[str, str] = {}
    notes: Mapping[str, Any] = {}


class Restored(NamedTuple):
    """What a checkpoint held: its step, the state on its devices, the data iterator's state, and the loop's notes."""

    step: int
    state: State
    data: Any
    notes: Mapping[str, Any]


def open_folder(
    folder: str | places.Path, *, keep_last: int = 2, keep_best: int = 1, best_metric: str = "eval/loss"
) -> Checkpoints:
    """Open a folder of checkpoints, making it if need be. What a killed process left half done is set aside, loudly.

    Args:
        folder: where; a local path, or one in a bucket (gs://).
        keep_last: how many of the newest stay, at least 1.
        keep_best: how many of the best stay besides.
        best_metric: the metric that ranks them, lower is better; "-name" for higher is better.

    Raises:
        ValueError: `keep_last` is below 1, so there would be nothing to resume from; or there can be no such folder.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}, expected at least 1: a run resumes from its newest checkpoint")
    folder = places.absolute(folder)
    if jax.process_index() == 0:
        torn.prepare(folder, _ITEMS, _TRASH)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints are tidy")

    def cost(metrics: Mapping[str, float]) -> float:
        return _cost(best_metric, metrics) if metrics else math.inf

    # BestN keeps the end of its sorted list. orbax stores metrics only where there is a best_fn.
    best = BestN(get_metric_fn=cost, reverse=True, n=keep_best)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep_last), best]),
        best_fn=cost,
        best_mode="min",
        todelete_subdir=_TRASH,
        single_host_load_and_broadcast=jax.process_count() > 1,  # hosts may not see the same at once
    )
    with places.reaching(folder, "read"):
        return Checkpoints(folder, ocp.CheckpointManager(folder, item_names=_ITEMS, options=options), best_metric, [])


def save(
    checkpoints: Checkpoints, step: int, state: State, run: Run, metrics: Mapping[str, float] | None = None
) -> None:
    """Save in the background; returns as soon as the arrays are copied off, so the state may be donated.

    Write out the metrics up to `step` before (`Log.flush`): a resumed run starts behind them and cannot again.

    Args:
        checkpoints: from `open_folder`.
        step: the number of finished steps; nothing happens if it is saved already.
        state: arrays on any mesh; typed keys are welcome.
        run: what the state belongs to.
        metrics: of the evaluation at this step, by their flat names ("eval/loss"); None where there was none.

    Raises:
        ValueError: the metrics lack the one that decides which checkpoint is best; or this checkpoint, or the one
            before, could not be written.
        FloatingPointError: a number of the state is not finite; nothing is saved.
    """
    ranked = {name: float(value) for name, value in (metrics or {}).items()}
    if metrics is not None:
        _cost(checkpoints.best_metric, ranked)
    wait(checkpoints)
    if step == checkpoints.manager.latest_step():
        return
    stored = jax.tree.map(_as_data, state)
    bits, broken = sums.of(stored)
    if broken:
        raise FloatingPointError(f"the state behind step {step} is not finite: {wording.few(broken, 3)}")
    if jax.process_index() == 0:
        torn.empty(checkpoints.folder, _TRASH)
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(stored),
        run=ocp.args.JsonSave(_sealed({**run._asdict(), "step": step, "sums": bits})),
    )
    try:
        checkpoints.manager.save(step, args=items, metrics=ranked, force=True)
        checkpoints.saved.append(step)
    except Exception as error:
        raise _not_written(checkpoints, step, error) from error


def restore(
    checkpoints: Checkpoints,
    like: State,
    *,
    config: Mapping[str, Any],
    contents: Mapping[str, str] | None = None,
    force: bool = False,
) -> Restored | None:
    """Restore the newest checkpoint whose numbers are those that were saved, or return None where there is none.

    A newer one that is damaged is named and set aside.

    Args:
        checkpoints: from `open_folder`.
        like: a state of arrays or of `jax.ShapeDtypeStruct` with shardings: the shapes, and where each array goes.
            The mesh may be another than the one that saved.
        config: the configuration of this run, compared with the saved one, see `resuming`.
        contents: digests, compared likewise.
        force: whether to go on, and to say what differs, where something does.

    Raises:
        ValueError: the checkpoint belongs to a run with another configuration or other contents; or there are
            checkpoints, and all of them are damaged.
    """
    damaged: dict[int, str] = {}
    for step in _steps(checkpoints):
        run, reason = _read_run(checkpoints, step)
        if run is not None:
            resuming.require_same(checkpoints.folder, step, run, config=config, contents=contents, force=force)
            state, reason = _read_state(checkpoints, step, like, run["sums"])
            if state is not None:
                _set_aside(checkpoints, damaged)
                return Restored(step, state, run["data"], run["notes"])
        torn.require_reached(checkpoints.folder, step, reason)
        damaged[step] = reason
    if damaged:
        listed = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise ValueError(
            f"no checkpoint in {checkpoints.folder} can be restored ({listed}). Nothing was changed; bring the folder "
            "back from a copy, or start a new run in its own folder: --config.output=..."
        )
    return None


def restore_params(checkpoints: Checkpoints, step: int, like: Params) -> Params:
    """Restore the policy's parameters of a checkpoint, without the rest of its state.

    Args:
        checkpoints: from `open_folder`.
        step: of the checkpoint.
        like: shapes and shardings of the parameters that are asked for.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
    """
    if step not in (steps := _steps(checkpoints)):
        known = ", ".join(map(str, reversed(steps))) or "none"
        raise ValueError(f"{checkpoints.folder} holds no checkpoint of step {step}; there are {known}")
    run, reason = _read_run(checkpoints, step)
    if run is not None:
        item = {"params": jax.tree.map(_abstract, like)}
        places = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding), item)
        arguments = ocp.args.PyTreeRestore(item=item, restore_args=places, partial_restore=True)
        try:
            found = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
                checkpoints.folder / str(step) / "state", args=arguments
            )
            now = sums.of(found).bits
            differ = [path for path, bits in now.items() if run["sums"].get(path) != bits]
            if not differ:
                return found["params"]
            reason = f"the numbers of {wording.few(differ, 3)} are not those that were saved"
        except Exception as error:  # whatever a damaged file makes of a reader
            reason = wording.first_line(error)
    raise ValueError(f"checkpoint {step} in {checkpoints.folder} cannot be read: {reason}; choose another --step")


def last_state(run: str, like: State) -> State:
    """Return the state of the newest checkpoint of another run, from which this one starts.

    Args:
        run: its output folder.
        like: shape, dtype and sharding of every leaf.

    Raises:
        ValueError: it has no checkpoint, a damaged one, or that of another model, optimiser or objective.
    """
    checkpoints, step, sealed = _newest(run)
    try:
        state, reason = _read_state(checkpoints, step, like, sealed["sums"])
    finally:
        checkpoints.manager.close()
    if state is None:
        raise ValueError(
            f"config.start={run}: the state behind step {step} is not one that this run can start from ({reason}); its "
            "model, train.what, optimizer, moments and objective must be of the same kind"
        )
    log.say(f"starts from {run}, the state behind its step {step}")
    return state


def last_params(run: str, like: Params) -> Params:
    """Return the policy's parameters of the newest checkpoint of another run, see `restore_params`."""
    checkpoints, step, _ = _newest(run)
    try:
        return restore_params(checkpoints, step, like)
    finally:
        checkpoints.manager.close()


def last_digest(run: str) -> str:
    """Return the digest of the numbers that `last_state` reads."""
    checkpoints, _, sealed = _newest(run)
    checkpoints.manager.close()
    return hashlib.sha256(json.dumps(sealed["sums"], sort_keys=True).encode()).hexdigest()


def last_contents(run: str) -> Mapping[str, str]:
    """Return the digests of what the state depends on that `last_state` reads, by name."""
    checkpoints, _, sealed = _newest(run)
    checkpoints.manager.close()
    return sealed["contents"]


def _newest(run: str) -> tuple[Checkpoints, int, Mapping[str, Any]]:
    """Return another run's folder, its newest step, and what that state belongs to."""
    folder = places.path(run) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"config.start={run}: no checkpoints there; give the output folder of a run")
    checkpoints = open_folder(folder)
    step = next(iter(_steps(checkpoints)), -1)
    sealed, reason = (None, "there is none") if step < 0 else _read_run(checkpoints, step)
    if sealed is None:
        checkpoints.manager.close()
        raise ValueError(f"config.start={run}: its newest checkpoint cannot be read ({reason})")
    return checkpoints, step, sealed


def require_same_config(checkpoints: Checkpoints, config: Mapping[str, Any], *, force: bool = False) -> None:
    """Refuse to go on with another run's checkpoints, before anything is loaded: see `resuming`."""
    for step in _steps(checkpoints):
        run, _ = _read_run(checkpoints, step)
        if run is not None:
            return resuming.require_same(checkpoints.folder, step, run, config=config, contents=None, force=force)


def require_none(checkpoints: Checkpoints) -> None:
    """Refuse to start from scratch in a folder that holds checkpoints, so that nobody's run is ever overwritten.

    Raises:
        ValueError: there is a checkpoint.
    """
    for step in _steps(checkpoints):
        raise ValueError(
            f"config.resume is never, but {checkpoints.folder} holds a run up to step {step}: go on with it "
            "(--config.resume=auto), choose another folder (--config.output=...), or move this one away"
        )


def close(checkpoints: Checkpoints) -> None:
    """Wait until the last checkpoint is complete and can be read, and let go of the folder.

    Raises:
        ValueError: it could not be written.
    """
    try:
        wait(checkpoints)
    finally:
        with places.reaching(checkpoints.folder, "written"):
            checkpoints.manager.close()
    if jax.process_index() == 0:
        torn.empty(checkpoints.folder, _TRASH)


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
        raise wording.unknown("config.best_metric", name, sorted(names))


def _steps(checkpoints: Checkpoints) -> list[int]:
    """Return the steps that there are, the newest first; over hosts orbax says them as NumPy's, which no JSON holds."""
    return sorted(map(int, checkpoints.manager.all_steps()), reverse=True)


def _read_run(checkpoints: Checkpoints, step: int) -> tuple[Mapping[str, Any] | None, str]:
    """Return what a checkpoint's state belongs to, or None on all hosts and why it cannot be told."""
    try:
        run = checkpoints.manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        reason = "" if run["step"] == step else f"it holds step {run['step']}"
        if run != _sealed({name: value for name, value in run.items() if name != "digest"}):
            reason = "what it says of its run is not what was saved"
    except Exception as error:  # whatever a damaged file makes of a reader
        reason = wording.first_line(error)
    return (run, "") if _all_hosts(not reason) else (None, reason or "another host cannot read it")


def _read_state(checkpoints: Checkpoints, step: int, like: State, saved: Mapping[str, int]) -> tuple[State | None, str]:
    """Return a checkpoint's state, or None on all hosts and why it is not what was saved."""
    found, reason = None, ""
    try:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(_abstract, like)))
        found = checkpoints.manager.restore(step, args=items)["state"]
    except Exception as error:
        reason = wording.first_line(error)
    if not _all_hosts(found is not None):
        return None, reason or "another host cannot read it"
    differ = sums.differing(saved, sums.of(found).bits)
    if differ:
        return None, f"the numbers of {wording.few(differ, 3)} are not those that were saved"
    return jax.tree.map(_as_like, found, like), ""


def wait(checkpoints: Checkpoints) -> None:
    """Wait until what was saved is complete, and open every array of it.

    Raises:
        ValueError: it could not be written, or cannot be read.
    """
    step = checkpoints.saved.pop() if checkpoints.saved else None
    try:
        checkpoints.manager.wait_until_finished()
        if step is not None:
            torn.require_whole(checkpoints.folder / str(step))
            # In a bucket orbax takes for unfinished on the other hosts what the first one has finished.
            if jax.process_index() == 0 or not places.is_bucket(checkpoints.folder):
                checkpoints.manager.item_metadata(step)
    except Exception as error:
        raise _not_written(checkpoints, step, error) from error


def _not_written(checkpoints: Checkpoints, step: int | None, error: Exception) -> ValueError:
    folder = checkpoints.folder
    said = places.advice(folder, error) if places.is_bucket(folder) else wording.first_line(error)
    return ValueError(
        f"checkpoint {step} could not be written to {folder}: {said}. The older ones are as they were: mend this and "
        "repeat the command"
    )


def _sealed(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the digest of all that it holds, as JSON has it."""
    text = json.dumps(run, sort_keys=True)
    return {**json.loads(text), "digest": hashlib.sha256(text.encode()).hexdigest()}


def _all_hosts(value: bool) -> bool:
    """Tell whether something holds on every host."""
    return value if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(value))))


def _set_aside(checkpoints: Checkpoints, damaged: Mapping[int, str]) -> None:
    """Rename damaged checkpoints, newer than the one that is restored, and say so."""
    for step, reason in damaged.items() if jax.process_index() == 0 else ():
        torn.rename(checkpoints.folder / str(step), reason)
    if damaged:
        _all_hosts(True)
        checkpoints.manager.reload()


def _cost(best_metric: str, metrics: Mapping[str, float]) -> float:
    """Return what ranks a checkpoint, lower is better; NaN is the worst."""
    name = best_metric.removeprefix("-")
    if name not in metrics:
        raise wording.unknown("config.best_metric", name, sorted(metrics))
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
