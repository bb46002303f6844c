"""The objectives as their papers print them, in 120 digits, from token log-odds. Shares no code with the package.

A response is a list of token log-odds d = log p - log(1 - p), as Python floats.
"""

import functools
from dataclasses import dataclass

from mpmath import mp, mpf

mp.dps = 120  # 1 - p of a token with d = 200 is 1e-87


@functools.lru_cache
def _mass(y: tuple[float, ...]) -> tuple[mpf, mpf]:
    kept, left = mpf(1), mpf(0)
    for d in y:
        gone = 1 / (1 + mp.exp(mpf(d)))
        left += kept * gone
        kept *= 1 - gone
    return kept, left


def mass(y: list[float]) -> tuple[mpf, mpf]:
    """(P(y), P(not y)); the second as the sum over the position where another response leaves y."""
    return _mass(tuple(y))


def logp(y: list[float]) -> mpf:
    return mp.log(mass(y)[0])


@dataclass
class Pair:
    """The chosen and the rejected under the policy and under the reference."""

    chosen: list[float]
    rejected: list[float]
    ref_chosen: list[float]
    ref_rejected: list[float]

    @property
    def margin(self) -> mpf:
        return (logp(self.chosen) - logp(self.ref_chosen)) - (logp(self.rejected) - logp(self.ref_rejected))


def log_sigmoid(x: mpf) -> mpf:
    return -mp.log1p(mp.exp(-x))


def dpo(pair: Pair, beta: float) -> mpf:
    return -log_sigmoid(mpf(beta) * pair.margin)


def conservative(pair: Pair, beta: float, epsilon: float) -> mpf:
    z, e = mpf(beta) * pair.margin, mpf(epsilon)
    return -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z)


def robust(pair: Pair, beta: float, epsilon: float) -> mpf:
    z, e = mpf(beta) * pair.margin, mpf(epsilon)
    return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e)


def ipo(pair: Pair, tau: float, by_length: bool) -> mpf:
    n_w, n_l = (len(pair.chosen), len(pair.rejected)) if by_length else (1, 1)
    chosen = (logp(pair.chosen) - logp(pair.ref_chosen)) / n_w
    rejected = (logp(pair.rejected) - logp(pair.ref_rejected)) / n_l
    return (chosen - rejected - 1 / (2 * mpf(tau))) ** 2


def hinge(pair: Pair, beta: float) -> mpf:
    return max(mpf(0), 1 - mpf(beta) * pair.margin)


def beta_gamma_margin(pair: Pair, beta: float, gamma: float) -> mpf:
    policy = logp(pair.chosen) - logp(pair.rejected)
    return mpf(beta) * policy - mpf(gamma) * (logp(pair.ref_chosen) - logp(pair.ref_rejected))


def beta_gamma(pair: Pair, beta: float, gamma: float) -> mpf:
    return -log_sigmoid(beta_gamma_margin(pair, beta, gamma))


def beta_gamma_hinge(pair: Pair, beta: float, gamma: float, delta: float = 0.0) -> mpf:
    return max(mpf(0), mpf(delta) - beta_gamma_margin(pair, beta, gamma))


def divergence(target: list[mpf], model: list[mpf]) -> mpf:
    return mp.fsum(t * mp.log(t / m) for t, m in zip(target, model, strict=True) if t > 0)


def rooted(masses: list[mpf], root: mpf) -> list[mpf]:
    powers = [m ** (1 / mpf(root)) for m in masses]
    return [p / mp.fsum(powers) for p in powers]


def _roots(pair: Pair, temperature: float | None) -> tuple[mpf, mpf]:
    lengths = (len(pair.chosen), len(pair.rejected))
    return tuple(mpf(n) if temperature is None else mpf(temperature) for n in lengths)


