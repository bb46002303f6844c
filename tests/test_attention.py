"""Every implementation of attention against the definition: packed rows, their gradients, dtypes, meshes, memory."""

from functools import cache, partial

import hurry
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from slpojax import grid, models
from slpojax.base import Rows
from slpojax.models import attention, kernels, tiles
from slpojax.models.attention import Cells

# Each as it runs on any device; small tiles, so that rows have several.
IMPLEMENTATIONS = {
    "tiles": tiles.tiles,
    "cudnn": partial(kernels.cudnn, implementation="xla"),
    "splash": partial(kernels.splash, tile=128, interpret=True),
}
NAMES = tuple(IMPLEMENTATIONS)
IMPLEMENTATIONS["dense"] = attention.dense
LENGTH, DIM = 320, 8  # no multiple of a TPU's tiles


def packed(seed: int, rows: int = 4, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Example and branch of random rows: one exactly full, one empty, the others with padding at their end.

    Examples have one to four candidates, some of a single token, some absent.
    """
    rng = np.random.default_rng(seed)
    example, branch = np.zeros((2, rows, length), np.int32)
    for row in range(rows - 1):
        place, number = 0, 0
        end = length if row == 0 else rng.integers(length // 2, length)
        while place < end:
            number += 1
            sizes = [rng.integers(1, 90), *rng.choice([0, 1, 7, 40], rng.integers(1, 5))]
            cells = np.repeat(np.arange(len(sizes)), sizes)[: end - place]
            example[row, place : place + len(cells)] = number
            branch[row, place : place + len(cells)] = cells
            place += len(cells)
    return example, branch


def arrays(seed: int, dtype=np.float32) -> list[jax.Array]:
    """Queries of four heads, keys and values of two, and a direction for the pull-back; zero where there is padding."""
    rng = np.random.default_rng(seed)
    there = (packed(seed)[0] > 0)[:, :, None, None]
    shapes = [(*there.shape[:2], heads, DIM) for heads in (4, 2, 2, 4)]
    *inputs, direction = (rng.normal(size=shape) for shape in shapes)
    return [jnp.asarray(x, dtype) for x in (*inputs, direction * there)]


def pull(attend, example, branch, query, key, value, direction):
    """What attention gives, zero at padding, and the gradients of its product with a direction."""
    cells = Cells(jnp.arange(example.shape[1])[None], example, branch)
    out, back = jax.vjp(lambda *x: attend(*x, cells, cells), query, key, value)
    return out * (example > 0)[:, :, None, None], *back(direction)


def compiled(function, *inputs):
    """Most of what these tests take is compilation; what they compile runs for milliseconds."""
    return jax.jit(function).lower(*inputs).compile(compiler_options=hurry.OPTIONS)


@cache
def pulled(name: str, dtype=jnp.float32):
    """`pull` with an implementation, compiled."""
    return compiled(partial(pull, IMPLEMENTATIONS[name]), *packed(0), *arrays(0, dtype))


def seen(example: np.ndarray, branch: np.ndarray) -> np.ndarray:
    """Who sees whom, cell by cell, as the words say it."""
    mask = np.zeros((*example.shape, example.shape[1]), bool)
    for r, i, j in np.ndindex(mask.shape):
        same = example[r, i] == example[r, j] > 0
        mask[r, i, j] = same and j <= i and branch[r, j] in (0, branch[r, i])
    return mask


def test_the_definition():
    example, branch = packed(0)
    query, key, value, direction = (np.asarray(x, np.float64) for x in arrays(0))
    key, value = key.repeat(2, axis=2), value.repeat(2, axis=2)  # each serves two heads
    logits = np.einsum("rlhd,rmhd->rhlm", query, key) / np.sqrt(DIM)
    weight = np.exp(logits) * seen(example, branch)[:, None]
    weight /= np.maximum(weight.sum(axis=-1, keepdims=True), 1e-300)
    out = pulled("dense")(example, branch, *arrays(0))[0]
    np.testing.assert_allclose(out, np.einsum("rhlm,rmhd->rlhd", weight, value), atol=1e-5)


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.check) for name in NAMES[1:])])
def test_the_same_numbers(name):
    for seed in range(6):
        inputs = (*packed(seed), *arrays(seed))
        for a, b in zip(pulled(name)(*inputs), pulled("dense")(*inputs), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def bounded(attend, rows: Rows, window, query, key, value, direction, cap: float | None):
    """What attention within a window and under a cap gives, zero at padding, and the gradients, as `pull`."""
    cells = Cells(jnp.arange(rows.example.shape[1])[None], rows.example, rows.branch, rows.position)
    out, back = jax.vjp(lambda *x: attend(*x, cells._replace(window=window), cells, cap=cap), query, key, value)
    return out * (rows.example > 0)[:, :, None, None], *back(direction)


@pytest.mark.parametrize(("window", "cap"), [(9, 1.5), (1, None), (70, 0.5)])
def test_windows_and_caps_by_definition(window, cap):
    """A window counts the tokens of a text: those of other branches, which lie between, count for nothing."""
    rows, inputs = rows_of(0), arrays(0)
    query, key, value, _ = (np.asarray(x, np.float64) for x in inputs)
    key, value = key.repeat(2, axis=2), value.repeat(2, axis=2)
    logits = np.einsum("rlhd,rmhd->rhlm", query, key) / np.sqrt(DIM)
    near_enough = rows.position[:, :, None] - rows.position[:, None, :] < window
    mask = seen(rows.example, rows.branch) & near_enough
    weight = np.exp(cap * np.tanh(logits / cap) if cap else logits) * mask[:, None]
    weight /= np.maximum(weight.sum(axis=-1, keepdims=True), 1e-300)
    out = jax.jit(partial(bounded, attention.dense, cap=cap))(rows, jnp.int32(window), *inputs)[0]
    np.testing.assert_allclose(out, np.einsum("rhlm,rmhd->rlhd", weight, value), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "cap"),
    [("tiles", 1.5), *(pytest.param(*x, marks=pytest.mark.check) for x in (("splash", 1.5), ("cudnn", None)))],
)
def test_the_same_numbers_within_windows_and_under_caps(name, cap):
    programs = [
        compiled(partial(bounded, IMPLEMENTATIONS[x], cap=cap), rows_of(0), jnp.int32(9), *arrays(0))
        for x in (name, "dense")
    ]
    for seed, window in ((0, 9), (1, 1), (2, 70), (3, 200)):
        for a, b in zip(
            *(program(rows_of(seed), jnp.int32(window), *arrays(seed)) for program in programs), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_tiles_beyond_a_window_are_not_visited():
    place = np.arange(5 * tiles.BLOCK, dtype=np.int32)  # one text
    cells = np.stack([x.reshape(1, 5, -1) for x in (0 * place + 1, 0 * place, place)], axis=2)
    counts = [int(tiles.visits(cells, window)[2][0]) for window in (None, jnp.int32(2), jnp.int32(tiles.BLOCK + 2))]
    assert counts == [15, 9, 12]


def test_cudnn_has_no_cap():
    with pytest.raises(ValueError, match="model.attention='cudnn' has no cap.*model.attention='tiles'"):
        jax.eval_shape(partial(bounded, IMPLEMENTATIONS["cudnn"], cap=2.0), rows_of(0), jnp.int32(9), *arrays(0))


@pytest.mark.check
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name):
    exact = pulled("dense")(*packed(1), *arrays(1))
    for a, b in zip(pulled(name, jnp.bfloat16)(*packed(1), *arrays(1, jnp.bfloat16)), exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # 8 bits of mantissa in the operands and in the weights.
        assert np.linalg.norm(a.astype(np.float32) - b) < 0.01 * np.linalg.norm(b)


def test_tiles_where_nobody_sees_anybody_are_not_visited():
    side = tiles.BLOCK
    visits = jax.jit(tiles.visits)
    for seed in range(6):
        cells = np.stack([x.reshape(4, -1, side) for x in packed(seed)], axis=2)
        own, other, count = visits(cells)
        needed = seen(*packed(seed)).reshape(4, LENGTH // side, side, -1, side).any(axis=(2, 4))
        needed |= np.eye(LENGTH // side, dtype=bool)  # padding sees itself
        for row in range(4):
            visited = np.stack([own[row, : count[row]], other[row, : count[row]]], axis=1).tolist()
            assert visited == np.argwhere(needed[row]).tolist()


def test_no_tile_is_left_out_of_unsorted_rows():
    rng = np.random.default_rng(0)
    example, branch = rng.integers(0, 4, (2, 4, LENGTH)).astype(np.int32)
    for a, b in zip(*(pulled(name)(example, branch, *arrays(0)) for name in ("tiles", "dense")), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


def rows_of(seed: int) -> Rows:
    """Packed rows of a small vocabulary; positions restart at the prompt's length."""
    example, branch = packed(seed)
    token = np.random.default_rng(seed).integers(0, 31, example.shape, np.int32)
    position = np.zeros_like(token)
    for r, at in np.argwhere(example > 0).tolist():
        before = (example[r, :at] == example[r, at]) & np.isin(branch[r, :at], (0, branch[r, at]))
        position[r, at] = before.sum()
    return Rows(token, position, example, branch)


CONFIG = {
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.3,
}


def pull_model(params, rows: Rows, **options):
    """A number of all hidden states that are no padding, and its gradient by the parameters."""
    model = models.build(CONFIG, **options)

    def value(params):
        hidden = model.apply(params, rows)[0].astype(jnp.float32)
        return jnp.mean(jnp.sin(hidden @ model.unembed(params)) * (rows.example > 0)[..., None])

    return jax.value_and_grad(value)(params)


@cache
def small():
    """Parameters and rows."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(models.build(CONFIG).init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.3, shapes), rows_of(0)


@cache
def pulled_model(name: str = "tiles", remat: str = "none"):
    """`pull_model`, compiled."""
    return compiled(partial(pull_model, attention=IMPLEMENTATIONS[name], remat=remat), *small())


def near(ours, theirs) -> None:
    """Equal to 1e-5 of each array's largest entry (or absolutely, where that is below one)."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.check) for name in NAMES[1:])])
def test_the_same_gradients_of_parameters(name):
    near(pulled_model(name)(*small()), pulled_model("dense")(*small()))


@pytest.mark.check
@pytest.mark.parametrize("remat", ["layer", "dots", "offload"])
def test_remat_changes_memory_and_no_number(remat):
    again, plain = pulled_model(remat=remat), pulled_model()
    near(again(*small()), plain(*small()))
    assert again.memory_analysis().temp_size_in_bytes < plain.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["tiles", "splash"])
