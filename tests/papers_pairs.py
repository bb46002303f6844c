"""The pairwise objectives with a reference as their papers print them, in 120 digits; those of a batch in NumPy.

Shares no code with the package. One pair is a `papers.Pair` of token log-odds; scores come as two numbers.
"""

import itertools

import numpy as np
from mpmath import mp, mpf
from papers import Pair, conservative, divergence, dpo, hinge, log_sigmoid, logp, robust


def sigmoid(x: mpf) -> mpf:
    return 1 / (1 + mp.exp(-x))


def bernoulli(p: mpf, q: mpf) -> mpf:
    return divergence([p, 1 - p], [q, 1 - q])


def ratios(pair: Pair) -> tuple[mpf, mpf]:
    return logp(pair.chosen) - logp(pair.ref_chosen), logp(pair.rejected) - logp(pair.ref_rejected)


# ---- the margin ------------------------------------------------------------------------------------------------------


def exo(pair: Pair, beta: float, epsilon: float) -> mpf:
    return bernoulli(sigmoid(mpf(beta) * pair.margin), 1 - mpf(epsilon))


def per_token(pair: Pair, beta: float) -> mpf:
    chosen, rejected = ratios(pair)
    return -log_sigmoid(mpf(beta) * (chosen / len(pair.chosen) - rejected / len(pair.rejected)))


def discopop(pair: Pair, beta: float, tau: float) -> mpf:
    z = mpf(beta) * pair.margin
    m = sigmoid(z / mpf(tau))
    return (1 - m) * mp.log(1 + mp.exp(-z)) + m * mp.exp(-z)


def dpop(pair: Pair, beta: float, weight: float) -> mpf:
    lost = max(mpf(0), logp(pair.ref_chosen) - logp(pair.chosen))
    return -log_sigmoid(mpf(beta) * (pair.margin - mpf(weight) * lost))


def odpo(pair: Pair, scores: tuple[float, float], beta: float, alpha: float) -> mpf:
    return -log_sigmoid(mpf(beta) * pair.margin - mpf(alpha) * mp.log(mpf(scores[0]) - mpf(scores[1])))


def by_length(pair: Pair, beta: float, alpha: float) -> mpf:
    return -log_sigmoid(mpf(beta) * pair.margin + mpf(alpha) * (len(pair.chosen) - len(pair.rejected)))


def desensitised(pair: Pair, beta: float, alpha: float) -> mpf:
    common = min(len(pair.chosen), len(pair.rejected))
    head, tail = (
        Pair(*(y[part] for y in (pair.chosen, pair.rejected, pair.ref_chosen, pair.ref_rejected)))
        for part in (slice(common), slice(common, None))
    )
    return -log_sigmoid(mpf(beta) * (head.margin + mpf(alpha) * tail.margin))


def soft(pair: Pair, scores: tuple[float, float], beta: float, eta: float) -> mpf:
    z, p = mpf(beta) * pair.margin, sigmoid(mpf(eta) * (mpf(scores[0]) - mpf(scores[1])))
    return -p * log_sigmoid(z) - (1 - p) * log_sigmoid(-z)


def hybrid(pair: Pair, beta: float) -> mpf:
    reference = max(mpf(0), logp(pair.ref_chosen) - logp(pair.ref_rejected))
    return -log_sigmoid(mpf(beta) * (logp(pair.chosen) - logp(pair.rejected) - reference))


def reward_aware(pair: Pair, scores: tuple[float, float], beta: float, eta: float, distance: str) -> mpf:
    z, wanted = mpf(beta) * pair.margin, mpf(eta) * (mpf(scores[0]) - mpf(scores[1]))
    if distance == "squared":
        return (z - wanted) ** 2
    p, q = sigmoid(z), sigmoid(wanted)
    return bernoulli(p, q) if distance == "forward" else bernoulli(q, p)


def rejected_counts_less(pair: Pair, beta: float, weight: float) -> mpf:
    chosen, rejected = ratios(pair)
    return -log_sigmoid(mpf(beta) * (chosen - mpf(weight) * rejected))


def ternary(z: mpf, alpha: float) -> tuple[mpf, mpf, mpf]:
    """The probabilities that the chosen wins, that the rejected does, and of a tie, for a difference z of the rewards.

    By the strengths e^r of the two and a threshold e^alpha that the stronger must exceed to win.
    """
    phi, chosen, rejected = mp.exp(mpf(alpha)), mp.exp(z), mpf(1)
    won, lost = chosen / (chosen + phi * rejected), rejected / (rejected + phi * chosen)
    tie = chosen * rejected * (phi**2 - 1) / ((chosen + phi * rejected) * (rejected + phi * chosen))
    return won, lost, tie


def todo(pair: Pair, scores: tuple[float, float], beta: float, alpha: float) -> mpf:
    won, _, tie = ternary(mpf(beta) * pair.margin, alpha)
    return -mp.log(tie if scores[0] == scores[1] else won)


def on_tokens(pair: Pair, beta: float, chosen: tuple[int, ...], rejected: tuple[int, ...]) -> mpf:
    """DPO on the tokens at these places alone."""
    here, ref = ([y[t] for t in chosen] for y in (pair.chosen, pair.ref_chosen))
    other, other_ref = ([y[t] for t in rejected] for y in (pair.rejected, pair.ref_rejected))
    return -log_sigmoid(mpf(beta) * (logp(here) - logp(ref) - logp(other) + logp(other_ref)))


# ---- anchored --------------------------------------------------------------------------------------------------------


def nca(pair: Pair, beta: float) -> mpf:
    chosen, rejected = (mpf(beta) * r for r in ratios(pair))
    return -log_sigmoid(chosen) - log_sigmoid(-chosen) / 2 - log_sigmoid(-rejected) / 2


