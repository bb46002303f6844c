"""Which turns of a response count: transformers' masks, turns told by what a template adds, and the way of a mask."""

import functools
import json

import data_tools
import numpy as np
import pytest
import transformers
from data_tools import make_tokenizer, pair

from slpojax import data
from slpojax.data import counting, sandbox, templates, unpaired
from slpojax.data.chain import Group
from slpojax.data.examples import Example
from slpojax.data.formats import Parsed
from slpojax.data.report import render


def turn(role, content, **others):
    return {"role": role, "content": content, **others}


CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASK, YES, NO = turn("user", "Is it wärm? "), turn("assistant", "Yes, 20 °C."), turn("assistant", "No.")
CALLS, COLD = turn("assistant", "Wait – ", tool_calls=CALL), turn("tool", "2 °C é")
LOOKED = [CALLS, COLD, turn("assistant", "No, it ïs not.")]
RECORD = {"prompt": [ASK], "chosen": LOOKED, "rejected": [YES], "tools": [TOOL]}

# In the way of TRL's templates for training; `marked` stands for the tag that they have and others lack.
FORM = (
    "{%- if tools %}<im>system{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ eos_token + '\n' }}{% endif %}"
    "{%- for m in messages %}{{ '<im>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% marked %}{{ m.content }}"
    "{%- for call in m.tool_calls or [] %}{{ '<call>' + (call.function | tojson) }}{% endfor %}{{ eos_token }}"
    "{% endmarked %}{% else %}{{ m.content + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<im>assistant\n' }}{% endif %}"
)
MARKED = FORM.replace("marked", "generation")
PLAIN = FORM.replace("{% marked %}", "").replace("{% endmarked %}", "")
# The same by a macro, whose text transformers gives another place.
BY_MACRO = (
    "{% macro say(m) %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endmacro %}"
    "{% for m in messages %}{{ '<im>' + m.role + '\n' }}{% if m.role == 'assistant' %}{{ say(m) }}{% else %}"
    "{{ m.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<im>assistant\n' }}{% endif %}"
)
# Phi's writes EOS once, where the dialogue ends.
ONE_END = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</>' }}{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt else eos_token }}"
)
# Thoughts of earlier turns are left out once another follows.
FORGETS = (
    "{% for m in messages %}{{ '<im>' + m.role + '\n' }}{% if m.thinking and loop.last %}{{ '<think>' + m.thinking }}"
    "{% endif %}{{ m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<im>assistant\n' }}{% endif %}"
)


@pytest.fixture
def load(tmp_path):
    def run(records, template=MARKED, turns="assistant", **options):
        defaults = {"format": "conversational", "max_length": 400, "turns": turns}
        defaults |= {"tokenizer": make_tokenizer(template=template)}
        return data_tools.load(tmp_path, records, **defaults | options)

    return run


