r"""Supervised learning preference optimisation: give the two responses the probability mass they should have.

The reference's masses P_ref(y_w), P_ref(y_l) fix target masses t_w, t_l, which a cross-entropy teaches: no reward, no
margin, and a minimum at a finite place. The complement needs no vocabulary: P(not y) = 1 - P(y), see `sequence.mass`.

**The root.** A real response has P(y) = exp(-150) or less, where the plain loss has no gradient at all. So all forms
work on the log-odds of a mass divided by a temperature N, the response's length unless set otherwise,

.. math:: p = \sigma(z), \quad z = \frac{1}{N} \log \frac{P(y)}{1 - P(y)}, \qquad q = \sigma(z^*)

with z* the same of the target t: p is close to the geometric mean of the token probabilities. The loss is the
divergence KL(q || p), which is 0 at the target and differs from the cross-entropy by a constant.

**The scale.** A target d nats away moves z by d / N, so :math:`\partial L / \partial \log P(y) = (p - q) / N \approx
q (1 - q) d / N^2`: 1e-6 and less, where DPO's is beta / 2. `scale` multiplies a response's term: by the temperature
(the default), by its square, or by a number ("1" is the plain loss). With the temperature the gradient is a fixed part
of p - q, whatever the length: it is bounded, as DPO's is by beta, and learning rate, clipping and the optimiser's
epsilon keep their meaning. The square makes it q (1 - q) times the nats that are missing, which has no bound: a pair
whose rejected response is much the shorter asks for hundreds of nats (175 in the mean over HH under a weak model), and
such pairs then decide every step.

**What stays finite.** A response that is absent adds nothing and receives nothing. Two that are identical, or where one
begins the other, have separate targets; should t_w reach 1, which takes masses that real responses do not have, it
is held just below (mass/clamped tells). Padding adds nothing.

Metrics, beside those of `slpojax.sequence.preference_metrics` (the reward being the plain log-ratio, beta = 1), in nats
of the whole response or, for model and target, as the rooted probabilities p and q:
    mass/shift_chosen        how far the chosen's target lies above the reference: log(t_w / P_ref(y_w))
    mass/shift_negligible    1 where that is below 1e-3: the reference ranks the pair right, the chosen learns nothing
    mass/gap_chosen, mass/gap_rejected        log-odds of the mass minus the target's; 0 is done (none for t_l = 0)
    mass/model_chosen, mass/model_rejected, mass/target_chosen, mass/target_rejected
    mass/clamped             1 where t_w was held
"""

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Logps, Scalar
from slpojax.numerics import categorical_kl, log, log1mexp
from slpojax.objectives import require
from slpojax.sequence import first, log_ratio, mass_closed, preference_metrics, size

_SCALES = {"temperature": 1, "temperature_squared": 2}
_TEMPERATURE = '"length" or a number above 0'
_FAR = 1e6  # nats that no log-prob of a model is away from another


class _Pair(NamedTuple):
    """What all forms share, of the chosen [0] and the rejected [1]."""

    ratio: Array  # log P(y) - log P_ref(y)
    mass: Array  # log P(y)
    rest: Array  # log P(not y)
    ref_mass: Array  # log P_ref(y), `ABSENT` for an absent response: it has no mass to give
    ref_rest: Array  # log P_ref(not y)
    temperature: Array
    present: Array
    rejected_above: Array  # log P_ref(y_l) - log P_ref(y_w)


def listing(
    policy: Logps, ref: Logps, *, temperature: Scalar | str = "length", scale: Scalar | str = "temperature"
) -> tuple[Array, dict[str, Array]]:
    r"""The paper's listing: the chosen takes over the rejected's mass, the rejected keeps none.

    .. math:: L = \frac{1}{2} \big[ KL(q_w || p_w) + \mathrm{softplus}(z_l) \big],
        \quad t_w = P_{ref}(y_w) + P_{ref}(y_l), \quad t_l = 0

    The loss of the rejected is finite and right where the listing's own code returns NaN. Its target being out of
    reach, it is pushed down for as long as training lasts.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        temperature: "length", each response's own as in the listing, or a number for both.
        scale: "temperature", "temperature_squared" or a number, see above; "1" is the listing.

    Returns:
        The loss in nats, and the metrics listed above.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.508694], [-0.145413]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.5]]), jnp.float32([[-0.458675], [-0.252402]]), jnp.int32([1, 1]))
        >>> print(f"{listing(policy, ref, scale='1')[0]:.6f}")
        0.116859

    Verified:
        The author's code of the listing (values and gradients, float64), and the formula in 120 digits, which alone is
        the witness of the rejected's value.

    Reference:
        Yao-Shiang Ho, Supervised Learning Preference Optimization, 2025, TechRxiv preprint, code listing,
        https://github.com/yaoshiang/slpo.
    """
    loss, metrics = shift(policy, ref, alpha=1.0, temperature=temperature, scale=scale)
    return 2 * loss, metrics


