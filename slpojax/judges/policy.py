"""The policy judges itself: by what it says of two answers, or by how it has moved from its reference.

Knows a policy's folder or its parameters, token ids and log-probs; knows no training. Sources: Zhai et al., Online
Self-Preferring Language Models, 2024, arXiv 2405.14103 (a policy's own preference strengths; its question is not
published, the one here is ours); Chen et al., Bootstrapping Language Models with DPO Implicit Rewards, 2024, arXiv
2406.09760.
"""

import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from slpojax import adapters, bench, data, folders, hf, models, sampling, sums
from slpojax.base import Model, Params
from slpojax.data import templates
from slpojax.data.formats import Parsed
from slpojax.judges import COMPARES, SCORES, Context, Loaded, Question, Verdict, _asking, require

AT_ONCE = 32  # prompts
CHANGE_NO_VERDICT = ("path", "reference", "template")  # places, of whose contents there are digests
_ROWS = 64  # sequences that are scored at once
_PLAIN = "\n\nThe better one is"  # behind a question, for tokenizers without a chat template
_Frozen = Callable[[], tuple[Model, Params]]
_Ids = np.ndarray


def compare(context: Context, *, path: str = "", template: str = "helpfulness") -> Loaded:
    """Ask the policy which of two answers is better: P("A") / (P("A") + P("B")) as its reply, the mean of both orders.

    Its chat template asks, where it has one. With `ranking=all_pairs` and the objective `margin.spce` this is online
    self-preferring (OSP).

    Args:
        context: the policy, its devices and dtype.
        path: another model's folder, or an adapter's, that judges in place of the policy; "" for the policy.
        template: the question: helpfulness, summaries, instructions, or a text file of one's own.

    Raises:
        ValueError: there is no policy, or no such question.
    """
    folder, frozen = _frozen(context, path, "path")
    tokenizer, text = _tokenizer(folder, "path"), _asking.question(template, "letter")

    def ask(questions: Sequence[Question]) -> list[Verdict]:
        asked = [
            _letters(tokenizer, _asking.fill(text, question.prompt, *pair))
            for question in questions
            for pair in (question.answers, question.answers[::-1])
        ]
        prompts = [prompt for prompt, _ in asked for _ in range(2)]
        letters = [letter for _, pair in asked for letter in pair]
        logp = np.concatenate(_logps(*frozen(), prompts, letters, context)).reshape(-1, 2, 2)
        first = np.array([[_sigmoid(float(a - b)) for a, b in orders] for orders in logp])
        return ((first[:, 0] + 1 - first[:, 1]) / 2).tolist()

    depends = _depends(context, path, folder) | _asking.depends(text)
    return Loaded(COMPARES, ask, at_once=AT_ONCE, depends=depends, every_host=True)


def implicit(
    context: Context, *, beta: float = 1.0, per: str = "answer", path: str = "", reference: str = ""
) -> Loaded:
    """Score an answer y to x by beta * log P(y|x) / P_ref(y|x), the reward that DPO has made of the policy.

    Where samples come with their token ids, these are scored; else the texts, tokenised, with an EOS.

    Args:
        context: the policy and its reference, devices and dtype.
        beta: scale, per nat.
        per: answer (the sum over its tokens) or token (their mean).
        path: another folder, of a model or an adapter, in place of the policy's, of the same tokenizer.
        reference: another folder in place of the reference's, likewise.

    Raises:
        ValueError: there is no policy or no reference, or a hyperparameter is wrong.
    """
    require(per in ("answer", "token"), "per", per, "answer or token")
    folder, frozen = _frozen(context, path, "path")
    ref_folder, ref_frozen = _frozen(context._replace(policy=context.reference, params=None), reference, "reference")
    tokenizer = functools.cache(lambda: _tokenizer(folder, "path"))

    def ask(questions: Sequence[Question]) -> list[Verdict]:
        ids = [_ids(tokenizer, question) for question in questions]
        prompts = [prompt for prompt, answers in ids for _ in answers]
        answers = [answer for _, own in ids for answer in own]
        policy, ref = (_logps(*load(), prompts, answers, context) for load in (frozen, ref_frozen))
        sums = [float(np.sum(p.astype(np.float64) - r)) for p, r in zip(policy, ref, strict=True)]
        over = [max(1, len(answer)) if per == "token" else 1 for answer in answers]
        ratios = iter([total / count for total, count in zip(sums, over, strict=True)])
        return [[beta * next(ratios) for _ in own] for _, own in ids]

    ref_digest = bench.weights_digest(ref_folder, "judge.reference")
    depends = _depends(context, path, folder) | {"reference": ref_digest}
    return Loaded(SCORES, ask, at_once=AT_ONCE, depends=depends, every_host=True)


