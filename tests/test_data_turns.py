"""Messages of public layouts, made into one form, and what a dialogue must keep to."""

import functools
import json

import data_tools
import pytest
from data_tools import decoded, make_tokenizer

from slpojax.data import report, turns
from slpojax.data.turns import Unusable

CHATML = (
    "{% for m in messages %}{{ '<' + m.role + '>' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ '{' + c.function.name + '}' }}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def turn(role, content):
    return {"role": role, "content": content}


USER, YES, NO, TOOL = turn("user", "Is it?"), turn("assistant", "Yes."), turn("assistant", "No."), turn("tool", "12 C")
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CALLS = {"role": "assistant", "tool_calls": [CALL]}


@pytest.fixture
def load(tmp_path):
    return functools.partial(
        data_tools.load, tmp_path, format="conversational", tokenizer=make_tokenizer(template=CHATML)
    )


def texts(stored):
    return [decoded(example) for example in stored]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([USER, YES], (USER, YES)),
        (USER, (USER,)),
        (json.dumps([USER, YES]), (USER, YES)),
        ({"role": ["user", "assistant"], "content": ["Is it?", "Yes."]}, (USER, YES)),
        ([{"from": "human", "value": "Is it?"}], (USER,)),
        # Arrow joins the fields of two layouts, and of all calls.
        ([{"role": None, "content": None, "from": "human", "value": "Is it?", "tool_calls": None}], (USER,)),
        ([{"role": "user", "content": None, "value": "Is it?"}], (USER,)),
        (
            [
                CALLS
                | {"content": None, "tool_calls": [CALL | {"id": None, "function": CALL["function"] | {"x": None}}]}
            ],
            (CALLS,),
        ),
        ([turn("User", "Is it?"), turn("bot", "Yes.")], (USER, YES)),
        ([turn("developer", "Be brief.")], (turn("developer", "Be brief."),)),
        ([{"from": "observation", "value": "12 C"}], (TOOL,)),
        ([{"from": "function_call", "value": json.dumps(CALL["function"])}], (CALLS | {"content": ""},)),
        ([turn("user", [{"type": "text", "text": "Is"}, {"type": "text", "text": "it?"}])], (turn("user", "Is\nit?"),)),
        ([YES | {"name": "Ada", "reasoning_content": "Hm."}], (YES | {"name": "Ada", "reasoning_content": "Hm."},)),
        ([{"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}], (CALLS | {"content": ""},)),
    ],
)
def test_messages_of_every_layout_become_one(value, expected):
    assert turns.read(value) == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([turn("oracle", "?")], "^a message of the unknown role 'oracle'$"),
        ([turn("What a long tale this is", "?")], "^a message of the unknown role$"),  # a row's text is no name
        ([turn("user", None)], "^a message without text$"),
        ([turn("user", 4)], "^a message whose content is no text$"),
        ([turn("user", [{"type": "image", "image": "x"}])], "^a message whose content is no text$"),
        ([{"content": "?"}], "^a message without a role$"),
        ({"role": ["user"], "content": []}, "^messages as lists of unequal lengths$"),
        ([{"role": "assistant", "tool_calls": "weather"}], "^a function call that cannot be read$"),
        ([{"from": "function_call", "value": "weather"}], "^a function call that cannot be read$"),
    ],
)
def test_every_reason_is_its_own(value, reason):
    with pytest.raises(Unusable, match=reason):
        turns.read(value)


def test_the_hint_hangs_on_what_was_got():
    with pytest.raises(TypeError, match="got str where messages were expected; data.format=pairs reads plain strings"):
        turns.read("Is it?")
    with pytest.raises(TypeError, match="got int where messages were expected$"):
        turns.read(4)


def test_calls_and_tools_reach_the_template_and_tell_responses_apart(load):
    other = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "time", "arguments": {}}}]}
    stored, summary = load([{"prompt": [USER, CALLS, TOOL], "chosen": [CALLS], "rejected": [other]}])
    prompt = "<user>Is it?<eos><assistant>{weather}<eos><tool>12 C<eos><assistant>"
    assert texts(stored) == [[prompt, "{weather}<eos>", "{time}<eos>"]] and not summary.dropped


@pytest.mark.parametrize("tools", ['[{"name": "weather"}]', [{"name": "weather", "strict": None}]])
def test_a_column_of_tools_reaches_the_template(load, tools):
    template = "{{ tools | tojson }}" + CHATML
    stored, summary = load(
        [{"prompt": [USER], "chosen": [YES], "rejected": [NO], "tools": tools}],
        tokenizer=make_tokenizer(template=template),
    )
    assert texts(stored)[0][0].startswith('[{"name": "weather"}]<user>') and not summary.unread


