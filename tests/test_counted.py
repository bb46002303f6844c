"""Tokens of a response that do not count: rows hold them, nothing scores them, and later ones are read behind them."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest
import tiny
from model_tools import logits_of, plain
from step_tools import compiled
from test_rows import ragged, random_examples
from test_scored_prompts import CONFIG
from test_train import configuration

from slpojax import data, explore, metrics, models, train
from slpojax.base import ABSENT
from slpojax.data import orders, pipeline, planning, rows
from slpojax.data.examples import Example, which


def in_part(seed, listed):
    """The same examples, of whose responses some tokens do not count; one of each does."""
    draw = np.random.default_rng(seed)
    made = []
    for example in listed:
        counted = tuple(draw.random(len(ids)) < 0.5 for ids in example.responses)
        for one in counted:
            if len(one):
                one[draw.integers(len(one))] = True
        made.append(example._replace(counted=counted))
    return made


def counted_ids(example):
    return [ids[which] for ids, which in zip(example.responses, which(example), strict=True)]


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_where_the_tokens_of_a_response_go():
    ids, yes = functools.partial(np.array, dtype=np.int32), functools.partial(np.array, dtype=bool)
    example = Example(
        ids([11, 12]), (ids([21, 22, 23, 24]), ids([31])), (0.0, 0.0), 0, counted=(yes([0, 1, 0, 1]), yes([1]))
    )
    stored = data.build([example], candidates=2)
    shapes = data.plan(stored, [np.arange(1)], row_length=8)
    assert (shapes.response, shapes.length, shapes.scored) == (2, 8, 8)
    batch = data.pack([stored[0]], shapes)
    assert batch.rows.token.tolist() == [[11, 12, 21, 22, 23, 24, 31, 0]]
    assert batch.rows.position.tolist() == [[0, 1, 2, 3, 4, 5, 2, 0]] and batch.length.tolist() == [[2, 1]]
    # Each is predicted from the cell before it, which may hold one that does not count.
    assert batch.scored.target.tolist() == [[22, 24, 31, 0, 0, 0, 0, 0]]
    assert batch.scored.source.tolist() == [[2, 4, 1, 0, 0, 0, 0, 0]]
    assert batch.scored.slot.tolist() == [[0, 1, 2, 4, 4, 4, 4, 4]]


@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_what_counts_is_scored_once_and_all_else_is_in_the_rows(seed, pack, groups, prompts):
    listed = in_part(seed, [*ragged(seed, random_examples(seed, 12))])
    stored, order = data.build(listed, candidates=3), [np.arange(12)]
    options = {"row_length": 64, "pack": pack, "multiple_of": groups, "prompts": prompts}
    shapes, t = planning.plan(stored, order, **options), int(stored.lengths.counted.max())
    assert shapes.response == t < stored.lengths.response.max()
    columns = [(tuple(-1.0 * ids for ids in of), tuple(-2.0 * ids for ids in of)) for of in map(counted_ids, listed)]
    batch = rows.pack([stored[i] for i in range(12)], shapes, ref=columns)
    token = batch.rows.token.reshape(groups, -1)
    plainly = [e._replace(counted=None) for e in listed]
    whole = rows.pack(plainly, planning.plan(data.build(plainly, candidates=3), order, **options))
    assert sorted(whole.rows.token[whole.rows.example > 0]) == sorted(batch.rows.token[batch.rows.example > 0])
    seen = {}
    for g, s in np.argwhere(batch.scored.slot < 12 * (3 * t + shapes.prompt)):
        seen[int(batch.scored.slot[g, s])] = token[g, batch.scored.source[g, s]], batch.scored.target[g, s]
        assert token[g, batch.scored.cell[g, s]] == batch.scored.target[g, s]
    expected = {}
    for (b, example), k in itertools.product(enumerate(listed), range(3)):
        before = [*example.prompt[-1:], *example.responses[k]]
        places = np.flatnonzero(example.counted[k])
        expected |= {(b * 3 + k) * t + n: (before[at], before[at + 1]) for n, at in enumerate(places)}
        expected |= {
            12 * 3 * t + b * shapes.prompt + n: (example.prompt[n], example.prompt[n + 1])
            for n in range(len(example.prompt) - 1)
            if prompts
        }
        found = batch.ref.token[b, k]
        np.testing.assert_array_equal(found[: len(places)], -1.0 * counted_ids(example)[k])
        assert not found[len(places) :].any() and (batch.ref.other[b, k, len(places) :] == np.float32(ABSENT)).all()
    assert seen == expected
    np.testing.assert_array_equal(batch.length, [[len(ids) for ids in counted_ids(e)] for e in listed])


@pytest.mark.parametrize("picks", [0, 1])
def test_a_plan_holds_every_batch_and_scores_no_more_than_counts(picks):
    listed = in_part(1, random_examples(1, 80))
    stored, draw = data.build(listed, candidates=3), np.random.default_rng(0)
    order = orders.order(stored.lengths, 8, seed=1, steps=10)
    shapes = planning.plan(stored, order, row_length=0, multiple_of=2, picks=picks)
    most = 0
    for index in order:
        chosen = np.stack([np.zeros(8, int), draw.integers(1, 3, 8)], axis=1)
        batch = (
            pipeline.make_picked(stored, shapes, index, chosen) if picks else pipeline.make_batch(stored, shapes, index)
        )
        used = (batch.scored.slot < 8 * shapes.candidates * shapes.response).sum(axis=1)
        most = max(most, used.max())
        lengths = (
            np.take_along_axis(stored.lengths.counted[index], chosen, 1) if picks else stored.lengths.counted[index]
        )
        np.testing.assert_array_equal(batch.length, lengths)
        assert used.sum() == lengths.sum()
    assert most <= shapes.scored and (picks or shapes.scored < most + 8)


# ---- log-probs -------------------------------------------------------------------------------------------------------


def test_the_log_probs_are_those_of_the_whole_text():
    """Three candidates, several examples a row, prompts scored as well: what is left out is context of what counts."""
    rng, model = np.random.default_rng(3), models.build(CONFIG)
    shaped = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape) / 2), shaped)
    listed = in_part(0, random_examples(0, 5, prompt=7, response=7))
    listed = [e._replace(prompt=e.prompt % 41, responses=tuple(ids % 41 for ids in e.responses)) for e in listed]
    shapes = data.plan(data.build(listed, candidates=3), [np.arange(5)], row_length=64, prompts=True)
    batch = data.pack(listed, shapes)
    assert batch.rows.example.max() > 1, "a row holds several examples"
    score = compiled(jax.jit(explore.scorer(model, shapes, batch)), params)
    policy, rest = jax.tree.map(np.asarray, score(params))

    texts = [np.concatenate([e.prompt, ids]) for e in listed for ids in e.responses]
    alone = plain(np.stack([np.pad(text, (0, 16 - len(text))) for text in texts]))
    logits = np.float64(compiled(jax.jit(functools.partial(logits_of, model)), params, alone)(params, alone))
    logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    for n, (b, k) in enumerate(itertools.product(range(5), range(3))):
        of_text, asked = logp[n, np.arange(len(texts[n]) - 1), texts[n][1:]], len(listed[b].prompt)
        expected = of_text[asked - 1 :][listed[b].counted[k]]
        np.testing.assert_allclose(policy.token[b, k, : len(expected)], expected, atol=1e-5)
        np.testing.assert_allclose(policy.token[b, k].sum(), expected.sum(), atol=5e-5)
        np.testing.assert_allclose(policy.other[b, k, : len(expected)], np.log(-np.expm1(expected)), atol=1e-5)
        assert policy.length[b, k] == len(expected) and not policy.token[b, k, len(expected) :].any()
        np.testing.assert_allclose(rest["prompt"].token[b, : asked - 1], of_text[: asked - 1], atol=1e-5)


# ---- a run -----------------------------------------------------------------------------------------------------------

CHAT = (
    "{% for m in messages %}{{ {'user': 'w27', 'tool': 'w28', 'assistant': 'w29'}[m.role] + ' ' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + ' ' + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content + ' ' + eos_token }}{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w29 ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and pairs in which the assistant uses a tool before it answers."""
    made = tiny.make(tmp_path_factory.mktemp("counted"))
    (made / "chat.jinja").write_text(CHAT)
    draw = np.random.default_rng(0)

    def turn(role):
        return {"role": role, "content": " ".join(draw.choice(tiny.WORDS[1:27], size=draw.integers(1, 4)))}

    records = [
        {
            "prompt": [turn("user")],
            "chosen": [turn("assistant"), turn("tool"), turn("assistant")],
            "rejected": [turn("assistant")],
        }
        for _ in range(tiny.COUNT)
    ]
    (made / "dialogues.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return made


@pytest.mark.check
def test_a_run_trains_what_counts_with_a_cached_reference_as_with_an_online_one(folder, capsys):
    changes = {"data.path": str(folder / "dialogues.jsonl"), "data.format": "conversational", "data.max_length": 32}
    changes |= {"data.chat_template": str(folder / "chat.jinja"), "data.row_length": 64, "export": False}
    changes |= {"data.turns": "assistant", "mesh.fsdp": 1, "checkpoint_every": -1}
    of_runs = []
    for mode in ("cached", "online"):
        train.train(configuration(folder, mode, steps=3, **changes, **{"reference.mode": mode}))
        assert "do not count (data.turns)" in capsys.readouterr().out
        of_runs.append(metrics.read_jsonl(folder / mode / "metrics.jsonl"))
    cached, online = of_runs
    assert len(cached) == len(online) == 5
    for ours, theirs in zip(cached, online, strict=True):
        for name in ("loss", "logps/chosen", "rewards/margins"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    start, *_, end = (row["loss"] for row in cached if row["split"] == "eval")
    assert start == pytest.approx(np.log(2), abs=1e-6) and end != start
