"""Win rates and their errors: closed forms by hand, AlpacaEval's own package, Arena-Hard's rule a second time."""

import importlib.util
import itertools
import json
import pathlib
import statistics

import numpy as np
import pytest

from slpojax import calibration, leaderboards, winrate

GOLDENS = pathlib.Path(__file__).parent / "goldens"
ALPACA = json.loads((GOLDENS / "alpaca_eval.json").read_text())


def made_by():
    """The module that made the golden numbers."""
    spec = importlib.util.spec_from_file_location("goldens_of_alpaca_eval", GOLDENS / "alpaca_eval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_errors_of_separate_prompts_are_those_of_a_mean():
    values = np.random.default_rng(0).uniform(size=50)
    found = winrate.mean(values, np.arange(50))
    assert found.error == pytest.approx(statistics.stdev(values) / 50**0.5, rel=1e-12)
    assert found[0] == pytest.approx(statistics.fmean(values), rel=1e-12) and found[2:] == (50, 50)


def test_errors_are_clustered_by_prompt_as_in_millers_equation_4():
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, 12, 60)
    values = rng.normal(size=12)[prompt] + 0.3 * rng.normal(size=60)
    center = sum(values) / 60
    across = sum(
        (values[i] - center) * (values[j] - center)
        for i, j in itertools.permutations(range(60), 2)
        if prompt[i] == prompt[j]
    )
    expected = (statistics.variance(values) / 60 + across / 60**2) ** 0.5
    assert winrate.mean(values, prompt).error == pytest.approx(expected, rel=1e-12)
    assert winrate.mean(values, prompt * 7 + 5) == winrate.mean(values, prompt), "numbers of prompts are names"
    assert np.isnan(winrate.mean(values[:3], np.zeros(3, int)).error), "one prompt says nothing of others"
    assert winrate.mean(np.zeros(0), np.zeros(0, int)).size == 0


def test_copies_of_the_same_answer_make_nothing_surer():
    values = np.random.default_rng(2).uniform(size=40)
    once = winrate.mean(values, np.arange(40)).error
    many = winrate.mean(np.repeat(values, 5), np.repeat(np.arange(40), 5)).error
    # The sum over clusters divides by n, the variance by n - 1: they agree up to (n - 1) / n.
    assert many == pytest.approx(once * (39 / 40) ** 0.5, rel=2e-3)


def test_a_difference_is_paired_over_the_prompts_that_both_have():
    rng = np.random.default_rng(3)
    hard = rng.normal(size=30)
    a, b = hard + 0.1 * rng.normal(size=30), hard + 0.1 * rng.normal(size=30)
    found = winrate.paired((np.repeat(a, 3), np.repeat(np.arange(30), 3)), (b[5:], np.arange(5, 30)))
    differences = [x - y for x, y in zip(a[5:], b[5:], strict=True)]
    assert found.value == pytest.approx(statistics.fmean(differences), rel=1e-12)
    assert found.error == pytest.approx(statistics.stdev(differences) / 25**0.5, rel=1e-12) and found.size == 25
    covariance = np.cov(a[5:], b[5:])
    assert found.error == pytest.approx(((covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / 25) ** 0.5)


def test_the_error_of_a_ratio_is_that_of_the_jackknife():
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 9, 400).astype(float)
    values = 0.3 * sizes + rng.normal(size=400)
    found = winrate.ratio(values, sizes, np.arange(400))
    left_out = (values.sum() - values) / (sizes.sum() - sizes)
    jackknife = (399 / 400 * ((left_out - left_out.mean()) ** 2).sum()) ** 0.5
    assert found.value == pytest.approx(values.sum() / sizes.sum(), rel=1e-12)
    assert found.error == pytest.approx(jackknife, rel=0.01)


def test_the_bootstrap_draws_prompts():
    rng = np.random.default_rng(5)
    values, prompt = np.repeat(rng.normal(size=200), 4), np.repeat(np.arange(200), 4)
    low, high = winrate.bootstrap(values, prompt, draws=4000)
    error = winrate.mean(values, prompt).error
    assert (high - low) / 2 == pytest.approx(1.645 * error, rel=0.05), "90% of a normal distribution"
    assert winrate.bootstrap(values, prompt, draws=50) == winrate.bootstrap(values, prompt, draws=50)
    assert winrate.bootstrap(np.ones(4), np.arange(4)) == (1.0, 1.0)


def test_arena_hards_rule_equals_a_second_computation():
    import pandas

    rng = np.random.default_rng(6)
    games = [tuple(pair) for pair in rng.choice([*winrate.VERDICTS], (300, 2)).tolist()]
    values, question = winrate.arena_hard(games)
    table = pandas.DataFrame({"uid": range(300), "games": games})

    def of_second(verdict):  # letters, not a table: who stands on the open side of < or > wins
        times = 3 if ">>" in verdict or "<<" in verdict else 1
        if "=" in verdict:
            return [0.5]
        better = verdict[0] if ">" in verdict else verdict[-1]
        return [1.0 if better == "A" else 0.0] * times

    table["scores"] = table.games.map(lambda both: of_second(both[1]) + [1 - s for s in of_second(both[0])])
    battles = table.explode("scores")
    assert len(values) == len(battles)
    assert values.mean() == pytest.approx(battles.scores.astype(float).mean(), rel=1e-12)
    by_question = battles.groupby("uid").scores.mean().to_numpy(float)
    np.testing.assert_allclose(winrate.by_prompt(values, question)[0], by_question, rtol=1e-12)


