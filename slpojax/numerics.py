"""Scalar functions that stay exact in float32 where the textbook forms cancel, overflow or divide by zero.

Knows real numbers; knows no sequence, no token and no objective. Every gradient is finite.
"""

import math

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Float, Scalar

_SERIES = tuple(1 / math.factorial(n) for n in range(8, 1, -1))  # of (exp(r) - 1 - r) / r^2, highest power first


def log(x: Scalar) -> Scalar:
    """Return log(x); log(0) is `ABSENT`, a limit that stays finite in traced code.

    Of a Python number it is one, in double precision, whatever the precision of the arrays that it meets.
    """
    if isinstance(x, float | int):
        return math.log(x) if x > 0 else ABSENT
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), ABSENT)


def log_odds_against(p: Scalar) -> Scalar:
    """Return log((1 - p) / p) of a probability between 0 and 1, in double precision of a Python number."""
    return math.log1p(-p) - math.log(p) if isinstance(p, float | int) else jnp.log1p(-p) - jnp.log(p)


def saturating(x: Float[Array, "*shape"], rate: Scalar, largest: Scalar) -> Float[Array, "*shape"]:
    r"""Return (1 - exp(-rate x)) / rate, which is x at the rate 0, with exponents held at `largest`.

    Example:
        >>> print(f"{saturating(jnp.float32(1.0), 0.0, 80.0):.4f} {saturating(jnp.float32(1.0), 0.5, 80.0):.4f}")
        1.0000 0.7869
    """
    still = rate == 0
    safe = jnp.where(still, 1.0, rate)
    return jnp.where(still, x, -jnp.expm1(jnp.minimum(-safe * x, largest)) / safe)


