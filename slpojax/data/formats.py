"""What public preference files look like: one parser a format, from a record to prompt, responses and scores.

Knows fields and texts; knows no tokens. A parser is a pure function `record -> Parsed` with the better response first,
unless it says that the responses stand as they were sampled.
It raises `Unusable` with a reason, never with text, for a record that holds no example; the report counts the reasons.
`data.format = "name"` finds the function of that name here, or `package.module.name` anywhere. Where a source spreads
an example over consecutive records, the module's table `GROUPED` names the field that they share; the parser then gets
one record whose every field is the list of theirs.
"""

import importlib
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from slpojax import named
from slpojax.data import fields, judged, published, turns
from slpojax.data.fields import Record as Record
from slpojax.data.parsed import Parsed as Parsed
from slpojax.data.parsed import Tokens as Tokens
from slpojax.data.turns import Messages as Messages
from slpojax.data.turns import Unusable as Unusable

_ASSISTANT, _HUMAN = "\n\nAssistant:", "\n\nHuman:"
SEVERAL = "a response of several turns"
CUT = "response cut before the turn of a user, which is not trained"
_NOT_HIGHEST = "the preferred response has not the highest score"
_ONE_WORD = re.compile(r"\s?[\w'’-]*")
_NO_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Chinese, ...
_MORE_THAN_A_WORD = "the responses share more than a word, as the prompt does not end with a blank"
_SHARED = "turns up to one of a user that both responses share, which are prompt"
_REPEATED = "prompt repeated by the responses, read once"

Parser: TypeAlias = Callable[[Record], Parsed]


def find(name: str) -> Parser:
    """Return the parser called `name`.

    Raises:
        ValueError: there is none; lists those there are.
    """
    return named.find("data.format", name, FORMATS, first="record")


def grouped_by(name: str) -> str | None:
    """Return the field that consecutive records of the format `name` share where they are one example, or None."""
    module, _, function = name.rpartition(".")
    table = getattr(importlib.import_module(module), "GROUPED", {}) if module else GROUPED
    return table.get(function)


def hh(record: Record) -> Parsed:
    """Whole dialogues `chosen` and `rejected` of Anthropic's HH.

    The prompt ends with the last "Assistant:" before the dialogues part, so both share it whatever follows. A response
    ends before the user's next turn: all its tokens are trained, and a user's are not the policy's. (Bai et al.,
    Training a Helpful and Harmless Assistant with RLHF, 2022, arXiv 2204.05862.)
    """
    chosen, rejected = fields.text(record, "chosen"), fields.text(record, "rejected")
    cut = chosen[: common(chosen, rejected)].rfind(_ASSISTANT) + len(_ASSISTANT)
    if cut < len(_ASSISTANT):
        raise Unusable("no shared prompt")
    responses = chosen[cut:], rejected[cut:]
    own = responses[0].partition(_HUMAN)[0], responses[1].partition(_HUMAN)[0]
    notes = (CUT,) * (own != responses) + (SEVERAL,) * any(_ASSISTANT in response for response in own)
    return fields.pair(record, chosen[:cut], own, notes=notes)


def hh_rightmost(record: Record) -> Parsed:
    """HH as the original DPO program splits it: at the right-most "Assistant:" of `chosen`.

    Both responses are what follows as many characters, also where `rejected` does not share the prompt; the report
    counts those. For parity only. (Rafailov et al., Direct Preference Optimization, 2023, arXiv 2305.18290; program.)
    """
    chosen, rejected = fields.text(record, "chosen"), fields.text(record, "rejected")
    cut = chosen.rfind(_ASSISTANT) + len(_ASSISTANT)
    if cut < len(_ASSISTANT):
        raise Unusable("no shared prompt")
    shared = rejected.startswith(chosen[:cut])
    notes = () if shared else ("rejected does not share the prompt",)
    return fields.pair(record, chosen[:cut], (chosen[cut:], rejected[cut:]), notes)


def pairs(record: Record) -> Parsed:
    """Strings `prompt`, `chosen`, `rejected`; nothing is put between prompt and response.

    Numbers `score_chosen` and `score_rejected` beside them, here and in every other format of pairs, are the scores.
    """
    return fields.pair(
        record, fields.text(record, "prompt"), (fields.text(record, "chosen"), fields.text(record, "rejected"))
    )


