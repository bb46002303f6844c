"""The parts both families are made of: linear maps, norms, activations, and the stack of scanned blocks.

Knows mixed precision (float32 masters, cast on use; norms in float32) and the shape of the table between parameters and
checkpoint tensors. Parameters have the shapes of the checkpoint's tensors, so that import and export only stack layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from slpojax.base import ADAPTER, NARROW, Array, Float, Rows
from slpojax.grid import Grid, by_rows, lookup, path_name, scattered
from slpojax.models.attention import INPUT, SAVED, Attend, Cache, Pool, remember, view, within
from slpojax.models.rotary import Rope, Turn, angles
from slpojax.models.rotary import read as read_rope
from slpojax.quantised import Narrow


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


class Kind(NamedTuple):
    """What sets the attention of a layer apart from that of its neighbours.

    Attributes:
        window: how many tokens of its text a token sees, itself included; None for all before it.
        rope: how queries and keys are turned.
    """

    window: int | None
    rope: Rope


def kinds(windows: Sequence[int | None], ropes: Sequence[Rope], length: int) -> tuple[Rope, tuple[Kind, ...]]:
    """Return the rope of all layers, and what sets them apart: () where they turn alike and see all of `length` tokens.

    Args:
        windows: of each layer, as in `Kind`.
        ropes: of each layer.
        length: of the longest text.
    """
    windows = [window if window is not None and window < length else None for window in windows]
    alike = len(set(ropes)) == 1 and not any(windows)
    return ropes[0], () if alike else tuple(map(Kind, windows, ropes))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What `Decoder` and the head know of a model; a family's `Config` has more for its block.

    Attributes:
        vocabulary: words.
        width: of the hidden states.
        layers: how many there are.
        kv_heads: heads of keys and values.
        head_dim: width of a head.
        rope: how queries and keys are turned, in all layers unless `kinds` says otherwise.
        eps: of the norms.
        scale: standard deviation of weights drawn at random.
        tied: whether the unembedding is the embedding.
        kinds: of each layer; () where all see everything before them, and turn alike.
        embedding_scale: what the embedding's rows are multiplied by.
        cap: of the logits, which are cap tanh(logit / cap); None for as they are.
    """

    vocabulary: int
    width: int
    layers: int
    kv_heads: int
    head_dim: int
    rope: Rope
    eps: float
    scale: float
    tied: bool
    kinds: tuple[Kind, ...] = ()
    embedding_scale: float = 1.0
    cap: float | None = None


def kinds_of_types(
    sliding: Sequence[bool],
    window: int | None,
    ropes: Sequence[dict[str, Any]],
    *,
    head_dim: int,
    max_position: int,
    max_length: int | None,
) -> tuple[Rope, tuple[Kind, ...]]:
    """Return what `kinds` does, of layers of two types.

    Args:
        sliding: of each layer, whether it sees a window alone.
        window: of those that do.
        ropes: options, as `rotary.read` takes them, of the layers that see everything and of those that do not; or one,
            where all turn alike.
        head_dim: width of a head.
        max_position: `max_position_embeddings`.
        max_length: longest sequence of the run; None means `max_position`.
    """
    turns = [read_rope(x, head_dim=head_dim, max_position=max_position, max_length=max_length) for x in ropes]
    windows = [window if slides else None for slides in sliding]
    return kinds(windows, [turns[slides and len(turns) > 1] for slides in sliding], max_length or max_position)


# Of weights [out, in]: the outer half of a block splits what it puts out, the inner half what it takes in.
SPLIT_OUT = PartitionSpec(None, "tensor", "fsdp")
SPLIT_IN = PartitionSpec(None, "fsdp", "tensor")
SPLIT_BIAS = PartitionSpec(None, "tensor")
SPLIT_VOCABULARY = PartitionSpec("tensor", "fsdp")
SPLIT_WIDTH = PartitionSpec(None, "fsdp")  # of a score head, [1, D]

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
    """y = x W^T + b, W [out, in]; with an adapter among the parameters y = x W^T + (s x A^T) B^T + b.

    Reference:
        Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen, LoRA:
        Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685, equation 3.
    """

    features: int
    bias: bool
    scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "R L I"]) -> Float[Array, "R L O"]:
        """[R, L, I] -> [R, L, O]."""
        weight = self.param("weight", nn.initializers.normal(self.scale), (self.features, x.shape[-1]))
        if self.has_variable("params", NARROW):
            y = _times_narrow(x, Narrow(weight, self.get_variable("params", NARROW)))
        else:
            y = _times(x, weight.astype(self.dtype))
        if self.has_variable("params", ADAPTER[0]):  # no copy of the weight has the product added to it
            a, b, scale = (self.get_variable("params", name) for name in ADAPTER)
            narrow = jnp.einsum("rli,ki->rlk", x, a.astype(self.dtype))
            y += jnp.einsum("rlk,ok->rlo", (scale * narrow).astype(self.dtype), b.astype(self.dtype))
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)[None, None]
        return y


