"""Reading a Hugging Face config.json strictly: every key is used, known to change nothing here, or an error.

Knows which keys are bookkeeping; knows no family.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from slpojax import wording

# Bookkeeping of transformers, of the hub and of generation; none of it changes the numbers of a forward pass.
_HARMLESS = frozenset(
    """
    add_cross_attention architectures auto_map bad_words_ids begin_suppress_tokens bos_token_id cache_implementation
    chunk_size_feed_forward
    classifier_dropout cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label is_decoder is_encoder_decoder label2id
    length_penalty max_length max_sequence_length min_length model_type name_or_path neftune_noise_alpha
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
    use_return_dict
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
    "use_bidirectional_attention": False,  # Gemma 3, which embeddings are made with
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
        f"{key}={wording.shown(value)}"
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
            f"config.json: {key}={wording.shown(value)}; expected a whole number from {least}. Correct the config."
        )
    return default if value is None else value


def number(options: dict[str, Any], key: str, default: float, *, above: float = 0.0) -> float:
    """Take a finite number above a bound out of `options`; ValueError where it is something else."""
    value = options.pop(key, default)
    if not _is_number(value) or value <= above:
        raise ValueError(
            f"config.json: {key}={wording.shown(value)}; expected a finite number above {above:g}. Correct the config."
        )
    return float(value)


def perhaps(options: dict[str, Any], key: str, default: float | None) -> float | None:
    """Take a number above 0 out of `options`, `default` where it is absent, or None where it is null."""
    value = options.pop(key, default)
    return None if value is None else number({key: value}, key, 0.0)


def flag(options: dict[str, Any], key: str, default: bool) -> bool:
    """Take true or false out of `options`; ValueError where it is something else."""
    value = options.pop(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"config.json: {key}={wording.shown(value)}; expected true or false. Correct the config.")
    return value


def choose(options: dict[str, Any], key: str, default: str, allowed: Iterable[str]) -> str:
    """Take a name out of `options`; raise ValueError with the names that are supported if it is not one of them."""
    value = options.pop(key, None)
    value = default if value is None else value
    if value not in (allowed := sorted(allowed)):
        raise wording.unknown(
            f"{key} of config.json", value if isinstance(value, str) else wording.shown(value), allowed
        )
    return value


