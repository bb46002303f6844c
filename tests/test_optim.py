"""Optimisers against torch's trace, and against the update rules written out in float64 NumPy."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slpojax import grid, optim

# What ran: torch.optim.RMSprop (defaults), clip_grad_norm_(10), LambdaLR((s + 1) / 151), lr 1e-3, float64.
TRACE = json.loads((pathlib.Path(__file__).parent / "goldens" / "torch_rmsprop.json").read_text())
BASE = dict(learning_rate=1e-3, schedule="constant", warmup_steps=0, total_steps=10, clip_norm=0.0)


def run(tx: optax.GradientTransformation, start, gradients):
    """Return the parameters after each gradient, under jit."""
    update = jax.jit(tx.update)
    params, state, seen = jnp.asarray(start), None, []
    state = tx.init(params)
    for gradient in gradients:
        updates, state = update(jnp.asarray(gradient, params.dtype), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(params))
    return seen


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-10), (False, 2e-7)])
def test_rmsprop_clipping_and_warmup_equal_torch(x64, tolerance):
    with jax.enable_x64(x64):
        dtype = np.float64 if x64 else np.float32
        tx = optim.build(
            "rmsprop",
            learning_rate=TRACE["lr"],
            schedule="constant",
            warmup_steps=150,
            total_steps=1000,
            clip_norm=TRACE["clip_norm"],
        )
        seen = run(tx, np.asarray(TRACE["init"], dtype), [t["raw_grad"] for t in TRACE["trace"]])
    # x64: the rate comes from an int32 step, so it is a float32. float32: one unit in the last place of a size of 2.
    np.testing.assert_allclose(seen, [t["param"] for t in TRACE["trace"]], rtol=0, atol=tolerance)


def test_clipping_is_torchs():
    tx = optim.clip_by_norm(TRACE["clip_norm"])
    with jax.enable_x64(True):
        for t in TRACE["trace"]:
            clipped, _ = tx.update({"w": jnp.asarray(t["raw_grad"])}, tx.init({}))
            np.testing.assert_allclose(clipped["w"], t["clipped"], rtol=1e-14)
        small, _ = tx.update({"w": jnp.asarray([3.0, 4.0])}, tx.init({}))
        np.testing.assert_array_equal(small["w"], [3.0, 4.0])


def test_warmup_equals_the_trace_and_then_stays():
    rate = optim.make_schedule("constant", learning_rate=TRACE["lr"], warmup_steps=150, total_steps=200)
    np.testing.assert_allclose([rate(t["step"]) for t in TRACE["trace"]], [t["lr"] for t in TRACE["trace"]], rtol=1e-6)
    np.testing.assert_allclose([rate(149), rate(150), rate(10_000)], [1e-3 * 150 / 151, 1e-3, 1e-3], rtol=1e-6)


@pytest.mark.parametrize("name, half", [("linear", 0.5), ("cosine", 0.5)])
def test_decays_start_at_the_peak_and_end_at_zero(name, half):
    rate = jax.jit(optim.make_schedule(name, learning_rate=2.0, warmup_steps=10, total_steps=110))
    np.testing.assert_allclose([rate(10), rate(60), rate(110), rate(500)], [2.0, 2.0 * half, 0.0, 0.0], atol=1e-6)


def test_linear_without_warmup_is_what_trl_logs():
    rate = optim.make_schedule("linear", learning_rate=1e-4, warmup_steps=0, total_steps=10)
    np.testing.assert_allclose([rate(s) for s in range(10)], [1e-4 * (10 - s) / 10 for s in range(10)], rtol=1e-6)


def test_adamw_is_adam_with_decoupled_decay():
    rng = np.random.default_rng(0)
    gradients, w, lr, decay = rng.normal(size=(5, 4)), rng.normal(size=4), 1e-2, 0.1
    start, m, v, expected = w.copy(), 0.0, 0.0, []
    for i, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w * (1 - lr * decay) - lr * (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8)
        expected.append(w)
    tx = optim.build("adamw", **(BASE | {"learning_rate": lr}), weight_decay=decay)
    np.testing.assert_allclose(run(tx, start.astype(np.float32), gradients), expected, rtol=1e-5)


def test_lion_moves_by_the_sign():
    tx = optim.build("lion", **BASE)
    np.testing.assert_allclose(run(tx, np.zeros(3, np.float32), [[5.0, -0.1, 0.0]])[0], [-1e-3, 1e-3, 0.0], rtol=1e-6)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["rmsprop", "adamw", "lion", "adafactor"])
def test_the_updates_of_a_state_are_counted(name, moments):
    params = {"layers": {"w": jnp.ones((2, 4, 4))}, "b": jnp.ones(3)}
    tx = optim.build(name, **BASE | {"moments": moments})
    state = tx.init(params)
    assert optim.updates(state) == 0
    assert jax.eval_shape(lambda state: optim.updates(tx.update(params, state, params)[1]), state).shape == ()


@pytest.mark.parametrize("name", ["rmsprop", "adamw", "lion", "adafactor"])
def test_every_optimiser_descends_and_keeps_float32(name):
    params = {"layers": jnp.ones((2, 130, 140)), "bias": jnp.ones(3)}
    tx = optim.build(name, **(BASE | {"learning_rate": 1e-2, "clip_norm": 1.0}))
    loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))  # noqa: E731
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(jax.grad(loss)(params), state, params)
    assert loss(optax.apply_updates(params, updates)) < loss(params)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} <= {jnp.dtype("float32")}


def floats(state):
    return [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]


@pytest.mark.parametrize("name", ["rmsprop", "adamw", "lion", "adafactor"])
def test_moments_in_bfloat16_take_half_the_memory_and_stay_close(name):
    rng = np.random.default_rng(0)
    start = {"layers": jnp.asarray(rng.normal(size=(2, 130, 140)), jnp.float32), "bias": jnp.ones(3)}
    seen = {}
    for moments in ("float32", "bfloat16"):
        tx = optim.build(name, **(BASE | {"learning_rate": 1e-2, "moments": moments}))

        def one(carry, _, tx=tx):
            params, state = carry
            updates, state = tx.update(jax.tree.map(lambda p: p + 0.3, params), state, params)
            return (optax.apply_updates(params, updates), state), None

        begin = jax.jit(lambda tx=tx: (start, tx.init(start)))()
        (params, state), _ = jax.jit(lambda begin, one=one: jax.lax.scan(one, begin, length=5))(begin)
        assert {x.dtype for x in floats(params)} == {jnp.dtype("float32")}
        assert {x.dtype for x in floats(state)} == {jnp.dtype(moments)}
        counts = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.integer)]
        assert counts and all(x == 5 for x in counts)
        seen[moments] = sum(x.nbytes for x in floats(state)), params
    (wide, exact), (narrow, rounded) = seen["float32"], seen["bfloat16"]
    assert narrow == wide / 2
    for ours, theirs, begin in zip(*map(jax.tree.leaves, (rounded, exact, start)), strict=True):
        moved = np.abs(theirs - begin)
        # A bfloat16 is off by less than 2^-7 of itself; lion's sign may turn where its moment crosses zero.
        assert np.mean(np.abs(ours - theirs)) < 2**-7 * np.mean(moved)


def test_a_second_moment_in_bfloat16_fades_as_in_float32():
    """Rounded to the nearest it would not: a decay of 0.999 is less than half of bfloat16's steps."""
    nu = {}
    for moments in ("float32", "bfloat16"):
        tx = optim.build("adamw", **(BASE | {"moments": moments}))
        params = jnp.zeros(4096)
        _, state = tx.update(jnp.ones(4096), tx.init(params), params)

        def fade(state, _, tx=tx, params=params):
            return tx.update(jnp.zeros(4096), state, params)[1], None

        state, _ = jax.jit(lambda state, fade=fade: jax.lax.scan(fade, state, length=700))(state)
        nu[moments] = np.asarray(optax.tree.get(state, "nu"), np.float64)
    np.testing.assert_allclose(nu["float32"], 0.001 * 0.999**700, rtol=1e-3)
    # Each of 4096 is off by some 4 % after 700 draws, and their mean by a sixtieth of that.
    assert np.mean(nu["bfloat16"]) == pytest.approx(0.001 * 0.999**700, rel=0.005)
    assert 0.01 < np.std(nu["bfloat16"]) / np.mean(nu["bfloat16"]) < 0.1