def said(example, tokenizer=None):
    """What counts of every response, decoded."""
    tokenizer, every = tokenizer or make_tokenizer(), example.counted or (...,) * len(example.responses)
    return [tokenizer.decode(ids[which]) for ids, which in zip(example.responses, every, strict=True)]


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ([ASK], [YES]),
        ([turn("system", "Be brief."), ASK], LOOKED),
        ([ASK, NO, ASK], LOOKED),
        ([ASK], [YES, ASK, NO]),
        ([ASK], [CALLS, COLD, CALLS, COLD, YES, turn("user", "Sure?"), *LOOKED]),
    ],
)
def test_ids_and_masks_are_those_of_transformers(load, prompt, response):
    tokenizer = make_tokenizer(template=MARKED)
    theirs = tokenizer.apply_chat_template(
        [*prompt, *response],
        tools=[TOOL],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    record = {"prompt": prompt, "chosen": response, "rejected": [NO, ASK, YES], "tools": [TOOL]}
    stored, _ = load([record], end="template", max_length=800)
    example, asked = stored[0], len(stored[0].prompt)
    assert [*example.prompt, *example.responses[0]] == theirs["input_ids"]
    mask = np.array(theirs["assistant_masks"][asked:], bool)
    np.testing.assert_array_equal(example.counted[0], mask)
    last, _ = load([record], end="template", turns="last", max_length=800)
    begins = np.flatnonzero(np.diff(mask.astype(int), prepend=0) == 1)[-1]  # of the last run of ones
    np.testing.assert_array_equal(last[0].counted[0], mask & (np.arange(len(mask)) >= begins))
    # The same without the marks, but for the line break behind a turn where all that is written is the turn's.
    both = [load([record], template=template, max_length=800)[0][0] for template in (MARKED, PLAIN)]
    for ours, plain in zip(*(one.counted for one in both), strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("template", [MARKED, PLAIN])
def test_what_counts_is_what_the_assistant_wrote(load, template):
    call = f"Wait – <call>{json.dumps(CALL[0]['function'])}<eos>"
    stored, report = load([RECORD], template)
    assert said(stored[0]) == [f"{call}No, it ïs not.<eos>", "Yes, 20 °C.<eos>"]
    assert stored.lengths.response.tolist() == [[len(ids) for ids in stored[0].responses]]
    context = int(stored.lengths.response[0, 0] - stored.lengths.counted[0, 0])
    assert context == len("\n<im>tool\n2 °C é".encode()) + 1 + len("\n<im>assistant\n")
    assert f"of which {context} do not count (data.turns)" in render(report)
    assert data.as_dict(report)["data/tokens/chosen/uncounted"] == context
    assert said(load([RECORD], template, "last")[0][0]) == ["No, it ïs not.<eos>", "Yes, 20 °C.<eos>"]
    every, report = load([RECORD], template, "all")
    assert every.counted is None and "do not count" not in render(report)
    np.testing.assert_array_equal(every.token, stored.token)
    assert every.digest() != stored.digest() != load([RECORD], template, "last")[0].digest()


def test_where_every_token_counts_nothing_changes(load):
    records = [{"prompt": [ASK], "chosen": [YES], "rejected": [NO]}]
    made = [load(records, PLAIN, turns)[0] for turns in counting.TURNS]
    assert all(one.counted is None and one[0].counted is None and one.lengths.part is None for one in made)
    assert len({one.digest() for one in made}) == 1
    texts = [load([pair()], turns=turns, format="pairs")[0].digest() for turns in counting.TURNS]
    assert len({*texts}) == 1


def test_a_turn_of_a_user_is_read_and_never_counts(load):
    record = {"prompt": [ASK], "chosen": [YES, turn("user", "Sure?"), NO], "rejected": [NO]}
    (every, of_all), (own, of_own) = load([record], PLAIN, "all"), load([record], PLAIN)
    assert "before the turn of a user" in " ".join(of_all.noted) and "before the turn" not in " ".join(of_own.noted)
    assert said(every[0])[0] == "Yes, 20 °C.<eos>" and said(own[0])[0] == "Yes, 20 °C.<eos>No.<eos>"
    assert make_tokenizer().decode(own[0].responses[0]).startswith("Yes, 20 °C.<eos>\n<im>user\nSure?<eos>\n")
    assert said(load([record], templates.DIALOGUE)[0][0])[0] == " Yes, 20 °C. No.<eos>"
    assert said(load([record], ONE_END)[0][0])[0] == "Yes, 20 °C.</>No.</><eos>"


def test_marks_are_right_within_a_macro_and_texts_stay_as_they_are():
    tokenizer = make_tokenizer(template=BY_MACRO)
    parsed = Parsed((ASK,), ((YES, ASK, NO),))
    plain, ours = (templates.write(parsed, tokenizer, "", counted=which) for which in ("all", "assistant"))
    assert ours[:3] == plain[:3] and plain.spans == ()
    [text], [spans] = ours.responses, ours.spans
    assert [text[a:b] for a, b in spans] == ["Yes, 20 °C.<eos>", "No.<eos>"]
    assert sandbox.generates(BY_MACRO) and not sandbox.generates(PLAIN)
    assert sandbox.spans(f"a{sandbox.BEGINS}") is None is sandbox.spans(sandbox.ENDS)


def test_what_cannot_be_told_is_dropped_and_counted(load):
    thought = turn("assistant", "Yes.", thinking="Hm.")
    good = {"prompt": [ASK], "chosen": [NO], "rejected": [YES]}
    records = [good, {"prompt": [ASK], "chosen": [thought, COLD, NO], "rejected": [YES]}]
    stored, report = load(records, FORGETS)
    assert stored.row.tolist() == [0] and report.dropped[counting.REWRITTEN].rows == (1,)
    assert len(load(records, FORGETS, "last")[0]) == 2, "the last turn stands behind what does not change any more"
    with pytest.raises(ValueError, match=r"no token of a response counts by data.turns .* or set data.turns=all"):
        load([good], PLAIN + "{% generation %}{% endgeneration %}")
    upper = MARKED.replace("{% generation %}", "{% set x %}{% generation %}").replace(
        "{% endgeneration %}", "{% endgeneration %}{% endset %}{{ x | list | join('-') }}"
    )
    with pytest.raises(ValueError, match="changes what stands within its generation marks"):
        load([good], upper)
    open_end = MARKED.replace("{{ eos_token }}{% endgeneration %}", "{% endgeneration %}{{ eos_token }}")
    stored, report = load([good], open_end)
    assert said(stored[0]) == ["No.", "Yes, 20 °C."] and report.noted[counting.OPEN_END].times == 2
    with pytest.raises(ValueError, match="a private character that stands for special tokens"):
        load([good | {"chosen": [turn("assistant", f"N{sandbox.ENDS}o")]}])
    assert len(load([good | {"chosen": [turn("assistant", f"N{sandbox.ENDS}o")]}], turns="all")[0]) == 1
    with pytest.raises(ValueError, match="unknown data.turns 'first'"):
        load([good], turns="first")


def test_special_tokens_that_a_message_says_move_no_span(load):
    tricky = [turn("assistant", "é<eos>a <eos><bos>b"), turn("tool", "<bos>°<eos> c"), turn("assistant", "<eos>d")]
    for template in (MARKED, PLAIN):
        stored, _ = load([{"prompt": [ASK], "chosen": tricky, "rejected": [NO]}], template)
        assert said(stored[0])[0] == "é<eos>a <eos><bos>b<eos><eos>d<eos>"
        counted = stored[0].responses[0][stored[0].counted[0]]
        assert (counted == 0).sum() == 2, "the template's own"


@pytest.mark.parametrize("name", ["mistral-v1", "neox-20b"])
@pytest.mark.parametrize("template", [MARKED, PLAIN])
def test_real_tokenizers_count_the_same_characters(load, shared_data, name, template):
    """SentencePiece, which puts a blank before a text, and tokens of several bytes with the blank before a word."""
    file = shared_data / "tokenizers" / name / "tokenizer.json"
    ends = {"mistral-v1": "</s>", "neox-20b": "<|endoftext|>"}[name]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(file), eos_token=ends, chat_template=template, clean_up_tokenization_spaces=False
    )
    stored, _ = load([RECORD], tokenizer=tokenizer)
    call = f"Wait – <call>{json.dumps(CALL[0]['function'])}{ends}"
    first, other = (text.replace("> ", ">") for text in said(stored[0], tokenizer))
    assert first == f"{call}No, it ïs not.{ends}" and other == f"Yes, 20 °C.{ends}"
    [(first, other)] = [said(load([RECORD], tokenizer=tokenizer, turns="last")[0][0], tokenizer)]
    assert first == f"No, it ïs not.{ends}" and other == f"Yes, 20 °C.{ends}"


# ---- the way of a mask -----------------------------------------------------------------------------------------------


def test_a_cut_takes_what_counts_with_it(load):
    whole = load([RECORD])[0][0]
    room = len(whole.prompt) + 90
    stored, _ = load([RECORD], max_length=room, max_prompt_length=len(whole.prompt), too_long="cut_response")
    for k, (ids, which) in enumerate(zip(stored[0].responses, stored[0].counted, strict=True)):
        np.testing.assert_array_equal(ids, whole.responses[k][:90])
        np.testing.assert_array_equal(which, whole.counted[k][:90])
    with pytest.raises(ValueError, match=r"that counts by data.turns is left .* Raise data.max_length"):
        load([RECORD], turns="last", max_length=room, max_prompt_length=len(whole.prompt), too_long="cut_response")


def some(*counted, row=0):
    """An example whose responses have these tokens, some of which count."""
    which = tuple(np.array(one, bool) for one in counted)
    responses = tuple(np.arange(1, 1 + len(one), dtype=np.int32) + 10 * k for k, one in enumerate(which))
    return Example(np.int32([7, 8]), responses, (0.0,) * len(which), row, counted=which)


def test_a_mixture_holds_sources_of_which_some_count_in_part(load):
    part, whole = data.build([some([0, 1, 1], [1])], candidates=2), data.build([some([1, 1], [1])], candidates=2)
    assert whole.counted is None and part.counted.tolist() == [True, True, False, True, True, True]
    report = load([RECORD])[1]
    mixed, _ = data.mix({"a": (part, report), "b": (whole, report)}, {"a": 1, "b": 2}, seed=0, line="")
    assert [[one.tolist() for one in mixed[i].counted] for i in range(3)] == [
        [[False, True, True], [True]],
        [[True, True], [True]],
        [[True, True], [True]],
    ]
    assert mixed.lengths.counted.tolist() == [[2, 1], [2, 1], [2, 1]]
    assert mixed.take([1, 2]).digest() == data.build([whole[0], whole[0]], candidates=2).digest()
    for wrong in (some([0, 0], [1]), some([1, 0], [0]), some([1], [1])._replace(counted=(np.ones(2, bool),) * 2)):
        with pytest.raises(ValueError, match="row 0: `counted` needs a value for every token of every response"):
            data.build([wrong], candidates=2)


def test_what_makes_examples_of_candidates_keeps_what_counts():
    example = some([0, 1, 1], [1, 0, 1, 0], [1])
    [picked] = data.pick([example], np.array([[0, 2]]))
    assert [one.tolist() for one in picked.counted] == [[False, True, True], [True]]
    singles = unpaired.take_apart(example)
    assert [one.counted[0].sum() for one in singles] == [2, 2, 1]
    group = functools.partial(Group, 0, ordered=True, scored=False, labelled=False)
    plain = example._replace(counted=None)
    groups = [group(examples=(one,)) for one in (plain, example, plain)]
    made = [one.examples[0] for one in unpaired.add_mismatched(groups, max_length=4)]
    assert [one.responses[-1].tolist() for one in made] == [[1, 2], [1, 2], [1, 2]]
    assert [one.counted and one.counted[-1].tolist() for one in made] == [[False, True], [True, True], None]
    [gone, *_] = unpaired.add_mismatched(groups, max_length=3)
    assert not len(gone.examples[0].responses[-1]) and gone.notes == (
        unpaired._MISMATCHED_CUT,
        unpaired._MISMATCHED_GONE,
    )


@pytest.mark.parametrize("asked", [{"degrade": 2}, {"swapped": True}])
def test_copies_of_whole_responses_are_refused(load, asked):
    with pytest.raises(ValueError, match=rf"^data.turns='last' .* data.{[*asked][0]} .*; set data.turns=all"):
        load([RECORD], turns="last", **asked)


def test_a_dialogue_rendered_beforehand_counts_whole_and_is_noted(load):
    records = [pair("<bos>user\nGo<eos>\n<bos>assistant\n", "A<eos>\n<bos>user\nB<eos>C<eos>", "D<eos>")]
    stored, report = load(records, format="pairs")
    assert stored.counted is None and any("rendered beforehand, whose turns" in note for note in report.noted)
    _, report = load(records, format="pairs", turns="all")
    assert not any("whose turns" in note for note in report.noted)
