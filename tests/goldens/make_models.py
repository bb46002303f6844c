"""Logits and gradients of transformers for tiny random models: the witness of slpojax.models.

    python tests/goldens/make_models.py

writes tests/goldens/models/*.json for the cases in `COMMITTED`; it needs torch. Weights and tokens come from an integer
hash of their names, so that nothing large is stored; tests/test_models.py makes them anew from `weights` and `tokens`.
Shares no code with the package.
"""

import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "models"
ROWS, LENGTH = 2, 12

_NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_LLAMA = _NEOX | {"model_type": "llama"}
_MISTRAL = _NEOX | {"model_type": "mistral", "num_key_value_heads": 2}
_QWEN2 = _NEOX | {"model_type": "qwen2", "num_key_value_heads": 2}
_QWEN3 = _NEOX | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 12}
# Without a pad token, as torch gives its row of the embedding no gradient.
_GEMMA2 = _NEOX | {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None}
_GEMMA3 = _GEMMA2 | {"model_type": "gemma3_text"}
_OLMO2 = _NEOX | {"model_type": "olmo2", "num_key_value_heads": 2, "rope_theta": 500000.0, "pad_token_id": None}
_OLMO3 = _OLMO2 | {"model_type": "olmo3", "num_hidden_layers": 4}
_SMOLLM3 = _NEOX | {"model_type": "smollm3", "num_key_value_heads": 2, "pad_token_id": None, "num_hidden_layers": 4}
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

