"""What the tests of reward models share: a folder of one with random weights, its tokenizer, and texts."""

import pathlib

import jax
import numpy as np
from data_tools import make_tokenizer

from slpojax import hf, models

# As ChatML has it, a line break stands behind EOS: a reward is read there.
TEMPLATE = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
SIZES = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 96,
    "eos_token_id": 0,
}
FAMILIES = {
    "llama": SIZES | {"model_type": "llama"},
    "mistral": SIZES | {"model_type": "mistral", "num_key_value_heads": 1},
    "qwen2": SIZES | {"model_type": "qwen2", "num_key_value_heads": 1},
    "qwen3": SIZES | {"model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": True},
    "gpt_neox": SIZES | {"model_type": "gpt_neox"},
    "gemma2": SIZES | {"model_type": "gemma2", "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 9},
    "gemma3_text": SIZES | {"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 9},
    "olmo2": SIZES | {"model_type": "olmo2"},
    "olmo3": SIZES | {"model_type": "olmo3", "sliding_window": 9},
    "smollm3": SIZES | {"model_type": "smollm3", "num_key_value_heads": 1, "no_rope_layer_interval": 2},
}
PROMPTS = [
    "Human: Is it so?\n\nAssistant:",
    [{"role": "user", "content": "Say yes or no."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
]
ANSWERS = [[" Yes.", " No, it is not.", " Yes."], ["Yes!", "", "Well, well"], ["Because.", "Who asks?", "B"]]


def make(folder: pathlib.Path, family: str) -> pathlib.Path:
    """Write a reward model of random weights with a tokenizer of bytes."""
    write(folder, FAMILIES[family] | {"pad_token_id": 259}, scale=0.3)
    make_tokenizer(bos=True, template=TEMPLATE).save_pretrained(folder)
    return folder


def write(folder: pathlib.Path, config: dict, *, scale: float) -> None:
    """Write the weights of a reward model, which are drawn, and its config.json."""
    model, random = models.build(config, head="score"), np.random.default_rng(0)
    leaves, tree = jax.tree_util.tree_flatten_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    params = [
        random.normal(float("norm" in str(path) and "weight" in str(path)), scale, x.shape).astype(np.float32)
        for path, x in leaves
    ]
    hf.save(folder, jax.tree.unflatten(tree, params), model, config)


def texts(prompt, answer: str) -> list[int]:
    """The token ids of an answer to a prompt, by transformers' own calls."""
    tokenizer = make_tokenizer(bos=True, template=TEMPLATE)
    if isinstance(prompt, str):
        return [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
    turns = [*prompt, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
