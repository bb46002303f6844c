"""Methods that play against a second player: what it answers, and that the reward of a world rises."""

import pathlib

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

from configs import onmcpo_quickstart
from slpojax import grid, hf, metrics, models, online, samples, sampling, settings, simulate, train
from slpojax.base import Rows, named_key
from slpojax.sampling import players
from slpojax.sampling.players import Player
from slpojax.worlds import reviews
from slpojax.worlds.reviews import WORLD

VOCABULARY, EOS = 13, 1
MODEL = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "initializer_range": 0.6,
}
OTHER = MODEL | {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 1, "initializer_range": 0.9}
PROMPTS = [[3, 4, 5], [7], [2, 9, 11, 6, 8, 3]]
KEY = jax.random.key(2)
OPTIONS = {"max_new_tokens": 8, "eos": (EOS,), "slots": 6}


@pytest.fixture(scope="module")
def pair():
    """Two players of one shape, as a policy and its reference are, and one of another."""
    one, other = models.build(MODEL), models.build(OTHER)
    return [
        Player(model, jax.jit(model.init)(jax.random.key(seed))) for model, seed in ((one, 3), (one, 4), (other, 5))
    ]


@pytest.mark.check
def test_the_last_answer_is_the_second_players_alone_and_all_log_probs_are_the_policys(pair):
    policy, reference, _ = pair
    both = [*players.stream(reference, *policy, PROMPTS, key=KEY, samples=2, temperatures=(1.0, 0.7), **OPTIONS)]
    mine = sampling.generate(*policy, PROMPTS, key=KEY, samples=1, temperatures=(1.0,), **OPTIONS)
    key = named_key(KEY, "second")
    theirs = sampling.generate(*reference, PROMPTS, key=key, samples=1, temperatures=(0.7,), **OPTIONS)
    under = sampling.score(*policy, PROMPTS, [r.token for (r,) in theirs], max_new_tokens=8, batch=6)
    assert any(r.token.tolist() != one[0].token.tolist() for (r,), one in zip(theirs, both, strict=True))
    for (first, last), (own,), (other,), logp in zip(both, mine, theirs, under, strict=True):
        np.testing.assert_array_equal(first.token, own.token)
        np.testing.assert_array_equal(first.logp, own.logp)
        np.testing.assert_array_equal(last.token, other.token)
        np.testing.assert_array_equal(last.logp, logp)
        assert last.finished == other.finished and not np.allclose(last.logp, other.logp)


def mixed_logits(policy, reference, share):
    """Log-probs [1 + V, V] of the mixture behind the prompt, and behind the prompt and each word: in float64."""

    def log_softmax(player):
        token = np.int32([[*PROMPTS[0], word] for word in range(VOCABULARY)])
        one, place = np.ones_like(token), np.broadcast_to(np.arange(4, dtype=np.int32), token.shape)
        hidden = np.asarray(player.model.apply(player.params, Rows(token, place, one, 0 * one), None)[0], np.float64)
        logits = np.concatenate([hidden[:1, 2], hidden[:, 3]]) @ np.asarray(player.model.unembed(player.params))
        return scipy.special.log_softmax(logits, axis=1)

    return scipy.special.log_softmax((1 - share) * log_softmax(policy) + share * log_softmax(reference), axis=1)


@pytest.mark.check
@pytest.mark.parametrize("share", [0.125, 0.5])
def test_a_mixture_draws_from_the_softmax_of_the_mixed_logits(pair, share):
    """Sequences of two tokens, counted; the reference is of another shape than the policy."""
    policy, _, reference = pair
    mixed, options = players.mixture(policy, reference, share), OPTIONS | {"max_new_tokens": 2, "slots": 2048}
    (drawn,) = sampling.generate(*mixed, PROMPTS[:1], key=KEY, samples=2048, **options)
    pairs = [one.token.tolist() + [0] * (2 - len(one.token)) for one in drawn]
    seen = np.bincount([a * VOCABULARY + b for a, b in pairs], minlength=VOCABULARY**2)

    def p_value(share):
        first, *after = np.exp(mixed_logits(policy, reference, share))
        after[EOS] = np.eye(VOCABULARY)[0]  # what has ended has no second token
        mean = len(drawn) * (first[:, None] * np.array(after)).ravel()
        rare = mean < 5
        return scipy.stats.chisquare(*[np.append(x[~rare], x[rare].sum()) for x in (seen, mean)]).pvalue

    assert p_value(share) > 1e-3
    assert p_value(0.0) < 1e-6 and p_value(1.0) < 1e-6  # the test tells the mixture from either player
    logp = mixed_logits(policy, reference, share)[0]
    for one in drawn[:50]:  # as a model the mixture has log-probs of its own; `players.stream` gives the policy's
        assert one.logp[0] == pytest.approx(logp[one.token[0]], abs=1e-5)


