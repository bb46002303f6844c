"""From a path to examples, and a report of what became of every record.

Knows the order of the steps: source -> format -> text -> tokens -> what fits. Knows no row of a batch.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import rich.console
import rich.progress

from slpojax.data import degrade as degrading
from slpojax.data import examples as storage
from slpojax.data import formats, pairing, report, sources, tokenise, unpaired
from slpojax.data import too_long as policies
from slpojax.data.examples import Example, Examples
from slpojax.data.formats import Messages, Parsed, Unusable
from slpojax.data.report import Report, Tally
from slpojax.data.tokenise import Rendered, Tokenizer

_CHUNK = 1024  # records that are tokenised in one call
_LONG = 16 * _CHUNK  # records from which on a progress bar is worth its line

TIES = ("drop", "keep")

_FEWER = "fewer responses than data.candidates"
_EMPTY = "empty response"
_EQUAL = "all candidates ranked equal"
_IDENTICAL = "identical responses"
_EMPTY_LEFT_OUT = "empty response left out"
_TIE_LEFT_OUT = "candidate ranked equal to the best left out"
_IDENTICAL_LEFT_OUT = "response identical to the best left out"
_UNSCORED = "without scores, which count as 0 beside records that have some"
_PAIRED = "taken apart into pairs"
_NO_PAIR = "pair of equally good responses left out"
_UNPAIRED = "taken apart into labelled responses"
_MISMATCHED_CUT = "mismatched response cut (no EOS)"
_TOO_SHORT = "response too short for copies with content removed"
_APART = f"tokens of the response depend on its prompt (looked at in the first {_CHUNK:,} rows)"


class _Rules(NamedTuple):
    parse: Callable[[sources.Record], Parsed]
    format: str
    candidates: int
    ties: str
    tokenizer: Tokenizer
    template: str | None
    before: tuple[int, ...]
    cut: Callable[..., policies.Cut]
    budget: policies.Budget


class _Text(NamedTuple):
    row: int
    rendered: Rendered
    scores: tuple[float, ...] | None
    label: float | None
    ordered: bool


class _Read(NamedTuple):
    """An example, the label of its record, and whether the order of the candidates says what the scores do not."""

    example: Example
    label: float | None
    ordered: bool


def load(
    path: str,
    *,
    tokenizer: Tokenizer,
    split: str = "train",
    rows: str = "",
    format: str = "hh",
    candidates: int = 2,
    ties: str = "drop",
    pairs: str = "",
    accept: int = 0,
    accept_beta: float = 0.5,
    unpair: bool = False,
    mismatched: bool = False,
    degrade: int = 0,
    max_length: int = 512,
    max_prompt_length: int = 256,
    too_long: str = "cut_prompt",
    bos: str = "tokenizer",
    chat_template: str = "",
    seed: int = 0,
) -> tuple[Examples, Report]:
    """Read, parse, tokenise and cut.

    Args:
        path: see `sources.read`.
        tokenizer: see `tokenise.load_tokenizer`.
        split: of a hub or saved data set.
        rows: "start:stop" of the source's rows; "" for all.
        format: a parser of `slpojax.data.formats`.
        candidates: K, the most that are kept per example, best first. A record with fewer, but two of them, is kept;
            the others are absent. Beside the best, empty responses do not count, nor those with the best's tokens.
        ties: "drop" leaves out candidates that are ranked equal to the best, which are no negatives of it; "keep" keeps
            them, for objectives that read scores. Either way a record that ranks all it keeps equal is dropped.
        pairs: make pairs of the candidates, see `pairing.pairs`: "" (no), "best", "all" or "random". No candidate is
            then left out as a tie: it is in no pair with one of its score, but in those with others.
        accept: candidates that statistical rejection sampling keeps for the pairs, see `pairing.accept`; 0 for all.
        accept_beta: its temperature, in the unit of the scores.
        unpair: make a labelled example of every candidate: the best is desirable, the others are not.
        mismatched: add to every example, as its last candidate, a response of the next; see `unpaired.mismatch`.
        degrade: copies with content removed that are added of each response of a pair, see `degrade.add_copies`.
        max_length: tokens of prompt plus one response.
        max_prompt_length: see `slpojax.data.too_long`.
        too_long: a policy of `slpojax.data.too_long`.
        bos: see `tokenise.leading`.
        chat_template: see `tokenise.chat_template`.
        seed: of what `pairs` and `accept` draw.

    Returns:
        The examples, and a report that counts each record that was dropped or changed.

    Raises:
        ValueError: an unknown name, an unreadable source, records of another format, or no usable record.
    """
    if not 0 < max_prompt_length < max_length:
        raise ValueError(
            f"data.max_prompt_length={max_prompt_length}: expected a number between 0 and data.max_length={max_length}"
        )
    if ties not in TIES:
        raise ValueError(f"data.ties={ties!r} is unknown; expected {' | '.join(TIES)}")
    if unpair and candidates < 2:
        raise ValueError(f"data.unpair takes pairs apart; got data.candidates={candidates}, expected 2 or more")
    _check_pairs(pairs, candidates, accept, accept_beta, unpair)
    if degrade and (degrade < 0 or candidates != 2 or unpair or pairs or mismatched):
        raise ValueError(
            f"data.degrade={degrade} adds copies of the two responses of a pair; expected a number from 0, with "
            f"data.candidates=2 (now {candidates}) and without data.unpair, data.pairs, data.accept and data.mismatched"
        )
    rules = _Rules(
        parse=formats.find(format),
        format=format,
        candidates=candidates,
        ties="keep" if pairs else ties,
        tokenizer=tokenizer,
        template=tokenise.chat_template(tokenizer, chat_template),
        before=tokenise.leading(tokenizer, bos),
        cut=policies.find(too_long),
        budget=policies.Budget(max_length, max_prompt_length, tokenizer.bos_token_id),
    )
    source = sources.read(path, split=split, rows=rows)
    counts = report.tally()
    listed = list(_examples(source, rules, counts))
    labelled = unpair or any(read.label is not None for read in listed)
    if labelled and not unpair and any(read.label is None for read in listed):
        raise ValueError(f"{path}: only some of the records have a label")
    if accept and counts.noted[_UNSCORED]:
        raise ValueError(f"data.accept reads scores, which {path}, as data.format={format}, does not give every record")
    if len(counts.noted[_UNSCORED]) == len(listed):
        del counts.noted[_UNSCORED]  # then the data just has none
    if pairs:
        groups = list(_paired(listed, pairs, accept, accept_beta, seed, counts))
    else:
        groups = [unpaired.unpair(example) if unpair else [example] for example, *_ in listed]
    counts.noted[_UNPAIRED] += [read.example.row for read in listed] * unpair
    if mismatched and groups:
        groups, cut = unpaired.mismatch(groups, max_length)
        counts.noted[_MISMATCHED_CUT] += cut
    made = list(itertools.chain(*groups))
    if degrade:
        made, short = degrading.add_copies(made, degrade)
        counts.noted[_TOO_SHORT] += short
    kept = 1 if unpair else 2 if pairs else candidates
    stored = storage.build(made, candidates=kept + mismatched + 2 * degrade, labelled=labelled)
    special = f"EOS {tokenizer.eos_token} ({tokenizer.eos_token_id}), "
    special += (
        f"BOS {tokenizer.bos_token} ({tokenizer.bos_token_id}) before plain prompts" if rules.before else "no BOS"
    )
    name = f"{path}{f', rows {rows}' if rows else ''}, as {format}, too_long {too_long}"
    told = report.make(name, len(source.records), counts, stored, special, mismatched=mismatched, degrade=degrade)
    if not len(stored):
        raise ValueError(
            f"no usable record\n{report.render(told)}\nTry another data.format ({', '.join(formats.FORMATS)}), "
            "data.too_long or data.candidates"
        )
    return stored, told


def _check_pairs(pairs: str, candidates: int, accept: int, beta: float, unpair: bool) -> None:
    if pairs not in ("", *pairing.KINDS):
        raise ValueError(f"data.pairs={pairs!r} is unknown; expected {' | '.join(pairing.KINDS)}, or nothing")
    if pairs and candidates < 3:
        raise ValueError(
            f"data.pairs makes pairs of ranked candidates; got data.candidates={candidates}, expected >= 3"
        )
    if pairs and unpair:
        raise ValueError("data.pairs makes pairs, data.unpair takes them apart; set one of them")
    if accept and not (pairs and 2 <= accept <= candidates and beta > 0):
        raise ValueError(
            f"data.accept={accept} and accept_beta={beta}: expected a number from 2 to data.candidates={candidates} of "
            f"those that data.pairs (now {pairs!r}) makes pairs of, and a temperature above 0"
        )


def _paired(
    listed: Iterable[_Read], kind: str, accept: int, beta: float, seed: int, counts: Tally
) -> Iterator[list[Example]]:
    """Yield the pairs that are made of each example; one that gives none is dropped."""
    for example, _, ordered in listed:
        rng = np.random.default_rng([seed, example.row])
        if accept:
            example = pairing.rejection_sample(example, accept, beta, rng)
        made, left_out = pairing.pairs(example, kind, rng, ordered=ordered)
        if made:
            counts.noted[_PAIRED].append(example.row)
            counts.noted[_NO_PAIR] += [example.row] * left_out
            yield made
        else:
            counts.dropped[_EQUAL if left_out else _FEWER].append(example.row)


def _examples(source: sources.Source, rules: _Rules, counts: Tally) -> Iterator[_Read]:
    """Yield examples, each with the label that its record has.

    Texts are tokenised chunk by chunk: a fast tokenizer is many times faster on a list than on its items.
    """
    size = len(source.records)
    chunks: Iterable[int] = range(0, size, _CHUNK)
    if size >= _LONG:
        console = rich.console.Console(stderr=True)
        chunks = rich.progress.track(chunks, description="tokenising", console=console, transient=True)
    numbered: Iterator[tuple[int, sources.Record]] = enumerate(source.records, source.first)
    if field := formats.grouped_by(rules.format):
        numbered = sources.grouped(numbered, field)
    for chunk in chunks:
        texts = list(_texts(itertools.islice(numbered, _CHUNK), rules, counts))
        ids = iter(
            tokenise.encode(
                [t for text in texts for t in (text.rendered.prompt, *text.rendered.responses)], rules.tokenizer
            )
        )
        pieces = [(next(ids), list(itertools.islice(ids, len(text.rendered.responses)))) for text in texts]
        if chunk == 0:
            _note_dependence(texts, pieces, rules, counts)
        for text, (prompt, responses) in zip(texts, pieces, strict=True):
            try:
                yield _Read(_example(text, prompt, responses, rules, counts), text.label, text.ordered)
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
        yield _Text(row, rendered, parsed.scores, parsed.label, parsed.stated or parsed.scores is None)


def _parse(row: int, record: sources.Record, rules: _Rules) -> Parsed:
    try:
        parsed = rules.parse(record)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"row {row} is no record of data.format={rules.format!r}: "
            + (f"it has no field {error}" if isinstance(error, KeyError) else str(error))
            + f"; its fields are {', '.join(record)}; formats: {', '.join(formats.FORMATS)}"
        ) from error
    return _candidates(parsed, rules)


def _candidates(parsed: Parsed, rules: _Rules) -> Parsed:
    """Keep the best response and the next ones that can stand beside it, and note those that are passed over."""
    least = min(2, rules.candidates)
    if len(parsed.responses) < least:
        raise Unusable(_FEWER)
    if _blank(parsed.responses[0]):
        raise Unusable(_EMPTY)
    kept, notes = [0], []
    for k, response in enumerate(parsed.responses[1:], 1):
        if len(kept) == rules.candidates:
            break
        if _blank(response):
            notes.append(_EMPTY_LEFT_OUT)
        elif rules.ties == "drop" and parsed.scores and not parsed.stated and parsed.scores[k] == parsed.scores[0]:
            notes.append(_TIE_LEFT_OUT)
        else:
            kept.append(k)
    scores = parsed.scores and tuple(parsed.scores[k] for k in kept)
    if len(kept) < least:
        raise Unusable(_EQUAL if _TIE_LEFT_OUT in notes else _EMPTY)
    if len(kept) > 1 and scores and not parsed.stated and len(set(scores)) == 1:
        raise Unusable(_EQUAL)
    responses = tuple(parsed.responses[k] for k in kept)
    return parsed._replace(responses=responses, scores=scores, notes=(*parsed.notes, *notes))


def _blank(response: str | Messages) -> bool:
    return not (response if isinstance(response, str) else "".join(turn["content"] for turn in response)).strip()


def _example(text: _Text, prompt: np.ndarray, responses: Sequence[np.ndarray], rules: _Rules, counts: Tally) -> Example:
    prompt, closed = tokenise.close(
        prompt, responses, eos=rules.tokenizer.eos_token_id, before=rules.before, templated=text.rendered.templated
    )
    cut = rules.cut(prompt, closed, rules.budget)
    scores = text.scores or (0.0,) * len(closed)
    best, *others = zip(cut.responses, scores, strict=True)
    kept = [best, *(other for other in others if not np.array_equal(other[0], best[0]))]
    if len(kept) < min(2, rules.candidates):
        raise Unusable(_IDENTICAL)
    absent = rules.candidates - len(kept)
    left_out = (_IDENTICAL_LEFT_OUT,) * (len(closed) - len(kept))
    unscored = (_UNSCORED,) * (text.scores is None)
    for note in (*cut.notes, *left_out, *(_FEWER,) * (absent > 0), *unscored):
        counts.noted[note].append(text.row)
    kept += [(np.zeros(0, np.int32), 0.0)] * absent
    label = 1.0 if text.label is None else text.label
    return Example(cut.prompt, tuple(r for r, _ in kept), tuple(s for _, s in kept), text.row, label)


def _note_dependence(
    texts: Sequence[_Text], pieces: Sequence[tuple[np.ndarray, list]], rules: _Rules, counts: Tally
) -> None:
    wholes = tokenise.encode([text.rendered.prompt + text.rendered.responses[0] for text in texts], rules.tokenizer)
    for text, (prompt, responses), whole in zip(texts, pieces, wholes, strict=True):
        if not np.array_equal(np.concatenate([prompt, responses[0]]), whole):
            counts.noted[_APART].append(text.row)
