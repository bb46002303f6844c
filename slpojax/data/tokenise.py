"""Text to token ids, or ids that a record gives: a prompt, and what each response adds to it, closed by EOS.

Knows the tokenizer; knows no file and no limit on lengths but how much of a text is read at all. A response's ids are
those that follow the prompt's in the tokenisation of both together, where the prompt's ids are a prefix of it; so no
blank begins a response that nobody wrote, and no BOS stands between them. EOS is an ordinary target, also where the
tokenizer pads with it: masks come from lengths, never from ids.
"""

import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from slpojax import wording
from slpojax.base import Bool
from slpojax.data import counting, marks, token_ids
from slpojax.data.chain import Group, Text, Transform
from slpojax.data.examples import Example
from slpojax.data.formats import Tokens, Unusable
from slpojax.data.marks import Ids as Ids
from slpojax.data.marks import Tokenizer as Tokenizer
from slpojax.data.options import Setup
from slpojax.data.report import Tally

Encoder: TypeAlias = Callable[[Sequence[str]], list[Ids]]

BOS = ("tokenizer", "never", "always")
STRAY = "EOS inside the text"
LONG = "text far longer than data.max_length cut before it was tokenised"

# Only asked where a folder holds tokenizer.json alone, which does not say which token ends a text.
_END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
_AT_ONCE = 1024  # texts in one call: a fast tokenizer is many times faster on a list than on its items
_COMPARED = 1024  # first records whose tokens are compared with those of the whole text
_DEPENDENT = f"tokens of the response depend on its prompt (of the first {_COMPARED:,} rows)"
_UNDIVIDED = "dialogue rendered beforehand, whose turns data.turns cannot tell apart, so all of a response counts"
_MEET = "prompt and response meet within a token, so the response was tokenised without its prompt"
_ROOM = 256  # characters of a text that are read for a token, at least
# Where a response may begin. What a tokenizer makes of the second text alone shows whether it adds a blank to it.
_PROBES = (("\n", "a"), ("]", "a"), (":", " a"), ("a", "a"))


def load_tokenizer(path: str) -> Tokenizer:
    """Load a tokenizer from a local folder or the hub, and see that it has an EOS.

    A folder with `tokenizer.json` alone does not name its EOS; it is then the one token of a short list of usual names
    that the vocabulary holds, and the data report shows it.

    Raises:
        ValueError: there is no tokenizer, or it does not show which token is its EOS.
    """
    import transformers

    local = pathlib.Path(path).expanduser()
    try:
        # Without trust_remote_code=False transformers asks on standard input whether to run the folder's own code.
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(local) if local.exists() else path, trust_remote_code=False
        )
        tokenizer("a")  # some faults of a folder show at the first text
    except Exception as error:  # whatever a damaged folder makes of transformers
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ValueError(
            f"data.tokenizer={path!r}: no tokenizer could be loaded ({type(error).__name__}: {reason}); give a folder "
            "that holds tokenizer.json, and no code of its own"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"data.tokenizer={path!r} holds no tokenizer.json; transformers' save_pretrained writes it")
    if tokenizer.eos_token_id is None:
        known = [name for name in _END_OF_TEXT if name in tokenizer.get_vocab()]
        if len(known) != 1:
            raise ValueError(
                f"data.tokenizer={path!r} names no EOS token, and of the usual names it holds {known or 'none'}; "
                'add a tokenizer_config.json with {"eos_token": "..."}'
            )
        tokenizer.eos_token = known[0]
    return tokenizer


def digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of all that the tokenizer does to a text."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def tokenise(setup: Setup) -> Transform:
    """Make token ids of texts, many texts at a time; note where prompt and response share a token.

    Raises:
        ValueError: `data.bos` is unknown, or the tokenizer has no BOS to put first.
    """
    tokenizer, before = setup.tokenizer, leading(setup.tokenizer, setup.encoding.bos)
    encode, most = marks.encoder(tokenizer), longest_read(tokenizer, setup.encoding.max_length)
    begins, every = marks.beginnings(tokenizer), setup.encoding.turns == counting.ALL
    divide = _behind if begins_anew(tokenizer) else _apart

    def transform(items: Iterable[Text], tally: Tally) -> Iterator[Group]:
        texts = (_shorten(text, most, tokenizer.bos_token) for text in items)
        while chunk := list(itertools.islice(texts, _AT_ONCE)):
            as_ids = [text for text in chunk if isinstance(text.parsed.prompt, Tokens)]
            token_ids.require_same_tokenizer(as_ids[:_COMPARED], tokenizer, setup.source.path)
            divided = divide([text for text in chunk if not isinstance(text.parsed.prompt, Tokens)], encode, tally)
            for text in chunk:
                try:
                    if isinstance(text.parsed.prompt, Tokens):
                        yield _of_ids(text, token_ids.examine(text.parsed, tokenizer))
                        continue
                    prompt, responses, behind = next(divided)
                    counted = _counted(text, responses, behind, begins)
                    closed = close(
                        prompt,
                        responses,
                        eos=tokenizer.eos_token_id,
                        before=() if text.templated else before,
                        marked=text.templated or text.rendered,
                        ended=text.ended,
                    )
                except Unusable as reason:
                    tally.drop(text.row, str(reason))
                else:
                    tally.note(text.row, (_UNDIVIDED,) * (text.rendered and not every))
                    yield _group(text, *closed, counted=_with_end(counted, closed[1]))

    return transform


