"""The language of the reviews: a small probabilistic grammar, its vocabulary, and the gold reward of a review.

Knows words and numbers; knows no model.
"""

import functools
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

TOPICS = {  # what a review of each topic speaks about
    "film": "plot cast music ending",
    "book": "plot style cover ending",
    "room": "bed view staff price",
    "meal": "taste music staff price",
}
OPENINGS = ("the {} :", "review of the {} :", "a short review of the {} :")
GRAMMAR: dict[str, tuple[tuple[float, str], ...]] = {  # symbol -> (probability, what it becomes); ASPECT: see TOPICS
    "REVIEW": ((0.1, "CLAUSE ."), (0.45, "CLAUSE LINK CLAUSE ."), (0.45, "CLAUSE LINK CLAUSE LINK CLAUSE .")),
    "LINK": ((0.5, "and"), (0.3, ","), (0.2, "but")),
    "CLAUSE": ((0.45, "the ASPECT was QUALITY"), (0.25, "the ASPECT is QUALITY"), (0.3, "i FEELING it")),
    "QUALITY": ((0.4, "WORD"), (0.2, "very WORD"), (0.15, "quite WORD"), (0.15, "not WORD"), (0.1, "hardly WORD")),
    "FEELING": ((0.6, "VERB"), (0.25, "really VERB"), (0.15, "never VERB")),
    "WORD": tuple((0.1, word) for word in "superb great good nice fine plain weak poor bad awful".split()),
    "VERB": tuple((0.25, word) for word in "loved liked disliked hated".split()),
}
LONGEST = 20  # tokens of a response: the longest of the grammar has 18 words, then comes the EOS

SENTIMENT = {"superb": 2.0, "great": 1.5, "good": 1.0, "nice": 0.6, "fine": 0.3, "loved": 1.6, "liked": 0.8}
SENTIMENT |= {"awful": -2.0, "bad": -1.5, "poor": -1.0, "weak": -0.6, "plain": -0.3, "hated": -1.6, "disliked": -0.8}
MODIFIER = {"very": 1.5, "really": 1.5, "quite": 0.5, "hardly": -0.3, "not": -0.7, "never": -1.0}
LINK = {"and": 1.0, ",": 1.0, "but": 1.5}  # what follows "but" weighs more

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


@functools.cache
def words() -> tuple[str, ...]:
    """Return the vocabulary; a word's place in it is its token id.

    Example:
        >>> len(words()), words()[:4]
        (52, ('<pad>', '<eos>', '<unk>', ','))
    """
    texts = [text for rules in GRAMMAR.values() for _, text in rules] + [*TOPICS, *TOPICS.values(), *OPENINGS]
    plain = {word for text in texts for word in text.split() if word == word.lower() and word != "{}"}
    return (PAD, EOS, UNKNOWN, *sorted(plain))


def encode(text: str) -> np.ndarray:
    """Return the ids of the words of a text."""
    return np.array([words().index(word) for word in text.split()], np.int32)


def decode(ids: Sequence[int] | np.ndarray) -> list[str]:
    """Return the words of a response, without its EOS."""
    return [words()[i] for i in ids if words()[i] != EOS]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the same mapping as a tokenizer that saves itself in Hugging Face layout."""
    ids = {word: i for i, word in enumerate(words())}
    by_word = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    by_word.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=by_word, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def prompts(count: int) -> list[tuple[str, str]]:
    """Return (topic, prompt) pairs: every opening of every topic, over and over."""
    every = [(topic, opening.format(topic)) for opening in OPENINGS for topic in TOPICS]
    return [every[i % len(every)] for i in range(count)]


def write(topic: str, rng: np.random.Generator, symbol: str = "REVIEW") -> list[str]:
    """Draw a review of a topic from the grammar, as words."""
    if symbol == "ASPECT":
        return [str(rng.choice(TOPICS[topic].split()))]
    if symbol not in GRAMMAR:
        return [symbol]
    chances, texts = zip(*GRAMMAR[symbol], strict=True)
    text = texts[rng.choice(len(texts), p=chances)]
    return [word for part in text.split() for word in write(topic, rng, part)]


def reward(review: Sequence[str]) -> float:
    """Return the gold reward of a review: sentiments times the modifier before each and the weight of its clause.

    Defined for any words, so that a policy may leave the grammar. Its unit is the nat of preference: of two reviews,
    a is preferred with probability sigmoid(reward(a) - reward(b)).

    Example:
        >>> reward("the plot was not good , but i really loved it .".split())
        2.9
    """
    total, modifier, clause = 0.0, 1.0, 1.0
    for word in review:
        if word in LINK:
            modifier, clause = 1.0, LINK[word]
        elif word in MODIFIER:
            modifier = MODIFIER[word]
        elif word in SENTIMENT:
            total += clause * modifier * SENTIMENT[word]
            modifier = 1.0
    return round(total, 6)
