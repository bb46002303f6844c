"""Generated files, records and texts: read right, dropped and counted, or refused in one line that names the place."""

import copy
import csv
import gzip
import io
import json
import math

import pyarrow
import pyarrow.parquet
import pytest
from data_tools import load_path, make_tokenizer
from fault_tools import SECRET, attempt
from hypothesis import given, settings
from hypothesis import strategies as st

from slpojax.data import marks

pytestmark = pytest.mark.check

USER, YES, NO = (
    {"role": role, "content": f"{SECRET} {text}"}
    for role, text in (("user", "Is it?"), ("assistant", "Yes."), ("assistant", "No."))
)
HEAD = f"\n\nHuman: {SECRET}\n\nAssistant:"
PAIR = {"prompt": SECRET, "chosen": f" {SECRET} yes", "rejected": f" {SECRET} no"}
SCORES = {"score_chosen": 2, "score_rejected": 1.5}
RECORDS = {
    "hh": {"chosen": f"{HEAD} yes", "rejected": f"{HEAD} no"},
    "pairs": PAIR | SCORES,
    "bradley_terry": PAIR | SCORES,
    "implicit": {"chosen": f"{SECRET} is so", "rejected": f"{SECRET} is not"},
    "conversational": {"prompt": [USER], "chosen": [YES], "rejected": [NO]} | SCORES,
    "ranked": {
        "messages": [USER],
        "responses": [{"text": f"{SECRET}{k}", "rank": k, "score": 5.0 - k} for k in range(3)],
    },
    "nectar": {"prompt": f"{HEAD} ", "answers": [{"answer": f"{SECRET}{k}", "rank": k} for k in (1, 3, 4)]},
    "ultrafeedback": {
        "instruction": SECRET,
        "completions": [{"response": f"{SECRET}{k}", "overall_score": k} for k in range(3)],
    },
    "helpsteer": {"prompt": SECRET, "response": f"{SECRET} yes", "helpfulness": 3},
    "helpsteer3": {
        **{"context": [USER], "response1": f"{SECRET} yes", "response2": f"{SECRET} no", "overall_preference": -2},
    },
    "armorm": {
        **{"prompt": SECRET, "all_generated_responses": [f"{SECRET}{k}" for k in range(3)]},
        **{"all_rm_scores": [0.1, 0.3, 0.2]},
    },
    "orca": {"system": "?", "question": SECRET, "chosen": f"{SECRET} yes", "rejected": f"{SECRET} no"},
    "distilabel": {
        **{"instruction": SECRET, "chosen_response": f"{SECRET} yes", "rejected_response": f"{SECRET} no"},
        **{"chosen_avg_rating": 4.5, "rejected_avg_rating": 2},
    },
    "alpaca_pairs": {
        **{"instruction": SECRET, "input": "?", "history": [["a", "b"]]},
        **{"chosen": f"{SECRET} yes", "rejected": f"{SECRET} no"},
    },
    "shp": {
        **{"history": SECRET, "human_ref_A": f"{SECRET} yes", "human_ref_B": f"{SECRET} no"},
        **{"labels": 1, "score_A": 9, "score_B": 2},
    },
    "safe_rlhf_safer": {
        **{"prompt": SECRET, "response_0": f"{SECRET} yes", "response_1": f"{SECRET} no", "safer_response_id": 0},
    },
    "summarize_from_feedback": {
        "info": {"subreddit": "a", "title": "b", "post": SECRET},
        "summaries": [{"text": f" {SECRET} yes"}, {"text": f" {SECRET} no"}],
        "choice": 0,
    },
    "webgpt": {
        **{"question": {"full_text": SECRET}, "answer_0": f"{SECRET} yes", "answer_1": f"{SECRET} no"},
        **{"score_0": 0.5, "score_1": -0.5},
    },
    "reward_bench": {"prompt": SECRET, "chosen": [f"{SECRET} yes"], "rejected": [f"{SECRET} no"] * 2},
    "kto_tagged": {"messages": [USER, YES], "kto_tag": True},
    "unpaired": {"prompt": SECRET, "completion": f" {SECRET}", "label": True},
}
SINGLE = ("unpaired", "kto_tagged")
STATED = ("conversational", "pairs", "orca", "distilabel", "alpaca_pairs", "shp", "safe_rlhf_safer")
TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)
TOKENIZER = make_tokenizer(template=TEMPLATE)
EOS, BOS = 0, 1

