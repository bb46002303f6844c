"""What public preference files look like: one parser a format, from a record to prompt, responses and scores.

Knows fields and texts; knows no tokens. A parser is a pure function `record -> Parsed` with the better response first.
It raises `Unusable` with a reason, never with text, for a record that holds no example; the report counts the reasons.
`data.format = "name"` finds the function of that name here, or `package.module.name` anywhere. Where a source spreads
an example over consecutive records, the module's table `GROUPED` names the field that they share; the parser then gets
one record whose every field is the list of theirs.
"""

import decimal
import importlib
import itertools
import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from slpojax import named
from slpojax.data import turns
from slpojax.data.turns import Messages as Messages
from slpojax.data.turns import Unusable as Unusable

Record: TypeAlias = Mapping[str, Any]

_ASSISTANT = "\n\nAssistant:"
SEVERAL = "a response of several turns"
_LOWER = "the chosen response has the lower score"
_LARGEST = 3.4028234663852886e38  # of float32
_STEER_TURN = re.compile(r"\n*<extra_id_1>(?:User|Assistant)\n")  # between the turns of a HelpSteer prompt
_ONE_WORD = re.compile(r"\s?[\w'’-]*")
_NO_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Chinese, ...
_MORE_THAN_A_WORD = "the responses share more than a word, as the prompt does not end with a blank"
_SHARED = "turns up to one of a user that both responses share, which are prompt"
_REPEATED = "prompt repeated by the responses, read once"


class Parsed(NamedTuple):
    """An example before tokenisation.

    Attributes:
        prompt: plain text, or messages.
        responses: best first; plain text, or the messages that follow the prompt.
        scores: higher is better; None where the record only says which is better.
        notes: what the report should count although the record holds an example.
        label: of a response that is no part of a pair: 1 desirable, 0 undesirable; None in every other format.
        stated: whether the record itself states that the first response is the better one. Scores then only say by how
            much: equal ones are no tie, and a lower one of the first is a preference with noise.
        tools: the functions that the record offers, which a chat template describes; `parsing` reads them.
    """

    prompt: str | Messages
    responses: tuple[str | Messages, ...]
    scores: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    label: float | None = None
    stated: bool = False
    tools: tuple[dict[str, Any], ...] = ()


Parser: TypeAlias = Callable[[Record], Parsed]


def find(name: str) -> Parser:
    """Return the parser called `name`.

    Raises:
        ValueError: there is none; lists those there are.
    """
    return named.find("data.format", name, {known: globals()[known] for known in FORMATS}, first="record")


def grouped_by(name: str) -> str | None:
    """Return the field that consecutive records of the format `name` share where they are one example, or None."""
    module, _, function = name.rpartition(".")
    table = getattr(importlib.import_module(module), "GROUPED", {}) if module else GROUPED
    return table.get(function)


def hh(record: Record) -> Parsed:
    """Whole dialogues `chosen` and `rejected` of Anthropic's HH.

    The prompt ends with the last "Assistant:" before the dialogues part, so both share it whatever follows. (Bai et
    al., Training a Helpful and Harmless Assistant with RLHF, 2022, arXiv 2204.05862.)
    """
    chosen, rejected = _text(record, "chosen"), _text(record, "rejected")
    cut = chosen[: common(chosen, rejected)].rfind(_ASSISTANT) + len(_ASSISTANT)
    if cut < len(_ASSISTANT):
        raise Unusable("no shared prompt")
    responses = chosen[cut:], rejected[cut:]
    several = any(_ASSISTANT in response for response in responses)
    return _pair(record, chosen[:cut], responses, notes=(SEVERAL,) if several else ())


