"""Readers: scores of tokens that are read off a model's hidden states; the contract, and which reader gives what.

Knows names, sizes and arrays; knows no model family, no vocabulary and no objective. A reader is a module of this
package with a `READER`, or a `Reader` that an objective's own module lists in its `READERS`, with its `needs`. What an
objective asks for by one of the names that a reader `gives` is read where a scored token is predicted, [K, T] or with
further axes behind these, 0 where there is no token; the gradient flows to the reader's parameters and, of the policy's
states, to the policy.

A reader may have parameters of its own. They stand beside the policy's under `KEY`, are trained, saved and resumed with
them, and are part of neither the exported model nor a reference.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax

from slpojax import needs
from slpojax.base import Array, Key, Params
from slpojax.needs import Need

# Where a policy's parameters hold those of readers, by name: no model has a module of this name.
KEY = "readers"


class Sizes(NamedTuple):
    """What the parameters of a reader may be sized by: N layers of width D, and K candidates of an example."""

    layers: int
    width: int
    candidates: int


class Reader(NamedTuple):
    """A reader.

    Attributes:
        gives: the names of its scores.
        of: whose states it reads: "policy" or "reference". A reference's get no gradient.
        layers: True for the outputs of all layers, [N, G, S, D]; False for the final hidden states, [G, S, D].
        learned: (sizes, name of a score) -> the linear maps that it learns for that score, for `linear`; () for none.
        read: (its parameters by name of the score, states, requested names) -> {name: [G, S, ...]}.
        needs: the entries of `slpojax.needs` of a reader outside this package, by the names of its scores.
    """

    gives: tuple[str, ...]
    of: str
    layers: bool
    learned: Callable[[Sizes, str], Any]
    read: Callable[[Params, Array, Collection[str]], dict[str, Array]]
    needs: Mapping[str, Need] = {}


_ADOPTED: list[Reader] = []  # of modules outside this package


@functools.cache
def bundled() -> tuple[Reader, ...]:
    """Return the readers of this package."""
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}").READER for name in modules)


def adopt(module: ModuleType) -> None:
    """Let objectives ask for what the readers of a module give.

    Args:
        module: where an objective stands; its `READERS`, if it has some.

    Raises:
        ValueError: a reader gives what another one gives, or lacks the need of a score.
    """
    for reader in getattr(module, "READERS", ()):
        if reader in _ADOPTED:
            continue
        for name in reader.gives:
            if name not in reader.needs:
                raise ValueError(
                    f"{module.__name__}: a reader gives {name!r}, but has no needs[{name!r}] that says what"
                )
            if reader.needs[name].weights_of_reference != (reader.of == "reference"):
                raise ValueError(f"{module.__name__}: {name!r} is of the {reader.of}; its need says another thing")
            needs.add(name, reader.needs[name])
        _ADOPTED.append(reader)


def needed(requested: Collection[str]) -> tuple[Reader, ...]:
    """Return the readers that give one of the requested names; those that no reader gives are nobody's."""
    return tuple(reader for reader in (*bundled(), *_ADOPTED) if set(reader.gives) & set(requested))


def learned(used: Iterable[Reader], sizes: Sizes, requested: Collection[str]) -> dict[str, Any]:
    """Return the sizes of what readers learn, by the name of the score, as `draw` takes them."""
    of_names = {name: reader.learned(sizes, name) for reader in used for name in reader.gives if name in requested}
    return {name: layers for name, layers in of_names.items() if layers}


def draw(key: Key, sizes: Mapping[str, Any]) -> Params:
    """Draw the parameters of readers, to be joined to the policy's.

    Args:
        key: random; every name draws from a key of its own.
        sizes: by name, as `linear` takes them; where there are none, nothing is drawn.

    Example:
        >>> jax.tree.map(jax.numpy.shape, draw(jax.random.key(0), {"mine": (2, 3)}))
        {'readers': {'mine': {'bias': (2,), 'weight': (2, 3)}}}
        >>> draw(jax.random.key(0), {})
        {}
    """
    return {KEY: linear(key, sizes)} if sizes else {}


def linear(key: Key, sizes: Any) -> Params:
    """Draw linear layers, uniform within 1 / sqrt(width) as PyTorch's start.

    Args:
        key: random.
        sizes: (N, D) of one layer of N outputs, or a dict of such by name, nested at will.

    Returns:
        {"weight": [N, D], "bias": [N]}, float32, in the place of each (N, D).
    """
    if not isinstance(sizes, tuple):
        keys = jax.random.split(key, len(sizes))
        return {name: linear(key, sizes[name]) for name, key in zip(sorted(sizes), keys, strict=True)}
    size, width = sizes
    bound, (weight, bias) = width**-0.5, jax.random.split(key)
    return {
        "weight": jax.random.uniform(weight, (size, width), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias, (size,), minval=-bound, maxval=bound),
    }


def of(params: Params) -> Params:
    """Return the parameters of readers among a policy's, by name."""
    return params.get(KEY, {})


def without(params: Params) -> Params:
    """Return a policy's parameters as the model knows them, without those of readers."""
    return {name: value for name, value in params.items() if name != KEY}
