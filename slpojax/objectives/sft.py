"""Supervised fine-tuning on the preferred response, in the three reductions people mean by it, and for coverage.

The three minimise -log P(y_w | x) and differ in what one batch weighs: tokens, responses, or responses by their length.
DCO stops at responses that are likely enough.
"""

import math

import jax
import jax.numpy as jnp

from slpojax.base import Array, Logps, Scalar
from slpojax.numerics import log, log1mexp
from slpojax.objectives import require
from slpojax.sequence import first, mass_closed, mean, total


def token_mean(policy: Logps) -> tuple[Array, dict[str, Array]]:
    r"""Mean negative log-prob over the tokens of the global batch: a long response weighs more than a short one.

    .. math:: L = -\sum_b \log P(y_b) \Big/ \sum_b |y_b|

    One example's share is :math:`-\log P(y_b)` over the mean length, taken over the axis "batch" and the examples that
    have a response, so the mean of the shares is L under any micro-batches and devices.

    Args:
        policy: [K, T] log-probs; candidate 0 is trained.

    Returns:
        The loss in nats per token, and the chosen's log-prob, as a sum and per token.

    Example:
        >>> y = Logps(jnp.float32([[-1.0, -2.0]]), jnp.float32([[-0.5, -0.1]]), jnp.int32([2]))
        >>> batch = jax.tree.map(lambda x: x[None], y)
        >>> print(jax.vmap(token_mean, axis_name="batch")(batch)[0])
        [1.5]

    Verified:
        TRL 1.16's `sft` (values and gradients, float64 and float32), and batches filled up with absent examples.
    """
    y = first(policy, 1)
    length = jnp.asarray(y.length[0]).astype(y.token.dtype)
    tokens, responses = jax.lax.psum((length, jnp.minimum(length, 1)), "batch")
    return -total(y)[0] * jnp.maximum(responses, 1) / jnp.maximum(tokens, 1), _metrics(y)


def sequence_mean(policy: Logps) -> tuple[Array, dict[str, Array]]:
    r"""Mean negative log-prob per token of the response: every response weighs the same.

    .. math:: L = -\log P(y) / |y|

    Args:
        policy: [K, T] log-probs; candidate 0 is trained.

    Returns:
        The loss in nats per token (0 for an absent response), and the metrics of `token_mean`.

    Example:
        >>> y = Logps(jnp.float32([[-1.0, -2.0, 0.0]]), jnp.float32([[-0.5, -0.1, -1e30]]), jnp.int32([2]))
        >>> print(sequence_mean(y)[0])
        1.5

    Verified:
        The formula in 120 digits.
    """
    y = first(policy, 1)
    return -mean(y)[0], _metrics(y)


def sequence_sum(policy: Logps) -> tuple[Array, dict[str, Array]]:
    r"""Negative log-prob of the response, as DPO's authors train: a batch's mean weighs responses by their length.

    .. math:: L = -\log P(y)

    Args:
        policy: [K, T] log-probs; candidate 0 is trained.

    Returns:
        The loss in nats, and the metrics of `token_mean`.

    Example:
        >>> y = Logps(jnp.float32([[-1.0, -2.0]]), jnp.float32([[-0.5, -0.1]]), jnp.int32([2]))
        >>> print(sequence_sum(y)[0])
        3.0

    Verified:
        The formula in 120 digits.
    """
    y = first(policy, 1)
    return -total(y)[0], _metrics(y)


def dco(policy: Logps, *, samples: Scalar = 16.0) -> tuple[Array, dict[str, Array]]:
    r"""Direct coverage optimisation: the response should be among N samples, not be the likeliest.

    .. math:: L = -\log\big(1 - (1 - P(y))^N\big), \quad \frac{\partial L}{\partial \log P(y)} = -F,
        \quad F = \frac{N P(y) (1 - P(y))^{N - 1}}{1 - (1 - P(y))^N}

    F goes from 1 (P(y) far below 1 / N, where this is `sequence_sum` less log N) to 0 (far above), so what is likely
    enough is left alone. Whole answers have P(y) = exp(-100) and less and so F = 1, whatever N: the loss bites where
    responses are short. The paper's step-wise form is this one on data whose examples are single steps of a proof or a
    search, each behind a prompt that holds the steps before it.

    Args:
        policy: [K, T] log-probs; candidate 0 is trained.
        samples: N, from 1 (`sequence_sum`); the paper goes up to thousands, and names no default.

    Returns:
        The loss in nats, and the metrics of `token_mean` with coverage/weight, which is F.

    Example:
        >>> y = Logps(jnp.log(jnp.float32([[0.5, 0.2]])), jnp.log(jnp.float32([[0.5, 0.8]])), jnp.int32([2]))
        >>> loss, metrics = dco(y, samples=16.0)
        >>> print(f"{loss:.6f} {metrics['coverage/weight']:.6f}")
        0.204938 0.404353

    Verified:
        The paper's formula in 120 digits, from P(y) = e^-200 to 1, values and F.

    Reference:
        Feng Chen, Allan Raventos, Nan Cheng, Surya Ganguli, Shaul Druckmann, Rethinking Fine-Tuning when Scaling
        Test-Time Compute: Limiting Confidence Improves Mathematical Reasoning, 2025, arXiv:2502.07154.
    """
    require((1 <= samples) & (samples < math.inf), "samples", samples, "a number from 1")
    y = first(policy, 1)
    mass, rest = (x[0] for x in mass_closed(y))
    # Where N P(y) is below e^-16, 1 - P(y) may round to one: the series to second order is then exact to 1e-15.
    rare = log(samples) + mass < -16
    p = jnp.exp(jnp.where(rare, mass, -16.0 - log(samples)))
    series = log(samples) + mass - (samples - 1) * p / 2
    coverage = jnp.where(rare, series, log1mexp(jnp.where(rare, -1.0, samples * rest)))
    weight = jnp.exp(jax.lax.stop_gradient(log(samples) + (samples - 1) * rest + mass - coverage))
    return -coverage, _metrics(y) | {"coverage/weight": weight}


def _metrics(y: Logps) -> dict[str, Array]:
    return jax.lax.stop_gradient({"logps/chosen": total(y)[0], "logps/chosen_mean": mean(y)[0]})