CASES = {
    "neox_default": _NEOX,
    "neox_sequential": _NEOX | {"use_parallel_residual": False, "rotary_pct": 0.5},
    "neox_tied": _NEOX | {"tie_word_embeddings": True},
    "neox_all_rotary": _NEOX | {"rotary_pct": 1.0, "rotary_emb_base": 500},
    "neox_parameters": _NEOX
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5}},
    "neox_no_attention_bias": _NEOX | {"attention_bias": False, "num_hidden_layers": 3},
    "neox_gelu_new": _NEOX | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    "neox_gelu_fast": _NEOX | {"hidden_act": "gelu_fast", "num_attention_heads": 8, "hidden_size": 64},
    "neox_relu": _NEOX | {"hidden_act": "relu", "num_attention_heads": 1},
    "neox_linear": _NEOX | {"rope_scaling": {"type": "linear", "factor": 3.0}, "rotary_pct": 1.0},
    "neox_dynamic": _NEOX | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rotary_pct": 0.5},
    "neox_dynamic_beyond": _NEOX
    | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "rotary_pct": 1.0, "max_position_embeddings": 5},
    "neox_llama3": _NEOX | {"rope_parameters": _LLAMA3 | {"partial_rotary_factor": 1.0}},
    "neox_sequential_tied": _NEOX
    | {"use_parallel_residual": False, "tie_word_embeddings": True, "attention_bias": False, "num_hidden_layers": 3},
    "llama_default": _LLAMA,
    "llama_grouped": _LLAMA | {"num_key_value_heads": 2, "num_hidden_layers": 3},
    "llama_one_key_head": _LLAMA | {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "llama_tied": _LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "llama_attention_bias": _LLAMA | {"attention_bias": True, "num_key_value_heads": 2},
    "llama_mlp_bias": _LLAMA | {"mlp_bias": True, "hidden_act": "gelu"},
    "llama_head_dim": _LLAMA | {"head_dim": 12, "num_key_value_heads": 4, "hidden_size": 64, "num_attention_heads": 8},
    "llama_theta": _LLAMA | {"rope_theta": 500000.0},
    "llama_parameters": _LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 200.0}},
    "llama_linear": _LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.5}, "rope_theta": 1000.0},
    "llama_llama3": _LLAMA | {"rope_scaling": _LLAMA3, "num_key_value_heads": 2, "head_dim": 16},
    "llama_llama3_parameters": _LLAMA | {"rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True},
    "llama_dynamic": _LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama_dynamic_beyond": _LLAMA
    | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, "max_position_embeddings": 5},
    "mistral_no_window": _MISTRAL | {"sliding_window": None},
    "mistral_long_window": _MISTRAL | {"sliding_window": 64, "rope_theta": 1000.0, "head_dim": 16},
    "qwen2": _QWEN2 | {"rope_theta": 1000000.0},
    "qwen2_tied": _QWEN2 | {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 4},
    "qwen3": _QWEN3 | {"rope_theta": 1000000.0, "tie_word_embeddings": True},
    "qwen3_default_head_dim": {k: v for k, v in _QWEN3.items() if k != "head_dim"} | {"num_attention_heads": 2},
    "qwen3_attention_bias": _QWEN3 | {"attention_bias": True, "rms_norm_eps": 1e-3, "num_hidden_layers": 3},
}
CASES |= {
    "mistral_window": _MISTRAL | {"sliding_window": 5},
    "qwen2_window": _QWEN2 | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3_yarn": _QWEN3 | {"rope_scaling": _YARN},
    "qwen3_window": _QWEN3 | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3_window_listed": _QWEN3
    | {
        "use_sliding_window": True,
        "sliding_window": 3,
        "layer_types": [_SLIDING, _FULL, _SLIDING],
        "num_hidden_layers": 3,
    },
    "qwen3_window_off": _QWEN3 | {"use_sliding_window": False, "sliding_window": 4, "tie_word_embeddings": True},
    "qwen3_one_key_head": _QWEN3 | {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "qwen3_all_key_heads": _QWEN3 | {"num_key_value_heads": 4, "hidden_act": "gelu"},
    "qwen3_wide_heads": _QWEN3 | {"head_dim": 16, "hidden_size": 64, "num_attention_heads": 8},
    "qwen3_linear": _QWEN3 | {"rope_scaling": {"type": "linear", "factor": 2.5}, "rope_theta": 1000.0},
    "qwen3_parameters": _QWEN3 | {"rope_parameters": {"rope_type": "default", "rope_theta": 200.0}},
    "llama_yarn": _LLAMA | {"rope_scaling": _YARN | {"beta_fast": 4, "beta_slow": 2, "attention_factor": 1.3}},
    # Caps low enough to matter, and windows shorter than the text.
    "gemma2": _GEMMA2 | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 5},
    "gemma2_default": _GEMMA2,
    "gemma2_no_caps": _GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma2_attention_cap": _GEMMA2 | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": None},
    "gemma2_head_cap": _GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": 2.0},
    "gemma2_query_scale": _GEMMA2 | {"query_pre_attn_scalar": 12, "sliding_window": 3},
    "gemma2_no_window": _GEMMA2 | {"sliding_window": 64, "rope_theta": 500.0},
    "gemma2_all_slide": _GEMMA2 | {"layer_types": [_SLIDING, _SLIDING], "sliding_window": 4},
    "gemma2_first_is_full": _GEMMA2 | {"layer_types": [_FULL, _SLIDING], "sliding_window": 2},
    "gemma2_bias": _GEMMA2 | {"attention_bias": True, "hidden_activation": "silu"},
    "gemma2_untied": _GEMMA2 | {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "gemma2_wide_heads": _GEMMA2 | {"head_dim": 16, "rms_norm_eps": 1e-3, "num_hidden_layers": 3},
    "gemma3": _GEMMA3 | {"sliding_window": 5, "sliding_window_pattern": 2, "num_hidden_layers": 4},
    "gemma3_default": _GEMMA3,
    "gemma3_as_published": _GEMMA3
    | {"rope_local_base_freq": 100.0, "rope_theta": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    | {"sliding_window": 4, "sliding_window_pattern": 3, "num_hidden_layers": 4},
    "gemma3_by_type": _GEMMA3
    | {
        "rope_parameters": {
            _FULL: {"rope_type": "default", "rope_theta": 3000.0},
            _SLIDING: {"rope_type": "default", "rope_theta": 50.0},
        },
        "layer_types": [_SLIDING, _FULL],
        "sliding_window": 6,
    },
    "gemma3_no_window": _GEMMA3 | {"sliding_window": 64, "layer_types": [_SLIDING, _FULL]},
    "gemma3_all_full": _GEMMA3 | {"layer_types": [_FULL, _FULL]},
    "gemma3_head_cap": _GEMMA3 | {"final_logit_softcapping": 3.0},
    "gemma3_query_scale": _GEMMA3 | {"query_pre_attn_scalar": 20},
    "gemma3_bias": _GEMMA3 | {"attention_bias": True, "hidden_activation": "gelu"},
    "gemma3_untied": _GEMMA3 | {"tie_word_embeddings": False},
    "gemma3_one_key_head": _GEMMA3 | {"num_key_value_heads": 1, "sliding_window": 2},
    "gemma3_wide_heads": _GEMMA3 | {"head_dim": 12, "rms_norm_eps": 1e-3},
    "olmo2": _OLMO2,
    "olmo2_default": _NEOX | {"model_type": "olmo2", "pad_token_id": None},
    "olmo2_three": _OLMO2 | {"num_hidden_layers": 3, "rms_norm_eps": 1e-3},
    "olmo2_one_key_head": _OLMO2 | {"num_key_value_heads": 1},
    "olmo2_tied": _OLMO2 | {"tie_word_embeddings": True},
    "olmo2_bias": _OLMO2 | {"attention_bias": True},
    "olmo2_gelu": _OLMO2 | {"hidden_act": "gelu"},
    "olmo2_linear": _OLMO2 | {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "olmo2_llama3": _OLMO2 | {"rope_scaling": _LLAMA3},
    "olmo2_yarn": _OLMO2 | {"rope_scaling": _YARN},
    "olmo2_parameters": _OLMO2 | {"rope_parameters": {"rope_type": "default", "rope_theta": 200.0}},
    "olmo2_wide": _OLMO2 | {"hidden_size": 64, "num_attention_heads": 8},
    "olmo3": _OLMO3 | {"sliding_window": 4, "rope_scaling": _YARN | {"attention_factor": 1.2}},
    "olmo3_default": _OLMO3,
    "olmo3_yarn": _OLMO3 | {"rope_scaling": _YARN},
    "olmo3_window": _OLMO3 | {"sliding_window": 3},
    "olmo3_no_window": _OLMO3 | {"sliding_window": 64, "rope_scaling": _YARN},
    "olmo3_two_layers": _OLMO3 | {"num_hidden_layers": 2, "layer_types": [_FULL, _SLIDING], "sliding_window": 2},
    "olmo3_all_full": _OLMO3 | {"layer_types": [_FULL] * 4, "rope_scaling": _YARN},
    "olmo3_tied": _OLMO3 | {"tie_word_embeddings": True},
    "olmo3_bias": _OLMO3 | {"attention_bias": True},
    "olmo3_one_key_head": _OLMO3 | {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "olmo3_beta": _OLMO3 | {"rope_scaling": _YARN | {"beta_fast": 4.0, "beta_slow": 2.0}},
    "olmo3_by_type": _OLMO3
    | {
        "rope_parameters": {
            _FULL: _YARN | {"rope_theta": 900.0},
            _SLIDING: {"rope_type": "default", "rope_theta": 70.0},
        }
    },
    "smollm3": _SMOLLM3,
    "smollm3_every_second": _SMOLLM3 | {"no_rope_layer_interval": 2},
    "smollm3_listed": _SMOLLM3 | {"no_rope_layers": [0, 1, 1, 0]},
    "smollm3_all_turn": _SMOLLM3 | {"no_rope_layers": [1] * 4},
    "smollm3_none_turns": _SMOLLM3 | {"no_rope_layers": [0] * 4},
    "smollm3_window": _SMOLLM3 | {"use_sliding_window": True, "sliding_window": 3},
    "smollm3_window_listed": _SMOLLM3
    | {"use_sliding_window": True, "sliding_window": 3, "layer_types": [_SLIDING, _FULL] * 2},
    "smollm3_untied": _SMOLLM3 | {"tie_word_embeddings": False},
    "smollm3_bias": _SMOLLM3 | {"attention_bias": True, "mlp_bias": True},
    "smollm3_theta": _SMOLLM3 | {"rope_theta": 5000000.0, "rms_norm_eps": 1e-3},
    "smollm3_yarn": _SMOLLM3 | {"rope_scaling": _YARN},
    "smollm3_one_key_head": _SMOLLM3 | {"num_key_value_heads": 1, "hidden_act": "gelu"},
}
COMMITTED = (
    "neox_default",
    "neox_sequential_tied",
    "neox_llama3",
    "llama_tied",
    "llama_llama3_parameters",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "olmo3",
    "smollm3",
)


def _hash(name: str, size: int) -> np.ndarray:
    """`size` numbers in [-0.5, 0.5) from the name: the finaliser of splitmix64 over a counter."""
    with np.errstate(over="ignore"):
        x = np.arange(1, size + 1, dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << np.uint64(32))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5


def weights(name: str, shape: list[int]) -> np.ndarray:
    """The tensor `name`: around 1 for norms, around 0 for everything else, large enough that all of it matters."""
    values = _hash(name, int(np.prod(shape))).reshape(shape)
    return (1 + 0.5 * values if "norm" in name and name.endswith("weight") else 0.7 * values).astype(np.float32)


def probe(name: str, gradient: np.ndarray) -> float:
    """One number that no two different gradients are likely to share: the product with hashed numbers."""
    return float(_hash(f"probe {name}", gradient.size) @ gradient.astype(np.float64).ravel())


def tokens(name: str, vocabulary: int = 97) -> np.ndarray:
    """Token ids [ROWS, LENGTH]."""
    return ((_hash(f"tokens {name}", ROWS * LENGTH) + 0.5) * vocabulary).astype(np.int64).reshape(ROWS, LENGTH)


def transformers_model(config: dict):
    """The transformers model of a config.json, with hashed weights."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    parsed = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    model = AutoModelForCausalLM.from_config(parsed, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in parameters(model).items():
            parameter.copy_(torch.from_numpy(weights(name, list(parameter.shape))))
    return model


def parameters(model) -> dict:
    """A transformers model's parameters by their names in a checkpoint, where NeoX's head is called embed_out."""
    neox = model.config.model_type == "gpt_neox"
    return {n.replace("lm_head", "embed_out") if neox else n: p for n, p in model.named_parameters()}


def logits_and_gradients(model, ids: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits [ROWS, LENGTH, V], and the gradient of the mean next-token cross-entropy for every parameter."""
    import torch

    ids = torch.from_numpy(ids)
    model.zero_grad()
    logits = model(ids).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)).backward()
    return logits.detach().numpy(), {name: p.grad.numpy() for name, p in parameters(model).items()}


def main() -> None:
    """Write the committed cases."""
    import torch
    import transformers

    FOLDER.mkdir(exist_ok=True)
    for case in COMMITTED:
        logits, gradients = logits_and_gradients(transformers_model(CASES[case]), tokens(case))
        content = {
            "origin": "python tests/goldens/make_models.py",
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "config": CASES[case],
            "logits": [[[float(f"{x:.7g}") for x in token] for token in row] for row in logits.tolist()],
            "gradients": {
                name: {
                    "shape": list(gradient.shape),
                    "norm": float(np.linalg.norm(gradient.astype(np.float64))),
                    "probe": probe(name, gradient),
                }
                for name, gradient in gradients.items()
            },
        }
        (FOLDER / f"{case}.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