def shift(pair: Pair, alpha: float, temperature: float | None = None) -> mpf:
    """Mean of the four terms of two binary divergences; temperature None means each response's length."""
    (p_w, c_w), (p_l, c_l) = mass(pair.ref_chosen), mass(pair.ref_rejected)
    a, (n_w, n_l) = mpf(alpha), _roots(pair, temperature)
    targets = [p_w + a * p_l, c_w - a * p_l], [(1 - a) * p_l, c_l + a * p_l]
    chosen = divergence(rooted(targets[0], n_w), rooted(list(mass(pair.chosen)), n_w))
    rejected = divergence(rooted(targets[1], n_l), rooted(list(mass(pair.rejected)), n_l))
    return (chosen + rejected) / 4


def pooled(pair: Pair, alpha: float, temperature: float | None = None) -> mpf:
    """The same with the two masses pooled and shared out by alpha."""
    p_w, p_l = mass(pair.ref_chosen)[0], mass(pair.ref_rejected)[0]
    terms = []
    shares = (mpf(alpha), 1 - mpf(alpha))
    for y, n, share in zip((pair.chosen, pair.rejected), _roots(pair, temperature), shares, strict=True):
        target = share * (p_w + p_l)
        terms.append(divergence(rooted([target, 1 - target], n), rooted(list(mass(y)), n)))
    return mp.fsum(terms) / 4


def mse(pair: Pair, alpha: float, temperature: float | None = None) -> mpf:
    """Mean of the four squared differences of rooted log-probs; a target above one is one, and of zero no target."""
    (p_w, c_w), (p_l, c_l) = mass(pair.ref_chosen), mass(pair.ref_rejected)
    a, (n_w, n_l) = mpf(alpha), _roots(pair, temperature)
    targets = [min(mpf(1), p_w + a * p_l), max(mpf(0), c_w - a * p_l)], [(1 - a) * p_l, c_l + a * p_l]
    squares = [
        (mp.log(p) - mp.log(q)) ** 2
        for response, target, n in zip((pair.chosen, pair.rejected), targets, (n_w, n_l), strict=True)
        for p, q in zip(rooted(list(mass(response)), n), rooted(list(target), n), strict=True)
        if q > 0
    ]
    return mp.fsum(squares) / 4


def listing(pair: Pair) -> mpf:
    """Half the divergence for the chosen, half the negative log of the rooted complement for the rejected."""
    (p_w, c_w), (p_l, _) = mass(pair.ref_chosen), mass(pair.ref_rejected)
    n_w, n_l = len(pair.chosen), len(pair.rejected)
    chosen = divergence(rooted([p_w + p_l, c_w - p_l], n_w), rooted(list(mass(pair.chosen)), n_w))
    return (chosen - mp.log(rooted(list(mass(pair.rejected)), n_l)[1])) / 2


def joint(pair: Pair, alpha: float) -> mpf:
    """Equations 6 and 7, no root, less the target's entropy."""
    (p_w, c_w), (p_l, _) = mass(pair.ref_chosen), mass(pair.ref_rejected)
    (m_w, k_w), (m_l, _) = mass(pair.chosen), mass(pair.rejected)
    pool = p_w + p_l
    return divergence([alpha * pool, (1 - mpf(alpha)) * pool, c_w - p_l], [m_w, m_l, k_w - m_l])


def joint_rooted(pair: Pair, alpha: float, temperature: float | None = None) -> mpf:
    """The same with the odds of each response against everything else taken to the power 1 / N."""
    (p_w, c_w), (p_l, _) = mass(pair.ref_chosen), mass(pair.ref_rejected)
    (m_w, k_w), (m_l, _) = mass(pair.chosen), mass(pair.rejected)
    n_w, n_l = _roots(pair, temperature)
    pool, a = p_w + p_l, mpf(alpha)

    def shares(w: mpf, l: mpf, rest: mpf) -> list[mpf]:  # noqa: E741
        odds = [(w / rest) ** (1 / n_w), (l / rest) ** (1 / n_l), mpf(1)]
        return [o / mp.fsum(odds) for o in odds]

    return divergence(shares(a * pool, (1 - a) * pool, c_w - p_l), shares(m_w, m_l, k_w - m_l))
