"""The gold reward of a world as a judge. Knows worlds; knows no model."""

import hashlib
import json
import math

from slpojax import cached, worlds
from slpojax.judges import COMPARES, SCORES, Context, Loaded, Question, Skip
from slpojax.worlds import World

_MESSAGES = Skip("a prompt of messages, where a world's are texts")


def gold(context: Context) -> Loaded:
    """Score an answer by the world's gold reward, in nats of preference.

    Raises:
        ValueError: there is no world.
    """
    world, depends = _world(context)

    def one(question: Question) -> list[float] | Skip:
        if not isinstance(question.prompt, str):
            return _MESSAGES
        return [world.reward(question.prompt, answer) for answer in question.answers]

    return Loaded(SCORES, lambda questions: [one(question) for question in questions], depends=depends)


def compare(context: Context) -> Loaded:
    """Prefer the first of two answers with the probability sigmoid(its gold reward - the other one's).

    Raises:
        ValueError: there is no world.
    """
    world, depends = _world(context)

    def one(question: Question) -> float | Skip:
        if not isinstance(question.prompt, str):
            return _MESSAGES
        a, b = (world.reward(question.prompt, answer) for answer in question.answers)
        return 0.5 * (1 + math.tanh((a - b) / 2))

    return Loaded(COMPARES, lambda questions: [one(question) for question in questions], depends=depends)


def vote(context: Context, *, seed: int = 0) -> Loaded:
    """Prefer one of two answers wholly, drawn with the probability of `compare`, as people label pairs.

    Args:
        context: of the world.
        seed: of the draws; each depends on it, the prompt and the two answers alone, in whichever order they stand.

    Raises:
        ValueError: there is no world.
    """
    world, depends = _world(context)

    def one(question: Question) -> float | Skip:
        if not isinstance(question.prompt, str):
            return _MESSAGES
        a, b = question.answers
        if a == b:
            return 0.5
        first, second = sorted((a, b))
        digest = hashlib.sha256(json.dumps([seed, question.prompt, first, second]).encode()).digest()
        gain = world.reward(question.prompt, first) - world.reward(question.prompt, second)
        wins = int.from_bytes(digest[:8]) / 2**64 < 0.5 * (1 + math.tanh(gain / 2))
        return float(wins == (a == first))

    return Loaded(COMPARES, lambda questions: [one(question) for question in questions], depends=depends)


def _world(context: Context) -> tuple[World, dict[str, str]]:
    if not context.world:
        raise ValueError("a judge of the gold reward needs a world; set config.world, or choose another judge.name")
    module, world = worlds.find(context.world)
    return world, {"world": cached.code_digest(module)}