def begins_anew(tokenizer: Tokenizer) -> bool:
    """Return whether a text has other ids alone than behind another: SentencePiece puts a blank before it."""
    encode = marks.encoder(tokenizer)
    for first, second in _PROBES:
        one, other, both = encode([first, second, first + second])
        known = tokenizer.unk_token_id not in both  # words alone are no proof: "]a" may be unknown as "a" is
        if known and np.array_equal(both[: len(one)], one) and not np.array_equal(both[len(one) :], other):
            return True
    return False


def longest_read(tokenizer: Tokenizer, max_length: int) -> int:
    """Return how many characters of a text are read: more than `max_length` tokens, however long these are.

    Some tokenizers drop the blanks between words, so a token may stand for more characters than its own.
    """
    return (max_length + 1) * max(_ROOM, 1 + max(map(len, tokenizer.get_vocab())))


def _shorten(text: Text, most: int, bos: str | None) -> Text:
    """Keep of a text what any cut may leave: the end of a prompt, behind its BOS, and the beginning of a response."""
    parsed = text.parsed
    if isinstance(parsed.prompt, Tokens):
        return text
    prompt, responses = str(parsed.prompt), parsed.responses
    if max(map(len, (prompt, *responses))) <= most:
        return text
    first = bos if bos and len(prompt) > most and prompt.startswith(bos) else ""
    shorter = tuple(str(response)[:most] for response in responses)
    parsed = parsed._replace(prompt=f"{first}{prompt[-most:]}", responses=shorter)
    return text._replace(parsed=parsed, notes=(*text.notes, LONG))


def _counted(
    text: Text, responses: Sequence[Ids], behind: Sequence[str], begins: Callable[[str], Ids]
) -> tuple[Bool[np.ndarray, " _"], ...] | None:
    """Return which tokens of each response count, None where all do.

    Args:
        text: which characters do.
        responses: ids of each, the last ones of those of its text behind `behind`.
        behind: of each response, the text that it was tokenised behind.
        begins: text -> where each of its tokens begins.

    Raises:
        Unusable: of a response no token does.
    """
    if not text.spans:
        return None
    found = []
    for ids, before, response, spans in zip(responses, behind, text.parsed.responses, text.spans, strict=True):
        of_all = begins(f"{before}{response}")
        found.append(counting.of_tokens(spans, of_all[len(of_all) - len(ids) :] - len(before)))
    if not all(one.any() for one in found):
        raise Unusable(counting.NOTHING)
    return tuple(found)


def _with_end(
    counted: tuple[Bool[np.ndarray, " _"], ...] | None, responses: Sequence[Ids]
) -> tuple[Bool[np.ndarray, " _"], ...] | None:
    """Return which tokens count once responses are closed: an EOS that is put behind one does."""
    if counted is None:
        return None
    pairs = zip(counted, responses, strict=True)
    return tuple(np.concatenate([one, np.ones(len(ids) - len(one), bool)]) for one, ids in pairs)


def _behind(texts: Sequence[Text], encode: Encoder, tally: Tally) -> Iterator[tuple[Ids, list[Ids], list[str]]]:
    """Yield the ids of every prompt, those that follow them with each response behind it, and what it was behind.

    Where the prompt's ids are no prefix, prompt and response share a token. The response then has the ids that it has
    behind a line break, which shares none.
    """
    prompts = encode([text.parsed.prompt for text in texts])  # type: ignore[misc]
    pairs = [(i, response) for i, text in enumerate(texts) for response in text.parsed.responses]
    found = encode([f"{texts[i].parsed.prompt}{response}" for i, response in pairs])
    ids = [_rest(prompts[i], whole) for (i, _), whole in zip(pairs, found, strict=True)]
    before = [str(texts[i].parsed.prompt) for i, _ in pairs]
    shared = [n for n, rest in enumerate(ids) if rest is None]
    [line] = encode(["\n"])
    for n, whole in zip(shared, encode([f"\n{pairs[n][1]}" for n in shared]), strict=True):
        ids[n], before[n] = _rest(line, whole), "\n"
        tally.note(texts[pairs[n][0]].row, (_MEET,))
    alone = [n for n, rest in enumerate(ids) if rest is None]
    for n, response in zip(alone, encode([str(pairs[n][1]) for n in alone]), strict=True):
        ids[n], before[n] = response, ""
    each = iter(zip(ids, before, strict=True))
    for prompt, text in zip(prompts, texts, strict=True):
        of_text = [*itertools.islice(each, len(text.parsed.responses))]
        yield prompt, [rest for rest, _ in of_text], [where for _, where in of_text]  # type: ignore[misc]


