"""Model folders as files: where one lies, what its JSON says, which file holds which tensor, and what is no model.

Knows the names of files in Hugging Face layout and what else people keep in folders; knows no model and no parameter.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open

from slpojax import log, places, wording
from slpojax.places import fetching

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of peft
TOKENIZER = tuple(
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json tokenizer.model vocab.json "
    "merges.txt chat_template.jinja chat_template.json".split()
)
SMALL = (CONFIG, GENERATION, *TOKENIZER)  # all but the weights
ALL = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_OF_OTHERS = ("*/*", "consolidated*")  # the same weights once more, in the layout of their makers

UNQUANTISED = "take its upload in 16 bits, or load it with transformers, call dequantize() and save_pretrained(NEW)"
# The end of a class that transformers names in config.json -> what the folder is.
SCORING = "ForSequenceClassification"
_OTHER_TASKS = {
    SCORING: "a classifier or reward model",
    "ForRewardModel": "a reward model",
    "RewardModel": "a reward model",
    "ForTokenClassification": "a classifier of tokens or process reward model",
    "ForQuestionAnswering": "a model that marks answers",
    "ForConditionalGeneration": "a model that reads more than text, or writes from an encoder",
}
_CONVERT = "load it with transformers' AutoModelForCausalLM.from_pretrained, call save_pretrained(NEW), and give NEW"
# Files of weights in other formats -> what they are, and what makes the folder usable.
_OTHER_FORMATS = {
    "*.bin": f"weights pickled by PyTorch, which can run code: if you trust the folder, {_CONVERT}",
    "*.pt": "weights pickled by PyTorch, in a layout of their maker's: take the model's upload for transformers",
    "*.pth": "weights pickled by PyTorch, in a layout of their maker's: take the model's upload for transformers",
    "*.gguf": "weights for llama.cpp, most often quantised: take the model's original upload",
    "*.h5": "weights of TensorFlow: take the model's upload in safetensors",
    "*.msgpack": "weights of Flax: take the model's upload in safetensors",
}


def resolve(
    path_or_hub_name: str | pathlib.Path, *, key: str = "model.path", files: Sequence[str] = ALL
) -> pathlib.Path:
    """The local folder of a model; what lies in a bucket or on the hub is fetched, or found in the cache.

    Args:
        path_or_hub_name: a folder, here or in a bucket, or "owner/name".
        key: of the configuration, which gave it, for the error.
        files: patterns of what is downloaded.

    Returns:
        The folder.

    Raises:
        ValueError: where there is neither, saying what was tried and what resembles it.
    """
    if not str(path_or_hub_name):
        raise ValueError(f"no model given; set config.{key} to a local folder or a hub name.")
    places.require(key, path_or_hub_name, places.STORES)
    if places.is_bucket(path_or_hub_name):
        return fetching.fetched(str(path_or_hub_name), log.say, files=files, key=key)
    name, folder = str(path_or_hub_name), pathlib.Path(path_or_hub_name).expanduser()
    try:
        if folder.is_dir():
            return folder
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ValueError(f"config.{key}={name[:200]!r}: {error.strerror}. Give a folder that can be read.") from error
    try:
        found = snapshot_download(name, allow_patterns=list(files), ignore_patterns=list(_OF_OTHERS), etag_timeout=5)
        return pathlib.Path(found)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError) as error:
        near = wording.near_paths(name, constants.HF_HUB_CACHE, "models")
        raise ValueError(
            f"config.{key}={name!r}: no folder {folder.absolute()}, and the hub gave no such model "
            f"({type(error).__name__}){near}. Give a local folder in Hugging Face layout, or go online."
        ) from error


def here(path_or_hub_name: str | pathlib.Path) -> pathlib.Path | None:
    """Return the folder of a model that is on this machine, or was downloaded before; None where it is not."""
    if not str(path_or_hub_name):
        return None
    folder = pathlib.Path(path_or_hub_name).expanduser()
    if folder.is_dir():
        return folder
    try:
        return pathlib.Path(snapshot_download(str(path_or_hub_name), local_files_only=True))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError):
        return None


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds; ValueError, with the file and the place, where it holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        what = f"damaged or cut at line {error.lineno}, column {error.colno} ({error.msg})"
        raise ValueError(f"{file} is no JSON: {what}. Write it anew, or download it again.") from error
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}). Write it anew, or download it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected a JSON object. Write it anew.")
    return content


def read_config(path: str | pathlib.Path, *, also: str = "") -> dict[str, Any]:
    """The content of the config.json in a folder.

    Args:
        path: the folder.
        also: the end of a class beside causal language models that is expected: `SCORING`, or "".

    Raises:
        ValueError: there is none, or it is another kind of model's.
    """
    path = pathlib.Path(path)
    file = path / CONFIG
    if not file.is_file():
        raise ValueError(f"no {file}; {_foreign(path) or 'expected a model folder in Hugging Face layout'}.")
    config = read_json(file)
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise ValueError(f"{file}: quantization_config: weights quantised by {str(method)[:40]!r}; {UNQUANTISED}.")
    names = config.get("architectures")
    for name in names if isinstance(names, list) else []:
        for end, what in _OTHER_TASKS.items():
            if str(name).endswith(end) and end != also:
                raise ValueError(
                    f"{file}: architectures names {str(name)[:80]!r}: {what}; expected a causal language model, such "
                    "as the one that it was made from."
                )
    return config


def labels(hf_config: Mapping[str, Any]) -> int:
    """How many labels the score head of a config.json's model has, by transformers' rule; 0 for a language model.

    Example:
        >>> labels({"architectures": ["LlamaForCausalLM"]})
        0
        >>> labels({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}})
        1
    """
    names = hf_config.get("architectures")
    if not isinstance(names, list) or not any(str(name).endswith(SCORING) for name in names):
        return 0
    known, count = hf_config.get("id2label"), hf_config.get("num_labels")
    return len(known) if isinstance(known, dict) else count if type(count) is int else 2


def require_one_label(path: str | pathlib.Path, hf_config: Mapping[str, Any]) -> None:
    """Refuse a classifier that is no reward model: ValueError where its head has several labels."""
    if (count := labels(hf_config)) > 1:
        raise ValueError(
            f"{pathlib.Path(path) / CONFIG}: a classifier of {count} labels (id2label); expected a reward model, whose "
            "head has one. Give a reward model's folder."
        )


def open_tensors(file: pathlib.Path) -> Any:
    """A safetensors file, open; ValueError where it is cut, damaged or something else."""
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} ({file.stat().st_size:,} bytes) is no whole safetensors file ({str(error)[:200]}). Copy or "
            "download it again."
        ) from error


def tensor_files(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The name of each tensor -> the file that holds it: model.safetensors if it is there, else what the index names.

    Raises:
        ValueError: a file is absent or damaged, two files hold a tensor, or index and files disagree.
    """
    promised: dict[str, str] | None = None
    if (path / WEIGHTS).is_file():
        files = [path / WEIGHTS]
        if (path / INDEX).is_file():
            log.say(f"{path}: {WEIGHTS} is read; {INDEX} beside it is not, as in transformers")
    else:
        promised = _promised(path / INDEX) if (path / INDEX).is_file() else None
        files = [path / name for name in sorted(set(promised.values()))] if promised is not None else [path / WEIGHTS]
    if absent := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"{path}: no {listed(absent)}; "
            f"{_foreign(path) or f'expected {WEIGHTS}, or {INDEX} with all the files it names'}."
        )
    found: dict[str, pathlib.Path] = {}
    for file in files:
        with open_tensors(file) as tensors:
            for name in tensors.keys():
                if name in found:
                    raise ValueError(f"{path}: {name} is in both {found[name].name} and {file.name}; remove one.")
                found[name] = file
    if promised is None:
        return found
    actual = {name: file.name for name, file in found.items()}
    if wrong := [name for name in promised | actual if promised.get(name) != actual.get(name)]:
        raise ValueError(f"{path}: {INDEX} and the files disagree about {listed(wrong)}; save the checkpoint anew.")
    return found


