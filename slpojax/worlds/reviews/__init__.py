"""Controlled sentiment without a download: short reviews with a known gold reward.

The analogue of the IMDb experiment of Rafailov et al., Direct Preference Optimization, 2023, arXiv 2305.18290: a small
grammar writes reviews, and a review's gold reward is its sentiment. Knows this world; knows no model but its shape.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from slpojax.worlds import World
from slpojax.worlds.reviews import language

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def texts(count: int, rng: np.random.Generator) -> Sequence[tuple[str, str]]:
    """Draw reviews from the grammar."""
    return [
        (prompt, " " + " ".join(language.write(topic, rng))) for topic, prompt in language.prompts(count)
    ]  # a review follows its prompt behind a space


def prompts(count: int) -> Sequence[str]:
    """Return the openings of reviews."""
    return [prompt for _, prompt in language.prompts(count)]


def reward(prompt: str, answer: str) -> float:
    """Return the sentiment of a review, whatever its prompt."""
    del prompt
    return language.reward(answer.split())


WORLD = World(
    model=LLAMA,
    tokenizer=language.tokenizer,
    texts=texts,
    prompts=prompts,
    reward=reward,
    longest=language.LONGEST,
    # Enough for a held-out loss within 1% of the grammar's own entropy, 1.127 nats a token: a reference that knows less
    # pays more KL for the same reward.
    settings={
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 10,
        "steps": 600,
        "batch_size": 64,
        "eval_every": 300,
        "checkpoint_every": 300,
        "data.max_length": 40,
        "data.max_prompt_length": 16,
        "data.row_length": 128,
        "data.order": "shuffled",
    },
)
