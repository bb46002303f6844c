"""The policy's answers behind given pairs: found by the prompt's token ids, taken as they were sampled."""

import json

import data_tools
import pytest

from slpojax import data, samples

EOS = 0
TOKENIZER = data_tools.make_tokenizer(bos=True)


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def sample(prompt, text, number, k, ids=None, finished=True, **about):
    ids = [*ids_of(text), EOS] if ids is None else ids
    made = samples.Sample(
        *(prompt, text, "me", prompt, number, k, 0, 1.0), [1, *ids_of(prompt)], ids, [-1.0] * len(ids), finished, "ab"
    )
    return samples.as_record(made._replace(about=about))


def pair(prompt, k=0):
    return {"prompt": prompt, "chosen": f" yes {k}", "rejected": f" no {k}"}


@pytest.fixture
def load(tmp_path):
    def run(given, drawn, /, held_out=False, **options):
        for name, records in (("pairs", given), ("samples", drawn)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        source = data.Source(str(tmp_path / "pairs.jsonl"), samples=str(tmp_path / "samples.jsonl"), held_out=held_out)
        chosen = data.settings({"format": "pairs", "candidates": 3} | options)
        return data.load(source, chosen, tokenizer=TOKENIZER)

    return run


def texts(stored):
    return [data_tools.decoded(example, TOKENIZER)[1:] for example in stored]


def test_pairs_of_a_prompt_take_the_answers_of_its_askings_in_turn(load):
    pairs = [pair("Go", 0), pair("Why", 1), pair("Go", 2), pair("Go", 3)]
    drawn = [sample("Go", " a", 0, 0), sample("Why", " b", 1, 0), sample("Go", " c", 2, 0)]
    stored, summary = load(pairs, drawn)
    assert [example.row for example in stored] == [0, 1, 2, 3]
    assert [one[2] for one in texts(stored)] == [" a<eos>", " b<eos>", " c<eos>", " a<eos>"]
    assert texts(stored)[0][:2] == [" yes 0<eos>", " no 0<eos>"] and not summary.dropped and not summary.noted


def test_a_pair_whose_prompt_nobody_asked_is_counted_and_what_is_held_out_has_empty_places(load):
    pairs, drawn = [pair("Go"), pair("Why")], [sample("Go", " a", 0, 0)]
    stored, summary = load(pairs, drawn)
    assert [example.row for example in stored] == [0]
    assert {name: count.rows for name, count in summary.dropped.items()} == {
        "no sample of the policy to its prompt": (1,)
    }
    stored, summary = load(pairs, drawn, held_out=True)
    assert [len(example.responses[2]) for example in stored] == [0, 0] and not summary.noted
    with pytest.raises(ValueError, match="no sample of the policy to its prompt .*Sample answers to the prompts"):
        load(pairs[1:], drawn)


def test_an_answer_stays_what_it_is(load):
    """One that is the preferred response, one that was cut, one that a stop string ended; no more than there are."""
    drawn = [
        sample("Go", " yes 0", 0, 0),
        sample("Go", " on and", 0, 1, ids_of(" on and"), False),
        sample("Go", " stop", 0, 2, ids_of(" stop")),
        sample("Go", " other", 0, 3, player="reference"),
    ]
    stored, summary = load([pair("Go")], drawn, candidates=6)
    assert texts(stored)[0][2:5] == [" yes 0<eos>", " on and", " stop<eos>"] and not len(stored[0].responses[5])
    assert sorted(summary.noted) == [
        "answer that a stop string ended, closed by EOS",
        "answer that was cut while it was sampled (no EOS)",
        "fewer samples of the policy to its prompt than data.candidates leaves places for",
    ]
    assert stored[0].score == (0.0,) * 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"candidates": 2}, "data.candidates=2 leaves no place for one; expected 3 or more"),
        ({"pairs": "best"}, "data.samples and data.pairs both change the candidates"),
        ({"swapped": True}, "data.samples and data.swapped both change the candidates"),
    ],
)
def test_what_cannot_be_is_refused(load, options, words):
    with pytest.raises(ValueError, match=words):
        load([pair("Go")], [sample("Go", " a", 0, 0)], **options)