@pytest.mark.parametrize("name", ALPACA["cases"])
def test_win_rates_are_those_of_alpaca_eval(name):
    pytest.importorskip("sklearn")
    golden, made = ALPACA["cases"][name], made_by().annotations(name)
    win = np.array([one["preference"] - 1 for one in made])
    ours, theirs = (np.array([len(one[key]) for one in made]) for key in ("output_2", "output_1"))
    if golden["folds"] != made_by().folds(len(win)):  # the penalty that they choose, too: 0.1 points of a rate
        pytest.skip("this processor sorts ties otherwise, so cross-validation has other folds than the golden numbers")
    found = winrate.length_controlled(win, ours, theirs, np.arange(len(win)))
    row = leaderboards.leaderboard_row(win, ours, found)
    for key in ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate"):
        assert row[key] == pytest.approx(golden[key], abs=1e-9), key
    assert row["length_controlled_winrate"] == pytest.approx(golden["length_controlled_winrate"], abs=1e-6)
    np.testing.assert_allclose([found.length, found.model], golden["weights"], atol=1e-6)


def test_length_control_minimises_the_penalised_loss_of_its_definition():
    pytest.importorskip("sklearn")
    from scipy import optimize

    made = made_by().annotations("long answers win")
    win = np.array([one["preference"] - 1 for one in made])
    ours, theirs = (np.array([len(one[key]) for one in made], float) for key in ("output_2", "output_1"))
    x = np.tanh((theirs - ours) / np.std(theirs - ours, ddof=1))
    found = winrate.length_controlled(win, ours.astype(int), theirs.astype(int), np.arange(len(win)))

    def loss(w):
        z = w[0] * x + w[1]
        fit = np.sum(win * np.logaddexp(0, -z) + (1 - win) * np.logaddexp(0, z))
        return np.abs(w).sum() + found.penalty * fit

    best = optimize.minimize(loss, [0.1, 0.1], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    # liblinear stops early: within 1e-3 of the optimum, that is 0.02 percentage points.
    np.testing.assert_allclose([found.length, found.model], best, atol=1e-3)
    assert found.rate == pytest.approx(1 / (1 + np.exp(-found.model)), rel=1e-12)


def test_the_error_of_a_length_controlled_rate_is_near_that_of_the_raw_one_where_length_says_nothing():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(7)
    prompt = np.repeat(np.arange(100), 3)
    win = (rng.uniform(size=100)[prompt] < 0.6).astype(float)  # all three of a prompt go the same way
    ours, theirs = rng.integers(10, 200, (2, 300))
    found = winrate.length_controlled(win, ours, theirs, prompt)
    assert found.error == pytest.approx(winrate.mean(win, prompt).error, rel=0.06)
    assert found.rate == pytest.approx(win.mean(), abs=0.02)


def test_what_cannot_be_length_controlled_is_refused():
    lengths, prompt, win = np.arange(12), np.arange(12), np.tile([1.0, 0.0], 6)
    with pytest.raises(ValueError, match="5 wins and 5 losses, got 3.5 of one of them"):
        winrate.length_controlled(np.r_[np.zeros(8), 0.5, np.ones(3)], lengths, lengths[::-1].copy(), prompt)
    with pytest.raises(ValueError, match="same number of characters: no length to control"):
        winrate.length_controlled(win, lengths, lengths + 3, prompt)


def test_without_scikit_learn_it_says_which_extra_has_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"pip install 'slpojax\[evaluate\]'"):
        winrate.length_controlled(np.tile([1.0, 0.0], 6), np.arange(12), np.arange(12)[::-1].copy(), np.arange(12))


def test_calibration_equals_a_loop():
    margin = np.random.default_rng(8).normal(0.5, 1.5, 300)
    found = calibration.reliability(margin, bins=7)
    bins = [[] for _ in range(7)]
    for m in margin:
        p = 1 / (1 + np.exp(-m))
        bins[min(6, int((max(p, 1 - p) - 0.5) / (0.5 / 7)))].append((max(p, 1 - p), float(m > 0)))
    expected = sum(len(b) / 300 * abs(np.mean([c for c, _ in b]) - np.mean([r for _, r in b])) for b in bins if b)
    assert found.ece == pytest.approx(expected, rel=1e-12) and found.pairs.tolist() == [len(b) for b in bins]
    assert found.log_loss == pytest.approx(np.mean([-np.log(1 / (1 + np.exp(-m))) for m in margin]), rel=1e-12)


def test_a_reward_that_is_a_probability_is_calibrated_and_one_twice_as_large_is_not():
    rng = np.random.default_rng(9)
    margin = rng.normal(0, 2, 40_000)
    held = np.where(rng.uniform(size=40_000) < 1 / (1 + np.exp(-margin)), margin, -margin)  # as the labels came out
    assert calibration.reliability(held).ece < 0.01 < 0.05 < calibration.reliability(2 * held).ece


def test_auc_counts_pairs():
    rng = np.random.default_rng(10)
    a, b = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b]
    assert calibration.auc(a, b) == pytest.approx(statistics.fmean(pairs), rel=1e-12)
    assert np.isnan(calibration.auc(a, np.zeros(0)))


def test_distinct_n_grams():
    words = [["a", "b", "a"], ["b", "a"], []]
    assert calibration.distinct(words, 1) == pytest.approx(2 / 5)
    assert calibration.distinct(words, 2) == pytest.approx(2 / 3), "ab, ba; ba"
    assert np.isnan(calibration.distinct(words, 4)), "no text is so long"
