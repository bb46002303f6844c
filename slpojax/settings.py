"""From a configuration file and a command line to one frozen configuration, in which every key is known.

Knows files, overrides, types and near matches; knows no objective and no optimiser: what they are called and which
hyperparameters they have, it learns from `Choices`.
"""

import ast
import inspect
import json
import math
import pathlib
import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ml_collections import ConfigDict, FrozenConfigDict

from slpojax import named, places, wording
from slpojax.defaults import FLOAT32, RANGES, SOURCE, WORDS, get_config

# Group of the configuration -> (name -> that function's keyword arguments and their defaults). Raises ValueError for a
# name that does not exist.
Choices = Mapping[str, Callable[[str], Mapping[str, Any]]]

Config = ConfigDict | FrozenConfigDict  # what `resolve` returns, and what bench and acts read

# Groups whose keys are names of one's own: sources, and variables of a chat template.
_MIXTURE, _ARGUMENTS = "data.mixture", "data.chat_template_kwargs"
_FUNCTIONS = ("objective", "selector", "optimizer")  # groups whose keys are those of a function
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # of them, what is no character at all
_LONGEST, _PART = 2**14, 255  # characters of a text; bytes of a file's name, more of which no file system takes


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
            raise ValueError(f"{_short(argument)}: expected --config=FILE or --config.KEY=VALUE")
        key, value = match.groups()
        if value is None:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{_short(argument)}: expected a value, as in {_short(argument)}=...")
            value = rest.pop(0)
        if key is None:
            path = value
        else:
            overrides[key] = value
    return path, overrides


def load_file(path: str) -> ConfigDict:
    """Return what `get_config()` of the Python file at `path` returns.

    Raises:
        ValueError: no such file, no Python, no `get_config` in it, or it sets a key that `slpojax/defaults.py` lacks,
            or lacks one that is there.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"--config={path}: no such file, seen from {pathlib.Path.cwd()}{wording.near_paths(path)}")
    try:
        namespace = runpy.run_path(path)
    except (SyntaxError, UnicodeDecodeError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else "not UTF-8"
        raise ValueError(f"--config={path}: the file is no Python ({where}); see configs/base.py") from error
    if "get_config" not in namespace:
        raise ValueError(f"--config={path}: the file has no function get_config(); see slpojax/defaults.py")
    try:
        config = namespace["get_config"]()
    except (AttributeError, KeyError, TypeError) as error:  # what a locked ConfigDict raises for unknown keys and types
        raise ValueError(f"--config={path}: {error}") from error
    has = named.flatten(config.to_dict(), ".") if isinstance(config, ConfigDict) else {}
    if lacks := named.flatten(get_config().to_dict(), ".").keys() - has.keys():
        raise ValueError(
            f"--config={path}: get_config() returned {type(config).__name__}, which lacks {len(lacks)} keys such as "
            f"{min(lacks)}; start from configs.base.get_config() and change some of them"
        )
    return config


def resolve(config: ConfigDict, overrides: Mapping[str, Any], *, choices: Choices) -> FrozenConfigDict:
    """Return `config` with `overrides` applied, every key, type and range checked, and every hyperparameter spelt out.

    A group of `choices` holds the name of a function and that function's own keyword arguments. Where an override
    changes the name, the hyperparameters in `config` belonged to another function and are dropped: the new function
    starts from its own defaults.

    Args:
        config: what a configuration file returns.
        overrides: dotted key -> value; text is read as the type of the value that it replaces.
        choices: group -> (name -> the keyword arguments that this function has, with their defaults).

    Raises:
        ValueError: a key, a hyperparameter, a type or a value is wrong; the message names it and lists near matches.
    """
    result = _with_tuples(config.to_dict())
    chosen: dict[str, dict[str, Any]] = {group: {} for group in choices}
    free: dict[str, dict[str, Any]] = {_MIXTURE: {}, _ARGUMENTS: {}}
    for key, value in overrides.items():
        within = next((group for group in free if f"{key}.".startswith(f"{group}.")), "")
        if within:
            free[within][key] = value
            continue
        group, _, rest = key.partition(".")
        if group in choices and rest:
            chosen[group][rest] = value
            continue
        *path, leaf = key.split(".")
        node = result
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node:
            _unknown(key, named.flatten(result, "."))
        node[leaf] = _convert(f"config.{key}", value, node[leaf])
    if "mixture" in result.get("data", {}):
        result["data"]["mixture"] = _sources(result["data"]["mixture"], free[_MIXTURE])
        arguments = _arguments(result["data"]["chat_template_kwargs"], free[_ARGUMENTS])
        result["data"]["chat_template_kwargs"] = arguments
    for group, defaults in choices.items():
        result[group] = _choose(group, result[group], chosen[group], defaults)
    for key, value in named.flatten(result, ".").items():
        check(key, value)
    return FrozenConfigDict(result)


def check(key: str, value: Any) -> None:
    """Refuse a value of a key that no run can mean, whatever the rest of the configuration.

    Example:
        >>> check("reference.mix", 1.5)
        Traceback (most recent call last):
        ...
        ValueError: config.reference.mix = 1.5: expected a number from above 0 to 1

    Raises:
        ValueError: it is out of its range, none of its words, or a text that no file and no name can be.
    """
    if key in WORDS and value not in WORDS[key]:
        raise wording.unknown(f"config.{key}", value, [word or "'' (nothing)" for word in WORDS[key]])
    table = re.sub(rf"^{re.escape(_MIXTURE)}\.[^.]+", f"{_MIXTURE}.*", key)
    if table in RANGES:
        named.within(f"config.{key}", value, *RANGES[table])
    for number in value if isinstance(value, tuple) else ():
        if isinstance(number, float):
            named.within(f"config.{key}", number, -FLOAT32, FLOAT32)
    if isinstance(value, str):
        _check_text(f"config.{key}", value)


def notes(config: ConfigDict, steps: int, *, reference: bool) -> list[str]:
    """Return what a run of this configuration will do that its keys do not say at first sight, a line each.

    Args:
        config: every key of slpojax/defaults.py.
        steps: of the run.
        reference: whether the objective compares with a reference.
    """
    lines = []
    all_steps = config.schedule_steps or steps  # of the runs that share a schedule
    if config.warmup_steps >= all_steps:
        reached = all_steps / (config.warmup_steps + 1)
        lines.append(
            f"warning: the warm-up of {config.warmup_steps:,} steps is as long as the run of {all_steps:,}: the "
            f"learning rate ends at {reached:.0%} of its peak; lower config.warmup_steps"
        )
    often, every = config.checkpoint_every, config.eval_every
    if config.keep_best and often > 0 and (config.world or evaluated(config)) and (every == 0 or often % every):
        both = math.lcm(often, every)
        ranked = f"those of every {both:,} steps and " if 0 < both < steps else ""
        lines.append(
            f"warning: keep_best={config.keep_best} ranks {ranked}the last checkpoint alone: no evaluation falls on "
            f"the others; let config.checkpoint_every={often} be a multiple of eval_every={every}"
        )
    if reference and config.model.dtype == "bfloat16":
        lines.append(
            "model.dtype=bfloat16: a step scores the policy by another program than the reference was scored by; until "
            "the policy moves, margins in training are rounding (0.05 nats and more), while those of evaluations are 0"
        )
    return lines


def evaluated(config: ConfigDict) -> bool:
    """Say whether data are held out, by keys of `data` or of a source of its mixture."""
    d = config.data
    return any(one.eval_path or one.eval_split or one.eval_rows for one in (d, *d.mixture.values()))


def replace(config: ConfigDict, changes: Mapping[str, Any]) -> FrozenConfigDict:
    """Return a copy of a resolved `config` with the values of some (dotted) keys changed, checked like overrides.

    >>> replace(FrozenConfigDict({"model": {"path": ""}}), {"model.path": "output/policy"}).model.path
    'output/policy'
    """
    return resolve(ConfigDict(config), changes, choices={})


def dump(config: ConfigDict) -> str:
    """Return `config` as JSON text, one line per key, which `load` reads back."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True, allow_nan=False)


