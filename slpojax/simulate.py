"""A world made into a run: a reference that learns its texts, pairs that its reward labels, and a judge of policies.

The reference learns from random weights; two of its answers to a prompt make a pair, labelled by the gold reward
(Bradley-Terry); a policy that trained on the pairs is judged by the gold reward that it gains and the KL that it pays.

Reference and pairs lie beside the outputs of the runs, in `<world>-<digest>`, named by all that they depend on: the
world, the seed and what they are made with, but no other key of the run. So all runs whose world is the same share
them, and may move with them. A run that reads pools (`data.format=pool`) gets them made there, too: several answers to
a prompt, of which duels have found the preferred one. Knows worlds, models, sampling, and a function that trains; knows
no objective.
"""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from slpojax import (
    adapters,
    bench,
    cached,
    checkpoint,
    defaults,
    grid,
    hf,
    log,
    models,
    named,
    sampling,
    settings,
    worlds,
)
from slpojax.base import Key, Model, Params, named_key, stream_number
from slpojax.data import Rules
from slpojax.grid import Grid
from slpojax.outputs import agreed, alone
from slpojax.settings import Config
from slpojax.worlds import World

BATCH = 512  # answers sampled at once
METRICS = ("world/gold_reward", "world/gold_lift", "world/kl", "world/spread", "world/finished")  # of `judge`

_VERSION = 2  # of how this module makes reference and pairs; another number makes them anew
_SHARED = ("seed", "compiled", "log_every", "mesh.data", "mesh.fsdp", "mesh.tensor")  # keys of a run that reach its SFT
_MADE = "made.json"  # says what a folder was made from; written last
_MODEL, _TRAIN, _HELD_OUT = "hf", "{}.train.jsonl", "{}.eval.jsonl"
POOL = "pool"  # the data format of a run that reads pools

Run = Callable[[Config], Any]  # trains what a configuration says and exports it to <output>/hf


def prepare(config: Config, run: Run) -> Config:
    """Make a world's reference and pairs, or find them; return the configuration that trains on them.

    Args:
        config: a resolved configuration with a world; its seed draws texts, weights, answers and labels.
        run: trains what a configuration says, and exports it to <output>/hf.

    Raises:
        ValueError: the output holds a run with another configuration.
    """
    module, world = worlds.find(config.world)
    output, folder = pathlib.Path(config.output), world_folder(config, module, world)
    size = config.data.candidates if config.data.format == POOL else 0
    data = f"pools-{size}" if size else "pairs"
    files = {"model.path": _MODEL, "data.path": _TRAIN.format(data), "data.eval_path": _HELD_OUT.format(data)}
    made = settings.replace(config, {name: str(folder / file) for name, file in files.items()})
    if agreed((output / "checkpoints").is_dir()):  # before minutes go into a reference for a run that is refused
        with alone(output):
            checkpoints = checkpoint.open_folder(output / "checkpoints")
            checkpoint.require_same_config(checkpoints, made.to_dict(), force=config.resume == "force")
            checkpoint.close(checkpoints)
    with alone(folder, lock="world.lock", wait=f"world: another run makes {folder}; waiting for it"):
        if agreed((folder / _MADE).exists()):
            log.say(f"world: reference and pairs found in {folder}; remove the folder to make them anew")
        else:
            _make(world, reference_config(config, world, folder), folder, _key(config, module, world), run)
        if size and not agreed((folder / files["data.path"]).exists()):
            _make_pools(world, reference_config(config, world, folder), folder, data, size)
    return made


def is_made(config: Config) -> bool:
    """Say whether all that `prepare` makes for a run is there.

    Args:
        config: a resolved configuration with a world.
    """
    folder = world_folder(config, *worlds.find(config.world))
    size = config.data.candidates if config.data.format == POOL else 0
    return (folder / _MADE).exists() and (not size or (folder / _TRAIN.format(f"pools-{size}")).exists())


def scores(config: Config) -> dict[str, np.ndarray]:
    """Return prompt -> the gold rewards of the reference's answers to it, as far as they stand in pairs.

    Args:
        config: a resolved configuration whose world has been made.
    """
    folder, found = world_folder(config, *worlds.find(config.world)), dict[str, list[float]]()
    for line in (folder / _TRAIN.format("pairs")).read_text().splitlines():
        pair = json.loads(line)
        found.setdefault(pair["prompt"], []).extend((pair["score_chosen"], pair["score_rejected"]))
    return {prompt: np.array(gold, np.float64) for prompt, gold in found.items()}


