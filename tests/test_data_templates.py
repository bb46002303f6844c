"""Chat templates: they write what they do in transformers, divided as in TRL, and refuse in their own words."""

import functools
import json
import time

import data_tools
import jinja2
import pytest
from data_tools import decoded, make_tokenizer

from slpojax.data import options, report, sandbox, templates
from slpojax.data.formats import Parsed, Unusable

USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "Is it?"), ("assistant", "Yes."), ("assistant", "No."))
)
RECORD = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]}
# In the way of Qwen, with tools, calls and thoughts; EOS is not what ends a turn.
TOOLS = (
    "{%- if tools %}<im>system{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '</im>\n' }}{% endif %}"
    "{%- for m in messages %}{{ '<im>' + m.role + '\n' }}"
    "{%- if m.reasoning_content is string and loop.index0 >= messages | length - 1 %}"
    "{{ '<think>' ~ m.reasoning_content.strip('\n') ~ '</think>' }}{% endif %}"
    "{%- if m.content %}{{ m['content'] | trim }}{% endif %}"
    "{%- for call in m.tool_calls or [] %}{% set f = call.function %}"
    "{{ '<call>' + f.name + (f.arguments | tojson) + '</call>' }}{% endfor %}{{ '</im>\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<im>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'tool' %}{{ raise_exception('No tool called ' + m['content']) }}"
    "{% else %}{% generation %}{{ ' ' + m['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
# DeepSeek-R1 opens the thoughts that it does not write before an answer.
THINK = (
    "{% for m in messages %}{{ '<im>' + m.role + '\n' + m.content.split('</think>')[-1] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<im>assistant\n<think>\n' }}{% endif %}"
)
THOUGHT = NO | {"reasoning": "Hm."}
DIALOGUES = [
    [USER, YES],
    [USER, YES, USER, NO],
    [USER, CALL, {"role": "tool", "content": " 12 C"}, YES],
    [USER, THOUGHT],
]


@pytest.fixture
def load(tmp_path):
    return functools.partial(data_tools.load, tmp_path, format="conversational")


def written(template, parsed):
    return templates.write(parsed, make_tokenizer(template=template), "")


@pytest.mark.parametrize("template", [TOOLS, INST, THINK, templates.DIALOGUE])
@pytest.mark.parametrize("ask", [True, False])
def test_what_is_written_is_what_transformers_writes(template, ask):
    tokenizer = make_tokenizer(template=template)
    draw = templates._ready(tokenizer, "").draw
    for dialogue in DIALOGUES:
        for tools in ((), (TOOL,)):
            options = {"tools": list(tools) or None, "tokenize": False, "add_generation_prompt": ask}
            try:
                expected = tokenizer.apply_chat_template(dialogue, **options)
            except (jinja2.TemplateError, TypeError):
                with pytest.raises(Unusable, match="the chat template (fails|refuses)"):
                    draw(tuple(dialogue), tools, ask)
            else:
                assert draw(tuple(dialogue), tools, ask) == expected


SWITCH = TOOLS.replace(
    "<im>assistant\n' }}", "<im>assistant\n' }}{% if not think %}<think></think>{% endif %}"
).replace(
    "{%- if m.content %}", "{%- if m.role == 'assistant' and not think %}<think></think>{% endif %}{%- if m.content %}"
)


@pytest.mark.parametrize("think", [False, True])
def test_further_variables_reach_the_template_as_in_transformers(load, think):
    tokenizer = make_tokenizer(template=SWITCH)
    theirs = [
        tokenizer.apply_chat_template([USER, answer], tokenize=False, think=think).removesuffix("\n")
        for answer in (YES, NO)
    ]
    stored, _ = load([RECORD], tokenizer=tokenizer, chat_template_kwargs={"think": think}, end="template")
    prompt, *answers = decoded(stored[0], tokenizer)
    assert [f"{prompt}{answer}".removesuffix("\n") for answer in answers] == theirs
    assert prompt == tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, think=think)
    assert ("<think></think>" in prompt) == (not think)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"thinks": 1},
            "^config.data.chat_template_kwargs.thinks: the tokenizer's .* of this name .near: think.; it reads",
        ),
        (
            {"messages": "x"},
            "^config.data.chat_template_kwargs.messages: the tokenizer's chat template reads no variable",
        ),
        ({"eos_token": "x"}, "^config.data.chat_template_kwargs.eos_token: "),
    ],
    ids=str,
)
def test_a_variable_that_the_template_does_not_read_is_refused(load, arguments, message):
    with pytest.raises(ValueError, match=message):
        load([RECORD], tokenizer=make_tokenizer(template=SWITCH), chat_template_kwargs=arguments)


