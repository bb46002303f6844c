"""From files to token ids: synthetic records of every kind, real HH pairs, and TRL's own token ids."""

import csv
import functools
import gzip
import itertools
import json
import random

import data_tools
import numpy as np
import pytest
import tokenizers
import transformers
from data_tools import decoded, load_path, make_tokenizer, pair

from slpojax import data
from slpojax.data import examples, formats, report, tokenise

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def load(tmp_path):
    return functools.partial(data_tools.load, tmp_path)


def test_eos_is_the_last_token_once_also_where_it_is_the_padding(load):
    stored, _ = load([pair(), pair(chosen=" yes<eos>")])
    for example in stored:
        assert decoded(example) == ["Go on", " yes<eos>", " no<eos>"]
        assert example.responses[0].tolist().count(0) == 1


@pytest.mark.parametrize(
    ("adds", "bos", "expected"),
    [(True, "tokenizer", 1), (False, "tokenizer", 0), (True, "never", 0), (False, "always", 1), (True, "always", 1)],
)
def test_bos_stands_before_the_prompt_alone(load, adds, bos, expected):
    stored, summary = load([pair()], tokenizer=make_tokenizer(bos=adds), bos=bos)
    assert [ids.tolist().count(1) for ids in (stored[0].prompt, *stored[0].responses)] == [expected, 0, 0]
    assert (stored[0].prompt[0] == 1) == bool(expected)
    assert ("BOS <bos>" in summary.special) == bool(expected)


def test_records_that_hold_no_example_are_counted_by_reason(load):
    records = [
        pair(),
        pair(rejected=""),
        pair(chosen=" \n"),
        pair(prompt=""),
        pair(rejected=" yes"),
        pair(chosen=" a\ud83d"),
        pair(prompt="a\U00100000"),
        pair(chosen=None),
        pair(chosen=" y" * 600),
        pair(prompt="p" * 600),
    ]
    stored, summary = load(records)
    assert summary.read == 10 and summary.kept == len(stored) == 2
    assert {reason: count.rows for reason, count in summary.dropped.items()} == {
        "empty response": (1, 2),
        "empty prompt": (3,),
        "identical responses": (4,),
        "half a character (a lone surrogate) in the text": (5,),
        "a private character that stands for special tokens": (6,),
        "chosen is null": (7,),
        "longer than data.max_length after cutting the prompt to data.max_prompt_length": (8,),
    }
    assert {note: count.rows for note, count in summary.noted.items()} == {"prompt cut at its beginning": (9,)}
    assert stored.row.tolist() == [0, 9]
    assert len(stored[1].prompt) == 512 - len(" yes") - 1
    text = report.render(summary)
    assert "10 read, 2 kept" in text and "2 empty response: rows 1, 2" in text and "Go on" not in text
    assert report.as_dict(summary)["data/dropped/empty response"] == 2


def test_a_chat_template_writes_messages(load):
    record = {"prompt": [{"role": "user", "content": "Go"}], "chosen": {"role": "assistant", "content": "A"}}
    record["rejected"] = {"role": "assistant", "content": "B"}
    tokenizer = make_tokenizer(template=CHATML, bos=True)
    stored, _ = load([record], tokenizer=tokenizer, format="conversational")
    assert decoded(stored[0], tokenizer) == ["<|im_start|>user\nGo<eos>\n<|im_start|>assistant\n", "A<eos>", "B<eos>"]
    stored, _ = load([record], tokenizer=tokenizer, format="conversational", chat_template="dialogue")
    assert decoded(stored[0], tokenizer) == ["\n\nHuman: Go\n\nAssistant:", " A<eos>", " B<eos>"]
    with pytest.raises(ValueError, match="no chat template; set data.chat_template"):
        load([record], format="conversational")


def test_a_response_of_several_turns_ends_with_the_last_eos_of_its_template(load):
    def said(*texts):
        return [{"role": ("assistant", "tool")[i % 2], "content": text} for i, text in enumerate(texts)]

    ask = [{"role": "user", "content": "Go"}]
    records = [{"prompt": ask, "chosen": said("A", "So?", "C"), "rejected": said("B")}]
    tokenizer = make_tokenizer(template=CHATML, bos=True)
    stored, summary = load(records, tokenizer=tokenizer, format="conversational")
    turns = "A<eos>\n<|im_start|>tool\nSo?<eos>\n<|im_start|>assistant\nC<eos>"
    assert [decoded(example, tokenizer)[1:] for example in stored] == [[turns, "B<eos>"]]
    assert summary.noted["a response of several turns"].rows == (0,)