def world_folder(config: Config, module: str, world: World) -> pathlib.Path:
    """Return where a world's reference and pairs lie: beside the outputs of the runs, named by what they depend on.

    Args:
        config: of a run.
        module: the full name of the world's.
        world: in it.
    """
    digest = cached.digest(_key(config, module, world))
    return pathlib.Path(config.output).parent / f"{module.rpartition('.')[2]}-{digest}"


def reference_config(config: Config, world: World, folder: pathlib.Path) -> Config:
    """Return the configuration that trains a world's reference: defaults, the world's settings, and shared keys.

    Args:
        config: of the run that asks for it, of which only the keys that it shares are read.
        world: whose texts it learns.
        folder: where it lies.
    """
    run = named.flatten(config.to_dict(), ".")
    changes = {
        "objective.name": "sft.token_mean",
        "reference.mode": "none",
        "data.format": "prompt_response",
        "data.candidates": 1,
        **world.settings,
        **{key: run[key] for key in _SHARED},
        "output": str(folder),
        "model.path": str(folder / "start"),
        "model.weights": "random",
        "data.path": str(folder / "texts.train.jsonl"),
        "data.eval_path": str(folder / "texts.eval.jsonl"),
    }
    return settings.replace(defaults.get_config(), changes)


def judge(config: Config) -> Callable[[Params, int], dict[str, float]]:
    """Return (params, step) -> the policy's gold reward and its KL to the reference, by the names in `METRICS`.

    Every call answers the same prompts with the same keys, so that what differs is the policy. `world/kl` is the mean
    over the policy's answers y of log P(y) - log P_ref(y), in nats per answer; `world/gold_lift` is the gold reward
    gained over the reference's answers, in standard deviations of their reward.

    Args:
        config: what `prepare` returned.
    """
    _, world = worlds.find(config.world)
    devices = grid.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    folder = hf.resolve(config.model.path)
    hf_config = hf.read_config(adapters.base_of(folder, "model.path"))
    model = models.build(hf_config, dtype=config.model.dtype, grid=devices, family=config.model.family)
    ref = bench.load_params(folder, model, devices, key="model.path")
    tokenizer = world.tokenizer()
    prompts = list(world.prompts(world.judged))
    ids = _prompt_ids(tokenizer, prompts)
    key = named_key(jax.random.key(config.seed), "judge")

    def answer(params: Params) -> tuple[list[sampling.Response], np.ndarray]:
        responses = _sample(model, params, world, tokenizer, ids, key, devices)
        texts = _texts(tokenizer, ids, responses)
        return responses, np.array([world.reward(*pair) for pair in zip(prompts, texts, strict=True)], np.float64)

    _, base = answer(ref)

    def score(params: Params, step: int) -> dict[str, float]:
        del step  # a policy is worth the same at every step
        responses, gold = answer(params)
        tokens = [response.token for response in responses]
        batch = min(BATCH, len(ids))
        under_ref = sampling.score(model, ref, ids, tokens, max_new_tokens=world.longest, batch=batch, grid=devices)
        log_ratio = [np.sum(y.logp - logp, dtype=np.float64) for y, logp in zip(responses, under_ref, strict=True)]
        return {
            "world/gold_reward": float(gold.mean()),
            "world/gold_lift": float((gold.mean() - base.mean()) / (base.std() or math.nan)),
            "world/kl": float(np.mean(log_ratio)),
            "world/spread": float(gold.std()),
            "world/finished": float(np.mean([response.finished for response in responses])),
        }

    return score


def _key(config: Config, module: str, world: World) -> dict[str, str]:
    """Return all that a world's reference and pairs depend on; where they lie is no part of it."""
    sft = named.flatten(reference_config(config, world, pathlib.Path()).to_dict(), ".")
    free = (
        *defaults.CHANGE_NO_NUMBER,
        *("model.path", "data.path", "data.eval_path", "data.samples"),
        *(f"data.{name}" for name in Rules._fields),  # the texts have no scores
        *("reference.bias_power", "reference.ema_power", "reference.lag"),  # and are learnt without a reference
    )
    return {
        "module": module,
        "code": cached.code_digest(module),
        "model": json.dumps(dict(world.model), sort_keys=True),
        "counts": str([world.text_count, world.pair_count, world.held_out, world.longest]),
        "version": str(_VERSION),
        **{key: str(value) for key, value in sft.items() if not any(f"{key}.".startswith(f"{f}.") for f in free)},
    }