texts = st.text(max_size=12) | st.sampled_from(
    [
        "",
        " \n",
        "<eos>",
        f"{SECRET}<eos>",
        "<bos>",
        "a<eos>b<bos>",
        "\ud83d",
        f"\udc00{SECRET}",
        "\U00100000",
        "é<eos>\n",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
odd = st.sampled_from(
    [10**400, -(10**39), 1e39, math.nan, math.inf, "10", "2", True, [SECRET], {"key": SECRET}, SECRET]
)
values = odd | st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def load(path, name, **options):
    """Load what lies at a path; return what became of it, and the examples, which hold right numbers, or None."""
    single = name in SINGLE
    asked = {"format": name, "candidates": 1 if single else 3, "max_length": 300, "max_prompt_length": 150} | options

    def call():
        try:
            return load_path(path, tokenizer=TOKENIZER, **asked)
        except ValueError as error:
            assert SECRET not in str(error)
            if "no usable record" in str(error):
                return None
            raise

    kind, value = attempt(call)
    if kind == "refused":
        assert path.name in value, f"the message names no file: {value}"
        return kind, None
    if value is None:
        return "dropped", None
    right(*value, name)
    return "dropped in part" if value[1].dropped else kind, value


def right(stored, summary, name):
    """What every accepted set of examples must hold."""
    assert summary.kept == len(stored)
    if name != "helpsteer":  # which joins rows
        assert summary.read == summary.kept + sum(count.times for count in summary.dropped.values())
    for example in stored:
        assert len(example.prompt) and all(map(math.isfinite, example.score))
        present = [r for r in example.responses if len(r)]
        assert all(r[-1] == EOS or len(r) + len(example.prompt) == 300 for r in present)
        if name not in STATED:  # whose order the record says
            scores = example.score[: len(present)]
            assert list(scores) == sorted(scores, reverse=True)


def paths(value, at=()):
    """Yield the way to every value inside of a record."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, deeper in inner:
        yield from paths(deeper, (*at, key))


@given(st.data())
@settings(max_examples=700)
def test_records_with_values_of_any_kind(folder, outcomes, data):
    name = data.draw(st.sampled_from(sorted(RECORDS)))
    record = {"record": copy.deepcopy(RECORDS[name])}
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from([way for way in paths(record) if way]))
        inner = record
        for key in way:
            inner = inner[key]
        inner[last] = copy.deepcopy(data.draw(values))
    good = RECORDS[name]
    lines = [good, record["record"], good | {"prompt": f"{SECRET}!"} if name == "helpsteer" else good]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcomes[load(path, name)[0]] += 1


def contents():
    """Whole files of every kind, by the ends of their names."""
    lines = "".join(json.dumps(PAIR | SCORES) + "\n" for _ in range(8)).encode()
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR | SCORES] * 8), parquet)
    array = json.dumps([PAIR] * 8).encode()
    table = io.StringIO()
    writer = csv.DictWriter(table, [*PAIR, *SCORES])
    writer.writeheader()
    writer.writerows([PAIR | SCORES] * 8)
    rows = table.getvalue().encode()
    tables = {"csv": rows, "csv.gz": gzip.compress(rows, mtime=0)}
    return tables | {
        "jsonl": lines,
        "jsonl.gz": gzip.compress(lines, mtime=0),
        "json": array,
        "parquet": parquet.getvalue(),
    }


CONTENTS = contents()


@given(st.data())
@settings(max_examples=500)
def test_damaged_files(folder, outcomes, data):
    ending = data.draw(st.sampled_from(sorted(CONTENTS)))
    content = bytearray(CONTENTS[ending])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
        if how == "flip" and content:
            content[at] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = data.draw(
                st.binary(max_size=4) | st.sampled_from([b"\n", b"[" * 5000, b"9" * 5000, b"\xff\xfe"])
            )
        else:
            del content[at : at + data.draw(st.integers(1, 40))]
    path = folder / f"damaged.{ending}"
    path.write_bytes(content)
    outcomes[load(path, "pairs", candidates=2)[0]] += 1


def ended(text):
    """A message without the EOS at its end."""
    bare = text.rstrip()
    while bare.endswith("<eos>"):
        text = bare.removesuffix("<eos>")
        bare = text.rstrip()
    return text


def letters(ids):
    """The text of ids in which every special token is shown as one private character."""
    return "".join(chr(marks._FIRST + i) if i in (EOS, BOS) else TOKENIZER.decode([i]) for i in ids)


pieces = st.lists(st.sampled_from(["<eos>", "<bos>", "a", " ", "\n", "b", "<", "eos>"]), max_size=6).map("".join)


@given(st.tuples(pieces.map("{}?".format), pieces.map("x{}".format), pieces.map("y{}".format)), st.booleans())
@settings(max_examples=300)
def test_special_tokens_in_texts(folder, outcomes, drawn, chat):
    """A message never gives a special token; plain text does where it was rendered beforehand, or EOS at its end."""
    path = folder / "special.jsonl"
    roles = ("user", "assistant", "assistant")
    said = [[{"role": role, "content": text}] for role, text in zip(roles, drawn, strict=True)] if chat else drawn
    path.write_text(json.dumps(dict(zip(("prompt", "chosen", "rejected"), said, strict=True))) + "\n")
    name = "conversational" if chat else "pairs"
    kind, value = load(path, name, candidates=2)
    outcomes[kind] += 1
    if kind != "accepted":
        return
    [example], summary = value
    shown = [letters(ids.tolist()) for ids in (example.prompt, *example.responses)]
    eos, bos = letters([EOS]), letters([BOS])
    if chat:
        prompt, chosen, rejected = (ended(text) for text in drawn)
        assert shown[0] == f"{bos}user\n{prompt}{eos}\n{bos}assistant\n"
        assert shown[1:] == [f"{chosen}{eos}", f"{rejected}{eos}"]
    elif marks.RENDERED in summary.noted:
        assert shown[0] == drawn[0].replace("<eos>", eos).replace("<bos>", bos)
    else:
        assert shown[0] == drawn[0] and all(eos not in text[:-1] and bos not in text for text in shown)
