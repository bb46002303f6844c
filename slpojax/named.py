"""Things that a configuration names: found, bound to their hyperparameters, or refused with what was probably meant.

Knows modules, signatures and words. Of a function that it finds, positional parameters name what the function asks for
and keyword-only ones are its hyperparameters. Knows no objective, no selector and no other thing that is named.
"""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from slpojax import wording

# The largest hyperparameter: its square times a log-prob's is a float32. The smallest one of an objective beside 0 is
# its inverse, since some are divided by.
LARGEST = 1e15

_Value = TypeVar("_Value")


# ---- finding ---------------------------------------------------------------------------------------------------------


def functions(package: str, *, first: str | tuple[str, ...] = "policy") -> dict[str, Callable[..., Any]]:
    """Return the public functions of a module, or of a package's public modules, by name.

    Args:
        package: what is imported. The functions of a plain module go by their names alone, those of a package's modules
            are `module.function`.
        first: the name of their first parameter, or several that it may have; functions without it are helpers.
    """
    module = importlib.import_module(package)
    if not hasattr(module, "__path__"):
        return dict(_public(module, first))
    every: dict[str, Callable[..., Any]] = {}
    for name in sorted(info.name for info in pkgutil.iter_modules(module.__path__)):
        if not name.startswith("_"):
            inner = importlib.import_module(f"{package}.{name}")
            every |= {f"{name}.{function}": value for function, value in _public(inner, first)}
    return every


def find(
    kind: str,
    name: str,
    known: Mapping[str, Callable[..., Any]],
    *,
    first: str | tuple[str, ...] = "policy",
    listed: str = "",
) -> Callable[..., Any]:
    """Return a function by its name: one that is known, or `module.function` of any importable module.

    Args:
        kind: what it is, for the error: "objective".
        name: of the function.
        known: those of the package, by name, which come first; see `functions`.
        first: the name of its first parameter, or several that it may have.
        listed: where all names are listed, for the error: "python -m slpojax.objectives".

    Raises:
        ValueError: there is no such function; names the near ones.
    """
    if name in known:
        return known[name]
    module_name, _, function_name = name.rpartition(".")
    module = _imported(module_name)
    function = getattr(module, function_name, None)
    if function is not None and _takes(function, first):
        return function
    here = vars(module) if module else {}
    inside = [f"{module_name}.{other}" for other, value in here.items() if _takes(value, first)]
    firsts = " or ".join(f"`{name}`" for name in ([first] if isinstance(first, str) else first))
    also = f"any importable module.function whose first parameter is {firsts}{wording.near(name, inside)}"
    raise wording.unknown(kind, name, known, listed=listed, also=also)


