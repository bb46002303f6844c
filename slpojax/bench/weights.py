"""The policy's parameters: where they come from, in their places on the devices, and how they are exported.

What of a policy is frozen, and what training moves, are loaded apart where not all is trained. Knows a configuration, a
bench and folders; knows no data and no step.
"""

import functools
import hashlib
import pathlib
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax import Array

from slpojax import (
    adapters,
    checkpoint,
    columns,
    data,
    folders,
    grid,
    hf,
    log,
    named,
    outputs,
    places,
    quantised,
    readers,
    trained,
    vocabulary,
)
from slpojax.base import NARROW, Model, Params
from slpojax.bench.making import STEPS, Bench
from slpojax.grid import Grid
from slpojax.places import sending
from slpojax.settings import Config


def first_params(config: Config, bench: Bench, base: Params | None = None) -> Params:
    """Load, or draw, the parameters that the policy starts from, each on its devices.

    A score head that the folder of a language model lacks is drawn, normal as all of the model's weights.

    Args:
        config: where they come from.
        bench: devices, model and keys.
        base: the frozen ones, where they are loaded already.
    """
    if bench.plan.all:
        return _whole(config, bench)
    base = base_params(config, bench) if base is None else base
    return trained.join(bench.plan, base, first_trained(config, bench))


def reference_params(config: Config, bench: Bench, base: Params | None = None) -> Params:
    """Return the parameters that the policy starts from, see `first_params`, for a reference.

    Adapters whose product is zero are left out of an online one, whose pass is the cheaper for it. Where log-probs are
    cached, one program scores the reference and the policy.
    """
    params = first_params(config, bench, base)
    if config.reference.mode == "online" and bench.plan.lora and bench.adapter is None:
        return named.nested(trained.pairs.without(named.flatten(params)))
    return params


def base_params(config: Config, bench: Bench) -> Params | None:
    """Return the policy's frozen parameters, in `model.frozen_dtype`, on their devices; None where all are trained.

    Weights that become codes of few bits are read one at a time, so that no more than one of them is ever wide.
    """
    plan, kind = bench.plan, config.model.frozen_dtype
    if plan.all:
        return None
    narrow, dtype = _narrow(config, bench), _wide_dtype(kind)
    left_out = {path for path, layers in plan.layers.items() if not layers}
    summed = bench.adapter is not None and plan.lora is None  # before they are rounded
    read = functools.partial(_whole, config, bench, dtype="float32" if summed or narrow else dtype)
    apart = narrow if config.model.weights == "load" and not summed else set()
    leaves = named.flatten(read(left_out=left_out | apart))
    leaves = {path: leaf for path, leaf in leaves.items() if path not in left_out | apart}
    base = named.flatten(trained.split(plan, named.nested(leaves))[0])
    found = {path: leaf.astype(dtype) for path, leaf in base.items() if path not in narrow}
    for path in sorted(narrow):
        leaf = named.flatten(read(left_out=plan.shapes.keys() - {path}))[path] if path in apart else base[path]
        found |= _narrowed(bench, path, leaf, kind)
    scales = {path: grid.put(np.asarray(x), bench.grid.everywhere) for path, x in trained.scales(plan).items()}
    return named.nested(found | scales)


def _narrow(config: Config, bench: Bench) -> set[str]:
    """Return the paths of the weights that are kept as codes: of linear maps that are frozen in all layers."""
    if config.model.frozen_dtype not in quantised.KINDS:
        return set()
    return {f"{path}/weight" for path in bench.model.linear} - bench.plan.layers.keys()


def _wide_dtype(kind: str) -> str:
    """Return the dtype of frozen weights that are not kept as codes."""
    return "bfloat16" if kind in quantised.KINDS else kind


def _codes(path: str) -> tuple[str, str]:
    """Return the paths of a weight's codes, which is its own, and of their scales."""
    return path, f"{path.removesuffix('weight')}{NARROW}"


def _narrowed(bench: Bench, path: str, leaf: Array, kind: str) -> dict[str, Array]:
    """Return by path the codes of a weight and their scales, split over the devices as the weight is."""
    names = _codes(path)
    shapes = named.nested(dict(zip(names, quantised.like(leaf.shape, kind), strict=True)))
    where = named.flatten(grid.tree(bench.grid, bench.model.sharding, shapes)[0])
    make = jax.jit(quantised.narrow, static_argnums=1, out_shardings=quantised.Narrow(*(where[n] for n in names)))
    return dict(zip(names, make(leaf, kind), strict=True))