def _make(world: World, sft: Config, folder: pathlib.Path, key: dict[str, str], run: Run) -> None:
    """Write a world's texts, train its reference on them, and label pairs of its answers."""
    writes = jax.process_index() == 0
    if writes:
        _write_start(world, folder, sft.seed)
    agreed(True)  # the other hosts read what the first one has written
    log.say(f"world: a tiny model learns {world.text_count} texts in {sft.steps} steps; it is the reference")
    run(sft)
    count = world.pair_count + world.held_out
    log.say(f"world: the reference writes {count} pairs of answers; the gold reward labels them")
    pairs = _pairs(world, sft, count)
    if writes:
        _write_parts(folder, "pairs", pairs, world.pair_count)
        (folder / f"{_MADE}.part").write_text(json.dumps(key, indent=1))
        (folder / f"{_MADE}.part").replace(folder / _MADE)
    agreed(True)


def _write_start(world: World, folder: pathlib.Path, seed: int) -> None:
    """Write what the reference starts from: its shape, its tokenizer and the texts."""
    tokenizer = world.tokenizer()
    tokenizer.save_pretrained(folder / "start")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    hf_config = {**world.model, "vocab_size": len(tokenizer), **special}
    (folder / "start" / "config.json").write_text(json.dumps(hf_config, indent=1))
    drawn = world.texts(world.text_count + world.held_out, np.random.default_rng([seed, stream_number("texts")]))
    texts = [{"prompt": prompt, "response": response} for prompt, response in drawn]
    _write_jsonl(folder / "texts.train.jsonl", texts[: world.text_count])
    _write_jsonl(folder / "texts.eval.jsonl", texts[world.text_count :])


