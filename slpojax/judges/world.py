"""The gold reward of a world as a judge. Knows worlds; knows no model."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from slpojax import cached, worlds
from slpojax.judges import COMPARES, SCORES, Context, Loaded, Question, Skip
from slpojax.worlds import World

_MESSAGES = Skip("a prompt of messages, where a world's are texts")


def gold(context: Context) -> Loaded:
    """Score an answer by the world's gold reward, in nats of preference.

    Raises:
        ValueError: there is no world.
    """

    def scores(world: World, prompt: str, answers: Sequence[str]) -> list[float]:
        return [world.reward(prompt, answer) for answer in answers]

    return _loaded(context, SCORES, scores)


def compare(context: Context) -> Loaded:
    """Prefer the first of two answers with the probability sigmoid(its gold reward - the other one's).

    Raises:
        ValueError: there is no world.
    """

    def probability(world: World, prompt: str, answers: Sequence[str]) -> float:
        a, b = (world.reward(prompt, answer) for answer in answers)
        return 0.5 * (1 + math.tanh((a - b) / 2))

    return _loaded(context, COMPARES, probability)


def vote(context: Context, *, seed: int = 0) -> Loaded:
    """Prefer one of two answers wholly, drawn with the probability of `compare`, as people label pairs.

    Args:
        context: of the world.
        seed: of the draws; each depends on it, the prompt and the two answers alone, in whichever order they stand.

    Raises:
        ValueError: there is no world.
    """

    def verdict(world: World, prompt: str, answers: Sequence[str]) -> float:
        a, b = answers
        if a == b:
            return 0.5
        first, second = sorted((a, b))
        digest = hashlib.sha256(json.dumps([seed, prompt, first, second]).encode()).digest()
        gain = world.reward(prompt, first) - world.reward(prompt, second)
        wins = int.from_bytes(digest[:8]) / 2**64 < 0.5 * (1 + math.tanh(gain / 2))
        return float(wins == (a == first))

    return _loaded(context, COMPARES, verdict)


def _loaded(context: Context, kind: str, one: Callable[[World, str, Sequence[str]], Any]) -> Loaded:
    """Return a judge of the context's world: what it says of the answers to one prompt, which is a text."""
    if not context.world:
        raise ValueError("a judge of the gold reward needs a world; set config.world, or choose another judge.name")
    module, world = worlds.find(context.world)

    def asked(question: Question) -> Any:
        return one(world, question.prompt, question.answers) if isinstance(question.prompt, str) else _MESSAGES

    return Loaded(kind, lambda questions: [*map(asked, questions)], depends={"world": cached.code_digest(module)})