def hh_rightmost(record: Record) -> Parsed:
    """HH as the original DPO program splits it: at the right-most "Assistant:" of `chosen`.

    Both responses are what follows as many characters, also where `rejected` does not share the prompt; the report
    counts those. For parity only. (Rafailov et al., Direct Preference Optimization, 2023, arXiv 2305.18290; program.)
    """
    chosen, rejected = _text(record, "chosen"), _text(record, "rejected")
    cut = chosen.rfind(_ASSISTANT) + len(_ASSISTANT)
    if cut < len(_ASSISTANT):
        raise Unusable("no shared prompt")
    shared = rejected.startswith(chosen[:cut])
    notes = () if shared else ("rejected does not share the prompt",)
    return _pair(record, chosen[:cut], (chosen[cut:], rejected[cut:]), notes)


def pairs(record: Record) -> Parsed:
    """Strings `prompt`, `chosen`, `rejected`; nothing is put between prompt and response.

    Numbers `score_chosen` and `score_rejected` beside them, here and in every other format of pairs, are the scores.
    """
    return _pair(record, _text(record, "prompt"), (_text(record, "chosen"), _text(record, "rejected")))


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


def implicit(record: Record) -> Parsed:
    """`chosen` and `rejected` that both begin with the prompt: strings, or lists of messages.

    Strings are split before the last blank of their common beginning, so that no word is cut and the responses keep
    their leading blank; a first word that both responses share counts as prompt. Where they share more than a word, as
    in Chinese, it is noted. Where the format has a mark for the end of the prompt, as HH has, use the parser for it.
    """
    if not isinstance(record.get("chosen"), str):
        return conversational(record)
    chosen, rejected = _text(record, "chosen"), _text(record, "rejected")
    both = common(chosen, rejected)
    if both == len(chosen) == len(rejected):
        raise Unusable("identical responses")
    cut = max(0, *(chosen.rfind(blank, 0, both) for blank in " \n\t"))
    more = not _ONE_WORD.fullmatch(chosen, cut, both) or _NO_BLANKS.search(chosen, cut, both)
    if not cut:
        raise Unusable("no blank that ends a prompt" if more else "no shared prompt")
    return _pair(record, chosen[:cut], (chosen[cut:], rejected[cut:]), (_MORE_THAN_A_WORD,) if more else ())


def conversational(record: Record) -> Parsed:
    """Messages for the tokenizer's chat template.

    `prompt` (or LLaMA-Factory's `conversations`, with its `system`) with `chosen` and `rejected`, each a message or a
    list of them; or `chosen` and `rejected` alone, which then begin with the same messages. `slpojax.data.turns` says
    what messages may look like. A `prompt` that is a string beside them repeats how they begin, and is not read (so it
    is in HuggingFaceH4/ultrafeedback_binarized). `chosen` and `rejected` that repeat the messages of `prompt` are read
    without them.
    """
    chosen, rejected = turns.read(_field(record, "chosen")), turns.read(_field(record, "rejected"))
    prompt = record.get("prompt")
    if not prompt or isinstance(prompt, str):
        prompt = _conversations(record) if record.get("conversations") else ()
    else:
        prompt = turns.read(prompt)
    if prompt and not all(turns.shared(prompt, response) == len(prompt) for response in (chosen, rejected)):
        both = turns.shared(chosen, rejected)
        both = both if any(turn["role"] == "user" for turn in chosen[:both]) else 0
        notes = (_SHARED,) * bool(both)
        return _pair(record, (*prompt, *chosen[:both]), (chosen[both:], rejected[both:]), notes)
    if turns.same(chosen, rejected):
        raise Unusable("identical responses")
    cut = turns.shared(chosen, rejected)
    if not cut:
        raise Unusable("no shared prompt")
    return _pair(record, chosen[:cut], (chosen[cut:], rejected[cut:]), (_REPEATED,) if prompt else ())


def prompt_response(record: Record) -> Parsed:
    """Strings `prompt` and `response` (or `completion`), for SFT: one candidate."""
    return Parsed(_text(record, "prompt"), (_text(record, "response" if "response" in record else "completion"),))


def messages(record: Record) -> Parsed:
    """`messages` (or `conversations` with `system`), the last of which is the response, for SFT: one candidate."""
    dialogue = turns.read(record["messages"]) if record.get("messages") else _conversations(record)
    if len(dialogue) < 2 or dialogue[-1]["role"] != "assistant":
        raise Unusable("the last message is not the assistant's")
    return Parsed(dialogue[:-1], (dialogue[-1:],))


