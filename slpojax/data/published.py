"""Formats of published preference data: the fields of its records, and how they make a prompt with its responses.

Knows the layouts of single data sets; those that many share are in `slpojax.data.formats`, which lists all. Questions
become a user's turn and answers the assistant's, for the tokenizer's chat template, unless a format says otherwise. A
record's `system`, where it has one, stands before the question. Layouts are written from memory, with other programs
that read them as a second source; `nectar`, `ultrafeedback` and `helpsteer` come from the data sets themselves.
"""

import re
from collections.abc import Sequence
from typing import Any

from slpojax.data import fields, turns
from slpojax.data.fields import Record
from slpojax.data.parsed import Parsed
from slpojax.data.turns import Messages, Unusable

_STEER_TURN = re.compile(r"\n*<extra_id_1>(?:User|Assistant)\n")  # between the turns of a HelpSteer prompt
_POST = "SUBREDDIT: r/{}\n\nTITLE: {}\n\nPOST: {}\n\nTL;DR:"
_ARTICLE = "Article:\n{}\n\nTL;DR:"

GROUPED = {"helpsteer": "prompt"}


# ---- pairs -----------------------------------------------------------------------------------------------------------


def orca(record: Record) -> Parsed:
    """`system`, `question`, and the answers `chosen` and `rejected`, strings.

    (Intel/orca_dpo_pairs; argilla/distilabel-intel-orca-dpo-pairs calls the question `input`.)
    """
    name = "input" if "input" in record and "question" not in record else "question"
    return _stated(record, _asked(record, name), ("chosen", "rejected"))


def stack_exchange(record: Record) -> Parsed:
    """`question`, and the answers `response_j`, which more people voted for, and `response_k`.

    (lvwerra/stack-exchange-paired.)
    """
    return _stated(record, _asked(record, "question"), ("response_j", "response_k"))


def distilabel(record: Record) -> Parsed:
    """`instruction`, `chosen_response` and `rejected_response`, `chosen_avg_rating` and its twin may be scores.

    (argilla/ultrafeedback-binarized-preferences. Those of Argilla's data sets whose `chosen` and `rejected` are
    messages are `conversational`.)
    """
    return _stated(
        record,
        _asked(record, "instruction"),
        ("chosen_response", "rejected_response"),
        ("chosen_avg_rating", "rejected_avg_rating"),
    )


def alpaca_pairs(record: Record) -> Parsed:
    """LLaMA-Factory's pairs in the layout of Alpaca: `instruction`, perhaps `input`, and `chosen` and `rejected`.

    Strings; `system` and `history`, pairs of a question and its answer, stand before. Its pairs with `conversations`
    are `conversational`.
    """
    return _stated(record, _alpaca(record), ("chosen", "rejected"))


def shp(record: Record) -> Parsed:
    """A post `history` and the comments `human_ref_A` and `human_ref_B`; `labels` is 1 where A is the better one.

    Their votes `score_A` and `score_B`, where they are there, are the scores. (Ethayarajh et al., Understanding Dataset
    Difficulty with V-Usable Information, 2022, arXiv 2110.08420; stanfordnlp/SHP.)
    """
    better = "BA"[fields.flag(record, "labels")]
    worse = "AB"[better == "A"]
    names, votes = (f"human_ref_{better}", f"human_ref_{worse}"), (f"score_{better}", f"score_{worse}")
    return _stated(record, _asked(record, "history"), names, votes)


def safe_rlhf_better(record: Record) -> Parsed:
    """`prompt`, `response_0` and `response_1`; `better_response_id`, 0 or 1, is the more helpful one.

    (Ji et al., PKU-SafeRLHF, 2024, arXiv 2406.15513; PKU-Alignment/PKU-SafeRLHF.)
    """
    return _of_two(record, _asked(record, "prompt"), "better_response_id")


def safe_rlhf_safer(record: Record) -> Parsed:
    """The same as `safe_rlhf_better`, where `safer_response_id` says which of the two responses is preferred."""
    return _of_two(record, _asked(record, "prompt"), "safer_response_id")