def test_candidates_are_kept_best_first(load):
    answers = [
        {"text": text, "rank": i, "score": score} for i, (text, score) in enumerate([("a", 5), ("b", 5), ("c", 1)])
    ]
    records = [{"messages": [{"role": "user", "content": "?"}], "responses": answers[:n]} for n in (3, 2)]
    options = {"format": "ranked", "chat_template": "dialogue", "ties": "keep"}
    stored, summary = load([records[0]], candidates=3, **options)
    assert stored[0].score == (5.0, 5.0, 1.0) and [len(r) for r in stored[0].responses] == [3, 3, 3]
    assert not summary.dropped and not summary.noted
    with pytest.raises(
        ValueError, match="no usable record of 2: 2 all candidates ranked equal .rows 0, 1.*Set data.ties"
    ):
        load(records, candidates=2, **options)
    assert len(load([pair(rejected="")], candidates=1)[0]) == 1  # SFT on the chosen response does not need the other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "hh_"}, "unknown data.format 'hh_' .near: hh"),
        (
            {"format": "messages", "candidates": 1},
            "row 0 .*no field 'conversations'; its fields are prompt, chosen, rejected",
        ),
        ({"format": "conversational"}, "data.format=pairs reads plain strings"),
        ({"too_long": "cut"}, "unknown data.too_long 'cut'"),
        ({"bos": "yes"}, "unknown data.bos 'yes'"),
        ({"max_prompt_length": 512}, "max_prompt_length=512: expected"),
        ({"chat_template": "missing.jinja"}, "no such file"),
        ({"format": "prompt_response", "candidates": 2}, "has no field 'completion'"),
        ({"ties": "no"}, "unknown data.ties 'no'; there are drop, keep"),
        ({"pairs": "best_vs_next"}, "unknown data.pairs 'best_vs_next'; there are best.*, all, random, or nothing"),
        ({"pairs": "all"}, "got data.candidates=2, expected >= 3"),
        ({"pairs": "all", "candidates": 4, "unpair": True}, "set one of them"),
        ({"accept": 2, "candidates": 4}, r"data.accept=2 .*data.pairs \(now ''\)"),
        ({"accept": 5, "candidates": 4, "pairs": "all"}, "from 2 to data.candidates=4"),
        ({"unpair": True, "candidates": 1}, "data.unpair takes pairs apart; got data.candidates=1"),
        ({"mismatched": True}, "data.mismatched takes the response of another record, but there are 1"),
        ({"degrade": 2, "unpair": True}, r"data.degrade=2 .* of a pair; expected .* without data.unpair"),
        ({"degrade": 2, "candidates": 4}, r"data.degrade=2 .* with data.candidates=2 \(now 4\)"),
        ({"degrade": -1}, "data.degrade=-1 .*expected a number from 0"),
    ],
)
def test_errors_say_what_to_do(load, options, message):
    with pytest.raises(ValueError, match=message):
        load([pair()], **options)


def test_storage_returns_what_was_stored_and_is_immutable():
    random = np.random.default_rng(0)
    listed = [
        examples.Example(
            prompt=random.integers(0, 9, n).astype(np.int32),
            responses=tuple(random.integers(0, 9, m).astype(np.int32) for m in (n, 2)),
            score=(1.0, float(n)),
            row=3 * n,
        )
        for n in range(1, 9)
    ]
    stored = examples.build(listed, candidates=2)
    for got, expected in zip([*stored], listed, strict=True):
        np.testing.assert_equal(got, expected)
    assert stored.lengths.response.tolist() == [[n, 2] for n in range(1, 9)]
    assert stored.digest() == examples.build(listed, candidates=2).digest()
    assert stored.digest() != stored.take(range(7)).digest() != stored.take([1, 0, *range(2, 8)]).digest()
    with pytest.raises(ValueError, match="read-only"):
        stored.token[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        stored[0].prompt[0] = 1


EMPTY = (120, 739, 1213, 2062)
PARTED_EARLY = (168, 354, 567, 742, 959, 1010, 1165, 1306, 1449)


@pytest.fixture(scope="module")
def neox(shared_data):
    return data.load_tokenizer(str(shared_data / "tokenizers" / "neox-20b"))


@pytest.mark.parametrize(
    ("options", "kept", "dropped", "noted"),
    [
        ({"too_long": "cut_response"}, 2348, {}, {"prompt cut": 90, "response cut (no EOS)": 10}),
        *(
            pytest.param(*case, marks=pytest.mark.check)
            for case in [
                ({"too_long": "drop"}, 2252, {"longer than data.max_length": 96}, {}),
                ({"too_long": "cut_prompt"}, 2338, {"longer than data.max_length after": 10}, {"prompt cut": 86}),
                ({"too_long": "original"}, 2348, {}, {"prompt cut": 90, "response cut (no EOS)": 10}),
                ({"max_length": 2048}, 2348, {}, {}),
            ]
        ),
    ],
)
def test_real_dialogues_are_settled_and_counted(shared_data, neox, options, kept, dropped, noted):
    path = str(shared_data / "hh" / "helpful-base.test.jsonl.gz")
    stored, summary = load_path(path, tokenizer=neox, **options)
    assert (summary.read, summary.kept, len(stored)) == (2352, kept, kept)
    found = {reason: count for reason, count in summary.dropped.items()}
    assert found.pop("empty response") == (4, EMPTY)
    assert [
        (reason.startswith(start), count.times) for (reason, count), start in zip(found.items(), dropped, strict=True)
    ] == [(True, n) for n in dropped.values()]
    found = dict(summary.noted)
    assert found.pop(formats.SEVERAL) == (9, PARTED_EARLY)
    # No note on tokens that depend on the prompt: apart they are the tokens of the whole.
    assert {
        next(start for start in noted if note.startswith(start)): count.times for note, count in found.items()
    } == noted
    lost = sum(r[-1] != neox.eos_token_id for example in stored for r in example.responses)
    assert lost == noted.get("response cut (no EOS)", 0)
    assert summary.special == "EOS <|endoftext|> (0), no BOS"


@pytest.mark.check
def test_real_dialogues_tokenise_apart_as_they_do_whole(shared_data, neox):
    path = shared_data / "hh" / "helpful-base.test.jsonl.gz"
    stored, _ = load_path(path, tokenizer=neox, max_length=2048)
    texts = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path.parents[1] / "tokenizers/neox-20b/tokenizer.json")
    )
    with gzip.open(path, "rt") as lines:
        records = [json.loads(line) for line in lines]
    for k, name in enumerate(("chosen", "rejected")):
        wholes = texts([records[row][name] for row in stored.row], add_special_tokens=False)["input_ids"]
        for example, whole in zip(stored, wholes, strict=True):
            assert [*example.prompt, *example.responses[k]] == [*whole, 0]