def first_trained(config: Config, bench: Bench) -> Params:
    """Return what training moves, as it starts: of the model, and adapters drawn, or those that it starts from."""
    plan = bench.plan
    if plan.all:
        return _whole(config, bench)
    found: dict[str, Any] = {}
    if plan.layers:
        leaves = named.flatten(_whole(config, bench, left_out=plan.shapes.keys() - plan.layers.keys()))
        leaves = {path: leaf for path, leaf in leaves.items() if path in plan.layers}
        found |= named.flatten(trained.split(plan, named.nested(leaves))[1])
    if plan.lora and bench.adapter:
        held = adapters.load(bench.adapter, bench.model, bench.grid)
        found |= {path: leaf for path, leaf in held.items() if path not in plan.shapes}
    elif plan.lora:
        draw = functools.partial(trained.first, plan)
        where = grid.tree(bench.grid, bench.model.sharding, jax.eval_shape(draw, bench.keys.adapters))[0]
        found |= named.flatten(jax.jit(draw, out_shardings=where)(bench.keys.adapters))
    return named.nested(found)


def _whole(config: Config, bench: Bench, *, left_out: Collection[str] = (), dtype: str = "float32") -> Params:
    """Load, or draw, the model's parameters that the policy starts from.

    Args:
        config: where they come from.
        bench: devices, model and keys.
        left_out: paths of parameters that are not read; None stands in their place.
        dtype: that those are kept in which are read.
    """
    given: dict[str, Any] = dict.fromkeys(left_out)
    if config.model.weights != "load":
        drawn = draw_params(bench)
        return named.nested(named.flatten(drawn) | given) if given else drawn
    assert bench.folder is not None
    if bench.adapter is not None:
        return _with_adapter(bench, bench.adapter, given, dtype)
    if bench.model.score is not None and not folders.labels(bench.hf_config) and "head/weight" not in given:
        log.say(f"score head: {bench.folder} has none; it is drawn (seed {config.seed}), as all else is read")
        given["head/weight"] = _draw_head(bench)
    return hf.load(bench.folder, bench.model, bench.grid, given=given, dtype=dtype)


def _with_adapter(bench: Bench, adapter: adapters.Adapter, given: dict[str, Any], dtype: str) -> Params:
    """Load the model's parameters, with what an adapter holds whole in their place.

    Its pairs are added to the weights, unless they are trained themselves.
    """
    assert bench.folder is not None
    held = adapters.load(adapter, bench.model, bench.grid)
    given = {path: held[path] for path in adapter.whole} | given
    leaves = named.flatten(hf.load(bench.folder, bench.model, bench.grid, given=given, dtype=dtype))
    if bench.plan.lora is None:
        weights = {path: leaves[f"{path}/weight"] for path in adapter.adapted if f"{path}/weight" not in given}
        halves = {path: leaf for path, leaf in held.items() if path.rpartition("/")[0] in weights}
        leaves = trained.merged(leaves | halves | trained.pairs.scales(adapter.lora, weights))
    return named.nested(leaves)


def load_params(folder: pathlib.Path, model: Model, devices: Grid | None, *, key: str) -> Params:
    """Load the parameters of a model's folder, or of an adapter's, whose model's and its own stand beside each other.

    Args:
        folder: of either.
        model: whose they are.
        devices: that get them; None leaves them on this host.
        key: of the configuration, which gave the folder.
    """
    return adapters.load_policy(folder, model, devices, hf.load, key=key)


def weights_digest(folder: pathlib.Path, key: str) -> str:
    """Return the digest of the weights of a model folder; of an adapter's, that of its model's and its own.

    Args:
        folder: of a model or an adapter.
        key: of the configuration, which gave it.
    """
    if not adapters.is_one(folder):
        return columns.weights_digest(folder)
    both = [columns.weights_digest(adapters.base_of(folder, key)), adapters.digest(folder)]
    return hashlib.sha256("".join(both).encode()).hexdigest()


