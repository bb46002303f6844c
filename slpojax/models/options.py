"""Reading a Hugging Face config.json strictly: every key is used, known to change nothing here, or an error.

Knows which keys are bookkeeping; knows no family.
"""

import math
from collections.abc import Iterable
from typing import Any

from slpojax import named

# Bookkeeping of transformers, of the hub and of generation; none of it changes the numbers of a forward pass.
_HARMLESS = frozenset(
    """
    add_cross_attention architectures auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    classifier_dropout cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label is_decoder is_encoder_decoder label2id
    length_penalty max_length max_sequence_length min_length model_type name_or_path neftune_noise_alpha
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config transformers_version
    typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
    """.split()
)
# Keys that public checkpoints of the families hold -> the value with which they change nothing. Another is refused.
_HARMLESS_AS: dict[str, Any] = {
    "attention_bias": False,  # of Mistral and Qwen2, whose biases are settled by the type
    "is_llama_config": True,  # SmolLM, and what else nanotron writes
    "mlp_bias": False,
    "pruned_heads": {},
    "qk_layer_norms": False,  # SmolLM2, as taken out of SmolVLM
    "rope_interleaved": False,  # nanotron: pairs lie half a head apart, as in transformers
    "use_mrope": False,  # Qwen2.5, R1-Distill-Qwen: positions of several axes, for images
}
# Sizes beyond these are slips, and would be found out by running out of memory.
_MOST = {"num_hidden_layers": 10_000}
_MOST_ELSE = 10_000_000


def require(options: dict[str, Any], *keys: str) -> list[int]:
    """Take whole numbers out of `options`.

    Args:
        options: what is left of the config; the keys are removed.
        *keys: names of the keys.

    Returns:
        Their values, in order.

    Raises:
        ValueError: naming each key that is absent or not a positive whole number.
    """
    values = [options.pop(key, None) for key in keys]
    bad = [
        f"{key}={_short(value)}"
        for key, value in zip(keys, values, strict=True)
        if type(value) is not int or not 1 <= value <= _MOST.get(key, _MOST_ELSE)
    ]
    if bad:
        raise ValueError(
            f"config.json: {', '.join(bad)}; expected positive whole numbers, of a size that there is. Complete the "
            "config."
        )
    return values


def whole(options: dict[str, Any], key: str, default: int | None, *, least: int = 1) -> int | None:
    """Take a whole number out of `options`, or `default` where it is absent or null."""
    value = options.pop(key, None)
    if value is not None and (type(value) is not int or not least <= value <= _MOST_ELSE):
        raise ValueError(
            f"config.json: {key}={_short(value)}; expected a whole number from {least}. Correct the config."
        )
    return default if value is None else value


def number(options: dict[str, Any], key: str, default: float, *, above: float = 0.0) -> float:
    """Take a finite number above a bound out of `options`; ValueError where it is something else."""
    value = options.pop(key, default)
    if not _is_number(value) or value <= above:
        raise ValueError(
            f"config.json: {key}={_short(value)}; expected a finite number above {above:g}. Correct the config."
        )
    return float(value)


def flag(options: dict[str, Any], key: str, default: bool) -> bool:
    """Take true or false out of `options`; ValueError where it is something else."""
    value = options.pop(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"config.json: {key}={_short(value)}; expected true or false. Correct the config.")
    return value


def choose(options: dict[str, Any], key: str, default: str, allowed: Iterable[str]) -> str:
    """Take a name out of `options`; raise ValueError with the names that are supported if it is not one of them."""
    value = options.pop(key, None)
    value = default if value is None else value
    if value not in (allowed := sorted(allowed)):
        raise named.unknown(f"{key} of config.json", value if isinstance(value, str) else _short(value), allowed)
    return value


def finish(options: dict[str, Any]) -> None:
    """Check that nothing is left in `options` that could change the model.

    Args:
        options: what is left of the config after a family took what it knows.

    Raises:
        ValueError: naming each key that was not understood.
    """
    for key in [key for key in options if "dropout" in key and key not in _HARMLESS]:
        if value := options.pop(key):
            raise ValueError(f"config.json: {_name(key)}={_short(value)}, but the model has no dropout. Set it to 0.")
    unknown = {
        key: value
        for key, value in options.items()
        if value is not None
        and key not in _HARMLESS
        and not key.startswith("_")
        and not (key in _HARMLESS_AS and type(value) is type(_HARMLESS_AS[key]) and value == _HARMLESS_AS[key])
    }
    if unknown:
        shown = named.few([f"{_name(k)}={_short(v)}" for k, v in unknown.items()])
        raise ValueError(
            f"config.json: not understood: {shown}. Ignoring an option "
            "could change the model silently; remove the key from config.json if it has no effect."
        )


def rope(options: dict[str, Any], defaults: dict[str, float], names: dict[str, str]) -> dict[str, Any]:
    """Merge every place where a config may speak of its rotary embedding.

    Args:
        options: what is left of the config; `rope_parameters`, `rope_scaling` and all top-level names are removed.
        defaults: canonical name -> the family's default.
        names: older top-level name -> canonical name. The canonical names may stand at top level too.

    Returns:
        One dict as in `rope_parameters`: `rope_scaling` goes before `rope_parameters`, both before the top level.

    Raises:
        ValueError: where two top-level names of one thing differ, the parameters differ between layer types, or what
            should be a number or an object is none.
    """
    given: dict[str, float] = {}
    for old, name in [*names.items(), *((name, name) for name in ("rope_theta", "partial_rotary_factor"))]:
        if options.get(old) is None:
            options.pop(old, None)
            continue
        value = number(options, old, 0.0)
        if given.setdefault(name, value) != value:
            raise ValueError(f"config.json: {old}={value!r} contradicts {name}={given[name]!r}; keep one of them.")
    inner: dict[str, Any] = {}
    for place in ("rope_parameters", "rope_scaling"):
        said = options.pop(place, None)
        if said is not None and not isinstance(said, dict):
            raise ValueError(f"config.json: {place}={_short(said)}; expected an object or null. Correct the config.")
        inner = said or inner
    if any(isinstance(value, dict) for value in inner.values()):
        raise ValueError("config.json: rope_parameters that differ between layer types are not supported.")
    return dict(defaults) | given | {key: value for key, value in inner.items() if value is not None}


def _is_number(value: Any) -> bool:
    """Whether a value is a number that is finite as a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:
        return False


def _name(key: str) -> str:
    return key if len(key) <= 80 else f"{key[:80]}..."


def _short(value: Any) -> str:
    """A value as an error shows it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 120 else f"{text[:120]}... ({type(value).__name__})"
