"""A language model at an OpenAI-compatible server as a judge: /v1/chat/completions of vLLM, SGLang and others.

Knows requests and replies; how a server is asked, repeated and limited, is in `slpojax.servers`, and the questions are
in `judges/prompts`. Both orders of two answers are one observation: their mean, so a judge that always takes the first
answer ties all. What the server replied is kept on disk by the content of the request, so no verdict is paid twice.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from slpojax import servers
from slpojax.judges import COMPARES, Context, Loaded, Question, Skip, Verdict, _asking, require

_ROUTE = "/v1/chat/completions"
_VERDICTS = ("reasoned", "word")
_PATIENCE = 20  # requests that fail one after the other, each after all of its attempts

# Of the hyperparameters, those that say how the server is asked, and not what; of the template there is a digest.
CHANGE_NO_VERDICT = (
    *("template", "key_variable", "in_flight", "per_minute", "timeout", "attempts", "first_wait"),
    *("longest_wait", "cache", "input_price", "output_price"),
)


def compare(
    context: Context,
    *,
    url: str = "",
    model: str = "",
    template: str = "helpfulness",
    verdict: str = "reasoned",
    orders: int = 2,
    temperature: float = 0.0,
    max_tokens: int = 1024,
    key_variable: str = "",
    in_flight: int = 8,
    per_minute: float = 0.0,
    timeout: float = 300.0,
    attempts: int = 6,
    first_wait: float = 1.0,
    longest_wait: float = 60.0,
    cache: str = "",
    input_price: float = 0.0,
    output_price: float = 0.0,
) -> Loaded:
    """Ask a server which of two answers is better.

    Args:
        context: whose folder holds the cache.
        url: of the server, "http://127.0.0.1:8000".
        model: by the name that the server knows it by.
        template: the question: helpfulness, summaries, instructions, or a text file of one's own.
        verdict: reasoned (a few sentences, then the verdict) or word (the verdict alone: cheap, for small judges).
        orders: 2 asks about (a, b) and (b, a) and takes the mean; 1 asks once, which trusts the judge to have no
            favourite place, as MC-PO does.
        temperature: of the judge.
        max_tokens: of a reply.
        key_variable: the environment variable that holds the server's key; it reaches no file. "" for none.
        in_flight: requests at once.
        per_minute: requests that may begin in a minute; 0 for any number.
        timeout: seconds that a reply may take.
        attempts: at one request.
        first_wait: seconds before the second attempt, at most; the waits double and are random.
        longest_wait: seconds between attempts, at most.
        cache: folder of the replies; "" for one beside the verdicts.
        input_price: of a million tokens read, for the table at the end.
        output_price: of a million tokens written.

    Raises:
        ValueError: a hyperparameter is wrong, or the environment variable holds no key.
    """
    require(url, "url", url, "the address of a server, such as http://127.0.0.1:8000")
    require(model, "model", model, "the name of a model that the server serves")
    require(verdict in _VERDICTS, "verdict", verdict, " or ".join(_VERDICTS))
    require(orders in (1, 2), "orders", orders, "1 or 2")
    require(temperature >= 0, "temperature", temperature, "0 or more")
    for name, value in {"max_tokens": max_tokens, "in_flight": in_flight, "attempts": attempts}.items():
        require(value >= 1, name, value, "1 or more")
    for name, number in {"timeout": timeout, "first_wait": first_wait, "longest_wait": longest_wait}.items():
        require(number > 0, name, number, "seconds, more than 0")
    require(per_minute >= 0, "per_minute", per_minute, "0 or more")
    text = _asking.question(template, verdict)
    server = servers.connect(
        url,
        key_variable=key_variable,
        timeout=timeout,
        attempts=attempts,
        first_wait=first_wait,
        longest_wait=longest_wait,
        in_flight=in_flight,
        per_minute=per_minute,
        cache=cache or context.folder / "judge_cache",
    )

    def request(question: Question, order: int) -> servers.Json:
        content = _asking.fill(text, question.prompt, *question.answers[:: 1 - 2 * order])
        messages = [{"role": "user", "content": content}]
        return {"model": model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}

    def ask(questions: Sequence[Question]) -> list[Verdict]:
        bodies = (request(question, order) for question in questions for order in range(orders))
        replies = _while_it_answers(servers.post_many(server, _ROUTE, bodies, _malformed))
        return [_mean(list(itertools.islice(replies, orders))) for _ in questions]

    counts = _counter(server, input_price, output_price)
    return Loaded(COMPARES, ask, at_once=4 * in_flight, depends=_asking.depends(text), counts=counts)


def _while_it_answers(replies: Iterator[tuple[int, servers.Json | servers.Failure]]) -> Iterator[float | Skip]:
    """Yield what replies say; once many requests in a row have failed, no more are waited for."""
    failed = 0
    for _, reply in replies:
        said = _read(reply)
        failed = failed + 1 if isinstance(reply, servers.Failure) else 0
        yield said
        if failed >= _PATIENCE:
            yield from itertools.repeat(said)


def _malformed(answer: servers.Json) -> str:
    """Return why an answer is none of a chat; "" where it is."""
    match answer:
        case {"choices": [{"message": {"content": str()}}, *_]}:
            return ""
    return "no choices[0].message.content"


def _read(reply: servers.Json | servers.Failure) -> float | Skip:
    """Return the probability that a reply gives to the answer that stands first."""
    if isinstance(reply, servers.Failure):
        return Skip(f"the server: {reply.kind}", passing=True, more=reply.reason)
    choice: Mapping[str, Any] = reply["choices"][0]
    found = _asking.verdict(choice["message"]["content"])
    if found is None and choice.get("finish_reason") == "length":
        return Skip("a reply that was cut before its verdict", more="raise judge.max_tokens")
    return Skip("a reply without a verdict") if found is None else found


def _mean(seen: list[float | Skip]) -> float | Skip:
    """Return the probability that the first answer of (a, b) is better, from what was said of (a, b) and of (b, a)."""
    values: list[float] = []
    for order, value in enumerate(seen):
        if isinstance(value, Skip):
            return value
        values.append(1 - value if order else value)
    return sum(values) / len(values)


def _counter(server: servers.Server, input_price: float, output_price: float) -> Callable[[], dict[str, int | float]]:
    def counts() -> dict[str, int | float]:
        c = server.counts
        found: dict[str, int | float] = {
            "requests answered": c.calls,
            "replies from the cache": c.cached,
            "attempts repeated": c.repeated,
            "tokens read": c.prompt_tokens,
            "tokens written": c.completion_tokens,
        }
        found |= {f"requests failed: {kind}": count for kind, count in sorted(c.failures.items())}
        if input_price or output_price:
            found["cost"] = (input_price * c.prompt_tokens + output_price * c.completion_tokens) / 1e6
        return found

    return counts
