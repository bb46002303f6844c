"""How the prompts of desirable responses differ from those of undesirable ones: BCO's weights of the examples.

Knows a model, token ids and labels; knows no objective and no configuration.

A prompt is embedded as the mean of the frozen model's last hidden states over its tokens. The mean sees what the prompt
is about; the state of its last token, which is the same token everywhere under a chat template, is about the response.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slpojax import grid as grids
from slpojax.base import Array, Float, Int, Model, Params, Rows
from slpojax.grid import Grid

LEAST, MOST = 0.5, 10.0  # what a weight is clipped to
_FITTED = 4096  # prompts of each class that the classifier learns from, at most
_LANES = 128  # what a TPU's attention wants the length of a row to be a multiple of


class Classifier(NamedTuple):
    """The log-odds that a prompt is a desirable response's: weight . (x - mean) / scale + bias."""

    mean: Float[np.ndarray, " D"]
    scale: Float[np.ndarray, " D"]
    weight: Float[np.ndarray, " D"]
    bias: float


def embed(
    model: Model,
    params: Params,
    prompts: Sequence[Int[np.ndarray, " _"]],
    *,
    batch: int,
    grid: Grid,
) -> Float[np.ndarray, "N D"]:
    """Return the mean hidden state of every prompt.

    Args:
        model: the frozen model.
        params: its parameters, on their devices.
        prompts: token ids, at least one each.
        batch: prompts that are read at once; a multiple of the devices that rows are split over.
        grid: the devices.
    """
    width = -(-max(map(len, prompts)) // _LANES) * _LANES

    def pooled(params: Params, token: Array, length: Array) -> Float[Array, "R D"]:
        place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), token.shape)
        inside = place < length[:, None]
        hidden, _ = model.apply(params, Rows(token, place, inside.astype(jnp.int32), jnp.zeros_like(place)), None)
        total = jnp.sum(jnp.where(inside[..., None], hidden.astype(jnp.float32), 0.0), axis=1)
        return total / jnp.maximum(length, 1)[:, None]

    run = jax.jit(pooled, out_shardings=grid.everywhere)

    def embedded(start: int) -> jax.Array:
        token, length = np.zeros((batch, width), np.int32), np.zeros(batch, np.int32)
        for i, ids in enumerate(prompts[start : start + batch]):
            token[i, : len(ids)], length[i] = ids, len(ids)
        return run(params, grids.put(token, grid.rows), grids.put(length, grid.rows))

    return np.concatenate([*grids.gathered(map(embedded, range(0, len(prompts), batch)))])[: len(prompts)]


def fit(
    embedding: Float[np.ndarray, "N D"], label: Float[np.ndarray, " N"], *, penalty: float = 1.0, seed: int = 0
) -> Classifier:
    """Fit a logistic regression by Newton's method; both classes weigh the same, however many prompts they have.

    Args:
        embedding: of the prompts.
        label: 1 where the response is desirable, 0 where it is not.
        penalty: half of it times the square of the weights is added to the summed cross-entropy.
        seed: of the draw, where a class has more prompts than are looked at.

    Raises:
        ValueError: a class has no prompt.
    """
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero((label > 0.5) == good) for good in (True, False)]
    if not all(map(len, classes)):
        raise ValueError(
            f"data.match_prompts compares the prompts of {len(classes[0])} desirable and {len(classes[1])} undesirable "
            "responses; expected some of each"
        )
    taken = np.concatenate([rng.permutation(c)[:_FITTED] for c in classes])
    x, good = np.asarray(embedding[taken], np.float64), np.asarray(label[taken] > 0.5, np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    x = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
    share = np.where(good > 0, len(x) / (2 * good.sum()), len(x) / (2 * (1 - good).sum()))
    ridge = np.full(x.shape[1], penalty)
    ridge[-1] = 0.0  # the bias is free

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float(share @ (np.logaddexp(0.0, z) - good * z) + 0.5 * ridge @ w**2)

    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = 0.5 * (1 + np.tanh(x @ w / 2))
        slope = x.T @ (share * (p - good)) + ridge * w
        curve = (x * (share * p * (1 - p))[:, None]).T @ x + np.diag(ridge + 1e-9)
        step, size = np.linalg.solve(curve, slope), 1.0
        if slope @ step < 1e-10 * len(x):
            break
        while loss(w - size * step) > loss(w) - 1e-4 * size * (slope @ step) and size > 1e-6:
            size /= 2
        w = w - size * step
    return Classifier(mean, scale, w[:-1], float(w[-1]))


def weights(
    classifier: Classifier, embedding: Float[np.ndarray, "N D"], label: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    r"""Return the weight of every example: 1 where it is desirable, else how much likelier its prompt is among those.

    .. math:: \mathrm{clip}\Big(\frac{p}{1 - p}, 0.5, 10\Big)

    As the classes weigh the same in `fit`, the odds are the ratio of the densities of the two kinds of prompts: under
    these weights the undesirable examples have the desirable ones' prompts.

    Reference:
        Seungjae Jung, Gunsoo Han, Daniel Wontae Nam, Kyoung-Woon On, Binary Classifier Optimization for Large Language
        Model Alignment, 2024, arXiv:2404.04656, underlying distribution matching; the balance of the classes and the
        limits are those of TRL's BCOTrainer.
    """
    log_odds = ((embedding - classifier.mean) / classifier.scale) @ classifier.weight + classifier.bias
    ratio = np.exp(np.clip(log_odds, np.log(LEAST), np.log(MOST)))
    return np.where(label > 0.5, 1.0, ratio).astype(np.float32)
