"""Sampling against full forward passes, whatever the slots, the order and the mesh."""

import functools

import jax
import numpy as np
import pytest

from slpojax import grid, models
from slpojax.base import Rows
from slpojax.draws import Draw
from slpojax.sampling import device, generate, score, stream

VOCABULARY, EOS = 13, 1
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.6,
}
NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "initializer_range": 0.6,
    "rotary_pct": 0.5,
}
PROMPTS = [[3, 4, 5], [7], [2, 9, 11, 6, 8, 3], [12, 12], [5, 2, 10, 4]]

QWEN2 = LLAMA | {"model_type": "qwen2"}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 3}
GEMMA2 = LLAMA | {"model_type": "gemma2", "head_dim": 4, "sliding_window": 3}
GEMMA2 |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
GEMMA3 = LLAMA | {"model_type": "gemma3_text", "head_dim": 4, "sliding_window": 4, "sliding_window_pattern": 2}
OLMO3 = LLAMA | {"model_type": "olmo3", "sliding_window": 3}
SMOLLM3 = LLAMA | {"model_type": "smollm3", "no_rope_layer_interval": 2}


@pytest.fixture(scope="module")
def llama():
    return policy_of(LLAMA)


def policy_of(config):
    model = models.build(config)
    return model, jax.jit(model.init)(jax.random.key(3))


@functools.cache
def last_hidden(apply):
    return jax.jit(lambda params, rows, last: apply(params, rows, None)[0][0, last])


def next_log_softmax(model, params, tokens):
    """The distribution after `tokens`, by a forward pass over all of them; the softmax in float64."""
    row = np.zeros((1, 24), np.int32)
    row[0, : len(tokens)] = tokens
    inside = (np.arange(24)[None] < len(tokens)).astype(np.int32)
    rows = Rows(row, np.arange(24, dtype=np.int32)[None], inside, 0 * inside)
    hidden = np.asarray(last_hidden(model.apply)(params, rows, len(tokens) - 1), np.float64)
    logits = hidden @ np.asarray(model.unembed(params), np.float64)
    logits = model.cap * np.tanh(logits / model.cap) if model.cap else logits
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


# Two samples of each prompt, the first greedy: one compilation serves all tests that ask for as many slots.
OPTIONS = {"key": jax.random.key(2), "max_new_tokens": 8, "eos": (EOS,), "samples": 2, "temperatures": (0.0, 1.0)}


@pytest.fixture(scope="module")
def in_order(llama):
    """Three slots for ten sequences: six of them begin where another one has ended."""
    return generate(*llama, PROMPTS, slots=3, **OPTIONS)


def assert_same(one, other):
    """The same tokens; log-probs but for rounding."""
    for a, b in zip(flat(one), flat(other), strict=True):
        np.testing.assert_array_equal(a.token, b.token)
        np.testing.assert_allclose(a.logp, b.logp, atol=2e-5)
        assert a.finished == b.finished


def flat(responses):
    return [response for of_prompt in responses for response in of_prompt]


def test_greedy_is_the_argmax_of_a_full_forward_pass(llama, in_order):
    for prompt, (response, _) in zip(PROMPTS, in_order, strict=True):
        follows_the_argmax(llama, prompt, response)


def follows_the_argmax(policy, prompt, response):
    tokens = list(prompt)
    for token, logp in zip(response.token, response.logp, strict=True):
        expected = next_log_softmax(*policy, tokens)
        assert token == expected.argmax()
        assert logp == pytest.approx(expected[token], abs=1e-5)
        tokens.append(int(token))
    assert len(response.token) == 8 or response.finished


@pytest.mark.check
@pytest.mark.parametrize(
    "config", [NEOX, NEOX | {"use_parallel_residual": False}, QWEN2, MISTRAL, GEMMA2, GEMMA3, OLMO3, SMOLLM3], ids=str
)
def test_other_families_do_so_too(config):
    policy = policy_of(config)
    sampled = generate(*policy, PROMPTS, slots=3, **OPTIONS)
    for prompt, (response, _) in zip(PROMPTS, sampled, strict=True):
        follows_the_argmax(policy, prompt, response)
    check_logps(policy, sampled)


def test_logps_are_those_of_the_training_path_whatever_the_temperature(llama, in_order):
    check_logps(llama, in_order)


def check_logps(policy, sampled):
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    again = score(*policy, prompts, [r.token for r in flat(sampled)], max_new_tokens=8, batch=4)
    for response, logp in zip(flat(sampled), again, strict=True):
        assert response.logp.dtype == np.float32
        np.testing.assert_allclose(response.logp, logp, atol=1e-5)


@pytest.mark.parametrize(
    "slots", [pytest.param(1, marks=pytest.mark.check), 8, pytest.param(64, marks=pytest.mark.check)]
)
def test_a_response_does_not_depend_on_the_slots(llama, in_order, slots):
    assert_same(generate(*llama, PROMPTS, slots=slots, **OPTIONS), in_order)