def find_module(kind: str, name: str, package: str, *, having: Collection[str] = ()) -> ModuleType:
    """Return a module by its name: one of a package, or any importable one.

    Args:
        kind: what it is, for the error: "world".
        name: of the module.
        package: the package that is searched first.
        having: what makes a module one of its kind: names that it defines.

    Example:
        >>> find_module("family", "dpo", "slpojax.objectives", having=["sigmoid"]).__name__
        'slpojax.objectives.dpo'

    Raises:
        ValueError: there is no such module, or it lacks something.
    """
    inside = [info.name for info in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    module = importlib.import_module(f"{package}.{name}") if name in inside else _imported(name)
    if module is None:
        raise wording.unknown(
            kind, name, inside, also="any importable module" + (f" with {', '.join(having)}" * bool(having))
        )
    lacking = [part for part in having if not hasattr(module, part)]
    if lacking:
        raise ValueError(f"{kind} {name!r} lacks {', '.join(lacking)}; it needs {', '.join(having)}")
    return module


def choose(kind: str, name: str, table: Mapping[str, _Value], *, listed: str = "") -> _Value:
    """Return what a table holds under a name.

    Example:
        >>> choose("schedule", "linear", {"constant": 0, "linear": 1})
        1
        >>> choose("schedule", "liner", {"constant": 0, "linear": 1})
        Traceback (most recent call last):
        ValueError: unknown schedule 'liner' (near: linear); there are constant, linear

    Raises:
        ValueError: there is no such name; names the near ones.
    """
    if name not in table:
        raise wording.unknown(kind, name, table, listed=listed)
    return table[name]


def _imported(name: str) -> ModuleType | None:
    """Return a module, or None where there is none of this name; what a module itself lacks is an error."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
    except (ValueError, TypeError):  # an empty name, or one that begins with a dot
        pass
    return None


def _public(module: ModuleType, first: str | tuple[str, ...]) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in getattr(module, "__all__", vars(module)):
        value = getattr(module, name)
        if not name.startswith("_") and _takes(value, first):
            if f"{value.__module__}.".startswith(f"{module.__name__}."):  # its own, or from inside of it
                yield name, value


def _takes(value: Any, first: str | tuple[str, ...]) -> bool:
    firsts = (first,) if isinstance(first, str) else first
    return inspect.isfunction(value) and next(iter(inspect.signature(value).parameters), None) in firsts


# ---- binding ---------------------------------------------------------------------------------------------------------


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the hyperparameters of a function and their defaults."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def bind(kind: str, name: str, function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all hyperparameters: these values, the others by default; `beta=1` on a command line means 1.0.

    Raises:
        ValueError: the function has no such hyperparameter, and lists those it has; or see `hyperparameter`.
    """
    known = defaults(function)
    check_keys(kind, name, known, values)
    bound = known | {key: hyperparameter(f"{kind}.{key}", value, known[key]) for key, value in values.items()}
    for key in values:
        for number in _numbers(bound[key]):
            fits = number == 0 or abs(number) >= 1 / LARGEST
            require(fits, f"{kind}.{key}", number, f"0, or a number of at least {1 / LARGEST:g}")
    return bound


def hyperparameter(key: str, value: Any, default: Any) -> Any:
    """Return the value of a hyperparameter, of the type that its default says.

    A word as default also admits a number (a temperature of "length", or 512), and None admits anything that a
    configuration can hold.

    Args:
        key: its name, for the error.
        value: as it was set.
        default: its default.

    Example:
        >>> hyperparameter("objective.beta", 1, 0.1), hyperparameter("objective.temperature", 512, "length")
        (1.0, 512.0)

    Raises:
        ValueError: the value is of another type, or holds a number that float32 does not compute with.
    """
    if default is not None and not is_plain(default):
        return value
    value = _plain(value)
    if default is None:
        require(is_plain(value), key, value, "a number, a word, or several of them")
    else:
        value = typed(key, value, 0.0 if isinstance(default, str) and _is_number(value) else default)
    for number in _numbers(value):
        require(abs(number) <= LARGEST, key, value, f"a finite number from {-LARGEST:g} to {LARGEST:g}")
    return value


def within(
    key: str, value: Any, least: float | int, most: float | int, above: bool = False, below: bool = False
) -> None:
    """Refuse a number out of its range.

    Args:
        key: its name, for the error.
        value: as it was set; None is no number, and what a key without one has.
        least: the smallest.
        most: the largest.
        above: whether it is above `least`, which is then refused itself.
        below: likewise, of `most`.

    Example:
        >>> within("optimizer.b1", 1.0, 0, 1, below=True)
        Traceback (most recent call last):
        ...
        ValueError: optimizer.b1 = 1.0: expected a number from 0 to below 1

    Raises:
        ValueError: it is out of it; says what was expected.
    """
    kind = "a whole number" if isinstance(value, int) else "a number"
    end = f"{most:,}" if isinstance(most, int) else f"{most:g}"
    expected = f"{kind} from {'above ' * above}{least} to {'below ' * below}{end}"
    require(value is None or _is_number(value), key, value, expected)
    if value is not None:
        inside = least <= value <= most and not (above and value == least) and not (below and value == most)
        require(inside, key, value, expected)


def typed(key: str, value: Any, like: Any) -> Any:
    """Return a value as the type of the one that it replaces: 1 for a float is 1.0, 1e4 for an int is 10000.

    One value in place of several is a tuple of it. Those of a tuple are of the type of its first one, where it has one.

    Raises:
        ValueError: it is of another type, or no number that a float can be.
    """
    value = _plain(value)
    if isinstance(like, tuple):
        several = (value,) if isinstance(value, str | int | float) and not isinstance(value, bool) else value
        if isinstance(several, tuple):
            return tuple(typed(f"{key}[{i}]", one, like[0]) for i, one in enumerate(several)) if like else several
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        large = abs(value) >= 2**1000
        return (math.inf if value > 0 else -math.inf) if large else float(value)  # as float("1e400") is
    if isinstance(like, int) and not isinstance(like, bool) and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e4 steps
    if type(value) is not type(like):
        name = type(like).__name__
        raise ValueError(
            f"{key}: got {wording.shown(value)}, expected a{'n' * (name[0] in 'aeiou')} {name} such as {like!r}"
        )
    return value


def is_plain(value: Any) -> bool:
    """Say whether JSON can hold `value` (a tuple becomes a list, which comes back as a tuple)."""
    plain = isinstance(value, type(None) | bool | int | float | str)
    return plain or (isinstance(value, tuple | list) and all(map(is_plain, value)))


def _plain(value: Any) -> Any:
    """Return a number of NumPy or JAX as Python's, and anything else as it is."""
    scalar = isinstance(value, np.generic | np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)
    return value.item() if scalar and value.ndim == 0 else value


def _numbers(value: Any) -> Iterator[float | int]:
    if isinstance(value, tuple | list):
        for one in value:
            yield from _numbers(one)
    elif _is_number(value):
        yield value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_keys(kind: str, name: str, known: Collection[str], keys: Iterable[str]) -> None:
    """Refuse hyperparameters that there are not.

    Raises:
        ValueError: one is not known; lists those that are.
    """
    for key in keys:
        if key not in known:
            said = f"{kind} {wording.shown(name)} has no hyperparameter {wording.shown(key)}{wording.near(key, known)}"
            raise ValueError(f"{said}; it has {', '.join(known) or 'none'}")


def asks(kind: str, name: str, function: Callable[..., Any], offered: Iterable[str]) -> list[inspect.Parameter]:
    """Return the parameters that name what a function asks for.

    Raises:
        ValueError: one is not among what is offered.
    """
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    for parameter in parameters:
        if parameter.name not in offered:
            raise ValueError(
                f"{kind} {name!r} asks for {parameter.name!r}{wording.near(parameter.name, offered)}; it may ask for "
                f"{', '.join(offered)}; a hyperparameter goes behind the *"
            )
    return parameters


def require(holds: Any, key: str, value: Any, expected: str) -> None:
    """Refuse a hyperparameter.

    Args:
        holds: whether the value is one that can be meant; of a traced value nothing is refused.
        key: its name.
        value: as it was set.
        expected: what can be meant.

    Raises:
        ValueError: `holds` is false; names the key, the value and what was expected.
    """
    if not isinstance(holds, jax.core.Tracer) and not np.all(holds):
        raise ValueError(f"{key} = {wording.shown(value)}: expected {expected}")


def numeric(values: Mapping[str, Any], same: Callable[[dict[str, jax.ShapeDtypeStruct]], bool]) -> tuple[str, ...]:
    """Return which hyperparameters may be traced arrays in place of Python numbers.

    Args:
        values: all hyperparameters. Only floats are tried: words, flags and whole numbers choose a program.
        same: runs the function on shapes, with the shape of an array for some hyperparameters, and says whether what
            comes out has the same form as without.
    """
    scalar = jax.ShapeDtypeStruct((), jnp.result_type(float))
    names = []
    for name, value in values.items():
        try:
            if type(value) is float and same({name: scalar}):
                names.append(name)
        except (TypeError, ValueError, AttributeError):  # what JAX, and Python's own mathematics, say of a tracer
            pass
    return tuple(names)


# ---- trees -----------------------------------------------------------------------------------------------------------


def flatten(tree: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Return the leaves of nested mappings by their joined keys, in order; whatever is no mapping is a leaf.

    Example:
        >>> flatten({"data": {"path": "pairs.jsonl", "rows": None}, "seed": 0}, ".")
        {'data.path': 'pairs.jsonl', 'data.rows': None, 'seed': 0}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= {f"{key}{separator}{name}": leaf for name, leaf in flatten(value, separator).items()}
        else:
            leaves[str(key)] = value
    return leaves


def nested(leaves: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Return the nested dict of which `flatten` gives these leaves.

    Example:
        >>> nested({"embed/weight": 1, "head/weight": 2})
        {'embed': {'weight': 1}, 'head': {'weight': 2}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split(separator)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
