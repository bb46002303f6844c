"""Reward against KL: interpolation, errors and the best possible against closed forms, and the page that shows them."""

import json
import math
import re

import numpy as np
import pytest

from slpojax.tradeoff import NOWHERE, Path, best_at, best_possible, over_seeds, page, paired, picture, results, within


def path(*points):
    kl, reward = np.array(points, np.float64).T
    return Path(kl, reward)


def test_a_run_whose_gain_is_proportional_to_the_root_of_its_kl_is_interpolated_exactly():
    kl = np.array([0.0, 0.09, 0.5, 1.7, 4.0])
    straight = Path(kl, 0.8 * np.sqrt(kl))
    for budget in (0.0, 0.01, 0.3, 0.5, 1.0, 3.99, 4.0):
        assert within(straight, budget) == pytest.approx(0.8 * math.sqrt(budget), abs=1e-12)


def test_the_largest_gain_with_at_most_the_budget_counts_wherever_it_is():
    there_and_back = path((0, 0), (1, 1), (4, 0.5), (1, 0.7), (2.25, 0.9))
    assert within(there_and_back, 0.25) == 0.5
    assert within(there_and_back, 4) == 1.0, "less KL for more reward was there before"
    assert within(path((0, 0), (4, -1), (1, 2)), 2.25) == 2.0
    assert within(path((-1e-3, 0.0), (1, 1)), 0.25) == 0.5, "an estimate below 0 is 0"
    assert math.isnan(within(path((1, 1), (2, 2)), 0.5))


def test_means_and_errors_over_seeds_are_numpy_s():
    values = [0.3, 0.9, 1.4, 0.1]
    found = over_seeds(values)
    assert found == pytest.approx((np.mean(values), np.std(values, ddof=1), np.std(values, ddof=1) / 2, 4))
    assert math.isnan(over_seeds([1.0]).std) and over_seeds([1.0]).mean == 1.0
    assert math.isnan(over_seeds([]).mean) and over_seeds([]).seeds == 0
    # A difference that every seed shares has no error, however far the seeds lie apart.
    assert paired({0: 1.0, 1: 5.0, 2: 9.0}, {2: 8.5, 1: 4.5, 0: 0.5}) == pytest.approx((0.5, 0.0, 0.0, 3))


def test_a_method_is_worth_its_best_strength_as_far_as_all_seeds_of_one_come():
    strengths = {
        "far": {0: path((0, 0), (4, 2.0)), 1: path((0, 0), (2.25, 1.5))},
        "near": {0: path((0, 0), (1, 1.5)), 1: path((0, 0), (1, 1.1))},
    }
    assert best_at(strengths, 1.0) == ("near", {0: 1.5, 1: 1.1})
    assert best_at(strengths, 2.25).strength == "far", "1.5 and 1.5 in the mean, where near stays at 1.3"
    assert best_at(strengths, 2.3) == NOWHERE, "seed 1 was never seen there"
    assert best_at({}, 0.5) == NOWHERE


