"""From a path to examples, and a report of what became of every record.

Knows the order of the steps: source -> format -> text -> tokens -> what fits. Knows no row of a batch.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import rich.console
import rich.progress

from slpojax.data import examples as storage
from slpojax.data import formats, report, sources, tokenise
from slpojax.data import too_long as policies
from slpojax.data.examples import Example, Examples
from slpojax.data.formats import Messages, Parsed, Unusable
from slpojax.data.report import Report, Tally
from slpojax.data.tokenise import Rendered, Tokenizer

_CHUNK = 1024  # records that are tokenised in one call
_LONG = 16 * _CHUNK  # records from which on a progress bar is worth its line

_APART = f"tokens of the response depend on its prompt (looked at in the first {_CHUNK:,} rows)"


class _Rules(NamedTuple):
    parse: Callable[[sources.Record], Parsed]
    format: str
    candidates: int
    tokenizer: Tokenizer
    template: str | None
    before: tuple[int, ...]
    cut: Callable[..., policies.Cut]
    budget: policies.Budget


class _Text(NamedTuple):
    row: int
    rendered: Rendered
    scores: tuple[float, ...] | None


def load(
    path: str,
    *,
    tokenizer: Tokenizer,
    split: str = "train",
    rows: str = "",
    format: str = "hh",
    candidates: int = 2,
    max_length: int = 512,
    max_prompt_length: int = 256,
    too_long: str = "cut_prompt",
    bos: str = "tokenizer",
    chat_template: str = "",
) -> tuple[Examples, Report]:
    """Read, parse, tokenise and cut.

    Args:
        path: see `sources.read`.
        tokenizer: see `tokenise.load_tokenizer`.
        split: of a hub or saved data set.
        rows: "start:stop" of the source's rows; "" for all.
        format: a parser of `slpojax.data.formats`.
        candidates: K, kept per example, best first; a record with fewer is dropped.
        max_length: tokens of prompt plus one response.
        max_prompt_length: see `slpojax.data.too_long`.
        too_long: a policy of `slpojax.data.too_long`.
        bos: see `tokenise.leading`.
        chat_template: see `tokenise.chat_template`.

    Returns:
        The examples, and a report that counts each record that was dropped or changed.

    Raises:
        ValueError: an unknown name, an unreadable source, records of another format, or no usable record.
    """
    if not 0 < max_prompt_length < max_length:
        raise ValueError(
            f"data.max_prompt_length={max_prompt_length}: expected a number between 0 and data.max_length={max_length}"
        )
    rules = _Rules(
        parse=formats.find(format),
        format=format,
        candidates=candidates,
        tokenizer=tokenizer,
        template=tokenise.chat_template(tokenizer, chat_template),
        before=tokenise.leading(tokenizer, bos),
        cut=policies.find(too_long),
        budget=policies.Budget(max_length, max_prompt_length, tokenizer.bos_token_id),
    )
    source = sources.read(path, split=split, rows=rows)
    counts = report.tally()
    stored = storage.build(_examples(source, rules, counts), candidates=candidates)
    special = f"EOS {tokenizer.eos_token} ({tokenizer.eos_token_id}), "
    special += (
        f"BOS {tokenizer.bos_token} ({tokenizer.bos_token_id}) before plain prompts" if rules.before else "no BOS"
    )
    name = f"{path}{f', rows {rows}' if rows else ''}, as {format}, too_long {too_long}"
    told = report.make(name, len(source.records), counts, stored, special)
    if not len(stored):
        raise ValueError(
            f"no usable record\n{report.render(told)}\nTry another data.format ({', '.join(formats.FORMATS)}), "
            "data.too_long or data.candidates"
        )
    return stored, told


def _examples(source: sources.Source, rules: _Rules, counts: Tally) -> Iterator[Example]:
    """Tokenise chunk by chunk: a fast tokenizer is many times faster on a list than on its items."""
    size = len(source.records)
    chunks: Iterable[int] = range(0, size, _CHUNK)
    if size >= _LONG:
        console = rich.console.Console(stderr=True)
        chunks = rich.progress.track(chunks, description="tokenising", console=console, transient=True)
    numbered = enumerate(source.records, source.first)
    for chunk in chunks:
        texts = list(_texts(itertools.islice(numbered, _CHUNK), rules, counts))
        ids = iter(
            tokenise.encode(
                [t for text in texts for t in (text.rendered.prompt, *text.rendered.responses)], rules.tokenizer
            )
        )
        pieces = [(next(ids), list(itertools.islice(ids, rules.candidates))) for _ in texts]
        if chunk == 0:
            _note_dependence(texts, pieces, rules, counts)
        for text, (prompt, responses) in zip(texts, pieces, strict=True):
            try:
                yield _example(text, prompt, responses, rules, counts)
            except Unusable as reason:
                counts.dropped[str(reason)].append(text.row)


def _texts(numbered: Iterable[tuple[int, sources.Record]], rules: _Rules, counts: Tally) -> Iterator[_Text]:
    for row, record in numbered:
        try:
            parsed = _parse(row, record, rules)
            rendered = tokenise.render(parsed, rules.tokenizer, rules.template)
        except Unusable as reason:
            counts.dropped[str(reason)].append(row)
            continue
        for note in parsed.notes:
            counts.noted[note].append(row)
        yield _Text(row, rendered, parsed.scores)


def _parse(row: int, record: sources.Record, rules: _Rules) -> Parsed:
    try:
        parsed = rules.parse(record)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"row {row} is no record of data.format={rules.format!r}: "
            + (f"it has no field {error}" if isinstance(error, KeyError) else str(error))
            + f"; its fields are {', '.join(record)}; formats: {', '.join(formats.FORMATS)}"
        ) from error
    if len(parsed.responses) < rules.candidates:
        raise Unusable("fewer responses than data.candidates")
    parsed = parsed._replace(
        responses=parsed.responses[: rules.candidates], scores=parsed.scores and parsed.scores[: rules.candidates]
    )
    if any(_blank(response) for response in parsed.responses):
        raise Unusable("empty response")
    if rules.candidates > 1 and parsed.scores and len(set(parsed.scores)) == 1:
        raise Unusable("all candidates ranked equal")
    return parsed


def _blank(response: str | Messages) -> bool:
    return not (response if isinstance(response, str) else "".join(turn["content"] for turn in response)).strip()


def _example(text: _Text, prompt: np.ndarray, responses: Sequence[np.ndarray], rules: _Rules, counts: Tally) -> Example:
    prompt, closed = tokenise.close(
        prompt, responses, eos=rules.tokenizer.eos_token_id, before=rules.before, templated=text.rendered.templated
    )
    cut = rules.cut(prompt, closed, rules.budget)
    if len(cut.responses) > 1 and all(np.array_equal(cut.responses[0], other) for other in cut.responses[1:]):
        raise Unusable("identical responses")
    for note in cut.notes:
        counts.noted[note].append(text.row)
    return Example(cut.prompt, cut.responses, text.scores or (0.0,) * rules.candidates, text.row)


def _note_dependence(
    texts: Sequence[_Text], pieces: Sequence[tuple[np.ndarray, list]], rules: _Rules, counts: Tally
) -> None:
    wholes = tokenise.encode([text.rendered.prompt + text.rendered.responses[0] for text in texts], rules.tokenizer)
    for text, (prompt, responses), whole in zip(texts, pieces, wholes, strict=True):
        if not np.array_equal(np.concatenate([prompt, responses[0]]), whole):
            counts.noted[_APART].append(text.row)