def test_the_system_column_of_llama_factory_is_the_system_turn(load):
    record = {"conversations": [{"from": "human", "value": "Is it?"}], "chosen": YES, "rejected": NO, "tools": ""}
    stored, summary = load([record | {"system": "Be brief."}, record | {"system": ""}])
    assert [prompt for prompt, *_ in texts(stored)] == [
        "<system>Be brief.<eos><user>Is it?<eos><assistant>",
        "<user>Is it?<eos><assistant>",
    ]
    assert not summary.unread and not summary.noted


def test_fields_that_no_parser_read_are_one_line_of_the_report(load):
    records = [{"prompt": [USER], "chosen": [YES], "rejected": [NO], "system": "Hm.", "empty": None}] * 2
    _, summary = load([*records, records[0] | {"history": [["a", "b"]]}])
    assert summary.unread == ("history", "system")
    assert "noted     fields not read: history, system\n" in report.render(summary)
    assert report.as_dict(summary)["data/unread"] == "history, system"


def test_a_parser_of_one_s_own_may_read_all_fields_at_once(load, monkeypatch):
    from slpojax.data import formats

    for read in (
        dict,
        lambda record: {**record},
        lambda record: dict(record.items()),
        lambda record: [*record.values()],
    ):
        monkeypatch.setattr(
            formats, "pairs", lambda record, read=read: (read(record), formats.Parsed("a", ("b", "c")))[1]
        )
        assert load([{"prompt": "a", "chosen": "b", "rejected": "c"}], format="pairs")[1].unread == ()


def test_no_turn_of_a_user_is_trained(load):
    records = [
        {"chosen": [USER, YES, turn("user", "Thanks")], "rejected": [USER, YES, turn("user", "Hm")]},
        {"prompt": [USER], "chosen": [YES, turn("user", "So?"), NO], "rejected": [NO, TOOL]},
        {"prompt": [USER], "chosen": [YES, USER, YES], "rejected": [YES, USER, NO]},
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
    ]
    stored, summary = load(records)
    start, user = "<user>Is it?<eos><assistant>", "<user>Is it?<eos>"
    assert texts(stored) == [
        [start, "Yes.<eos>", "No.<eos>"],
        [f"{start}Yes.<eos>{user}<assistant>", "Yes.<eos>", "No.<eos>"],
        [start, "Yes.<eos>", "No.<eos>"],
    ]
    assert {reason: count.rows for reason, count in summary.dropped.items()} == {
        "a response that begins with a turn of the user": (0,)
    }
    assert {note: count.rows for note, count in summary.noted.items()} == {
        "response cut before the turn of a user, which is not trained": (1,),
        "response cut behind the assistant's last turn": (1,),
        "turns up to one of a user that both responses share, which are prompt": (2,),
        "prompt repeated by the responses, read once": (3,),
    }


def test_messages_in_json_that_are_read_as_text_are_noted(load):
    records = [{"prompt": "Is it?", "chosen": json.dumps([USER, YES]), "rejected": json.dumps([USER, NO])}]
    _, summary = load(records, format="pairs")
    assert "text that is messages in JSON, read as plain text (data.format=conversational reads them)" in summary.noted
    stored, _ = load(records)
    assert texts(stored) == [["<user>Is it?<eos><assistant>", "Yes.<eos>", "No.<eos>"]]


@pytest.mark.parametrize(
    ("common", "more"),
    [("用户: 一加一等于几？助手:", True), ("Is it? Answer:|", True), ("Go on ap", False), ("It is he's", False)],
)
def test_responses_that_share_more_than_a_word_are_noted(load, common, more):
    _, summary = load([{"chosen": f"{common}二 a", "rejected": f"{common}三 b"}], format="implicit")
    assert any("share more than a word" in note for note in summary.noted) == more


def test_records_of_a_prompt_that_stand_apart_are_told_so(load):
    def rows(*letters):
        return [{"prompt": p, "response": f"{i}", "helpfulness": i} for i, p in enumerate(letters)]

    with pytest.raises(
        ValueError, match=r"no usable record of 4: 4 a record apart .*prompt \(rows 0, 1, 2, 3\). Sort the"
    ):
        load(rows("a", "b", "a", "b"), format="helpsteer")
    _, summary = load(rows("a", "a", "b"), format="helpsteer")
    assert {reason: count.rows for reason, count in summary.dropped.items()} == {
        "fewer responses than data.candidates": (2,)
    }
