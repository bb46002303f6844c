r"""f-DPO: DPO with another divergence than the reverse one between policy and reference.

With the ratio :math:`u(y) = P(y) / P_{ref}(y)` of a response and :math:`\rho = \log u`,

.. math:: L = \ell\big(\beta (v(y_w) - v(y_l))\big), \quad v(y) = f'(u(y)) - f'(1),

where :math:`\ell` is DPO's loss of a margin, or another that depends on the two values through their difference alone:
in the others a normaliser that is not known would remain. An absent response has the value 0. Metrics: those of
`slpojax.sequence.preference_metrics` with the reward :math:`\beta \rho`, whatever the divergence, as TRL logs it.
"""

import math

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Float, Logps, Scalar
from slpojax.numerics import saturating
from slpojax.objectives import require
from slpojax.objectives.pairs import built, margin
from slpojax.sequence import first, log_ratio, preference_metrics

# The losses of a pair in which only the difference of two values counts.
_LOSSES = (
    "dpo.sigmoid",
    "dpo.conservative",
    "dpo.robust",
    "dpo.ipo",
    "dpo.hinge",
    "margin.sigmoid_norm",
    "margin.exo_pair",
    "margin.discopop",
)


def _loss(
    loss: str, value: Float[Array, "2"], policy: Logps, ref: Logps, beta: Scalar
) -> tuple[Array, dict[str, Array]]:
    """Return the loss of a pair whose log-ratios are `value`, and the metrics of its true ones."""
    require(loss in _LOSSES, "loss", loss, f"one of {', '.join(_LOSSES)}")
    pair, token = first(policy, 2), value[:, None]
    of_one_token = Logps(token, jnp.full_like(token, ABSENT), pair.length)
    at_zero = of_one_token._replace(token=jnp.zeros_like(token))
    result, _ = built(loss).function(policy=of_one_token, ref=at_zero, beta=beta)
    return result, preference_metrics(pair, beta * log_ratio(pair, first(ref, 2)))


def _power(policy: Logps, ref: Logps, alpha: Scalar, max_exponent: Scalar) -> Array:
    """Return (1 - u^-alpha) / alpha of the two responses, log u at alpha = 0."""
    require((0 < max_exponent) & (max_exponent < math.inf), "max_exponent", max_exponent, "a finite number above 0")
    ratio = log_ratio(first(policy, 2), first(ref, 2))
    return saturating(ratio, alpha, max_exponent)


def reverse_kl(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, loss: str = "dpo.sigmoid"
) -> tuple[Array, dict[str, Array]]:
    r"""f-DPO with the reverse divergence: the plain loss.

    .. math:: f(u) = u \log u, \quad v = \rho

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: that of the loss.
        loss: the loss of the margin, by the name of its objective, with its other hyperparameters at their defaults.

    Returns:
        The loss, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{reverse_kl(policy, ref, beta=0.1)[0]:.6f}")
        0.609470

    Verified:
        The objectives that it names, which TRL 1.16's default `f_divergence_type` is too.

    Reference:
        Chaoqi Wang, Yibo Jiang, Chenghao Yang, Han Liu, Yuxin Chen, Beyond Reverse KL: Generalizing Direct Preference
        Optimization with Diverse Divergence Constraints, 2023, arXiv:2309.16240.
    """
    return _loss(loss, log_ratio(first(policy, 2), first(ref, 2)), policy, ref, beta)


def forward_kl(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.1, loss: str = "dpo.sigmoid", max_exponent: Scalar = 40.0
) -> tuple[Array, dict[str, Array]]:
    r"""f-DPO with the forward divergence. TRL's `forward_kl`.

    .. math:: f(u) = -\log u, \quad v = 1 - e^{-\rho}

    A response that has lost many nats against the reference decides alone.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: that of the loss.
        loss: the loss of the margin, by the name of its objective, with its other hyperparameters at their defaults.
        max_exponent: where the exponent is cut, in nats; beyond it there is no gradient. At 40 the square of a value,
            and of a gradient, is still finite in float32. TRL's is infinite from 88 on.

    Returns:
        The loss, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{forward_kl(policy, ref, beta=0.1)[0]:.6f}")
        0.587143

    Verified:
        TRL 1.16 with sigmoid, hinge and robust, TRL 0.24 as alpha = 1 (values, gradients, rewards), and the formula in
        120 digits.

    Reference:
        Chaoqi Wang, Yibo Jiang, Chenghao Yang, Han Liu, Yuxin Chen, Beyond Reverse KL: Generalizing Direct Preference
        Optimization with Diverse Divergence Constraints, 2023, arXiv:2309.16240.
    """
    return _loss(loss, _power(policy, ref, 1.0, max_exponent), policy, ref, beta)