def load(text: str) -> FrozenConfigDict:
    """Return the configuration that `dump` wrote.

    >>> load(dump(FrozenConfigDict({"betas": (0.9, 0.95), "name": "adamw"}))).betas
    (0.9, 0.95)
    """
    return FrozenConfigDict(_with_tuples(json.loads(text)))


def of_run(folder: str | places.Path) -> FrozenConfigDict:
    """Return the configuration of the run whose output folder this is.

    Raises:
        ValueError: it holds no config.json, or a damaged one, or that of another version of slpojax.
    """
    file = places.path(folder) / "config.json"
    with places.reaching(file, "read"):
        if not file.is_file():
            raise ValueError(f"{folder} holds no config.json; give the output folder of a run")
        text = file.read_bytes()
    try:
        config = load(text.decode())
        has = named.flatten(config.to_dict(), ".")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}); bring it back from a copy") from error
    expected = named.flatten(get_config().to_dict(), ".")
    if lacks := expected.keys() - has.keys() - {key for key in expected if key.partition(".")[0] in _FUNCTIONS}:
        raise ValueError(f"{file} lacks {wording.few(sorted(lacks), 3)}: another version of slpojax wrote it")
    return config


def _choose(group: str, current: dict[str, Any], overrides: dict[str, Any], defaults: Callable) -> dict[str, Any]:
    """Return {"name": ..., and every hyperparameter of that function}."""
    name = named.typed(f"config.{group}.name", overrides.get("name", current["name"]), "")
    _check_text(f"config.{group}.name", name)
    known = defaults(name)
    inherited = current if name == current["name"] else {}
    values = {"name": name} | {key: value for key, value in known.items() if named.is_plain(value)}
    for key, value in (inherited | overrides).items():
        if key == "name":
            continue
        named.check_keys(f"config.{group}", name, known, [key])
        value = _literal(value) if isinstance(value, str) else value
        values[key] = named.hyperparameter(f"config.{group}.{key}", value, known[key])
    return values


