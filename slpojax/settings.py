"""From a configuration file and a command line to one frozen configuration, in which every key is known.

Knows files, overrides, types and near matches; knows no objective and no optimiser: what they are called and which
hyperparameters they have, it learns from `Choices`.
"""

import ast
import inspect
import json
import pathlib
import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ml_collections import ConfigDict, FrozenConfigDict

from slpojax import named
from slpojax.defaults import get_config

# Group of the configuration -> (name -> that function's keyword arguments and their defaults). Raises ValueError for a
# name that does not exist.
Choices = Mapping[str, Callable[[str], Mapping[str, Any]]]

Config = ConfigDict | FrozenConfigDict  # what `resolve` returns, and what bench and acts read

_PLAIN = (type(None), bool, int, float, str)


def from_command_line(arguments: Sequence[str], *, default: str, choices: Choices) -> FrozenConfigDict:
    """Return the configuration that a command line asks for; end the program with a message where it is wrong.

    Args:
        arguments: `sys.argv[1:]`: `--config=FILE` and any number of `--config.KEY=VALUE` or `--config.KEY VALUE`.
        default: the file that counts where the command line names none.
        choices: group with a `name` -> (name) -> the hyperparameters of that function, with their defaults.
    """
    try:
        path, overrides = parse(arguments, default=default)
        path = _shipped(path)
        config = load_file(path)
        if "--help" in arguments or "-h" in arguments:
            sys.stdout.write(_help(path, config))
            raise SystemExit(0)
        return resolve(config, overrides, choices=choices)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def parse(arguments: Sequence[str], *, default: str) -> tuple[str, dict[str, str]]:
    """Split a command line into the configuration file and the overrides, as text.

    >>> parse(["--config=configs/dpo_hh.py", "--config.batch_size=32", "--config.export", "false"], default="")
    ('configs/dpo_hh.py', {'batch_size': '32', 'export': 'false'})

    Raises:
        ValueError: an argument has another form, or lacks its value.
    """
    path, overrides, rest = default, {}, list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("--help", "-h"):
            continue
        match = re.fullmatch(r"--?config(?:\.([\w.]+))?(?:=(.*))?", argument, flags=re.DOTALL)
        if match is None:
            raise ValueError(f"{argument}: expected --config=FILE or --config.KEY=VALUE")
        key, value = match.groups()
        if value is None:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{argument}: expected a value, as in {argument}=...")
            value = rest.pop(0)
        if key is None:
            path = value
        else:
            overrides[key] = value
    return path, overrides


def load_file(path: str) -> ConfigDict:
    """Return what `get_config()` of the Python file at `path` returns.

    Raises:
        ValueError: no such file, no `get_config` in it, or it sets a key that `slpojax/defaults.py` lacks.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"--config={path}: no such file, seen from {pathlib.Path.cwd()}{named.near_paths(path)}")
    namespace = runpy.run_path(path)
    if "get_config" not in namespace:
        raise ValueError(f"--config={path}: the file has no function get_config(); see slpojax/defaults.py")
    try:
        return namespace["get_config"]()
    except (AttributeError, KeyError, TypeError) as error:  # what a locked ConfigDict raises for unknown keys and types
        raise ValueError(f"--config={path}: {error}") from error


def resolve(config: ConfigDict, overrides: Mapping[str, Any], *, choices: Choices) -> FrozenConfigDict:
    """Return `config` with `overrides` applied, every key and type checked, and every hyperparameter spelt out.

    A group of `choices` holds the name of a function and that function's own keyword arguments. Where an override
    changes the name, the hyperparameters in `config` belonged to another function and are dropped: the new function
    starts from its own defaults.

    Args:
        config: what a configuration file returns.
        overrides: dotted key -> value; text is read as the type of the value that it replaces.
        choices: group -> (name -> the keyword arguments that this function has, with their defaults).

    Raises:
        ValueError: a key, a hyperparameter or a type is wrong; the message names it and lists near matches.
    """
    result = _with_tuples(config.to_dict())
    chosen: dict[str, dict[str, Any]] = {group: {} for group in choices}
    for key, value in overrides.items():
        group, _, rest = key.partition(".")
        if group in choices and rest:
            chosen[group][rest] = value
            continue
        *path, leaf = key.split(".")
        node = result
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node:
            _unknown(key, flat(result))
        node[leaf] = _convert(f"config.{key}", value, node[leaf])
    for group, defaults in choices.items():
        result[group] = _choose(group, result[group], chosen[group], defaults)
    return FrozenConfigDict(result)


def replace(config: ConfigDict, changes: Mapping[str, Any]) -> FrozenConfigDict:
    """Return a copy of a resolved `config` with the values of some (dotted) keys changed, checked like overrides.

    >>> replace(FrozenConfigDict({"model": {"path": ""}}), {"model.path": "output/policy"}).model.path
    'output/policy'
    """
    return resolve(ConfigDict(config), changes, choices={})


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested dictionary under their dotted keys.

    >>> flat({"seed": 0, "mesh": {"data": -1, "fsdp": 1}})
    {'seed': 0, 'mesh.data': -1, 'mesh.fsdp': 1}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves


def dump(config: ConfigDict) -> str:
    """Return `config` as JSON text, one line per key, which `load` reads back."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True, allow_nan=False)


