"""Judges: which of a prompt's answers is better; the contract in prose, and how one is found by name.

Knows texts and verdicts; knows no training, no file of samples and no configuration. A judge is one function of ONE
prompt with its answers. It gives a score to each::

    def shortest(prompt, answers, *, weight: float = 1.0):
        return [-weight * len(answer) for answer in answers]

or the probability that the first of two is better, 0.5 for a tie::

    def longer(prompt, a, b):
        return 0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b)))

Put it in any importable module, say `ideas.py`, and name it by `config.judge.name=ideas.shortest`; in a module of this
package it is called `module.function` and is listed by `names()`. `prompt` is a text or a list of messages, answers are
texts, and keyword-only parameters are the hyperparameters. A function of two answers is asked in both orders, which
count as one observation. An exception, scores that are too few, too many or not finite, and what is no probability
make no verdict: the prompt is skipped, and the others go on.

A judge that has to load something, or that answers many questions at once, is a function of a `Context` that returns a
`Loaded`::

    def score(context, *, path: str = ""):
        model = load(path)
        return judges.Loaded("scores", lambda questions: [model(q.prompt, q.answers) for q in questions])
"""

import functools
import inspect
import json
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from slpojax import cached, named
from slpojax.base import Params
from slpojax.data.turns import Messages
from slpojax.grid import Grid

Prompt: TypeAlias = str | Messages | list[dict[str, Any]]

SCORES, COMPARES = "scores", "compares"  # the kinds of judges
_FLOAT32 = 3.4028234e38  # scores are trained on in float32
_FIRST = ("prompt", "context")  # what the first parameter of a judge is called
_ASKS = {("prompt", "answers"): SCORES, ("prompt", "a", "b"): COMPARES}


class Question(NamedTuple):
    """What a judge is asked.

    Attributes:
        prompt: a text, or messages.
        answers: [K] texts; two, for a judge that compares.
        prompt_ids: the prompt's token ids as the policy read them; empty where they are not known.
        ids: [K] the answers' token ids as the policy wrote them; empty where they are not known.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    prompt_ids: tuple[int, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()


class Skip(NamedTuple):
    """Why a judge has no verdict.

    Attributes:
        reason: a few words, by which skipped prompts are counted: "no verdict". Never text of a prompt or an answer.
        passing: whether it may be otherwise at another time, as with a server that is down.
        more: what is known beside, for an error of one line.
    """

    reason: str
    passing: bool = False
    more: str = ""


# [K] numbers, or the probability that the first of two answers is better, or why there is none.
Verdict: TypeAlias = Any
Ask: TypeAlias = Callable[[Sequence[Question]], Sequence[Verdict]]


class Context(NamedTuple):
    """What a program offers to judges that load something.

    Attributes:
        policy: folder of the model that wrote the answers, or of its adapter; "" for none.
        reference: folder of its reference; "" for none.
        world: the name of the world; "" for none.
        folder: where judges keep what they keep, such as a server's answers.
        grid: the devices; None for one.
        dtype: in which models compute.
        family: module of the policy's family, where slpojax.models lacks it.
        params: the policy's parameters on their devices; None to read them from its folder.
    """

    policy: str = ""
    reference: str = ""
    world: str = ""
    folder: pathlib.Path = pathlib.Path("judges")
    grid: Grid | None = None
    dtype: str = "float32"
    family: str = ""
    params: Params | None = None


class Loaded(NamedTuple):
    """A judge that is ready.

    Attributes:
        kind: "scores" or "compares".
        ask: many questions -> as many verdicts or `Skip`s. One that compares sees to both orders itself.
        at_once: prompts that are best asked at once.
        depends: what its verdicts depend on beside its code and hyperparameters, by name: digests.
        every_host: whether it computes on the devices of all hosts, which then all ask; or the first one alone does.
        counts: () -> what was asked so far in this process, by name: calls, tokens.
    """

    kind: str
    ask: Ask
    at_once: int = 1
    depends: Mapping[str, str] = {}
    every_host: bool = False
    counts: Callable[[], Mapping[str, int | float]] = dict


class Judge(NamedTuple):
    """A judge with its hyperparameters bound, whose verdicts are checked.

    Attributes:
        name: by which it was built.
        kind: "scores" or "compares".
        ask: many questions -> as many lists [K] of numbers, or probabilities, or `Skip`s.
        at_once: as in `Loaded`.
        key: all that its verdicts depend on, by name.
        every_host: as in `Loaded`.
        counts: as in `Loaded`.
    """

    name: str
    kind: str
    ask: Callable[[Sequence[Question]], list[Verdict]]
    at_once: int
    key: Mapping[str, str]
    every_host: bool
    counts: Callable[[], Mapping[str, int | float]]


def names() -> list[str]:
    """Return the names of this package's judges."""
    return list(_known())


def find(name: str) -> Callable[..., Any]:
    """Return the function of a judge.

    Raises:
        ValueError: there is no such judge.
    """
    return named.find("judge", name, _known(), first=_FIRST)