def _sources(said: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the sources of a mixture, in the order of their names, each with all its keys.

    Args:
        said: name -> some keys of a source.
        overrides: dotted key of the configuration -> value; a name that is new is a new source.
    """
    group = f"config.{_MIXTURE}"
    made = {name: dict(one) if isinstance(one, Mapping) else one for name, one in said.items()}
    for key, value in overrides.items():
        name, _, leaf = key.removeprefix(_MIXTURE).removeprefix(".").partition(".")
        if not leaf or not isinstance(made.get(name, {}), dict):
            raise ValueError(f"config.{key}: a group of keys; set those of a source, as {group}.NAME.path")
        made.setdefault(name, {})[leaf] = value
    for name, one in made.items():
        named.require(re.fullmatch(r"[\w-]{1,40}", name), group, name, "names of letters, digits, _ and - as its keys")
        if not isinstance(one, dict):
            raise ValueError(
                f"{group}.{name}: got {wording.shown(one)}, expected the keys of a source: {', '.join(SOURCE)}"
            )
        for leaf in one:
            if leaf not in SOURCE:
                raise wording.unknown(f"key of {group}.{name}", leaf, SOURCE)
    return {
        name: {
            leaf: _convert(f"{group}.{name}.{leaf}", made[name].get(leaf, like), like) for leaf, like in SOURCE.items()
        }
        for name in sorted(made)
    }


def _arguments(said: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables that a chat template is given, in the order of their names; text of an override is read."""
    made = dict(said)
    for key, value in overrides.items():
        made[key.removeprefix(_ARGUMENTS).removeprefix(".")] = _literal(value) if isinstance(value, str) else value
    for name in made:
        if not name.isidentifier():
            raise ValueError(f"config.{_ARGUMENTS}: a group of keys; set one, as config.{_ARGUMENTS}.enable_thinking")
    return {name: named.hyperparameter(f"config.{_ARGUMENTS}.{name}", made[name], None) for name in sorted(made)}


def _convert(key: str, value: Any, old: Any) -> Any:
    """Return `value` as the type of `old`, the value it replaces."""
    if isinstance(old, dict):
        raise ValueError(f"{key}: a group of keys; set one of {', '.join(f'{key}.{leaf}' for leaf in old)}")
    if isinstance(value, str) and not isinstance(old, str):
        value = _literal(value)
    return named.typed(key, value, old)


def _check_text(key: str, text: str) -> None:
    """Refuse a text that can be neither a name nor a path, nor several of them."""
    named.require(len(text) <= _LONGEST, key, text, f"at most {_LONGEST:,} characters")
    named.require(not _CONTROL.search(text), key, text, "a text on one line, without control characters")
    longest = max((len(part.encode(errors="replace")) for part in re.split("[/,+]", text)), default=0)
    named.require(longest <= _PART, key, text, f"names of files of at most {_PART} bytes")


def _literal(text: str) -> Any:
    """Return the Python value that `text` spells, `true` and `false` included, or the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # the last two of deep nests of brackets
        return text


def _with_tuples(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _with_tuples(value) for key, value in tree.items()}
    return tuple(map(_with_tuples, tree)) if isinstance(tree, list) else tree


def _shipped(path: str) -> str:
    """Return where a configuration file lies: as it is written, or, for `configs/...`, beside the installed package."""
    _check_text("--config", path)
    shipped = pathlib.Path(__file__).resolve().parents[1] / path
    if pathlib.Path(path).exists() or pathlib.Path(path).parts[:1] != ("configs",) or not shipped.is_file():
        return path
    sys.stderr.write(f"{path}: the one that comes with slpojax, {shipped}\n")  # JAX does not know the first host yet
    return str(shipped)


def _unknown(key: str, known: Iterable[str]) -> NoReturn:
    near = re.sub("(?<=[:,] )", "config.", wording.near(key, known))
    raise ValueError(
        f"unknown key {wording.shown(f'config.{key}')}{near}; --help lists all, and slpojax/defaults.py explains each"
    )


def _short(argument: str) -> str:
    return argument if argument.isprintable() and len(argument) <= _PART else wording.shown(argument)


def _help(path: str, config: ConfigDict) -> str:
    comments, name = _comments(), config.objective.name
    place = {key: i for i, key in enumerate(comments)}

    def explained(key: str) -> str:
        """Return the key whose comment explains this one: itself, or the group in which names are free."""
        groups = (f"{key.rsplit('.', parts)[0]}.name" for parts in range(1, key.count(".") + 1))
        return key if key in place else next(group for group in groups if group in place)

    values = named.flatten(ConfigDict(config).to_dict(), ".")
    # As in the file that explains them, where one comment leads to the next; hyperparameters follow their function.
    keys = sorted(values, key=lambda key: (place[explained(key)], key not in place))
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
