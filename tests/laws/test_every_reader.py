"""Laws that every reader inherits: what it gives, of what shape, and where its gradient goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import needs, readers

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


def test_two_readers_of_one_name_are_refused():
    one = readers.bundled()[0]
    with pytest.raises(ValueError, match="two readers give"):
        readers.needed(one.gives, [one])
