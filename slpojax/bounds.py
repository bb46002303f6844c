"""Reads beyond the end of an axis, found in a traced program before anything runs.

JAX clamps an index that is out of bounds and says nothing: `reward[1]` of a single candidate is `reward[0]`, a pair's
loss of it a constant. Where an index is known when a function is traced, as every Python number is, so is the mistake.

Knows jaxprs; knows no objective. An index that is computed from data is not known before the data is.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


class Read(NamedTuple):
    """An index, or the start of a slice, and the size of the axis that it lies outside of."""

    place: int
    size: int


# Primitives that call a program of as many arguments.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat"}

# What JAX makes an index with: (values, parameters of the equation) -> value.
_FOLDS: dict[str, Callable[..., Any]] = {
    "add": lambda p, a, b: a + b,
    "sub": lambda p, a, b: a - b,
    "mul": lambda p, a, b: a * b,
    "min": lambda p, a, b: np.minimum(a, b),
    "max": lambda p, a, b: np.maximum(a, b),
    "lt": lambda p, a, b: a < b,
    "le": lambda p, a, b: a <= b,
    "gt": lambda p, a, b: a > b,
    "ge": lambda p, a, b: a >= b,
    "eq": lambda p, a, b: a == b,
    "ne": lambda p, a, b: a != b,
    "select_n": lambda p, which, *cases: np.choose(which.astype(int), cases),
    "convert_element_type": lambda p, a: a.astype(p["new_dtype"]),
    "squeeze": lambda p, a: np.squeeze(a, tuple(p["dimensions"])),
    "reshape": lambda p, a: a.reshape(p["new_sizes"]),
    "concatenate": lambda p, *parts: np.concatenate(parts, p["dimension"]),
    "iota": lambda p: np.broadcast_to(
        np.arange(p["shape"][p["dimension"]], dtype=p["dtype"]).reshape(
            [-1 if axis == p["dimension"] else 1 for axis in range(len(p["shape"]))]
        ),
        p["shape"],
    ),
    "broadcast_in_dim": lambda p, a: np.broadcast_to(
        a.reshape(
            [
                a.shape[p["broadcast_dimensions"].index(axis)] if axis in p["broadcast_dimensions"] else 1
                for axis in range(len(p["shape"]))
            ]
        ),
        p["shape"],
    ),
}


def reads_beyond(program: ClosedJaxpr) -> list[Read]:
    """Return the reads of a program that lie outside their axis whatever its arguments are.

    A read that says what to put there where nothing is, `x.at[i].get(mode="fill", fill_value=0)`, is meant.

    Example:
        >>> one = jax.ShapeDtypeStruct((1,), "float32")
        >>> reads_beyond(jax.make_jaxpr(lambda reward: reward[0] - reward[1])(one))
        [Read(place=1, size=1)]
    """
    known = {var: _integers(value) for var, value in zip(program.jaxpr.constvars, program.consts, strict=True)}
    return list(_walk(program.jaxpr, known))


def _walk(jaxpr: Jaxpr, known: dict[Any, np.ndarray | None]) -> Iterator[Read]:
    """Yield the reads beyond of a program, and write the values that do not depend on its arguments into `known`."""
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        values = [_integers(x.val) if isinstance(x, Literal) else known.get(x) for x in equation.invars]
        first: Any = equation.invars[0].aval if equation.invars else None
        shape = first.shape if first is not None else ()
        if name == "dynamic_slice":
            yield from _slice(shape, values[1:], params["slice_sizes"])
        elif name == "gather" and values[1] is not None:
            yield from _gather(shape, values[1], params)
        for inner, consts in _programs(params):
            inside = dict(zip(inner.constvars, map(_integers, consts), strict=False))
            called = name in _CALLS and len(inner.invars) == len(values)
            if called:
                inside |= dict(zip(inner.invars, values, strict=True))
            yield from _walk(inner, inside)
            if called:
                results = [_integers(x.val) if isinstance(x, Literal) else inside.get(x) for x in inner.outvars]
                known |= dict(zip(equation.outvars, results, strict=True))
        if name in _FOLDS and all(value is not None for value in values):
            known[equation.outvars[0]] = _integers(_FOLDS[name](params, *values))


def _slice(shape: tuple[int, ...], starts: list[np.ndarray | None], sizes: tuple[int, ...]) -> Iterator[Read]:
    for start, size, length in zip(starts, sizes, shape, strict=True):
        if start is not None and not 0 <= int(start) <= length - size:
            yield Read(int(start), length)


def _gather(shape: tuple[int, ...], indices: np.ndarray, params: dict[str, Any]) -> Iterator[Read]:
    filler = params["fill_value"]
    if "FILL" in str(params["mode"]) and filler is not None and not np.isnan(filler):
        return
    for place, axis in enumerate(params["dimension_numbers"].start_index_map):
        last = shape[axis] - params["slice_sizes"][axis]
        outside = [int(i) for i in indices[..., place].flat if not 0 <= i <= last]
        if outside:
            yield Read(outside[0], shape[axis])


def _programs(params: dict[str, Any]) -> Iterator[tuple[Jaxpr, list[Any]]]:
    """Yield the programs inside an equation, with their constants."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr, list(one.consts)
            elif isinstance(one, Jaxpr):
                yield one, []


def _integers(value: Any) -> np.ndarray | None:
    """Return a value as an array where it is one of whole numbers, or of truths, that is known by now."""
    if value is None or isinstance(value, jax.core.Tracer):
        return None
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    return np.asarray(value) if getattr(dtype, "kind", "") in ("i", "u", "b") else None  # keys have no kind