def test_the_best_possible_of_a_normal_reward_is_the_root_of_twice_the_kl():
    quantiles = (np.arange(200_000) + 0.5) / 200_000
    from statistics import NormalDist

    normal = np.array([NormalDist(3.0, 2.5).inv_cdf(float(q)) for q in quantiles[::20]])
    budgets = np.array([0.0, 0.1, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(best_possible([normal], budgets), np.sqrt(2 * budgets), rtol=0.02)


def test_the_best_possible_of_a_coin_is_that_of_all_its_tilts():
    """A reward of 0 or 1, one in four: the tilt to a share q costs the binary divergence of q from 1/4."""
    coin = np.repeat([0.0, 1.0], [3000, 1000])
    shares = np.array([0.3, 0.5, 0.8])
    kl = shares * np.log(shares / 0.25) + (1 - shares) * np.log((1 - shares) / 0.75)
    np.testing.assert_allclose(best_possible([coin], kl), (shares - 0.25) / math.sqrt(0.25 * 0.75), rtol=1e-4)
    rare = best_possible([np.repeat([0.0, 1.0], [3990, 10])], [0.001, 6.0])
    assert rare[0] > 0 and math.isnan(rare[1]), "ten answers are too few to say what a policy of them costs"


def test_prompts_are_tilted_by_one_temperature_and_count_alike():
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(0, 2, 4000), rng.normal(5, 0.5, 4000)
    together = best_possible([wide, narrow], [0.5])[0]
    spread = np.concatenate([wide, narrow]).std()
    # E[r] gains eta var, KL = eta^2 var / 2, both meaned over prompts: gain = sqrt(2 KL mean(var)).
    assert together == pytest.approx(math.sqrt(2 * 0.5 * (4 + 0.25) / 2) / spread, rel=0.05)


def write(folder, seed, strength, end):
    """A run that walks straight to its end, with an evaluation every 10 steps."""
    folder.mkdir(parents=True)
    rows = [{"step": 5, "split": "train", "loss": 1.0}]
    for i in range(5):
        share = i / 4
        rows.append(
            {
                "step": 10 * i,
                "split": "eval",
                "world/kl": end * share**2,
                "world/gold_lift": (strength + 0.1 * seed) * share,
            }
        )
        rows[-1] |= {
            "logps/chosen": -10 - share,
            "logps/rejected": -11 - 2 * share,
            "rewards/accuracies": 0.5 + 0.2 * share,
        }
        rows[-1] |= {"world/finished": 1.0, "world/gold_reward": share}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("grid"), []
    for name, gain in (("dpo", 1.0), ("mine", 2.0)):
        for strength in (0.5, 1.0):
            for seed in (0, 1, 2):
                at = folder / f"{name}-{strength}-{seed}"
                write(at, seed, gain * strength, 4.0 * strength)
                found.append(results.read(at, method=name, strength=str(strength), seed=seed, digest="d"))
    return results.collect(
        found, {"dpo": ("DPO", "objective.beta"), "mine": ("Mine", "learning_rate"), "none": ("", "")}
    )


def test_runs_are_sorted_by_method_strength_and_seed(methods):
    assert [method.label for method in methods] == ["DPO", "Mine"], "what has no run is left out"
    assert [*methods[0].runs] == ["0.5", "1.0"] and [*methods[0].runs["1.0"]] == [0, 1, 2]
    (kl, gain), (_, spread) = results.mean_path([*methods[0].runs["1.0"].values()])
    np.testing.assert_allclose(kl, 4 * np.linspace(0, 1, 5) ** 2)
    np.testing.assert_allclose(gain, 1.1 * np.linspace(0, 1, 5))
    np.testing.assert_allclose(spread, 0.1 * np.linspace(0, 1, 5), atol=1e-12)


def test_the_table_says_what_each_method_is_worth_and_how_far_it_is_from_the_first(methods):
    text = page.table(methods, (1.0, 3.0, 9.0), 3)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    # At a KL of 1 the strength 0.5 has gone sqrt(1/2) of its way: (0.5 + 0.1 s) / sqrt(2); 1.0 half: (1 + 0.1 s) / 2.
    assert rows[2][:4] == ["DPO", "0.55 ± 0.05 (1.0)", "0.95 ± 0.09 (1.0)", "-"] and rows[2][4:] == ["", "", ""]
    assert rows[3][1] == "1.05 ± 0.05 (1.0)" and rows[3][4] == "+0.50 ± 0.00" and rows[3][6] == "-"


def test_the_ends_and_the_numbers_are_those_of_the_runs(methods):
    row = next(line for line in page.ends(methods).splitlines() if line.startswith("| Mine | learning_rate 1.0"))
    assert (
        "| 4.00 ± 0.00 | +2.10 ± 0.10 | 2.10 ± 0.10 | -1.0 ± 0.0 | -2.0 ± 0.0 | 0.700 ± 0.000 | 1.000 ± 0.000 | 3 |"
        in row
    )
    numbers = json.loads(json.dumps(page.numbers(methods, (1.0, 9.0)), allow_nan=False))
    assert len(numbers["dpo"]["runs"]) == 6 and numbers["dpo"]["best"]["9"]["mean"] is None
    assert numbers["mine"]["best"]["1"]["seeds"] == pytest.approx({"0": 1.0, "1": 1.05, "2": 1.1})


def test_numbers_are_read_back(methods, tmp_path):
    curve = np.array([0.0, 1.0, 4.0]), np.array([0.0, 1.4, np.nan])
    numbers = {"commit": "c", "seconds": 2.5, "bounds": page.bounds({2: curve})}
    (tmp_path / "a.json").write_text(json.dumps(numbers | {"methods": page.numbers(methods, (1.0, 9.0))}))
    known = results.known(tmp_path / "a.json")
    assert (known.commit, known.seconds) == ("c", 2.5)
    np.testing.assert_array_equal(known.bounds[2], curve)
    again = results.collect(known.runs, {method.name: (method.label, method.key) for method in methods})
    assert page.table(again, (1.0, 3.0, 9.0), 3) == page.table(methods, (1.0, 3.0, 9.0), 3)
    assert page.ends(again) == page.ends(methods)
    for text in ("{}", "[", '{"commit": "", "seconds": 1, "bounds": {}, "methods": {"dpo": 3}}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match="known=.*a.json: no numbers of a frontier"):
            results.known(tmp_path / "a.json")


def test_one_seed_has_no_spread_and_no_error(methods):
    one = methods[0]._replace(runs={"1.0": {0: methods[0].runs["1.0"][0]}})
    assert "| DPO | 0.50 (1.0) | - |" in page.table([one], (1.0, 9.0), 1)
    assert np.isnan(results.mean_path([*one.runs["1.0"].values()])[1]).all()


def test_a_run_outside_of_a_world_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "split": "eval", "loss": 1.0}) + "\n")
    with pytest.raises(ValueError, match="0 evaluations with world/kl and world/gold_lift, expected two or more"):
        results.read(tmp_path, method="dpo", strength="1", seed=0, digest="d")


def test_the_picture_has_a_curve_a_method_and_a_panel_each(methods, tmp_path):
    pytest.importorskip("matplotlib")
    budgets = np.linspace(0, 4, 20)
    files = [tmp_path / f"frontier.{kind}" for kind in ("png", "svg")]
    picture.draw(methods, files, title="Reward against KL", bound=(budgets, np.sqrt(2 * budgets)))
    text = files[1].read_text()
    labels = re.findall(r"<!-- (.*?) -->", text)
    assert files[0].read_bytes()[:4] == b"\x89PNG"
    for words in (
        "DPO",
        "Mine",
        "best possible (reference, tilted)",
        "Mine, learning_rate",
        "DPO, beta",
        "Reward against KL",
    ):
        assert words in labels, words
