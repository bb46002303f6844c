"""The shape of the house: who may import whom, which keys there are, and that what the documents name exists."""

import ast
import graphlib
import importlib
import inspect
import pathlib
import pkgutil
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator

import pytest

import slpojax
from configs import base
from slpojax import defaults, hf, models, named, optim, settings
from slpojax.data import candidates, counting, orders, pairing, templates, tokenise, too_long

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "slpojax"


def floors() -> tuple[set[str], ...]:
    """Return the modules of every floor, the lowest first, as README's table has them."""
    rows = re.findall(r"^\| (\d), [^|]*\| (.*) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*range(len(rows), 0, -1)], "floors are numbered from the top"
    return tuple(set(re.findall(r"`(\w+)`", names)) for _, names in reversed(rows))


# Imports point down only; within a floor, nobody imports a neighbour, but for base. Packages are one tenant each.
FLOORS = floors()
FLOOR = {tenant: floor for floor, tenants in enumerate(FLOORS) for tenant in tenants}
LEAVES = ("base", "places", "wording")  # they import nothing of the package, and all may import them
PROGRAMS = len(FLOORS) - 2  # above them stand programs of programs
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "base"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

KEYS = """
    accumulate batch_size best_metric checkpoint_every clip_norm compiled data.accept data.accept_beta data.bos
    data.cache data.candidates data.chat_template data.degrade data.end data.eval_format data.eval_path data.eval_rows
    data.eval_split data.format data.least_gap data.least_variance data.length_penalty data.match_prompts
    data.max_length data.max_prompt_length data.mismatched data.order data.pack data.pairs data.path data.row_length
    data.rows data.samples data.split data.swapped data.ties data.tokenizer data.too_long data.turns data.unpair
    diagnostics epochs eval_every evaluate.baseline evaluate.bins evaluate.constant evaluate.control evaluate.judged
    evaluate.questions evaluate.reference evaluate.run evaluate.samples evaluate.step evaluate.to export export_dtype
    export_merged frontier.at_once frontier.budgets frontier.known frontier.only frontier.page frontier.seeds
    generate.count generate.engine generate.engine_key generate.engine_model generate.engine_requests
    generate.engine_timeout generate.format generate.generator generate.max_new_tokens generate.min_p generate.mixture
    generate.prompts generate.rows generate.samples generate.second generate.slots generate.split generate.stop
    generate.temperature generate.to generate.top_k generate.top_p judge.name keep_best keep_last learning_rate
    log_every lora.alpha lora.beside lora.rank lora.rank_stabilized lora.targets mesh.data mesh.distributed mesh.fsdp
    mesh.patience mesh.tensor model.attention model.dtype model.family model.frozen_dtype model.head model.path
    model.remat model.weights moments nonfinite nonfinite_limit objective.name online.answers online.follow online.keep
    online.segments online.serve optimizer.name output plan.cache plan.examples plan.lengths plan.model plan.programs
    plan.search plan.topology plan.tries profile ranking reference.batch_size reference.bias_power reference.cache
    reference.ema_power reference.every reference.lag reference.mix reference.mode reference.path reference.previous
    resume schedule schedule_steps scorer seed selection selector.name start steps tensorboard train.what wandb
    warmup_steps world
""".split()


def tenant(path: pathlib.Path) -> str:
    """The unit of `FLOORS` that a file belongs to; "" for slpojax/__init__.py."""
    part = path.relative_to(PACKAGE).parts[0]
    return "" if part == "__init__.py" else part.removesuffix(".py")


def imports(path: pathlib.Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by its full dotted name."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from slpojax import step` imports slpojax.step; `from slpojax.base import Array` only slpojax.base.
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "slpojax" else [module]


def imports_of_modules(path: pathlib.Path, names: dict[str, pathlib.Path]) -> Iterator[str]:
    """Every module of the package that a file imports when it is itself imported, by its full dotted name."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "slpojax":
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & names.keys()
            yield from submodules
            if len(submodules) < len(node.names):
                yield node.module


def functions(path: pathlib.Path) -> Iterator[tuple[str, int]]:
    """Every function of a file, and how many lines of code it has."""
    source = path.read_text().splitlines()
    tree = ast.parse(path.read_text())
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    prose = {line for node in strings for line in range(node.lineno, node.end_lineno + 1)}
    prose |= {number for number, line in enumerate(source, 1) if not line.strip() or line.strip().startswith("#")}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, len(set(range(node.lineno, node.end_lineno + 1)) - prose)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = tenant(path)
    assert here == "" or here in FLOOR, f"give {here!r} a floor in FLOORS"
    for module in imports(path):
        top, *rest = module.split(".")
        assert top not in ("torch", "trl", "peft"), f"{module}: the package never needs torch"
        assert top != "flax" or here == "models", "flax stays inside models/"
        assert top not in ("configs", "tests")
        if top == "slpojax" and rest and rest[0] != here:
            assert rest[0] in FLOOR, f"give {rest[0]!r} a floor in FLOORS"
            floor = PROGRAMS + 1 if path.stem == "__main__" else FLOOR.get(here, 0)  # a __main__ starts a program
            assert here not in LEAVES, f"{here} knows no other module"
            down = rest[0] in LEAVES or FLOOR[rest[0]] < floor
            assert down, f"{here} (floor {floor}) may not import {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_say_what_they_know_and_do_not_print(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it knows and what it does not"
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if FLOOR.get(tenant(path), 0) < PROGRAMS:
        assert not {"print", "jax.debug.print", "debug.print"} & set(calls)


def test_no_more_floors_than_seven_and_every_module_has_one():
    assert len(FLOORS) <= 7 and sum(map(len, FLOORS)) == len(FLOOR), "a module stands on one floor"
    assert FLOOR.keys() == {tenant(path) for path in MODULES} - {""}


def test_no_two_modules_import_each_other():
    """Within packages, too: the imports of all modules have an order."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph = {name: {of for of in imports_of_modules(path, names) if of != name} for name, path in names.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_sizes_of_files_and_functions():
    """What a reader can hold in mind: code lines are those that are neither blank, nor comments, nor docstrings."""
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    lines = {name: count for name, count in lines.items() if count > 1}
    too_long = {name: count for name, count in lines.items() if count > 450}
    assert not too_long
    assert statistics.median(lines.values()) <= 180
    code = {f"{path.relative_to(ROOT)}:{name}": count for path in MODULES for name, count in functions(path)}
    assert not {name: count for name, count in code.items() if count > 80}
    assert code["slpojax/train.py:train"] <= 40 and lines["slpojax/train.py"] <= 150


def test_only_acts_and_programs_see_a_config():
    users = {
        tenant(path)
        for path in MODULES
        if "Config" in path.read_text() and tenant(path) not in ("defaults", "settings", "models")
    }
    assert users <= {"bench", *FLOORS[-3], *FLOORS[-2], *FLOORS[-1]}
    assert {tenant(path) for path in MODULES if any(name.startswith("ml_collections") for name in imports(path))} <= {
        "defaults",
        "settings",
    }


def test_nothing_imports_torch():
    names = [module.name for module in pkgutil.walk_packages(slpojax.__path__, "slpojax.")]
    program = (
        f"import importlib, sys; [importlib.import_module(name) for name in {names}]; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "torch was imported"


def test_the_option_surface():
    assert named.flatten(base.get_config().to_dict(), ".").keys() == set(KEYS)


def test_keys_that_change_no_number_are_keys_or_groups_of_them():
    listed = defaults.CHANGE_NO_NUMBER
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert name in KEYS or any(key.startswith(f"{name}.") for key in KEYS), name


def test_every_key_that_is_a_number_has_a_range_and_every_default_is_allowed():
    keys = named.flatten(base.get_config().to_dict(), ".")
    numbers = {key for key, value in keys.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    assert numbers == {key for key in defaults.RANGES if not key.startswith("optimizer.") and "*" not in key}
    assert defaults.WORDS.keys() <= keys.keys()
    for key, value in keys.items():
        settings.check(key, value)


def test_every_hyperparameter_of_an_optimiser_that_is_a_number_has_a_range():
    for name in optim._DEFAULTS:
        for key, value in optim.defaults(name).items():
            assert isinstance(value, bool) or f"optimizer.{key}" in defaults.RANGES, key
            settings.check(f"optimizer.{key}", value)


def test_the_words_of_a_key_are_those_of_the_table_that_reads_it():
    tables = {
        "schedule": optim._SHAPES,
        "moments": optim._MOMENTS,
        "model.dtype": models._DTYPES,
        "model.attention": models.ATTENTIONS,
        "model.remat": models.REMATS,
        "data.ties": candidates.TIES,
        "data.pairs": ("", *pairing.KINDS),
        "data.bos": tokenise.BOS,
        "data.too_long": too_long.POLICIES,
        "data.end": templates.ENDS,
        "data.turns": counting.TURNS,
        "model.head": models.HEADS,
        "data.order": orders.KINDS,
        "export_dtype": hf.EXPORT_DTYPES,
    }
    for key, table in tables.items():
        assert set(defaults.WORDS[key]) == set(table), key


def test_every_key_has_a_comment():
    lines = inspect.getsource(defaults).splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s+c\.[\w.]+ = (?!ConfigDict\(\)|_)", line):
            group = [lines[number - back] for back in (0, 1, 2)]  # a comment may cover the keys that follow it
            plain = re.match(r"\s+c\.(mesh\.(fsdp|tensor)|tensorboard|keep_\w+) = ", line)
            assert plain or any("#" in near for near in group), line


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_experiment_resolves(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    program = re.search(rf"python -m (slpojax\.\w+) --config=configs/{path.name}", text)
    assert program, f"the docstring of {path.name} lacks the command"
    choices = importlib.import_module("slpojax.online").CHOICES
    config = settings.resolve(settings.load_file(str(path)), {}, choices=choices)
    assert (config.judge.name != "") == (program[1] == "slpojax.online")
    assert config.output != base.get_config().output, "every experiment has an output folder of its own"
    assert settings.load(settings.dump(config)) == config
    for word in ("Hardware:", "Expected:"):
        assert word in text, f"the docstring of {path.name} lacks {word!r}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_what_exists(document):
    text = document.read_text()
    for path in set(re.findall(r"(?<!cache/)\b(?:slpojax|configs|tests|launch|notebooks|benchmarks)/[\w/.-]*\w", text)):
        assert (ROOT / path).exists() or "my_" in path, f"{document.name} names {path}"
    for module in set(re.findall(r"python -m (slpojax[\w.]*)", text)):
        assert importlib.util.find_spec(module), f"{document.name} runs {module}"
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", text)) <= targets
    for key in set(re.findall(r"--config\.([\w.]+)", text)):
        assert key in KEYS or re.match(
            r"(objective|selector|optimizer|judge|data\.mixture|data\.chat_template_kwargs)\.", key
        ), f"{document.name} sets {key}"


def test_no_path_of_a_machine():
    machine = re.compile("/(?:" + "|".join(["ro" + "ot", "ho" + "me", "Us" + "ers", "wo" + "rk"]) + r")/\w")
    folders = [ROOT / name for name in ("slpojax", "configs", "tests", "launch", "notebooks", "benchmarks")]
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a file in a second work tree
    files += [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".py", ".md", ".sh", ".ipynb", ".json")
    ]
    for path in files:
        found = machine.search(path.read_text(errors="ignore"))
        assert not found, f"{path.relative_to(ROOT)}: {found and found.group()}"
