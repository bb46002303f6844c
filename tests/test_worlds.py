"""Worlds: how one is found, and the world of reviews: its language and its reward."""

import sys

import numpy as np
import pytest

from slpojax import worlds
from slpojax.worlds import imdb
from slpojax.worlds.imdb import sentiment
from slpojax.worlds.reviews import WORLD, language


def draws(count):
    rng = np.random.default_rng(0)
    return [language.write(topic, rng) for topic, _ in language.prompts(count)]


def test_a_world_is_found_by_the_name_of_its_module():
    assert worlds.find("reviews") == ("slpojax.worlds.reviews", WORLD)
    assert worlds.find("slpojax.worlds.reviews") == ("slpojax.worlds.reviews", WORLD)


@pytest.mark.parametrize("name", ["review", "no.such.module", "reviews.", ".reviews", "a world"])
def test_an_unknown_world_is_refused_and_those_there_are_are_listed(name):
    with pytest.raises(ValueError, match="unknown config.world .*there are imdb, reviews, or any importable"):
        worlds.find(name)
    with pytest.raises(ValueError, match=r"\(near: reviews\)"):
        worlds.find("review")


def test_a_module_that_holds_no_world_says_so():
    with pytest.raises(ValueError, match="config.world 'json' lacks WORLD"):
        worlds.find("json")


def test_what_a_world_s_own_module_misses_is_the_user_s_news(tmp_path, monkeypatch):
    (tmp_path / "broken_world.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        worlds.find("broken_world")
    assert "broken_world" not in sys.modules


def test_a_text_and_its_reward():
    assert all(response.endswith(" .") for _, response in WORLD.texts(50, np.random.default_rng(0)))
    assert WORLD.reward("the film :", " the plot was superb .") == 2.0


def test_every_review_is_within_the_vocabulary_and_the_length():
    words = language.words()
    assert len(set(words)) == len(words) == 52
    written = draws(3000)
    used = set().union(*written, *(prompt.split() for _, prompt in language.prompts(12)))
    assert used == set(words[3:])  # all but padding, EOS and the unknown word
    assert 4 <= min(map(len, written)) <= max(map(len, written)) < language.LONGEST


def test_the_probabilities_of_every_symbol_add_up():
    for rules in language.GRAMMAR.values():
        assert sum(chance for chance, _ in rules) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("review", "value"),
    [
        ("the plot was superb .", 2.0),
        ("the plot was not superb .", -1.4),
        ("the plot is very awful .", -3.0),
        ("i never hated it .", 1.6),
        ("i liked it and the cast is hardly weak .", 0.8 + 0.18),
        ("i liked it but the cast is quite bad , the music was fine .", 0.8 - 1.5 * 0.75 + 0.3),
        ("not but good", 1.5),  # a modifier ends with its clause
        ("very very good", 1.5),  # and does not pile up
        ("", 0.0),
    ],
)
def test_the_gold_reward(review, value):
    assert language.reward(review.split()) == pytest.approx(value)


def test_the_gold_reward_is_centred_and_spreads_over_two_nats():
    gold = np.array([language.reward(review) for review in draws(4000)])
    assert abs(gold.mean()) < 0.15
    assert 1.9 < gold.std() < 2.4


# ---- reviews of films, as people wrote them --------------------------------------------------------------------------


def test_the_weights_of_the_classifier_are_the_log_ratios_of_naive_bayes():
    texts = ["good film", "a good good plot", "bad film", "a bad plot"] * 10
    made = sentiment.train(texts, [1, 1, 0, 0] * 10, piece=3)
    # Seven of eight reviews of ten fives hold each; of the features held often enough, counts + 1 over their sum.
    held = [(text, label) for i, (text, label) in enumerate(zip(texts, [1, 1, 0, 0] * 10, strict=True)) if i % 5]
    kept = sorted(made.weights)
    counts = np.array(
        [[sum(f in sentiment.features(t.split()) for t, y in held if y == label) + 1 for f in kept] for label in (0, 1)]
    )
    want = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
    np.testing.assert_allclose([made.weights[name] for name in kept], want, atol=1e-12)
    assert made.weights["good"] > 1 > 0.2 > abs(made.weights["film"]) and made.weights["bad"] < -1
    assert made.log_odds("good") == made.scale * made.weights["good"] and made.log_odds("never seen") == 0


def test_the_scale_makes_log_odds_of_scores():
    rng = np.random.default_rng(0)
    score = rng.normal(0, 4, 20_000)
    label = (rng.random(20_000) < 1 / (1 + np.exp(-0.37 * score))).astype(float)
    assert sentiment.fit(score, label) == pytest.approx(0.37, abs=0.02)


def test_reviews_are_read_from_the_folder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(imdb.FOLDER, str(tmp_path))
    with pytest.raises(ValueError, match="there is no train.jsonl.gz; expected train.jsonl.gz and test.jsonl.gz"):
        imdb.reviews("train")


@pytest.mark.check
def test_the_classifier_is_right_on_six_of_seven_held_out_reviews_and_knows_what_it_knows(shared_data, monkeypatch):
    monkeypatch.setenv(imdb.FOLDER, str(shared_data / "imdb"))
    made, held_out = imdb.classifier(), imdb.reviews("test")
    assert np.mean([(made.score(text) > 0) == label for text, label in held_out]) > 0.86
    begun = [(made.log_odds(" ".join(text.split(" ")[:28])), label) for text, label in held_out]
    odds, label = np.array(begun).T
    chance = 1 / (1 + np.exp(-odds))
    sure = chance > 0.9
    assert 1.2 < odds.std() < 2.5 and abs(label[sure].mean() - chance[sure].mean()) < 0.05