def summarize_from_feedback(record: Record) -> Parsed:
    """An `info` with a Reddit post or a news article, two `summaries` [{"text"}], and `choice`, 0 or 1, of the better.

    Plain text that ends with "TL;DR:", behind which the summaries begin with a blank: of a post
    its subreddit, title and text, of an article its text alone. (Stiennon et al., Learning to Summarize from Human
    Feedback, 2020, arXiv 2009.01325; openai/summarize_from_feedback, its comparisons.)
    """
    info, listed = fields.inner(record, "info"), fields.objects(record, "summaries")
    if len(listed) != 2:
        raise TypeError(f"summaries is an array of {len(listed)}, expected 2")
    if info.get("post") is not None:
        prompt = _POST.format(*(fields.text(info, name) for name in ("subreddit", "title", "post")))
    else:
        prompt = _ARTICLE.format(fields.text(info, "article"))
    choice = fields.flag(record, "choice")
    found = [fields.optional(one["text"], "text") for one in (listed[choice], listed[1 - choice])]
    better, worse = (one if not one or one[0].isspace() else f" {one}" for one in found)
    return Parsed(prompt, (better, worse), stated=True)


# ---- answers with scores ---------------------------------------------------------------------------------------------


def webgpt(record: Record) -> Parsed:
    """A `question` {"full_text"}, `answer_0` and `answer_1`, and their scores `score_0` and `score_1`, from -1 to 1.

    A record whose scores are equal is dropped as a tie. Citations as [1] stay in the answers. (Nakano et al., WebGPT,
    2021, arXiv 2112.09332; openai/webgpt_comparisons.)
    """
    scores = [fields.number(fields.field(record, name)) for name in ("score_0", "score_1")]
    answers = [fields.field(record, name) for name in ("answer_0", "answer_1")]
    return _ranked(_asked(fields.inner(record, "question"), "full_text"), answers, scores, "answer")


def helpsteer3(record: Record) -> Parsed:
    """Messages `context`, `response1` and `response2`, and `overall_preference` from -3 (the first) to 3 (the second).

    The better response has the strength of the preference as its score, the other one 0; a preference of 0 is a tie,
    which is dropped. (Wang et al., HelpSteer3-Preference, 2025, arXiv 2505.11475; nvidia/HelpSteer3.)
    """
    prefers = fields.number(fields.field(record, "overall_preference"))
    answers = [fields.field(record, name) for name in ("response1", "response2")]
    scores = [max(-prefers, 0.0), max(prefers, 0.0)]
    return _ranked(turns.read(fields.field(record, "context")), answers, scores, "response")


def armorm(record: Record) -> Parsed:
    """`prompt`, strings `all_generated_responses`, and as many `all_rm_scores`: UltraFeedback that ArmoRM has judged.

    (Meng et al., SimPO, 2024, arXiv 2405.14734; princeton-nlp/llama3-ultrafeedback-armorm and its like. Their best and
    their worst response, as messages `chosen` and `rejected`, are `conversational`.)
    """
    answers = fields.texts(record, "all_generated_responses")
    scores = fields.scores(record, "all_rm_scores", len(answers))
    return _ranked(_asked(record, "prompt"), answers, scores, "response")


def reward_bench(record: Record) -> Parsed:
    """`prompt`, and `chosen` and `rejected`: a string each (RewardBench), or arrays of them (RewardBench 2).

    Chosen responses have the score 1, rejected ones 0. (Lambert et al., RewardBench, 2024, arXiv 2403.13787; Malik et
    al., RewardBench 2, 2025, arXiv 2506.01937; allenai/reward-bench and reward-bench-2.)
    """
    sides = {
        name: [record[name]] if isinstance(record.get(name), str) else fields.texts(record, name)
        for name in ("chosen", "rejected")
    }
    scores = [1.0] * len(sides["chosen"]) + [0.0] * len(sides["rejected"])
    return _ranked(_asked(record, "prompt"), [*sides["chosen"], *sides["rejected"]], scores, "response")


def ultrafeedback(record: Record) -> Parsed:
    """`instruction` and `completions` [{"response", "overall_score"}], four as a rule; ties keep the record's order.

    Each completion was written under another system prompt, which is no part of the example. (Cui et al.,
    UltraFeedback, 2023, arXiv 2310.01377; openbmb/UltraFeedback.) HuggingFaceH4/ultrafeedback_binarized, two of them as
    chosen and rejected, is `conversational`.
    """
    answers = fields.objects(record, "completions")
    scores = [fields.number(answer["overall_score"]) for answer in answers]
    prompt = ({"role": "user", "content": fields.text(record, "instruction")},)
    return _ranked(prompt, [answer["response"] for answer in answers], scores, "response")


