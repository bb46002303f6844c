"""How a token is drawn from logits: greedy, at a temperature, among the top k, in the nucleus, above a least share.

Knows logits and keys; knows no model, no sequence and no cache. No sort, and no random number for every word of the
vocabulary: a set of most probable tokens is found by bisection of its least weight, and a draw goes to a block of words
first, then to a word of the block.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Int

WORDS = 128  # of a block


class Draw(NamedTuple):
    """How a token is drawn. By default from the model's own distribution.

    The filters come after the temperature, in the order `top_k`, `top_p`, `min_p`. Tokens that tie with the last one
    that a filter keeps stay, too.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token, of equal ones the first.
        top_k: draw among the k most probable tokens; 0 is off.
        top_p: draw among the fewest most probable tokens that together have at least this probability (Holtzman et
            al., The Curious Case of Neural Text Degeneration, 2020, arXiv 1904.09751); 1 is off.
        min_p: draw among the tokens with at least this share of the largest probability (Nguyen et al., Turning Up the
            Heat, 2024, arXiv 2407.01082); 0 is off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


PLAIN = Draw()


def tokens(
    logits: Float[Array, "V R"],
    keys: jax.Array,
    temperature: Float[Array, " R"],
    *,
    draw: Draw,
    temperatures: frozenset[float],
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    r"""Draw a token for every row.

    Of independent :math:`E_i \sim \text{Exp}(1)`, :math:`w_i / E_i` is largest at i with probability
    :math:`w_i / \sum_j w_j`. That is done twice: among the sums over blocks of 128 weights, then among the weights of
    the block. A row so takes V / 128 + 128 random numbers instead of V; a weight of zero is never drawn, because the
    winner's score is above zero; and logits that differ in their last bits, as those of another batch do, change the
    token only where the two best scores are as near to each other: once in some 10^6 draws, however many words there
    are. (Of an inverse cumulative distribution every boundary moves, and there are V.)

    Args:
        logits: [V, R], words first: their sums then run in lanes over the rows.
        keys: [R], of this draw alone.
        temperature: [R], of every row; 0 is greedy. That of `draw` is not read.
        draw: the filters.
        temperatures: the values that may stand in `temperature`.

    Returns:
        (token, log p) of every row; log p in nats, float32, under the logits themselves.
    """
    z = _blocks(logits.astype(jnp.float32))
    top = _over(jnp.maximum, z)
    z = z - jnp.max(top, axis=0)[None, None]
    share, greedy, only_greedy = jnp.exp(z), temperature == 0.0, temperatures == {0.0}
    total = jnp.log(_sum(share))
    block_score = _over(jnp.maximum, z)
    if not only_greedy:
        weight = share
        if not temperatures <= {0.0, 1.0}:
            weight = jnp.exp(z / jnp.where(greedy, 1.0, temperature)[None, None])
        # One array, so that a block and its words read the same numbers.
        weight = jax.lax.optimization_barrier(filter_weights(weight, draw=draw))
        first, second = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        block_score = jnp.where(greedy[None], block_score, _race(first, _sums(weight)))
    block = jnp.argmax(block_score, axis=0)
    here = score = _at(z, block)
    if not only_greedy:
        score = jnp.where(greedy[None], here, _race(second, _at(weight, block)))
    word = jnp.argmax(score, axis=0)
    logp = jnp.take_along_axis(here, word[None], axis=0)[0] - total
    return (word * z.shape[1] + block).astype(jnp.int32), logp


def filter_weights(weight: Float[Array, "W N R"], *, draw: Draw) -> Float[Array, "W N R"]:
    """Return the weights with 0 where a filter leaves a token out.

    Args:
        weight: of every token, in blocks; the largest of a row is 1.
        draw: the filters.
    """
    if draw.top_k:
        enough = jnp.full(weight.shape[2], float(draw.top_k))
        weight = _at_least(weight, _least(lambda t: _sum((weight >= t).astype(jnp.float32)), enough))
    if draw.top_p < 1.0:
        kept = weight
        weight = _at_least(weight, _least(lambda t: _sum(_at_least(kept, t)), draw.top_p * _sum(weight)))
    return _at_least(weight, draw.min_p) if draw.min_p else weight


def _least(measure: Callable[[Array], Array], enough: Float[Array, " R"]) -> Float[Array, "1 1 R"]:
    """Return the largest t of [0, 1] at which what weighs at least t measures enough.

    Floating-point numbers above zero are ordered as their bits are: 30 halvings find the number itself.
    """

    def halve(i: Array, least: Array) -> Array:
        higher = least | (1 << (29 - i))
        return jnp.where(measure(_float(higher)) >= enough, higher, least)

    return _float(jax.lax.fori_loop(0, 30, halve, jnp.zeros(enough.shape, jnp.int32)))


def _float(bits: Int[Array, " R"]) -> Float[Array, "1 1 R"]:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)[None, None]


def _race(keys: jax.Array, weight: Float[Array, "W R"]) -> Float[Array, "W R"]:
    """Return w / E with E exponential, of 32 random bits: from 2^-33 to 17, so that w > 0 stays above 0."""
    bits = jax.vmap(lambda key: jax.random.bits(key, weight.shape[:1], jnp.uint32), out_axes=1)(keys)
    u = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    return weight / -jnp.log1p(-jnp.minimum(u, 1.0 - 2.0**-24))


def _blocks(x: Float[Array, "V R"]) -> Float[Array, "W N R"]:
    """Return [WORDS, N, R], block n of the words n, n + N, n + 2N, ..."""
    short = -x.shape[0] % WORDS
    x = jnp.pad(x, ((0, short), (0, 0)), constant_values=-jnp.inf) if short else x
    return x.reshape(WORDS, -1, x.shape[1])


def _over(combine: Callable[[Array, Array], Array], x: Float[Array, "W N R"]) -> Float[Array, "N R"]:
    """Combine the words of each block, by elementwise operations of few operands: XLA runs them in lanes on a CPU."""
    for parts in (8, 4, 4):
        x = x.reshape(parts, -1, *x.shape[1:])
        x = functools.reduce(combine, [x[i] for i in range(parts)])
    return x[0]


def _sums(x: Float[Array, "W N R"]) -> Float[Array, "N R"]:
    return _over(jnp.add, x)


def _sum(x: Float[Array, "W N R"]) -> Float[Array, " R"]:
    return jnp.sum(_sums(x), axis=0)


def _at_least(x: Float[Array, "W N R"], least: Any) -> Float[Array, "W N R"]:
    return jnp.where(x >= least, x, 0.0)


def _at(x: Float[Array, "W N R"], block: Int[Array, " R"]) -> Float[Array, "W R"]:
    return jnp.take_along_axis(x, block[None, None], axis=1)[:, 0]
