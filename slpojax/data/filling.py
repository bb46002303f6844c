"""How full the rows of a run are: cells without a token, scored positions without a use, what a shared prompt saves.

Knows the lengths of examples, their order and the shapes of batches; knows no token id.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from slpojax.base import Float, Int, Shapes
from slpojax.data import planning
from slpojax.data.examples import Examples

_ROUNDED = 0.05  # share of the rows that rounding up may add before `lines` speaks of it


class Packing(NamedTuple):
    """How full the rows of a run are.

    Attributes:
        batches: number of them.
        rows: R, rows of each batch, rounded up to what devices and micro-batches divide.
        needed: rows that the tokens of the fullest batch would fill, or as many as its examples where each has a row.
        lengths: L, tokens of a row; several, rising, where batches come in several lengths.
        groups: G, groups of rows that are scored together.
        scored: S, scored positions of a group.
        padding: share of the cells of all rows that hold no token.
        unscored: share of the scored positions that are not used.
        saved: share of the tokens that the shared prompt saves, against a prompt for each response.
        unused: examples of the last pass that no full batch is left for.
        passes: over the examples, the last of which may be cut short.
        last: examples of the last pass.
        examples: of a whole pass.
    """

    batches: int
    rows: int
    needed: int
    lengths: tuple[int, ...]
    groups: int
    scored: int
    padding: float
    unscored: float
    saved: float
    unused: int
    passes: int
    last: int
    examples: int


def packing(examples: Examples, order: Iterable[Int[np.ndarray, " B"]], shapes: Shapes, *, unused: int = 0) -> Packing:
    """Measure how full the rows are.

    Args:
        examples: what is packed.
        order: the batches of the run, as indices; -1 for a filler.
        shapes: of every batch. Where they were planned with `picks`, each of the other candidates counts as picked
            equally often, and the numbers are what is to be expected.
        unused: examples of the last pass that no full batch is left for.
    """
    prompt, response = examples.lengths.prompt, _packed(examples.lengths.response, shapes.candidates)
    counts = _packed(examples.lengths.counted, shapes.candidates)
    placed = examples.lengths.response.sum(axis=1)  # as rows are laid out
    if shapes.candidates < examples.candidates:
        placed = planning.reserve(examples.lengths.response, shapes.candidates - 1)
    batches = fullest = cells = positions = trained = 0
    prompts = targets = scored = alone = 0.0
    for batch in order:
        real = batch[batch >= 0]
        batches, trained = batches + 1, trained + len(real)
        size = prompt[real] + placed[real]
        sizes = planning.of_batch(shapes, int(size.max(initial=0)))
        cells, positions = cells + sizes.rows * sizes.length, positions + sizes.groups * sizes.scored
        fullest = max(fullest, int(size.sum()))
        prompts += float(prompt[real].sum())
        scored += float(response[real].sum())
        of_responses = counts[real].sum(axis=1)
        targets += float(planning.count_scored(prompt[real], of_responses, prompts=shapes.prompt > 0).sum())
        alone += float((prompt[real] * (response[real] > 0).sum(axis=1)).sum())
    return Packing(
        batches=batches,
        rows=shapes.rows,
        needed=shapes.examples if shapes.lengths else -(-fullest // shapes.length),
        lengths=tuple(length for length, _ in shapes.lengths) or (shapes.length,),
        groups=shapes.groups,
        scored=shapes.scored,
        padding=1 - (prompts + scored) / max(1, cells),
        unscored=1 - targets / max(1, positions),
        saved=1 - (prompts + scored) / max(1, alone + scored),
        unused=unused,
        passes=-(-trained // len(examples)),
        last=(trained - 1) % len(examples) + 1,
        examples=len(examples),
    )


def lines(packing: Packing) -> list[str]:
    """Return lines of text on how full the rows are."""
    p = packing
    made = [
        f"packing   {p.batches:,} batches of {p.rows} rows x {_either(p.lengths)} tokens, "
        f"{p.groups} x {p.scored:,} scored{', a program for each length' if len(p.lengths) > 1 else ''}",
        f"packing   {p.padding:.1%} of the cells are padding, {p.unscored:.1%} of the scored positions unused; "
        f"the shared prompt saves {p.saved:.1%}",
        f"packing   {_passes(p)}",
    ]
    if p.groups > 1 and p.needed < (1 - _ROUNDED) * p.rows:
        made.append(
            f"packing   {p.needed} rows would do, but devices and micro-batches are {p.groups} groups of equally "
            "many: set data.row_length=0, lower accumulate, raise batch_size or take fewer devices"
        )
    return made


def as_dict(packing: Packing) -> dict[str, float | int | str]:
    """Return the numbers by name, for a line of metrics."""
    return packing._asdict() | {"lengths": _either(packing.lengths)}


def _packed(response: Int[np.ndarray, "N K"], candidates: int) -> Float[np.ndarray, "N P"]:
    """Return the lengths of what is packed: all candidates, or the first and the mean of the others for each pick."""
    if candidates == response.shape[1]:
        return response.astype(float)
    others = response[:, 1:].sum(axis=1) / np.maximum(1, (response[:, 1:] > 0).sum(axis=1))
    return np.stack([response[:, 0], *[others] * (candidates - 1)], axis=1)


def _passes(packing: Packing) -> str:
    """Say how often the examples come, and where the last pass ends."""
    p, many = packing, f"{packing.passes:,} passes over the examples"
    if p.last == p.examples:
        return many if p.passes > 1 else "one pass over the examples"
    begins = f"the last of {many}" if p.passes > 1 else "the only pass over the examples"
    return f"{begins} ends after {p.last:,} of {p.examples:,}"


def _either(lengths: tuple[int, ...]) -> str:
    *others, last = (f"{length:,}" for length in lengths)
    return f"{', '.join(others)} or {last}" if others else last