def helpsteer(record: Record) -> Parsed:
    """Consecutive rows `prompt`, `response`, `helpfulness` of one prompt: its candidates, ranked by helpfulness.

    Of the five attributes that are rated it is the one that says which response is better. The turns of a prompt are
    divided by <extra_id_1>User and <extra_id_1>Assistant. (Wang et al., HelpSteer2, 2024, arXiv 2406.08673.)
    """
    scores = [fields.number(score) for score in fields.field(record, "helpfulness")]
    answers = fields.field(record, "response")
    if record["prompt"][0] is None:
        raise Unusable("prompt is null")
    said = _STEER_TURN.split(record["prompt"][0])
    prompt = tuple({"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(said))
    notes = ("row joined with the one before it, which has the same prompt",) * (len(answers) - 1)
    return _ranked(prompt, answers, scores, "response")._replace(notes=notes)


def nectar(record: Record) -> Parsed:
    """A dialogue `prompt` in HH's form and seven `answers` [{"answer", "rank"}], ranked from 1; rank 2 is left out.

    It is so near the best that which of them is better may be noise; K = 6 is then all there is. (Chen et al.,
    Preference Optimization via Contrastive Divergence, 2025, arXiv 2502.04567, the base setup; berkeley-nest/Nectar.)
    The blank that ends the prompt goes with the answers, as in `hh`. Scores are minus the rank.
    """
    prompt, answers = fields.text(record, "prompt"), fields.objects(record, "answers")
    by_rank = [
        (fields.number(answer["rank"], "rank"), fields.optional(answer["answer"], "answer")) for answer in answers
    ]
    by_rank.sort(key=lambda answer: answer[0])
    others = [(rank, text) for rank, text in by_rank if rank != 2]
    cut = len(prompt.rstrip(" "))
    return Parsed(
        prompt[:cut],
        tuple(prompt[cut:] + text if text else "" for _, text in others),
        tuple(-rank for rank, _ in others),
        notes=("answer of rank 2 left out",) * (len(by_rank) - len(others)),
    )


# ---- labelled answers ------------------------------------------------------------------------------------------------


def kto_tagged(record: Record) -> Parsed:
    """LLaMA-Factory's data for KTO: a dialogue that ends with a response, and whether it is desirable in `kto_tag`.

    The dialogue is `messages`, `conversations`, or Alpaca's `instruction`, perhaps `input`, and `output`, see
    `alpaca_pairs`; the tag may also be called `label`. (trl-lib/kto-mix-14k, with `prompt`, `completion` and `label`,
    is `unpaired`.)
    """
    tag = "label" if "label" in record and "kto_tag" not in record else "kto_tag"
    label = float(fields.flag(record, tag))
    if record.get("messages") or record.get("conversations"):
        prompt, response = fields.dialogue(record)
        return Parsed(prompt, (response,), label=label)
    return Parsed(_alpaca(record), (fields.reply(fields.text(record, "output"), "output"),), label=label)


# ---- what they share -------------------------------------------------------------------------------------------------


def _asked(record: Record, name: str) -> Messages:
    """Return the string of a field as a user's turn, behind the system turn that the record may have."""
    return (*turns.system(record.get("system")), {"role": "user", "content": fields.text(record, name)})


def _alpaca(record: Record) -> Messages:
    """Return the turns of `history` and of `instruction` with `input` on lines of its own."""
    said = list(turns.system(record.get("system")))
    for turn in record.get("history") or ():
        if not isinstance(turn, Sequence) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise TypeError("history holds something else than pairs of a question and its answer")
        said += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    parts = (fields.text(record, "instruction"), fields.optional(record.get("input"), "input"))
    return (*said, {"role": "user", "content": "\n".join(part for part in parts if part)})


def _stated(
    record: Record,
    prompt: Messages,
    names: tuple[str, str],
    scores: tuple[str, str] = ("score_chosen", "score_rejected"),
) -> Parsed:
    """Return the pair whose better response is in the first of two fields."""
    better, worse = (fields.reply(fields.text(record, name), name) for name in names)
    return fields.pair(record, prompt, (better, worse), scores=scores)


def _of_two(record: Record, prompt: Messages, name: str) -> Parsed:
    """Return the pair of `response_0` and `response_1` of which a field gives the number of the better one."""
    better = fields.flag(record, name)
    return _stated(record, prompt, (f"response_{better}", f"response_{1 - better}"))


def _ranked(prompt: Messages, answers: Sequence[Any], scores: Sequence[float], name: str) -> Parsed:
    """Return the answers, those of the highest scores first; ties keep the record's order.

    Args:
        prompt: what they answer.
        answers: strings, or null.
        scores: of each.
        name: what an error calls an answer.
    """
    ranked = sorted(zip(scores, answers, strict=True), key=lambda each: -each[0])
    return Parsed(prompt, tuple(fields.reply(answer, name) for _, answer in ranked), tuple(s for s, _ in ranked))
