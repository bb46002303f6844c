"""A classifier of sentiment that is trained in seconds and is the same everywhere: naive Bayes on words and word pairs.

Of a text the features are the words and the pairs of neighbours in it, each once. A feature weighs the log of how much
more often favourable reviews hold it; the sum of the weights is scaled by one number, fitted on the first words of
reviews that the weights have not seen, so that it is the log-odds of a favourable review there. (Wang and Manning,
Baselines and Bigrams, 2012, multinomial naive Bayes with indicators of bigrams.) Knows texts and labels; knows no file
and no model.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEWEST = 5  # reviews that hold a feature for it to count

_WORD = re.compile(r"[a-z0-9']+|[.,!?]")
_BREAK = re.compile(r"<br\s*/?>")
_NEWTON = 30  # steps that fit one number
_FITTED = 5  # one review in so many is left out of the weights, for the scale


class Classifier(NamedTuple):
    """What it knows.

    Attributes:
        weights: feature -> log of how much more often favourable reviews hold it.
        scale: of the sum of weights, to log-odds on short pieces.
    """

    weights: dict[str, float]
    scale: float

    def log_odds(self, text: str) -> float:
        """Return the log-odds that a piece of a review is favourable."""
        return self.scale * self.score(text)

    def score(self, text: str) -> float:
        """Return the sum of the weights of what a text holds."""
        return math.fsum(self.weights.get(feature, 0.0) for feature in features(words(text)))


def words(text: str) -> list[str]:
    """Return the words and stops of a text, lower-case, without line breaks of HTML.

    Example:
        >>> words("It's <br />NOT bad!")
        ["it's", 'not', 'bad', '!']
    """
    return _WORD.findall(_BREAK.sub(" ", text.lower()))


def features(of: Sequence[str]) -> set[str]:
    """Return the words and the pairs of neighbours, each once.

    Example:
        >>> sorted(features(["not", "bad", "not"]))
        ['bad', 'bad not', 'not', 'not bad']
    """
    return {*of, *(f"{a} {b}" for a, b in zip(of, of[1:], strict=False))}


def train(texts: Sequence[str], labels: Sequence[int], *, piece: int) -> Classifier:
    """Train on labelled reviews.

    Args:
        texts: reviews.
        labels: 1 favourable, 0 not.
        piece: words of the beginnings whose log-odds it is to give.
    """
    held = [collections.Counter[str](), collections.Counter[str]()]
    for i, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if i % _FITTED:
            held[label].update(features(words(text)))
    kept = [name for name in held[0] | held[1] if held[0][name] + held[1][name] >= FEWEST]
    totals = [math.log(sum(counts[name] + 1 for name in kept)) for counts in held]
    weights = {name: math.log(held[1][name] + 1) - totals[1] - math.log(held[0][name] + 1) + totals[0] for name in kept}
    raw = Classifier(weights, 1.0)
    score = [raw.score(" ".join(text.split(" ")[:piece])) for text in texts[::_FITTED]]
    return raw._replace(scale=fit(np.array(score, np.float64), np.array(labels[::_FITTED], np.float64)))


def fit(score: np.ndarray, label: np.ndarray) -> float:
    """Return the number by which scores become log-odds, by maximum likelihood.

    Args:
        score: [N].
        label: [N], 1 or 0.
    """
    scale = 0.1
    for _ in range(_NEWTON):
        chance = 1 / (1 + np.exp(-np.clip(scale * score, -50, 50)))
        slope, bend = float(score @ (label - chance)), float((score**2) @ (chance * (1 - chance)))
        scale += slope / (bend + 1e-9)
    return round(scale, 6)
