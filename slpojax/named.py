"""Functions that a configuration names: found, bound to their hyperparameters, refused with the near matches.

What `slpojax.objectives` and `slpojax.selectors` share. Knows signatures: positional parameters, the first of which is
`policy`, are what a function asks for, keyword-only ones are its hyperparameters. Knows no objective and no selector.
"""

import difflib
import importlib
import inspect
import math
import pathlib
from collections.abc import Callable, Collection, Iterable
from types import ModuleType
from typing import Any


def functions(module: ModuleType) -> list[str]:
    """Return the names of a module's own public functions whose first parameter is `policy`."""
    return [
        name
        for name, value in vars(module).items()
        if _fits(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


def find(kind: str, name: str, package: str, names: Callable[[], list[str]]) -> Callable[..., Any]:
    """Return a function by its name in a package or in any importable module.

    Args:
        kind: what it is, for the error: "objective".
        name: `module.function`, or `function` alone where it stands in `package` itself.
        package: the package, or module, that is searched first.
        names: gives what there is in it, for the error.

    Raises:
        ValueError: there is no such function; lists the near ones.
    """
    module_name, _, function_name = name.rpartition(".")
    for candidate in (f"{package}.{module_name}".rstrip("."), module_name):
        try:
            module = importlib.import_module(candidate)
        except ModuleNotFoundError as error:
            # Only that this very module is missing means "look elsewhere"; what it misses itself is the user's news.
            if error.name is None or not f"{candidate}.".startswith(f"{error.name}."):
                raise
        except ValueError:  # an empty module name
            pass
        else:
            function = getattr(module, function_name, None)
            if function is not None and _fits(function):
                return function
    everything = names()
    raise ValueError(
        f"unknown {kind} {name!r}{near(name, everything)}; there are {', '.join(everything)}, or any importable "
        "package.module.function whose first parameter is `policy`"
    )


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the hyperparameters of a function and their defaults."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def bind(kind: str, name: str, function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return all hyperparameters: those given, the others by default; `beta=1` on a command line means 1.0.

    Raises:
        ValueError: the function has no such hyperparameter, and lists those it has; or a number is not finite.
    """
    known = defaults(function)
    check_keys(kind, name, known, given)
    numbers = {k: float(v) if type(v) is int and type(known[k]) in (float, str) else v for k, v in given.items()}
    for key, value in numbers.items():
        require(not isinstance(value, float) or math.isfinite(value), f"{kind}.{key}", value, "a finite number")
    return known | numbers


def check_keys(kind: str, name: str, known: Collection[str], given: Iterable[str]) -> None:
    """Refuse hyperparameters that there are not.

    Raises:
        ValueError: one is not known; lists those that are.
    """
    for key in given:
        if key not in known:
            raise ValueError(
                f"{kind} {name!r} has no hyperparameter {key!r}{near(key, known)}; it has {', '.join(known) or 'none'}"
            )


def asks(kind: str, name: str, function: Callable[..., Any], offered: Iterable[str]) -> list[inspect.Parameter]:
    """Return the parameters that name what a function asks for.

    Raises:
        ValueError: one is not among what is offered.
    """
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    for parameter in parameters:
        if parameter.name not in offered:
            raise ValueError(
                f"{kind} {name!r} asks for {parameter.name!r}, which the step does not give; it gives "
                f"{', '.join(offered)}; a hyperparameter goes behind the *"
            )
    return parameters


def require(holds: bool, key: str, value: Any, expected: str) -> None:
    """Refuse a hyperparameter.

    Raises:
        ValueError: `holds` is false; names the key, the value and what was expected.
    """
    if not holds:
        raise ValueError(f"{key} = {value!r}: expected {expected}")


def near(word: str, words: Iterable[str]) -> str:
    """Return " (near: ...)" with the words that resemble this one, or ""."""
    close = difflib.get_close_matches(word, list(words), n=3)
    return f" (near: {', '.join(close)})" if close else ""


def near_paths(path: str | pathlib.Path, hub_cache: str = "", kind: str = "") -> str:
    """Return " (near: ...)" with the paths, and the downloaded names, that resemble one that does not exist, or "".

    Args:
        path: is followed down to its first part that does not exist; what resembles this part is near.
        hub_cache: the hub's own folder on this machine, where `path` may be a name on the hub.
        kind: of what is looked for there, "models" or "datasets".
    """
    missing = pathlib.Path(path).expanduser()
    while not missing.parent.exists():
        missing = missing.parent
    here = {other.name: str(missing.parent / other.name) for other in missing.parent.glob("*")}
    close = [here[name] for name in difflib.get_close_matches(missing.name, here, n=3)]
    names = [folder.name.removeprefix(f"{kind}--") for folder in pathlib.Path(hub_cache or ".").glob(f"{kind}--*--*")]
    close += difflib.get_close_matches(str(path), [name.replace("--", "/") for name in names], n=3)
    return f" (near: {', '.join(close)})" if close else ""


def _fits(value: Any) -> bool:
    return inspect.isfunction(value) and next(iter(inspect.signature(value).parameters), None) == "policy"
