"""Llama, and Mistral, Qwen2, Qwen3 and SmolLM3 as Llama with their differences: what config.json means.

Touvron et al.: LLaMA: Open and Efficient Foundation Language Models, 2023, arXiv:2302.13971. Layers without rotation:
Yang, Venkitesh, Talupuru, Lin, Cairuz, Blunsom, Locatelli: Rope to Nope and Back Again, 2025, arXiv:2501.18795.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from slpojax import wording
from slpojax.models import block, layers, options, rotary
from slpojax.models.block import Block, Gated
from slpojax.models.layers import ACTIVATIONS, RMSNorm


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
        head_dim: default of `head_dim`; None means the width divided by the heads.
        qk_norm: as in `block.Gated`.
        theta: default of `rope_theta`.
        tied: default of `tie_word_embeddings`.
        unturned: default of `no_rope_layer_interval`, where the type leaves the rotation out in every so many layers.
    """

    architecture: str
    kv_heads: int | None
    max_position: int
    qkv_bias: bool | None
    out_bias: bool | None
    mlp_bias: bool | None
    window: int | None
    head_dim: int | None = None
    qk_norm: str = ""
    theta: float = 10000.0
    tied: bool = False
    unturned: int | None = None


VARIANTS = {
    "llama": Variant("LlamaForCausalLM", None, 2048, None, None, None, None),
    "mistral": Variant("MistralForCausalLM", 8, 131072, False, False, False, 4096),
    "qwen2": Variant("Qwen2ForCausalLM", 32, 32768, True, False, False, None),
    "qwen3": Variant("Qwen3ForCausalLM", 32, 32768, None, None, False, None, head_dim=128, qk_norm=block.OF_HEAD),
    "smollm3": Variant("SmolLM3ForCausalLM", 4, 32768, None, None, None, None, theta=2000000.0, tied=True, unturned=4),
}
ARCHITECTURES = {model_type: variant.architecture for model_type, variant in VARIANTS.items()}
NORM = RMSNorm
TENSORS = block.tensors({"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"})


@dataclass(frozen=True, kw_only=True)
class Config(Gated):
    """The architecture, in the words that `layers.Decoder` and `Block` use."""

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], max_length: int | None = None) -> "Config":
        """Read a config.json.

        Args:
            hf_config: its content.
            max_length: longest sequence of the run, for `rope_type` dynamic; windows that it does not fill are left
                out.

        Returns:
            The architecture.

        Raises:
            ValueError: naming each key that is missing or not supported.
        """
        o = dict(hf_config)
        kind = VARIANTS[o["model_type"]]
        sizes = options.sizes(o, kv_heads=kind.kv_heads, head_dim=kind.head_dim)
        rope = options.rope(o, {"rope_theta": kind.theta}, {})
        options.refuse_partial(rope)
        max_position = options.whole(o, "max_position_embeddings", None) or kind.max_position
        turn = rotary.read(rope, head_dim=sizes["head_dim"], max_position=max_position, max_length=max_length)
        unturned = _unturned(o, kind, sizes["layers"])
        ropes = [rotary.none(sizes["head_dim"]) if is_unturned else turn for is_unturned in unturned]
        rope_of_all, of_layers = layers.kinds(_windows(o, kind, unturned), ropes, max_length or max_position)
        attention_bias = options.flag(o, "attention_bias", False) if kind.qkv_bias is None else kind.qkv_bias
        config = cls(
            **sizes,
            activation=options.choose(o, "hidden_act", "silu", ACTIVATIONS),
            rope=rope_of_all,
            kinds=of_layers,
            eps=options.number(o, "rms_norm_eps", 1e-6),
            scale=options.number(o, "initializer_range", 0.02),
            tied=options.flag(o, "tie_word_embeddings", kind.tied),
            qkv_bias=attention_bias,
            out_bias=attention_bias if kind.out_bias is None else kind.out_bias,
            mlp_bias=options.flag(o, "mlp_bias", False) if kind.mlp_bias is None else kind.mlp_bias,
            qk_norm=kind.qk_norm,
        )
        options.finish(o)
        return config


def _windows(o: dict[str, Any], kind: Variant, unturned: list[bool]) -> list[int | None]:
    """Return the window of each layer."""
    window = options.whole(o, "sliding_window", None if "sliding_window" in o else kind.window)
    used = options.flag(o, "use_sliding_window", kind.window is not None)
    first = options.whole(o, "max_window_layers", 0, least=0) or 0
    # Where some layers do not turn, those are the ones with a window.
    by_default = unturned if kind.unturned else [layer >= first for layer in range(len(unturned))]
    sliding = options.sliding(o, len(unturned), by_default)
    return [window if used and slides else None for slides in sliding]


def _unturned(o: dict[str, Any], kind: Variant, count: int) -> list[bool]:
    """Return whether each of the layers leaves the rotation out."""
    if kind.unturned is None:
        return [False] * count
    every = options.whole(o, "no_rope_layer_interval", kind.unturned) or kind.unturned
    said = o.pop("no_rope_layers", None)
    if said is None:
        return [(layer + 1) % every == 0 for layer in range(count)]
    if not isinstance(said, list) or len(said) < count or any(type(x) is not int or x not in (0, 1) for x in said):
        raise ValueError(
            f"config.json: no_rope_layers={wording.shown(said)}; expected a list with 1 for each of {count} layers "
            "that turns queries and keys, and 0 for each that does not."
        )
    return [x == 0 for x in said[:count]]


__all__ = ["ARCHITECTURES", "NORM", "TENSORS", "Block", "Config"]
