"""Each public format, parsed by hand-written examples."""

import math

import pytest

from slpojax.data import formats
from slpojax.data.formats import Parsed, Unusable
from slpojax.data.sources import Cell


def of_pair(*values, **named):
    """What a record that states its order gives."""
    return Parsed(*values, **named, stated=True)


def turn(role, content):
    return {"role": role, "content": content}


USER, YES, NO = turn("user", "Is it?"), turn("assistant", "Yes."), turn("assistant", "No.")
OLD = {"from": "human", "value": "Is it?"}
SCORES = {"score_chosen": 0.5, "score_rejected": 1}
HEAD = "\n\nHuman: Is it?\n\nAssistant:"
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
LOWER = ("the chosen response has the lower score",)


def ranking(*answers):
    """A record of answers with a rank and a score each."""
    responses = [{"text": f"{rank} {score}", "rank": rank, "score": score} for rank, score in answers]
    return {"messages": [USER], "responses": responses}


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("hh", {"chosen": HEAD + " Yes.", "rejected": HEAD + " No."}, of_pair(HEAD, (" Yes.", " No."))),
        (
            "hh",  # the dialogues part before the last "Assistant:" of the chosen one
            {"chosen": HEAD + " Yes.\n\nHuman: So?\n\nAssistant: It is.", "rejected": HEAD + " No."},
            of_pair(HEAD, (" Yes.", " No."), notes=(formats.CUT,)),
        ),
        (
            "hh_rightmost",
            {"chosen": HEAD + " Yes" + HEAD + " It is.", "rejected": HEAD + "?" * (4 + len(HEAD)) + "rest"},
            of_pair(HEAD + " Yes" + HEAD, (" It is.", "rest"), notes=("rejected does not share the prompt",)),
        ),
        ("pairs", {"prompt": "a", "chosen": "b", "rejected": "c"}, of_pair("a", ("b", "c"))),
        (
            "pairs",
            {"prompt": "a", "chosen": "b", "rejected": "c"} | SCORES,
            of_pair("a", ("b", "c"), (0.5, 1.0), LOWER),
        ),
        (
            "quantiles",
            PAIR | {"chosen_rewards": 2, "rejected_rewards": 0.5, "ref_rewards": [2.0, -1, 0.4, 3.5]},
            of_pair("a", ("b", "c"), (0.75, 0.5)),
        ),
        (
            "quantiles",  # messages, as in the authors' data sets; the record says which is chosen
            {"chosen": [USER, YES], "rejected": [USER, NO], "chosen_rewards": -9.0, "rejected_rewards": 0.0}
            | {"ref_rewards": [0.0]},
            of_pair((USER,), ((YES,), (NO,)), (0.0, 1.0), LOWER),
        ),
        (
            "bradley_terry",
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": math.log(3), "score_rejected": 0},
            of_pair("a", ("b", "c"), (pytest.approx(0.75), pytest.approx(0.25))),
        ),
        (
            "conversational",
            {"prompt": [USER], "chosen": [YES], "rejected": [NO]} | SCORES,
            of_pair((USER,), ((YES,), (NO,)), (0.5, 1.0), LOWER),
        ),
        ("implicit", {"chosen": "go on apple", "rejected": "go on apricot"}, of_pair("go on", (" apple", " apricot"))),
        ("implicit", {"chosen": [USER, YES], "rejected": [USER, NO]}, of_pair((USER,), ((YES,), (NO,)))),
        ("conversational", {"prompt": [USER], "chosen": [YES], "rejected": [NO]}, of_pair((USER,), ((YES,), (NO,)))),
        ("conversational", {"chosen": [USER, YES], "rejected": [USER, NO]}, of_pair((USER,), ((YES,), (NO,)))),
        (
            "conversational",
            {
                "conversations": [OLD],
                "chosen": {"from": "gpt", "value": "Yes."},
                "rejected": {"from": "gpt", "value": "No."},
            },
            of_pair((USER,), ((YES,), (NO,))),
        ),
        ("prompt_response", {"prompt": "a", "response": "b"}, Parsed("a", ("b",))),
        ("prompt_response", {"prompt": "a", "completion": "b"}, Parsed("a", ("b",))),
        ("messages", {"messages": [USER, YES]}, Parsed((USER,), ((YES,),))),
        ("dialogues", {"messages": [USER, NO, USER, YES]}, Parsed((USER,), ((NO, USER, YES),))),
        (
            "ranked",
            {
                "messages": [USER],
                "responses": [{"text": "No.", "rank": 1, "score": None}, {"text": "Yes.", "rank": 0, "score": 3}],
            },
            Parsed((USER,), ((YES,), (NO,)), (0.0, -1.0)),
        ),
        (
            "ranked",
            {
                "messages": [USER],
                "responses": [{"text": "Yes.", "rank": 0, "score": 3}, {"text": "No.", "rank": 1, "score": 1}],
            },
            Parsed((USER,), ((YES,), (NO,)), (3.0, 1.0)),
        ),
        (
            "conversational",  # HuggingFaceH4/ultrafeedback_binarized
            {"prompt": "Is it?", "chosen": [USER, YES], "rejected": [USER, NO], "score_chosen": 8.0},
            of_pair((USER,), ((YES,), (NO,))),
        ),
        (
            "nectar",
            {
                "prompt": HEAD + " ",
                "answers": [
                    {"answer": "No.", "model": "a", "rank": 3.0},
                    {"answer": "Yes.", "model": "b", "rank": 1.0},
                    {"answer": "Sure.", "model": "c", "rank": 2.0},
                    {"answer": "", "model": "d", "rank": 4.0},
                ],
                "turns": 1,
            },
            Parsed(HEAD, (" Yes.", " No.", ""), (-1.0, -3.0, -4.0), notes=("answer of rank 2 left out",)),
        ),
        (
            "ultrafeedback",
            {
                "instruction": "Is it?",
                "completions": [
                    {"response": "No.", "overall_score": 4.0, "fine-grained_score": 4.5},
                    {"response": "Yes.", "overall_score": 8.5, "fine-grained_score": 4.0},
                    {"response": None, "overall_score": 4, "fine-grained_score": 1.0},
                ],
            },
            Parsed((USER,), ((YES,), (NO,), (turn("assistant", ""),)), (8.5, 4.0, 4.0)),
        ),
        (
            "helpsteer",
            {"prompt": ["Is it?"] * 2, "response": ["No.", "Yes."], "helpfulness": [1, 4], "verbosity": [2, 2]},
            Parsed(
                (USER,),
                ((YES,), (NO,)),
                (4.0, 1.0),
                notes=("row joined with the one before it, which has the same prompt",),
            ),
        ),
        (
            "helpsteer",
            {
                "prompt": ["Is it?\n\n<extra_id_1>Assistant\nYes.\n\n<extra_id_1>User\nIs it?"],
                "response": ["No."],
                "helpfulness": [0],
            },
            Parsed((USER, YES, USER), ((NO,),), (0.0,)),
        ),
        ("unpaired", {"prompt": "a", "completion": "b", "label": True}, Parsed("a", ("b",), label=1.0)),
        (
            "unpaired",
            {"prompt": [USER], "completion": [NO], "label": False},
            Parsed((USER,), ((NO,),), label=0.0),
        ),
        (
            "orca",
            {"system": "Be brief.", "question": "Is it?", "chosen": "Yes.", "rejected": "No."},
            of_pair((turn("system", "Be brief."), USER), ((YES,), (NO,))),
        ),
        (
            "orca",
            {"system": "", "input": "Is it?", "chosen": "Yes.", "rejected": "No."},
            of_pair((USER,), ((YES,), (NO,))),
        ),
        (
            "helpsteer3",
            {"context": [USER, NO, USER], "response1": "Yes.", "response2": "No.", "overall_preference": -3},
            Parsed((USER, NO, USER), ((YES,), (NO,)), (3.0, 0.0)),
        ),
        (
            "helpsteer3",
            {"context": [USER], "response1": "No.", "response2": "Yes.", "overall_preference": 0},
            Parsed((USER,), ((NO,), (YES,)), (0.0, 0.0)),
        ),
        (
            "shp",
            {
                **{"history": "Is it?", "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1},
                **{"score_A": 9, "score_B": 2},
            },
            of_pair((USER,), ((YES,), (NO,)), (9.0, 2.0)),
        ),
        (
            "shp",
            {
                **{"history": "Is it?", "human_ref_A": "No.", "human_ref_B": "Yes.", "labels": 0},
                **{"score_A": 2, "score_B": 9},
            },
            of_pair((USER,), ((YES,), (NO,)), (9.0, 2.0)),
        ),
        (
            "webgpt",
            {
                **{"question": {"dataset": "eli5", "full_text": "Is it?"}, "answer_0": "No.", "answer_1": "Yes."},
                **{"score_0": -0.3, "score_1": 0.3},
            },
            Parsed((USER,), ((YES,), (NO,)), (0.3, -0.3)),
        ),
        (
            "safe_rlhf_better",
            {
                **{"prompt": "Is it?", "response_0": "Yes.", "response_1": "No."},
                **{"better_response_id": 0, "safer_response_id": 1},
            },
            of_pair((USER,), ((YES,), (NO,))),
        ),
        (
            "safe_rlhf_safer",
            {
                **{"prompt": "Is it?", "response_0": "Yes.", "response_1": "No."},
                **{"better_response_id": 0, "safer_response_id": 1},
            },
            of_pair((USER,), ((NO,), (YES,))),
        ),
        (
            "stack_exchange",
            {"qid": 1, "question": "Is it?", "response_j": "Yes.", "response_k": "No."},
            of_pair((USER,), ((YES,), (NO,))),
        ),
        (
            "distilabel",
            {
                **{"instruction": "Is it?", "chosen_response": "Yes.", "rejected_response": "No."},
                **{"chosen_avg_rating": 4.5, "rejected_avg_rating": 2.0},
            },
            of_pair((USER,), ((YES,), (NO,)), (4.5, 2.0)),
        ),
        (
            "summarize_from_feedback",
            {
                "info": {"post": "It is.", "title": "Is it?", "subreddit": "is", "article": None},
                "summaries": [{"text": "No.", "policy": "a"}, {"text": " Yes.", "policy": "b"}],
                "choice": 1,
            },
            of_pair("SUBREDDIT: r/is\n\nTITLE: Is it?\n\nPOST: It is.\n\nTL;DR:", (" Yes.", " No.")),
        ),
        (
            "summarize_from_feedback",
            {
                "info": {"post": None, "title": "Is it?", "subreddit": None, "article": "It is."},
                "summaries": [{"text": " Yes."}, {"text": " No."}],
                "choice": 0,
            },
            of_pair("Article:\nIt is.\n\nTL;DR:", (" Yes.", " No.")),
        ),
        (
            "alpaca_pairs",
            {
                **{"system": "Be brief.", "history": [["So?", "So."]], "instruction": "Is", "input": "it?"},
                **{"chosen": "Yes.", "rejected": "No."},
            },
            of_pair(
                (turn("system", "Be brief."), turn("user", "So?"), turn("assistant", "So."), turn("user", "Is\nit?")),
                ((YES,), (NO,)),
            ),
        ),
        (
            "alpaca_pairs",
            {"instruction": "Is it?", "input": "", "chosen": "Yes.", "rejected": "No."},
            of_pair((USER,), ((YES,), (NO,))),
        ),
        (
            "kto_tagged",
            {"instruction": "Is it?", "input": "", "output": "No.", "kto_tag": False},
            Parsed((USER,), ((NO,),), label=0.0),
        ),
        (
            "kto_tagged",
            {"system": "Be brief.", "conversations": [OLD, {"from": "gpt", "value": "Yes."}], "kto_tag": True},
            Parsed((turn("system", "Be brief."), USER), ((YES,),), label=1.0),
        ),
        ("kto_tagged", {"messages": [USER, YES], "label": True}, Parsed((USER,), ((YES,),), label=1.0)),
        (
            "armorm",
            {
                **{"prompt_id": "a", "prompt": "Is it?", "all_generated_responses": ["No.", "Yes.", "So."]},
                **{"all_rm_scores": [0.1, 0.2, 0.1], "chosen": [USER, YES], "rejected": [USER, NO]},
            },
            Parsed((USER,), ((YES,), (NO,), (turn("assistant", "So."),)), (0.2, 0.1, 0.1)),
        ),
        (
            "conversational",  # the same record as a pair
            {
                **{"prompt_id": "a", "prompt": "Is it?", "all_generated_responses": ["No.", "Yes.", "So."]},
                **{"all_rm_scores": [0.1, 0.2, 0.1], "chosen": [USER, YES], "rejected": [USER, NO]},
            },
            of_pair((USER,), ((YES,), (NO,))),
        ),
        (
            "conversational",  # Skywork-Reward-Preference and Tulu 3's mixture
            {"id": "a", "source": "b", "prompt": "Is it?", "chosen": [USER, YES], "rejected": [USER, NO]},
            of_pair((USER,), ((YES,), (NO,))),
        ),
        (
            "reward_bench",
            {"prompt": "Is it?", "chosen": "Yes.", "chosen_model": "a", "rejected": "No.", "subset": "b", "id": 1},
            Parsed((USER,), ((YES,), (NO,)), (1.0, 0.0)),
        ),
        (
            "reward_bench",
            {"prompt": "Is it?", "chosen": ["Yes."], "rejected": ["No."] * 3, "num_correct": 1, "subset": "Math"},
            Parsed((USER,), ((YES,), (NO,), (NO,), (NO,)), (1.0, 0.0, 0.0, 0.0)),
        ),
        (
            "unpaired",  # trl-lib/kto-mix-14k
            {"prompt": [USER], "completion": [YES], "label": True},
            Parsed((USER,), ((YES,),), label=1.0),
        ),
        (
            "pairs",  # of a CSV file, in which numbers are text
            PAIR | {"score_chosen": Cell("10"), "score_rejected": Cell("2e0")},
            of_pair("a", ("b", "c"), (10.0, 2.0)),
        ),
        (
            "unpaired",
            {"prompt": Cell("a"), "completion": Cell("b"), "label": Cell("True")},
            Parsed("a", ("b",), label=1.0),
        ),
    ],
)
def test_formats(name, record, expected):
    assert formats.find(name)(record) == expected


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("hh", {"chosen": "a", "rejected": "b"}, "no shared prompt"),
        ("hh", {"chosen": None, "rejected": "b"}, "chosen is null"),
        ("hh_rightmost", {"chosen": "a", "rejected": "b"}, "no shared prompt"),
        ("implicit", {"chosen": "a b", "rejected": "a b"}, "identical responses"),
        ("implicit", {"chosen": "apple", "rejected": "apricot"}, "no shared prompt"),
        ("conversational", {"chosen": [USER, YES], "rejected": [USER, YES]}, "identical responses"),
        ("conversational", {"chosen": [YES], "rejected": [NO]}, "no shared prompt"),
        ("conversational", {"prompt": [turn("oracle", "?")], "chosen": [YES], "rejected": [NO]}, "unknown role"),
        ("messages", {"messages": [USER]}, "not the assistant's"),
        (
            "ultrafeedback",
            {"instruction": "?", "completions": [{"response": "a", "overall_score": None}]},
            "a score that is no number",
        ),
        ("helpsteer", {"prompt": ["?"], "response": ["a"], "helpfulness": ["N/A"]}, "a score that is no number"),
        ("helpsteer", {"prompt": ["?"], "response": ["a"], "helpfulness": [float("nan")]}, "a score that is no number"),
        (
            "ranked",
            {"messages": [USER], "responses": [{"text": "a", "rank": 0, "score": "best"}]},
            "^a score that is no number, but a string$",
        ),
        ("ranked", ranking((0, 0.1), (1, 0.9)), "^ranks and scores contradict each other$"),
        ("ranked", ranking(("2", 0.9), ("10", 0.1)), "^a rank that is no number, but a string$"),
        ("ranked", ranking((None, 0.9), (1, 0.1)), "^a rank that is no number, but null$"),
        (
            "nectar",
            {"prompt": HEAD, "answers": [{"answer": "a", "rank": True}]},
            "a rank that is no number, but true or",
        ),
        ("pairs", PAIR | {"score_chosen": "10", "score_rejected": 1}, "^a score that is no number, but a string$"),
        (
            "pairs",
            PAIR | {"score_chosen": Cell("ten"), "score_rejected": Cell("1")},
            "^a score that is no number, but a string$",
        ),
        (
            "pairs",
            PAIR | {"score_chosen": Cell("nan"), "score_rejected": Cell("1")},
            "^a score that is no number, or none that float32",
        ),
        ("kto_tagged", {"messages": [USER], "kto_tag": True}, "not the assistant's"),
        (
            "webgpt",
            {"question": None, "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": 0},
            "question is null",
        ),
        ("pairs", PAIR | {"score_chosen": 2, "score_rejected": True}, "^a score that is no number, but true or false$"),
        (
            "pairs",
            PAIR | {"score_chosen": 1e39, "score_rejected": 1},
            "^a score that is no number, or none that float32",
        ),
        (
            "pairs",
            PAIR | {"score_chosen": 10**400, "score_rejected": 1},
            "^a score that is no number, or none that float32",
        ),
        ("helpsteer", {"prompt": [None], "response": ["a"], "helpfulness": [1]}, "prompt is null"),
        ("unpaired", {"prompt": "a", "completion": "b", "label": None}, "label is null"),
    ],
)
def test_unusable(name, record, reason):
    with pytest.raises(Unusable, match=reason):
        formats.find(name)(record)


