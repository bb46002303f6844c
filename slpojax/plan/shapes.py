"""The shape of the model that is planned for: the content of its config.json, from a folder or by name.

Knows folders, worlds and public shapes; loads no weight and asks no network.
"""

from collections.abc import Mapping
from typing import Any

from slpojax import adapters, folders, hf, wording, worlds
from slpojax.settings import Config


def _neox(width: int, layers: int, heads: int, vocabulary: int = 50304) -> dict[str, Any]:
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
    "pythia-160m": _neox(768, 12, 12),
    "pythia-1b": _neox(2048, 16, 8),
    "pythia-2.8b": _neox(2560, 32, 32),
    "pythia-6.9b": _neox(4096, 32, 32, 50432),
    "pythia-12b": _neox(5120, 36, 40, 50688),
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


def find(config: Config) -> tuple[dict[str, Any], str]:
    """Return the content of config.json of the model that a configuration trains, and where it is from.

    It is that of `model.path` where this is on the machine, or in the hub's cache; else the shape that `plan.model`
    names, or the public one that `model.path` names. A world brings its own.

    Args:
        config: `world`, `model.path`, `plan.model`.

    Raises:
        ValueError: none of them is there; names the key that helps.
    """
    path, asked = config.model.path, config.plan.model
    if config.world and not path:
        name, world = worlds.find(config.world)
        return dict(world.model), f"of the world {name}"
    if folder := folders.here(path):
        also = folders.SCORING if config.model.head == "score" else ""
        model = adapters.base_of(folder, "model.path") if adapters.is_one(folder) else folder
        return hf.read_config(model, also=also), f"config.json of model.path={path}"
    if asked in SHAPES:
        return dict(SHAPES[asked]), f"plan.model={asked}, as model.path={path} is not on this machine"
    if asked:
        if folder := folders.here(asked):
            return hf.read_config(folder), f"config.json of plan.model={asked}"
        raise wording.unknown("plan.model", asked, SHAPES, also="a folder with a config.json")
    name = path.rpartition("/")[2].lower()
    # The longest that it begins with: "Llama-3.1-8B-Instruct" is a llama-3.1-8b.
    known = [shape for shape in SHAPES if name == shape or name.startswith(f"{shape}-")]
    if known:
        return dict(SHAPES[max(known, key=len)]), f"the public shape of {path}, which is not on this machine"
    raise ValueError(
        f"config.model.path={path!r} is not on this machine, and plan.model names no shape; set --config.plan.model to "
        f"a folder with a config.json, or to one of {', '.join(SHAPES)}"
    )