def test_rightmost_split_counts_rows_that_do_not_share_the_prompt(shared_data, neox):
    _, summary = load_path(shared_data / "hh" / "helpful-base.test.jsonl.gz", tokenizer=neox, format="hh_rightmost")
    assert summary.noted["rejected does not share the prompt"].rows == (1165,)
    assert summary.dropped["empty response"].rows == (120, 567, *EMPTY[1:])  # in 567 no character is left to slice


def test_other_real_formats_load(shared_data, neox):
    options = {"tokenizer": neox, "chat_template": "dialogue", "max_length": 2048}
    path = str(shared_data / "pairs" / "llamafactory_dpo_en_demo.jsonl.gz")
    assert load_path(path, format="conversational", **options)[1].kept == 300


def test_real_records_are_the_same_examples_from_csv_and_in_another_layout(shared_data, neox, tmp_path):
    path = shared_data / "hh" / "helpful-base.test.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        records = [json.loads(line) for line in itertools.islice(lines, 200)]
    with open(tmp_path / "hh.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["chosen", "rejected"])
        writer.writeheader()
        writer.writerows(records)
    ours, theirs = (load_path(p, tokenizer=neox, rows="0:200")[0] for p in (tmp_path / "hh.csv", path))
    assert ours.digest() == theirs.digest() and len(ours) > 190

    ranked = shared_data / "ranked" / "qa_feedback_dev.ranked.jsonl.gz"
    with gzip.open(ranked, "rt") as lines, open(tmp_path / "armorm.jsonl", "w") as file:
        for line in lines:
            record = json.loads(line)
            [question] = record["messages"]
            scored = [(-answer["rank"], answer["text"]) for answer in record["responses"]]
            scores, texts = zip(*random.Random(0).sample(scored, len(scored)), strict=True)
            said = {"prompt": question["content"], "all_generated_responses": texts, "all_rm_scores": scores}
            file.write(json.dumps(said) + "\n")
    options = {"tokenizer": neox, "chat_template": "dialogue", "candidates": 4, "pairs": "extremes", "max_length": 2048}
    ours, theirs = (
        load_path(p, format=format, **options)[0]
        for p, format in ((tmp_path / "armorm.jsonl", "armorm"), (ranked, "ranked"))
    )
    best = [set(zip(stored.row.tolist(), stored.lengths.prompt.tolist(), strict=True)) for stored in (ours, theirs)]
    assert best[0] == best[1] and len(ours) > 300


def test_llama_gets_its_bos_by_the_tokenizer_s_own_rule(shared_data):
    tokenizer = data.load_tokenizer(str(shared_data / "llama-stories260k"))
    assert tokenise.leading(tokenizer, "tokenizer") == (1,)
    assert tokenise.leading(tokenizer, "never") == ()


def test_token_ids_are_those_of_trl(shared_goldens, tmp_path):
    columns = json.loads((shared_goldens / "trl_tiny_llama" / "dataset.json").read_text())
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenizer = data.load_tokenizer(str(shared_goldens / "trl_tiny_llama" / "tokenizer"))
    stored, summary = load_path(tmp_path / "pairs.jsonl", tokenizer=tokenizer, format="pairs")
    assert summary.kept == summary.read == len(records)
    expected = json.loads((shared_goldens / "trl.json").read_text())["e2e"]["tokenized"]
    for example, ids in zip(stored, expected, strict=False):
        got = [example.prompt, *example.responses]
        assert [piece.tolist() for piece in got] == [ids["prompt_ids"], ids["chosen_ids"], ids["rejected_ids"]]


def test_a_tokenizer_without_eos_is_an_error(tmp_path):
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="names no EOS token"):
        data.load_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        data.load_tokenizer(str(tmp_path / "nothing"))
