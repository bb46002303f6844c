"""Every chat template that TRL ships: dialogues are divided as TRL divides them, or refused where it refuses them."""

import pathlib

import data_tools
import jinja2
import numpy as np
import pytest
from data_tools import make_tokenizer

from slpojax.data import formats, templates, turns
from slpojax.data.examples import which

pytestmark = [pytest.mark.check, pytest.mark.filterwarnings("ignore")]


def turn(role, content, **others):
    return {"role": role, "content": content, **others}


CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}},
    },
}
ASK, COMO, ETNA = turn("user", "Name a lake."), turn("assistant", "Como."), turn("assistant", "Etna.")
CALLS = turn("assistant", "", tool_calls=CALL)
PAIR = {"prompt": [ASK], "chosen": [COMO], "rejected": [ETNA]}
RECORDS = {
    "plain": PAIR,
    "system": PAIR | {"prompt": [turn("system", "Be brief."), ASK]},
    "several turns": PAIR | {"prompt": [turn("user", "Hi"), turn("assistant", "Hello."), ASK]},
    "thoughts in the text": PAIR | {"chosen": [turn("assistant", "<think>\nHm\n</think>\n\nComo.")]},
    "thoughts": {
        **PAIR,
        "chosen": [COMO | {"reasoning_content": "Hm"}],
        "rejected": [ETNA | {"reasoning_content": "Ha"}],
    },
    "tools": PAIR | {"prompt": [ASK, CALLS, turn("tool", "12 C", name="weather")], "tools": [TOOL]},
    "a call": PAIR | {"chosen": [CALLS], "tools": [TOOL]},
    "a call and null": PAIR | {"chosen": [CALLS | {"content": None}], "tools": [TOOL]},
}


def test_dialogues_are_divided_as_trl_does():
    trl = pytest.importorskip("trl")
    tokenizer, equal = make_tokenizer(), 0
    for path in pathlib.Path(trl.__file__).parent.glob("chat_templates/*.jinja"):
        tokenizer.chat_template = path.read_text()
        equal += sum(divided_alike(record, tokenizer, f"{path.name}: {name}") for name, record in RECORDS.items())
    assert equal > 400


def divided_alike(record, tokenizer, name):
    """Whether both write a record, and then the same; otherwise both must refuse it."""
    from trl.data_utils import apply_chat_template

    parsed = formats.conversational(record)._replace(tools=turns.tools(record.get("tools")))
    example = {key: value for key, value in record.items() if key != "tools"}
    try:
        theirs = apply_chat_template(example, tokenizer, tools=record.get("tools"))
    except (jinja2.TemplateError, TypeError):
        with pytest.raises(formats.Unusable, match="the chat template (fails|refuses)"):
            templates.write(parsed, tokenizer, "")
        return False
    ours = templates.write(parsed, tokenizer, "")
    # Blanks that a template writes behind EOS are no part of a response here.
    ends = tokenizer.eos_token
    expected = [text.rstrip() if text.rstrip().endswith(ends) else text for text in map(theirs.get, PAIR)]
    assert [ours.prompt, *ours.responses] == expected, name
    return True


AGAIN, THOUGHT = turn("user", "And Etna?"), ETNA | {"reasoning_content": "Ha"}
SAID = {
    "plain": ([ASK], [COMO]),
    "a call": ([ASK], [CALLS, turn("tool", "12 C", name="weather"), COMO]),
    "a user's turn": ([ASK], [COMO, AGAIN, ETNA]),
    "after turns": ([ASK, COMO, AGAIN], [ETNA]),
    "thoughts": ([ASK], [COMO, AGAIN, THOUGHT]),
    "all of it": ([ASK], [THOUGHT, AGAIN, CALLS, turn("tool", "12 C", name="weather"), COMO, ASK, ETNA]),
}


def test_what_counts_is_what_transformers_masks_in_trl_s_templates(tmp_path):
    """In those for training, which have generation marks; a template that refuses a dialogue refuses it in both."""
    trl = pytest.importorskip("trl")
    equal, files = 0, sorted(pathlib.Path(trl.__file__).parent.glob("chat_templates/*_training.jinja"))
    for path in files:
        tokenizer = make_tokenizer(template=path.read_text())
        for name, (prompt, response) in SAID.items():
            equal += masked_alike(tmp_path, tokenizer, [*prompt], response, f"{path.name}: {name}")
    assert len(files) > 20 and equal > 3 * len(files)


def masked_alike(folder, tokenizer, prompt, response, name):
    tools = [TOOL] if CALLS in response else None
    try:
        theirs = tokenizer.apply_chat_template(
            [*prompt, *response], tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except (jinja2.TemplateError, TypeError):
        return False
    record = {"messages": [*prompt, *response]} | ({"tools": tools} if tools else {})
    options = {"format": "dialogues", "candidates": 1, "end": "template", "max_length": 8000}
    stored, _ = data_tools.load(folder, [record], tokenizer=tokenizer, turns="assistant", **options)
    ids, expected = theirs["input_ids"], np.array(theirs["assistant_masks"], bool)
    [response], begins = stored[0].responses, len(stored[0].prompt)
    assert [*stored[0].prompt, *response][: len(ids)] == ids, name
    np.testing.assert_array_equal(which(stored[0])[0][: len(ids) - begins], expected[begins:], name)
    # Of the last turn it is what they mask behind all that others say.
    [last], _ = data_tools.load(folder, [record], tokenizer=tokenizer, turns="last", **options)
    said = tokenizer(next(t["content"] for t in reversed(record["messages"]) if t["role"] != "assistant"))["input_ids"]
    behind = max((i for i in range(len(ids)) if ids[i : i + len(said)] == said), default=None)
    if behind is None:  # two templates of images, and two that know no tools, leave out what they do not know
        return True
    expected &= np.arange(len(ids)) > behind
    np.testing.assert_array_equal(which(last)[0][: len(ids) - begins], expected[begins:], name)
    return True