def shift(
    policy: Logps,
    ref: Logps,
    *,
    alpha: Scalar = 0.9,
    temperature: Scalar | str = "length",
    scale: Scalar | str = "temperature",
) -> tuple[Array, dict[str, Array]]:
    r"""The author's later form: the share alpha of the rejected's mass shifts to the chosen.

    .. math:: L = \frac{1}{4} \big[ KL(q_w || p_w) + KL(q_l || p_l) \big],
        \quad t_w = P_{ref}(y_w) + \alpha P_{ref}(y_l), \quad t_l = (1 - \alpha) P_{ref}(y_l)

    The rejected moves by log(1 - alpha) nats and stops. The chosen moves by log(1 + alpha P_ref(y_l) / P_ref(y_w)):
    next to nothing where the reference already ranks it first (mass/shift_negligible).

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        alpha: from 0 (stay at the reference) to 1 (the rejected keeps nothing).
        temperature: "length", each response's own, or a number for both as in the author's code.
        scale: "temperature", "temperature_squared" or a number, see above; "1" is the author's loss.

    Returns:
        The loss in nats, and the metrics listed above.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.508694], [-0.145413]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.5]]), jnp.float32([[-0.458675], [-0.252402]]), jnp.int32([1, 1]))
        >>> print(f"{shift(policy, ref, alpha=0.5, scale='1')[0]:.6f}")
        0.053866

    Verified:
        The author's code of December 2025 (values, gradients and targets, float64), and the formula in 120 digits.

    Reference:
        Yao-Shiang Ho, Supervised Learning Preference Optimization, 2025, TechRxiv preprint; targets and the two binary
        divergences as in the author's repository of December 2025, https://github.com/yaoshiang/slpo.
    """
    _warn_unrooted(temperature)
    pair = _pair(policy, ref, temperature)
    gap, up, clamped = _to_shifted(pair, alpha)
    terms, probabilities = _binary(pair, gap, scale)
    loss = jnp.sum(jnp.where(pair.present, terms, 0.0)) / 4
    return loss, _metrics(policy, pair, probabilities, gap, up, clamped, alpha)


def pooled(
    policy: Logps,
    ref: Logps,
    *,
    alpha: Scalar = 0.9,
    temperature: Scalar | str = "length",
    scale: Scalar | str = "temperature",
) -> tuple[Array, dict[str, Array]]:
    r"""The split loss of `shift` with the paper's soft targets: both masses are pooled and dealt out anew.

    .. math:: L = \frac{1}{4} \big[ KL(q_w || p_w) + KL(q_l || p_l) \big],
        \quad t_w = \alpha (P_{ref}(y_w) + P_{ref}(y_l)), \quad t_l = (1 - \alpha) (P_{ref}(y_w) + P_{ref}(y_l))

    The odds of chosen to rejected end up at alpha to 1 - alpha, whatever the reference's: a chosen that is already the
    likelier by more than that is pushed *down*, by up to log(1 / alpha) nats, and its rejected raised without bound
    (mass/shift_chosen is then negative). alpha = 1 is half of `listing`. `joint` has the same targets in one loss.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        alpha: the chosen's share of the pool, from above 1/2 to 1.
        temperature: "length", each response's own, or a number for both.
        scale: "temperature", "temperature_squared" or a number, see above; "1" is the plain loss.

    Returns:
        The loss in nats, and the metrics listed above. With either response absent the loss is 0.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.508694], [-0.145413]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.5]]), jnp.float32([[-0.458675], [-0.252402]]), jnp.int32([1, 1]))
        >>> print(f"{pooled(policy, ref, alpha=0.9, scale='1')[0]:.6f}")
        0.044652

    Verified:
        The formula in 120 digits. The author's code has no such form.

    Reference:
        Yao-Shiang Ho, Supervised Learning Preference Optimization, 2025, TechRxiv preprint, the targets of equation 7
        in the loss of equation 8, https://github.com/yaoshiang/slpo.
    """
    require((0.5 < alpha) & (alpha <= 1), "alpha", alpha, "a number from above 1/2 to 1")
    _warn_unrooted(temperature)
    pair = _pair(policy, ref, temperature)
    both, moved = jnp.all(pair.present), _pooled(pair, alpha)
    rest, clamped = _what_remains(pair.ref_mass + moved)  # log(1 - t)
    gap = jnp.where(both, pair.ratio - moved - (pair.rest - rest), 0.0)
    terms, probabilities = _binary(pair, gap, scale)
    loss = jnp.where(both, jnp.sum(terms) / 4, 0.0)
    return loss, _metrics(policy, pair, probabilities, gap, moved[0], clamped[0], alpha)