def load(text: str) -> FrozenConfigDict:
    """Return the configuration that `dump` wrote.

    >>> load(dump(FrozenConfigDict({"betas": (0.9, 0.95), "name": "adamw"}))).betas
    (0.9, 0.95)
    """
    return FrozenConfigDict(_with_tuples(json.loads(text)))


def _choose(group: str, current: dict[str, Any], overrides: dict[str, Any], defaults: Callable) -> dict[str, Any]:
    """Return {"name": ..., and every hyperparameter of that function}."""
    name = overrides.get("name", current["name"])
    known = defaults(name)
    inherited = current if name == current["name"] else {}
    values = {"name": name} | {key: value for key, value in known.items() if _is_plain(value)}
    for key, value in (inherited | overrides).items():
        if key == "name":
            continue
        named.check_keys(f"config.{group}", name, known, [key])
        values[key] = _convert_hyperparameter(f"config.{group}.{key}", value, known[key])
    return values


def _convert(key: str, value: Any, old: Any) -> Any:
    """Return `value` as the type of `old`, the value it replaces."""
    if isinstance(old, dict):
        raise ValueError(f"{key}: a group of keys; set one of {', '.join(f'{key}.{leaf}' for leaf in old)}")
    if isinstance(value, str) and not isinstance(old, str):
        value = _literal(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, int) and not isinstance(old, bool) and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e4 steps
    if type(value) is not type(old):
        raise ValueError(f"{key}: got {value!r}, expected {_article(old)} such as {old!r}")
    return value


def _convert_hyperparameter(key: str, value: Any, default: Any) -> Any:
    """Return `value` read as a literal, and checked where the default's type says what it can be.

    A word as default also admits a number (a temperature of "length", or 512), and None admits anything.
    """
    value = _literal(value) if isinstance(value, str) else value
    if default is None or not _is_plain(default):
        return value
    if isinstance(default, str) and isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return _convert(key, value, default)


def _literal(text: str) -> Any:
    """Return the Python value that `text` spells, `true` and `false` included, or the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError):
        return text


def _is_plain(value: Any) -> bool:
    """Say whether JSON can hold `value` (a tuple becomes a list, which comes back as a tuple)."""
    return isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


def _with_tuples(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _with_tuples(value) for key, value in tree.items()}
    return tuple(map(_with_tuples, tree)) if isinstance(tree, list) else tree


def _shipped(path: str) -> str:
    """Return where a configuration file lies: as it is written, or, for `configs/...`, beside the installed package."""
    shipped = pathlib.Path(__file__).resolve().parents[1] / path
    if pathlib.Path(path).exists() or pathlib.Path(path).parts[:1] != ("configs",) or not shipped.is_file():
        return path
    sys.stderr.write(f"{path}: the one that comes with slpojax, {shipped}\n")  # JAX does not know the first host yet
    return str(shipped)


def _unknown(key: str, known: Iterable[str]) -> NoReturn:
    near = re.sub("(?<=[:,] )", "config.", named.near(key, known))
    raise ValueError(f"unknown key 'config.{key}'{near}; --help lists all, and slpojax/defaults.py explains each")


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _help(path: str, config: ConfigDict) -> str:
    comments, name = _comments(), config.objective.name
    place = {key: i for i, key in enumerate(comments)}
    values = flat(ConfigDict(config).to_dict())
    # As in the file that explains them, where one comment leads to the next; hyperparameters follow their function.
    keys = sorted(
        values, key=lambda key: (place[key if key in place else f"{key.partition('.')[0]}.name"], key not in place)
    )
    lines = ["usage: --config=FILE --config.KEY=VALUE ...", "", f"The keys, with their values in {path}:"]
    for key in keys:
        lines += ["", f"  --config.{key}={values[key]}"]
        text = comments.get(key, "")
        lines += textwrap.wrap(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    lines += ["", f"The hyperparameters of {name} are explained by: python -m slpojax.objectives {name}", ""]
    return "\n".join(lines)


def _comments() -> dict[str, str]:
    """Return the comment on every key that has one, from the source of `slpojax/defaults.py`."""
    comments, above, group = {}, [], ""
    for line in inspect.getsource(sys.modules[get_config.__module__]).splitlines():
        if function := re.match(r"def _?(\w+)\(\)", line):
            group = "" if function[1] == "get_config" else f"{function[1]}."
        if comment := re.match(r"\s+# (.*)", line):
            above.append(comment[1])
        elif key := re.match(r"\s+c\.([\w.]+) = (ConfigDict\(\{)?.*?(?:  # (.*))?$", line):
            text = " ".join([*above, key[3]] if key[3] else above)
            comments[f"{group}{key[1]}" + ".name" * bool(key[2])] = text
            above = []
        elif not line.strip().startswith("c."):
            above = []
    return comments
