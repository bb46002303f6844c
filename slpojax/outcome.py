"""What a run came to: its first and last evaluation side by side, and its curves as a picture.

Knows a folder with metrics.jsonl; knows no configuration, no objective and no world.
"""

import pathlib

import jax
from rich import box
from rich.table import Column, Table

from slpojax import log, metrics, places, plots, quantities
from slpojax.places import sending

FAR = 0.2  # difference of accuracies above which training and held-out pairs have parted


def show(output: str | pathlib.Path, title: str) -> None:
    """Print the table and draw <output>/curves.png, on the first host.

    Args:
        output: the folder of the run.
        title: above both.
    """
    if jax.process_index() != 0:
        return
    folder = sending.here(output)
    rows = metrics.read_jsonl(folder / "metrics.jsonl")
    made = table(title, rows)
    if made is None:
        return
    log.say(made)
    if said := parted(rows):
        log.say(said)
    try:
        plots.curves([folder], folder / "curves.png", title=title)
        if places.is_bucket(output):
            sending.send(folder / "curves.png", f"{output}/curves.png")
        log.say(f"curves: {places.path(output) / 'curves.png'}")
    except ImportError as error:
        log.say(f"no picture of the curves: {error}")


def parted(rows: list[metrics.Row]) -> str:
    """Say that a run knows the pairs that it trains on far better than others; "" where it does not.

    Args:
        rows: of metrics.jsonl. The last tenth of the training steps is held against the last evaluation.
    """
    name = "rewards/accuracies"
    held_out = [row[name] for row in rows if row["split"] == "eval" and name in row]
    training = [row[name] for row in rows if row["split"] == "train" and name in row]
    last = training[-max(1, len(training) // 10) :]
    if not held_out or not last or (accuracy := sum(last) / len(last)) - held_out[-1] < FAR:
        return ""
    return (
        f"at the end {accuracy:.0%} of the training pairs are ranked right, and {held_out[-1]:.0%} of the held-out "
        "ones: the run learns its pairs by heart; fewer passes, more data or a lower learning rate may help"
    )


def table(title: str, rows: list[metrics.Row]) -> Table | None:
    """Return the first and the last evaluation, metric by metric; None where nothing was measured.

    Args:
        title: above it.
        rows: of metrics.jsonl. Where there is no evaluation, the mean of the first tenth of the training steps stands
            beside that of the last.
    """
    held_out = [row for row in rows if row["split"] == "eval"]
    ends = _ends(held_out, len(rows)) or _ends([row for row in rows if row["split"] == "train"], 10)
    if not ends:
        return None
    where = "held-out examples" if held_out else "training batches; nothing was held out"
    made = Table(Column(no_wrap=True), title=f"{title}: {where}", box=box.SIMPLE_HEAD, title_justify="left")
    for name, _ in ends:
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("unit", no_wrap=True)
    for metric in quantities.order(list(dict.fromkeys(name for _, end in ends for name in end))):
        quantity = quantities.find(metric)
        if quantity or held_out:  # rates and memory of training steps are no outcome
            values = [quantities.number(metric, end[metric]) if metric in end else "" for _, end in ends]
            made.add_row(quantities.label(metric), *values, quantity.unit if quantity else "")
    return made


def _ends(rows: list[metrics.Row], parts: int) -> list[tuple[str, dict[str, float]]]:
    """Return the first and the last of so many parts of the rows: the steps that each holds, and its means."""
    count = max(1, len(rows) // max(1, parts))
    ends = []
    for part in (rows[:count], rows[-count:]) if len(rows) > 1 else (rows,) if rows else ():
        first, last = part[0]["step"], part[-1]["step"]
        names = dict.fromkeys(name for row in part for name in row if name not in ("step", "split"))
        values = {name: [row[name] for row in part if name in row] for name in names}
        means = {name: sum(known) / len(known) for name, known in values.items()}
        ends.append((f"step {first}" if first == last else f"steps {first}-{last}", means))
    return ends
