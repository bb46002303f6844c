"""config.json as the public checkpoints of the families have it, and how many parameters their publishers count.

Written from what is published: the keys are those of the uploads, bookkeeping and all; sizes and counts are those of
model cards and papers.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A checkpoint: the content of its config.json, and its number of parameters."""

    config: dict
    parameters: int


def _neox(width: int, layers: int, heads: int, **more) -> dict:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.24.0",
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    } | more


def _llama(width: int, hidden: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 4096,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": vocabulary,
    } | more


def _rope(factor: float) -> dict:
    return {
        "rope_scaling": {
            "factor": factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "max_position_embeddings": 131072,
        "eos_token_id": [128001, 128008, 128009],
    }


_LLAMA_3 = {"bos_token_id": 128000, "eos_token_id": 128001, "max_position_embeddings": 8192, "rope_theta": 500000.0}
_SMOL = {"bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 2048, "rope_theta": 10000.0}
_SMOL_2 = _SMOL | {
    "initializer_range": 0.041666666666666664,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "rope_interleaved": False,
    "rope_theta": 100000,
}
_SMALL_LLAMA_3 = (2048, 8192, 16, 32, 8, 128256)
_OF_1B = _LLAMA_3 | _rope(32.0) | {"head_dim": 64, "tie_word_embeddings": True}


def _mistral(**more) -> dict:
    return {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0",
        "use_cache": True,
        "vocab_size": 32000,
    } | more


def _qwen(width: int, hidden: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more) -> dict:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 131072,
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    } | more


def _qwen3(width: int, hidden: int, layers: int, heads: int, **more) -> dict:
    config = _qwen(width, hidden, layers, heads, 8, 151936, max_position_embeddings=40960, sliding_window=None)
    return (
        config
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "eos_token_id": 151645,
            "head_dim": 128,
            "model_type": "qwen3",
            "rope_scaling": None,
            "transformers_version": "4.51.0",
        }
        | more
    )


def _gemma(width: int, hidden: int, layers: int, heads: int, kv_heads: int, **more) -> dict:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 107],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    } | more


_GEMMA_2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "transformers_version": "4.42.4",
    "vocab_size": 256000,
}
_GEMMA_3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "transformers_version": "4.50.0.dev0",
    "vocab_size": 262144,
}