def ranked(record: Record) -> Parsed:
    """`messages` and `responses` [{"text", "rank", "score"}], any number of them.

    Scores are the record's; where one is null all are minus the rank (the number of strictly better responses). Of one
    rank the higher score comes first.
    """
    answers = [(number(answer["rank"], "rank"), answer) for answer in _objects(record, "responses")]
    if any(answer.get("score") is None for _, answer in answers):
        scored = [(rank, -rank, answer) for rank, answer in answers]
    else:
        scored = [(rank, number(answer["score"]), answer) for rank, answer in answers]
    scored.sort(key=lambda each: (each[0], -each[1]))
    scores = tuple(score for _, score, _ in scored)
    if any(worse > better for better, worse in itertools.pairwise(scores)):
        raise Unusable("ranks and scores contradict each other")
    replies = tuple(_reply(answer["text"], "text") for _, _, answer in scored)
    return Parsed(turns.read(_field(record, "messages")), replies, scores)


def nectar(record: Record) -> Parsed:
    """A dialogue `prompt` in HH's form and seven `answers` [{"answer", "rank"}], ranked from 1; rank 2 is left out.

    It is so near the best that which of them is better may be noise; K = 6 is then all there is. (Chen et al.,
    Preference Optimization via Contrastive Divergence, 2025, arXiv 2502.04567, the base setup; berkeley-nest/Nectar.)
    The blank that ends the prompt goes with the answers, as in `hh`. Scores are minus the rank.
    """
    prompt, answers = _text(record, "prompt"), _objects(record, "answers")
    by_rank = [(number(answer["rank"], "rank"), _optional(answer["answer"], "answer")) for answer in answers]
    by_rank.sort(key=lambda answer: answer[0])
    others = [(rank, text) for rank, text in by_rank if rank != 2]
    cut = len(prompt.rstrip(" "))
    return Parsed(
        prompt[:cut],
        tuple(prompt[cut:] + text if text else "" for _, text in others),
        tuple(-rank for rank, _ in others),
        notes=("answer of rank 2 left out",) * (len(by_rank) - len(others)),
    )


def ultrafeedback(record: Record) -> Parsed:
    """`instruction` and `completions` [{"response", "overall_score"}], four as a rule; ties keep the record's order.

    Each completion was written under another system prompt, which is no part of the example. (Cui et al.,
    UltraFeedback, 2023, arXiv 2310.01377; openbmb/UltraFeedback.) HuggingFaceH4/ultrafeedback_binarized, two of them as
    chosen and rejected, is `conversational`.
    """
    answers = [(number(answer["overall_score"]), answer["response"]) for answer in _objects(record, "completions")]
    answers.sort(key=lambda answer: -answer[0])
    prompt = ({"role": "user", "content": _text(record, "instruction")},)
    replies = tuple(_reply(text, "response") for _, text in answers)
    return Parsed(prompt, replies, tuple(score for score, _ in answers))


