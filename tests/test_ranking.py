"""From comparisons to strengths: schedules, and Bradley-Terry against closed forms, an optimiser and choix."""

import itertools

import numpy as np
import pytest
from scipy import optimize

from slpojax import ranking


def play(word, prefers, count):
    """Play a schedule; return the comparisons."""
    schedule, played = ranking.SCHEDULES[word](count), []
    pairs = next(schedule, None)
    while pairs:
        won = [prefers(a, b) for a, b in pairs]
        played += [(a, b, w) for (a, b), w in zip(pairs, won, strict=True)]
        try:
            pairs = schedule.send(won)
        except StopIteration:
            pairs = None
    return played


def test_duels_send_the_winner_against_the_next():
    value = [3, 1, 5, 5, 2]
    played = play("duels", lambda a, b: 0.5 + 0.5 * ((value[a] > value[b]) - (value[a] < value[b])), 5)
    assert played == [(0, 1, 1.0), (0, 2, 0.0), (2, 3, 0.5), (2, 4, 1.0)]  # in a tie the winner so far stays


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_number_of_comparisons(count):
    assert len(play("duels", lambda a, b: 1.0, count)) == count - 1
    pairs = [duel[:2] for duel in play("all_pairs", lambda a, b: 1.0, count)]
    assert pairs == list(itertools.combinations(range(count), 2))


@pytest.mark.parametrize("count", range(2, 8))
def test_the_winner_of_the_duels_is_the_strongest(count):
    for said in itertools.product((0.0, 1.0), repeat=count - 1):
        answers = iter(said)
        played = play("duels", lambda a, b, answers=answers: next(answers), count)
        best = 0
        for a, b, won in played:
            best = a if won else b
        found = ranking.strengths(count, played)
        assert found[best] > np.delete(found, best).max()


def test_the_winner_of_many_duels_that_won_but_the_last_is_the_strongest():
    played = [(0, other, 1.0) for other in range(1, 200)] + [(0, 200, 0.0)]
    found = ranking.strengths(201, played)
    assert np.argmax(found) == 200


def test_two_answers_in_closed_form():
    """The gap d of two answers that met once solves w - sigmoid(d) = precision * d / 2."""
    for won in (0.0, 0.3, 0.5, 0.75, 1.0):
        gap = optimize.brentq(lambda d, w=won: w - 1 / (1 + np.exp(-d)) - ranking.PRECISION * d / 2, -50, 50)
        np.testing.assert_allclose(ranking.strengths(2, [(0, 1, won)]), [gap / 2, -gap / 2], atol=1e-6)


def test_without_a_prior_two_answers_have_the_log_odds_of_their_record():
    won = [(0, 1, 1.0)] * 7 + [(1, 0, 1.0)] * 2 + [(0, 1, 0.5)]
    found = ranking.strengths(2, won, precision=1e-9)
    assert found[0] - found[1] == pytest.approx(np.log(7.5 / 2.5), abs=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_strengths_are_where_the_likelihood_is_largest(seed):
    rng = np.random.default_rng(seed)
    pairs = list(itertools.combinations(range(5), 2))
    played = [(int(a), int(b), float(rng.choice([0, 0.25, 0.5, 1]))) for a, b in rng.permutation(pairs)[:8]]

    def loss(s):
        each = [w * np.log1p(np.exp(s[b] - s[a])) + (1 - w) * np.log1p(np.exp(s[a] - s[b])) for a, b, w in played]
        return sum(each) + ranking.PRECISION / 2 * np.sum(s**2)

    best = optimize.minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(ranking.strengths(5, played), best, atol=2e-5)


def test_strengths_equal_choix():
    choix = pytest.importorskip("choix", reason="the witness; pip install choix")
    rng = np.random.default_rng(0)
    won = [tuple(map(int, rng.choice(6, 2, replace=False))) for _ in range(12)]
    theirs = choix.opt_pairwise(6, won, alpha=ranking.PRECISION / 2, method="BFGS", tol=1e-9)
    ours = ranking.strengths(6, [(a, b, 1.0) for a, b in won])
    np.testing.assert_allclose(ours, theirs - theirs.mean(), atol=2e-5)


def test_where_all_have_met_strengths_are_in_the_order_of_wins():
    rng = np.random.default_rng(1)
    played = [(a, b, float(rng.integers(2))) for a, b in itertools.combinations(range(7), 2)]
    wins = np.zeros(7)
    for a, b, won in played:
        wins[a] += won
        wins[b] += 1 - won
    found = ranking.strengths(7, played)
    for a, b in itertools.combinations(range(7), 2):
        assert np.sign(found[a] - found[b]) == np.sign(wins[a] - wins[b])


def test_order_and_names_do_not_count():
    played = [(0, 1, 1.0), (2, 1, 0.5), (0, 3, 0.25)]
    found = ranking.strengths(5, played)
    np.testing.assert_array_equal(found, ranking.strengths(5, played[::-1]))
    np.testing.assert_array_equal(found, ranking.strengths(5, [(b, a, 1 - w) for a, b, w in played]))
    to = [4, 2, 0, 3, 1]
    np.testing.assert_array_equal(ranking.strengths(5, [(to[a], to[b], w) for a, b, w in played])[to], found)
    assert found[4] == 0 and abs(found.sum()) < 1e-5, "an answer that never played is in the middle"


@pytest.mark.parametrize("duel", [(0, 0, 1.0), (0, 3, 1.0), (-1, 0, 1.0), (0, 1, 1.5), (0, 1, float("nan"))])
def test_what_is_no_comparison_is_refused(duel):
    with pytest.raises(ValueError, match="comparison 1: got .* expected two different answers of 0 to 2"):
        ranking.strengths(3, [(0, 1, 1.0), duel])
