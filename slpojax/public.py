"""The shapes of public checkpoints, as their config.json has them, by the names that they are known by.

Knows numbers alone, and imports nothing that takes time: a script that starts others reads it, too.
"""

from collections.abc import Mapping
from typing import Any


def neox(width: int, layers: int, heads: int, vocabulary: int = 50304) -> dict[str, Any]:
    """Return the config.json of a GPT-NeoX as the Pythias are."""
    return {
        "model_type": "gpt_neox",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "rotary_pct": 0.25,
        "max_position_embeddings": 2048,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    }


def _llama(width: int, hidden: int, layers: int, heads: int, **changed: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "rope_theta": 5e5,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    } | changed


def _qwen3(width: int, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    of_qwen = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "rope_theta": 1e6}
    more = {"tie_word_embeddings": width < 4096, "max_position_embeddings": 40960}
    return _llama(width, hidden, layers, heads) | of_qwen | more


# As the public checkpoints have them, what changes no size left out.
SHAPES: Mapping[str, dict[str, Any]] = {
    "pythia-160m": neox(768, 12, 12),
    "pythia-1b": neox(2048, 16, 8),
    "pythia-2.8b": neox(2560, 32, 32),
    "pythia-6.9b": neox(4096, 32, 32, 50432),
    "pythia-12b": neox(5120, 36, 40, 50688),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, head_dim=128, tie_word_embeddings=True),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32),
    "gemma-2-2b": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
    },
}