def listed(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are.

    Example:
        >>> listed(["a", "b"]), listed([])
        ('a, b', 'none')
    """
    return wording.few(names) or "none"


def _promised(index: pathlib.Path) -> dict[str, str]:
    """The index's map from tensors to files in its folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(map(_is_plain, names.values())):
        raise ValueError(
            f"{index}: weight_map is no object of names of files in the folder; save the checkpoint anew, or download "
            "the index again."
        )
    return names


def _is_plain(name: object) -> bool:
    """Whether a value is the name of a file, with no way out of its folder."""
    return isinstance(name, str) and re.fullmatch(r"[^/\\\0]{1,200}", name) is not None


def _foreign(path: pathlib.Path) -> str:
    """What a folder is that lacks config.json or weights, and what makes it usable; "" where it does not show."""
    adapter = path / ADAPTER
    if adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        return (
            f"the folder is an adapter (PEFT) of {str(base)[:200]!r} and no model: load it with peft's "
            "AutoPeftModelForCausalLM.from_pretrained, call merge_and_unload() and save_pretrained(NEW), and give NEW"
        )
    for pattern, what in _OTHER_FORMATS.items():
        if files := sorted(file.name for file in path.glob(pattern) if file.name != "training_args.bin"):
            return f"{files[0][:80]} holds {what}"
    if inner := sorted(file.parent.name for file in path.glob(f"*/{CONFIG}")):
        return f"there is one in {path / inner[-1]}: give that folder"
    return ""