def test_rounding_keeps_what_bfloat16_holds_and_what_is_no_number():
    x = jnp.asarray([0.0, -0.0, 1.0, -2.5, 2.0**-100, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(np.asarray(optim._round(x, jnp.uint32(1)), np.float32), x)
    third = np.asarray(optim._round(jnp.full((200, 200), 1 / 3), jnp.uint32(2)), np.float64)
    assert len(np.unique(third)) == 2 and np.mean(third) == pytest.approx(1 / 3, rel=1e-4)


def test_moments_in_bfloat16_follow_their_parameter_on_a_mesh():
    rules = (("^layers$", jax.sharding.PartitionSpec(None, "fsdp")),)
    tx = optim.build("adamw", **(BASE | {"moments": "bfloat16", "clip_norm": 1.0}))
    shapes = jax.eval_shape(tx.init, {"layers": jnp.ones((3, 8)), "bias": jnp.ones(3)})
    where, _ = grid.tree(grid.make(1, 8, 1), rules, shapes)
    for moment in ("mu", "nu"):
        assert optax.tree.get(where, moment)["layers"].spec == rules[0][1]
        assert optax.tree.get(where, moment)["bias"].spec == jax.sharding.PartitionSpec()


@pytest.mark.parametrize(
    "name, kwargs, says",
    [
        ("adamww", {}, r"'adamww' \(near: adamw\); there are .*adafactor"),
        (
            "rmsprop",
            {"dekay": 0.9},
            r"optimizer 'rmsprop' has no hyperparameter 'dekay' \(near: decay\); it has .*decay",
        ),
        ("adamw", {"schedule": "linaer"}, r"schedule 'linaer' \(near: linear\)"),
        ("adamw", {"moments": "bf16"}, r"moments 'bf16'.*there are .*bfloat16"),
    ],
)
def test_unknown_names_list_the_near_ones(name, kwargs, says):
    with pytest.raises(ValueError, match=says):
        optim.build(name, **(BASE | kwargs))


LAYERS = {  # name -> (shape of a layer, root mean square of the parameters, of the gradient) for each of three layers
    "kernel": ((24, 32), (0.02, 0.5, 3.0), (1.0, 1e-3, 30.0)),
    "tall": ((40, 5), (0.1, 0.2, 0.0), (1.0, 0.0, 5.0)),
    "scale": ((32,), (1.0, 0.5, 2.0), (0.1, 10.0, 1.0)),
}


def drawn(rng, which):
    """Parameters (which=1) or gradients (which=2): a list of the layers of each name, apart."""
    return {
        name: [jnp.asarray(rms * rng.normal(size=shape), jnp.float32) for rms in sizes[which - 1]]
        for name, (shape, *sizes) in LAYERS.items()
    }


@pytest.mark.parametrize("more", [{}, {"clipping_threshold": 1e9}, {"weight_decay_rate": 0.1}, {"factored": False}])
def test_adafactor_treats_a_layer_of_a_stack_as_if_it_were_alone(more):
    """The witness is optax's own, on leaves that are not stacked."""
    rng, rate = np.random.default_rng(0), 1e-2
    apart = drawn(rng, 1)
    together = {"layers": {name: jnp.stack(layers) for name, layers in apart.items()}, "head": jnp.ones((24, 30))}
    apart = apart | {"head": together["head"]}
    witness = optax.adafactor(rate, min_dim_size_to_factor=16, **more)
    tx = optim.build("adafactor", **(BASE | {"learning_rate": rate}), min_dim_size_to_factor=16, **more)
    expected, state = witness.init(apart), tx.init(together)
    for _ in range(3):
        gradients = drawn(rng, 2)
        head = jnp.asarray(rng.normal(size=(24, 30)), jnp.float32)
        stacked = {"layers": {name: jnp.stack(layers) for name, layers in gradients.items()}, "head": head}
        updates, state = jax.jit(tx.update)(stacked, state, together)
        theirs, expected = jax.jit(witness.update)(gradients | {"head": head}, expected, apart)
        np.testing.assert_allclose(updates["head"], theirs["head"], rtol=1e-6)
        for name, layers in updates["layers"].items():
            for ours, own in zip(layers, theirs[name], strict=True):
                # The decay and the update may cancel: what is left is as exact as they were.
                np.testing.assert_allclose(ours, own, rtol=1e-6, atol=1e-7 * float(jnp.max(jnp.abs(own))))
        together, apart = optax.apply_updates(together, updates), optax.apply_updates(apart, theirs)
    counts = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert counts and all(x.shape == () and x == 3 for x in counts)


def test_the_state_of_a_stack_is_split_as_its_rules_say():
    rules = (("kernel$", jax.sharding.PartitionSpec(None, "fsdp")), ("scale$", jax.sharding.PartitionSpec()))
    tx = optim.build("adafactor", **(BASE | {"moments": "bfloat16"}), min_dim_size_to_factor=16)
    params = {"layers": {name: jnp.stack(layers) for name, layers in drawn(np.random.default_rng(0), 1).items()}}
    shapes = jax.eval_shape(tx.init, params)
    where, _ = grid.tree(grid.make(1, 8, 1), rules, shapes)
    assert optax.tree.get(shapes, "v_row")["layers"]["kernel"].shape == (3, 24)
    assert optax.tree.get(where, "v_row")["layers"]["kernel"].spec == rules[0][1]
    assert optax.tree.get(where, "v_col")["layers"]["kernel"].spec == rules[0][1]
    assert optax.tree.get(shapes, "v")["layers"]["scale"].shape == (3, 32)
    assert {x.dtype for x in floats(shapes)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", ["rmsprop", "adamw", "lion", "adafactor"])
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_a_peak_given_to_the_update_is_that_of_the_optimiser_built_with_it(name, moments):
    keys = BASE | {"schedule": "cosine", "warmup_steps": 2, "clip_norm": 1.0, "moments": moments}
    params = {"layers": jnp.linspace(-1, 1, 24).reshape(2, 3, 4), "bias": jnp.ones(3)}
    gradients = jax.tree.map(lambda x: x + 0.3, params)
    rates = jnp.asarray([1e-3, 3e-2])
    general = optim.build(name, **keys)

    def two(update):
        """Two updates, of which the second comes from a state that is not new."""
        state = general.init(params)
        for _ in range(2):
            updates, state = update(gradients, state, params)
        return updates

    both = jax.jit(jax.vmap(lambda rate: two(lambda *a: general.update(*a, learning_rate=rate))))(rates)
    for i, rate in enumerate(rates):
        own = optim.build(name, **(keys | {"learning_rate": float(rate)}))
        alone = jax.jit(lambda own=own: two(own.update))()
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), both, alone)


def test_defaults_are_a_copy():
    optim.defaults("adamw")["b1"] = 0.0
    assert optim.defaults("adamw")["b1"] == 0.9
