"""Laws that every reader inherits: what it gives, of what shape, and where its gradient goes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step_tools

from slpojax import base, data, models, needs, objectives, readers, scores, selectors, step, table
from slpojax.base import Frozen

SIZES = readers.Sizes(layers=2, width=8, candidates=4)
GROUPS, SCORED = 2, 3


@pytest.fixture(params=readers.bundled(), ids=lambda reader: reader.gives[0])
def reader(request):
    return request.param


def states_of(reader, seed=0):
    shape = (GROUPS, SCORED, SIZES.width)
    return jax.random.normal(jax.random.key(seed), (SIZES.layers, *shape) if reader.layers else shape)


def params_of(reader, seed=1):
    """The parameters of all of its scores, drawn as a run draws them."""
    return readers.of(readers.draw(jax.random.key(seed), readers.learned([reader], SIZES, reader.gives)))


def test_it_gives_what_is_requested_and_nothing_else(reader):
    states, params = states_of(reader), params_of(reader)
    for requested in (*([name] for name in reader.gives), list(reader.gives)):
        scores = jax.jit(lambda params, states, requested=requested: reader.read(params, states, requested))(
            params, states
        )
        assert scores.keys() == set(requested)
        for name, values in scores.items():
            assert values.shape[:2] == (GROUPS, SCORED) and values.dtype == jnp.float32, name
            np.testing.assert_allclose(values, reader.read(params, states, requested)[name], rtol=1e-5, atol=1e-6)


def test_every_position_is_read_by_itself(reader):
    """Positions do not see each other: what one holds changes no other one's scores."""
    params, states = params_of(reader), states_of(reader)
    moved = states.at[..., 0, 1, :].add(1.0)
    before, after = (reader.read(params, x, list(reader.gives)) for x in (states, moved))
    for name in reader.gives:
        same = np.ones((GROUPS, SCORED), bool)
        same[0, 1] = False
        np.testing.assert_array_equal(np.asarray(before[name])[same], np.asarray(after[name])[same])


def test_its_gradients_are_finite_and_a_reference_gets_none(reader):
    def total(params, states):
        return sum(jnp.sum(values**2) for values in reader.read(params, states, list(reader.gives)).values())

    by_params, by_states = jax.grad(total, argnums=(0, 1))(params_of(reader), states_of(reader))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((by_params, by_states)))
    assert bool(np.any(by_states)) == (reader.of == "policy")
    assert all(np.any(x) for x in jax.tree.leaves(by_params)), "a parameter that no score depends on"


def test_objectives_may_ask_for_what_it_gives(reader):
    assert set(reader.gives) <= set(needs.NEEDS)


# ---- a reader of one's own -------------------------------------------------------------------------------------------

SURPRISE = readers.Reader(
    gives=("sureness",),
    of="policy",
    layers=False,
    learned=lambda sizes, name: (1, sizes.width),
    read=lambda params, states, requested: {
        "sureness": jax.nn.sigmoid(states.astype(jnp.float32) @ params["sureness"]["weight"][0])
    },
    needs={"sureness": needs.Need("sureness", "K T", "reader", "how sure a probe is of a token", gradient=True)},
)
READERS = (SURPRISE,)


def probed(policy, sureness, *, weight: float = 0.5):
    """An objective that asks for what it gives."""
    token = policy.token[0]
    return -jnp.sum(token * (1 + weight * sureness[0])), {"sureness": jnp.mean(sureness[0])}


@pytest.mark.check
def test_an_objective_brings_a_reader_of_its_own():
    objective = objectives.build(f"{__name__}.probed")
    assert objective.needs == {"policy", "sureness"} and readers.needed(objective.needs) == (SURPRISE,)
    config = {"model_type": "llama", "vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2}
    model = models.build(config | {"num_attention_heads": 2, "intermediate_size": 12})
    pairs = data.build([data.Example(np.int32([1, 2]), (np.int32([3, 4]),), (1.0,), i) for i in range(4)], candidates=1)
    shapes = data.plan(pairs, [np.arange(4)], row_length=16)
    batch, params = data.pack([pairs[i] for i in range(4)], shapes), model.init(jax.random.key(0))
    learned = scores.learned(model, params, objective.needs, candidates=1)
    assert learned == {"sureness": (1, 8)}
    params = jax.tree.map(np.asarray, params | readers.draw(jax.random.key(1), learned))
    ready = step_tools.prepare(model, objective, optax.sgd(0.1), shapes, params, step_tools.grid_of(1, 1, 1))
    state, metrics = ready.train_step(ready.state, Frozen(), batch)
    assert 0 < float(metrics["sureness"]) < 1
    moved = state.params[readers.KEY]["sureness"]["weight"] - params[readers.KEY]["sureness"]["weight"]
    assert np.any(moved), "the probe is trained with the policy"


def aligned(policy, sureness):
    """An objective that sees whether a score of its own comes with the candidates that it is of."""
    return jnp.sum(sureness - policy.token), {}


def test_a_selector_picks_what_such_a_reader_gives_with_its_candidates():
    objective = objectives.build(f"{__name__}.aligned")
    token = -jax.random.uniform(jax.random.key(0), (2, 5, 3))
    policy = base.Logps(token, token, jnp.full((2, 5), 3))
    inputs = {"policy": policy, "ref": policy, "score": jnp.zeros((2, 5)), "sureness": token}
    losses, _, _ = step.on_examples(objective, inputs, jax.random.key(1), selector=selectors.build("likeliest"))
    np.testing.assert_array_equal(losses, 0)


def test_documents_list_the_needs_of_the_package_alone():
    objectives.build(f"{__name__}.aligned")
    assert "sureness" in needs.known() and "sureness" not in table.main(["--markdown"])


def module(name, *listed):
    made = types.ModuleType(name)
    made.READERS = listed
    return made


def test_two_readers_of_one_name_are_refused():
    other = SURPRISE._replace(needs={"sureness": needs.NEEDS["entropy"]})
    readers.adopt(module("mine", *READERS))
    with pytest.raises(ValueError, match="there is a need 'sureness' already"):
        readers.adopt(module("another", other))
    with pytest.raises(ValueError, match="needs"):
        readers.adopt(module("mine", SURPRISE._replace(gives=("depth",))))