def sizes(options: dict[str, Any], *, kv_heads: int | None = None, head_dim: int | None = None) -> dict[str, Any]:
    """Take the sizes of a model with grouped queries and a gated MLP out of `options`, by their names in `block.Gated`.

    Args:
        options: what is left of the config; the keys are removed.
        kv_heads: default of `num_key_value_heads`; None means `num_attention_heads`.
        head_dim: default of `head_dim`; None means the width divided by the heads.

    Raises:
        ValueError: naming each key that is missing or no size.
    """
    vocabulary, width, layers, heads, hidden = require(
        options, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
    )
    given = "num_key_value_heads" in options
    of_keys = whole(options, "num_key_value_heads", heads if given else kv_heads or heads) or heads
    if heads % of_keys:
        raise ValueError(f"config.json: num_attention_heads={heads} is no multiple of {of_keys} key-value heads.")
    return {
        "vocabulary": vocabulary,
        "width": width,
        "layers": layers,
        "heads": heads,
        "hidden": hidden,
        "kv_heads": of_keys,
        "head_dim": whole(options, "head_dim", head_dim or width // heads) or 0,
    }


def sliding(options: dict[str, Any], layers: int, default: Sequence[bool]) -> list[bool]:
    """Take out of `options` which layers see a window alone, by `layer_types`, or `default` where they are absent."""
    found = options.pop("layer_types", None)
    if found is None:
        return list(default)
    known = ("sliding_attention", "full_attention")
    if not isinstance(found, list | tuple) or any(kind not in known for kind in found):
        others = sorted({str(kind) for kind in found if kind not in known}) if isinstance(found, list) else ()
        said = wording.few(others) or "no list"
        raise ValueError(f"config.json: layer_types has {said}; expected a list of {' and '.join(known)}.")
    if len(found) != layers:
        raise ValueError(f"config.json: layer_types has {len(found)} entries for {layers} layers; expected as many.")
    return [kind == known[0] for kind in found]


def finish(options: dict[str, Any]) -> None:
    """Check that nothing is left in `options` that could change the model.

    Args:
        options: what is left of the config after a family took what it knows.

    Raises:
        ValueError: naming each key that was not understood.
    """
    for key in [key for key in options if "dropout" in key and key not in _HARMLESS]:
        if value := options.pop(key):
            raise ValueError(
                f"config.json: {wording.few([key])}={wording.shown(value)}, but the model has no dropout. Set it to 0."
            )
    unknown = {
        key: value
        for key, value in options.items()
        if value is not None
        and key not in _HARMLESS
        and not key.startswith("_")
        and not (key in _HARMLESS_AS and type(value) is type(_HARMLESS_AS[key]) and value == _HARMLESS_AS[key])
    }
    if unknown:
        shown = wording.few([f"{k}={wording.shown(v)}" for k, v in unknown.items()])
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
            both = f"{old}={wording.shown(value)} contradicts {name}={wording.shown(given[name])}"
            raise ValueError(f"config.json: {both}; keep one of them.")
    inner: dict[str, Any] = {}
    for place in ("rope_parameters", "rope_scaling"):
        said = options.pop(place, None)
        if said is not None and not isinstance(said, dict):
            raise ValueError(
                f"config.json: {place}={wording.shown(said)}; expected an object or null. Correct the config."
            )
        inner = said or inner
    if any(isinstance(value, dict) for value in inner.values()):
        raise ValueError("config.json: rope_parameters that differ between layer types are not supported.")
    return dict(defaults) | given | {key: value for key, value in inner.items() if value is not None}


def ropes(options: dict[str, Any], full: float, sliding: float, key: str = "rope_theta") -> tuple[dict[str, Any], ...]:
    """Merge every place where a config may speak of the rotary embeddings of a model that has two.

    Args:
        options: what is left of the config; `rope_parameters`, `rope_scaling` and the names at top level are removed.
        full: default of `rope_theta` of the layers that see everything before them.
        sliding: the same of those that see a window.
        key: the name at top level that gives it for the latter.

    Returns:
        The options of both, each as in `rope_parameters`. `rope_scaling` is of the former alone.

    Raises:
        ValueError: what should be a number or an object is none, or it cannot be said which layers it is of.
    """
    given = {name: options.pop(name) for name in {"rope_theta", key} if options.get(name) is not None}
    thetas = [number(dict(given), name, default) for name, default in (("rope_theta", full), (key, sliding))]
    by_type = options.pop("rope_parameters", None) or {}
    scaling = options.pop("rope_scaling", None) or {}
    names = ("full_attention", "sliding_attention")
    inner = [by_type.get(name) or {} for name in names] if isinstance(by_type, dict) else [by_type]
    if not all(isinstance(x, dict) for x in (by_type, scaling, *inner)) or by_type.keys() - set(names):
        said = wording.shown(by_type or scaling)
        raise ValueError(
            f"config.json: rope_parameters or rope_scaling={said}; expected an object, of which rope_parameters has "
            f"{' and '.join(names)}. Correct the config."
        )
    found = [
        {"rope_theta": theta} | {name: value for name, value in {**own, **more}.items() if value is not None}
        for theta, own, more in zip(thetas, inner, (scaling, {}), strict=True)
    ]
    for one in found:
        refuse_partial(one)
    return tuple(found)


def refuse_partial(rope: dict[str, Any]) -> None:
    """Refuse to turn a part of each head alone; ValueError."""
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        said = wording.shown(rope["partial_rotary_factor"])
        raise ValueError(f"config.json: partial_rotary_factor={said}; expected 1.0.")


def _is_number(value: Any) -> bool:
    """Whether a value is a number that is finite as a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:
        return False
