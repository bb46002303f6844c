"""Whether a model and the tokens of the data belong together: which ids it has, what they stand for, which end a text.

Knows token ids, sizes and tokenizers; knows no model and no configuration.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slpojax import data
from slpojax.base import Int
from slpojax.data import Examples

# Files that say which id is which token.
_MAPS = ("tokenizer.json", "tokenizer.model", "vocab.json", "added_tokens.json")


def require_ids(parts: Mapping[str, Examples], size: int, *, key: str, tokenizer: Any) -> None:
    """Refuse token ids that a model does not have: JAX would read another word's row in their place.

    Args:
        parts: name of a part of the data -> its examples: prompts, and responses with what ends them.
        size: words of the model's vocabulary.
        key: of the configuration that names the model.
        tokenizer: that made the ids; None where nobody knows.

    Raises:
        ValueError: names the part, the row, the id and the sizes.
    """
    for part, examples in parts.items():
        at = int(np.argmax(examples.token)) if len(examples.token) else -1
        if at >= 0 and (largest := int(examples.token[at])) >= size:
            row = examples.places()[np.searchsorted(examples.start, at, side="right") - 1]
            of = f"the tokenizer has {len(tokenizer)} ids" if tokenizer is not None else "the tokenizer is unknown"
            raise ValueError(
                f"{part} data, row {row}: token id {largest}, but the model of config.{key} knows {size} (vocab_size), "
                f"ids 0 to {size - 1}; {of}. Set config.data.tokenizer to the one that belongs to the model, or give "
                "the model rows for the added tokens (transformers: resize_token_embeddings, then save_pretrained)"
            )


def require_same_tokens(
    parts: Sequence[Examples], tokenizer: Any, made_by: pathlib.Path, folder: pathlib.Path, *, key: str
) -> str:
    """Refuse a model for whose own tokenizer the ids of the data are other tokens.

    Args:
        parts: the examples.
        tokenizer: that made their ids.
        made_by: the folder of that tokenizer.
        folder: of the model.
        key: of the configuration that names the model.

    Returns:
        A line on ids that the model's tokenizer does not know, or that it has none; "" where all are the same.

    Raises:
        ValueError: an id stands for another token; names it and how many there are.
    """
    own = [name for name in _MAPS if (folder / name).is_file()]
    if not own:
        return f"config.{key}: {folder} has no tokenizer; its tokens are taken to be those of {made_by}"
    if all(
        (made_by / name).is_file() and (made_by / name).read_bytes() == (folder / name).read_bytes() for name in own
    ):
        return ""
    try:
        theirs = data.load_tokenizer(str(folder))
    except ValueError as error:
        raise ValueError(f"config.{key}: its own tokenizer cannot be compared: {error}") from error
    used = np.unique(np.concatenate([examples.token for examples in parts])).tolist()
    common = [number for number in used if number < len(theirs)]
    pairs = [*zip(common, *(one.convert_ids_to_tokens(common) for one in (tokenizer, theirs)), strict=True)]
    if other := [number for number, a, b in pairs if b is not None and a != b]:
        raise ValueError(
            f"config.{key}: {folder} has another tokenizer than {made_by}: of {len(used)} ids in the data {len(other)} "
            f"are other tokens there, the first is {other[0]}. Log-probs of other tokens cannot be compared; give a "
            "model with the policy's tokenizer"
        )
    lacking = len(used) - sum(b is not None for *_, b in pairs)
    return f"config.{key}: {lacking} ids of the data have no token in its own tokenizer" if lacking else ""


def ends(examples: Examples, tokenizer: Any) -> tuple[int, ...]:
    """The special token that ends most responses, which is what training teaches to stop with; () where none does.

    A template may write a line break behind it, so the last but one token counts where the last is plain.
    """
    known = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    special = np.zeros(1 + max([*known, int(examples.token.max(initial=0))]), bool)
    special[sorted(known)] = True
    size = np.asarray(examples.lengths.response)
    end = (examples.start + examples.lengths.prompt)[:, None] + np.cumsum(size, axis=1)
    last, before = (_at(examples.token, end - back, size >= back) for back in (1, 2))
    found = np.where(special[last] & (last >= 0), last, np.where(special[before] & (before >= 0), before, -1))
    counts = np.bincount(found[found >= 0]) if (found >= 0).any() else np.zeros(1, int)
    return (int(counts.argmax()),) if counts.any() else ()


def padding(tokenizer: Any, named: int | None, ends: Sequence[int]) -> int | None:
    """The token to pad texts with whose last other token is read: one that ends no text; None where there is none.

    Args:
        tokenizer: its own padding token is taken where `named` ends texts, else an added one called after padding.
        named: what the model's config.json says.
        ends: ids that end texts, beside the tokenizer's EOS.
    """
    called = [number for number, token in sorted(tokenizer.added_tokens_decoder.items()) if "pad" in str(token).lower()]
    known = [number for number in (named, tokenizer.pad_token_id, *called) if type(number) is int and number >= 0]
    return next((number for number in known if number not in {*ends, tokenizer.eos_token_id}), None)


def _bytes(file: pathlib.Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _at(token: Int[np.ndarray, " tokens"], place: Int[np.ndarray, "N K"], there: np.ndarray) -> Int[np.ndarray, "N K"]:
    """The tokens at places, -1 where there is none."""
    return np.where(there, token[np.where(there, place, 0)], -1)
