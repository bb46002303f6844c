"""Laws that hold for every format of preference data, found by walking them: a new one inherits them."""

import copy
import inspect
import math

import pytest

from slpojax.data import formats
from slpojax.data.formats import Parsed, Unusable

USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "Is it?"), ("assistant", "Yes."), ("assistant", "No."))
)
HEAD = "\n\nHuman: Is it?\n\nAssistant:"
PAIR = {"prompt": "Is it?", "chosen": " Yes.", "rejected": " No."}
DIALOGUES = {"chosen": HEAD + " Yes.", "rejected": HEAD + " No."}
JUDGED = {
    **{"prompt_id": 0, "prompt": "Is it?", "prompt_ids": [1, 2], "outputs": [" No.", " Yes."], "ids": [[3, 0], [4]]},
    **{"logps": [[-1.0, -0.5], [-2.0]], "finished": [True, False], "temperatures": [1.0, 1.0]},
    **{"scores": [0.5, 1.5], "judge": "gold", "skipped": "", "models": "ab"},
}
# A record of each format, all its fields needed; a new format is added here.
RECORDS = {
    "hh": DIALOGUES,
    "hh_rightmost": DIALOGUES,
    "pairs": PAIR,
    "bradley_terry": PAIR | {"score_chosen": 1.0, "score_rejected": -1.0},
    "quantiles": PAIR | {"chosen_rewards": 2.0, "rejected_rewards": 0.5, "ref_rewards": [0.0, 1.0, 3.0]},
    "pool": {"prompt": "Is it?", "responses": [" Yes.", " No."]},
    "implicit": {"chosen": "It is so.", "rejected": "It is not."},
    "conversational": {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    "prompt_response": {"prompt": "Is it?", "response": " Yes."},
    "messages": {"messages": [USER, YES]},
    "dialogues": {"messages": [USER, YES, USER, YES]},
    "ranked": {
        "messages": [USER],
        "responses": [{"text": "No.", "rank": 1, "score": 0}, {"text": "Yes.", "rank": 0, "score": 1}],
    },
    "nectar": {"prompt": HEAD + " ", "answers": [{"answer": "No.", "rank": 3}, {"answer": "Yes.", "rank": 1}]},
    "ultrafeedback": {
        "instruction": "Is it?",
        "completions": [{"response": "No.", "overall_score": 1}, {"response": "Yes.", "overall_score": 2}],
    },
    "helpsteer": {"prompt": ["Is it?"] * 2, "response": ["No.", "Yes."], "helpfulness": [1, 4]},
    "helpsteer3": {"context": [USER], "response1": "No.", "response2": "Yes.", "overall_preference": 2},
    "armorm": {"prompt": "Is it?", "all_generated_responses": ["No.", "Yes."], "all_rm_scores": [0.1, 0.2]},
    "orca": {"question": "Is it?", "chosen": "Yes.", "rejected": "No."},
    "stack_exchange": {"question": "Is it?", "response_j": "Yes.", "response_k": "No."},
    "distilabel": {"instruction": "Is it?", "chosen_response": "Yes.", "rejected_response": "No."},
    "alpaca_pairs": {"instruction": "Is it?", "chosen": "Yes.", "rejected": "No."},
    "shp": {"history": "Is it?", "human_ref_A": "No.", "human_ref_B": "Yes.", "labels": 0},
    "safe_rlhf_better": {"prompt": "Is it?", "response_0": "No.", "response_1": "Yes.", "better_response_id": 1},
    "safe_rlhf_safer": {"prompt": "Is it?", "response_0": "Yes.", "response_1": "No.", "safer_response_id": 0},
    "summarize_from_feedback": {
        "info": {"subreddit": "is", "title": "Is it?", "post": "It is."},
        "summaries": [{"text": " No."}, {"text": " Yes."}],
        "choice": 1,
    },
    "webgpt": {
        **{"question": {"full_text": "Is it?"}, "answer_0": "No.", "answer_1": "Yes."},
        **{"score_0": -0.5, "score_1": 0.5},
    },
    "reward_bench": {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."},
    "kto_tagged": {"messages": [USER, YES], "kto_tag": True},
    "unpaired": {"prompt": "Is it?", "completion": " Yes.", "label": True},
    "samples": JUDGED,
    **dict.fromkeys(
        ("samples_in_order", "samples_versus_last", "samples_quantiles"),
        JUDGED | {"outputs": [" Yes.", " No."], "scores": [1.5, 0.5]},
    ),
}


@pytest.fixture(params=formats.FORMATS)
def name(request):
    assert request.param in RECORDS, "give the laws a record of the new format"
    return request.param


def test_the_better_response_comes_first_and_the_record_is_left_alone(name):
    parser, record = formats.find(name), copy.deepcopy(RECORDS[name])
    parsed = parser(record)
    assert isinstance(parsed, Parsed) and record == RECORDS[name] and parser(record) == parsed
    assert parsed.prompt and len(parsed.responses) >= 1
    best = parsed.responses[0]
    text = best.text if isinstance(best, formats.Tokens) else best if isinstance(best, str) else best[-1]["content"]
    assert "No." not in text
    if parsed.scores is not None:
        assert len(parsed.scores) == len(parsed.responses) and all(map(math.isfinite, parsed.scores))
        assert list(parsed.scores) == sorted(parsed.scores, reverse=True)


def test_a_field_that_is_missing_or_null_is_named_and_no_text_is_told(name):
    parser = formats.find(name)
    for field in RECORDS[name]:
        rest = {key: value for key, value in RECORDS[name].items() if key != field}
        with pytest.raises((KeyError, TypeError, Unusable)) as missing:
            parser(rest)
        with pytest.raises((KeyError, TypeError, Unusable)) as empty:
            parser(rest | {field: None})
        for error in (missing, empty):
            assert not any(text in str(error.value) for text in ("Yes", "No.", "Is it"))


def test_it_is_documented(name):
    text = inspect.getdoc(formats.find(name))
    assert text and (name == "hh_rightmost" or "`" in text), f"the docstring of {name} names the fields"
