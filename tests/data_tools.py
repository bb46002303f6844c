"""What the tests of the data share: a tokenizer of bytes, and records that are loaded from a file."""

import json

import tokenizers
import transformers

from slpojax import data


def make_tokenizer(*, bos=False, template=None):
    """A tokenizer of bytes, with EOS 0 and BOS 1."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, "<bos>": 1} | {letter: i + 2 for i, letter in enumerate(alphabet)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    if bos:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", bos_token="<bos>", pad_token="<eos>", chat_template=template
    )


def load(folder, records, **options):
    """Load records from a file in `folder`; by default pairs, in the tokens above."""
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_path(folder / "data.jsonl", **{"tokenizer": make_tokenizer(), "format": "pairs"} | options)


def load_path(path, *, tokenizer, rows="", seed=0, transforms=data.CHAIN, **settings):
    """Load what lies at a path, by settings that are named one by one."""
    chosen = data.settings(settings)
    return data.load(data.Source(str(path), rows=rows), chosen, tokenizer=tokenizer, seed=seed, transforms=transforms)


def pair(prompt="Go on", chosen=" yes", rejected=" no"):
    """A record of the format `pairs`."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def decoded(example, tokenizer=None):
    """The texts of an example: prompt, then responses."""
    return [(tokenizer or make_tokenizer()).decode(ids) for ids in (example.prompt, *example.responses)]
