"""GPT-NeoX (Pythia): what its config.json means, its block, and its tensors' names.

Black et al.: GPT-NeoX-20B: An Open-Source Autoregressive Language Model, 2022, arXiv:2204.06745.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from slpojax.base import Array, Float
from slpojax.models import options
from slpojax.models.attention import INPUT, Attend, Behind, Sight, attend_and_keep
from slpojax.models.layers import (
    ACTIVATIONS,
    SPLIT_BIAS,
    SPLIT_IN,
    SPLIT_OUT,
    SPLIT_VOCABULARY,
    Architecture,
    LayerNorm,
    Linear,
    Tensor,
)
from slpojax.models.rotary import read, rotate

ARCHITECTURES = {"gpt_neox": "GPTNeoXForCausalLM"}
NORM = LayerNorm

_LAYER, _FILE = "layers", "gpt_neox.layers.{}"
TENSORS = (
    Tensor("embed/weight", "gpt_neox.embed_in.weight", SPLIT_VOCABULARY),
    Tensor(f"{_LAYER}/attention_norm/weight", f"{_FILE}.input_layernorm.weight"),
    Tensor(f"{_LAYER}/attention_norm/bias", f"{_FILE}.input_layernorm.bias"),
    Tensor(f"{_LAYER}/attention/qkv/weight", f"{_FILE}.attention.query_key_value.weight", SPLIT_OUT),
    Tensor(f"{_LAYER}/attention/qkv/bias", f"{_FILE}.attention.query_key_value.bias", SPLIT_BIAS),
    Tensor(f"{_LAYER}/attention/out/weight", f"{_FILE}.attention.dense.weight", SPLIT_IN),
    Tensor(f"{_LAYER}/attention/out/bias", f"{_FILE}.attention.dense.bias"),
    Tensor(f"{_LAYER}/mlp_norm/weight", f"{_FILE}.post_attention_layernorm.weight"),
    Tensor(f"{_LAYER}/mlp_norm/bias", f"{_FILE}.post_attention_layernorm.bias"),
    Tensor(f"{_LAYER}/mlp/up/weight", f"{_FILE}.mlp.dense_h_to_4h.weight", SPLIT_OUT),
    Tensor(f"{_LAYER}/mlp/up/bias", f"{_FILE}.mlp.dense_h_to_4h.bias", SPLIT_BIAS),
    Tensor(f"{_LAYER}/mlp/down/weight", f"{_FILE}.mlp.dense_4h_to_h.weight", SPLIT_IN),
    Tensor(f"{_LAYER}/mlp/down/bias", f"{_FILE}.mlp.dense_4h_to_h.bias"),
    Tensor("final_norm/weight", "gpt_neox.final_layer_norm.weight"),
    Tensor("final_norm/bias", "gpt_neox.final_layer_norm.bias"),
    Tensor("head/weight", "embed_out.weight", SPLIT_VOCABULARY),
    Tensor("head/weight", "lm_head.weight", SPLIT_VOCABULARY),
    Tensor("", f"{_FILE}.attention.bias"),
    Tensor("", f"{_FILE}.attention.masked_bias"),
    Tensor("", f"{_FILE}.attention.rotary_emb.inv_freq"),
)


@dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture, in the words that `layers.Decoder` and `Block` use."""

    heads: int
    hidden: int
    activation: str
    bias: bool
    parallel: bool

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], max_length: int | None = None) -> "Config":
        """Read a config.json.

        Args:
            hf_config: its content.
            max_length: longest sequence of the run, for `rope_type` dynamic.

        Returns:
            The architecture.

        Raises:
            ValueError: naming each key that is missing or not supported.
        """
        o = dict(hf_config)
        vocabulary, width, layers, heads, hidden = options.require(
            o, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
        )
        if width % heads:
            raise ValueError(f"config.json: hidden_size={width} is not a multiple of num_attention_heads={heads}.")
        rope = options.rope(
            o,
            {"rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
        )
        max_position = options.whole(o, "max_position_embeddings", 2048) or 2048
        config = cls(
            vocabulary=vocabulary,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            hidden=hidden,
            activation=options.choose(o, "hidden_act", "gelu", ACTIVATIONS),
            rope=read(rope, head_dim=width // heads, max_position=max_position, max_length=max_length),
            eps=options.number(o, "layer_norm_eps", 1e-5),
            scale=options.number(o, "initializer_range", 0.02),
            tied=options.flag(o, "tie_word_embeddings", False),
            bias=options.flag(o, "attention_bias", True),
            parallel=options.flag(o, "use_parallel_residual", True),
        )
        options.finish(o)
        return config


class Attention(nn.Module):
    """Self-attention with one fused projection; its rows are ordered [heads, (query, key, value), head_dim]."""

    config: Config
    dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"], past: Any, turn: Any, sight: Sight | Behind) -> tuple[Array, Any]:
        """[R, L, D] -> [R, L, D], and the keys and values to remember (None without a cache)."""
        c, shape = self.config, x.shape
        qkv = Linear(3 * c.width, c.bias, c.scale, self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(*shape[:2], c.heads, 3, c.head_dim), 3, 0)
        y, new = attend_and_keep(self.attend, rotate(query, turn), rotate(key, turn), value, past, sight)
        return Linear(c.width, c.bias, c.scale, self.dtype, name="out")(y.reshape(shape)), new


class MLP(nn.Module):
    """Up, activation, down."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"]) -> Float[Array, "R L D"]:
        """[R, L, D] -> [R, L, D]."""
        c = self.config
        x = ACTIVATIONS[c.activation](Linear(c.hidden, True, c.scale, self.dtype, name="up")(x))
        return Linear(c.width, True, c.scale, self.dtype, name="down")(x)


class Block(nn.Module):
    """Attention and MLP, both reading x (parallel residual) or one after the other (sequential)."""

    config: Config
    dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"], past: Any, view: Any) -> tuple[Array, Any]:
        """[R, L, D] -> [R, L, D], and the keys and values to remember (None without a cache)."""
        c, x = self.config, checkpoint_name(x, INPUT)
        with jax.named_scope("attention"):
            normed = LayerNorm(c.eps, name="attention_norm")(x)
            y, new = Attention(c, self.dtype, self.attend, name="attention")(normed, past, *view)
        after = x + y
        with jax.named_scope("mlp"):
            normed = LayerNorm(c.eps, name="mlp_norm")(x if c.parallel else after)
            return after + MLP(c, self.dtype, name="mlp")(normed), new
