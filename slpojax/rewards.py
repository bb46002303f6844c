"""Reward models in process: a folder of a `...ForSequenceClassification` class, and what it gives for answers.

The folder may be an adapter's, of such a model or of a language model for which it brings the score head. Knows model
folders, tokenizers and texts; knows no configuration, no objective and no judge. A reward is read at the last token of
prompt and answer, as transformers does: the last that is not `pad_token_id` of config.json, so that where a folder pads
with EOS, the end of a text is not read. What the texts of a prompt's answers have in common at their beginning is
computed once for all of them.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from slpojax import adapters, data, folders, grid, hf, log, models, wording
from slpojax.base import Float, Int, Model, Params
from slpojax.data import marks, sandbox, templates, turns
from slpojax.grid import Grid
from slpojax.scores import scorer

Prompt: TypeAlias = str | Sequence[dict[str, Any]]  # a text, or messages of which the last is not the assistant's
Ids: TypeAlias = Int[np.ndarray, " _"]

TOO_LONG = ("refuse", "cut", "skip")
CELLS = 16384  # tokens that are computed at once, or one prompt with its answers where these are more


class Rewarder(NamedTuple):
    """A reward model.

    Attributes:
        folder: where it lies.
        model: with a score head.
        params: on the devices.
        tokenizer: the folder's own.
        grid: the devices.
        pad: the token that is never the last one of a text; None for none.
        limit: most tokens of prompt and answer.
    """

    folder: pathlib.Path
    model: Model
    params: Params
    tokenizer: data.Tokenizer
    grid: Grid
    pad: int | None
    limit: int


def load(
    folder: str | pathlib.Path,
    devices: Grid,
    dtype: str = "float32",
    *,
    attention: str = "tiles",
    max_length: int = 0,
    key: str = "model.path",
) -> Rewarder:
    """Load a reward model and its tokenizer.

    Args:
        folder: in Hugging Face layout, or a hub name: a `...ForSequenceClassification` of one label, or an adapter of
            one, or one that brings the head of one to a language model, as peft writes it (task_type SEQ_CLS).
        devices: that get the parameters, and share the texts.
        dtype: of the computation: float32 or bfloat16.
        attention: the kernel, as `models.build` takes it.
        max_length: most tokens of prompt and answer; 0 for as many as config.json says (max_position_embeddings).
        key: of the configuration, which gave the folder, for errors.

    Raises:
        ValueError: there is no such folder, or it is no reward model.
    """
    path = hf.resolve(folder, key=key)
    base = adapters.base_of(path, key)
    config = hf.read_config(base, also=folders.SCORING)
    folders.require_one_label(base, config)
    limit = max_length or int(config.get("max_position_embeddings") or 2048)
    model = models.build(
        config, dtype=dtype, attention=attention, max_length=max_length or None, grid=devices, head="score"
    )
    brought = adapters.read(path, model).whole if base != path else ()
    if not folders.labels(config) and "head/weight" not in brought:
        what = f"an adapter of a language model, {base}, without a score head" if base != path else "a language model"
        raise ValueError(
            f"config.{key}: {path} is {what}; expected a reward model, a class of {folders.SCORING} with one "
            "label. Give one, or train it: --config=configs/reward_hh.py"
        )
    tokenizer = data.load_tokenizer(str(adapters.tokenizer_of(path, key)))
    params = adapters.load_policy(path, model, devices, hf.load, key=key)
    return Rewarder(path, model, params, tokenizer, devices, _pad(path, base, config, tokenizer), limit)


def _pad(path: pathlib.Path, base: pathlib.Path, config: Mapping[str, Any], tokenizer: data.Tokenizer) -> int | None:
    """Return the token that pads: of config.json, or where an adapter has a tokenizer of its own, of that.

    A trainer of adapters, such as TRL's, reads rewards by its tokenizer's padding token and saves the tokenizer; the
    model's config.json stays as it was.
    """
    named = config.get("pad_token_id")
    own = tokenizer.pad_token_id if base != path and adapters.tokenizer_of(path, "") == path else None
    if own is None or own == named:
        return named
    also = "" if named is None else f"; config.json of {base} says {named}"
    log.say(f"{path}: a reward is read at the last token but id {own}, with which its tokenizer pads{also}")
    return own


def scores(
    rewarder: Rewarder,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    *,
    too_long: str = "refuse",
    cells: int = CELLS,
) -> Float[np.ndarray, "N K"]:
    """Return the rewards of K answers to each of N prompts, float32, higher is better.

    A prompt of messages is written with the answer as the assistant's turn by the chat template of the model's own
    tokenizer, to its end; special tokens that the messages hold are text. A plain prompt is followed by the answer and
    EOS, behind what the tokenizer puts first.

    Args:
        rewarder: from `load`.
        prompts: texts, or lists of messages.
        answers: [N][K] texts.
        too_long: what happens to an answer that does not fit: refuse (an error) | cut (its end, or the prompt's, is not
            read, as transformers' truncation does) | skip (the prompt's rewards are NaN); the last two are counted.
        cells: tokens that are computed at once, about.

    Raises:
        ValueError: an answer is too long, a prompt has another number of answers or is empty, a template refuses its
            messages, or a reward is not finite; says which prompt it is.
    """
    if too_long not in TOO_LONG:
        raise wording.unknown("too_long", too_long, TOO_LONG)
    count = len(answers[0]) if len(answers) else 0
    if len(prompts) != len(answers) or not count or any(len(some) != count for some in answers):
        sizes = sorted({len(some) for some in answers})
        raise ValueError(
            f"{len(prompts)} prompts with {len(answers)} lists of {', '.join(map(str, sizes)) or 'no'} answers; "
            "expected as many answers to every prompt, at least one. Give the same number to each"
        )
    out = np.full((len(prompts), count), np.nan, np.float32)
    together: dict[int, data.Example] = {}  # prompt -> the example of its answers
    alone: dict[tuple[int, int], data.Example] = {}  # where they have not even a first token in common
    cut = skipped = 0
    for n, ids in enumerate(_tokens(rewarder, prompts, answers)):
        over = [k for k, one in enumerate(ids) if len(one) > rewarder.limit]
        if over and too_long == "refuse":
            raise ValueError(
                f"prompt {n}, answer {over[0]}: {len(ids[over[0]]):,} tokens are more than the reward model reads, "
                f"{rewarder.limit:,}; shorten the answers, or set too_long to cut or skip"
            )
        if over and too_long == "skip":
            skipped += 1
            continue
        cut += len(over)
        ids = [one[: rewarder.limit] for one in ids]
        shared = _common(ids)
        if shared:
            together[n] = data.Example(ids[0][:shared], tuple(one[shared:] for one in ids), (0.0,) * count, n)
        else:
            alone |= {(n, k): data.Example(one[:-1], (one[-1:],), (0.0,), n) for k, one in enumerate(ids)}
    if cut or skipped:
        log.say(f"rewards: {cut:,} answers cut, {skipped:,} prompts skipped, beyond {rewarder.limit:,} tokens")
    for n, values in zip(together, _read(rewarder, [*together.values()], count, cells), strict=True):
        out[n] = values
    for (n, k), values in zip(alone, _read(rewarder, [*alone.values()], 1, cells), strict=True):
        out[n, k] = values[0]
    computed = [n for n in range(len(prompts)) if n in together or (n, 0) in alone]
    if broken := [n for n in computed if not np.isfinite(out[n]).all()]:
        raise ValueError(
            f"prompt {broken[0]}: a reward is not finite ({len(broken)} prompts in all); check the weights of "
            f"{rewarder.folder}, or load them with dtype float32"
        )
    return out


def _tokens(rewarder: Rewarder, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> Iterator[list[Ids]]:
    """Yield the token ids of every prompt with each of its answers, up to the token that is read."""
    tokenizer = rewarder.tokenizer
    known, encode = marks.find(tokenizer), marks.encoder(tokenizer)
    for n, (prompt, some) in enumerate(zip(prompts, answers, strict=True)):
        if not len(prompt):
            raise ValueError(f"prompt {n} is empty; a reward is that of an answer to something. Leave it out")
        if isinstance(prompt, str):
            found = tokenizer([f"{prompt}{answer}" for answer in some], verbose=False)["input_ids"]
            end = [tokenizer.eos_token_id]
            ids = [np.array(one if one[-1:] == end else one + end, np.int32) for one in found]
        else:
            asked = tuple(_as_text(turn, known) for turn in prompt)
            said = [{"role": "assistant", "content": answer.removesuffix(tokenizer.eos_token)} for answer in some]
            try:
                texts = [templates.dialogue((*asked, _as_text(turn, known)), tokenizer) for turn in said]
            except (turns.Unusable, sandbox.TooMuch) as reason:
                raise ValueError(
                    f"prompt {n}: {reason}; leave it out, or give {rewarder.folder} a chat template that takes it"
                ) from None
            ids = encode(texts)
        yield [_read_to(one, rewarder.pad, n) for one in ids]


def _as_text(turn: dict[str, Any], known: marks.Marks) -> dict[str, Any]:
    """Return a message whose special tokens are text, so that an answer closes no turn and opens none."""
    content = turn.get("content")
    if not isinstance(content, str):
        return turn
    return turn | {"content": known.names.sub(lambda found: known.of[found[0]], content)}


def _read_to(ids: Ids, pad: int | None, prompt: int) -> Ids:
    """Return the ids up to the last that does not pad."""
    real = np.flatnonzero(ids != pad) if pad is not None else np.arange(len(ids))
    if len(real) == 0 or real[-1] == 0:
        raise ValueError(f"prompt {prompt}: it and its answer are one token at most; expected text. Leave it out")
    return ids[: real[-1] + 1]


def _common(ids: Sequence[Ids]) -> int:
    """Return how many tokens all begin with, where each keeps one of its own."""
    most = min(map(len, ids)) - 1
    same = np.logical_and.reduce([one[:most] == ids[0][:most] for one in ids])
    return int(np.argmin(same)) if not same.all() else most


def _read(
    rewarder: Rewarder, listed: Sequence[data.Example], candidates: int, cells: int
) -> Iterator[Float[np.ndarray, " K"]]:
    """Yield the rewards of the responses of each example, in order."""
    if not listed:
        return
    devices, examples = rewarder.grid, data.build(listed, candidates=candidates)
    mean = examples.token.size / len(examples)
    order = data.evaluation_order(examples.lengths, min(len(examples), max(1, int(cells / mean))))
    shapes = data.plan(examples, order, row_length=0, multiple_of=devices.devices)
    score = scorer(rewarder.model, shapes, devices, ("reward",))
    batches = data.evaluation_batches(examples, shapes, order, share=devices.share)

    def computed() -> Iterator[Any]:
        for batch in batches:
            placed = grid.put_batch(devices, batch)
            yield placed.index, placed.length, score(rewarder.params, placed)[1]["reward"]

    out = np.zeros((len(examples), candidates), np.float32)
    for index, length, values in log.track(grid.gathered(computed()), len(order), "rewards"):
        at_end = np.take_along_axis(values, np.maximum(length - 1, 0)[..., None], axis=2)[..., 0]
        out[index[index >= 0]] = at_end[index >= 0]
    yield from out
