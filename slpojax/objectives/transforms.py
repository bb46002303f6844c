r"""Transforms of objectives by their names, `humanline(dpo.sigmoid)`: of the log-probs that an objective is given.

A transform is a function (the policy's log-probs, the reference's) -> (those that the objective sees in the place of
the policy's, metrics) of one example, a public one of this module or of any importable one; its keyword arguments are
hyperparameters beside the objective's. It may stand around a weighted sum, and be a term of one. Knows how such a name
reads and how the two are put together; knows no objective: `slpojax.objectives` finds the one inside.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from slpojax import named
from slpojax.base import Array, Logps, Scalar
from slpojax.numerics import log1mexp

_NAME = re.compile(r"\s*([A-Za-z_][\w.]*)\s*\(([^()]+)\)\s*")


def parse(name: str) -> tuple[str, str] | None:
    """Return the transform and the objective inside; None where the name is of no transform.

    Example:
        >>> parse("humanline(dpo.sigmoid + 0.1 * sft.token_mean)"), parse("humanline(dpo.ipo) + 2 * dpo.hinge")
        (('humanline', 'dpo.sigmoid + 0.1 * sft.token_mean'), None)
    """
    match = _NAME.fullmatch(name)
    return (match[1], match[2].strip()) if match else None


def known() -> Mapping[str, Callable[..., Any]]:
    """Return the transforms of this module by name."""
    public = vars(sys.modules[__name__]).items()
    return {
        name: function
        for name, function in public
        if inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") == "logps"
    }


def find(name: str) -> Callable[..., Any]:
    """Return a transform by name.

    Raises:
        ValueError: there is no such transform.
    """
    return named.find("transform of objectives", name, known(), first="logps")


def around(
    transform: Callable[..., Any], bound: Mapping[str, Any], inner: Callable[..., Any]
) -> Callable[..., tuple[Any, ...]]:
    """Return the function of one example that gives an objective the transformed log-probs.

    Args:
        transform: from `find`.
        bound: all of its hyperparameters; those in a call replace them.
        inner: the objective's function, with its own bound; it asks for the reference.
    """
    return functools.partial(_around, transform, dict(bound), inner)


def _around(
    transform: Callable[..., Any], bound: dict[str, Any], inner: Callable[..., Any], /, **inputs: Any
) -> tuple[Any, ...]:
    own = {key: inputs.pop(key, value) for key, value in bound.items()}
    seen, said = transform(inputs.pop("policy"), inputs["ref"], **own)
    loss, metrics, *state = inner(policy=seen, **inputs)
    return (loss, metrics | jax.lax.stop_gradient(said), *state)


def humanline(
    logps: Logps, ref: Logps, *, clamp_low: Scalar = -1.0, clamp_high: Scalar = 1.5
) -> tuple[Logps, dict[str, Array]]:
    r"""Humanline: the log-ratio of every token is held within bounds before the objective sees it.

    .. math:: \rho_t' = \operatorname{clip}(\rho_t, \log \epsilon_P, \log \epsilon_R),
        \quad \rho_t = \log \frac{p(y_t)}{p_{ref}(y_t)}

    A token out of the bounds counts with the bound and has no gradient. For objectives that compare with a reference;
    what these read of all other tokens at a place belongs to the clipped probability, too. The method's other half is a
    reference that follows the policy every k steps: `reference.mode=moving`, `reference.every=k`, `reference.mix=1`.

    Unsure, as the paper itself was not read: it follows here behind the optimiser's step, as in the authors' code, so
    that with k = 1 both models agree at every step and nothing is clipped; by summaries of the paper it follows before
    that step, and k is 1 to 4 for instructions and 12 to 24 for mathematics.

    Args:
        logps: [K, T] the policy's log-probs.
        ref: the same responses under the reference.
        clamp_low: log epsilon_P, in nats, below 0. The authors' code has -1.0, the paper by summaries -1.5.
        clamp_high: log epsilon_R, in nats, above 0.

    Returns:
        The log-probs that the objective sees, and the metric clamp/share, the share of the response tokens that are
        out of the bounds.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25, -3.0]]), jnp.float32([[-1.5, -0.05]]), jnp.int32([2]))
        >>> ref = Logps(jnp.float32([[-2.0, -3.5]]), jnp.float32([[-0.15, -0.03]]), jnp.int32([2]))
        >>> seen, metrics = humanline(policy, ref)
        >>> print(seen.token, f"{seen.other[0, 0]:.4f} {metrics['clamp/share']:.1f}")
        [[-0.5 -3. ]] -0.9328 0.5

    Verified:
        DPO's formula in NumPy, and SLPO, NCA and a sum of log-probs that NumPy has clipped, with their gradients; the
        formula is that of the authors' code, by two accounts of it.

    Reference:
        Sijia Liu, Niklas Muennighoff, Kawin Ethayarajh, Humanline: Online Alignment as Perceptual Loss, 2025,
        arXiv:2509.24207.
    """
    named.require(clamp_low < 0, "objective.clamp_low", clamp_low, "a number below 0")
    named.require(clamp_high > 0, "objective.clamp_high", clamp_high, "a number above 0")
    here = jnp.arange(logps.token.shape[-1])[None, :] < jnp.asarray(logps.length)[:, None]
    ratio = logps.token - ref.token
    out = here & ((ratio < clamp_low) | (ratio > clamp_high))
    held = jnp.where(out, ref.token + jnp.where(ratio < clamp_low, clamp_low, clamp_high), -1.0)
    seen = Logps(jnp.where(out, held, logps.token), jnp.where(out, log1mexp(held), logps.other), logps.length)
    share = jnp.sum(out, dtype=ratio.dtype) / jnp.maximum(jnp.sum(here, dtype=ratio.dtype), 1)
    return seen, {"clamp/share": share}
