"""Gemma 2 and the text models of Gemma 3: what their config.json means, and their tensors' names.

Gemma Team: Gemma 2: Improving Open Language Models at a Practical Size, 2024, arXiv:2408.00118; Gemma 3 Technical
Report, 2025, arXiv:2503.19786. Both have norms before and behind attention and MLP, whose weights are 1 + w, scale the
embedding by the square root of the width, and let most layers see a window alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from slpojax.models import block, layers, options
from slpojax.models.block import Block, Gated
from slpojax.models.layers import ACTIVATIONS, RMSNorm


class Variant(NamedTuple):
    """How a model type differs.

    Attributes:
        architecture: the class that an export names.
        max_position: default of `max_position_embeddings`.
        every: by default one layer in so many sees everything before it, the others a window.
        theta: default of `rope_theta`.
        local_key: the key of the same for the layers with a window.
        cap: default of `final_logit_softcapping`.
        attention_cap: default of `attn_logit_softcapping`.
        qk_norm: as in `block.Gated`.
    """

    architecture: str
    max_position: int
    every: int
    theta: float
    local_key: str
    cap: float | None
    attention_cap: float | None
    qk_norm: str


VARIANTS = {
    "gemma2": Variant("Gemma2ForCausalLM", 8192, 2, 1e4, "rope_theta", 30.0, 50.0, ""),
    "gemma3_text": Variant("Gemma3ForCausalLM", 131072, 6, 1e6, "rope_local_base_freq", None, None, block.OF_HEAD),
}
ARCHITECTURES = {model_type: variant.architecture for model_type, variant in VARIANTS.items()}
SCORING = {"gemma3_text": "Gemma3TextForSequenceClassification"}  # the other is of texts with images
OFFSET = 1.0
NORM = partial(RMSNorm, offset=OFFSET)
TENSORS = block.tensors(
    {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }
)


@dataclass(frozen=True, kw_only=True)
class Config(Gated):
    """The architecture, in the words that `layers.Decoder` and `Block` use."""

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], max_length: int | None = None) -> "Config":
        """Read a config.json.

        Args:
            hf_config: its content.
            max_length: longest sequence of the run; windows that it does not fill are left out.

        Returns:
            The architecture.

        Raises:
            ValueError: naming each key that is missing or not supported.
        """
        o = dict(hf_config)
        kind = VARIANTS[o["model_type"]]
        sizes = options.sizes(o, kv_heads=4, head_dim=256)
        max_position = options.whole(o, "max_position_embeddings", None) or kind.max_position
        every = options.whole(o, "sliding_window_pattern", kind.every) or kind.every
        sliding = options.sliding(o, sizes["layers"], [(n + 1) % every != 0 for n in range(sizes["layers"])])
        window = options.whole(o, "sliding_window", None if "sliding_window" in o else 4096)
        if kind.local_key == "rope_theta":
            rope = options.rope(o, {"rope_theta": kind.theta}, {})
            options.refuse_partial(rope)
            ropes: tuple[dict[str, Any], ...] = (rope,)
        else:
            ropes = options.ropes(o, kind.theta, 1e4, kind.local_key)
        rope_of_all, of_layers = layers.kinds_of_types(
            *(sliding, window, ropes), head_dim=sizes["head_dim"], max_position=max_position, max_length=max_length
        )
        attention_cap = options.perhaps(o, "attn_logit_softcapping", kind.attention_cap)
        if attention_cap is not None and kind.attention_cap is None:  # transformers has the key, and does not read it
            raise ValueError(
                f"config.json: attn_logit_softcapping={attention_cap:g}, but {o['model_type']} has no cap of attention "
                "logits. Set it to null."
            )
        bias = options.flag(o, "attention_bias", False)
        query = options.number(o, "query_pre_attn_scalar", 256.0)
        hidden = options.choose(o, "hidden_activation", "gelu_pytorch_tanh", ACTIVATIONS)
        o.pop("hidden_act", None)  # of older files; transformers reads the other
        config = cls(
            **sizes,
            activation=hidden,
            rope=rope_of_all,
            kinds=of_layers,
            eps=options.number(o, "rms_norm_eps", 1e-6),
            scale=options.number(o, "initializer_range", 0.02),
            tied=options.flag(o, "tie_word_embeddings", True),
            embedding_scale=sizes["width"] ** 0.5,
            cap=options.perhaps(o, "final_logit_softcapping", kind.cap),
            norms=(*block.BEFORE, *block.BEHIND),
            qkv_bias=bias,
            out_bias=bias,
            qk_norm=kind.qk_norm,
            norm_offset=OFFSET,
            query_scale=(sizes["head_dim"] / query) ** 0.5,
            attention_cap=attention_cap,
        )
        options.finish(o)
        return config


__all__ = ["ARCHITECTURES", "NORM", "TENSORS", "Block", "Config"]
