"""However a batch is laid out and computed, the loss and the gradients are those of one response per row.

The plain side reads one response at a time on one device, after its prompt and nothing else, with dense attention, the
log_softmax over all words and no remat; the objective sees one example at a time and Python means over the examples. It
has the model's `apply` and the objective's function in common with the package, and nothing of the step, the head, the
rows or the mesh.
"""

import dataclasses
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_tools import compiled, grid_of, prepare
from test_attention import IMPLEMENTATIONS

from slpojax import columns, data, grid, head, models, objectives, scores
from slpojax.base import ABSENT, Frozen, Logps, Rows
from slpojax.data.examples import Example
from slpojax.models.attention import SHORT

DRAWN = 9  # models, objectives and meshes
TURN = 6  # draws in which every choice is met
RESPONSE, ROOM = 12, 192  # tokens of a response, and of a prompt with one response, at most
NOWHERE = (np.zeros(RESPONSE, np.float32),) * 2

_SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    # 37 words are one piece to the head, 48 are 16 pieces of 3.
    "llama": _SMALL | {"model_type": "llama", "vocab_size": 37, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt_neox": _SMALL | {"model_type": "gpt_neox", "vocab_size": 48, "rotary_pct": 0.5},
}


@dataclasses.dataclass(frozen=True)
class Draw:
    """A batch's objective and sizes, and a way to compute it."""

    seed: int
    objective: tuple[str, tuple[int, ...]]  # with the K it takes
    config: str
    lengths: str
    pack: bool
    mesh: tuple[int, int, int]
    accumulate: int
    attention: str
    remat: str
    cached: bool  # the reference's log-probs
    positions: int  # logits exist of so many positions at once


CHOICES = {
    "objective": [
        ("listwise.plackett_luce", (2, 3, 4, 5)),
        ("dpo.sigmoid", (2,)),
        ("unpaired.kto", (2,)),
        ("slpo.shift", (2,)),
        ("listwise.rnce", (2, 3, 4, 5)),
        ("sft.token_mean", (1, 2)),
    ],
    "config": list(CONFIGS),
    # Of any length; every packed row full to its last cell; every response a single token.
    "lengths": ["ragged", "full", "single"],
    "pack": [True, False],
    "mesh": [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 8, 1), (1, 1, 4)],
    "accumulate": [1, 2, 4],
    "attention": ["tiles", "cudnn", "splash", "dense"],
    # JAX 0.10.1 cannot offload on several devices.
    "remat": ["none", "dots", "layer", "offload" if jax.__version_info__ >= (0, 11) else "layer"],
    "cached": [True, False],
    "positions": [256, 5],
}


def deal(name: str, number: int):
    """One of the choices, of which any len(choices) draws in a row from a multiple of it have each once."""
    choices = CHOICES[name]
    turn, place = divmod(number, len(choices))
    return choices[np.random.default_rng([turn, *name.encode()]).permutation(len(choices))[place]]


DRAWS = [Draw(seed, **{name: deal(name, seed) for name in CHOICES}) for seed in range(DRAWN)]


def described(draw: Draw) -> str:
    names = dataclasses.asdict(draw) | {"objective": draw.objective[0], "mesh": "x".join(map(str, draw.mesh))}
    return "-".join(str(value) for value in names.values())


def batch_of(draw: Draw) -> tuple[list[Example], int]:
    """Two to eight examples and the length of the rows, which are long enough not to be attended to all at once."""
    rng = np.random.default_rng(draw.seed)
    count, candidates = int(rng.integers(2, 9)), int(rng.choice(draw.objective[1]))
    response = rng.integers(1, RESPONSE + 1, (count, candidates))
    response[rng.random(response.shape) < 0.2] = 1
    if draw.lengths == "single":
        response[:] = 1
    if draw.lengths == "ragged":
        response[2:, 1:] *= rng.random((count - 2, candidates - 1)) < 0.8
        response[0, 1:] = 0  # one candidate alone
    prompt = rng.integers(1, 40, count)
    row_length = int(rng.integers(SHORT + 1, SHORT + 50))
    if draw.lengths == "full":
        in_a_row = 2 if draw.pack else 1
        prompt = row_length // in_a_row - response.sum(axis=1)
        row_length -= row_length % in_a_row
    words = CONFIGS[draw.config]["vocab_size"]

    def text(length: int) -> np.ndarray:
        return rng.integers(0, words, length).astype(np.int32)

    listed = [
        Example(text(p), tuple(map(text, r)), tuple(rng.normal(size=candidates)), i, float(rng.integers(2)))
        for i, (p, r) in enumerate(zip(prompt, response, strict=True))
    ]
    return listed, row_length


