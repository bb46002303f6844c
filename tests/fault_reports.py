"""Generated inputs: how many, from which seed, and what became of them, which is printed at the end."""

import collections
import os

import hypothesis
import pytest

SEED = "SLPOJAX_FAULTS_SEED"  # repeats the inputs of an earlier run
_OUTCOMES = "outcomes"

hypothesis.settings.register_profile(
    "faults",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("faults")


def pytest_configure(config: pytest.Config) -> None:
    """Take the seed from the environment, as worker processes do; "random" draws one.

    It is the same from run to run, so that what fails is what was changed; any other number makes other inputs.
    """
    seed = os.environ.get(SEED, "4063059789")
    os.environ[SEED] = str(int.from_bytes(os.urandom(4), "little")) if seed == "random" else seed
    config.option.hypothesis_seed = int(os.environ[SEED])


@pytest.fixture
def outcomes(record_property):
    """Count what becomes of generated inputs: `outcomes["refused"] += 1`."""
    counts: collections.Counter[str] = collections.Counter()
    yield counts
    record_property(_OUTCOMES, dict(counts))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seed, and the inputs of each test by outcome."""
    lines, total = [], 0
    for reports in terminalreporter.stats.values():
        for report in reports:
            counts = dict(getattr(report, "user_properties", ())).get(_OUTCOMES)
            if counts and report.when == "teardown":
                lines.append(f"{report.nodeid}: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
                total += sum(counts.values())
    if lines:
        said = f"{total} generated inputs, seed {os.environ[SEED]}; {SEED}=random draws others"
        terminalreporter.write_sep("=", said)
    for line in sorted(lines):
        terminalreporter.write_line(line)
