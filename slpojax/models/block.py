"""The block of Llama and of what came after it: grouped queries, a gated MLP, and norms before them, behind, or both.

Knows no config.json; a family says which norms its block has and what a checkpoint calls them.

Touvron et al.: LLaMA: Open and Efficient Foundation Language Models, 2023, arXiv:2302.13971. Grouped queries: Ainslie
et al., 2023, arXiv:2305.13245. Norms of queries and keys: Qwen Team, Qwen3 Technical Report, 2025, arXiv:2505.09388.
Norms behind: Team OLMo, 2 OLMo 2 Furious, 2024, arXiv:2501.00656. Both, and caps: Gemma Team, Gemma 2: Improving Open
Language Models at a Practical Size, 2024, arXiv:2408.00118.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from slpojax.base import Array, Float
from slpojax.models.attention import INPUT, Attend, Behind, Sight, attend_and_keep
from slpojax.models.layers import (
    ACTIVATIONS,
    SPLIT_BIAS,
    SPLIT_IN,
    SPLIT_OUT,
    SPLIT_VOCABULARY,
    Architecture,
    Linear,
    RMSNorm,
    Tensor,
)
from slpojax.models.rotary import rotate

# The norms of what attention and MLP read, and of what they add.
BEFORE, BEHIND = ("attention_norm", "mlp_norm"), ("attention_post_norm", "mlp_post_norm")
# Norms of queries and keys: of each head by itself, or of all heads together.
OF_HEAD, OF_ALL = "head", "all"


def tensors(norms: Mapping[str, str]) -> tuple[Tensor, ...]:
    """Return the table of a family with this block.

    Args:
        norms: of those in `BEFORE` and `BEHIND` that its block has, what a checkpoint calls them.
    """
    layer, file = "layers", "model.layers.{}"
    return (
        Tensor("embed/weight", "model.embed_tokens.weight", SPLIT_VOCABULARY),
        *(Tensor(f"{layer}/{ours}/weight", f"{file}.{theirs}.weight") for ours, theirs in norms.items()),
        Tensor(f"{layer}/attention/query/weight", f"{file}.self_attn.q_proj.weight", SPLIT_OUT),
        Tensor(f"{layer}/attention/query/bias", f"{file}.self_attn.q_proj.bias", SPLIT_BIAS),
        Tensor(f"{layer}/attention/key/weight", f"{file}.self_attn.k_proj.weight", SPLIT_OUT),
        Tensor(f"{layer}/attention/key/bias", f"{file}.self_attn.k_proj.bias", SPLIT_BIAS),
        Tensor(f"{layer}/attention/query_norm/weight", f"{file}.self_attn.q_norm.weight"),
        Tensor(f"{layer}/attention/key_norm/weight", f"{file}.self_attn.k_norm.weight"),
        Tensor(f"{layer}/attention/value/weight", f"{file}.self_attn.v_proj.weight", SPLIT_OUT),
        Tensor(f"{layer}/attention/value/bias", f"{file}.self_attn.v_proj.bias", SPLIT_BIAS),
        Tensor(f"{layer}/attention/out/weight", f"{file}.self_attn.o_proj.weight", SPLIT_IN),
        Tensor(f"{layer}/attention/out/bias", f"{file}.self_attn.o_proj.bias"),
        Tensor(f"{layer}/mlp/gate/weight", f"{file}.mlp.gate_proj.weight", SPLIT_OUT),
        Tensor(f"{layer}/mlp/gate/bias", f"{file}.mlp.gate_proj.bias", SPLIT_BIAS),
        Tensor(f"{layer}/mlp/up/weight", f"{file}.mlp.up_proj.weight", SPLIT_OUT),
        Tensor(f"{layer}/mlp/up/bias", f"{file}.mlp.up_proj.bias", SPLIT_BIAS),
        Tensor(f"{layer}/mlp/down/weight", f"{file}.mlp.down_proj.weight", SPLIT_IN),
        Tensor(f"{layer}/mlp/down/bias", f"{file}.mlp.down_proj.bias"),
        Tensor("final_norm/weight", "model.norm.weight"),
        Tensor("head/weight", "lm_head.weight", SPLIT_VOCABULARY),
        Tensor("", f"{file}.self_attn.rotary_emb.inv_freq"),
    )


@dataclass(frozen=True, kw_only=True)
class Gated(Architecture):
    """An architecture of this block.

    Attributes:
        heads: of the queries; the heads of keys and values divide them.
        hidden: width of the MLP.
        activation: of its gate, one of `layers.ACTIVATIONS`.
        norms: which norms the block has, of `BEFORE` and `BEHIND`.
        qkv_bias: whether query, key and value have a bias.
        out_bias: the same for the output projection.
        mlp_bias: the same for the MLP.
        qk_norm: `OF_HEAD` or `OF_ALL`: queries and keys are normalised before they are turned; "" for not.
        norm_offset: what is added to the weights of all norms.
        query_scale: what queries are multiplied by, beside 1 / sqrt(head_dim).
        attention_cap: of the attention's logits, as `cap` of the model's.
    """

    heads: int
    hidden: int
    activation: str
    norms: tuple[str, ...] = BEFORE
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = ""
    norm_offset: float = 0.0
    query_scale: float = 1.0
    attention_cap: float | None = None


class Attention(nn.Module):
    """Self-attention with grouped queries."""

    config: Gated
    dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"], past: Any, turn: Any, sight: Sight | Behind) -> tuple[Array, Any]:
        """[R, L, D] -> [R, L, D], and the keys and values to remember (None without a cache)."""
        c = self.config

        def part(name: str, heads: int) -> Array:
            y = Linear(heads * c.head_dim, c.qkv_bias, c.scale, self.dtype, name=name)(x)
            normed = bool(c.qk_norm) and name != "value"
            if normed and c.qk_norm == OF_ALL:
                y = RMSNorm(c.eps, c.norm_offset, name=f"{name}_norm")(y)
            y = y.reshape(*x.shape[:2], heads, c.head_dim)
            return RMSNorm(c.eps, c.norm_offset, name=f"{name}_norm")(y) if normed and c.qk_norm == OF_HEAD else y

        query, key, value = part("query", c.heads), part("key", c.kv_heads), part("value", c.kv_heads)
        if c.query_scale != 1:
            query = query * jnp.asarray(c.query_scale, query.dtype)
        query, key = rotate(query, turn), rotate(key, turn)
        y, new = attend_and_keep(self.attend, query, key, value, past, sight, cap=c.attention_cap)
        y = y.reshape(*x.shape[:2], c.heads * c.head_dim)
        return Linear(c.width, c.out_bias, c.scale, self.dtype, name="out")(y), new


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    config: Gated
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"]) -> Float[Array, "R L D"]:
        """[R, L, D] -> [R, L, D]."""
        c = self.config
        gate = ACTIVATIONS[c.activation](Linear(c.hidden, c.mlp_bias, c.scale, self.dtype, name="gate")(x))
        up = Linear(c.hidden, c.mlp_bias, c.scale, self.dtype, name="up")(x)
        return Linear(c.width, c.mlp_bias, c.scale, self.dtype, name="down")(gate * up)


class Block(nn.Module):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))), with those of the norms that there are."""

    config: Gated
    dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"], past: Any, view: Any) -> tuple[Array, Any]:
        """[R, L, D] -> [R, L, D], and the keys and values to remember (None without a cache)."""
        c, x = self.config, checkpoint_name(x, INPUT)

        def normed(x: Array, name: str) -> Array:
            return RMSNorm(c.eps, c.norm_offset, name=name)(x) if name in c.norms else x

        with jax.named_scope("attention"):
            read = normed(x, "attention_norm")
            y, new = Attention(c, self.dtype, self.attend, name="attention")(read, past, *view)
            x = x + normed(y, "attention_post_norm")
        with jax.named_scope("mlp"):
            y = MLP(c, self.dtype, name="mlp")(normed(x, "mlp_norm"))
            return x + normed(y, "mlp_post_norm"), new
