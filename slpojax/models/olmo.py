"""OLMo 2 and OLMo 3: what their config.json means, and their tensors' names.

Team OLMo: 2 OLMo 2 Furious, 2024, arXiv:2501.00656; Olmo 3, 2025. Norms stand behind attention and MLP alone, and
normalise queries and keys over all heads together. OLMo 3 lets three layers of four see a window alone, and stretches
the rotation of the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slpojax.models import block, layers, options
from slpojax.models.block import Block, Gated
from slpojax.models.layers import ACTIVATIONS, RMSNorm

ARCHITECTURES = {"olmo2": "Olmo2ForCausalLM", "olmo3": "Olmo3ForCausalLM"}
NORM = RMSNorm
TENSORS = block.tensors(
    {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
)
EVERY, WINDOW = 4, 4096  # of OLMo 3, where its config does not say so


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
        sizes = options.sizes(o)
        count = sizes["layers"]
        max_position = options.whole(o, "max_position_embeddings", None) or 2048
        sliding, window = [False] * count, None
        if o["model_type"] == "olmo3":
            sliding = options.sliding(o, count, [(n + 1) % EVERY != 0 for n in range(count)])
            window = options.whole(o, "sliding_window", None if "sliding_window" in o else WINDOW)
            ropes: tuple[dict[str, Any], ...] = options.ropes(o, 5e5, 5e5)
        else:
            ropes = (options.rope(o, {"rope_theta": 1e4}, {}),)
            options.refuse_partial(ropes[0])
        rope_of_all, of_layers = layers.kinds_of_types(
            *(sliding, window, ropes), head_dim=sizes["head_dim"], max_position=max_position, max_length=max_length
        )
        bias = options.flag(o, "attention_bias", False)
        config = cls(
            **sizes,
            activation=options.choose(o, "hidden_act", "silu", ACTIVATIONS),
            rope=rope_of_all,
            kinds=of_layers,
            eps=options.number(o, "rms_norm_eps", 1e-5),
            scale=options.number(o, "initializer_range", 0.02),
            tied=options.flag(o, "tie_word_embeddings", False),
            norms=block.BEHIND,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm=block.OF_ALL,
        )
        options.finish(o)
        return config


__all__ = ["ARCHITECTURES", "NORM", "TENSORS", "Block", "Config"]