def test_tools_and_calls_are_written_in_prompt_and_response():
    parsed = Parsed(tuple(DIALOGUES[2][:3]), ((YES,), (CALL,)), tools=(TOOL,))
    rendered = written(TOOLS, parsed)
    assert json.dumps(TOOL) in rendered.prompt and '<call>weather{"city": "Rome"}</call></im>' in rendered.prompt
    assert rendered.responses == ("Yes.</im>\n", '<call>weather{"city": "Rome"}</call></im>\n')
    assert rendered.ended == (True, True) and not rendered.notes


def test_what_a_template_leaves_out_is_noted():
    parsed = Parsed((USER,), ((THOUGHT,), (NO | {"name": "Ada"},)), tools=(TOOL,))
    [note] = written(THINK, parsed).notes[:1]
    assert note == "the chat template leaves out or rewrites name, reasoning, tools"


def test_a_generation_prompt_is_cut_to_what_stands_before_the_answers(load):
    """As TRL does: a plain answer stands behind the header, where thoughts would have been."""
    stored, summary = load([RECORD, RECORD], tokenizer=make_tokenizer(template=THINK))
    assert decoded(stored[0]) == ["<im>user\nIs it?<eos><im>assistant\n", "Yes.<eos>", "No.<eos>"]
    [(note, count)] = summary.noted.items()
    assert note == "generation prompt of the chat template cut to what stands before the answer" and count.times == 2


@pytest.mark.parametrize(("opening", "before"), [("<think>", ""), ("thinking", ""), ("!? ", "!")])
def test_a_generation_prompt_is_cut_outside_of_marks_and_words(opening, before):
    answer = {"<think>": "<tool>x", "thinking": "thanks", "!? ": "! x"}[opening]
    template = "{% for m in messages %}{{ '|' + m.role + '|' + m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}|assistant|" + opening + "{% endif %}"
    rendered = written(template, Parsed((USER,), (({"role": "assistant", "content": answer},),)))
    assert rendered.prompt == f"|user|Is it?|assistant|{before}" and rendered.prompt + rendered.responses[0] == (
        f"|user|Is it?|assistant|{answer}"
    )


def test_turns_of_the_prompt_that_change_with_the_response_are_refused():
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(Unusable, match="writes the prompt differently"):
        written(template, Parsed((USER,), ((YES,), (NO,))))


def test_eos_stands_only_where_the_template_does_not_end_a_turn(load):
    """As TRL does; the report says which it is, and who writes BOS."""
    expected = {
        TOOLS: ("Yes.</im>\n", "'</im>\\n' of the chat template ends a response, no EOS <eos> (0); no BOS"),
        INST: (" Yes.<eos>", "EOS <eos> (0) ends a response; BOS <bos> (1) of the chat template"),
        templates.DIALOGUE: (" Yes.<eos>", "EOS <eos> (0) ends a response; no BOS"),
    }
    for template, (chosen, line) in expected.items():
        stored, summary = load([RECORD], tokenizer=make_tokenizer(template=template, bos=True))
        assert decoded(stored[0])[1] == chosen and summary.special == line


def test_a_system_turn_stands_before_the_dialogue_without_a_header(load):
    system = {"role": "system", "content": "Be brief."}
    stored, summary = load(
        [RECORD | {"prompt": [system, USER]}, RECORD | {"prompt": [USER, system, USER]}], chat_template="dialogue"
    )
    assert decoded(stored[0])[0] == "Be brief.\n\nHuman: Is it?\n\nAssistant:"
    [reason] = summary.dropped
    assert "the dialogue form has a turn of the user and of the assistant alone" in reason


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("system", r"refuses the messages in line 1: System role not supported$"),
        ("tool", r"refuses the messages in line 1: No tool called\.\.\.$"),  # the rest is the row's text
    ],
)
def test_a_template_s_own_words_are_shown_and_no_row_s(role, reason):
    with pytest.raises(Unusable, match=reason):
        written(INST, Parsed(({"role": role, "content": "quixotry"}, USER), ((YES,), (NO,))))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{{ messages[0].role + 1 }}",
            r"fails in line 1 \(TypeError: can only concatenate str \(not \"int\"\) to str\)$",
        ),
        ("\n\n{{ nothing.there }}", r"fails in line 3 \(UndefinedError: 'nothing' is undefined\)$"),
        ("{{ {}[messages[0].content].x }}", r"fails in line 1 \(UndefinedError\)$"),  # its message holds the content
        ("{{ 1 / 0 }}", r"fails in line 1 \(ZeroDivisionError\)$"),
        ("{% include 'x' %}", r"fails in line 1 \(TypeError: no loader for this environment specified\)$"),
        ("{{ cycler.__init__.__globals__ }}", r"fails in line 1 \(SecurityError\)$"),
    ],
)
def test_a_template_that_fails_says_where(template, reason):
    with pytest.raises(Unusable, match=reason):
        written(template, Parsed((USER,), ((YES,), (NO,))))