@pytest.mark.check
def test_a_mixture_is_sampled_whatever_the_slots_and_the_mesh(pair):
    policy, reference = pair[0], pair[2]
    options = {"key": KEY, "samples": 4, **OPTIONS, "max_new_tokens": 12}
    few = sampling.generate(*players.mixture(policy, reference, 0.3), PROMPTS, **options | {"slots": 2})
    split = grid.make(2, 2, 2)
    built = [models.build(config, grid=split) for config in (MODEL, OTHER)]
    placed = [
        Player(model, jax.tree.map(jax.device_put, one.params, grid.tree(split, model.sharding, one.params)[0]))
        for model, one in zip(built, (policy, reference), strict=True)
    ]
    many = sampling.generate(*players.mixture(*placed, 0.3), PROMPTS, **options, grid=split)
    for mine, theirs in zip(few, many, strict=True):
        assert [one.token.tolist() for one in mine] == [one.token.tolist() for one in theirs]


SMALL = {"text_count": 40, "pair_count": 512, "held_out": 8, "judged": 24}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder beside which lies a small world, whose reference was never trained: it writes words at random."""

    def untrained(config):
        hf_config = hf.read_config(config.model.path) | {"initializer_range": 0.2}
        model = models.build(hf_config)
        params = jax.jit(model.init)(jax.random.key(config.seed))
        beside = hf.Beside(tokenizer=pathlib.Path(config.model.path))
        hf.save(pathlib.Path(config.output) / "hf", params, model, hf_config, beside=beside)

    make, folder = grid.make, tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        # One device: the segments of a run compile less, and find the rest compiled.
        patch.setattr(grid, "make", lambda *sizes, devices=None: make(*sizes, devices=devices or jax.devices()[:1]))
        patch.setattr(reviews, "WORLD", reviews.WORLD._replace(**SMALL))
        patch.setattr(simulate, "BATCH", 128)
        simulate.prepare(of_world(folder / "made"), untrained)
        yield folder


def of_world(output, **changes):
    config = onmcpo_quickstart.get_config()
    places = {"output": str(output), "compiled": str(output.parent / "compiled")}
    return settings.resolve(config, places | changes, choices=online.CHOICES)


SHORT = {
    "online.segments": 2,
    "generate.count": 512,
    "generate.samples": 2,
    "generate.temperature": (1.0,),
    "generate.slots": 128,
    "steps": 16,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
    "eval_every": 0,
    "export": False,
    "data.row_length": 128,
    "data.candidates": 2,
    "judge.name": "world.gold",
    "ranking": "scores",
    "selector.name": "everything",
}


def played(folder, name, **changes):
    """Learn from the first segment; return the gold rewards [2, prompts, answers] of both, and the metrics between."""
    config = simulate.prepare(of_world(folder / name, **SHORT | changes), lambda config: None)
    online.refuse(config)
    first, second = online.segment(config, 1), online.segment(config, 2)
    online.sample(first)
    train.train(first)
    online.sample(second)
    drawn = [samples.by_prompt(sampled(part)) for part in (first, second)]
    gold = [[[WORLD.reward(one.prompt, one.output) for one in answers] for answers in prompts] for prompts in drawn]
    return np.array(gold), metrics.read_jsonl(f"{first.output}/metrics.jsonl", "train")


def sampled(part):
    return samples.read(pathlib.Path(part.output) / "samples.jsonl")


XPO = {"generate.second": "reference", "online.answers": "in_order", "objective.name": "games.xpo"}


@pytest.mark.check
def test_xpo_beats_the_reference_in_the_world(world):
    gold, rows = played(world, "xpo", **XPO)
    mine, reference = gold.mean(1).T
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)  # the policy is the reference, and alpha is small
    assert mine[1] - mine[0] > 0.5
    assert abs(reference[1] - reference[0]) < 0.3


NASH = {
    "generate.second": "mixture",
    "online.answers": "versus_last",
    "objective.name": "games.nash_md",
    "data.candidates": 1,
    "data.eval_format": "bradley_terry",
}


@pytest.mark.check
def test_nash_md_wins_against_the_mixture_in_the_world(world):
    gold, rows = played(world, "nash", **NASH)
    mine, mixture = gold.mean(1).T
    assert mine[1] - mine[0] > 0.5
    assert mixture[1] > mixture[0]  # seven eighths of it are the policy
    assert 0.4 < rows[0]["preference"] < 0.6 and rows[0]["kl"] == pytest.approx(0, abs=1e-4)


HYPO = {"online.answers": "beside_pairs", "judge.name": "", "objective.name": "hybrid.hypo"}


@pytest.mark.check
def test_hypo_learns_from_the_worlds_pairs_beside_its_own_answers(world):
    gold, rows = played(world, "hypo", **HYPO, **{"objective.weight": 0.02})
    before, after = gold.mean((1, 2))
    assert after - before > 0.5
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4) and abs(rows[-1]["kl"]) > 0.1  # the policy is the reference