def _olmo(width: int, hidden: int, layers: int, heads: int, **more) -> dict:
    return {
        "architectures": ["Olmo2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": 100257,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 4096,
        "model_type": "olmo2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "pad_token_id": 100277,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.47.0",
        "use_cache": True,
        "vocab_size": 100352,
    } | more


_OLMO_3 = {
    "architectures": ["Olmo3ForCausalLM"],
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
    "max_position_embeddings": 65536,
    "model_type": "olmo3",
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "sliding_window": 4096,
    "vocab_size": 100278,
}
_SMOLLM_3 = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 128012,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pad_token_id": 128012,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0.dev0",
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
_2_5 = {"use_mrope": False, "max_position_embeddings": 32768, "sliding_window": 32768}
_TIED = {"tie_word_embeddings": True}
_HALF_B, _1_5_B, _7_B = (
    (896, 4864, 24, 14, 2, 151936),
    (1536, 8960, 28, 12, 2, 151936),
    (3584, 18944, 28, 28, 4, 152064),
)
_14_B, _32_B = (5120, 13824, 48, 40, 8, 152064), (5120, 27648, 64, 40, 8, 152064)
_R1 = {"use_mrope": False, "rope_theta": 10000, "sliding_window": 4096}

PUBLISHED = {
    # EleutherAI
    "pythia-14m": Published(
        _neox(128, 6, 4, attention_bias=True, attention_dropout=0.0, classifier_dropout=0.1, hidden_dropout=0.0)
        | {"rope_scaling": None},
        14_067_712,
    ),
    "pythia-31m": Published(_neox(256, 6, 8), 30_494_720),
    "pythia-70m": Published(_neox(512, 6, 8), 70_426_624),
    "pythia-160m": Published(_neox(768, 12, 12), 162_322_944),
    "pythia-410m": Published(_neox(1024, 24, 16), 405_334_016),
    "pythia-1b": Published(_neox(2048, 16, 8), 1_011_781_632),
    "pythia-1.4b": Published(_neox(2048, 24, 16), 1_414_647_808),
    "pythia-2.8b": Published(_neox(2560, 32, 32), 2_775_208_960),
    "pythia-6.9b": Published(_neox(4096, 32, 32, vocab_size=50432), 6_857_302_016),
    "pythia-12b": Published(_neox(5120, 36, 40, vocab_size=50688), 11_846_072_320),
    "gpt-neox-20b": Published(
        _neox(6144, 44, 64, vocab_size=50432, hidden_act="gelu_fast")
        | {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "attention_dropout": 0.0},
        20_554_567_680,
    ),
    # Meta
    "Llama-2-7b-hf": Published(_llama(4096, 11008, 32, 32, 32, 32000, torch_dtype="float16"), 6_738_415_616),
    "Llama-2-13b-hf": Published(_llama(5120, 13824, 40, 40, 40, 32000, torch_dtype="float16"), 13_015_864_320),
    "Llama-2-70b-hf": Published(_llama(8192, 28672, 80, 64, 8, 32000, torch_dtype="float16"), 68_976_648_192),
    "Meta-Llama-3-8B": Published(_llama(4096, 14336, 32, 32, 8, 128256, **_LLAMA_3), 8_030_261_248),
    "Meta-Llama-3-70B": Published(_llama(8192, 28672, 80, 64, 8, 128256, **_LLAMA_3), 70_553_706_496),
    "Llama-3.1-8B-Instruct": Published(_llama(4096, 14336, 32, 32, 8, 128256, **_LLAMA_3 | _rope(8.0)), 8_030_261_248),
    "Llama-3.1-405B": Published(_llama(16384, 53248, 126, 128, 8, 128256, **_LLAMA_3 | _rope(8.0)), 405_853_388_800),
    "Llama-3.2-1B-Instruct": Published(_llama(*_SMALL_LLAMA_3, **_OF_1B), 1_235_814_400),
    "Llama-3.2-3B": Published(_llama(3072, 8192, 28, 24, 8, 128256, **_OF_1B | {"head_dim": 128}), 3_212_749_824),
    "Llama-3.3-70B-Instruct": Published(
        _llama(8192, 28672, 80, 64, 8, 128256, **_LLAMA_3 | _rope(8.0)), 70_553_706_496
    ),
    # Mistral AI, and what was made from it
    "Mistral-7B-v0.1": Published(_mistral(), 7_241_732_096),
    "Mistral-7B-Instruct-v0.2": Published(
        _mistral(rope_theta=1000000.0, sliding_window=None, attention_dropout=0.0), 7_241_732_096
    ),
    "Mistral-7B-Instruct-v0.3": Published(
        _mistral(rope_theta=1000000.0, sliding_window=None, attention_dropout=0.0, vocab_size=32768), 7_248_023_552
    ),
    "zephyr-7b-beta": Published(_mistral(pad_token_id=2, _name_or_path="dpo-7b"), 7_241_732_096),
    # Qwen
    "Qwen2-0.5B": Published(_qwen(*_HALF_B, **_TIED), 494_032_768),
    "Qwen2-1.5B": Published(_qwen(*_1_5_B, **_TIED), 1_543_714_304),
    "Qwen2-7B": Published(_qwen(*_7_B), 7_615_616_512),
    "Qwen2-72B": Published(_qwen(8192, 29568, 80, 64, 8, 152064, rms_norm_eps=1e-05), 72_706_203_648),
    "Qwen2.5-0.5B": Published(_qwen(*_HALF_B, **_TIED | _2_5), 494_032_768),
    "Qwen2.5-1.5B": Published(_qwen(*_1_5_B, use_mrope=False, **_TIED), 1_543_714_304),
    "Qwen2.5-3B-Instruct": Published(
        _qwen(2048, 11008, 36, 16, 2, 151936, max_window_layers=70, sliding_window=32768, **_TIED), 3_085_938_688
    ),
    "Qwen2.5-7B": Published(_qwen(*_7_B, use_mrope=False), 7_615_616_512),
    "Qwen2.5-14B": Published(_qwen(*_14_B, rms_norm_eps=1e-05), 14_770_033_664),
    "Qwen2.5-32B": Published(_qwen(*_32_B, rms_norm_eps=1e-05), 32_763_876_352),
    "Qwen3-0.6B": Published(_qwen3(1024, 3072, 28, 16, tie_word_embeddings=True), 596_049_920),
    "Qwen3-8B": Published(_qwen3(4096, 12288, 36, 32), 8_190_735_360),
    # DeepSeek
    "DeepSeek-R1-Distill-Qwen-1.5B": Published(_qwen(*_1_5_B, max_window_layers=21, **_R1), 1_777_088_000),
    "DeepSeek-R1-Distill-Qwen-7B": Published(_qwen(*_7_B, **_R1), 7_615_616_512),
    "DeepSeek-R1-Distill-Qwen-14B": Published(_qwen(*_14_B, rms_norm_eps=1e-05), 14_770_033_664),
    "DeepSeek-R1-Distill-Qwen-32B": Published(_qwen(*_32_B, rms_norm_eps=1e-05), 32_763_876_352),
    "DeepSeek-R1-Distill-Llama-8B": Published(
        _llama(4096, 14336, 32, 32, 8, 128256, **_LLAMA_3 | _rope(8.0) | {"eos_token_id": 128001}), 8_030_261_248
    ),
    # Hugging Face, TinyLlama
    "SmolLM-135M": Published(_llama(576, 1536, 30, 9, 3, 49152, **_SMOL | _TIED), 134_515_008),
    "SmolLM-360M": Published(_llama(960, 2560, 32, 15, 5, 49152, **_SMOL | _TIED), 361_821_120),
    "SmolLM2-135M": Published(_llama(576, 1536, 30, 9, 3, 49152, **_SMOL_2 | _TIED), 134_515_008),
    "SmolLM2-360M-Instruct": Published(
        _llama(960, 2560, 32, 15, 5, 49152, **_SMOL_2 | _TIED)
        | {"pad_token_id": 2, "transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"q4f16": "float16"}}},
        361_821_120,
    ),
    "SmolLM2-1.7B": Published(
        _llama(2048, 8192, 24, 32, 32, 49152, **_SMOL_2 | _TIED | {"rope_theta": 130000}), 1_711_376_384
    ),
    "TinyLlama-1.1B-Chat-v1.0": Published(
        _llama(2048, 5632, 22, 32, 4, 32000, max_position_embeddings=2048), 1_100_048_384
    ),
    # unsloth's uploads of the same
    "unsloth/Llama-3.2-1B-Instruct": Published(
        _llama(*_SMALL_LLAMA_3, **_OF_1B | {"unsloth_fixed": True, "pad_token_id": 128004}), 1_235_814_400
    ),
    "unsloth/Qwen2.5-0.5B-Instruct": Published(
        _qwen(*_HALF_B, **_TIED, unsloth_fixed=True, pad_token_id=151665, unsloth_version="2024.9"), 494_032_768
    ),
    "unsloth/mistral-7b-v0.3": Published(
        _mistral(rope_theta=1000000.0, sliding_window=None, vocab_size=32768, unsloth_fixed=True, pad_token_id=770),
        7_248_023_552,
    ),
    "gemma-2-2b-it": Published(_gemma(2304, 9216, 26, 8, 4, **_GEMMA_2), 2_614_341_888),
    "gemma-2-9b-it": Published(_gemma(3584, 14336, 42, 16, 8, **_GEMMA_2), 9_241_705_984),
    "gemma-3-1b-it": Published(_gemma(1152, 6912, 26, 4, 1, **_GEMMA_3), 999_885_952),
    "OLMo-2-0425-1B": Published(_olmo(2048, 8192, 16, 16), 1_484_916_736),
    "Olmo-3-1025-7B": Published(_olmo(4096, 11008, 32, 32, **_OLMO_3), 7_298_011_136),
    "SmolLM3-3B": Published(_SMOLLM_3, 3_075_098_624),
    # as transformers 5 writes them
    "Qwen2.5-1.5B, saved anew": Published(
        {key: value for key, value in _qwen(*_1_5_B, use_mrope=False, **_TIED).items() if key != "rope_theta"}
        | {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "dtype": "bfloat16"}
        | {"layer_types": ["full_attention"] * 28, "sliding_window": None, "pad_token_id": None},
        1_543_714_304,
    ),
}
