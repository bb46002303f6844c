"""Text to token ids: prompt and responses apart, each response closed by EOS.

Knows the tokenizer; knows no file and no limit on lengths. Prompt and response are tokenised apart, so the response's
tokens do not depend on the prompt and no BOS stands between them. EOS is an ordinary target, also where the tokenizer
pads with it: masks come from lengths, never from ids.
"""

import hashlib
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from slpojax import named
from slpojax.base import Int
from slpojax.data.chain import Group, Text, Transform
from slpojax.data.examples import Example
from slpojax.data.formats import Unusable
from slpojax.data.options import Setup
from slpojax.data.report import Tally

Tokenizer: TypeAlias = Any  # transformers.PreTrainedTokenizerBase
Ids: TypeAlias = Int[np.ndarray, " _"]

BOS = ("tokenizer", "never", "always")
STRAY = "EOS inside the text"

# Only asked where a folder holds tokenizer.json alone, which does not say which token ends a text.
_END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
_AT_ONCE = 1024  # texts in one call: a fast tokenizer is many times faster on a list than on its items
_COMPARED = 1024  # first records whose tokens are compared with those of the whole text
_DEPENDENT = f"tokens of the response depend on its prompt (of the first {_COMPARED:,} rows)"


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
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(local) if local.exists() else path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"data.tokenizer={path!r}: no tokenizer could be loaded ({reason}); give a folder that holds tokenizer.json"
        ) from error
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
    """Make token ids of texts, many texts at a time; note where a response's ids depend on its prompt.

    Raises:
        ValueError: `data.bos` is unknown, or the tokenizer has no BOS to put first.
    """
    tokenizer, before = setup.tokenizer, leading(setup.tokenizer, setup.encoding.bos)

    def transform(items: Iterable[Text], tally: Tally) -> Iterator[Group]:
        texts = iter(items)
        while chunk := list(itertools.islice(texts, _AT_ONCE)):
            ids = iter(encode([t for text in chunk for t in (text.parsed.prompt, *text.parsed.responses)], tokenizer))  # type: ignore[misc]
            pieces = [(next(ids), [*itertools.islice(ids, len(text.parsed.responses))]) for text in chunk]
            _note_dependent(chunk, pieces, tokenizer, tally)
            for text, (prompt, responses) in zip(chunk, pieces, strict=True):
                try:
                    closed = close(
                        prompt,
                        responses,
                        eos=tokenizer.eos_token_id,
                        before=before,
                        templated=text.templated,
                        ended=text.ended,
                    )
                except Unusable as reason:
                    tally.drop(text.row, str(reason))
                else:
                    yield _group(text, *closed)

    return transform


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
        raise named.unknown("data.bos", bos, BOS)
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


def encode(texts: Sequence[str], tokenizer: Tokenizer) -> list[Ids]:
    """Return the token ids of every text, without the special tokens that the tokenizer would add."""
    if not texts:
        return []
    ids = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.array(piece, np.int32) for piece in ids]


def close(
    prompt: Ids,
    responses: Sequence[Ids],
    *,
    eos: int,
    before: tuple[int, ...],
    templated: bool,
    ended: tuple[bool, ...] = (),
) -> tuple[Ids, tuple[Ids, ...]]:
    """Put what stands `before` the prompt, and EOS after every response that does not end with it or by itself.

    Args:
        prompt: token ids.
        responses: token ids of each.
        eos: the id that ends a response.
        before: ids that stand before a plain prompt.
        templated: whether a chat template wrote the texts; then nothing is put before the prompt.
        ended: of each response, whether its template ends it by itself.

    Raises:
        Unusable: there is no prompt, or EOS stands where a plain text goes on.
    """
    if not templated and len(before):
        prompt = np.concatenate([np.array(before, np.int32), prompt])
    if not len(prompt):
        raise Unusable("empty prompt")
    closed = tuple(
        r if by_itself or (len(r) and r[-1] == eos) else np.append(r, np.int32(eos))
        for r, by_itself in zip(responses, ended or (False,) * len(responses), strict=True)
    )
    # In plain text it is a stray mark that would end the text early; `templates.write` looks for it in messages.
    if not templated and any((ids == eos).any() for ids in (prompt[len(before) :], *(r[:-1] for r in closed))):
        raise Unusable(STRAY)
    return prompt, closed


def _group(text: Text, prompt: Ids, responses: tuple[Ids, ...]) -> Group:
    scores, label = text.parsed.scores, text.parsed.label
    example = Example(prompt, responses, scores or (0.0,) * len(responses), text.row, 1.0 if label is None else label)
    return Group(
        row=text.row,
        examples=(example,),
        ordered=text.parsed.stated or scores is None,
        scored=scores is not None,
        labelled=label is not None,
        templated=text.templated,
        notes=text.notes,
    )


def _note_dependent(
    texts: Sequence[Text], pieces: Sequence[tuple[Ids, list[Ids]]], tokenizer: Tokenizer, tally: Tally
) -> None:
    """Note the texts whose first response has other ids behind its prompt; of dropped ones, too, as it is a sample."""
    compared = [(text, ids) for text, ids in zip(texts, pieces, strict=True) if text.place < _COMPARED]
    wholes = encode([f"{text.parsed.prompt}{text.parsed.responses[0]}" for text, _ in compared], tokenizer)
    for (text, (prompt, responses)), whole in zip(compared, wholes, strict=True):
        if not np.array_equal(np.concatenate([prompt, responses[0]]), whole):
            tally.note(text.row, (_DEPENDENT,))