@cache
def parameters(config: str, seed: int):
    """Large enough for attention that prefers, for words that differ, and for gradients that matter."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(models.build(CONFIGS[config]).init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 2, shapes)


# ---- the plain side --------------------------------------------------------------------------------------------------


@cache
def plain_program(config: str):
    """(parameters, tokens [ROOM], where the response begins, direction) -> (log p, log(1 - p)) [RESPONSE], and the
    gradient by the parameters of their product with the direction.
    """
    model = models.build(CONFIGS[config], attention="dense")

    def forward(params, tokens, start):
        one = jnp.ones((1, ROOM), jnp.int32)
        hidden, _ = model.apply(params, Rows(tokens[None], jnp.arange(ROOM)[None], one, 0 * one), None)
        logits = jnp.einsum("ld,dv->lv", hidden[0], model.unembed(params))
        at = start + jnp.arange(RESPONSE)
        own = jax.nn.one_hot(tokens[at], logits.shape[-1], dtype=bool)
        logp = jax.nn.log_softmax(logits[at - 1])
        return jnp.sum(jnp.where(own, logp, 0.0), -1), jax.nn.logsumexp(jnp.where(own, -jnp.inf, logp), axis=-1)

    def both(params, tokens, start, direction):
        out, pull = jax.vjp(lambda params: forward(params, tokens, start), params)
        return out, pull(direction)[0]

    return compiled(jax.jit(both), parameters(config, 0), np.zeros(ROOM, np.int32), np.int32(0), NOWHERE)


def alone(example: Example, response: np.ndarray) -> tuple[np.ndarray, np.int32]:
    """One response after its prompt, and where it begins. What comes after it, nothing before it sees."""
    tokens = np.concatenate([example.prompt, response, np.zeros(ROOM, np.int32)])[:ROOM]
    return tokens, np.int32(len(example.prompt))


def plain_logps(config: str, params, listed: list[Example]) -> Logps:
    """[B, K, RESPONSE]."""
    lengths = np.array([[len(response) for response in example.responses] for example in listed], np.int32)
    token, other = np.zeros((*lengths.shape, RESPONSE), np.float32), np.full((*lengths.shape, RESPONSE), ABSENT)
    for b, example in enumerate(listed):
        for k, response in enumerate(example.responses):
            for array, values in zip(
                (token, other), plain_program(config)(params, *alone(example, response), NOWHERE)[0]
            ):
                array[b, k, : len(response)] = values[: len(response)]
    return Logps(token, np.float32(other), lengths)


@cache
def plain_objective(name: str):
    """(policy, what else it gets) of one example, or of a whole batch -> (loss, gradient by the log-probs)."""
    objective = objectives.build(name)

    def one(given):
        return objective.function(**{need: given[need] for need in objective.needs})[0]

    def of_batch(probs, policy, given):
        given = given | {"policy": policy._replace(token=probs[0], other=probs[1])}
        return jnp.mean(jax.vmap(one, axis_name="batch")(given))

    def of_one(probs, policy, given):
        return one(given | {"policy": policy._replace(token=probs[0], other=probs[1])})

    whole = name.split(".")[0] in ("unpaired", "batchwise", "sft")  # couples the examples
    return whole, jax.jit(jax.value_and_grad(of_batch if whole else of_one))


def plain(draw: Draw, listed: list[Example]):
    """The mean loss, and its gradient by the parameters."""
    params = parameters(draw.config, 1)
    policy, ref = (plain_logps(draw.config, x, listed) for x in (params, parameters(draw.config, 2)))
    given = {"ref": ref, "score": np.float32([x.score for x in listed]), "label": np.float32([x.label for x in listed])}
    whole, value = plain_objective(draw.objective[0])
    if whole:
        loss, by_logps = value(policy[:2], policy, given)
    else:
        each = [jax.tree.map(lambda x, b=b: x[b], (policy, given)) for b in range(len(listed))]
        found = [value(policy[:2], policy, given) for policy, given in each]
        loss = sum(float(loss) for loss, _ in found) / len(listed)
        by_logps = [np.stack([np.asarray(g[part]) for _, g in found]) / len(listed) for part in (0, 1)]
    there = np.arange(RESPONSE) < policy.length[..., None]
    by_logps = [np.where(there, x, 0) for x in by_logps]
    total = jax.tree.map(lambda x: np.zeros(x.shape), params)
    for b, example in enumerate(listed):
        for k, response in enumerate(example.responses):
            direction = tuple(np.float32(x[b, k]) for x in by_logps)
            gradient = plain_program(draw.config)(params, *alone(example, response), direction)[1]
            total = jax.tree.map(np.add, total, gradient)
    return loss, total


# ---- the package -----------------------------------------------------------------------------------------------------


def packed(draw: Draw, listed: list[Example], row_length: int):
    """The shapes, and the batch as the package lays it out, on the host."""
    examples = data.build(listed, candidates=len(listed[0].responses))
    groups = math.prod(draw.mesh[:2]) * draw.accumulate
    order = [np.arange(len(listed))]
    shapes = data.plan(examples, order, row_length=row_length, pack=draw.pack, multiple_of=groups)
    return shapes, data.pack(listed, shapes)


def package(draw: Draw, listed: list[Example], row_length: int):
    """The loss, and the gradient by the parameters, of one step."""
    devices, name = grid_of(*draw.mesh), draw.attention
    attend = partial(IMPLEMENTATIONS[name], grid=devices) if name == "splash" else IMPLEMENTATIONS[name]
    model = models.build(CONFIGS[draw.config], attention=attend, remat=draw.remat, grid=devices)
    shapes, batch = packed(draw, listed, row_length)
    params, ref_params = (parameters(draw.config, seed) for seed in (1, 2))
    # Its state is the gradient: nothing is rounded against the parameters.
    ready = prepare(
        model,
        objectives.build(draw.objective[0]),
        optax.trace(decay=0.0),
        shapes,
        params,
        devices,
    )
    ref_params = jax.tree.map(jax.device_put, ref_params, ready.where.params)
    if draw.cached:
        in_order = scores.scorer(model, shapes, devices)
        scored = columns.compute(lambda batch: in_order(ref_params, grid.put_batch(devices, batch))[0], [batch])
        cached = columns.join(list(scored), batch.length)
        batch, ref_params = data.pack(listed, shapes, ref=[cached[i] for i in range(len(listed))]), None
    inputs = (ready.state, Frozen(reference=ref_params), grid.put_batch(devices, batch))
    state, metrics = compiled(ready.train_step, *inputs)(*inputs)
    return float(metrics["loss"]), state.optimizer.trace


@pytest.mark.check
@pytest.mark.parametrize("draw", DRAWS, ids=described)
def test_the_same_loss_and_gradients_as_one_response_per_row(draw, monkeypatch):
    monkeypatch.setattr(head, "POSITIONS_AT_ONCE", draw.positions)
    scores.scoring.cache_clear()
    listed, row_length = batch_of(draw)
    loss, gradient = package(draw, listed, row_length)
    expected, truth = plain(draw, listed)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(truth), strict=True):
        largest = np.abs(theirs).max()
        assert largest > 1e-6, jax.tree_util.keystr(path)  # or the test would say nothing
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))


def test_the_draws_hold_what_is_promised():
    for name, choices in CHOICES.items():
        assert {getattr(draw, name) for draw in DRAWS[:TURN]} == set(choices), name
    full = single = lone = chunked = 0
    for draw in DRAWS[:TURN]:
        listed, row_length = batch_of(draw)
        shapes, batch = packed(draw, listed, row_length)
        full += bool((batch.rows.example > 0).all(axis=1).any())
        single += 1 in batch.length
        lone += batch.length.shape[1] > 1 and bool((batch.length[:, 1:] == 0).all(axis=1).any())
        chunked += shapes.scored > draw.positions
        assert shapes.length > SHORT
    assert min(full, single, lone, chunked) > 1, (full, single, lone, chunked)