def _frozen(context: Context, path: str, key: str) -> tuple[pathlib.Path, _Frozen]:
    """Return the folder of a model or an adapter, and what loads it once it is needed."""
    require(path or context.policy, key, path, "the folder of a model, as config.model.path names none")
    key = f"judge.{key}"
    folder = folders.resolve(path or context.policy, key=key)
    hf_config = hf.read_config(adapters.base_of(folder, key))
    model = models.build(hf_config, dtype=context.dtype, grid=context.grid, family=context.family)

    @functools.cache
    def load() -> tuple[Model, Params]:
        if context.params is not None and not path:
            return model, context.params
        params = bench.load_params(folder, model, context.grid, key=key)
        return model, params if context.grid else jax.device_put(params)

    return folder, load


def _tokenizer(folder: pathlib.Path, key: str) -> data.Tokenizer:
    return data.load_tokenizer(str(adapters.tokenizer_of(folder, f"judge.{key}")))


def _depends(context: Context, path: str, folder: pathlib.Path) -> dict[str, str]:
    if context.params is None or path:
        return {"policy": bench.weights_digest(folder, "judge.path"), "dtype": context.dtype}
    bits = json.dumps(sums.of(context.params).bits, sort_keys=True)
    return {"policy": hashlib.sha256(bits.encode()).hexdigest(), "dtype": context.dtype}


def _logps(
    model: Model, params: Params, prompts: Sequence[_Ids], answers: Sequence[_Ids], context: Context
) -> list[np.ndarray]:
    """Return the log-probs of the tokens of answers; lengths are rounded up, so that few shapes are compiled."""
    longest = max(map(len, answers))
    longest = longest if longest == 1 else 2 ** math.ceil(math.log2(max(longest, 16)))
    return sampling.score(model, params, prompts, answers, max_new_tokens=longest, batch=_ROWS, grid=context.grid)


def _letters(tokenizer: Any, text: str) -> tuple[_Ids, tuple[_Ids, _Ids]]:
    """Return the ids of a question, and the first id by which the replies "A" and "B" differ."""
    if templates.chat_template(tokenizer, ""):
        asked = ({"role": "user", "content": text},)
        replies = tuple(({"role": "assistant", "content": letter},) for letter in "AB")
        written = templates.write(Parsed(asked, replies), tokenizer, "")
        wholes = [written.prompt + reply for reply in written.responses]
    else:
        wholes = [f"{text}{_PLAIN} {letter}" for letter in "AB"]
    special = templates.chat_template(tokenizer, "") is None
    a, b = (tokenizer(whole, add_special_tokens=special)["input_ids"] for whole in wholes)
    cut = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    if not cut:
        raise ValueError("the policy's tokenizer tells the replies A and B not apart; take another judge")
    return _array(a[:cut]), (_array(a[cut : cut + 1]), _array(b[cut : cut + 1]))


def _ids(tokenizer: Callable[[], Any], question: Question) -> tuple[_Ids, list[_Ids]]:
    """Return the ids of a prompt and of its answers: those that the policy read and wrote, where they are known."""
    if question.prompt_ids and len(question.ids) == len(question.answers) and all(question.ids):
        return _array(question.prompt_ids), [_array(ids) for ids in question.ids]
    own, prompt, answers = tokenizer(), question.prompt, list(question.answers)
    if not isinstance(prompt, str):
        replies = tuple(({"role": "assistant", "content": answer},) for answer in answers)
        written = templates.write(Parsed(tuple(prompt), replies), own, "")
        begin, ends = written.prompt, written.responses
    else:
        begin, ends = prompt, tuple(answers)
    special = isinstance(prompt, str)
    first = own(begin, add_special_tokens=special)["input_ids"]
    wholes = [own(begin + end, add_special_tokens=special)["input_ids"] for end in ends]
    eos = [own.eos_token_id] if special else []
    return _array(first), [_array(whole[len(first) :] + eos) for whole in wholes]


def _array(ids: Sequence[int]) -> _Ids:
    return np.array(ids, np.int32)


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))
