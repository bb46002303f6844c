"""Engines outside of this process: a server of the exported folder with /v1/completions, as vLLM and SGLang have it.

Prompts go as token ids where the server takes them; token ids and log-probs come back, and an answer that is not what
was asked for is asked for again and then named. Knows requests and answers; knows no tokenizer and no model.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from slpojax import log, servers
from slpojax.servers import Failure, Json, Server

Ids: TypeAlias = Sequence[int] | np.ndarray

ROUTE, MODELS = "/v1/completions", "/v1/models"
_REFUSED = ("status 400", "status 422")  # what a server answers that takes no token ids
_MARK = "token_id:"  # how vLLM writes a token in place of its text
_ROUNDING, _SAME = 1e-4, 1e-2  # nats: above 0 that a log-prob may be; between two log-probs that mean the same
_NEEDED = "vLLM from 0.10.2 on has return_token_ids, and so has SGLang since July 2026"


class Completion(NamedTuple):
    """One answer.

    Attributes:
        ids: its tokens, EOS included where the server tells it.
        logps: log p of each, in nats.
        finished: whether it ended by itself; False where it was cut.
    """

    ids: list[int]
    logps: list[float]
    finished: bool


class Engine(NamedTuple):
    """A server that was seen to answer as needed; made by `connect`.

    Attributes:
        server: where it is.
        model: the name by which it serves the folder.
        vocabulary: ids that the model has.
        alternatives: how many other tokens it has to tell of, so that it tells the log-prob of the sampled one.
        as_text: makes the text of a prompt, where it takes no token ids; else None.
    """

    server: Server
    model: str
    vocabulary: int
    alternatives: int
    as_text: Callable[[list[int]], str] | None


class Asked(NamedTuple):
    """How answers are drawn.

    Attributes:
        temperatures: of each answer to a prompt.
        top_k: 0 for off.
        top_p: 1 for off.
        min_p: 0 for off.
        max_new_tokens: of an answer.
        stop: texts that end one.
    """

    temperatures: Sequence[float]
    top_k: int
    top_p: float
    min_p: float
    max_new_tokens: int
    stop: Sequence[str]


def connect(
    server: Server, *, model: str, vocabulary: int, prompt: Ids, as_text: Callable[[list[int]], str], asked: Asked
) -> Engine:
    """Return an engine, after a few requests for one token that show what the server does.

    Args:
        server: of `servers.connect`.
        model: the name by which it serves the folder; "" where it serves one alone.
        vocabulary: ids that the model has.
        prompt: that is asked.
        as_text: makes the text of a prompt, for a server that takes no token ids.
        asked: how answers will be drawn.

    Raises:
        ValueError: it is not there, serves another model, or gives no token ids or no log-probs of the model itself;
            says which.
    """
    name = _model(server, model)
    wrong, refused = "", False
    for text, alternatives in itertools.product((None, as_text), (0, 1)):
        if text and not refused:
            break
        engine = Engine(server, name, vocabulary, alternatives, text)
        one = asked._replace(max_new_tokens=1, stop=())
        answer = servers.ask(server, ROUTE, _body(engine, prompt, 1.0, 1, one))
        if isinstance(answer, Failure):
            if answer.kind not in _REFUSED:
                raise ValueError(f"{server.url}{ROUTE}: {answer.reason}")
            wrong, refused = wrong or answer.reason, True
            continue
        wrong = _wrong(engine, prompt, 1, one, answer)
        if not wrong:
            _require_untempered(engine, prompt, asked)
            if text:
                log.say(f"{server.url} takes no token ids: prompts go as texts, which it tokenises itself")
            return engine
    raise ValueError(f"{server.url}{ROUTE} cannot sample for training: {wrong}. {_NEEDED}")


def answers(engine: Engine, prompts: Iterable[tuple[int, Ids]], asked: Asked) -> Iterator[list[Completion]]:
    """Yield the answers to each prompt, in order; many requests are under way at once.

    Args:
        engine: of `connect`.
        prompts: (number, token ids), of any count.
        asked: how answers are drawn.

    Raises:
        ValueError: the server gives no answer that is one, however often it is asked; names the prompt and why.
    """
    runs: list[tuple[float, int]] = []
    for temperature, run in itertools.groupby(asked.temperatures):
        count = len(list(run))
        runs += [(temperature, count)] if temperature else [(temperature, 1)] * count  # vLLM gives one greedy answer
    first, second = itertools.tee((number, ids, *run) for number, ids in prompts for run in runs)
    bodies = (_body(engine, ids, temperature, count, asked) for _, ids, temperature, count in first)

    def check_of(body: Json) -> servers.Check:
        prompt = None if engine.as_text else body["prompt"]
        return lambda answer: _wrong(engine, prompt, body["n"], asked, answer)

    found: list[Completion] = []
    replies = servers.post_many(engine.server, ROUTE, bodies, check_of=check_of)
    for (number, *_), (_, answer) in zip(second, replies, strict=True):
        if isinstance(answer, Failure):
            raise ValueError(
                f"{engine.server.url}{ROUTE}: prompt {number}: {answer.reason}. What was sampled so far is kept: mend "
                "or start the server, and repeat the command, which goes on"
            )
        found += _completions(answer)
        if len(found) == len(asked.temperatures):
            yield found
            found = []


def _model(server: Server, model: str) -> str:
    """Return the name by which a server serves the model."""
    listed = servers.get(server, MODELS).get("data")
    names = [str(one.get("id")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if model in names:
        return model
    if not model and len(names) == 1:
        return names[0]
    shown = ", ".join(repr(name[:80]) for name in names[:8]) or "no model"
    raise ValueError(f"{server.url} serves {shown}; set generate.engine_model to the one that is asked")


def _body(engine: Engine, prompt: Ids, temperature: float, count: int, asked: Asked) -> Json:
    """Return a request.

    What is off is sent as such: a server may have defaults of its own from the folder's generation_config.json. No seed
    goes along, as vLLM's CPU engine dies of one (seen in 0.32).
    """
    ids = [int(number) for number in prompt]
    body: dict[str, Any] = {
        "model": engine.model,
        "prompt": engine.as_text(ids) if engine.as_text else ids,
        "n": count,
        "temperature": temperature,
        "top_k": asked.top_k or -1,
        "top_p": asked.top_p,
        "min_p": asked.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": asked.max_new_tokens,
        "logprobs": engine.alternatives,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if engine.as_text:
        body["add_special_tokens"] = False
    return body | ({"stop": list(asked.stop)} if asked.stop else {})


def _wrong(engine: Engine, prompt: Ids | None, count: int, asked: Asked, answer: Json) -> str:
    """Return what an answer lacks, or has that was not asked for; "" where it is what was asked."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != count or not all(isinstance(one, dict) for one in choices):
        return f"{len(choices) if isinstance(choices, list) else 'no'} choices, expected {count}"
    if sorted(str(one.get("index")) for one in choices) != sorted(map(str, range(count))):
        return "choices that are not numbered from 0"
    for one in choices:
        ids, logps = _ids(one), _logps(one)
        if ids is None:
            return "no token ids"
        if logps is None:
            return "no log-probs"
        if len(logps) != len(ids):
            return f"{len(logps)} log-probs of {len(ids)} tokens"
        if not all(0 <= number < engine.vocabulary for number in ids):
            return f"a token id that the model's {engine.vocabulary:,} do not hold"
        if not all(math.isfinite(logp) and logp <= _ROUNDING for logp in logps):
            return "a log-prob that is none"
        if len(ids) > asked.max_new_tokens:
            return f"{len(ids)} tokens, at most {asked.max_new_tokens} were asked for"
        if one.get("finish_reason") not in ("stop", "length"):
            return "an answer that ended neither by itself nor at its limit"
        read = one.get("prompt_token_ids")
        if prompt is not None and isinstance(read, list) and read != [int(number) for number in prompt]:
            return "it read another prompt than it was sent"
    return ""


