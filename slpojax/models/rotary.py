"""Rotary position embeddings: the frequencies a config asks for, and the rotation.

Knows the rope options of config.json (`rope_theta`, `rope_scaling`, `rope_parameters`); knows no family.

Su, Lu, Pan, Murtadha, Wen, Liu: RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, arXiv:2104.09864.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from slpojax import wording
from slpojax.base import Array, Float, Int
from slpojax.models.options import flag, number


class Rope(NamedTuple):
    """How queries and keys are turned.

    Attributes:
        frequencies: radians per position, one for each rotated pair; the rest of the head is not rotated. Zeros turn
            nothing.
        gain: that the turned pairs are multiplied by.
    """

    frequencies: tuple[float, ...]
    gain: float = 1.0


class Turn(NamedTuple):
    """Cosine and sine of every token's angles.

    Attributes:
        cos: [R, L, F], or of several ropes [X, R, L, F].
        sin: the same.
        rope: which of several; None where there is one.
    """

    cos: Float[Array, "*ropes R L F"]
    sin: Float[Array, "*ropes R L F"]
    rope: Int[Array, ""] | None = None


def read(rope: dict[str, Any], *, head_dim: int, max_position: int, max_length: int | None = None) -> Rope:
    """Return what a config says of its rotary embedding: the frequencies theta^(-2i / d), scaled by `rope_type`.

    * `linear`: all divided by `factor`.
    * `llama3`: long waves divided by `factor`, short ones kept, a linear blend between.
    * `yarn`: the same, with the blend linear in the number of the pair, and a gain of 0.1 ln(factor) + 1 (Peng,
      Quesnelle, Fan, Shippole: YaRN: Efficient Context Window Extension of Large Language Models, 2023,
      arXiv:2309.00071, section 3).
    * `dynamic`: theta grows with the length n of the sequence beyond `max_position_embeddings` m,
      theta' = theta (f n / m - f + 1)^(d / (d - 2)). transformers takes n from the longest sequence of each batch, so
      there a log-prob depends on the company it is computed in. Here n is one number for the run, `max_length`; up to m
      nothing is scaled, and for sequences of exactly n tokens both agree.

    Args:
        rope: the merged rope options: `rope_type`, `rope_theta`, `partial_rotary_factor` and those of the type.
        head_dim: width of a head.
        max_position: `max_position_embeddings`.
        max_length: longest sequence of the run; only `dynamic` reads it; None means `max_position`.

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
    scale, names, defaults = _SCALE[kind]
    theta = number(rope, "rope_theta", 10000.0)
    fraction = number(rope, "partial_rotary_factor", 1.0)
    if kind in ("llama3", "yarn"):
        rope.setdefault("original_max_position_embeddings", max_position)
    if kind == "yarn" and not flag(rope, "truncate", True):
        raise ValueError("config.json: rope_type='yarn' with truncate=false is not supported.")
    if missing := [name for name in names if name not in rope]:
        raise ValueError(f"config.json: rope_type={kind!r} needs {', '.join(missing)} in rope_parameters.")
    if unknown := [name for name in rope if name not in (*names, *defaults)]:
        raise ValueError(f"config.json: rope_type={kind!r} does not know {wording.few(unknown)}; remove or correct it.")
    options = {name: number(rope, name, 0.0) for name in names}
    options |= {name: number(rope, name, default) for name, default in defaults.items()}
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
    return Rope(tuple(found.tolist()), _gain(options) if kind == "yarn" else 1.0)


def none(head_dim: int) -> Rope:
    """Return the rope of a layer that has none."""
    return Rope((0.0,) * (head_dim // 2))


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


def _yarn(
    theta: float, exponent: np.ndarray, _: float, factor: float, original: float, fast: float, slow: float, gain: float
) -> np.ndarray:
    """Pairs that turn more than `fast` times within the original context stay, those that turn less than `slow` are
    divided by `factor`; the bounds are whole numbers of pairs.
    """
    pairs, plain = len(exponent), theta**-exponent

    def pair(turns: float) -> float:  # the one that turns so often within the original context
        return pairs * math.log(original / (2 * math.pi * turns)) / math.log(theta)

    low, high = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), 2 * pairs - 1)
    stretched = np.clip((np.arange(pairs) - low) / (high - low or 1e-3), 0.0, 1.0)
    return np.asarray(stretched * plain / factor + (1 - stretched) * plain)


def _gain(options: dict[str, float]) -> float:
    if options["attention_factor"] != _BY_FACTOR:
        return options["attention_factor"]
    return 0.1 * math.log(options["factor"]) + 1 if options["factor"] > 1 else 1.0


_BY_FACTOR = 1e-30  # stands for a gain that follows from the factor
# The function, the options that it needs, and those that have a value where they are absent.
_SCALE: dict[str, tuple[Callable[..., np.ndarray], tuple[str, ...], dict[str, float]]] = {
    "default": (_default, (), {}),
    "linear": (_linear, ("factor",), {}),
    "dynamic": (_dynamic, ("factor",), {}),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), {}),
    "yarn": (
        _yarn,
        ("factor", "original_max_position_embeddings"),
        {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": _BY_FACTOR},
    ),
}


def angles(position: Int[Array, "R L"], rope: Rope) -> Turn:
    """Cosine and sine of position times frequency, times the gain, in float32 whatever the compute dtype."""
    angle = position[:, :, None].astype(jnp.float32) * jnp.asarray(rope.frequencies, jnp.float32)[None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return Turn(cos, sin) if rope.gain == 1 else Turn(rope.gain * cos, rope.gain * sin)


def rotate(x: Float[Array, "R L H d"], turn: Turn) -> Float[Array, "R L H d"]:
    """Turn the pairs (x_i, x_{i+F}) of the first 2F dimensions of each head; pass the others on.

    Args:
        x: queries or keys [R, L, H, d].
        turn: of the tokens.

    Returns:
        The same shape and dtype; the products are float32.
    """
    both = turn[:2]
    if turn.rope is not None:  # here, within the block, so that no layer's own is kept for the backward pass
        both = tuple(lax.dynamic_index_in_dim(t, turn.rope, keepdims=False) for t in both)
    cos, sin = (t[:, :, None, :] for t in both)
    pairs = cos.shape[-1]
    a, b, rest = jnp.split(x, [pairs, 2 * pairs], axis=-1)
    turned = [(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype)]
    return jnp.concatenate([*turned, rest], axis=-1)
