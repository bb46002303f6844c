"""The objectives without a reference, for labelled responses and for games as their papers print them, in 120 digits.

Shares no code with the package. A response is a list of token log-odds, as in `papers`; functions of a batch take one
list per quantity and return the loss of every example.
"""

from mpmath import mp, mpf
from papers import log_sigmoid, logp, mass

Response = list[float]


def sigmoid(x: mpf) -> mpf:
    return 1 / (1 + mp.exp(-x))


def mean(y: Response) -> mpf:
    return logp(y) / len(y)


def probability(y: Response) -> mpf:
    return mass(y)[0]


def smoothed(z: mpf, epsilon: float) -> mpf:
    return -(1 - mpf(epsilon)) * log_sigmoid(z) - mpf(epsilon) * log_sigmoid(-z)


# ---- supervised ------------------------------------------------------------------------------------------------------


def coverage(p: mpf, n: float) -> tuple[mpf, mpf]:
    """(-log pass@N, its slope by -log p) of a response of probability p."""
    n, miss = mpf(n), (1 - p) ** mpf(n)
    return -mp.log(1 - miss), n * p * (1 - p) ** (n - 1) / (1 - miss)


def nll(ys: list[Response], reduction: str) -> list[mpf]:
    """Each example's share of the likelihood term, whose mean is the batch's."""
    tokens = mpf(sum(len(y) for y in ys))
    divisors = {
        "token_mean": [tokens / len(ys)] * len(ys),
        "sequence_mean": [mpf(len(y)) for y in ys],
        "sequence_sum": [mpf(1)] * len(ys),
    }[reduction]
    return [-logp(y) / d for y, d in zip(ys, divisors, strict=True)]


# ---- without a reference ---------------------------------------------------------------------------------------------


def power(y: Response, alpha: float) -> mpf:
    return (1 - mp.exp(-mpf(alpha) * mean(y))) / mpf(alpha) if alpha else mean(y)


def alphapo(w: Response, l: Response, alpha: float, beta: float, gamma: float, epsilon: float = 0.0) -> mpf:  # noqa: E741
    return smoothed(mpf(beta) * (power(w, alpha) - power(l, alpha)) - mpf(gamma), epsilon)


def contrast(w: Response, l: Response, beta: float, epsilon: float = 0.0) -> mpf:  # noqa: E741
    return smoothed(mpf(beta) * (logp(w) - logp(l)), epsilon)


def hinge(w: Response, l: Response, slope: float, margin: float) -> mpf:  # noqa: E741
    return max(mpf(0), mpf(margin) - mpf(slope) * (logp(w) - logp(l)))


def square_of_means(w: Response, l: Response, tau: float) -> mpf:  # noqa: E741
    return (mean(w) - mean(l) - 1 / (2 * mpf(tau))) ** 2


def inverse_perplexity(w: Response, l: Response) -> mpf:  # noqa: E741
    roots = (probability(y) ** (mpf(1) / len(y)) for y in (w, l))
    return -next(roots) + next(roots)


def hinge_of_means(w: Response, l: Response, margin: float) -> mpf:  # noqa: E741
    return max(mpf(0), mpf(margin) - (mean(w) - mean(l)))


def least_sure(y: Response) -> mpf:
    """The mean log-prob of the tokens that are less likely than the mean of all."""
    p = [probability([d]) for d in y]
    below = [mp.log(x) for x in p if x < mp.fsum(p) / len(p)]
    return mp.fsum(below) / len(below) if below else None


def confpo(w: Response, l: Response, beta: float, gamma: float) -> mpf:  # noqa: E741
    chosen, rejected = least_sure(w), least_sure(l)
    if chosen is None or rejected is None:
        return mpf(0)
    return -log_sigmoid(mpf(beta) * (chosen - rejected) - mpf(gamma))


def odds(y: Response) -> mpf:
    p = mp.exp(mean(y))
    return p / (1 - p)