def _pairs(world: World, sft: Config, count: int) -> list[dict[str, str | float]]:
    """Return pairs of the reference's answers, one preferred with the Bradley-Terry probability of the gold reward.

    Two equal answers are no pair, and an empty one is in none; more prompts are answered instead. The gold rewards go
    along as scores, for objectives that read them; that of the preferred answer may be the lower one.
    """
    path, seed = pathlib.Path(sft.output) / _MODEL, sft.seed
    model = models.build(hf.read_config(path), family=sft.model.family)
    params, tokenizer = jax.device_put(hf.load(path, model)), world.tokenizer()
    key, rng = named_key(jax.random.key(seed), "pairs"), np.random.default_rng([seed, stream_number("labels")])
    prompts = list(world.prompts(2 * count))
    ids = _prompt_ids(tokenizer, prompts)
    pairs: list[dict[str, str | float]] = []
    for start in log.track(range(0, 2 * count, BATCH), 1 + -(-count // BATCH), "pairs, in batches"):
        here = ids[start : start + BATCH]
        twice = [own for own in here for _ in range(2)]
        answered = _sample(model, params, world, tokenizer, here, key, samples=2, first=start)
        answers = _texts(tokenizer, twice, answered)
        for prompt, a, b in zip(prompts[start : start + BATCH], answers[::2], answers[1::2], strict=True):
            gold_a, gold_b = world.reward(prompt, a), world.reward(prompt, b)
            a_wins = rng.random() < 0.5 * (1 + math.tanh((gold_a - gold_b) / 2))
            chosen, rejected = (a, b) if a_wins else (b, a)
            if a != b and a.strip() and b.strip():
                scores = (gold_a, gold_b) if a_wins else (gold_b, gold_a)
                texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                pairs.append({**texts, "score_chosen": scores[0], "score_rejected": scores[1]})
        if len(pairs) >= count:
            return pairs[:count]
    raise ValueError(
        f"the reference's two answers to a prompt differ, and neither is empty, for only {len(pairs)} of {2 * count} "
        f"prompts, which makes no {count} pairs; give the world longer answers or more prompts, or lower its pair_count"
    )


def _make_pools(world: World, sft: Config, folder: pathlib.Path, name: str, size: int) -> None:
    """Write pools of the reference's answers, whose preferred one duels find."""
    count = world.pair_count + world.held_out
    log.say(f"world: the reference writes {count} pools of {size} answers; duels by the gold reward find the preferred")
    pools = _pools(world, sft, count, size)
    if jax.process_index() == 0:
        _write_parts(folder, name, pools, world.pair_count)
    agreed(True)


def _pools(world: World, sft: Config, count: int, size: int) -> list[dict[str, Any]]:
    """Return pools of answers of the reference, the preferred one first, the others as they were drawn.

    The first two answers meet, the winner meets the next, and so on: K - 1 duels, each won with the Bradley-Terry
    probability of the gold reward, as MC-PO's paper labels its samples (Chen et al., 2025, arXiv 2502.04567). As in
    pairs, the preferred answer is not empty, and another one is neither empty nor equal to it.
    """
    if size < 2:
        raise ValueError(f"data.format={POOL} with data.candidates={size}: expected pools of 2 answers or more")
    path, seed = pathlib.Path(sft.output) / _MODEL, sft.seed
    model = models.build(hf.read_config(path), family=sft.model.family)
    params, tokenizer = jax.device_put(hf.load(path, model)), world.tokenizer()
    key = named_key(jax.random.key(seed), f"pools of {size}")
    rng = np.random.default_rng([seed, stream_number("duels"), size])
    prompts = list(world.prompts(2 * count))
    ids = _prompt_ids(tokenizer, prompts)
    pools: list[dict[str, Any]] = []
    for start in log.track(range(0, 2 * count, BATCH), 1 + -(-count // BATCH), "pools, in batches"):
        many = [own for own in ids[start : start + BATCH] for _ in range(size)]
        answers = _texts(tokenizer, many, _sample(model, params, world, tokenizer, many, key, first=size * start))
        for i, prompt in enumerate(prompts[start : start + BATCH]):
            own = answers[size * i : size * (i + 1)]
            gold, won = [world.reward(prompt, answer) for answer in own], 0
            for k, chance in enumerate(rng.random(size - 1).tolist(), 1):
                won = won if chance < 0.5 * (1 + math.tanh((gold[won] - gold[k]) / 2)) else k
            order = [won, *(k for k in range(size) if k != won)]
            if own[won].strip() and any(answer.strip() and answer != own[won] for answer in own):
                pools.append(
                    {"prompt": prompt, "responses": [own[k] for k in order], "scores": [gold[k] for k in order]}
                )
        if len(pools) >= count:
            return pools[:count]
    raise ValueError(
        f"the preferred of the reference's {size} answers to a prompt is not empty, and another differs from it, for "
        f"only {len(pools)} of {2 * count} prompts, which makes no {count} pools; give the world longer answers or "
        "more prompts, or lower its pair_count"
    )


def _prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[np.ndarray]:
    known = {prompt: np.array(tokenizer(prompt)["input_ids"], np.int32) for prompt in dict.fromkeys(prompts)}
    return [known[prompt] for prompt in prompts]


def _sample(
    model: Model,
    params: Params,
    world: World,
    tokenizer: Any,
    prompts: Sequence[np.ndarray],
    key: Key,
    devices: Grid | None = None,
    *,
    samples: int = 1,
    first: int = 0,
) -> list[sampling.Response]:
    """Answer prompts, given as ids: all answers of the first, of the second, ..."""
    answers = sampling.generate(
        model,
        params,
        prompts,
        key=key,
        max_new_tokens=world.longest,
        eos=(tokenizer.eos_token_id,),
        samples=samples,
        slots=BATCH,
        first=first,
        grid=devices,
    )
    return [answer for of_prompt in answers for answer in of_prompt]


def _texts(tokenizer: Any, prompts: Sequence[np.ndarray], answers: Sequence[sampling.Response]) -> list[str]:
    """Return answers as the texts that follow their prompts, without special tokens."""
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    begins = functools.cache(lambda ids: len(decode(list(ids))))
    return [
        decode(np.concatenate([prompt, answer.token]))[begins(tuple(prompt.tolist())) :]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _write_parts(folder: pathlib.Path, name: str, records: Sequence[Mapping[str, Any]], train: int) -> None:
    """Write what is held out, then what is trained on, whose file is there only when both are."""
    _write_jsonl(folder / _HELD_OUT.format(name), records[train:])
    _write_jsonl(folder / _TRAIN.format(name), records[:train])


def _write_jsonl(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a file that is there only once it is whole."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(record) + "\n" for record in records))
    part.replace(path)


def reference(config: Config) -> str:
    """Return the folder of a world's reference, made by an earlier run of the same world and seed.

    Args:
        config: of a run in a world.

    Raises:
        ValueError: nobody has made it yet.
    """
    module, world = worlds.find(config.world)
    folder = world_folder(config, module, world)
    if not (folder / _MADE).exists():
        raise ValueError(
            f"config.world={config.world}: there is no reference in {folder} yet; train in this world first (python -m "
            "slpojax.train makes it), or set config.model.path"
        )
    return str(folder / _MODEL)