def test_every_format_is_listed_and_found():
    assert all(callable(formats.find(name)) for name in formats.FORMATS)
    assert formats.find("slpojax.data.formats.pairs") is formats.pairs
    with pytest.raises(ValueError, match="near: .*hh_rightmost"):
        formats.find("hh_rightmsot")


def test_a_module_says_which_formats_are_spread_over_records():
    assert formats.grouped_by("helpsteer") == formats.grouped_by("slpojax.data.published.helpsteer") == "prompt"
    assert formats.grouped_by("hh") is formats.grouped_by("slpojax.data.sources.read") is None


def test_a_label_is_true_or_false():
    with pytest.raises(TypeError, match="^label is a string, and neither true nor false, nor 1 nor 0$"):
        formats.unpaired({"prompt": "a", "completion": "b", "label": "good"})  # may be text, which no message shows


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("shp", {"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 2}, "^labels is a number, and"),
        ("unpaired", {"prompt": "a", "completion": "b", "label": Cell("maybe")}, "^label is a string, and neither"),
        (
            "summarize_from_feedback",
            {"info": {"article": "a"}, "summaries": [{"text": "b"}], "choice": 0},
            "^summaries is an array of 1, expected 2$",
        ),
        (
            "webgpt",
            {"question": "a", "answer_0": "b", "answer_1": "c", "score_0": 1, "score_1": 0},
            "^question is a str",
        ),
        (
            "armorm",
            {"prompt": "a", "all_generated_responses": ["b"], "all_rm_scores": [1, 2]},
            "^all_rm_scores is an array, expected an array of 1 numbers",
        ),
        (
            "reward_bench",
            {"prompt": "a", "chosen": [1], "rejected": ["b"]},
            "^chosen is an array, expected an array of s",
        ),
        ("alpaca_pairs", {"instruction": "a", "history": ["b"], "chosen": "c", "rejected": "d"}, "^history holds some"),
    ],
)
def test_a_field_of_another_kind_is_named_and_not_shown(name, record, message):
    with pytest.raises(TypeError, match=message):
        formats.find(name)(record)