def test_another_key_gives_other_responses_and_a_part_of_the_prompts_the_same(llama, in_order):
    other = generate(*llama, PROMPTS, slots=3, **(OPTIONS | {"key": jax.random.key(9)}))
    assert [r.token.tolist() for r, _ in other] == [r.token.tolist() for r, _ in in_order], "greedy ones"
    assert [r.token.tolist() for _, r in other] != [r.token.tolist() for _, r in in_order]
    part = stream(*llama, PROMPTS[2:], slots=3, first=2, **OPTIONS)
    assert_same([next(part)], in_order[2:3])


@pytest.mark.check
def test_samples_of_a_prompt_are_separate_sequences(llama, in_order):
    """Which share its lane alone: the same as prompts given twice, sequence by sequence of the key."""
    options = OPTIONS | {"samples": 1}
    for k in range(2):
        one = options | {"temperatures": OPTIONS["temperatures"][k : k + 1]}
        twice = generate(*llama, [prompt for prompt in PROMPTS for _ in range(2)], slots=10, **one)
        assert_same(twice[k::2], [[responses[k]] for responses in in_order])


@pytest.mark.check
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (8, 1, 1), (4, 1, 2)])
def test_a_mesh_samples_what_one_device_does(llama, in_order, sizes):
    split = grid.make(*sizes)
    model = models.build(LLAMA, grid=split)
    where, _ = grid.tree(split, model.sharding, llama[1])
    params = jax.tree.map(jax.device_put, llama[1], where)
    assert_same(generate(model, params, PROMPTS, slots=4, grid=split, **OPTIONS), in_order)
    tokens = [first.token for first, _ in in_order]
    again = score(model, params, PROMPTS, tokens, max_new_tokens=8, batch=3, grid=split)
    for logp, (response, _) in zip(again, in_order, strict=True):
        np.testing.assert_allclose(logp, response.logp, atol=1e-5)


@pytest.mark.check
@pytest.mark.parametrize("sizes", [(8, 1, 1), (4, 2, 1)])
def test_few_prompts_are_split_over_devices_by_their_samples(llama, sizes):
    options = OPTIONS | {"samples": 12, "temperatures": None}
    split = grid.make(*sizes)
    model = models.build(LLAMA, grid=split)
    one = generate(*llama, PROMPTS[:2], slots=8, **options)
    assert_same(generate(model, llama[1], PROMPTS[:2], slots=8, grid=split, **options), one)


@pytest.mark.check
@pytest.mark.parametrize("slots", [40, 100])
def test_blocks_empty_as_sequences_end(llama, slots, monkeypatch):
    """Slots of several blocks, ragged prompts of several widths, few lanes: as one sequence after the other."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, VOCABULARY, n) for n in rng.integers(1, 70, 40)]
    options = OPTIONS | {"samples": 4, "temperatures": (1.0, 0.5, 1.0, 2.0), "max_new_tokens": 30, "eos": (EOS, 2)}
    expected = generate(*llama, prompts, slots=16, **options)
    monkeypatch.setattr(device, "MOST_ROWS", 16)
    assert_same(generate(*llama, prompts, slots=slots, **options), expected)
    for response in flat(expected):
        ends = np.isin(response.token, (EOS, 2))
        assert not ends[:-1].any() and ends[-1] == response.finished
        assert response.finished or len(response.token) == 30
    assert 0 < sum(response.finished for response in flat(expected)) < 160


def test_stop_ends_a_response_where_its_string_has_come(llama, in_order):
    word = int(in_order[0][0].token[2])

    def stop(token):
        found = np.flatnonzero(token == word)
        return int(found[0]) if len(found) else None

    stopped = generate(*llama, PROMPTS, slots=3, stop=stop, **OPTIONS)
    for response, whole in zip(flat(stopped), flat(in_order), strict=True):
        keep = stop(whole.token)
        assert response.token.tolist() == whole.token[:keep].tolist()
        assert response.logp.shape == response.token.shape
        assert response.finished == (whole.finished or keep is not None)
    with pytest.raises(ValueError, match="stop: got 99 of"):
        generate(*llama, PROMPTS, slots=3, stop=lambda token: 99, **OPTIONS)


def test_responses_come_in_the_order_of_the_prompts_and_as_soon_as_they_are_there(llama, in_order):
    found = stream(*llama, PROMPTS, slots=3, **OPTIONS)
    assert_same([next(found), next(found)], in_order[:2])
    assert generate(*llama, [], slots=3, **OPTIONS) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"draw": Draw(temperature=-1.0)}, "temperature: got -1.0"),
        ({"draw": Draw(top_p=0.0)}, "top_p: got 0.0"),
        ({"draw": Draw(top_k=-1)}, "top_k: got -1"),
        ({"draw": Draw(min_p=1.5)}, "min_p: got 1.5"),
        ({"temperatures": (1.0,), "samples": 2}, "temperatures: got 1, expected 2, one for each sample"),
        ({"temperatures": (float("nan"),)}, "temperature: got nan"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"samples": 0}, "samples: got 0"),
        ({"slots": 0}, "slots: got 0"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
    ],
)
def test_wrong_arguments_are_named_before_anything_runs(llama, wrong, message):
    given = dict(prompts=PROMPTS, key=jax.random.key(0), max_new_tokens=2, eos=(EOS,)) | wrong
    with pytest.raises(ValueError, match=message):
        stream(*llama, given.pop("prompts"), **given)
