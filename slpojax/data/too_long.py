"""What happens to an example whose prompt and longest response do not fit: one function a policy.

Knows token ids and lengths; knows no text. A policy gets a prompt and its responses, each of which ends with EOS, and
returns those it keeps with a note for every cut, or raises `Unusable`. All of them leave alone what fits. "Fits" means
prompt plus one response within `max_length`, for every response.

    policy        prompt                         responses                       drops         loses EOS
    drop          whole                          whole                           what is over  never
    cut_prompt    its end, what responses leave  whole                           *             never
    cut_response  its end, at least P            cut to what the prompt leaves   nothing       counted
    original      its last P                     cut to max_length - P           nothing       counted

    P = max_prompt_length; * where the responses leave a longer prompt less than P

A response that is cut stays without EOS: to put one there would teach the model to stop in the middle of a sentence.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from slpojax import wording
from slpojax.base import Int
from slpojax.data import counting
from slpojax.data.chain import Group, Transform, each
from slpojax.data.formats import Unusable
from slpojax.data.options import Setup

POLICIES = ("drop", "cut_prompt", "cut_response", "original")
PROMPT_CUT = "prompt cut at its beginning"
CHAT_CUT = "prompt of a chat cut at its beginning: its system turn and headers of turns go first"
RESPONSE_CUT = "response cut (no EOS)"

Ids: TypeAlias = Int[np.ndarray, " _"]


class Budget(NamedTuple):
    """Limits in tokens.

    Attributes:
        length: prompt plus one response.
        prompt: what a prompt keeps at least (`cut_prompt`, `cut_response`) or exactly (`original`) when it is cut.
        bos: a first token that a cut prompt keeps; None for none.
    """

    length: int
    prompt: int
    bos: int | None = None


class Cut(NamedTuple):
    """What a policy leaves, with a note for every cut."""

    prompt: Ids
    responses: tuple[Ids, ...]
    notes: tuple[str, ...] = ()


def cut(setup: Setup) -> Transform:
    """Make every prompt fit together with each of its responses, as the policy `data.too_long` does.

    Raises:
        ValueError: the policy is unknown, or `data.max_prompt_length` not between 0 and `data.max_length`.
    """
    length, prompt = setup.encoding.max_length, setup.encoding.max_prompt_length
    if not 0 < prompt < length:
        raise ValueError(f"data.max_prompt_length={prompt}: expected a number between 0 and data.max_length={length}")
    policy, budget = find(setup.encoding.too_long), Budget(length, prompt, setup.tokenizer.bos_token_id)

    def one(group: Group) -> Group:
        [example] = group.examples
        fitted = policy(example.prompt, example.responses, budget)
        example = example._replace(prompt=fitted.prompt, responses=fitted.responses)
        if example.counted is not None:
            example = example._replace(counted=counting.until(example.counted, [*map(len, fitted.responses)]))
        notes = tuple(CHAT_CUT if group.templated and note == PROMPT_CUT else note for note in fitted.notes)
        return group._replace(examples=(example,), notes=(*group.notes, *notes))

    return each(one)


def find(name: str) -> Callable[[Ids, Sequence[Ids], Budget], Cut]:
    """Return the policy called `name`.

    Raises:
        ValueError: there is none; lists those there are.
    """
    if name not in POLICIES:
        raise wording.unknown("data.too_long", name, POLICIES)
    return globals()[name]


def drop(prompt: Ids, responses: Sequence[Ids], budget: Budget) -> Cut:
    """Keep nothing of an example that does not fit."""
    if len(prompt) + _longest(responses) > budget.length:
        raise Unusable("longer than data.max_length")
    return Cut(prompt, tuple(responses))


def cut_prompt(prompt: Ids, responses: Sequence[Ids], budget: Budget) -> Cut:
    """Keep the end of the prompt that the longest response leaves room for, if it is `budget.prompt` or more."""
    room = budget.length - _longest(responses)
    if len(prompt) <= room:
        return Cut(prompt, tuple(responses))
    if room < budget.prompt:
        raise Unusable("longer than data.max_length after cutting the prompt to data.max_prompt_length")
    return Cut(_end(prompt, room, budget.bos), tuple(responses), (PROMPT_CUT,))


def cut_response(prompt: Ids, responses: Sequence[Ids], budget: Budget) -> Cut:
    """Cut the prompt down to `budget.prompt` if it must be, then the responses to what is left."""
    room = max(budget.length - _longest(responses), budget.prompt)
    shorter = _end(prompt, room, budget.bos)
    return _cut_responses(prompt, shorter, responses, budget.length - len(shorter))


def original(prompt: Ids, responses: Sequence[Ids], budget: Budget) -> Cut:
    """The rule of the original DPO program, which cuts responses to the same length after a short prompt, too.

    (Rafailov et al., Direct Preference Optimization, 2023, arXiv 2305.18290; program, `tokenize_batch_element`.)
    """
    longest = _longest(responses)
    if len(prompt) + longest <= budget.length:
        return Cut(prompt, tuple(responses))
    shorter = _end(prompt, budget.prompt, None)
    room = budget.length - budget.prompt if len(shorter) + longest > budget.length else longest
    return _cut_responses(prompt, shorter, responses, room)


def _cut_responses(prompt: Ids, shorter: Ids, responses: Sequence[Ids], room: int) -> Cut:
    lost = sum(len(response) > room for response in responses)
    notes = (PROMPT_CUT,) * (len(shorter) < len(prompt)) + (RESPONSE_CUT,) * lost
    return Cut(shorter, tuple(response[:room] for response in responses), notes)


def _end(prompt: Ids, keep: int, bos: int | None) -> Ids:
    if len(prompt) <= keep:
        return prompt
    head = int(prompt[0] == bos)
    return np.concatenate([prompt[:head], prompt[len(prompt) - keep + head :]])


def _longest(responses: Sequence[Ids]) -> int:
    return max(len(response) for response in responses)
