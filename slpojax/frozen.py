"""Frozen models: what they say of the data, as cached log-probs, or their weights on the devices.

Knows which of the two a configuration asks for, what their log-probs depend on, and what it refuses. The weights of a
model whose log-probs are cached are brought to the devices only where the cache has nothing, and leave again.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from slpojax import adapters, cached, columns, data, hf, log, models, places, prompts, scores, trained, vocabulary
from slpojax import bench as benches
from slpojax.base import Batch, Frozen, Logps, Model, Params, Shapes
from slpojax.bench import Bench
from slpojax.columns import Columns, Part
from slpojax.grid import Grid
from slpojax.settings import Config
from slpojax.step import Method

# Settings of the data that a cache does not name: the digest of the examples says what they change.
_BY_EXAMPLES = (*data.Rules._fields, "chat_template_kwargs", "turns")
MOVING = ("moving", "bema")  # modes of a reference that follows the policy


class Prepared(NamedTuple):
    """What frozen models say.

    Attributes:
        parts: of the data, with cached log-probs.
        frozen: weights that a step reads and never changes.
        reference: the parameters that a moving reference starts from, as far as they move; None where it does not.
        model: of the reference's parameters; None where it is a model like the policy.
    """

    parts: list[Part]
    frozen: Frozen
    reference: Params | None
    model: Model | None


def refuse(config: Config, asked: Mapping[str, str]) -> None:
    """Refuse what no reference of this configuration can give.

    Args:
        config: its group `reference`.
        asked: the name of what is needed -> who asks, as "objective dpo.sigmoid".

    Raises:
        ValueError: says who asks for what, and which key helps.
    """
    mode = config.reference.mode
    if "ref" in asked and mode == "none":
        raise ValueError(
            f"{asked['ref']} compares with a reference, but config.reference.mode is 'none'; "
            "set --config.reference.mode=cached or online"
        )
    of_weights = sorted(name for name in asked if scores.takes_weights({name}))
    if of_weights and mode not in ("online", *MOVING):
        raise ValueError(
            f"{asked[of_weights[0]]} asks for {', '.join(of_weights)} at every token, which takes the reference's "
            f"weights, but config.reference.mode is {mode!r}; set --config.reference.mode=online"
        )
    if mode in MOVING and config.train.what != trained.ALL:
        if config.reference.path:
            raise ValueError(
                f"config.reference.path={config.reference.path!r} with config.reference.mode={mode} and train.what="
                f"{config.train.what!r}: what is frozen of a moving reference is the policy's; leave reference.path "
                "empty, or set --config.train.what=all"
            )
        if config.train.what == trained.LORA and mode == "bema":
            raise ValueError(
                "config.reference.mode=bema with train.what=lora: an average of adapters' matrices is no average of "
                "what they add; set --config.reference.mode=moving with reference.mix=1, or --config.train.what=all"
            )
        if config.train.what == trained.LORA and config.reference.mix != 1:
            raise ValueError(
                f"config.reference.mix={config.reference.mix:g} with train.what=lora: a mean of two adapters' matrices "
                "is no mean of what they add; set --config.reference.mix=1"
            )
    if "previous" in asked and not config.reference.previous:
        raise ValueError(
            f"{asked['previous']} compares with a second frozen model, the iterate that training starts from; set "
            "--config.reference.previous to its folder"
        )


def prepare(
    config: Config, bench: Bench, method: Method, scan: Shapes, parts: Sequence[Part], base: Params | None = None
) -> Prepared:
    """Give the parts of the data what frozen models say of them, or bring the reference's weights to the devices.

    Args:
        config: its groups `reference`, `model` and `data`.
        bench: devices, model and tokenizer.
        method: what asks.
        scan: sizes of the batches that go through a part once.
        parts: of the data.
        base: the policy's frozen parameters, which its reference has in common with it; None where all are trained.

    Raises:
        ValueError: a folder is no model, or a log-prob is not finite.
    """
    mode, needs, parts = config.reference.mode, method.needs, list(parts)
    cache = places.path(config.reference.cache or places.path(config.output) / "reference_cache")
    of_weights = scores.takes_weights(needs)
    used = {
        "reference.previous": "previous" in needs,
        "reference.path": config.data.match_prompts or mode in MOVING or "ref" in needs or of_weights,
    }
    examples = [part.examples for part in parts]
    sources = {key: _source(config, bench, key, examples, base) for key, asked in used.items() if asked}

    def log_probs_of(name: str, source: Source) -> list[Columns]:
        compiled = scores.scorer(source.model, scan, bench.grid)

        def score(batch: Batch) -> Logps:
            return compiled(source.params(), batch)[0]

        return [log_probs(bench.grid, part, scan, score, name=name, cache=cache, key=source.key) for part in parts]

    if used["reference.previous"]:  # its weights go before the reference's come: one frozen model at a time
        before = log_probs_of("previous", sources.pop("reference.previous"))
        parts = [part._replace(previous=columns) for part, columns in zip(parts, before, strict=True)]
    if not used["reference.path"]:
        return Prepared(parts, Frozen(base), None, None)
    source = sources["reference.path"]
    if config.data.match_prompts:
        parts = match_prompts(bench, parts, source, cache=cache, batch=config.batch_size, seed=config.seed)
    if mode in MOVING:
        moves = source.params() if bench.plan.all else benches.first_trained(config, bench)
        return Prepared(parts, Frozen(base), moves, None)
    if mode == "cached" and "ref" in needs:
        parts = [
            part._replace(ref=columns) for part, columns in zip(parts, log_probs_of("reference", source), strict=True)
        ]
        return Prepared(parts, Frozen(base), None, None)
    online = mode != "none" and ("ref" in needs or of_weights)
    weights = Frozen(base, source.params() if online else None)
    return Prepared(parts, weights, None, source.model if online and source.model is not bench.model else None)


class Source(NamedTuple):
    """A frozen model.

    Attributes:
        params: brings it to the devices, once; its weights go with the last reference to this record.
        key: what its log-probs depend on, by name, but for the examples.
        model: of its own config.json; the policy's where both mean the same function.
    """

    params: Callable[[], Params]
    key: dict[str, str]
    model: Model


def reference(config: Config, bench: Bench) -> Source:
    """Return the reference of a configuration, for who needs its weights and not its log-probs of the data.

    Args:
        config: its groups `reference`, `model` and `data`.
        bench: devices, model and tokenizer, each of whose tokens it must know as the policy does: any may be sampled.
    """
    assert bench.tokenizer is not None
    every, end = np.arange(len(bench.tokenizer)), np.array([bench.tokenizer.eos_token_id])
    listed = data.build([data.Example(every, (end,), (0.0,), 0)], candidates=1)
    return _source(config, bench, "reference.path", [listed])


def _source(
    config: Config, bench: Bench, key: str, examples: Sequence[data.Examples], base: Params | None = None
) -> Source:
    """Return the frozen model of a folder, or where the key is empty the one that the policy starts from.

    The folder may be that of an adapter, which counts with its model.

    Raises:
        ValueError: its log-probs cannot be compared with the policy's, or its weights not mixed with them.
    """
    path = config.reference[key.removeprefix("reference.")]
    folder = hf.resolve(path, key=key) if path else bench.folder
    assert folder is not None
    hf_config, model = bench.hf_config, bench.model
    if path:
        of_model = adapters.base_of(folder, key)
        hf_config, model = hf.read_config(of_model), model_of(config, bench, key, of_model)
        if of_model != folder:
            adapters.read(folder, model)
        if bench.tokenizer_folder is not None:
            made_by = bench.tokenizer_folder
            if note := vocabulary.require_same_tokens(examples, bench.tokenizer, made_by, of_model, key=key):
                log.say(note)

    @functools.cache
    def params() -> Params:
        if path:
            return benches.load_params(folder, model, bench.grid, key=key)
        return benches.reference_params(config, bench, base)

    loaded, family = path or config.model.weights == "load", [config.model.family] if config.model.family else []
    depends = {
        "weights": _digest(bench, folder if path else None, key) if loaded else f"drawn, seed {config.seed}",
        "model": json.dumps(hf_config, sort_keys=True),
        "dtype": config.model.dtype,
        "attention": config.model.attention,
        "code": code(*family),
        **_rounded(config, bench, path),
        "jax": jax.__version__,
        "tokenizer": data.tokenizer_digest(bench.tokenizer),
        **{f"data.{name}": str(config.data[name]) for name in data.FIELDS if name not in _BY_EXAMPLES},
    }
    return Source(params, depends, model)


def code(*family: str) -> str:
    """Return the digest of the code that computes log-probs; `family` is the module of one outside of the package."""
    return cached.code_digest("slpojax.scores", "slpojax.models", "slpojax.data.rows", "slpojax.hf", *family)


def _digest(bench: Bench, folder: pathlib.Path | None, key: str) -> str:
    """Return the digest of a folder's weights; None stands for those that the policy starts from."""
    return benches.first_digest(bench) if folder is None else benches.weights_digest(folder, key)


