"""What a program says while it runs: lines and progress on the console of the first host, and short numbers for them.

Knows a console and a clock; knows nothing of what is said.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import rich
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

PATIENCE = 10.0  # seconds between lines of progress where there is no terminal

T = TypeVar("T")


def say(text: RenderableType, *, console: Console | None = None) -> None:
    """Print a line, or a table, on the first host alone; a progress bar that is shown stays whole.

    Args:
        text: what is printed as it is: no markup, no wrapping.
        console: where; standard output by default.
    """
    if jax.process_index() == 0:
        (console or rich.get_console()).print(text, highlight=False, markup=False, soft_wrap=True)


def track(items: Iterable[T], total: int, text: str, *, console: Console | None = None) -> Iterator[T]:
    """Yield `items` while the first host shows how many are done: a bar on a terminal, few lines elsewhere.

    Args:
        items: what is worked through.
        total: how many they are.
        text: what they are.
        console: where; standard output by default.
    """
    console = console or rich.get_console()
    begun = printed = time.perf_counter()
    if console.is_terminal and jax.process_index() == 0:
        with bar(console) as progress:
            task = progress.add_task("", total=total, left="", text=text)
            for n, item in enumerate(items, 1):
                yield item
                progress.update(task, completed=n, left=_left(n, total, time.perf_counter() - begun))
        return
    for n, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if now - printed >= PATIENCE or n == total:
            printed = now
            say(f"{text} {n}/{total}  {_left(n, total, now - begun)}", console=console)


def bar(console: Console) -> Progress:
    """Return a progress bar of one line: how many, the bar, the time left, and a text that is cut where it is long.

    Args:
        console: whose width it fits. A task has the fields `left` and `text`.
    """
    fixed = Column(no_wrap=True)
    return Progress(
        MofNCompleteColumn(table_column=fixed),
        BarColumn(12, table_column=Column(no_wrap=True, min_width=4)),
        TextColumn("{task.fields[left]}", table_column=fixed, markup=False),
        TextColumn(
            "{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1), markup=False
        ),
        console=console,
        expand=True,
    )


def _left(done: int, total: int, seconds: float) -> str:
    return f"{clock((total - done) * seconds / done)} left" if done < total else f"in {clock(seconds)}"


def short(value: float) -> str:
    """Return three digits.

    Example:
        >>> short(12.34), short(4567.0), short(1.2e6)
        ('12.3', '4.57k', '1.2M')
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """Return h:mm:ss, or m:ss where there is no hour.

    Example:
        >>> clock(75.0), clock(3675.0)
        ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