def test_rows_and_heads_over_devices(name):
    devices = grid.make(2, 2, 2)
    attend = partial(IMPLEMENTATIONS[name], grid=devices) if name == "splash" else IMPLEMENTATIONS[name]
    specs = [PartitionSpec(("data", "fsdp"))] * 2 + [PartitionSpec(("data", "fsdp"), None, "tensor")] * 4
    shardings = tuple(NamedSharding(devices.mesh, spec) for spec in specs)
    inputs = jax.device_put((*packed(0), *arrays(0)), shardings)
    ours = compiled(partial(pull, attend), *inputs)
    near(ours(*inputs), pulled("dense")(*packed(0), *arrays(0)))
    # A device works on what it holds; all that it asks of the others is how many tiles they visit.
    text = ours.as_text()
    assert not [word for word in ("all-gather(", "all-to-all(", "collective-permute(") if word in text]


def test_tiles_need_linear_memory_and_a_program_of_one_size():
    def lower(length: int):
        array = jax.ShapeDtypeStruct((1, length, 2, DIM), jnp.float32)
        cells = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return jax.jit(partial(pull, tiles.tiles)).lower(cells, cells, array, array, array, array)

    short, long = lower(1024), lower(4096)
    assert len(short.as_text().splitlines()) == len(long.as_text().splitlines())
    memory, more = (x.compile().memory_analysis().temp_size_in_bytes for x in (short, long))
    assert more < 4.5 * memory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "flash"}, "unknown model.attention 'flash'.*there are tiles, cudnn, splash, dense"),
        (
            {"attention": "cudnn"},
            "model.attention='cudnn' has no float32; set model.dtype='bfloat16', or model.attention='tiles'",
        ),
    ],
)
def test_an_implementation_that_is_not_there_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        models.build(CONFIG, **options)


