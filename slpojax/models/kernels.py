"""Attention by the kernels of others: cuDNN's on a GPU, splash attention on a TPU.

Knows what each kernel demands; asks no device what it is. Both see packed rows as a mask of [R, L, L], one for all
heads: a bfloat16 bias (and its gradient) for cuDNN, bytes for splash attention. Both leave out the upper triangle;
splash attention leaves out every tile in which nobody sees anybody.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from slpojax.base import Array, Float
from slpojax.grid import Grid, on_each
from slpojax.models.attention import SAVED, SHORT, Cells, dense, pad_length, sees, stands

LANES = 128  # a TPU's lanes: splash attention wants rows, and tiles, of whole multiples
TILE = 512  # the largest side of a tile of splash attention


def cudnn(
    query: Float[Array, "R L H d"],
    key: Float[Array, "R M G d"],
    value: Float[Array, "R M G d"],
    reader: Cells,
    read: Cells,
    *,
    cap: float | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "R L H d"]:
    """Attend as `attention.dense` does, with `jax.nn.dot_product_attention`.

    cuDNN's flash attention wants bfloat16, a head_dim that is a multiple of 8 and at most 256 (128 before Hopper), and
    an even length, to which rows are padded.

    Args:
        query: [R, L, H, d].
        key: [R, M, G, d]; G divides H.
        value: [R, M, G, d].
        reader: the cells of the queries, [R, L].
        read: the cells of the keys, [R, M].
        cap: of the logits, which cuDNN has not.
        implementation: cudnn, or xla, which runs anywhere and takes any dtype.

    Raises:
        ValueError: cuDNN is not there or does not take these arrays, or a cap.
    """
    length = query.shape[1]
    if cap is not None:
        raise ValueError(
            f"model.attention='cudnn' has no cap of attention logits, and config.json has one ({cap:g}); set "
            "model.attention='tiles'."
        )
    if length != key.shape[1] or length <= SHORT:
        return dense(query, key, value, reader, read)
    query, key, value, *of_cells = pad_length(2, query, key, value, *stands(reader))
    cells = Cells(jnp.arange(query.shape[1])[None], *of_cells)._replace(window=reader.window)
    try:
        out = jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=sees(cells, cells)[:, None],
            is_causal=True,  # says no more than the mask, but lets cuDNN leave the upper triangle out
            implementation=implementation,
        )
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"model.attention='cudnn': cuDNN does not take {query.dtype} queries of {query.shape} here ({error}). "
            "Choose model.dtype='bfloat16' on an NVIDIA GPU, or model.attention='tiles'."
        ) from error
    return out[:, :length]


def splash(
    query: Float[Array, "R L H d"],
    key: Float[Array, "R M G d"],
    value: Float[Array, "R M G d"],
    reader: Cells,
    read: Cells,
    *,
    cap: float | None = None,
    grid: Grid | None = None,
    tile: int = TILE,
    interpret: bool = False,
) -> Float[Array, "R L H d"]:
    """Attend as `attention.dense` does, with splash attention.

    Args:
        query: [R, L, H, d]; scaled in float32 and rounded once more, if it is bfloat16.
        key: [R, M, G, d]; G divides H.
        value: [R, M, G, d].
        reader: the cells of the queries, [R, L].
        read: the cells of the keys, [R, M].
        cap: of the logits, see `numerics.soften`; None for as they are.
        grid: over whose devices rows and heads are split, which the compiler cannot do for a Pallas kernel; None for
            one device.
        tile: the largest side of a tile, a multiple of 128.
        interpret: run the kernel's program on any device, slowly.
    """
    length, heads, dim = query.shape[1:]
    if length != key.shape[1] or length <= SHORT:
        return dense(query, key, value, reader, read, cap=cap)
    query = (query.astype(jnp.float32) * dim**-0.5).astype(query.dtype)
    arrays = pad_length(LANES, query, key, value, *stands(reader))
    window = () if reader.window is None else (reader.window,)
    attend: Callable[..., Array] = partial(_kernel, cap=cap, most=tile, interpret=interpret)
    if grid is not None and grid.mesh.size > 1:
        # Heads are split as the weights that make them are; where they cannot be, every device has them all.
        tensor = "tensor" if key.shape[2] % grid.mesh.shape["tensor"] == 0 else None
        rows, states = grid.rows, NamedSharding(grid.mesh, PartitionSpec(*grid.rows.spec, None, tensor))
        places = (states, states, states, *[rows] * (len(arrays) - 3), *[grid.everywhere] * len(window))
        attend = on_each(attend, grid, places, states)
    return attend(*arrays, *window)[:, :length]


def _kernel(
    query: Array, key: Array, value: Array, *of_cells: Array, cap: float | None, most: int, interpret: bool
) -> Array:
    # Pallas and its TPU compiler take a while to import, and nobody else needs them.
    from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, make_splash_mha

    length = query.shape[1]
    tile = next(side for side in range(most, 0, -LANES) if length % side == 0)
    # One kernel makes the gradients of queries, keys and values: the weights are made again once, not twice.
    sizes = BlockSizes(block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile, use_fused_bwd_kernel=True)
    cells = Cells(jnp.arange(length)[None], *of_cells)

    def row(mask: Array, *heads_first: Array) -> Array:
        kernel = make_splash_mha(
            mask[None],
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=SAVED,
            attn_logits_soft_cap=cap,
            interpret=interpret,
        )
        # It has made an array of this flag and asks it in Python; under a scan that array has no value yet.
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
        return kernel(*heads_first)

    out = jax.vmap(row)(sees(cells, cells), *(jnp.swapaxes(x, 1, 2) for x in (query, key, value)))
    return jnp.swapaxes(out, 1, 2)
