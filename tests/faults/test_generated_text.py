"""Generated records, dialogues and chat templates: read right, dropped and counted, or refused in one line."""

import copy
import json
import time

import pytest
from data_tools import decoded, load_path, make_tokenizer
from fault_tools import SECRET, attempt
from hypothesis import given, settings
from hypothesis import strategies as st

from slpojax import data
from slpojax.data import formats, sandbox
from slpojax.data import turns as turns_module

pytestmark = pytest.mark.check

CHATML = (
    "{% for m in messages %}{{ '<' + m.role + '>' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{{ eos_token }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOKENIZER = make_tokenizer(template=CHATML)
# The same with generation marks around what it writes of the assistant behind the header.
_SAID = CHATML[CHATML.index("(m.content") : CHATML.index("{{ '\n' }}")]
MARKED = make_tokenizer(
    template="{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' %}{% generation %}{{ "
    f"{_SAID}{{% endgeneration %}}{{% else %}}{{{{ {_SAID}{{% endif %}}"
    f"{CHATML[CHATML.index(_SAID) + len(_SAID) :]}"
)
USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", SECRET), ("assistant", "yes"), ("assistant", "no"))
)
TEXTS = {"prompt": f"{SECRET}? ", "chosen": f"{SECRET} yes", "rejected": f"{SECRET} no"}
DIALOGUES = {"chosen": "\n\nHuman: a\n\nAssistant: yes", "rejected": "\n\nHuman: a\n\nAssistant: no"}
ANSWERS = [{"text": "no", "rank": 1, "score": 0.5}, {"text": "yes", "rank": 0, "score": 1.0}]
GOOD = {
    "hh": DIALOGUES,
    "hh_rightmost": DIALOGUES,
    "pairs": TEXTS,
    "bradley_terry": TEXTS | {"score_chosen": 1.0, "score_rejected": 0.0},
    "implicit": {"chosen": "It is so.", "rejected": "It is not."},
    "conversational": {"prompt": [USER], "chosen": [YES], "rejected": [NO], "tools": [{"name": "f"}]},
    "prompt_response": {"prompt": SECRET, "response": "yes"},
    "messages": {"messages": [USER, YES], "system": SECRET},
    "ranked": {"messages": [USER], "responses": ANSWERS},
    "nectar": {"prompt": "a ", "answers": [{"answer": "no", "rank": 3}, {"answer": "yes", "rank": 1}]},
    "ultrafeedback": {
        "instruction": SECRET,
        "completions": [{"response": "no", "overall_score": 1}, {"response": "yes", "overall_score": 2}],
    },
    "unpaired": {"prompt": SECRET, "completion": "yes", "label": True},
}
SINGLE = ("prompt_response", "messages", "unpaired")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


def load(folder, records, **options):
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_path(folder / "data.jsonl", **{"tokenizer": TOKENIZER, "format": "conversational"} | options)


# ---- records ---------------------------------------------------------------------------------------------------------

# A text is more than a word: one word where a role is expected is the name of a role, and shown.
words = st.sampled_from([f"{SECRET} is it", "", " \n", "</think>", "<eos>", "一加一", "[{", "a" * 99, "human", "yes"])
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)


def places(value, path=()):
    """Every place inside a record, the record itself left out."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in steps:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def changed(draw, record, most):
    """A copy of a record in which a few places hold something else, or nothing."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(0, most))):
        *way, last = draw(st.sampled_from([*places(record), ("more",)]))
        inner = record
        for key in way:
            inner = inner[key]
        if draw(st.booleans()) and way and isinstance(inner, dict):
            del inner[last]
        else:
            inner[last] = draw(words | junk)
    return record


@given(st.sampled_from([*GOOD]).flatmap(lambda name: st.tuples(st.just(name), changed(GOOD[name], 2))))
@settings(max_examples=450)
def test_records_of_any_form_are_read_dropped_or_refused(outcomes, folder, case):
    name, record = case
    kind, result = attempt(
        lambda: load(folder, [GOOD[name], record], format=name, candidates=1 if name in SINGLE else 2)
    )
    if kind == "accepted":
        stored, summary = result
        lost = sum(count.times for count in summary.dropped.values())
        assert stored.row[0] == 0 and len(stored) + lost == 2 and SECRET not in data.render(summary)
        unread = {field for field, value in record.items() if field == "more" and value not in (None, "", [], {})}
        assert unread <= {*summary.unread}
        kind = "dropped" if lost else kind
    outcomes[kind] += 1


# ---- dialogues -------------------------------------------------------------------------------------------------------

roles = st.sampled_from(["user", "assistant", "assistant", "gpt", "human", "tool", "system", "Oracle", "model"])
calls = st.just([{"type": "function", "function": {"name": "f", "arguments": {"a": None}}}])
turns = st.one_of(
    st.fixed_dictionaries({"role": roles, "content": words}, optional={"name": words, "tool_calls": calls}),
    st.fixed_dictionaries({"from": roles, "value": words, "content": st.none()}, optional={"reasoning": words}),
    st.fixed_dictionaries({"role": roles, "content": st.lists(st.fixed_dictionaries({"text": words}), min_size=1)}),
)
dialogues = st.lists(turns, min_size=1, max_size=4)


