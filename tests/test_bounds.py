"""Reads beyond the end of an axis: found where an index is known, and nowhere else."""

import jax
import jax.numpy as jnp
import pytest

from slpojax.bounds import Read, reads_beyond

ONE, BATCH = jax.ShapeDtypeStruct((1,), "float32"), jax.ShapeDtypeStruct((5, 1), "float32")
BEYOND = {
    "an index": (lambda x: x[0] - x[1], 1),
    "from the end": (lambda x: x[-2], -1),
    "an array of indices": (lambda x: x[jnp.array([0, 1])], 1),
    "take": (lambda x: jnp.take(x, 1), 1),
    "take_along_axis": (lambda x: jnp.take_along_axis(x, jnp.array([1]), 0), 1),
    "inside of another program": (lambda x: jax.jit(lambda y: y[3])(x), 3),
    "behind a custom rule": (lambda x: jax.nn.relu(x[2]), 2),
    "in a loop": (lambda x: jax.lax.scan(lambda c, _: (c + x[1], None), 0.0, None, length=3)[0], 1),
    "many at once": (lambda x: jax.vmap(lambda i: x[i])(jnp.arange(2)), 1),
    "a dynamic slice": (lambda x: jax.lax.dynamic_slice(x, (jnp.int32(1),), (1,)), 1),
}
WITHIN = {
    "the first": lambda x: x[0],
    "the last": lambda x: x[-1],
    "a slice, which ends where the axis does": lambda x: x[:2],
    "one that is meant": lambda x: x.at[1].get(mode="fill", fill_value=0),
    "a written one, which is dropped": lambda x: x.at[1].set(0),
    "one that depends on data": lambda x: x[jnp.argmax(x)],
    "a loop over the axis": lambda x: jax.lax.scan(lambda c, y: (c + y, None), 0.0, x)[0],
    "an index from the size": lambda x: x[x.shape[0] - 1],
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_read_beyond_is_found(name):
    function, index = BEYOND[name]
    for program in (jax.make_jaxpr(function)(ONE), jax.make_jaxpr(jax.vmap(function, axis_name="batch"))(BATCH)):
        assert reads_beyond(program) == [Read(index, 1)]
    assert not reads_beyond(jax.make_jaxpr(function)(jax.ShapeDtypeStruct((4,), "float32")))


@pytest.mark.parametrize("name", WITHIN)
def test_a_read_within_is_not(name):
    assert not reads_beyond(jax.make_jaxpr(WITHIN[name])(ONE))
    assert not reads_beyond(jax.make_jaxpr(jax.vmap(WITHIN[name]))(BATCH))


def test_a_hyperparameter_of_an_outer_program_is_no_constant():
    def outer(i):
        assert not reads_beyond(jax.make_jaxpr(lambda x: x[i])(ONE))
        return i

    jax.jit(outer)(3)