def _rounded(config: Config, bench: Bench, path: str) -> dict[str, str]:
    """Return what the log-probs of the model that the policy starts from depend on where it is not all in float32."""
    if path or bench.plan.all or config.model.frozen_dtype == "float32":
        return {}
    return {"frozen": f"{config.model.frozen_dtype}, but {sorted(bench.plan.layers.items())}"}


def model_of(config: Config, bench: Bench, key: str, folder: pathlib.Path) -> Model:
    """Return the model of a frozen model's own config.json; the policy's own where both mean the same function.

    Args:
        config: how models are computed, and `reference.mode`.
        bench: devices, and the policy's model.
        key: of the configuration, which gave the folder.
        folder: of the model.

    Raises:
        ValueError: its log-probs cannot be compared with the policy's, or its weights not mixed with them.
    """
    theirs, policy = hf.read_config(folder), bench.hf_config
    family = config.model.family if theirs.get("model_type") == policy["model_type"] else ""
    model = benches.model(config, theirs, bench.grid, family=family)
    both, limit = (config.model.family, family), config.data.max_length
    sizes = [models.vocabulary(c, max_length=limit, family=f) for c, f in zip((policy, theirs), both, strict=True)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"config.{key}: {folder} has a vocabulary of {sizes[1]} (vocab_size), the policy of {sizes[0]}: log-probs "
            "over other vocabularies cannot be compared. Give a model with the policy's vocabulary, or bring one of "
            "them to the other's size (transformers: resize_token_embeddings, then save_pretrained)"
        )
    different = models.differences(policy, theirs, max_length=limit, family=both)
    if different and config.reference.mode in MOVING and key == "reference.path":
        raise ValueError(
            f"config.{key}: {folder}, held against the policy's config.json, differs in {', '.join(different)}, and a "
            "moving reference mixes its weights with the policy's. Set --config.reference.mode=cached, or give a "
            "reference of the policy's kind"
        )
    return model if different else bench.model