def odds_ratio(w: Response, l: Response, weight: float) -> mpf:  # noqa: E741
    return -mpf(weight) * log_sigmoid(mp.log(odds(w) / odds(l)))


# ---- labelled responses ----------------------------------------------------------------------------------------------


def ratios(ys: list[Response], refs: list[Response]) -> list[mpf]:
    return [logp(y) - logp(ref) for y, ref in zip(ys, refs, strict=True)]


def kto(rho: list[mpf], mismatched: list[mpf], good: list[bool], beta: float, weights: tuple[float, float]) -> list:
    z = max(mpf(0), mp.fsum(mismatched) / len(mismatched))
    value = [
        weights[0] * sigmoid(beta * (r - z)) if g else weights[1] * sigmoid(beta * (z - r)) for r, g in zip(rho, good)
    ]
    return [mpf(weights[0] if g else weights[1]) - v for v, g in zip(value, good, strict=True)]


def bco(rewards: list[mpf], good: list[bool], delta: mpf) -> list[mpf]:
    return [-log_sigmoid(r - delta if g else delta - r) for r, g in zip(rewards, good, strict=True)]


def bco_shift(history: list[tuple[mpf, bool]]) -> mpf:
    """The paper's: half the sum of the two classes' mean rewards, over all that was seen."""
    return (
        mp.fsum(
            mp.fsum(r for r, g in history if g is side) / sum(g is side for _, g in history) for side in (True, False)
        )
        / 2
    )


# ---- rewards of single responses -------------------------------------------------------------------------------------


def qrpo(ys: list[Response], refs: list[Response], quantiles: list[float], beta: float) -> mpf:
    b = mpf(beta)
    z = mp.quad(lambda q: mp.exp(q / b), [0, mpf("0.5"), mpf("0.9"), 1])
    errors = [b * r - (mpf(q) - b * mp.log(z)) for r, q in zip(ratios(ys, refs), quantiles, strict=True)]
    return mp.fsum(e**2 for e in errors) / len(errors)


def a_star(y: Response, ref: Response, scores: list[float], beta: float, value_beta: float) -> mpf:
    """`scores` are that of the policy's sample, then those of the reference's."""
    b = mpf(value_beta)
    value = b * mp.log(mp.fsum(mp.exp(mpf(s) / b) for s in scores[1:]) / (len(scores) - 1))
    return (mpf(beta) * (logp(y) - logp(ref)) - (mpf(scores[0]) - value)) ** 2


# ---- games -----------------------------------------------------------------------------------------------------------


def inpo(pair: list[Response], ref: list[Response], previous: list[Response], eta: float, tau: float) -> mpf:
    eta, tau = mpf(eta), mpf(tau)
    delta, of_ref, of_previous = (logp(w) - logp(l) for w, l in (pair, ref, previous))  # noqa: E741
    return (delta - tau / eta * of_ref - (eta - tau) / eta * of_previous - 1 / (2 * eta)) ** 2


def xpo(pair: list[Response], ref: list[Response], won: bool, beta: float, alpha: float, square: bool) -> mpf:
    """`pair` is the policy's sample and the reference's; `won` whether the first beat the second."""
    first, second = ratios(pair, ref)
    h = first - second if won else second - first
    preference = (h - 1 / (2 * mpf(beta))) ** 2 if square else -log_sigmoid(mpf(beta) * h)
    return preference + mpf(alpha) * logp(pair[1])


def hypo(pair: list[Response], ref: list[Response], beta: float, weight: float) -> mpf:
    """`pair` is the preferred response, the other one, and samples of the policy."""
    rho = ratios(pair, ref)
    own = rho[2:]
    term = mpf(0)
    for i, y in enumerate(pair[2:]):
        others = [r for j, r in enumerate(own) if j != i]
        term += (own[i] - (mp.fsum(others) / len(others) if others else 0)) * logp(y) / len(own)
    return -log_sigmoid(mpf(beta) * (rho[0] - rho[1])) + mpf(weight) * term
