"""Llama, and Mistral and Qwen2 as Llama with their differences: what config.json means, the block, the tensors' names.

Touvron et al.: LLaMA: Open and Efficient Foundation Language Models, 2023, arXiv:2302.13971. Grouped queries: Ainslie
et al., 2023, arXiv:2305.13245.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from slpojax.base import Array, Float
from slpojax.models import options
from slpojax.models.attention import INPUT, Attend, Sight, extend
from slpojax.models.layers import (
    ACTIVATIONS,
    SPLIT_BIAS,
    SPLIT_IN,
    SPLIT_OUT,
    SPLIT_VOCABULARY,
    Linear,
    RMSNorm,
    Tensor,
)
from slpojax.models.rotary import frequencies, rotate


class Variant(NamedTuple):
    """How a model type differs. None: the config's own key decides.

    Attributes:
        architecture: the class that an export names.
        kv_heads: default of `num_key_value_heads`; None means `num_attention_heads`.
        max_position: default of `max_position_embeddings`.
        qkv_bias: whether query, key and value have a bias; None reads `attention_bias`.
        out_bias: the same for the output projection.
        mlp_bias: the same for the MLP; None reads `mlp_bias`.
        window: default of `sliding_window`, where the type has one.
    """

    architecture: str
    kv_heads: int | None
    max_position: int
    qkv_bias: bool | None
    out_bias: bool | None
    mlp_bias: bool | None
    window: int | None


VARIANTS = {
    "llama": Variant("LlamaForCausalLM", None, 2048, None, None, None, None),
    "mistral": Variant("MistralForCausalLM", 8, 131072, False, False, False, 4096),
    "qwen2": Variant("Qwen2ForCausalLM", 32, 32768, True, False, False, None),
}
ARCHITECTURES = {model_type: variant.architecture for model_type, variant in VARIANTS.items()}
NORM = RMSNorm

_LAYER, _FILE = "layers", "model.layers.{}"
TENSORS = (
    Tensor("embed/weight", "model.embed_tokens.weight", SPLIT_VOCABULARY),
    Tensor(f"{_LAYER}/attention_norm/weight", f"{_FILE}.input_layernorm.weight"),
    Tensor(f"{_LAYER}/attention/query/weight", f"{_FILE}.self_attn.q_proj.weight", SPLIT_OUT),
    Tensor(f"{_LAYER}/attention/query/bias", f"{_FILE}.self_attn.q_proj.bias", SPLIT_BIAS),
    Tensor(f"{_LAYER}/attention/key/weight", f"{_FILE}.self_attn.k_proj.weight", SPLIT_OUT),
    Tensor(f"{_LAYER}/attention/key/bias", f"{_FILE}.self_attn.k_proj.bias", SPLIT_BIAS),
    Tensor(f"{_LAYER}/attention/value/weight", f"{_FILE}.self_attn.v_proj.weight", SPLIT_OUT),
    Tensor(f"{_LAYER}/attention/value/bias", f"{_FILE}.self_attn.v_proj.bias", SPLIT_BIAS),
    Tensor(f"{_LAYER}/attention/out/weight", f"{_FILE}.self_attn.o_proj.weight", SPLIT_IN),
    Tensor(f"{_LAYER}/attention/out/bias", f"{_FILE}.self_attn.o_proj.bias"),
    Tensor(f"{_LAYER}/mlp_norm/weight", f"{_FILE}.post_attention_layernorm.weight"),
    Tensor(f"{_LAYER}/mlp/gate/weight", f"{_FILE}.mlp.gate_proj.weight", SPLIT_OUT),
    Tensor(f"{_LAYER}/mlp/gate/bias", f"{_FILE}.mlp.gate_proj.bias", SPLIT_BIAS),
    Tensor(f"{_LAYER}/mlp/up/weight", f"{_FILE}.mlp.up_proj.weight", SPLIT_OUT),
    Tensor(f"{_LAYER}/mlp/up/bias", f"{_FILE}.mlp.up_proj.bias", SPLIT_BIAS),
    Tensor(f"{_LAYER}/mlp/down/weight", f"{_FILE}.mlp.down_proj.weight", SPLIT_IN),
    Tensor(f"{_LAYER}/mlp/down/bias", f"{_FILE}.mlp.down_proj.bias"),
    Tensor("final_norm/weight", "model.norm.weight"),
    Tensor("head/weight", "lm_head.weight", SPLIT_VOCABULARY),
    Tensor("", f"{_FILE}.self_attn.rotary_emb.inv_freq"),
)


@dataclass(frozen=True)
class Config:
    """The architecture, in the words that `layers.Decoder` and `Block` use."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    activation: str
    frequencies: tuple[float, ...]
    eps: float
    scale: float
    tied: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], max_length: int | None = None) -> "Config":
        """Read a config.json.

        Args:
            hf_config: its content.
            max_length: longest sequence of the run, for `rope_type` dynamic and for sliding windows.

        Returns:
            The architecture.

        Raises:
            ValueError: naming each key that is missing or not supported.
        """
        o = dict(hf_config)
        kind = VARIANTS[o["model_type"]]
        vocabulary, width, layers, heads, hidden = options.require(
            o, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
        )
        given = "num_key_value_heads" in o
        kv_heads = options.whole(o, "num_key_value_heads", heads if given else kind.kv_heads or heads) or heads
        head_dim = options.whole(o, "head_dim", width // heads) or 0
        if heads % kv_heads:
            raise ValueError(f"config.json: num_attention_heads={heads} is no multiple of {kv_heads} key-value heads.")
        rope = options.rope(o, {"rope_theta": 10000.0}, {})
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(f"config.json: partial_rotary_factor={rope['partial_rotary_factor']!r}; expected 1.0.")
        max_position = options.whole(o, "max_position_embeddings", None) or kind.max_position
        _refuse_window(o, kind, layers, max_length or max_position)
        attention_bias = options.flag(o, "attention_bias", False) if kind.qkv_bias is None else kind.qkv_bias
        config = cls(
            vocabulary=vocabulary,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            activation=options.choose(o, "hidden_act", "silu", ACTIVATIONS),
            frequencies=frequencies(rope, head_dim=head_dim, max_position=max_position, max_length=max_length),
            eps=options.number(o, "rms_norm_eps", 1e-6),
            scale=options.number(o, "initializer_range", 0.02),
            tied=options.flag(o, "tie_word_embeddings", False),
            qkv_bias=attention_bias,
            out_bias=attention_bias if kind.out_bias is None else kind.out_bias,
            mlp_bias=options.flag(o, "mlp_bias", False) if kind.mlp_bias is None else kind.mlp_bias,
        )
        options.finish(o)
        return config


def _refuse_window(o: dict[str, Any], kind: Variant, layers: int, length: int) -> None:
    """A sliding window is no obstacle where it is off, reaches no layer, or is as long as the longest sequence."""
    window = options.whole(o, "sliding_window", None if "sliding_window" in o else kind.window)
    used = options.flag(o, "use_sliding_window", kind.window is not None)
    first = options.whole(o, "max_window_layers", 0, least=0) or 0
    kinds = o.pop("layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if used and first < layers else "full_attention"] * layers
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list | tuple) or any(kind not in known for kind in kinds):
        others = sorted({str(kind)[:40] for kind in kinds if kind not in known}) if isinstance(kinds, list) else ()
        raise ValueError(f"config.json: layer_types has {', '.join(others[:8]) or 'no list'}; expected full_attention.")
    if len(kinds) != layers:
        raise ValueError(f"config.json: layer_types has {len(kinds)} entries for {layers} layers; expected as many.")
    if used and window is not None and window < length and "sliding_attention" in kinds:
        raise ValueError(
            f"config.json: sliding_window={window} is shorter than the longest sequence, {length} tokens, and sliding "
            "windows are not implemented. Build the model with max_length up to the window (config.data.max_length)."
        )


class Attention(nn.Module):
    """Self-attention with grouped queries."""

    config: Config
    dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"], past: Any, turn: Any, sight: Sight) -> tuple[Array, Any]:
        """[R, L, D] -> [R, L, D], and the keys and values to remember (None without a cache)."""
        c = self.config
        query, key, value = (
            Linear(heads * c.head_dim, c.qkv_bias, c.scale, self.dtype, name=name)(x).reshape(
                *x.shape[:2], heads, c.head_dim
            )
            for name, heads in (("query", c.heads), ("key", c.kv_heads), ("value", c.kv_heads))
        )
        (key, value), new = extend((rotate(key, turn), value), past, sight)
        y = self.attend(rotate(query, turn), key, value, sight.reader, sight.read)
        y = y.reshape(*x.shape[:2], c.heads * c.head_dim)
        return Linear(c.width, c.out_bias, c.scale, self.dtype, name="out")(y), new


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"]) -> Float[Array, "R L D"]:
        """[R, L, D] -> [R, L, D]."""
        c = self.config
        gate = ACTIVATIONS[c.activation](Linear(c.hidden, c.mlp_bias, c.scale, self.dtype, name="gate")(x))
        up = Linear(c.hidden, c.mlp_bias, c.scale, self.dtype, name="up")(x)
        return Linear(c.width, c.mlp_bias, c.scale, self.dtype, name="down")(gate * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: Config
    dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"], past: Any, view: Any) -> tuple[Array, Any]:
        """[R, L, D] -> [R, L, D], and the keys and values to remember (None without a cache)."""
        c, x = self.config, checkpoint_name(x, INPUT)
        with jax.named_scope("attention"):
            normed = RMSNorm(c.eps, name="attention_norm")(x)
            y, new = Attention(c, self.dtype, self.attend, name="attention")(normed, past, *view)
            x = x + y
        with jax.named_scope("mlp"):
            return x + MLP(c, self.dtype, name="mlp")(RMSNorm(c.eps, name="mlp_norm")(x)), new
