"""Worlds: places where the right answer is known, so that a run can be judged without a human.

A world is data and pure functions: no training, no device. It is an importable module that holds `WORLD`, a `World`;
`slpojax.simulate` makes a reference model and pairs out of one and judges policies by its reward. Knows how to find a
world by name; knows nothing about any of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slpojax import named


class World(NamedTuple):
    """All that a world knows. Random numbers come in as an argument, so that equal seeds give equal worlds.

    Attributes:
        model: config.json of its models; the size of the vocabulary and the special tokens come from the tokenizer.
        tokenizer: () -> a transformers tokenizer with an EOS; `tokenizer(prompt)` is what a model is prompted with.
        texts: (count, random numbers) -> (prompt, response) pairs of the language that the reference learns. A response
            begins with what parts it from its prompt, most often a space.
        prompts: count -> as many prompts, which the reference and the policies answer.
        reward: (prompt, answer) -> the gold reward, for any answer; its unit is the nat of preference: of two answers a
            is preferred with probability sigmoid(reward(a) - reward(b)).
        longest: tokens of an answer, EOS included, before it is cut.
        settings: dotted keys of the configuration (slpojax/defaults.py) with which the reference learns the texts.
        text_count: texts that the reference learns; as many as `held_out` more are held out.
        pair_count: pairs of the reference's answers to train on.
        held_out: pairs besides, to evaluate on.
        judged: answers that an evaluation samples; best a multiple of the different prompts.
    """

    model: Mapping[str, Any]
    tokenizer: Callable[[], Any]
    texts: Callable[[int, np.random.Generator], Sequence[tuple[str, str]]]
    prompts: Callable[[int], Sequence[str]]
    reward: Callable[[str, str], float]
    longest: int
    settings: Mapping[str, Any]
    text_count: int = 6000
    pair_count: int = 12288
    held_out: int = 512
    judged: int = 1020


def find(name: str) -> tuple[str, World]:
    """Return the full name of a world's module, and the world.

    Args:
        name: a module of this package, or any importable one.

    Raises:
        ValueError: there is no such module, or it holds no `WORLD`; the message lists those there are.
    """
    module = named.find_module("config.world", name, __name__, having=["WORLD"])
    if not isinstance(module.WORLD, World):
        raise ValueError(f"config.world={name!r}: WORLD of {module.__name__} is no slpojax.worlds.World(...)")
    return module.__name__, module.WORLD
