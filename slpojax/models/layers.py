"""The parts both families are made of: linear maps, norms, activations, and the stack of scanned blocks.

Knows mixed precision (float32 masters, cast on use; norms in float32) and the shape of the table between parameters and
checkpoint tensors. Parameters have the shapes of the checkpoint's tensors, so that import and export only stack layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from slpojax.base import Array, Float, Rows
from slpojax.grid import Grid, by_rows, lookup, path_name, scattered
from slpojax.models.attention import INPUT, SAVED, Attend, Cache, remember, view
from slpojax.models.rotary import angles


class Tensor(NamedTuple):
    """A line of the table that ties a parameter to its sharding and to a checkpoint's tensor.

    A parameter may stand in several lines: a file must hold at least one of the names, all that it holds must be equal,
    and an export writes the first.

    Attributes:
        param: '/'-joined path of the parameter; "" for a buffer of old checkpoints that is skipped on import.
        file: the tensor's name; `{}` stands for the layer's number where the parameter stacks the layers.
        spec: how the parameter is split over the mesh axes fsdp and tensor.
    """

    param: str
    file: str
    spec: PartitionSpec = PartitionSpec()


# Of weights [out, in]: the outer half of a block splits what it puts out, the inner half what it takes in.
SPLIT_OUT = PartitionSpec(None, "tensor", "fsdp")
SPLIT_IN = PartitionSpec(None, "fsdp", "tensor")
SPLIT_BIAS = PartitionSpec(None, "tensor")
SPLIT_VOCABULARY = PartitionSpec("tensor", "fsdp")

_gelu_tanh = partial(jax.nn.gelu, approximate=True)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_python": partial(jax.nn.gelu, approximate=False),
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Linear(nn.Module):
    """y = x W^T + b, W [out, in]."""

    features: int
    bias: bool
    scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "R L I"]) -> Float[Array, "R L O"]:
        """[R, L, I] -> [R, L, O]."""
        weight = self.param("weight", nn.initializers.normal(self.scale), (self.features, x.shape[-1]))
        y = jnp.einsum("rli,oi->rlo", x, weight.astype(self.dtype))
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)[None, None]
        return y


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * w."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"]) -> Float[Array, "R L D"]:
        """[R, L, D] -> [R, L, D]."""
        weight = self.param("weight", nn.initializers.ones, x.shape[-1:])
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * weight[None, None]).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * w + b."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"]) -> Float[Array, "R L D"]:
        """[R, L, D] -> [R, L, D]."""
        weight = self.param("weight", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = x.astype(jnp.float32)
        y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * weight[None, None] + bias[None, None]).astype(x.dtype)


class Table(nn.Module):
    """A [vocabulary, width] array: the embedding, or the untied head."""

    vocabulary: int
    width: int
    scale: float

    @nn.compact
    def __call__(self) -> Float[Array, "V D"]:
        """The float32 array [V, D]."""
        return self.param("weight", nn.initializers.normal(self.scale), (self.vocabulary, self.width))


def _again(policy: Callable[..., Any] | None = None) -> Callable[[type[nn.Module]], type[nn.Module]]:
    return partial(nn.remat, prevent_cse=False, policy=policy)


_policies = jax.checkpoint_policies

# What the backward pass finds of each block, and so what it computes again.
REMATS: dict[str, Callable[[type[nn.Module]], type[nn.Module]]] = {
    # Everything it wants.
    "none": lambda block: block,
    # The products with weights and what attention keeps of its forward pass: norms, activations and rotations again.
    "dots": _again(
        _policies.save_from_both_policies(
            _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(SAVED)
        )
    ),
    # The block's input: the whole block again, a third more work in all.
    "layer": _again(),
    # The same, in the memory of the host.
    "offload": _again(
        _policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    ),
}


class Decoder(nn.Module):
    """Embedding, N scanned blocks, final norm; an untied head is only declared, its product is not taken here.

    Attributes:
        block: the family's block, made from (config, dtype, attend) and called with (x, keys and values before,
            (turn, sight)).
        norm: the family's norm, made from eps.
        config: the family's Config.
        dtype: the compute dtype.
        attend: (query, key, value, reader, read) -> what the queries read, as `attention.dense`.
        remat: one of `REMATS`.
        grid: over whose devices the rows are split; None for one device.
        specs: the path of a parameter within a layer and how it is split, for each.
    """

    block: type[nn.Module]
    norm: type[nn.Module]
    config: Any
    dtype: Any
    attend: Attend
    remat: str
    grid: Grid | None
    specs: tuple[tuple[str, PartitionSpec], ...]

    @nn.compact
    def __call__(
        self, rows: Rows, cache: Cache | None = None, read: Callable[[Array], Any] | None = None
    ) -> tuple[Float[Array, "R L D"], Cache | None, Any]:
        """Hidden states [R, L, D] after the final norm, the cache with this call's tokens, and what `read` makes of
        each block's output [R, L, D], stacked.
        """
        c = self.config
        with jax.named_scope("embed"):
            table = Table(c.vocabulary, c.width, c.scale, name="embed")()
            x = lookup(table, rows.token, self.dtype, self.grid)
        if not c.tied:
            Table(c.vocabulary, c.width, c.scale, name="head")()
        sight, turn = view(rows, cache), angles(rows.position, c.frequencies)

        def one(block: nn.Module, x: Array, past: Any, shared: Any) -> tuple[Array, Any]:
            x, new = block(by_rows(x, self.grid), past, shared)
            return x, (new, read and read(x))

        stack = nn.scan(
            one,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.layers,
        )
        layer = nn.map_variables(self.block, "params", self._scattered, init=self.is_initializing())
        block = REMATS[self.remat](layer)(c, self.dtype, self.attend, name="layers")
        x, (new, readings) = stack(block, x, None if cache is None else (cache.key, cache.value), (turn, sight))
        with jax.named_scope("final_norm"):
            x = self.norm(c.eps, name="final_norm")(by_rows(x, self.grid))
        return x, None if cache is None else remember(cache, sight, *new), readings

    def _scattered(self, params: Any) -> Any:
        """Return a layer's parameters, whose gradients are scattered as they come."""
        specs = dict(self.specs)

        def one(path: tuple[Any, ...], x: Array) -> Array:
            return scattered(x, specs.get(path_name(path).removeprefix("params/"), PartitionSpec()), self.grid)

        return jax.tree_util.tree_map_with_path(one, params)
