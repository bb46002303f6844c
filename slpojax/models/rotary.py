"""Rotary position embeddings: the frequencies a config asks for, and the rotation.

Knows the rope options of config.json (`rope_theta`, `rope_scaling`, `rope_parameters`); knows no family.

Su, Lu, Pan, Murtadha, Wen, Liu: RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, arXiv:2104.09864.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from slpojax.base import Array, Float, Int
from slpojax.models.options import number


def frequencies(
    rope: dict[str, Any], *, head_dim: int, max_position: int, max_length: int | None = None
) -> tuple[float, ...]:
    """Angular frequencies, radians per position: theta^(-2i / d), then scaled by `rope_type`.

    * `linear`: all divided by `factor`.
    * `llama3`: long waves divided by `factor`, short ones kept, a linear blend between.
    * `dynamic`: theta grows with the length n of the sequence beyond `max_position_embeddings` m,
      theta' = theta (f n / m - f + 1)^(d / (d - 2)). transformers takes n from the longest sequence of each batch, so
      there a log-prob depends on the company it is computed in. Here n is one number for the run, `max_length`; up to m
      nothing is scaled, and for sequences of exactly n tokens both agree.

    Args:
        rope: the merged rope options: `rope_type`, `rope_theta`, `partial_rotary_factor` and those of the type.
        head_dim: width of a head.
        max_position: `max_position_embeddings`.
        max_length: longest sequence of the run; only `dynamic` reads it; None means `max_position`.

    Returns:
        One frequency for each rotated pair; the rest of the head is not rotated.

    Raises:
        ValueError: naming a type or an option that is not supported or missing.
    """
    rope = dict(rope)
    kind, legacy = rope.pop("rope_type", None), rope.pop("type", None)
    kind = kind or legacy or "default"
    if kind not in list(_SCALE):
        raise ValueError(
            f"config.json: rope_type={str(kind)[:40]!r} is not supported; expected one of {', '.join(sorted(_SCALE))}."
        )
    scale, names = _SCALE[kind]
    theta = number(rope, "rope_theta", 10000.0)
    fraction = number(rope, "partial_rotary_factor", 1.0)
    if kind == "llama3":
        rope.setdefault("original_max_position_embeddings", max_position)
    if missing := [name for name in names if name not in rope]:
        raise ValueError(f"config.json: rope_type={kind!r} needs {', '.join(missing)} in rope_parameters.")
    if unknown := [name for name in rope if name not in names]:
        shown = ", ".join(name[:80] for name in unknown[:8])
        raise ValueError(f"config.json: rope_type={kind!r} does not know {shown}; remove or correct it.")
    options = {name: number(rope, name, 0.0) for name in names}
    rotated = int(min(head_dim * fraction, head_dim + 1))
    if rotated % 2 or not 0 < rotated <= head_dim:
        raise ValueError(f"config.json: {rotated} of {head_dim} head dimensions rotated; expected an even number >= 2.")
    length = max(max_length or 0, max_position) / max_position
    with np.errstate(all="ignore"):
        try:
            found = scale(theta, np.arange(0, rotated, 2) / rotated, length, *options.values())
        except (ZeroDivisionError, OverflowError):
            found = np.full(1, np.nan)
    if not (np.isfinite(found) & (found > 0)).all():
        said = ", ".join(f"{name}={value:g}" for name, value in {"rope_theta": theta, **options}.items())
        raise ValueError(
            f"config.json: rope_type={kind!r} with {said} gives no frequencies above 0; correct these numbers."
        )
    return tuple(found.tolist())


def _default(theta: float, exponent: np.ndarray, _: float) -> np.ndarray:
    return np.asarray(theta**-exponent)


def _linear(theta: float, exponent: np.ndarray, _: float, factor: float) -> np.ndarray:
    return np.asarray(theta**-exponent / factor)


def _dynamic(theta: float, exponent: np.ndarray, length: float, factor: float) -> np.ndarray:
    dim = 2 * len(exponent)
    return np.asarray((theta * (factor * length - (factor - 1)) ** (dim / (dim - 2))) ** -exponent)


def _llama3(
    theta: float, exponent: np.ndarray, _: float, factor: float, low: float, high: float, original: float
) -> np.ndarray:
    plain = theta**-exponent
    turns = original * plain / (2 * math.pi)  # full turns within the original context
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0) if high > low else np.nan
    return np.asarray(keep * plain + (1 - keep) * plain / factor)


_SCALE: dict[str, tuple[Callable[..., np.ndarray], tuple[str, ...]]] = {
    "default": (_default, ()),
    "linear": (_linear, ("factor",)),
    "dynamic": (_dynamic, ("factor",)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")),
}


def angles(position: Int[Array, "R L"], frequency: tuple[float, ...]) -> tuple[Float[Array, "R L F"], ...]:
    """Cosine and sine of position times frequency, in float32 whatever the compute dtype.

    Args:
        position: [R, L].
        frequency: F numbers.

    Returns:
        (cos, sin), each [R, L, F].
    """
    angle = position[:, :, None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "R L H d"], turn: tuple[Float[Array, "R L F"], ...]) -> Float[Array, "R L H d"]:
    """Turn the pairs (x_i, x_{i+F}) of the first 2F dimensions of each head; pass the others on.

    Args:
        x: queries or keys [R, L, H, d].
        turn: cos and sin, each [R, L, F].

    Returns:
        The same shape and dtype; the products are float32.
    """
    cos, sin = (t[:, :, None, :] for t in turn)
    pairs = cos.shape[-1]
    a, b, rest = jnp.split(x, [pairs, 2 * pairs], axis=-1)
    turned = [(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype)]
    return jnp.concatenate([*turned, rest], axis=-1)