def test_a_faulty_file_is_reported_once_before_anything_is_read(load, tmp_path):
    (tmp_path / "bad.jinja").write_text("\n{% for m in messages %}{{ m['role'] }")
    with pytest.raises(
        ValueError, match=r"^data.chat_template='.*bad.jinja' is no Jinja template: line 2: unexpected '}'"
    ):
        load([RECORD], chat_template=str(tmp_path / "bad.jinja"))
    (tmp_path / "bad.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match="cannot be read as a text in UTF-8"):
        load([RECORD], chat_template=str(tmp_path / "bad.jinja"))
    with pytest.raises(ValueError, match="^the tokenizer's chat template is no Jinja template: line 1"):
        load([RECORD], tokenizer=make_tokenizer(template="{% for %}"))
    stored, _ = load([data_tools.pair()], tokenizer=make_tokenizer(template="{% for %}"), format="pairs")
    assert len(stored) == 1  # texts need no template


def test_one_of_several_templates_is_named(load):
    tokenizer = make_tokenizer(template={"tool_use": TOOLS, "rag": THINK})
    with pytest.raises(ValueError, match="several chat templates, rag, tool_use, .*set data.chat_template to the name"):
        load([RECORD], tokenizer=tokenizer)
    stored, _ = load([RECORD], tokenizer=tokenizer, chat_template="tool_use")
    assert decoded(stored[0])[0] == "<im>user\nIs it?</im>\n<im>assistant\n"
    both = make_tokenizer(template={"tool_use": TOOLS, "default": INST})
    [plain], [with_tools] = (load([RECORD | of], tokenizer=both)[0] for of in ({}, {"tools": [TOOL]}))
    assert decoded(plain)[0].startswith("<bos>") and json.dumps(TOOL) in decoded(with_tools)[0]


_DOUBLED = "{% set n = namespace(x=X) %}{% for i in range(99) %}{% set n.x = Y %}{% endfor %}{{ n.x | tojson }}"
ENDLESS = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{{ 'a' * 3000000000 }}",
    "{{ 3000000000 * [1] }}",
    "{{ 'a' | center(3000000000) }}",
    "{{ 'a'.ljust(3000000000) }}",
    "{{ '%9999999999d' % 1 }}{{ '%9999999999d' | format(1) }}",
    "{{ '%*d' % (3000000000, 1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ messages | tojson(indent=3000000000) }}",
    "{{ range(99999) | join('x' * 99999) }}",
    "{{ ('a' * 9999999).replace('a', 'b' * 99) }}",
    "{% set x = 'a' * 9999998 %}{% for i in range(99999) %}{% if x == x ~ 'b' %}{% endif %}{% endfor %}",
    "{% set x = 'a' * 9999999 %}{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}",
    _DOUBLED.replace("X", "'a'").replace("Y", "n.x ~ n.x"),
    _DOUBLED.replace("X", "'a'").replace("Y", "n.x + n.x"),
    _DOUBLED.replace("X", "[1]").replace("Y", "[n.x, n.x]"),
]


@pytest.mark.parametrize("template", ENDLESS)
def test_no_template_runs_for_ever_or_fills_the_memory(template, monkeypatch):
    monkeypatch.setattr(sandbox, "STEPS", sandbox.STEPS // 100)  # quick, also where types are checked
    began = time.process_time()
    with pytest.raises(sandbox.TooMuch):
        sandbox.compiled(template)(messages=[USER])
    assert time.process_time() - began < 10


def test_a_template_that_runs_on_stops_the_run_at_its_row(load, monkeypatch):
    monkeypatch.setattr(sandbox, "STEPS", 1000)
    long = RECORD | {"prompt": [USER] * 200}
    template = "{% for m in messages %}{% for n in messages %}{% endfor %}{{ m.content }}{% endfor %}"
    with pytest.raises(
        ValueError, match="^the tokenizer's chat template was stopped at row 1: it takes more than 1,000"
    ):
        load([RECORD, long], tokenizer=make_tokenizer(template=template))


def test_a_file_that_never_ends_is_refused_before_anything_is_read(load, tmp_path):
    (tmp_path / "endless.jinja").write_text("{{ 'a' * 3000000000 }}")
    with pytest.raises(
        ValueError, match="^data.chat_template='.*endless.jinja' was stopped at a dialogue of two turns: an"
    ):
        load([RECORD], chat_template=str(tmp_path / "endless.jinja"))


def test_the_start_of_a_chat_that_is_cut_is_said_to_be_gone(load):
    long = RECORD | {"prompt": [USER | {"content": "word " * 100}]}
    _, summary = load([long], tokenizer=make_tokenizer(template=INST), max_length=64, max_prompt_length=32)
    assert "prompt of a chat cut at its beginning: its system turn and headers of turns go first" in summary.noted


def test_the_report_of_a_dialogue_holds_none_of_its_text(load):
    _, summary = load([RECORD], tokenizer=make_tokenizer(template=THINK))
    assert "Is it" not in report.render(summary) and options.Encoding().chat_template == ""
