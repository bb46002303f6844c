"""What the metrics of a run mean: labels, units, sensible digits, and the value that nothing or chance would have.

One table, which the curves and the final table read. Knows names of metrics; knows no run and no picture.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple


class Quantity(NamedTuple):
    """Metrics that share an axis and a unit.

    Attributes:
        title: what they are, together.
        unit: of their values, as the axis names it.
        metrics: pattern of a metric's whole name -> what the metric is.
        digits: behind the point; None for four that count.
        line: the value of chance, or of no change, which is drawn; None for none.
        drawn: whether they have an axis, or stand in the table alone.
    """

    title: str
    unit: str
    metrics: Mapping[str, str]
    digits: int | None
    line: float | None = None
    drawn: bool = True


_BOTH = "(chosen|rejected)"

# In the order in which they are shown; the first pattern that matches a name counts.
QUANTITIES = (
    Quantity("Gold reward gained", "std of the reference's", {"world/gold_lift": "gold reward gained"}, 2, 0),
    Quantity("KL to the reference", "nats per answer", {"world/kl": "KL to the reference"}, 2, 0),
    Quantity("Gold reward", "nats of preference", {"world/gold_reward": "gold reward, mean"}, 2, drawn=False),
    Quantity(
        "Spread of the gold reward",
        "nats of preference",
        {"world/spread": "gold reward, std"},
        2,
        drawn=False,
    ),
    Quantity("Answers that end", "share of answers", {"world/finished": "answers that end"}, 3, drawn=False),
    Quantity("Loss", "loss", {"loss": "loss"}, 4),
    Quantity(
        "Preference accuracy",
        "share of pairs",
        {"rewards/accuracies": "pairs ranked right", "degree/accuracy": "degrees ranked right"},
        3,
        0.5,
    ),
    Quantity(
        "Reward",  # implicit, or a reward model's
        "nats (x beta if any)",
        {"rewards/margins": "reward margin", f"rewards/{_BOTH}": r"reward of \1"},
        3,
        0,
    ),
    Quantity("Log-probability", "nats per response", {f"logps/{_BOTH}": r"log-prob of \1"}, 2),
    Quantity("Log-probability of a token", "nats per token", {"logps/chosen_mean": "log-prob of chosen, a token"}, 3),
    Quantity(
        "Rooted probability and its target",
        "probability per token",
        {f"mass/model_{_BOTH}": r"probability of \1", f"mass/target_{_BOTH}": r"target of \1"},
        4,
    ),
    Quantity(
        "Way to the target",
        "nats per response",
        {f"mass/gap_{_BOTH}": r"\1 above its target", "mass/shift_chosen": "chosen's target above start"},
        2,
        0,
    ),
    Quantity(
        "Special targets",
        "share of pairs",
        {"mass/shift_negligible": "chosen learns nothing", "mass/clamped": "target held below 1"},
        3,
        drawn=False,
    ),
    Quantity("Held log-ratios", "share of tokens", {"clamp/share": "tokens held at a bound"}, 3, drawn=False),
    Quantity("Divergence from the reference", "nats", {"kl": "KL", f"kl/{_BOTH}": r"KL on \1"}, 3, 0),
    Quantity("Judged by your scorer", "as the scorer has it", {"score/(.+)": r"\1"}, None),
    Quantity("Gradient norm", "norm before clipping", {"grad_norm": "gradient norm"}, None),
    Quantity("Learning rate", "learning rate", {"learning_rate": "learning rate"}, None),
)

# Reward against what it costs: (metrics of the horizontal axis, of the vertical one), whichever a run has.
FRONTIERS = (("world/kl", "world/gold_lift"), ("score/kl", "score/reward"))


def find(metric: str) -> Quantity | None:
    """Return what a metric is, or None where nobody has said; one of a mixture's source is what it is of all."""
    _, whole = _of_source(metric)
    return next((q for q in QUANTITIES if any(re.fullmatch(p, whole) for p in q.metrics)), None)


def label(metric: str) -> str:
    """Return a metric in words, or its name where nobody has said.

    Example:
        >>> label("mass/gap_chosen"), label("loss/dpo.sigmoid"), label("source/hh/loss")
        ('chosen above its target', 'loss/dpo.sigmoid', 'loss of hh')
    """
    found, (source, whole) = find(metric), _of_source(metric)
    for pattern, words in found.metrics.items() if found else ():
        if match := re.fullmatch(pattern, whole):
            return match.expand(words) + f" of {source}" * bool(source)
    return metric


def number(metric: str, value: float) -> str:
    """Return a value with the digits that make sense of it; zero has no sign.

    Example:
        >>> number("world/gold_reward", -0.0001765), number("rewards/accuracies", 0.52148), number("mine", 12345.678)
        ('0.00', '0.521', '1.235e+04')
    """
    found = find(metric)
    fixed = found is not None and found.digits is not None and abs(value) < 1e6
    text = f"{value:.{found.digits}f}" if found and fixed else f"{value:.4g}"
    return text.lstrip("-") if not text.strip("-0.") else text


def order(metrics: list[str]) -> list[str]:
    """Return metrics in the order in which they are shown: those that have words first, the others as they come."""
    places = [pattern for quantity in QUANTITIES for pattern in quantity.metrics]

    def place(metric: str) -> int:
        source, whole = _of_source(metric)
        found = next((i for i, pattern in enumerate(places) if re.fullmatch(pattern, whole)), len(places))
        return found + (len(places) + 1) * bool(source)  # those of a source come behind those of all

    return sorted(metrics, key=place)


def _of_source(metric: str) -> tuple[str, str]:
    """Return the source of a mixture that a metric is of, "" for all, and what it is called of all of them."""
    match = re.fullmatch(r"source/([^/]+)/(.+)", metric)
    return (match[1], match[2]) if match else ("", metric)