def mse(
    policy: Logps,
    ref: Logps,
    *,
    alpha: Scalar = 0.9,
    temperature: Scalar | str = "length",
    scale: Scalar | str = "temperature",
) -> tuple[Array, dict[str, Array]]:
    r"""The author's proposal to regress: squared distances of the rooted log-probs in place of divergences.

    .. math:: L = \frac{1}{4} \sum_{y \in \{y_w, y_l\}} \Big[ \big(\log p_y - \log q_y\big)^2
        + \big(\log(1 - p_y) - \log(1 - q_y)\big)^2 \Big]

    with the targets of `shift`. Where p is 1/2 and near its target this is four times `shift`. Elsewhere it is another
    loss: its gradient goes on growing with the distance to the target, without bound as a mass nears 1. It needs no
    root: at `temperature="1"` it regresses the log-probs on those of the targets. A target of zero mass is out of reach
    and its term left out: that of y_l for alpha = 1, which then falls through its complement alone, and that of the
    chosen's complement where t_w would reach 1, and is 1 here (mass/clamped).

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        alpha: from 0 (stay at the reference) to 1 (the rejected keeps nothing).
        temperature: "length", each response's own, or a number for both as in the author's code.
        scale: "temperature", "temperature_squared" or a number, see above; "1" is the author's loss.

    Returns:
        The loss in squared nats, and the metrics listed above.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.508694], [-0.145413]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.5]]), jnp.float32([[-0.458675], [-0.252402]]), jnp.int32([1, 1]))
        >>> print(f"{mse(policy, ref, alpha=0.5, scale='1')[0]:.6f}")
        0.251461

    Verified:
        The author's code of the proposal (values and gradients, float64), and the formula in 120 digits.

    Reference:
        Yao-Shiang Ho, Supervised Learning Preference Optimization, 2025, TechRxiv preprint; the squared form is a
        proposed change to the author's repository of January 2026 (pull request 19),
        https://github.com/yaoshiang/slpo.
    """
    pair = _pair(policy, ref, temperature)
    gap, up, clamped = _to_shifted(pair, alpha)
    # An absent response has no log-odds to square; a target of mass one has infinite ones.
    logit, delta = (jnp.where(pair.present, x / pair.temperature, 0.0) for x in (pair.mass - pair.rest, gap))
    delta = jnp.where(jnp.stack([clamped, jnp.zeros_like(clamped)]), ABSENT, delta)
    of_mass = pair.present & jnp.stack([True, alpha < 1])
    of_rest = pair.present & jnp.stack([~clamped, jnp.ones_like(clamped)])
    terms = _squared(jnp.where(of_mass, _above(logit, delta), 0.0))
    terms += _squared(jnp.where(of_rest, _above(-logit, -delta), 0.0))
    loss = jnp.sum(_scale(scale, pair.temperature) * terms) / 4
    probabilities = {"model": jax.nn.sigmoid(logit), "target": jax.nn.sigmoid(logit - delta)}
    return loss, _metrics(policy, pair, probabilities, gap, up, clamped, alpha)