def bradley_terry(record: Record) -> Parsed:
    """`pairs` with scores, which become probabilities: of each response to be preferred to the other.

    By the model of Bradley and Terry: the logistic function of the scores' difference. For objectives whose scores are
    probabilities of a win.
    """
    parsed = pairs(record)
    if parsed.scores is None:
        raise KeyError("score_chosen, or score_rejected")
    won = 0.5 * (1 + math.tanh((parsed.scores[0] - parsed.scores[1]) / 2))
    return parsed._replace(scores=(won, 1 - won))


def quantiles(record: Record) -> Parsed:
    """A pair with `chosen_rewards`, `rejected_rewards` and `ref_rewards`, which become quantiles, for QRPO.

    `chosen` and `rejected` are strings beside a `prompt`, as in `pairs`, or messages, as in `conversational`.
    `ref_rewards` are the rewards of the reference's own samples to the prompt; the quantile of a response is the share
    of them that are no higher than its own reward. (Matrenok et al., Quantile Reward Policy Optimization, 2025, arXiv
    2507.08068; fields and rule are those of the authors' code, which was read.)
    """
    parsed = pairs(record) if isinstance(record.get("chosen"), str) else conversational(record)
    own = [fields.number(fields.field(record, name), "reward") for name in ("chosen_rewards", "rejected_rewards")]
    listed = fields.field(record, "ref_rewards")
    if not isinstance(listed, list):
        raise TypeError(f"ref_rewards is {fields.kind(listed)}, expected an array of numbers")
    if not listed:
        raise Unusable("ref_rewards is empty")
    theirs = [fields.number(value, "reward") for value in listed]
    shares = tuple(sum(other <= reward for other in theirs) / len(theirs) for reward in own)
    return parsed._replace(scores=shares, notes=(*parsed.notes, *(fields.LOWER,) * (own[0] < own[1])))


def pool(record: Record) -> Parsed:
    """Strings `prompt` and `responses`, the preferred one first, the others in any order; perhaps `scores` beside them.

    Nothing is put between prompt and response. Scores rank nothing here: the record says which is the preferred one.
    """
    prompt, responses = fields.text(record, "prompt"), tuple(fields.texts(record, "responses"))
    if record.get("scores") is None:
        return Parsed(prompt, responses, None, stated=True)
    gold = tuple(fields.scores(record, "scores", len(responses)))
    return Parsed(prompt, responses, gold, (_NOT_HIGHEST,) * any(other > gold[0] for other in gold), stated=True)


def implicit(record: Record) -> Parsed:
    """`chosen` and `rejected` that both begin with the prompt: strings, or lists of messages.

    Strings are split before the last blank of their common beginning, so that no word is cut and the responses keep
    their leading blank; a first word that both responses share counts as prompt. Where they share more than a word, as
    in Chinese, it is noted. Where the format has a mark for the end of the prompt, as HH has, use the parser for it.
    """
    if not isinstance(record.get("chosen"), str):
        return conversational(record)
    chosen, rejected = fields.text(record, "chosen"), fields.text(record, "rejected")
    both = common(chosen, rejected)
    if both == len(chosen) == len(rejected):
        raise Unusable("identical responses")
    cut = max(0, *(chosen.rfind(blank, 0, both) for blank in " \n\t"))
    more = not _ONE_WORD.fullmatch(chosen, cut, both) or _NO_BLANKS.search(chosen, cut, both)
    if not cut:
        raise Unusable("no blank that ends a prompt" if more else "no shared prompt")
    return fields.pair(record, chosen[:cut], (chosen[cut:], rejected[cut:]), (_MORE_THAN_A_WORD,) if more else ())


