"""From a model to the scores of tokens: what is wired to what, of the policy and of the reference.

Knows a model as functions, the head and the readers; knows no model family and no objective. Scores come in two
layouts: of the scored positions, [G, S], as the model's rows hold them, and of the examples, [B, K, T], as objectives
read them; `place` leads from one to the other.
"""

import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slpojax import head, needs, readers
from slpojax.base import ABSENT, Array, Batch, Logps, Model, Params, Rows, Scored, Shapes
from slpojax.grid import Grid, constrain, row_devices
from slpojax.head import TokenScores

# (params, rows, scored, ref_params) -> [G, S] scores; `params` hold those of readers, too. `ref_params` is None where
# nothing that is requested takes the reference's weights.
TokenScorer = Callable[..., TokenScores]
# (params, batch, ref_params) -> ([B, K, T] log-probs of the responses, what else was requested by name).
Scorer = Callable[..., tuple[Logps, dict[str, Any]]]


def token_scorer(
    model: Model, shapes: Shapes, grid: Grid, requested: Collection[str] = (), ref_model: Model | None = None
) -> TokenScorer:
    """Return (params, rows, scored, ref_params) -> scores of the scored tokens, [G, S] and for readers [G, S, ...].

    A model with a score head has no log-odds, and gives "reward" in their place.

    Args:
        model: the policy's.
        shapes: sizes of the batch.
        grid: the devices; how many logits exist at once depends on their kind.
        requested: what is asked for beside the log-odds: of the head's distribution, or what a reader gives.
        ref_model: the reference's; None where it is the policy's.
    """
    of_head = sorted(set(requested) & set(needs.of_source("head")))
    used = readers.needed(requested)
    of_layers = any(reader.layers for reader in used)
    takes_reference = takes_weights(requested)
    platform = grid.mesh.devices.flat[0].platform

    def states_of(model: Model, params: Params, rows: Rows, scored: Scored) -> tuple[Array, Array | None]:
        if of_layers:
            return model.layers(params, rows, lambda x: head.predictors(x, scored.source))
        return model.apply(params, rows, None)[0], None

    def score(params: Params, rows: Rows, scored: Scored, ref_params: Params | None = None) -> TokenScores:
        reference, caps = None, (model.cap, (ref_model or model).cap)
        states: dict[str, tuple[Array, Array | None]] = {}
        if takes_reference:
            other = ref_model or model
            states["reference"] = jax.lax.stop_gradient(states_of(other, ref_params, rows, scored))
            reference = states["reference"][0], jax.lax.stop_gradient(other.unembed(ref_params))
        layers = any(reader.layers and reader.of == "policy" for reader in used)
        states["policy"] = (
            states_of(model, params, rows, scored) if layers else (model.apply(params, rows, None)[0], None)
        )
        hidden = states["policy"][0]
        if model.score is not None:
            assert scored.cell is not None, "rows of a score head say where each token stands"
            out = {"reward": head.rewards(hidden, model.score(params), scored.cell)}
        else:
            table = model.unembed(params)
            groups = max(1, scored.source.shape[0] // row_devices(grid))  # that a device holds here
            chunk = max(1, min(shapes.scored, head.positions_at_once(platform, table.shape[1]) // groups))
            out = head.token_scores(
                hidden, table, scored, chunk=chunk, requested=of_head, reference=reference, caps=caps, grid=grid
            )
        for reader in used:
            final, every = states[reader.of]
            seen: Any = every if reader.layers else head.predictors(final, scored.source)
            out |= reader.read(readers.of(params), seen, [name for name in reader.gives if name in requested])
        return out

    return score


def scorer(
    model: Model, shapes: Shapes, grid: Grid, requested: Collection[str] = (), ref_model: Model | None = None
) -> Scorer:
    """Return the jitted (params, batch, ref_params) -> scores of a whole batch, without gradient, on every device.

    One compiled program serves every batch of these sizes, whether it carries the log-probs of frozen models (an
    evaluation) or not yet (the pass that makes the reference's), and every call with equal arguments.

    Args:
        model: the policy's.
        shapes: sizes of the batch.
        grid: the devices.
        requested: what is asked for beside the log-probs, as `token_scorer` takes it.
        ref_model: the reference's; None where it is the policy's.

    Returns:
        ([B, K, T] `Logps` of the responses, what else was requested by name), as `place` returns them.
    """
    compiled = scoring(model, shapes, grid, frozenset(requested), ref_model)

    def score(params: Params, batch: Batch, ref_params: Params | None = None) -> tuple[Logps, dict[str, Any]]:
        return compiled(params, batch._replace(ref=None, previous=None), ref_params)

    return score


@functools.lru_cache(maxsize=8)
def scoring(
    model: Model, shapes: Shapes, grid: Grid, requested: frozenset[str] = frozenset(), ref_model: Model | None = None
) -> Callable[..., tuple[Logps, dict[str, Any]]]:
    """Return the jitted function behind `scorer`, for who lowers it; its batches hold no frozen model's log-probs.

    Args:
        model: the policy's.
        shapes: sizes of the batch.
        grid: the devices.
        requested: what is asked for beside the log-probs.
        ref_model: the reference's; None where it is the policy's.
    """
    score = token_scorer(model, shapes, grid, requested, ref_model)

    def log_probs(params: Params, batch: Batch, ref_params: Params | None) -> tuple[Logps, dict[str, Any]]:
        out = score(params, batch.rows, batch.scored, ref_params)
        return place(constrain(out, grid.everywhere), batch.scored, batch.length, shapes)

    return jax.jit(log_probs, out_shardings=grid.everywhere)


def place(tokens: TokenScores, scored: Scored, length: Array, shapes: Shapes) -> tuple[Logps, dict[str, Any]]:
    """Bring the scores of tokens to their places among the examples.

    Args:
        tokens: [G, S, ...] of any groups of the batch; what the other groups hold comes out as absent tokens.
        scored: the same groups' slots.
        length: [B, K] response lengths.
        shapes: the batch's sizes.

    Returns:
        The [B, K, T] log-probs, absent ones where `tokens` has none, and by name what else `tokens` holds, [B, K, T] or
        with an axis of its own behind these, 0 where there is no token; where prompts are scored, their `Logps` [B, P]
        are among it as "prompt".
    """
    responses = (*length.shape, shapes.response)
    odds = tokens.get("log_odds")

    def scatter(values: Array, absent: float, slot: Array, shape: tuple[int, ...]) -> Array:
        of_token = values.shape[2:]
        flat = jnp.full((math.prod(shape), *of_token), absent, values.dtype)
        flat = flat.at[slot.reshape(-1)].set(values.reshape(-1, *of_token), mode="drop")
        return flat.reshape(*shape, *of_token)

    def log_probs(*where: Any) -> tuple[Array, Array]:
        if odds is None:  # of a score head
            return jnp.zeros(where[1]), jnp.full(where[1], ABSENT)
        return scatter(-jax.nn.softplus(-odds), 0.0, *where), scatter(-jax.nn.softplus(odds), ABSENT, *where)

    logps = Logps(*log_probs(scored.slot, responses), length)
    others: dict[str, Any] = {
        name: scatter(values, 0.0, scored.slot, responses) for name, values in tokens.items() if name != "log_odds"
    }
    if shapes.prompt:
        before, prompts = math.prod(responses), (length.shape[0], shapes.prompt)
        # Out of bounds on the far side where it is a response's: a negative index would count from the end.
        slot = jnp.where(scored.slot < before, math.prod(prompts), scored.slot - before)
        present = scatter(jnp.ones(slot.shape), 0.0, slot, prompts)
        others["prompt"] = Logps(*log_probs(slot, prompts), jnp.sum(present, axis=-1).astype(jnp.int32))
    return logps, others


def takes_weights(names: Collection[str]) -> bool:
    """Tell whether any of these needs takes the reference's weights beside the policy's."""
    return bool(needs.takes_reference_weights(names))


def learned(
    model: Model,
    params: Params,
    requested: Collection[str],
    candidates: int,
    reference: tuple[Model, Params] | None = None,
) -> dict[str, Any]:
    """Return the sizes of the parameters that the requested readers learn, as `readers.draw` takes them.

    Args:
        model: the policy's.
        params: like its parameters; shapes do.
        requested: what an objective asks for.
        candidates: K of the data.
        reference: the reference's model and the like of its parameters; None where they are the policy's.
    """
    sizes: dict[str, Any] = {}
    for reader in readers.needed(requested):
        of = reference if reference and reader.of == "reference" else (model, params)
        sizes |= readers.learned((reader,), readers.Sizes(*_depth_and_width(*of), candidates), requested)
    return sizes


def _depth_and_width(model: Model, params: Params) -> tuple[int, int]:
    one = np.ones((1, 1), np.int32)
    rows = Rows(one, one, one, one)
    layers, *_, width = jax.eval_shape(lambda params: model.layers(params, rows, lambda x: x)[1], params).shape
    return layers, width
