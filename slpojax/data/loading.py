"""From a source to examples, through a chain of transforms, and a report of what became of every record.

Knows the order of the transforms; knows nothing that one of them does, and no row of a batch.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from slpojax import log
from slpojax.data import (
    advice,
    candidates,
    chain,
    degrade,
    joining,
    marks,
    pairing,
    parsing,
    report,
    reuse,
    rules,
    sources,
    swapping,
    templates,
    token_ids,
    tokenise,
    too_long,
    unpaired,
)
from slpojax.data import examples as storage
from slpojax.data.chain import Factory, Group
from slpojax.data.examples import Examples
from slpojax.data.options import DEFAULTS, Settings, Setup, Source
from slpojax.data.report import Report
from slpojax.data.tokenise import Tokenizer

_LONG = 16 * 1024  # records from which on the progress is worth its line

CHAIN: tuple[Factory, ...] = (
    parsing.parse,  # (row, record) -> text
    candidates.keep,
    marks.protect,
    templates.render,
    chain.settle,
    tokenise.tokenise,  # text -> a group of one example
    too_long.cut,
    rules.penalise,
    candidates.distinct,
    candidates.compare_scores,
    chain.settle,
    rules.vary,
    pairing.pair,
    rules.separate,
    unpaired.unpair,
    unpaired.mismatch,
    degrade.degrade,
    swapping.swapped,
    joining.join,
)


def load(
    source: Source,
    settings: Settings = DEFAULTS,
    *,
    tokenizer: Tokenizer,
    seed: int = 0,
    transforms: Sequence[Factory] = CHAIN,
    cache: str = "",
) -> tuple[Examples, Report]:
    """Read records and make examples of them.

    Args:
        source: where the records are.
        settings: how they are encoded, and what is made of their candidates.
        tokenizer: of `load_tokenizer`.
        seed: of what the transforms draw.
        transforms: the chain, functions `Setup -> Transform` or None. One that is not here is added to the tuple, as in
            `(*CHAIN, mine)`.
        cache: folder of examples that were made before, where those of many records are written, too; "" for none.

    Returns:
        The examples, in the order of the source, and a report that counts each record that was dropped or changed.

    Raises:
        ValueError: a setting that its transform refuses, an unreadable source, records of another format, or no usable
            record.
    """
    setup = Setup(source, *settings, tokenizer, seed)
    # All of them are made, and have refused their settings, before anything is read.
    ready = [transform for make in transforms if (transform := make(setup)) is not None]
    entry = functools.cache(lambda: reuse.entry(cache, setup, [make.__module__ for make in transforms]))
    if reuse.holds(cache) and (of := entry()) and (before := reuse.read(of, source.path)):
        return before
    read = sources.read(source.path, split=source.split, rows=source.rows)
    items: Iterable[Any] = sources.numbered(read)
    if len(read.records) >= _LONG:
        items = log.track(items, len(read.records), f"reading {source.path}")
    tally = report.tally(functools.partial(sources.where, read))
    for transform in (*ready, chain.settle(setup)):
        items = transform(items, tally)
    groups = list(items)
    examples, added = _store(groups, setup)
    rows, encoding = f", rows {source.rows}" if source.rows else "", setup.encoding
    line = f"{source.path}{rows}, as {encoding.format}, too_long {encoding.too_long}{sources.counted(read)}"
    written = {(group.templated, group.as_ids): _special(group) for group in groups}
    special = "; ".join(tell(setup) for tell in written.values())
    made = report.make(line, len(read.records), tally, examples, special, added=added)
    if not len(examples):
        raise ValueError(f"{line}: {advice.why_none(made.dropped, made.read)}")
    if cache and made.read >= reuse.LEAST and (of := entry()):
        reuse.write(of, source.path, examples, made)
    return examples, made


def _special(group: Group) -> Callable[[Setup], str]:
    """Return what tells which special tokens a group has."""
    return token_ids.special if group.as_ids else templates.special if group.templated else tokenise.special


def _store(groups: Sequence[Group], setup: Setup) -> tuple[Examples, tuple[str, ...]]:
    """Return the examples of all groups, and the names of the candidates that were added to them."""
    if len({group.labelled for group in groups}) > 1:
        raise ValueError(f"{setup.source.path}: only some of the records have a label")
    listed = list(itertools.chain.from_iterable(group.examples for group in groups))
    if not listed:
        return storage.build([], candidates=setup.candidates.candidates), ()
    first = groups[0]
    return storage.build(listed, candidates=len(listed[0].responses), labelled=first.labelled), first.added