def conversational(record: Record) -> Parsed:
    """Messages for the tokenizer's chat template.

    `prompt` (or LLaMA-Factory's `conversations`, with its `system`) with `chosen` and `rejected`, each a message or a
    list of them; or `chosen` and `rejected` alone, which then begin with the same messages. `slpojax.data.turns` says
    what messages may look like. A `prompt` that is a string beside them repeats how they begin, and is not read (so it
    is in HuggingFaceH4/ultrafeedback_binarized). `chosen` and `rejected` that repeat the messages of `prompt` are read
    without them.
    """
    chosen, rejected = turns.read(fields.field(record, "chosen")), turns.read(fields.field(record, "rejected"))
    prompt = record.get("prompt")
    if not prompt or isinstance(prompt, str):
        prompt = fields.conversations(record) if record.get("conversations") else ()
    else:
        prompt = turns.read(prompt)
    if prompt and not all(turns.shared(prompt, response) == len(prompt) for response in (chosen, rejected)):
        both = turns.shared(chosen, rejected)
        both = both if any(turn["role"] == "user" for turn in chosen[:both]) else 0
        notes = (_SHARED,) * bool(both)
        return fields.pair(record, (*prompt, *chosen[:both]), (chosen[both:], rejected[both:]), notes)
    if turns.same(chosen, rejected):
        raise Unusable("identical responses")
    cut = turns.shared(chosen, rejected)
    if not cut:
        raise Unusable("no shared prompt")
    return fields.pair(record, chosen[:cut], (chosen[cut:], rejected[cut:]), (_REPEATED,) if prompt else ())


def prompt_response(record: Record) -> Parsed:
    """Strings `prompt` and `response` (or `completion`), for SFT: one candidate."""
    return Parsed(
        fields.text(record, "prompt"), (fields.text(record, "response" if "response" in record else "completion"),)
    )


def messages(record: Record) -> Parsed:
    """`messages` (or `conversations` with `system`), the last of which is the response, for SFT: one candidate."""
    prompt, response = fields.dialogue(record)
    return Parsed(prompt, (response,))


def dialogues(record: Record) -> Parsed:
    """`messages` (or `conversations` with `system`), from the assistant's first turn on the response, for SFT.

    With `data.turns=assistant` every turn of the assistant is trained; with `all` the response ends before the user's
    second turn.
    """
    prompt, response = fields.dialogue(record)
    said = (*prompt, *response)
    first = next(i for i, turn in enumerate(said) if turn["role"] == "assistant")
    if not first:
        raise Unusable("empty prompt")
    return Parsed(said[:first], (said[first:],))


def ranked(record: Record) -> Parsed:
    """`messages` and `responses` [{"text", "rank", "score"}], any number of them.

    Scores are the record's; where one is null all are minus the rank (the number of strictly better responses). Of one
    rank the higher score comes first.
    """
    answers = [(fields.number(answer["rank"], "rank"), answer) for answer in fields.objects(record, "responses")]
    if any(answer.get("score") is None for _, answer in answers):
        scored = [(rank, -rank, answer) for rank, answer in answers]
    else:
        scored = [(rank, fields.number(answer["score"]), answer) for rank, answer in answers]
    scored.sort(key=lambda each: (each[0], -each[1]))
    scores = tuple(score for _, score, _ in scored)
    if any(worse > better for better, worse in itertools.pairwise(scores)):
        raise Unusable("ranks and scores contradict each other")
    replies = tuple(fields.reply(answer["text"], "text") for _, _, answer in scored)
    return Parsed(turns.read(fields.field(record, "messages")), replies, scores)


def unpaired(record: Record) -> Parsed:
    """`prompt`, `completion` and a boolean `label`: one candidate that is desirable or not. Strings, or messages."""
    label = float(fields.flag(record, "label"))
    if isinstance(record.get("prompt"), str):
        return Parsed(fields.text(record, "prompt"), (fields.text(record, "completion"),), label=label)
    prompt, completion = turns.read(fields.field(record, "prompt")), turns.read(fields.field(record, "completion"))
    return Parsed(prompt, (completion,), label=label)


FORMATS: Mapping[str, Parser] = {
    parser.__name__: parser
    for parser in (
        *(hh, hh_rightmost, pairs, bradley_terry, quantiles, pool, implicit, conversational, prompt_response),
        *(messages, dialogues, ranked, unpaired),
        *(judged.samples, judged.samples_in_order, judged.samples_versus_last, judged.samples_quantiles),
        *(published.nectar, published.ultrafeedback, published.helpsteer, published.helpsteer3, published.armorm),
        *(published.orca, published.stack_exchange, published.distilabel, published.alpaca_pairs, published.shp),
        *(published.safe_rlhf_better, published.safe_rlhf_safer, published.summarize_from_feedback),
        *(published.webgpt, published.reward_bench, published.kto_tagged),
    )
}
GROUPED = published.GROUPED


def common(a: str, b: str) -> int:
    """Return the length of the common beginning, by bisection: comparing slices is much faster than characters."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
