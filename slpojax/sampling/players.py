"""Two players: the policy gives all answers to a prompt but the last one, and another model gives that.

The other model may be a mixture of two, which is sampled from as a model is. Knows models, weights and keys; knows no
configuration and no judge.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slpojax import sampling
from slpojax.base import Array, Key, Model, Params, Rows, named_key
from slpojax.grid import Grid
from slpojax.sampling import Ids, Response


class Player(NamedTuple):
    """Who answers: a model with its parameters, on the devices of the policy's."""

    model: Model
    params: Params


def stream(
    second: Player,
    model: Model,
    params: Params,
    prompts: Sequence[Ids],
    *,
    key: Key,
    samples: int,
    temperatures: Sequence[float],
    max_new_tokens: int,
    slots: int,
    grid: Grid | None = None,
    **options: Any,
) -> Iterator[list[Response]]:
    """Sample responses as `sampling.stream` does, the last one to each prompt from the second player.

    It draws from a key of its own, so that no answer of one player depends on the other: those of the second are what
    `sampling.stream` gives for its weights, `samples=1` and `named_key(key, "second")`.

    Args:
        second: who gives the last answer.
        model: the policy's pure functions.
        params: its parameters.
        prompts: token ids; the same on all hosts.
        key: of this call.
        samples: K, of each prompt, from 2.
        temperatures: [K], of each sample.
        max_new_tokens: where a response without EOS is cut.
        slots: sequences at once.
        grid: the devices that hold the parameters; None where one device does.
        **options: the others of `sampling.stream`.

    Returns:
        An iterator over the prompts: the K responses of each. The log-probs are the policy's own for all of them, those
        of the second player's answer, too.
    """
    options |= {"max_new_tokens": max_new_tokens, "slots": slots, "grid": grid}
    mine, theirs = temperatures[:-1], temperatures[-1:]
    last = [
        response
        for (response,) in sampling.stream(
            *second, prompts, key=named_key(key, "second"), samples=1, temperatures=theirs, **options
        )
    ]
    tokens = [response.token for response in last]
    under = sampling.score(model, params, prompts, tokens, max_new_tokens=max_new_tokens, batch=slots, grid=grid)
    answers = sampling.stream(model, params, prompts, key=key, samples=samples - 1, temperatures=mine, **options)
    for own, response, logp in zip(answers, last, under, strict=True):
        yield [*own, response._replace(logp=logp)]


def mixture(policy: Player, reference: Player, share: float) -> Player:
    r"""Return the player whose every token is drawn from a geometric mixture of two.

    .. math:: p(y_t | y_{<t}) \propto \pi(y_t | y_{<t})^{1 - a} \, \pi_{ref}(y_t | y_{<t})^{a}

    That is the softmax of logits mixed with the same weights. Both models read every token, each with its own keys and
    values; their states stand side by side, above their tables, each times its weight.

    Args:
        policy: pi.
        reference: of the same vocabulary; of any shape.
        share: a, from 0 (the policy) to 1 (the reference).

    Raises:
        ValueError: the logits of one are capped.

    Reference:
        Remi Munos et al., Nash Learning from Human Feedback, 2023, arXiv:2312.00886.
    """
    if policy.model.cap is not None or reference.model.cap is not None:
        raise ValueError(
            "generate.second='mixture' mixes logits as they come from the unembedding, and those of one of these "
            "models are capped (final_logit_softcapping of its config.json); choose generate.second='reference'."
        )
    model = _both(policy.model, reference.model)
    both = {"policy": policy.params, "reference": reference.params}

    def table(params: Params) -> Array:
        mine, theirs = policy.model.unembed(params["policy"]), reference.model.unembed(params["reference"])
        return jnp.concatenate([(1 - share) * mine, share * theirs])

    return Player(model, both | {"head": {"weight": jax.jit(table)(both)}})


_OF_EACH = ("prompt_key", "prompt_value", "key", "value")  # what each model has of its own in a cache


@functools.lru_cache(maxsize=4)
def _both(policy: Model, reference: Model) -> Model:
    """Return two models as one, of parameters {"policy", "reference", "head"}: what sampling and scoring read of it."""
    players = {"policy": policy, "reference": reference}

    def joined(caches: Sequence[Any]) -> Any:
        own = (name for name in caches[0]._fields if name in _OF_EACH)
        return caches[0]._replace(**{name: tuple(getattr(cache, name) for cache in caches) for name in own})

    def parted(cache: Any, number: int) -> Any:
        own = (name for name in cache._fields if name in _OF_EACH)
        return cache._replace(**{name: getattr(cache, name)[number] for name in own})

    def apply(params: Params, rows: Rows, cache: Any) -> tuple[Array, Any]:
        read = [
            model.apply(params[name], rows, None if cache is None else parted(cache, number))
            for number, (name, model) in enumerate(players.items())
        ]
        hidden = jnp.concatenate([of_model for of_model, _ in read], axis=-1)
        return hidden, None if cache is None else joined([own for _, own in read])

    def none(*_: Any) -> Any:
        raise TypeError("a mixture of two models is sampled from, and neither drawn nor trained")

    return Model(
        init=none,
        apply=apply,
        layers=none,
        unembed=lambda params: params["head"]["weight"],
        empty_cache=lambda rows, length: joined([model.empty_cache(rows, length) for model in players.values()]),
        empty_pool=lambda **sizes: joined([model.empty_pool(**sizes) for model in players.values()]),
        sharding=(),
        tensors=(),
    )