def joint(
    policy: Logps,
    ref: Logps,
    *,
    alpha: Scalar = 0.9,
    temperature: Scalar | str = "length",
    scale: Scalar | str = "temperature",
) -> tuple[Array, dict[str, Array]]:
    r"""The paper's equations: one three-way cross-entropy over the chosen, the rejected and everything else.

    .. math:: L = -t_w \log P(y_w) - t_l \log P(y_l) - (1 - t_w - t_l) \log(1 - P(y_w) - P(y_l)) - H(t)

    with the two masses pooled, :math:`t_w = \alpha (P_{ref}(y_w) + P_{ref}(y_l))`, :math:`t_l` the rest of the pool:
    equation 6 is alpha = 1, equation 7 the others. H(t) is the target's entropy, a constant. Everything else keeps its
    mass.

    The equations stand at `temperature="1"`, where real responses give no gradient (a warning says so). The rooted form
    extends the one above to three classes: the log-odds of each response *against everything else*, divided by its own
    temperature, are the logits of a softmax in which everything else has the logit 0; the target likewise. With a
    temperature shared by both it is the softmax of (log P(y_w), log P(y_l), log P(else)) at that temperature.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        alpha: the chosen's share of the pool, from above 1/2 to 1.
        temperature: "length", each response's own, or a number for both.
        scale: "temperature" or "temperature_squared", in the geometric mean of both responses, or a number; see above.

    Returns:
        The loss in nats, and the metrics listed above, mass/model and mass/target being the three-way probabilities.
        With either response absent the loss is 0.

    Example:
        >>> policy = Logps(jnp.float32([[-0.5], [-2.0]]), jnp.float32([[-0.932752], [-0.145413]]), jnp.int32([2, 2]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.5]]), jnp.float32([[-0.458675], [-0.252402]]), jnp.int32([2, 2]))
        >>> print(f"{joint(policy, ref, alpha=0.9, scale='1')[0]:.6f}")
        0.025321

    Verified:
        The formula in 120 digits, and at `temperature="1"` the masses of every response, enumerated. The author's code
        has no such form.

    Reference:
        Yao-Shiang Ho, Supervised Learning Preference Optimization, 2025, TechRxiv preprint, equations 6 and 7,
        https://github.com/yaoshiang/slpo.
    """
    require((0.5 < alpha) & (alpha <= 1), "alpha", alpha, "a number from above 1/2 to 1")
    _warn_unrooted(temperature)
    pair = _pair(policy, ref, temperature)
    others = pair.rest[0] + _what_remains(pair.mass[1] - pair.rest[0])[0]
    shrink, clamped = _what_remains(pair.ref_mass[1] - pair.ref_rest[0])
    moved = _pooled(pair, alpha)
    gap = pair.ratio - (others - pair.ref_rest[0] - shrink) - moved  # everything else keeps its mass
    logit, delta = (pair.mass - others) / pair.temperature, gap / pair.temperature
    factor = jnp.sqrt(jnp.prod(_scale(scale, pair.temperature)))
    loss = jnp.where(jnp.all(pair.present), factor * categorical_kl(logit, delta), 0.0)
    probabilities = {"model": _shares(logit), "target": _shares(logit - delta)}
    return loss, _metrics(policy, pair, probabilities, gap, moved[0], clamped, alpha)


def _pair(policy: Logps, ref: Logps, temperature: Scalar | str) -> _Pair:
    policy, ref = first(policy, 2), first(ref, 2)
    present = (jnp.asarray(policy.length) > 0) & (jnp.asarray(ref.length) > 0)
    mass, rest = mass_closed(policy)
    ref_mass, ref_rest = mass_closed(ref)
    above = jnp.sum(ref.token[1] - ref.token[0])  # token by token first, as log_ratio does
    return _Pair(
        ratio=log_ratio(policy, ref),
        mass=mass,
        rest=rest,
        ref_mass=jnp.where(present, ref_mass, ABSENT),
        ref_rest=ref_rest,
        temperature=_temperature(temperature, size(policy)),
        present=present,
        rejected_above=jnp.where(present[1], above, ABSENT),
    )


def _temperature(temperature: Scalar | str, length: Array) -> Array:
    if isinstance(temperature, str) and temperature == "length":
        return length
    return jnp.full_like(length, _number("temperature", temperature, _TEMPERATURE))


def _warn_unrooted(temperature: Scalar | str) -> None:
    fixed = isinstance(temperature, str | float | int) and temperature != "length"
    if fixed and _number("temperature", temperature, _TEMPERATURE) == 1:
        warnings.warn(
            "objective.temperature = 1 is SLPO without a root: responses of more than a few tokens get no gradient; "
            'use "length"',
            stacklevel=2,
        )