def first_digest(bench: Bench) -> str:
    """Return the digest of the weights that the policy starts from, of a bench that reads them from a folder."""
    assert bench.folder is not None
    return weights_digest(bench.adapter.file.parent if bench.adapter else bench.folder, "model.path")


def policy_params(config: Config, bench: Bench) -> Params:
    """Return the parameters that a run of this configuration starts from, on their devices.

    They are those of the newest checkpoint of the run that `config.start` names, else the model's.
    """
    if config.start:
        require_same_base(config, bench)
        moved = checkpoint.last_params(config.start, params_like(bench))
        return trained.join(bench.plan, base_params(config, bench), moved)
    return first_params(config, bench)


def require_same_base(config: Config, bench: Bench) -> None:
    """Refuse to start from what was trained beside other frozen weights.

    Raises:
        ValueError: the run that `config.start` names started from another model than this one.
    """
    held = checkpoint.last_contents(config.start).get(checkpoint.MODEL)
    if not bench.plan.all and config.model.weights == "load" and held != first_digest(bench):
        raise ValueError(
            f"config.start={config.start}: that run trained a part of another model than config.model.path="
            f"{config.model.path!r}, and its state holds that part alone; give the model that it started from"
        )


def params_like(bench: Bench) -> Params:
    """Return shape, dtype and sharding of every parameter that a state holds, of the model and of adapters."""
    return _placed(bench, bench.model, trained.like(bench.plan) or jax.eval_shape(bench.model.init, bench.keys.init))


def base_like(config: Config, bench: Bench) -> Params | None:
    """Return shape, dtype and sharding of what `base_params` loads; None where all parameters are trained.

    Args:
        config: `model.frozen_dtype`.
        bench: devices and model; no folder is read.
    """
    if bench.plan.all:
        return None
    base = jax.eval_shape(lambda key: trained.split(bench.plan, bench.model.init(key))[0], bench.keys.init)
    kind, narrow = config.model.frozen_dtype, _narrow(config, bench)
    leaves: dict[str, Any] = {}
    for path, x in named.flatten(base).items():
        if path in narrow:
            leaves |= dict(zip(_codes(path), quantised.like(x.shape, kind), strict=True))
        else:
            leaves[path] = jax.ShapeDtypeStruct(x.shape, _wide_dtype(kind))
    scales = {
        path: jax.ShapeDtypeStruct(jax.numpy.shape(x), jax.numpy.float32, sharding=bench.grid.everywhere)
        for path, x in trained.scales(bench.plan).items()
    }
    return named.nested(named.flatten(_placed(bench, bench.model, named.nested(leaves))) | scales)


def policy_like(config: Config, bench: Bench) -> Params:
    """Return shape, dtype and sharding of what `policy_params` loads: frozen weights and trained ones together.

    Args:
        config: `model.frozen_dtype`.
        bench: devices and model; no folder is read.
    """
    base, moved = base_like(config, bench), params_like(bench)
    if base is None:
        return moved
    return _placed(bench, bench.model, jax.eval_shape(functools.partial(trained.join, bench.plan), base, moved))


def reference_like(config: Config, bench: Bench, model: Model | None = None) -> Params:
    """Return shape, dtype and sharding of the weights of a reference that stays on the devices.

    Args:
        config: `reference.mode` and `model.frozen_dtype`.
        bench: devices and model; no folder is read.
        model: the reference's, where it has a folder of its own; None for the policy as it starts, see
            `reference_params`.
    """
    if model is not None:
        return _placed(bench, model, jax.eval_shape(model.init, bench.keys.init))
    if bench.plan.all:
        return params_like(bench)
    whole = policy_like(config, bench)
    if config.reference.mode == "online" and bench.plan.lora and bench.adapter is None:
        whole = named.nested(trained.pairs.without(named.flatten(whole)))
    return _placed(bench, bench.model, whole)


def _placed(bench: Bench, model: Model, shapes: Params) -> Params:
    """Return shapes of a model's parameters with the places on the devices that they will have."""
    return grid.placed(shapes, grid.tree(bench.grid, model.sharding, shapes)[0])


