"""Win rates and how sure they are: means with errors by prompt, paired differences, length control, Arena-Hard's rule.

Knows NumPy arrays in float64, of comparisons and the prompts that they belong to; knows no file, no model and no judge.
Several answers to one prompt are one cluster, as are the two orders in which a judge saw a pair.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from slpojax.base import Float, Int

LEAST, MOST, STEPS, FOLDS, SEED = 1e-4, 1e4, 10, 5, 123  # of AlpacaEval's choice of a penalty

# The verdict of a game between A and B -> (what A wins, how often it counts), in both ways to write it.
VERDICTS = {
    "A>>B": (1.0, 3),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, 3),
    "B<<A": (1.0, 3),
    "B<A": (1.0, 1),
    "B=A": (0.5, 1),
    "A<B": (0.0, 1),
    "A<<B": (0.0, 3),
}


class Estimate(NamedTuple):
    """A mean, and how sure it is.

    Attributes:
        value: the mean.
        error: its standard error; NaN where there are fewer than two prompts.
        size: how many numbers it is of.
        prompts: how many prompts they belong to.
    """

    value: float
    error: float
    size: int
    prompts: int


class Tally(NamedTuple):
    """How comparisons went.

    Attributes:
        rate: (wins + ties / 2) / all, 0 to 1.
        wins: comparisons that the model won.
        ties: that nobody won.
        losses: that the other one won.
    """

    rate: Estimate
    wins: int
    ties: int
    losses: int


class LengthControlled(NamedTuple):
    """A win rate as it would be with answers as long as the baseline's.

    Attributes:
        rate: 0 to 1.
        error: its standard error, clustered by prompt; AlpacaEval's own is 0 for this variant, whose prediction is the
            same for every prompt.
        length: the weight of tanh((baseline's length - model's) / std); negative where a judge likes long answers.
        model: the weight of the model itself, in nats: `rate` is its sigmoid.
        penalty: sklearn's C, which cross-validation chose.
    """

    rate: float
    error: float
    length: float
    model: float
    penalty: float


def mean(values: Float[np.ndarray, " n"], prompt: Int[np.ndarray, " n"]) -> Estimate:
    r"""Return a mean whose standard error allows for numbers of one prompt being alike.

    .. math:: \mathrm{SE}^2 = \frac{\mathrm{Var}(s)}{n}
              + \frac{1}{n^2} \sum_c \sum_{i \in c} \sum_{j \in c, j \ne i} (s_i - \bar s)(s_j - \bar s)

    Args:
        values: the numbers.
        prompt: the number of the prompt that each belongs to.

    Example:
        >>> mean(np.array([1.0, 0.0, 1.0, 1.0]), np.arange(4))
        Estimate(value=0.75, error=0.25, size=4, prompts=4)
        >>> round(mean(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1])).error, 4)
        0.3819

    Reference:
        Evan Miller, Adding Error Bars to Evals: A Statistical Approach to Language Model Evaluations, 2024, arXiv
        2411.00640, equations 1 and 4. Var divides by n - 1.
    """
    n, (_, cluster) = len(values), np.unique(prompt, return_inverse=True)
    if not n:
        return Estimate(np.nan, np.nan, 0, 0)
    center, clusters = float(np.mean(values, dtype=np.float64)), int(cluster.max()) + 1
    if clusters < 2:
        return Estimate(center, np.nan, n, clusters)
    rest = np.asarray(values, np.float64) - center
    within = np.bincount(cluster, weights=rest)
    variance = (rest @ rest) / (n - 1) / n + (within @ within - rest @ rest) / n**2
    return Estimate(center, float(np.sqrt(max(float(variance), 0.0))), n, clusters)


def ratio(values: Float[np.ndarray, " n"], sizes: Float[np.ndarray, " n"], prompt: Int[np.ndarray, " n"]) -> Estimate:
    """Return the sum of values over the sum of sizes, say nats a token; its error is that of a linear approximation.

    Args:
        values: the numbers.
        sizes: of what each is the sum.
        prompt: the number of the prompt of each.

    Example:
        >>> ratio(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]), np.arange(3))
        Estimate(value=2.0, error=0.0, size=3, prompts=3)
    """
    if not np.sum(sizes) > 0:
        return Estimate(np.nan, np.nan, len(values), len(np.unique(prompt)))
    whole = float(np.sum(values, dtype=np.float64) / np.sum(sizes, dtype=np.float64))
    return mean((values - whole * sizes) / np.mean(sizes), prompt)._replace(value=whole)


def by_prompt(
    values: Float[np.ndarray, " n"], prompt: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """Return the mean of every prompt's numbers, and the prompts in order."""
    prompts, cluster = np.unique(prompt, return_inverse=True)
    return np.bincount(cluster, weights=values, minlength=len(prompts)) / np.bincount(cluster), prompts


