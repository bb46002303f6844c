"""Worlds: how one is found, and the world of reviews: its language and its reward."""

import sys

import numpy as np
import pytest

from slpojax import worlds
from slpojax.worlds.reviews import WORLD, language


def draws(count):
    rng = np.random.default_rng(0)
    return [language.write(topic, rng) for topic, _ in language.prompts(count)]


def test_a_world_is_found_by_the_name_of_its_module():
    assert worlds.find("reviews") == ("slpojax.worlds.reviews", WORLD)
    assert worlds.find("slpojax.worlds.reviews") == ("slpojax.worlds.reviews", WORLD)


@pytest.mark.parametrize("name", ["review", "no.such.module", "reviews.", ".reviews", "a world"])
def test_an_unknown_world_is_refused_and_those_there_are_are_listed(name):
    with pytest.raises(ValueError, match="unknown config.world .*there are reviews, or any importable"):
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