def _rest(prompt: Ids, whole: Ids) -> Ids | None:
    """Return what follows the prompt, or None where it is no prefix."""
    return whole[len(prompt) :] if np.array_equal(whole[: len(prompt)], prompt) else None


def _apart(texts: Sequence[Text], encode: Encoder, tally: Tally) -> Iterator[tuple[Ids, list[Ids], list[str]]]:
    """Yield what `_behind` does, each piece tokenised alone: the ids are the same, and it takes half the time.

    Of the first texts it is compared whether they are; of dropped ones, too, as it is a sample.
    """
    ids = iter(encode([piece for text in texts for piece in (text.parsed.prompt, *text.parsed.responses)]))  # type: ignore[misc]
    pieces = [(next(ids), [*itertools.islice(ids, len(text.parsed.responses))]) for text in texts]
    compared = [(text, ids) for text, ids in zip(texts, pieces, strict=True) if text.place < _COMPARED]
    wholes = encode([f"{text.parsed.prompt}{text.parsed.responses[0]}" for text, _ in compared])
    for (text, (prompt, responses)), whole in zip(compared, wholes, strict=True):
        if not np.array_equal(np.concatenate([prompt, responses[0]]), whole):
            tally.note(text.row, (_DEPENDENT,))
    for prompt, responses in pieces:
        yield prompt, responses, [""] * len(responses)


def leading(tokenizer: Tokenizer, bos: str) -> tuple[int, ...]:
    """Return the ids that stand before a plain prompt.

    Args:
        tokenizer: has a BOS or none, and adds it by itself or does not.
        bos: "tokenizer": BOS where the tokenizer adds one by itself (Llama does, NeoX does not; so does TRL); "never"
            (as the original DPO program); "always". A chat template writes its own BOS.

    Raises:
        ValueError: `bos` is something else, or "always" without a BOS.
    """
    if bos not in BOS:
        raise wording.unknown("data.bos", bos, BOS)
    if bos == "always" and tokenizer.bos_token_id is None:
        raise ValueError(
            "data.bos='always', but the tokenizer has no BOS token; set data.bos to 'tokenizer' or 'never'"
        )
    if bos == "never" or tokenizer.bos_token_id is None:
        return ()
    by_itself = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return (tokenizer.bos_token_id,) if bos == "always" or by_itself else ()


def special(setup: Setup) -> str:
    """Return a line on the special tokens: which EOS closes a response, and whether BOS stands before a prompt."""
    tokenizer = setup.tokenizer
    bos = f"BOS {tokenizer.bos_token} ({tokenizer.bos_token_id}) before plain prompts"
    eos = f"EOS {tokenizer.eos_token} ({tokenizer.eos_token_id})"
    return f"{eos}, {bos if leading(tokenizer, setup.encoding.bos) else 'no BOS'}"


def close(
    prompt: Ids,
    responses: Sequence[Ids],
    *,
    eos: int,
    before: tuple[int, ...],
    marked: bool,
    ended: tuple[bool, ...] = (),
) -> tuple[Ids, tuple[Ids, ...]]:
    """Put what stands `before` the prompt, unless it begins with it, and EOS after every response without an end.

    Args:
        prompt: token ids.
        responses: token ids of each.
        eos: the id that ends a response.
        before: ids that stand before the prompt.
        marked: whether the texts hold special tokens by intent; then a response may have EOS inside, between its turns.
        ended: of each response, whether a chat template ends it by itself.

    Raises:
        Unusable: there is no prompt, or EOS stands where a plain response goes on.
    """
    if prompt[: len(before)].tolist() != [*before]:
        prompt = np.concatenate([np.array(before, np.int32), prompt])
    if not len(prompt):
        raise Unusable("empty prompt")
    closed = tuple(
        r if by_itself or (len(r) and r[-1] == eos) else np.append(r, np.int32(eos))
        for r, by_itself in zip(responses, ended or (False,) * len(responses), strict=True)
    )
    if not marked and any((ids[:-1] == eos).any() for ids in closed):
        raise Unusable(STRAY)
    return prompt, closed


def _of_ids(text: Text, taken: token_ids.Taken) -> Group:
    group = _group(text, taken.prompt, taken.responses)
    return group._replace(as_ids=True, notes=(*group.notes, *taken.notes))


def _group(
    text: Text,
    prompt: Ids,
    responses: tuple[Ids, ...],
    counted: tuple[Bool[np.ndarray, " _"], ...] | None = None,
) -> Group:
    scores, label = text.parsed.scores, text.parsed.label
    example = Example(
        prompt,
        responses,
        scores or (0.0,) * len(responses),
        text.row,
        1.0 if label is None else label,
        counted=counted,
    )
    return Group(
        row=text.row,
        examples=(example,),
        ordered=text.parsed.stated or scores is None,
        scored=scores is not None,
        labelled=label is not None,
        templated=text.templated,
        sampled=text.parsed.sampled,
        notes=text.notes,
    )
