"""What every test shares: eight fake CPU devices, strict JAX, checked shapes, and the way to data kept elsewhere."""

import os
import pathlib
from collections.abc import Callable

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# Before the first import of jax. Subprocesses of a test inherit these.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # it compiles, and runs nothing

import fault_reports  # noqa: E402
import filelock  # noqa: E402
import hurry  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# The scripts that make golden numbers need torch and more.
collect_ignore = ["goldens"]


def _folder(variable: str, *default: str) -> pathlib.Path:
    """Return the folder that `variable` names, or the one beside the repository; skip the test where there is none."""
    path = pathlib.Path(os.environ.get(variable) or REPOSITORY.parent.joinpath(*default))
    if not path.is_dir():
        pytest.skip(f"no folder {path}: set {variable} to the one that holds shared/{default[-1]}")
    return path


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data and tokenizers: $SLPOJAX_SHARED, or ../shared/data."""
    return _folder("SLPOJAX_SHARED", "shared", "data")


@pytest.fixture(scope="session")
def shared_goldens() -> pathlib.Path:
    """The folder of large golden numbers: $SLPOJAX_GOLDENS, or ../shared/goldens."""
    return _folder("SLPOJAX_GOLDENS", "shared", "goldens")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, request):
    """Return `(name, make) -> folder`: `make` fills it in one test process, for which the others wait."""
    folder = tmp_path_factory.getbasetemp()
    together = folder.parent if hasattr(request.config, "workerinput") else folder  # what test processes share

    def one(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
        path, done = together / name, together / f"{name}.done"
        with filelock.FileLock(together / f"{name}.lock"):
            if not done.exists():
                path.mkdir()  # fails where another process failed
                make(path)
                done.touch()
        return path

    return one


@pytest.fixture(autouse=True)
def _precision():
    """What a run in this process says of the precision of products is over with its test, or the fixture it ran in."""
    import jax

    jax.config.update("jax_default_matmul_precision", None)
    yield
    jax.config.update("jax_default_matmul_precision", None)


def pytest_configure(config: pytest.Config) -> None:
    """Have programs compiled in a hurry, unless tests that want them as a run compiles them are among the chosen.

    Every annotated function of the package checks its shapes and types, but where long tests alone are chosen, of which
    that is a sixth of the time: they compare numbers.
    """
    if config.option.markexpr in ("not check", "check and not optimised"):
        os.environ["XLA_FLAGS"] += f" {hurry.FLAGS}"
    if config.option.markexpr not in ("check and not optimised", "check and optimised"):
        jaxtyping.install_import_hook("slpojax", "beartype.beartype")
    config.pluginmanager.register(fault_reports)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that may take longest, so that none of them is left to one process at the end."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("timeout")), default=0))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the slowest files: their tests' times with set-up and tear-down, summed over all workers."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.partition("::")[0]
                seconds[file] = seconds.get(file, 0.0) + report.duration
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:20]
    if slowest:
        terminalreporter.write_sep("=", f"slowest {len(slowest)} files of {sum(seconds.values()):.0f}s in all")
    for file, spent in slowest:
        terminalreporter.write_line(f"{spent:.2f}s {file}")