def restore_params(config: Config, bench: Bench, run: places.Path, step: str) -> tuple[int, Params]:
    """Return the step that a word or a number names, and the policy of that checkpoint, each parameter on its devices.

    Args:
        config: of the run.
        bench: devices and model, of the run's configuration.
        run: the output folder of the run.
        step: best, newest or a number.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
    """
    checkpoints = checkpoint.open_folder(run / "checkpoints", best_metric=config.best_metric)
    manager = checkpoints.manager
    try:
        found = {"best": manager.best_step, "newest": manager.latest_step}.get(step, lambda: None)()
        if found is None and step in STEPS:
            raise ValueError(f"{checkpoints.folder} holds no checkpoint that is {step}; give the number of a step")
        if found is None and not step.isdecimal():
            raise ValueError(f"step {step!r}: expected {', '.join(STEPS)} or a number")
        number = int(step) if found is None else found
        moved = checkpoint.restore_params(checkpoints, number, params_like(bench))
    finally:
        checkpoint.close(checkpoints)
    return number, trained.join(bench.plan, base_params(config, bench), moved)


def draw_params(bench: Bench) -> Params:
    """Draw parameters at random, each on its devices."""
    # The function is the model's, so that whoever draws them next compiles nothing.
    return jax.jit(bench.model.init, out_shardings=_where(bench))(bench.keys.init)


def _draw_head(bench: Bench) -> Array:
    """Draw the weights of the head as `draw_params` does, on their devices; the rest is not computed."""
    where = _where(bench)["head"]["weight"]
    return jax.jit(lambda key: bench.model.init(key)["head"]["weight"], out_shardings=where)(bench.keys.init)


def _where(bench: Bench) -> Any:
    """Return where each parameter of the model lies."""
    return grid.tree(bench.grid, bench.model.sharding, jax.eval_shape(bench.model.init, bench.keys.init))[0]


def export(bench: Bench, path: places.Path, params: Params, examples: data.Examples) -> None:
    """Write the parameters as a folder that transformers loads, with the tokenizer and template that made the tokens.

    Adapters are written as a folder that peft loads beside the model, unless `bench.merged` adds them to its weights.

    Args:
        bench: model and tokenizer.
        path: the folder; one in a bucket is written on this machine first.
        params: the policy's, on their devices; those of readers are left out.
        examples: that were trained on; generation from the folder stops at what ended their responses.
    """
    here = sending.here(path)
    params, dtype, ends = readers.without(params), bench.dtype, vocabulary.ends(examples, bench.tokenizer)
    kept = "" if dtype == "float32" else ", rounded from float32 (export_dtype=float32 keeps all digits)"
    config, beside = bench.hf_config, bench.beside._replace(ends=ends)
    said = "generation stops where the model's folder said: no special token ended a response"
    if ends:
        said = f"generation stops at id {ends[0]}"
    if bench.model.score is not None:
        config, beside, said = _of_rewards(bench, ends)
    if bench.plan.lora and not bench.merged:
        base, whole = bench.base, bench.plan.layers
        adapters.save(here, params, bench.model, bench.plan.lora, whole=whole, base=base, dtype=dtype, beside=beside)
        outputs.publish(here, path)
        kept += f"; {said}" if bench.model.score is not None else ""
        log.say(f"wrote {path}, which peft loads beside {base}: {dtype}{kept}; export_merged=true writes whole weights")
        return
    whole_weights = named.nested(trained.pairs.lazily_merged(named.flatten(params)))
    hf.save(here, whole_weights, bench.model, config, dtype=dtype, beside=beside)
    outputs.publish(here, path)
    log.say(f"wrote {path}, which transformers loads: {dtype}{kept}; {said}")


def _of_rewards(bench: Bench, ends: tuple[int, ...]) -> tuple[dict[str, Any], hf.Beside, str]:
    """Return config.json and what else a reward model's folder holds, and a line on where a text's reward is read."""
    tokenizer, config = bench.tokenizer, bench.hf_config
    pad = vocabulary.padding(tokenizer, config.get("pad_token_id"), ends)
    beside, config = bench.beside._replace(generation={}), config | {"pad_token_id": pad}
    if tokenizer is None or pad is None:
        return config, beside, "for one text at a time: the tokenizer has no token to pad with that ends no text"
    token = str(tokenizer.convert_ids_to_tokens(pad))
    said = f"a reward is read at the last token but {token} (id {pad}), which pads"
    return config, beside._replace(pad=token), said