def bco(pair: Pair, beta: float, delta: mpf) -> mpf:
    chosen, rejected = (mpf(beta) * r for r in ratios(pair))
    return -log_sigmoid(chosen - delta) - log_sigmoid(-(rejected - delta))


def sppo(pair: Pair, wins: tuple[float, float], beta: float) -> mpf:
    return mp.fsum((r - (mpf(win) - mpf("0.5")) / mpf(beta)) ** 2 for r, win in zip(ratios(pair), wins, strict=True))


def apo_zero(pair: Pair, beta: float) -> mpf:
    chosen, rejected = (mpf(beta) * r for r in ratios(pair))
    return 1 - sigmoid(chosen) + sigmoid(rejected)


def apo_down(pair: Pair, beta: float) -> mpf:
    chosen, rejected = (mpf(beta) * r for r in ratios(pair))
    return sigmoid(chosen) + 1 - sigmoid(chosen - rejected)


# ---- f-DPO: the derivative of f is taken by differences --------------------------------------------------------------


def forward(u: mpf) -> mpf:
    return -mp.log(u)


def reverse(u: mpf) -> mpf:
    return u * mp.log(u)


def jensen_shannon(u: mpf) -> mpf:
    return u * mp.log(u) - (1 + u) * mp.log((1 + u) / 2)


def power(alpha: float):
    a = mpf(alpha)
    return lambda u: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1))


def with_chi_squared(u: mpf) -> mpf:
    return (u - 1) ** 2 / 2 + u * mp.log(u)


def chi_po(pair: Pair, beta: float, bound: float) -> mpf:
    """With the derivative of the divergence by differences, and the margin clipped to twice the bound."""
    chosen, rejected = (mp.diff(with_chi_squared, mp.exp(r)) for r in ratios(pair))
    z = mpf(beta) * (chosen - rejected)
    return -log_sigmoid(max(-2 * mpf(bound), min(2 * mpf(bound), z)))


class Valued(Pair):
    """A pair with two given values in the place of its log-ratios."""

    values: tuple[mpf, mpf]

    @property
    def margin(self) -> mpf:
        return self.values[0] - self.values[1]


PER_TOKEN = ("dpo.ipo", "margin.sigmoid_norm")
LOSSES = {
    "dpo.sigmoid": dpo,
    "dpo.conservative": lambda pair, beta: conservative(pair, beta, 0.1),
    "dpo.robust": lambda pair, beta: robust(pair, beta, 0.1),
    "dpo.ipo": lambda pair, beta: (pair.margin - 1 / (2 * mpf(beta))) ** 2,
    "dpo.hinge": hinge,
    "margin.sigmoid_norm": dpo,
    "margin.exo_pair": lambda pair, beta: exo(pair, beta, 1e-3),
    "margin.discopop": lambda pair, beta: discopop(pair, beta, 0.05),
}


def f_dpo(pair: Pair, f, beta: float, loss: str) -> mpf:
    valued = Valued(pair.chosen, pair.rejected, pair.ref_chosen, pair.ref_rejected)
    lengths = (len(pair.chosen), len(pair.rejected)) if loss in PER_TOKEN else (1, 1)
    slopes = (mp.diff(f, mp.exp(r)) - mp.diff(f, mpf(1)) for r in ratios(pair))
    valued.values = tuple(slope / n for slope, n in zip(slopes, lengths, strict=True))
    return LOSSES[loss](valued, beta)


# ---- batches, in float64 ---------------------------------------------------------------------------------------------


def log1pexp(x):
    return np.logaddexp(0, x)


def aot(policy: np.ndarray, ref: np.ndarray, beta: float, epsilon: float) -> np.ndarray:
    """Losses in the order of rank, of the policy's and the reference's log P(y_w) - log P(y_l)."""
    z = beta * (np.sort(policy) - np.sort(ref))
    return (1 - epsilon) * log1pexp(-z) + epsilon * log1pexp(z)


def aot_unpaired(chosen: np.ndarray, rejected: np.ndarray, beta: float, epsilon: float) -> np.ndarray:
    return aot(chosen, rejected, beta, epsilon)


def beta_dpo(h: np.ndarray, kept: np.ndarray, state: tuple, beta: float, a: float, decay: float) -> tuple:
    """(loss of the batch, its beta, the new state)."""
    middle, width = (decay * old + (1 - decay) * x for old, x in zip(state, (h.mean(), h.std(ddof=1)), strict=True))
    used = max(1e-3, beta * (1 + a * (h[kept].mean() - middle)))
    return log1pexp(-used * h[kept]).mean(), used, (middle, width)


def alpha_dpo(lead: np.ndarray, gain: np.ndarray, state: tuple, beta: float, gamma: float, alpha: float) -> tuple:
    """(losses, the new state), of the differences of mean log-probs and of mean log-ratios."""
    middle, width = (0.9 * old + 0.1 * x for old, x in zip(state, (gain.mean(), gain.std(ddof=1)), strict=True))
    return log1pexp(-beta * (lead - (gamma / beta + alpha * (gain - middle) / width))), (middle, width)


def soft_minimum(losses: np.ndarray, scale: float) -> tuple[float, np.ndarray]:
    """(the loss of the batch, the weights of its examples)."""
    powers = np.exp(-losses / scale)
    return -scale * np.log(powers.mean()), powers / powers.mean()


def chance_of_being_drawn(weights: np.ndarray, count: int) -> np.ndarray:
    """Of each, where `count` are drawn one after the other, each by its weight among those left."""
    chance = np.zeros(len(weights))
    for drawn in itertools.permutations(range(len(weights)), count):
        left, p = weights.sum(), 1.0
        for i in drawn:
            p, left = p * weights[i] / left, left - weights[i]
        chance[list(drawn)] += p
    return chance