def paired(
    first: tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]],
    second: tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"]],
) -> Estimate:
    """Return the mean difference of two models over the prompts that both have, with the error of paired differences.

    A hard prompt is hard for both: the error of the difference is below that of two separate sets of prompts.

    Args:
        first: its numbers, and the prompt of each; several of a prompt count as their mean.
        second: the same of the other model.

    Example:
        >>> paired((np.array([1.0, 0.5, 1.0]), np.arange(3)), (np.array([0.5, 0.0, 1.0]), np.arange(3))).value
        0.3333333333333333

    Reference:
        Evan Miller, Adding Error Bars to Evals, 2024, arXiv 2411.00640, section 4.2, paired differences.
    """
    (a, prompts), (b, others) = by_prompt(*first), by_prompt(*second)
    both, at, where = np.intersect1d(prompts, others, return_indices=True)
    return mean(a[at] - b[where], both)


def tally(win: Float[np.ndarray, " n"], prompt: Int[np.ndarray, " n"]) -> Tally:
    """Return the win rate of comparisons.

    Args:
        win: 1 where the model won, 0 where the other one did, 1/2 for a tie; a judge's probability in between.
        prompt: the number of the prompt of each.
    """
    return Tally(mean(win, prompt), int((win > 0.5).sum()), int((win == 0.5).sum()), int((win < 0.5).sum()))