def log_probs(
    devices: Grid,
    part: Part,
    scan: Shapes,
    score: Callable[[Batch], Logps],
    *,
    name: str,
    cache: places.Path,
    key: dict[str, str],
) -> Columns:
    """Return a frozen model's log-probs of a part, from the cache if it has them.

    The rows of every batch are split over the devices of all hosts, and each host packs its own; the log-probs come
    back to all of them, so that every host holds all columns.

    Args:
        devices: the grid.
        part: whose responses are scored.
        scan: sizes of the batches.
        score: batch on the devices -> [B, K, T] log-probs; called only for what the cache does not have.
        name: of the model in reports and files, "reference" or "previous".
        cache: folder.
        key: what the log-probs depend on, but for the examples.
    """

    def make(done: np.ndarray) -> Iterator[columns.Piece]:
        order = data.scan_order(part.examples, scan)
        left = [index for index in order if not done[index[index >= 0]].all()]
        batches = columns.batches(devices, part, scan, left)
        return columns.compute(score, log.track(batches, len(left), f"{name} log-probs ({part.name})"))

    key, lengths = {**key, "examples": part.examples.digest()}, np.asarray(part.examples.lengths.counted)
    return columns.load_or_compute(cache, name, part.name, key, lengths, make, log.say)


def match_prompts(
    bench: Bench, parts: list[Part], source: Source, *, cache: places.Path, batch: int, seed: int
) -> list[Part]:
    """Weigh the undesirable examples so that their prompts are as the desirable ones'; the first part decides for all.

    Args:
        bench: devices and model.
        parts: what is trained on, and what is held out, if anything.
        source: the model that embeds the prompts; loaded only where the cache does not have the weights.
        cache: folder.
        batch: prompts that are read at once, rounded up to a number that the devices share.
        seed: of the draw of prompts, where there are many.
    """
    examples, devices = [part.examples for part in parts], bench.grid.devices
    batch = -(-batch // devices) * devices

    def make() -> list[np.ndarray]:
        embedded = [
            prompts.embed(
                source.model,
                source.params(),
                [every[i].prompt for i in range(len(every))],
                batch=batch,
                grid=bench.grid,
            )
            for every in examples
        ]
        classifier = prompts.fit(embedded[0], examples[0].label, seed=seed)
        return [prompts.weights(classifier, x, every.label) for x, every in zip(embedded, examples, strict=True)]

    key = source.key | {f"examples {i}": every.digest() for i, every in enumerate(examples)} | {"seed": str(seed)}
    entry = cached.Entry(cache, "prompt_weights", key | {"weighing": cached.code_digest("slpojax.prompts")})
    weights = cached.get(entry, make, log.say, what="weights of the prompts")
    undesirable = weights[0][examples[0].label < 0.5]
    log.say(f"weights of the prompts of undesirable responses: {undesirable.min():.2f} to {undesirable.max():.2f}")
    return [
        part._replace(examples=dataclasses.replace(part.examples, weight=weight))
        for part, weight in zip(parts, weights, strict=True)
    ]
