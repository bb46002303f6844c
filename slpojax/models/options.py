"""Reading a Hugging Face config.json strictly: every key is used, known to change nothing here, or an error.

Knows which keys are bookkeeping; knows no family.
"""

from collections.abc import Iterable
from typing import Any

from slpojax import named

# Bookkeeping of transformers and of the hub; none of it changes the numbers of a forward pass without dropout.
_HARMLESS = frozenset(
    """
    add_cross_attention architectures auto_map bos_token_id chunk_size_feed_forward classifier_dropout
    cross_attention_hidden_size decoder_start_token_id dtype eos_token_id finetuning_task id2label is_decoder
    is_encoder_decoder label2id model_type name_or_path output_attentions output_hidden_states output_scores
    pad_token_id prefix pretraining_tp problem_type return_dict sep_token_id task_specific_params tf_legacy_loss
    tie_encoder_decoder tokenizer_class torch_dtype torchscript transformers_version unsloth_version use_bfloat16
    use_cache use_return_dict
    """.split()
)


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
    bad = [f"{key}={value!r}" for key, value in zip(keys, values, strict=True) if type(value) is not int or value < 1]
    if bad:
        raise ValueError(f"config.json: {', '.join(bad)}; expected positive whole numbers. Complete the config.")
    return values


def choose(options: dict[str, Any], key: str, default: str, allowed: Iterable[str]) -> str:
    """Take a name out of `options`; raise ValueError with the names that are supported if it is not one of them."""
    value = options.pop(key, None) or default
    if value not in (allowed := sorted(allowed)):
        raise named.unknown(f"{key} of config.json", str(value), allowed)
    return value


def finish(options: dict[str, Any]) -> None:
    """Check that nothing is left in `options` that could change the model.

    Args:
        options: what is left of the config after a family took what it knows.

    Raises:
        ValueError: naming each key that was not understood.
    """
    for key in [key for key in options if key.endswith("_dropout") and key not in _HARMLESS]:
        if value := options.pop(key):
            raise ValueError(f"config.json: {key}={value!r}, but the model has no dropout. Set it to 0.")
    unknown = {
        key: value
        for key, value in options.items()
        if value is not None and key not in _HARMLESS and not key.startswith("_")
    }
    if unknown:
        raise ValueError(
            f"config.json: not understood: {', '.join(f'{k}={v!r}' for k, v in unknown.items())}. Ignoring an option "
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
        ValueError: where two top-level names of one thing differ, or the parameters differ between layer types.
    """
    top = dict(defaults)
    given: dict[str, float] = {}
    for old, name in [*names.items(), *((name, name) for name in ("rope_theta", "partial_rotary_factor"))]:
        if (value := options.pop(old, None)) is not None:
            if given.setdefault(name, value) != value:
                raise ValueError(f"config.json: {old}={value!r} contradicts {name}={given[name]!r}; keep one of them.")
    inner, scaling = options.pop("rope_parameters", None), options.pop("rope_scaling", None)
    inner = scaling or inner or {}
    if any(isinstance(value, dict) for value in inner.values()):
        raise ValueError("config.json: rope_parameters that differ between layer types are not supported.")
    return top | given | {key: value for key, value in inner.items() if value is not None}
