"""Every chat template that TRL ships: dialogues are divided as TRL divides them, or refused where it refuses them."""

import pathlib

import jinja2
import pytest
from data_tools import make_tokenizer

from slpojax.data import formats, templates, turns

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