@given(dialogues, dialogues, st.sampled_from([list, json.dumps]))
@settings(max_examples=300)
def test_dialogues_train_what_the_assistant_says_and_no_user(outcomes, folder, prompt, chosen, form):
    good, record = (
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": prompt, "chosen": form([YES, *chosen]), "rejected": [NO]},
    )
    kind, result = attempt(lambda: load(folder, [good, record], max_length=4096))
    if kind == "accepted":
        stored, summary = result
        assert decoded(stored[0]) == [f"<user>{SECRET}<eos>\n<assistant>", "yes<eos>", "no<eos>"]
        for _, *responses in map(decoded, stored):
            assert all(text.endswith("<eos>") and "<user>" not in text for text in responses)
        assert SECRET not in data.render(summary)
        kind = "dropped" if len(stored) == 1 else kind
    outcomes[kind] += 1


@given(dialogues, dialogues, st.sampled_from(["assistant", "last"]))
@settings(max_examples=150)
def test_marks_and_what_a_template_adds_tell_the_same_turns(outcomes, folder, prompt, chosen, which):
    records = [
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": prompt, "chosen": [YES, *chosen], "rejected": [NO]},
    ]
    found = [
        attempt(lambda tokenizer=tokenizer: load(folder, records, max_length=4096, turns=which, tokenizer=tokenizer))
        for tokenizer in (TOKENIZER, MARKED)
    ]
    (kind, result), (of_marks, marked) = found
    assert kind == of_marks
    if kind == "accepted":
        (ours, summary), (theirs, other) = result, marked
        assert ours.digest() == theirs.digest() and summary.dropped == other.dropped
        for example in ours:
            for ids, counted in zip(example.responses, example.counted or (), strict=False):
                assert counted[-1] and "<" not in TOKENIZER.decode(ids[counted]).replace("<eos>", "").replace(
                    "</think>", ""
                )
        kind = "dropped" if len(ours) == 1 else kind
    outcomes[kind] += 1


anything = st.recursive(junk | turns, lambda inner: st.lists(inner, max_size=3) | inner.map(repr) | inner.map(str))
columns = st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls"]), st.lists(words | junk))


@given(anything | columns | dialogues.map(json.dumps) | st.lists(turns | junk, max_size=4))
@settings(max_examples=1000)
def test_messages_of_any_form_are_of_one_form_then(outcomes, value):
    try:
        read = turns_module.read(value)
    except (formats.Unusable, TypeError) as reason:
        assert SECRET not in str(reason) and "\n" not in str(reason)
        outcomes["dropped" if isinstance(reason, formats.Unusable) else "refused"] += 1
    else:
        assert all(isinstance(turn["role"], str) and isinstance(turn.get("content", ""), str) for turn in read)
        assert turns_module.read(list(read)) == read and None not in [field for turn in read for field in turn.values()]
        outcomes["accepted"] += 1


# ---- templates -------------------------------------------------------------------------------------------------------

TWO = ["({0} + {1})", "({0} * {1})", "({0} ** {1})", "({0} % {1})", "({0} ~ {1})", "({0} == {1})", "[{0}, {1}]"]
ONE = [
    *("{0} | string", "{0} | list", "{0} | length", "{0} | tojson", "{0} | join('aa')", "{0} | center(9999)"),
    *("{0} | upper", "{0} | trim", "{0} | first", "{0} | batch(99)", "{0} | tojson(indent=99)", "{0} is string"),
    *("({0} | string)[1:]", "({0} | string).replace('a', 'aaaa')", "({0} | string).split('a')", "range({0})"),
    *("({0} | string).ljust(999999)", "{0}.nothing", "{0}.__class__"),
]
values = st.recursive(
    st.sampled_from(["'a'", "m.content", "m.role", "x", "ns.x", "messages", "2", "99999", "3000000000", "[1]", "none"]),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(TWO), inner, inner).map(lambda t: t[0].format(*t[1:])),
        st.tuples(st.sampled_from(ONE), inner).map(lambda t: t[0].format(t[1])),
    ),
    max_leaves=4,
)
texts = st.recursive(
    st.one_of(
        st.sampled_from(["text", "<assistant>", "{{ eos_token }}", "{% include 'x' %}", "{%"]),
        values.map("{{{{ {} }}}}".format),
        values.map("{{% set ns.x = {} %}}".format),
        st.just("{{ raise_exception('No answer to ' ~ m.content) }}"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.tuples(values, inner).map(lambda t: "{% for x in " + t[0] + " %}" + t[1] + "{% endfor %}"),
        st.tuples(values, inner).map(lambda t: "{% if " + t[0] + " %}" + t[1] + "{% endif %}"),
        inner.map(lambda text: "{% for x in range(99999) %}" + text + "{% endfor %}"),
    ),
    max_leaves=5,
)


@given(texts)
@settings(max_examples=300)
def test_templates_end_within_their_limits(outcomes, folder, text):
    start = "{% set ns = namespace(x='a') %}{% set m = messages[0] %}"
    steps, sandbox.STEPS = sandbox.STEPS, 2_000  # quick
    TOKENIZER.chat_template = start + text + CHATML
    began = time.process_time()
    try:
        kind, result = attempt(lambda: load(folder, [{"prompt": [USER], "chosen": [YES], "rejected": [NO]}]))
    finally:
        sandbox.STEPS, TOKENIZER.chat_template = steps, CHATML
    assert time.process_time() - began < 20
    if kind == "accepted":
        _, chosen, rejected = decoded(result[0][0])
        assert chosen.endswith("yes<eos>") and rejected.endswith("no<eos>")
    outcomes[kind] += 1