def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="model.attention='cudnn'.*model.attention='tiles'"):
        jax.eval_shape(partial(pull_model, attention="cudnn", dtype="bfloat16"), *small())


@pytest.mark.check
@pytest.mark.parametrize(
    ("heads", "groups", "dim", "cap"), [(32, 32, 80, None), (32, 8, 128, None), (8, 8, 64, None), (8, 4, 256, 50.0)]
)
def test_splash_attention_compiles_for_a_tpu(heads, groups, dim, cap):
    """With a cap, as Gemma 2 has it, within a window, too."""
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    except RuntimeError as error:
        pytest.skip(f"{error} (pip install 'jax[tpu]', or point TPU_LIBRARY_PATH at its libtpu.so)")
    devices = grid.make(2, 1, 2, devices=list(topology.devices))
    split = NamedSharding(devices.mesh, PartitionSpec("data", None, "tensor"))
    queries, keys = (
        jax.ShapeDtypeStruct((4, 1024, number, dim), jnp.bfloat16, sharding=split) for number in (heads, groups)
    )
    cells = jax.ShapeDtypeStruct((4, 1024), jnp.int32, sharding=NamedSharding(devices.mesh, PartitionSpec("data")))
    attend = partial(kernels.splash, grid=devices)
    if cap:
        window = jax.ShapeDtypeStruct((), jnp.int32, sharding=devices.everywhere)
        program, inputs = partial(bounded, attend, cap=cap), (Rows(*[cells] * 4), window)
    else:
        program, inputs = partial(pull, attend), (cells, cells)
    assert jax.jit(program).lower(*inputs, queries, keys, keys, queries).compile().memory_analysis()