def _to_shifted(pair: _Pair, alpha: Scalar) -> tuple[Array, Array, Array]:
    """Return how far the log-odds lie above those of the targets of `shift`, log(t_w / P_ref(y_w)), and t_w's hold."""
    require((0 <= alpha) & (alpha <= 1), "alpha", alpha, "a number from 0 to 1")
    moved = log(alpha) + pair.ref_mass[1]
    up = jax.nn.softplus(log(alpha) + pair.rejected_above)
    shrink, clamped = _what_remains(moved - pair.ref_rest[0])  # log((1 - t_w) / (1 - P_ref(y_w)))
    grow = jax.nn.softplus(moved - pair.ref_rest[1])  # log((1 - t_l) / (1 - P_ref(y_l)))
    # Policy minus reference, minus target minus reference: the large numbers never meet.
    gap = pair.ratio - (pair.rest - pair.ref_rest) - jnp.stack([up - shrink, log(1 - alpha) - grow])
    return gap, up, clamped


def _pooled(pair: _Pair, alpha: Scalar) -> Array:
    """Return log(t_w / P_ref(y_w)) and log(t_l / P_ref(y_l)) of targets that share out the pool of both masses."""
    above = pair.rejected_above
    return jnp.stack([log(alpha) + jax.nn.softplus(above), log(1 - alpha) + jax.nn.softplus(-above)])


def _binary(pair: _Pair, gap: Array, scale: Scalar | str) -> tuple[Array, dict[str, Array]]:
    """Return the scaled divergences of both responses from targets that lie `gap` below, and the probabilities."""
    logit, delta = (pair.mass - pair.rest) / pair.temperature, gap / pair.temperature
    terms = _scale(scale, pair.temperature) * jax.vmap(categorical_kl)(logit[:, None], delta[:, None])
    return terms, {"model": jax.nn.sigmoid(logit), "target": jax.nn.sigmoid(logit - delta)}


def _above(logit: Array, delta: Array) -> Array:
    """Return log p - log q of p = sigmoid(logit) and a constant q = sigmoid(logit - delta), exact where p is near q."""
    log_p, log_not = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
    near = jnp.abs(delta) < 1
    small = jnp.log1p(jnp.exp(log_not) * jnp.expm1(jnp.where(near, delta, 0.0)))
    # The value has no gradient of its own: q being fixed, that is the one of log p.
    value = jnp.where(near, small, jnp.logaddexp(log_p, log_not + delta))
    return jax.lax.stop_gradient(value) + (log_p - jax.lax.stop_gradient(log_p))


def _squared(x: Array) -> Array:
    """Return x^2, from a million on along its tangent: that of a complement of no mass at all (`ABSENT`) is finite."""
    held = jnp.clip(x, -_FAR, _FAR)
    return held**2 + 2 * jax.lax.stop_gradient(held) * (x - held)


def _scale(scale: Scalar | str, temperature: Array) -> Array:
    if isinstance(scale, str) and scale in _SCALES:
        return temperature ** _SCALES[scale]
    return jnp.full_like(temperature, _number("scale", scale, f"{', '.join(_SCALES)} or a number above 0"))


def _number(key: str, value: Scalar | str, expected: str) -> Scalar:
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = math.nan
    require((0 < number) & (number < math.inf), key, value, expected)
    return number


def _what_remains(x: Array) -> tuple[Array, Array]:
    """Return log(1 - exp(x)), what is left of a mass after the share exp(x) of it is taken, and whether x was held."""
    top = -float(jnp.finfo(x.dtype).eps)
    return log1mexp(jnp.where(x < top, x, top)), x >= top


def _shares(logit: Array) -> Array:
    """Softmax against a class of logit 0, which is left out of the result."""
    return jax.nn.softmax(jnp.append(logit, 0.0))[:-1]


def _metrics(
    policy: Logps, pair: _Pair, probabilities: Mapping[str, Array], gap: Array, up: Array, clamped: Array, alpha: Scalar
) -> dict[str, Array]:
    metrics = preference_metrics(policy, pair.ratio) | {
        "mass/shift_chosen": up,
        "mass/shift_negligible": jnp.where(up < 1e-3, 1.0, 0.0),
        "mass/clamped": jnp.where(clamped, 1.0, 0.0),
    }
    nothing = isinstance(alpha, float) and alpha == 1  # is what the rejected is to have, which has no log-odds
    for k, name in enumerate(("chosen", "rejected")):
        if name == "chosen" or not nothing:
            metrics[f"mass/gap_{name}"] = jnp.where(pair.present[k], gap[k], 0.0)
        for what, p in probabilities.items():
            metrics[f"mass/{what}_{name}"] = p[k]
    return jax.lax.stop_gradient(metrics)
