"""Controlled sentiment on real text: film reviews of IMDb, gone on with from their first words.

The experiment of Rafailov et al., Direct Preference Optimization, 2023, arXiv 2305.18290, at a size for two cores: a
small model learns pieces of the training reviews and is the reference; prompts are beginnings of held-out reviews; the
gold reward is the log-odds of a classifier that we train on the training reviews (`sentiment`). The reviews (Maas et
al., Learning Word Vectors for Sentiment Analysis, 2011) lie in the folder that SLPOJAX_IMDB names, as train.jsonl.gz
and test.jsonl.gz with `text` and `label`, or are those of the hub's stanfordnlp/imdb.
Knows this world; knows no model but its shape.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from slpojax.worlds import World
from slpojax.worlds.imdb import sentiment

FOLDER = "SLPOJAX_IMDB"  # the environment variable
HUB = "stanfordnlp/imdb"

VOCABULARY = 2048
LONGEST = 40  # tokens of an answer, EOS included
HELD_OUT = 4096  # beginnings of held-out reviews that are prompts, before those of training reviews
TRAINING = 12000  # training reviews whose pieces the reference learns
PROMPT_WORDS = (3, 6)  # fewest and most words of a prompt
WORDS = 22  # words of a review that follow a prompt, as many as fit into an answer
_FOR_TOKENS = 3000  # reviews of which the tokenizer is made

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 288,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "tie_word_embeddings": True,
}


@functools.cache
def reviews(split: str) -> tuple[tuple[str, int], ...]:
    """Return (text, label) of the reviews of a split, "train" or "test", as plain lower-case words and stops.

    Raises:
        ValueError: SLPOJAX_IMDB names no folder with the files.
    """
    folder = os.environ.get(FOLDER)
    if folder:
        file = pathlib.Path(folder) / f"{split}.jsonl.gz"
        if not file.is_file():
            raise ValueError(f"{FOLDER}={folder}: there is no {file.name}; expected train.jsonl.gz and test.jsonl.gz")
        rows = datasets.load_dataset("json", data_files={split: str(file)}, split=split)
    else:
        rows = datasets.load_dataset(HUB, split=split)
    return tuple(
        (" ".join(sentiment.words(text)), int(label)) for text, label in zip(rows["text"], rows["label"], strict=True)
    )


@functools.cache
def classifier() -> sentiment.Classifier:
    """Return the classifier whose log-odds are the gold reward."""
    # Half of the reviews, for time: two of each four, as they may stand sorted by label or by turns.
    texts, labels = zip(*(review for i, review in enumerate(reviews("train")) if i % 4 < 2), strict=True)
    return sentiment.train(texts, labels, piece=WORDS + PROMPT_WORDS[1])


def tokenizer() -> PreTrainedTokenizerFast:
    """Return pieces of words, learnt from training reviews, whose bytes write any text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_pieces().to_str()), eos_token="<eos>", pad_token="<pad>"
    )


@functools.cache
def _pieces() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((text for text, _ in reviews("train")[:_FOR_TOKENS]), trainer)
    return made


def texts(count: int, rng: np.random.Generator) -> Sequence[tuple[str, str]]:
    """Draw beginnings of training reviews, each with what follows as far as it fits into an answer."""
    drawn = _training()
    return [_cut(drawn[int(i)]) for i in rng.integers(len(drawn), size=count)]


def prompts(count: int) -> Sequence[str]:
    """Return beginnings of held-out reviews, then of training reviews, over and over."""
    every = [_cut(text)[0] for text in (*_held_out(), *_training())]
    return [every[i % len(every)] for i in range(count)]


def reward(prompt: str, answer: str) -> float:
    """Return the log-odds that a review is favourable."""
    return classifier().log_odds(f"{prompt}{answer}")


def _held_out() -> list[str]:
    return _spread("test", HELD_OUT)


def _training() -> list[str]:
    return _spread("train", TRAINING)


def _spread(split: str, count: int) -> list[str]:
    """Return so many reviews of a split, evenly over it, as it is sorted by label; those with words enough."""
    usable = [text for text, _ in reviews(split) if text.count(" ") > PROMPT_WORDS[1] + WORDS]
    return [usable[i * len(usable) // count] for i in range(min(count, len(usable)))]


@functools.cache
def _cut(text: str) -> tuple[str, str]:
    """Return the first words of a review, and what follows, as many words as fit into an answer."""
    words = text.split(" ")
    first = PROMPT_WORDS[0] + len(words) % (PROMPT_WORDS[1] - PROMPT_WORDS[0] + 1)
    prompt, rest = " ".join(words[:first]), words[first : first + WORDS]
    while len(_pieces().encode(" " + " ".join(rest)).ids) > LONGEST - 1:
        rest.pop()
    return prompt, " " + " ".join(rest)


WORLD = World(
    model=LLAMA,
    tokenizer=tokenizer,
    texts=texts,
    prompts=prompts,
    reward=reward,
    longest=LONGEST,
    settings={
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 50,
        "steps": 800,
        "batch_size": 64,
        "eval_every": 400,
        "checkpoint_every": 400,
        "data.max_length": 80,
        "data.max_prompt_length": 40,
        "data.row_length": 256,
        "data.order": "shuffled",
    },
    text_count=20000,
    pair_count=8192,
    held_out=512,
    judged=1024,
)