def bernoulli_kl(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return KL(sigmoid(a) || sigmoid(b)); its slopes are s(a) s(-a) (a - b) by a and s(b) - s(a) by b.

    Example:
        >>> print(f"{bernoulli_kl(jnp.float32(1.0), jnp.float32(0.0)):.6f}")
        0.110944
    """

    def term(a: Array, b: Array) -> Array:
        return jax.nn.sigmoid(a) * (jax.nn.log_sigmoid(a) - jax.nn.log_sigmoid(b))

    return term(a, b) + term(-a, -b)


def log1mexp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return log(1 - exp(x)) for x < 0, with full relative accuracy at both ends.

    From x = 0 upwards, where there is no value, the result is the logarithm of the smallest normal number (-87.3 in
    float32) and the gradient is zero.

    Example:
        >>> print(f"{log1mexp(jnp.float32(-1e-9)):.4f}")
        -20.7233

    Reference:
        Martin Maechler, Accurately Computing log(1 - exp(-|a|)), 2012, equation 7.
    """
    top = -float(jnp.finfo(x.dtype).tiny)
    x = jnp.where(x < top, x, top)
    near = x > -math.log(2)
    small = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    return jnp.where(near, small, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def logdiffexp(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return log(exp(a) - exp(b)) for a > b; from b = a upwards see `log1mexp`.

    Example:
        >>> print(f"{logdiffexp(jnp.float32(0.0), jnp.log(jnp.float32(0.25))):.4f}")
        -0.2877
    """
    return a + log1mexp(b - a)


def effective_sample_size(log_weights: Float[Array, "*lead K"]) -> Float[Array, "*lead"]:
    r"""Return how many equal weights are worth as much as w = softmax(log_weights).

    .. math:: 1 / \sum_k w_k^2

    K where all weights are equal, 1 where one takes all; `ABSENT` is a weight of zero.

    Example:
        >>> print(f"{effective_sample_size(jnp.log(jnp.float32([0.5, 0.25, 0.25]))):.4f}")
        2.6667
    """
    return jnp.exp(-jax.nn.logsumexp(2 * jax.nn.log_softmax(log_weights, axis=-1), axis=-1))


def _odds(logit: Float[Array, " C"], delta: Float[Array, " C"]) -> tuple[Array, Array, Array]:
    """Return (p, q, log p/q) of the classes and, last, of the rest."""
    logit, delta = (jnp.concatenate([x, jnp.zeros_like(x[:1])]) for x in (logit, delta))
    log_p, log_q = jax.nn.log_softmax(logit), jax.nn.log_softmax(logit - delta)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    # The difference of two log-softmaxes is exact only in absolute terms. Near the target, where all that counts is how
    # small the ratio is, it comes from the differences of the logits instead, measured from the likeliest class, whose
    # own ratio may be as small as what the others have.
    near = jnp.max(jnp.abs(delta)) < 1
    small = jnp.where(near, delta, 0.0)
    small = small - small[jnp.argmax(q)]
    ratio = small - jnp.log1p(jnp.sum(q * jnp.expm1(small)))
    return p, q, jnp.where(near, ratio, log_p - log_q)


@jax.custom_jvp
def categorical_kl(logit: Float[Array, " C"], delta: Float[Array, " C"]) -> Float[Array, ""]:
    r"""Return the divergence of a model from its target, for classes given by their log-odds against the rest.

    With p = softmax([logit, 0]) the model and q = softmax([logit - delta, 0]) the target,

    .. math:: KL(q || p) = \sum_i q_i \log(q_i / p_i) = \sum_i q_i (e^{r_i} - 1 - r_i), \quad r_i = \log(p_i / q_i).

    The terms of the second sum are all positive, so nothing cancels when the model is close to its target, and the
    derivative, p - q, is formed from exp(delta) - 1 rather than as a difference. One class is the Bernoulli case.
    The accuracy is that of `delta`, which the caller forms by subtracting early; `ABSENT` as the target's logarithm
    (delta = 1e30, q = 0) is exact too.

    Args:
        logit: the model's log-odds of each class against the rest.
        delta: how far each lies above the target's.

    Returns:
        The divergence in nats; zero where all of `delta` is.

    Example:
        >>> print(f"{categorical_kl(jnp.float32([-2.0]), jnp.float32([1e-4])):.5e}")
        5.24941e-10
    """
    p, q, ratio = _odds(logit, delta)
    near, far = jnp.abs(ratio) < 0.1, ratio > 1
    small = jnp.where(near, ratio, 0.0)
    series = small**2 * jnp.polyval(jnp.asarray(_SERIES, small.dtype), small)
    direct = jnp.expm1(jnp.where(far, 0.0, ratio)) - ratio
    return jnp.sum(jnp.where(far, p - q - q * ratio, q * jnp.where(near, series, direct)))


@categorical_kl.defjvp
def _categorical_kl_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    logit, delta = primals
    d_logit, d_delta = tangents
    p, q, ratio = _odds(logit, delta)
    kl = categorical_kl(logit, delta)
    # p_i - q_i = sum_j (p_i q_j - q_i p_j), and p_i q_j / (q_i p_j) = exp(delta_i - delta_j).
    step = jnp.concatenate([delta, jnp.zeros_like(delta[:1])])
    step = step[:, None] - step[None, :]
    swap = jnp.where(step < 0, q[:, None] * p[None, :], p[:, None] * q[None, :])
    gap = jnp.sum(swap * -jnp.sign(step) * jnp.expm1(-jnp.abs(step)), axis=1)[:-1]
    moved = q[:-1] * (ratio[:-1] + kl)  # what the loss loses where the target moves: zero if d_logit equals d_delta
    return kl, jnp.sum(gap * d_logit) + jnp.sum(moved * (d_delta - d_logit))


def soften(logits: Array, cap: float | None) -> Array:
    """Return cap tanh(logits / cap), or the logits where there is no cap.

    Reference:
        Gemma Team, Gemma 2: Improving Open Language Models at a Practical Size, 2024, arXiv:2408.00118, section 2.
    """
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def slope_of_soft(soft: Array, cap: float) -> Array:
    """Return the derivative of `soften` at what it returned; 0 where a number out of reach was put in its place."""
    return 1 - jnp.square(jnp.clip(soft / cap, -1.0, 1.0))