def defaults(name: str) -> dict[str, Any]:
    """Return the hyperparameters of a judge and their defaults; none where nobody is named, "".

    Example:
        >>> defaults("rules.matches")
        {'pattern': ''}

    Raises:
        ValueError: there is no such judge.
    """
    return named.defaults(find(name)) if name else {}


def require(holds: Any, key: str, value: Any, expected: str) -> None:
    """Refuse a hyperparameter.

    Raises:
        ValueError: `holds` is false; names the key, the value and what was expected.
    """
    named.require(holds, f"judge.{key}", value, expected)


def build(name: str, context: Context | None = None, **hyperparameters: Any) -> Judge:
    """Return a judge by name, loaded, with its hyperparameters bound and checked.

    Args:
        name: `module.function` of this package, or of any importable module.
        context: what it may load; nothing, where None.
        **hyperparameters: those that differ from the defaults.

    Example:
        >>> build("rules.longest").ask([Question("?", ("yes", "no"))])
        [[3.0, 2.0]]

    Raises:
        ValueError: there is no such judge or hyperparameter, the function is not one that the contract describes, or
            what it needs cannot be loaded.
    """
    function = find(name)
    bound = named.bind("judge", name, function, hyperparameters)
    asked = tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY)
    if asked == ("context",):
        loaded = function(context or Context(), **bound)
        if not isinstance(loaded, Loaded) or loaded.kind not in _ASKS.values():
            got = f"kind={loaded.kind!r}" if isinstance(loaded, Loaded) else type(loaded).__name__
            raise ValueError(f"judge {name!r} returned {got}; expected judges.Loaded of the kind scores or compares")
    elif asked in _ASKS:
        loaded = Loaded(_ASKS[asked], _one_by_one(_ASKS[asked], functools.partial(function, **bound)))
    else:
        raise ValueError(
            f"judge {name!r} takes ({', '.join(asked)}); expected (prompt, answers), (prompt, a, b) or (context), and "
            "hyperparameters behind the *"
        )
    # What says how a server is asked, and not what, changes no verdict.
    module = sys.modules[function.__module__]
    free = getattr(module, "CHANGE_NO_VERDICT", ())
    key = {"judge": name, "code": cached.module_digest(module), **loaded.depends}
    key |= {f"judge.{k}": json.dumps(v, default=str) for k, v in bound.items() if k not in free}
    ask = functools.partial(_ask, loaded)
    return Judge(name, loaded.kind, ask, loaded.at_once, key, loaded.every_host, loaded.counts)


@functools.cache
def _known() -> dict[str, Callable[..., Any]]:
    return named.functions(__name__, first=_FIRST)


def _one_by_one(kind: str, function: Callable[..., Any]) -> Ask:
    """Return what asks a plain function, one question after the other."""

    def one(question: Question) -> Verdict:
        try:
            if kind == SCORES:
                return function(question.prompt, list(question.answers))
            there, back = (function(question.prompt, *pair) for pair in (question.answers, question.answers[::-1]))
            for probability in (there, back):
                if skip := _wrong(COMPARES, question, probability):
                    return skip
            return (float(there) + 1.0 - float(back)) / 2
        except Exception as error:  # whatever a judge's own code makes of a text
            place = traceback.extract_tb(error.__traceback__)[-1]
            return Skip(f"the judge raised {type(error).__name__}", more=f"{place.filename}:{place.lineno}")

    return lambda questions: [one(question) for question in questions]


def _ask(judge: Loaded, questions: Sequence[Question]) -> list[Verdict]:
    """Ask, and check the verdicts. Two answers that are the same text tie unasked."""
    found: list[Verdict] = [0.5] * len(questions)
    tied = [judge.kind == COMPARES and question.answers[0] == question.answers[1] for question in questions]
    asked = [i for i, tie in enumerate(tied) if not tie]
    verdicts = judge.ask([questions[i] for i in asked]) if asked else []
    if len(verdicts) != len(asked):
        raise ValueError(f"the judge gave {len(verdicts)} verdicts on {len(asked)} prompts; expected one each")
    for i, verdict in zip(asked, verdicts, strict=True):
        if isinstance(verdict, Skip):
            found[i] = verdict
        elif skip := _wrong(judge.kind, questions[i], verdict):
            found[i] = skip
        else:
            numbers = np.asarray(verdict, np.float64)
            found[i] = float(numbers) if judge.kind == COMPARES else numbers.tolist()
    return found


def _wrong(kind: str, question: Question, verdict: Verdict) -> Skip | None:
    """Return why a verdict is none; None where it is one."""
    try:
        numbers = np.asarray(verdict, np.float64)
    except (TypeError, ValueError):
        return Skip("a verdict that is no number")
    if kind == COMPARES:
        good = numbers.shape == () and 0 <= float(numbers) <= 1
        return None if good else Skip("a verdict that is no probability")
    if numbers.ndim != 1:
        return Skip("scores that are no list of numbers")
    if len(numbers) != len(question.answers):
        return Skip(f"{len(numbers)} scores for {len(question.answers)} answers")
    return None if np.all(np.abs(numbers) <= _FLOAT32) else Skip("a score that is not finite")