def _times(x: Float[Array, "R L I"], weight: Float[Array, "O I"]) -> Float[Array, "R L O"]:
    """Return x W^T."""
    # Of one token a row, the weights go first: a processor multiplies them with few rows up to twice as fast.
    first = x.shape[1] == 1 and x.shape[0] <= 64
    y = jnp.einsum("rli,oi->orl" if first else "rli,oi->rlo", x, weight)
    return jnp.moveaxis(y, 0, 2) if first else y


@jax.checkpoint
def _times_narrow(x: Float[Array, "R L I"], weight: Narrow) -> Float[Array, "R L O"]:
    """Return x W^T; the backward pass widens the weight again, so that no wide copy of it outlives a layer."""
    return _times(x, weight.wide().astype(x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + w), drawn as 1 in all."""

    eps: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "R L *heads D"]) -> Float[Array, "R L *heads D"]:
        """[R, L, D] -> [R, L, D], or [R, L, heads, D] -> [R, L, heads, D], each head by itself."""
        weight = self.param("weight", nn.initializers.constant(1 - self.offset), x.shape[-1:])
        weight = weight + self.offset if self.offset else weight
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * weight.reshape((1,) * (x.ndim - 1) + weight.shape)).astype(x.dtype)


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
    """Embedding, N scanned blocks, final norm; a head of its own is only declared, its product is not taken here.

    Attributes:
        block: the family's block, made from (config, dtype, attend) and called with (x, keys and values before,
            (turn, sight)).
        norm: the family's norm, made from eps.
        config: the family's Config, an `Architecture`.
        dtype: the compute dtype.
        attend: (query, key, value, reader, read) -> what the queries read, as `attention.dense`.
        remat: one of `REMATS`.
        grid: over whose devices the rows are split; None for one device.
        specs: the path of a parameter within a layer and how it is split, for each.
        head: rows of the head: words, or the labels of a score head; 0 where it is tied to the embedding.
    """

    block: type[nn.Module]
    norm: Callable[..., nn.Module]
    config: Architecture
    dtype: Any
    attend: Attend
    remat: str
    grid: Grid | None
    specs: tuple[tuple[str, PartitionSpec], ...]
    head: int

    @nn.compact
    def __call__(
        self, rows: Rows, cache: Cache | Pool | None = None, read: Callable[[Array], Any] | None = None
    ) -> tuple[Float[Array, "R L D"], Cache | Pool | None, Any]:
        """Hidden states [R, L, D] after the final norm, the cache with this call's tokens, and what `read` makes of
        each block's output [R, L, D], stacked.
        """
        c = self.config
        with jax.named_scope("embed"):
            table = Table(c.vocabulary, c.width, c.scale, name="embed")()
            x = lookup(table, rows.token, self.dtype, self.grid)
            x = x if c.embedding_scale == 1 else x * jnp.asarray(c.embedding_scale, x.dtype)
        if self.head:
            Table(self.head, c.width, c.scale, name="head")()
        (past, sight), (turn, which, windows) = view(rows, cache), _kinds(rows, c)

        def one(block: nn.Module, x: Array, of_layer: Any, shared: Any) -> tuple[Array, Any]:
            (past, which, window), (turn, sight) = of_layer, shared
            x, new = block(by_rows(x, self.grid), past, (turn._replace(rope=which), within(sight, window)))
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
        x, (new, readings) = stack(block, x, (past, which, windows), (turn, sight))
        with jax.named_scope("final_norm"):
            x = self.norm(c.eps, name="final_norm")(by_rows(x, self.grid))
        return x, None if cache is None else remember(cache, sight, new), readings

    def _scattered(self, params: Any) -> Any:
        """Return a layer's parameters, whose gradients are scattered as they come."""
        specs = dict(self.specs)

        def one(path: tuple[Any, ...], x: Array) -> Array:
            return scattered(x, specs.get(path_name(path).removeprefix("params/"), PartitionSpec()), self.grid)

        return jax.tree_util.tree_map_with_path(one, params)


def _kinds(rows: Rows, config: Architecture) -> tuple[Turn, Array | None, Array | None]:
    """Return the angles of all ropes, and of each layer which is its own and its window; None where all are alike."""
    if not config.kinds:
        return angles(rows.position, config.rope), None, None
    ropes, windows = tuple(dict.fromkeys(kind.rope for kind in config.kinds)), None
    if any(kind.window for kind in config.kinds):
        windows = jnp.array([kind.window or _ALL for kind in config.kinds], jnp.int32)
    if len(ropes) == 1:
        return angles(rows.position, ropes[0]), None, windows
    turn = jax.tree.map(lambda *x: jnp.stack(x), *(angles(rows.position, rope) for rope in ropes))
    return turn, jnp.array([ropes.index(kind.rope) for kind in config.kinds], jnp.int32), windows


_ALL = 2**30  # a window that no text fills