def js(policy: Logps, ref: Logps, *, beta: Scalar = 0.1, loss: str = "dpo.sigmoid") -> tuple[Array, dict[str, Array]]:
    r"""f-DPO with the Jensen-Shannon divergence. TRL's `js_divergence`.

    .. math:: f(u) = u \log u - (1 + u) \log \frac{1 + u}{2}, \quad v = \log \frac{2 u}{1 + u}

    Bounded above by log 2: a chosen response far likelier than under the reference has no gradient.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: that of the loss.
        loss: the loss of the margin, by the name of its objective, with its other hyperparameters at their defaults.

    Returns:
        The loss, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{js(policy, ref, beta=0.1)[0]:.6f}")
        0.647900

    Verified:
        TRL 1.16 with sigmoid, hinge, ipo, exo_pair and discopop, TRL 0.24 with sigmoid (values, gradients, rewards),
        and the formula in 120 digits.

    Reference:
        Chaoqi Wang, Yibo Jiang, Chenghao Yang, Han Liu, Yuxin Chen, Beyond Reverse KL: Generalizing Direct Preference
        Optimization with Diverse Divergence Constraints, 2023, arXiv:2309.16240.
    """
    ratio = log_ratio(first(policy, 2), first(ref, 2))
    return _loss(loss, math.log(2) + jax.nn.log_sigmoid(ratio), policy, ref, beta)


def alpha(
    policy: Logps,
    ref: Logps,
    *,
    beta: Scalar = 0.1,
    alpha: Scalar = 0.5,
    loss: str = "dpo.sigmoid",
    max_exponent: Scalar = 40.0,
) -> tuple[Array, dict[str, Array]]:
    r"""f-DPO with an alpha divergence: between the reverse one at 0 and the forward one at 1. TRL's `alpha_divergence`.

    .. math:: f(u) = \frac{u^{1 - \alpha} - (1 - \alpha) u - \alpha}{\alpha (\alpha - 1)},
        \quad v = \frac{1 - u^{-\alpha}}{\alpha}

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: that of the loss.
        alpha: the paper's, which has it between 0 and 1; other values are no error. TRL 0.24's coefficient is the
            same, that of TRL 1.x is 1 - alpha.
        loss: the loss of the margin, by the name of its objective, with its other hyperparameters at their defaults.
        max_exponent: where the exponent is cut, in nats; beyond it there is no gradient. At 40 the square of a value,
            and of a gradient, is still finite in float32. TRL cuts at 80 there.

    Returns:
        The loss, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{alpha(policy, ref, beta=0.1, alpha=0.5)[0]:.6f}")
        0.601619

    Verified:
        TRL 1.16 with sigmoid and hinge and TRL 0.24 with sigmoid (values, gradients, rewards), and the formula in 120
        digits.

    Reference:
        Chaoqi Wang, Yibo Jiang, Chenghao Yang, Han Liu, Yuxin Chen, Beyond Reverse KL: Generalizing Direct Preference
        Optimization with Diverse Divergence Constraints, 2023, arXiv:2309.16240.
    """
    require((-math.inf < alpha) & (alpha < math.inf), "alpha", alpha, "a finite number, the paper's between 0 and 1")
    return _loss(loss, _power(policy, ref, alpha, max_exponent), policy, ref, beta)


def chi_po(
    policy: Logps, ref: Logps, *, beta: Scalar = 0.05, reward_bound: Scalar = 0.0, max_exponent: Scalar = 20.0
) -> tuple[Array, dict[str, Array]]:
    r"""chi-PO: f-DPO with the chi-squared and the reverse divergence together, against overoptimisation.

    .. math:: L = -\log \sigma\big(\operatorname{clip}_{2 R}[\beta (v(y_w) - v(y_l))]\big), \quad
        f(u) = \tfrac{1}{2} (u - 1)^2 + u \log u, \quad v = u - 1 + \log u

    DPO's link log u has u beside it: a response that the policy has made much likelier than the reference does has won
    its reward in full, so that the policy stays where the reference has been. Below the reference it is DPO. Of a whole
    response u is soon large, and the paper's betas are a tenth of DPO's and less. Where the clip holds the margin,
    whichever way the pair is ranked, it has no gradient.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference; the paper has 0.05 and 0.005.
        reward_bound: R, the largest size of a true reward: margins are clipped to twice that; 0 for no clip.
        max_exponent: where log u is cut in u alone, in nats; beyond it u has no gradient.

    Returns:
        The loss in nats (log 2 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{chi_po(policy, ref, beta=0.1)[0]:.5f}")
        0.53342
        >>> print(f"{chi_po(policy, ref, beta=0.1, reward_bound=0.1)[0]:.6f}")
        0.598139

    Verified:
        The formula in 120 digits, its v from f by differences. Two published summaries of the paper agree on the link
        and on the clip of the margin; the default of max_exponent is that of a public program, and, from memory, of the
        paper's experiments.

    Reference:
        Audrey Huang, Wenhao Zhan, Tengyang Xie, Jason D. Lee, Wen Sun, Akshay Krishnamurthy, Dylan J. Foster,
        Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization via Chi-Squared Preference
        Optimization, 2024, arXiv:2407.13399, algorithm 1.
    """
    require(reward_bound >= 0, "reward_bound", reward_bound, "a number above 0, or 0 for no clip")
    z, metrics = margin(beta, policy, ref)
    shifted = _power(policy, ref, -1.0, max_exponent)
    z = z + beta * (shifted[0] - shifted[1])
    most = jnp.where(reward_bound > 0, 2 * reward_bound, jnp.inf)
    return jax.nn.softplus(-jnp.clip(z, -most, most)), metrics