def bootstrap(
    values: Float[np.ndarray, " n"],
    prompt: Int[np.ndarray, " n"],
    *,
    level: float = 0.9,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval that holds the mean of `level` of the samples of as many prompts, drawn with replacement.

    Args:
        values: the numbers.
        prompt: the number of the prompt of each; one of its own where each is drawn alone, as in Arena-Hard.
        level: 0 to 1.
        draws: samples.
        seed: of the draws.
    """
    prompts, cluster = np.unique(prompt, return_inverse=True)
    total, count = np.bincount(cluster, weights=values), np.bincount(cluster)
    rng, means = np.random.default_rng(seed), np.empty(draws)
    for i in range(draws):
        drawn = rng.integers(len(prompts), size=len(prompts))
        means[i] = total[drawn].sum() / count[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def arena_hard(games: Sequence[tuple[str, str]]) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return what the model wins of Arena-Hard's games, and the number of the question of each.

    The baseline is A in the first game and B in the second one. A verdict with >> counts as three games.

    Args:
        games: the two verdicts of every question, as in `VERDICTS`.

    Example:
        >>> arena_hard([("B>>A", "A=B")])
        (array([1. , 1. , 1. , 0.5]), array([0, 0, 0, 0]))

    Raises:
        KeyError: a verdict is none.
    """
    values: list[float] = []
    question: list[int] = []
    for i, (first, second) in enumerate(games):
        (as_a, many), (wins, often) = VERDICTS[first], VERDICTS[second]
        values += [1 - as_a] * many + [wins] * often
        question += [i] * (many + often)
    return np.array(values, np.float64), np.array(question, np.int64)


def length_controlled(
    win: Float[np.ndarray, " n"],
    length: Int[np.ndarray, " n"],
    baseline: Int[np.ndarray, " n"],
    prompt: Int[np.ndarray, " n"],
) -> LengthControlled:
    r"""Return the win rate that a logistic regression predicts for answers as long as the baseline's.

    .. math:: P(\text{win}) = \sigma\Big(\theta + \phi \tanh\frac{l_b - l_m}{\mathrm{std}(l_b - l_m)}\Big),
              \quad \text{rate} = \sigma(\theta)

    This is AlpacaEval's `length_controlled_minimal`, which needs no weights fitted elsewhere: an L1 penalty, chosen out
    of ten by five-fold cross-validation of the log-loss, and the same solver (liblinear, through scikit-learn), since a
    tighter one would differ in the third digit of a percentage.

    Args:
        win: what the model won of each comparison, 0 to 1.
        length: of its answers, in characters.
        baseline: of the baseline's answers.
        prompt: the number of the prompt of each, for the error; the fit does not know of prompts.

    Raises:
        ValueError: fewer than five wins or losses, or lengths that all differ by the same, so there is nothing to fit.
        ImportError: scikit-learn is not installed.

    Reference:
        Yann Dubois, Balázs Galambosi, Percy Liang, Tatsunori B. Hashimoto, Length-Controlled AlpacaEval: A Simple Way
        to Debias Automatic Evaluators, 2024, arXiv 2404.04475. The error is the sandwich estimator of an unpenalised
        fit, clustered by prompt (Kung-Yee Liang, Scott Zeger, 1986).
    """
    longer = np.asarray(baseline, np.float64) - length
    fewer = min(np.sum(win), np.sum(1 - win))
    if fewer < FOLDS:
        raise ValueError(f"length control needs {FOLDS} wins and {FOLDS} losses, got {fewer:g} of one of them")
    spread = longer.std(ddof=1)
    if not spread > 0:
        raise ValueError(
            "all answers differ from the baseline's by the same number of characters: no length to control"
        )
    features = np.stack([np.tanh(longer / spread), np.ones(len(win))], axis=1)
    weights, penalty = _logistic(features, np.asarray(win, np.float64))
    rate = _sigmoid(weights[1])
    covariance = _sandwich(features, win, weights, prompt)
    error = rate * (1 - rate) * float(np.sqrt(covariance[1, 1]))
    return LengthControlled(float(rate), float(error), float(weights[0]), float(weights[1]), penalty)


def _logistic(features: np.ndarray, win: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the weights of a logistic regression on shares of wins, and the penalty that cross-validation chose.

    A comparison is two rows, one that is won and one that is lost, with its share as weight; both are in one fold.
    """
    linear, split = (_sklearn(name) for name in ("linear_model", "model_selection"))
    n = len(win)
    twice, label = np.concatenate([features, features]), np.repeat([1, 0], n)
    weight, group = np.concatenate([win, 1 - win]), np.tile(np.arange(n), 2)

    def fit(rows: Any, penalty: float, random: np.random.RandomState) -> Any:
        model = linear.LogisticRegression(
            C=penalty, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=random
        )
        return model.fit(twice[rows], label[rows], sample_weight=weight[rows])

    penalties = np.logspace(np.log10(LEAST), np.log10(MOST), STEPS)
    folds = list(split.GroupKFold(n_splits=FOLDS).split(twice, label, group))
    score = np.zeros((len(folds), len(penalties)))
    for i, (kept, left) in enumerate(folds):
        random = np.random.RandomState(SEED)  # one stream for all penalties of a fold, as scikit-learn's own path has
        for j, penalty in enumerate(penalties):
            p = np.clip(fit(kept, penalty, random).predict_proba(twice[left])[:, 1], 1e-15, 1 - 1e-15)
            share = win[group[left]]
            score[i, j] = np.mean(share * np.log(p) + (1 - share) * np.log(1 - p))
    best = float(penalties[score.mean(axis=0).argmax()])
    return fit(slice(None), best, np.random.RandomState(SEED)).coef_[0], best


def _sandwich(features: np.ndarray, win: np.ndarray, weights: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """Return the covariance of logistic weights, clustered by prompt."""
    p = _sigmoid(features @ weights)
    bread = np.linalg.pinv((features * (p * (1 - p))[:, None]).T @ features)
    _, cluster = np.unique(prompt, return_inverse=True)
    slope = np.stack([np.bincount(cluster, weights=column) for column in (features * (win - p)[:, None]).T], axis=1)
    return bread @ (slope.T @ slope) @ bread


def _sigmoid(x: Any) -> Any:
    return np.exp(-np.logaddexp(0.0, -x))


def _sklearn(name: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError as error:
        raise ImportError("length control needs scikit-learn: `pip install 'slpojax[evaluate]'`") from error