def _completions(answer: Json) -> Iterator[Completion]:
    for one in sorted(answer["choices"], key=lambda one: one["index"]):
        ids, logps = _ids(one), _logps(one)
        assert ids is not None and logps is not None  # an answer without was refused before
        yield Completion(ids, [min(logp, 0.0) for logp in logps], one["finish_reason"] == "stop")


def _ids(choice: Json) -> list[int] | None:
    """Return the token ids of a choice: a field of their own, or in place of the tokens' texts."""
    own, told = choice.get("token_ids"), _from_logprobs(choice, "tokens")
    if isinstance(own, list) and all(type(number) is int for number in own):
        return own
    if isinstance(told, list) and all(isinstance(token, str) and token.startswith(_MARK) for token in told):
        numbers = [token.removeprefix(_MARK) for token in told]
        return [int(number) for number in numbers] if all(map(str.isdecimal, numbers)) else None
    return None


def _logps(choice: Json) -> list[float] | None:
    told = _from_logprobs(choice, "token_logprobs")
    good = isinstance(told, list) and all(type(logp) in (int, float) for logp in told)
    return [float(logp) for logp in told] if good else None


def _from_logprobs(choice: Json, name: str) -> Any:
    told = choice.get("logprobs")
    return told.get(name) if isinstance(told, dict) else None


def _require_untempered(engine: Engine, prompt: Ids, asked: Asked) -> None:
    """Refuse log-probs that a temperature has changed, where one is asked for: training compares them with its own.

    The log-prob of the likeliest first token is told at two temperatures; it is the same where it is the model's.
    """
    if all(temperature == 1.0 for temperature in asked.temperatures):
        return
    best = []
    for temperature in (1.0, 2.0):
        one = engine._replace(alternatives=1)
        body = _body(
            one, prompt, temperature, 1, asked._replace(max_new_tokens=1, stop=(), top_k=0, top_p=1.0, min_p=0.0)
        )
        answer = servers.ask(engine.server, ROUTE, body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        told = _from_logprobs(choices[0], "top_logprobs") if choices else None
        values = [*told[0].values()] if isinstance(told, list) and told and isinstance(told[0], dict) else []
        if not values or not all(type(value) in (int, float) for value in values):
            log.say(f"{engine.server.url}: it cannot be told whether its log-probs are those before the temperature")
            return
        best.append(max(values))
    if abs(best[0] - best[1]) > _SAME:
        raise ValueError(
            f"{engine.server.url}: its log-probs change with the temperature ({best[0]:.3f} nats at 1, {best[1]:.3f} "
            "at 2); start it such that it tells those of the model (vLLM: --logprobs-mode raw_logprobs), or sample at "
            "temperature 1"
        )