def helpsteer(record: Record) -> Parsed:
    """Consecutive rows `prompt`, `response`, `helpfulness` of one prompt: its candidates, ranked by helpfulness.

    Of the five attributes that are rated it is the one that says which response is better. The turns of a prompt are
    divided by <extra_id_1>User and <extra_id_1>Assistant. (Wang et al., HelpSteer2, 2024, arXiv 2406.08673.)
    """
    scores = [number(score) for score in _field(record, "helpfulness")]
    answers = sorted(zip(scores, _field(record, "response"), strict=True), key=lambda answer: -answer[0])
    if record["prompt"][0] is None:
        raise Unusable("prompt is null")
    said = _STEER_TURN.split(record["prompt"][0])
    return Parsed(
        tuple({"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(said)),
        tuple(_reply(text, "response") for _, text in answers),
        tuple(score for score, _ in answers),
        notes=("row joined with the one before it, which has the same prompt",) * (len(answers) - 1),
    )


def unpaired(record: Record) -> Parsed:
    """`prompt`, `completion` and a boolean `label`: one candidate that is desirable or not. Strings, or messages."""
    label = _field(record, "label")
    if label not in (0, 1):
        raise TypeError(f"label is of type {type(label).__name__}, and neither true nor false, nor 1 nor 0")
    if isinstance(record.get("prompt"), str):
        return Parsed(_text(record, "prompt"), (_text(record, "completion"),), label=float(label))
    prompt, completion = turns.read(_field(record, "prompt")), turns.read(_field(record, "completion"))
    return Parsed(prompt, (completion,), label=float(label))


FORMATS = (
    "hh",
    "hh_rightmost",
    "pairs",
    "bradley_terry",
    "implicit",
    "conversational",
    "prompt_response",
    "messages",
    "ranked",
    "nectar",
    "ultrafeedback",
    "helpsteer",
    "unpaired",
)
GROUPED = {"helpsteer": "prompt"}


def _pair(
    record: Record,
    prompt: str | Messages,
    responses: tuple[str | Messages, str | Messages],
    notes: tuple[str, ...] = (),
) -> Parsed:
    """Return a pair whose order the record states, with the scores that it may have."""
    scores = [record.get(name) for name in ("score_chosen", "score_rejected")]
    if any(score is None for score in scores):
        return Parsed(prompt, responses, None, notes, stated=True)
    chosen, rejected = map(number, scores)
    notes += (_LOWER,) if chosen < rejected else ()
    return Parsed(prompt, responses, (chosen, rejected), notes, stated=True)


def _field(record: Record, name: str) -> Any:
    if name not in record:
        raise KeyError(name)
    if record[name] is None:
        raise Unusable(f"{name} is null")
    return record[name]


def _text(record: Record, name: str) -> str:
    value = _field(record, name)
    if not isinstance(value, str):
        messages_there = "; data.format=conversational reads messages" * isinstance(value, list | Mapping)
        raise TypeError(f"{name} is {type(value).__name__}, expected a string{messages_there}")
    return value


def _conversations(record: Record) -> Messages:
    """Return the messages of LLaMA-Factory's layout: its field `system` is the system turn, where there is none yet."""
    said = turns.read(_field(record, "conversations"))
    return said if said and said[0]["role"] == "system" else (*turns.system(record.get("system")), *said)


def _objects(record: Record, name: str) -> list[Record]:
    listed = _field(record, name)
    if not isinstance(listed, list) or not all(isinstance(answer, Mapping) for answer in listed):
        found = kind(listed) if not isinstance(listed, list) else "an array of something else"
        raise TypeError(f"{name} is {found}, expected an array of objects")
    return listed


def number(value: Any, what: str = "score") -> float:
    """Return a number that float32 holds; text that looks like one is none, as "10" sorts before "2"."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | decimal.Decimal):
        raise Unusable(f"a {what} that is no number, but {kind(value)}")
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not abs(real) <= _LARGEST:
        raise Unusable(f"a {what} that is no number, or none that float32 holds")
    return real


def kind(value: Any) -> str:
    """Return what JSON calls a value, for errors, which never show the value itself.

    Example:
        >>> [kind(value) for value in (None, True, 1, "a", [], {})]
        ['null', 'true or false', 'a number', 'a string', 'an array', 'an object']
    """
    kinds = ((bool, "true or false"), (int | float, "a number"), (str, "a string"), (list, "an array"))
    known = next((name for of, name in kinds if isinstance(value, of)), f"a {type(value).__name__}")
    return "null" if value is None else "an object" if isinstance(value, Mapping) else known


def _optional(text: Any, name: str) -> str:
    """Return a text, "" for null."""
    if not isinstance(text, str | None):
        raise TypeError(f"{name} is {kind(text)}, expected a string")
    return text or ""


def _reply(text: Any, name: str) -> Messages:
    return ({"role": "assistant", "content": _optional(text, name)},)


def common(a: str, b: str) -> int:
    """Return the length of the common beginning, by bisection: comparing slices is much faster than characters."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
