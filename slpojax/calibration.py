"""How good rewards and answers are: calibration and AUC of rewards, and how varied texts are.

Knows NumPy arrays and texts; knows no file, no model and no judge.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from slpojax.base import Float, Int


class Reliability(NamedTuple):
    """How often preferences are right that are held with some confidence.

    Attributes:
        edges: of the bins, from 1/2 to 1.
        confidence: [n] the mean confidence of each bin; NaN in one that is empty.
        accuracy: [n] the share that is right.
        pairs: [n] preferences.
        ece: the expected calibration error: the mean of |accuracy - confidence| over the bins, by their count.
        log_loss: the mean of -log(probability of the preference that the data states), in nats; log 2 knows nothing.
    """

    edges: Float[np.ndarray, " m"]
    confidence: Float[np.ndarray, " n"]
    accuracy: Float[np.ndarray, " n"]
    pairs: Int[np.ndarray, " n"]
    ece: float
    log_loss: float


def reliability(margin: Float[np.ndarray, " n"], *, bins: int = 10) -> Reliability:
    """Return how well a reward's sigmoid is a probability of preference.

    A reward that is m higher for the chosen answer than for the rejected one says that the first one is preferred with
    probability sigmoid(m) (Bradley-Terry). Its confidence is sigmoid(|m|), and it is right where m > 0.

    Args:
        margin: reward of the chosen answer minus that of the rejected one, in nats.
        bins: of equal width between 1/2 and 1.

    Example:
        >>> r = reliability(np.array([2.0, 2.0, -2.0, 0.0]), bins=2)
        >>> r.pairs.tolist(), r.accuracy.round(3).tolist(), round(r.ece, 3)
        ([1, 3], [0.5, 0.667], 0.161)

    Reference:
        Chuan Guo, Geoff Pleiss, Yu Sun, Kilian Q. Weinberger, On Calibration of Modern Neural Networks, 2017, arXiv
        1706.04599, equation 3.
    """
    margin = np.asarray(margin, np.float64)
    sure = np.exp(-np.logaddexp(0.0, -np.abs(margin)))
    right = 0.5 * (1 + np.sign(margin))
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (np.bincount(place, weights=x, minlength=bins) / count for x in (sure, right))
    gap = np.where(count, np.abs(accuracy - confidence), 0.0)
    ece = float(gap @ count / max(len(margin), 1))
    return Reliability(edges, confidence, accuracy, count, ece, float(np.mean(np.logaddexp(0.0, -margin))))


def auc(positive: Float[np.ndarray, " n"], negative: Float[np.ndarray, " m"]) -> float:
    """Return the probability that a positive number is above a negative one, both drawn at random; a tie is one half.

    Args:
        positive: say, rewards of chosen answers.
        negative: of rejected ones, also of other prompts.

    Example:
        >>> auc(np.array([1.0, 3.0]), np.array([0.0, 1.0]))
        0.875

    Reference:
        Henry Mann, Donald Whitney, On a Test of Whether one of Two Random Variables is Stochastically Larger than the
        Other, 1947: U / (n m).
    """
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below, upto = (np.searchsorted(ordered, positive, side=side) for side in ("left", "right"))
    return float((below + upto).sum() / (2.0 * len(positive) * len(negative)))


def distinct(sequences: Iterable[Sequence[Hashable]], n: int) -> float:
    """Return the share of different n-grams among all n-grams of all sequences; it falls with their number and length.

    Args:
        sequences: words or token ids of each text.
        n: words of an n-gram.

    Example:
        >>> distinct(["a b a b".split(), "a b".split()], 2)
        0.5

    Reference:
        Jiwei Li, Michel Galley, Chris Brockett, Jianfeng Gao, Bill Dolan, A Diversity-Promoting Objective Function for
        Neural Conversation Models, 2016, arXiv 1510.03055, distinct-n.
    """
    grams = [tuple(words[i : i + n]) for words in sequences for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")
