"""How full the rows are that the experiments on HH train on, on one device and on eight."""

import functools
import importlib

import numpy as np
import pytest
from step_tools import grid_of

from slpojax import data, settings, train, training
from slpojax.data import report
from slpojax.data.examples import Example

NAMES = ("sft_hh", "dpo_hh", "slpo_hh")


def config_of(name, **changes):
    return settings.resolve(importlib.import_module(f"configs.{name}").get_config(), changes, choices=train.CHOICES)


def made_up(candidates):
    """Examples of lengths like those of HH, without a text."""
    random = np.random.default_rng(0)
    draw = random.lognormal([4.6] + [3.9] * candidates, 0.8, (2000, 1 + candidates)).astype(int)
    prompt, response = draw[:, :1].clip(8, 256), draw[:, 1:].clip(2, 256)
    blank, score = np.zeros(512, np.int32), (0.0,) * candidates
    listed = (
        Example(blank[:p], tuple(blank[:n] for n in responses), score, i)
        for i, (p, *responses) in enumerate(np.concatenate([prompt, response], axis=1).tolist())
    )
    stored = data.build(listed, candidates=candidates)
    return stored, report.make("made up", 2000, report.tally(), stored, "")


def layout_of(config, examples, devices):
    return training.layout(config, training.method(config), [examples], grid_of(devices))


def fill(config, loaded, devices):
    """The share of the cells of training's rows that hold a token."""
    examples, about = loaded
    layout = layout_of(config, examples, devices)
    assert layout.train.rows % devices == 0 and layout.train.groups == max(devices, config.accumulate)
    return 1 - data.with_packing(about, examples, layout.order, layout.train).packing.padding


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_made_up_dialogues_are_full(name, devices):
    config = config_of(name)
    assert fill(config, made_up(config.data.candidates), devices) > 0.95


@functools.cache
def real(folder, items):
    tokenizer = data.load_tokenizer(str(folder / "tokenizers" / "neox-20b"))
    source = data.Source(str(folder / "hh" / "helpful-base.test.jsonl.gz"), rows="0:2000")
    return data.load(source, data.settings(dict(items)), tokenizer=tokenizer)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", [NAMES[-1], *(pytest.param(name, marks=pytest.mark.check) for name in NAMES[:-1])])
def test_rows_of_real_dialogues_are_full(name, devices, shared_data):
    config = config_of(name)
    loaded = real(shared_data, tuple((key, config.data[key]) for key in data.FIELDS))
    assert fill(config, loaded, devices) > 0.95


@pytest.mark.parametrize(
    ("accumulate", "devices", "each"), [(8, 1, 8), (8, 8, 1), (12, 8, 2), (1, 8, 1), (3, 2, 2), (1, 1, 1)]
)
def test_devices_share_the_micro_batches_of_one(accumulate, devices, each):
    config = config_of("dpo_hh", accumulate=accumulate, steps=2)
    shapes = layout_of(config, made_up(2)[0], devices).train
    assert shapes.groups == each * devices and shapes.rows % shapes.groups == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0.01, "batch_size": 64}, r"epochs=0.01 of .* do not fill one batch of config.batch_size=64; lower"),
        (
            {"steps": 10**9, "batch_size": 2**17},
            r"steps of batch_size=131,072 are more .* lower config.steps",
        ),
        ({"steps": 1, "accumulate": 2**14, "data.row_length": 2**20}, r"rows of 1,048,576 tokens, more .*; lower"),
    ],
    ids=str,
)
def test_runs_that_are_too_short_or_too_large_are_refused_before_memory_is_asked_for(changes, message):
    with pytest.raises(ValueError, match=message):
        layout_of(config_of("dpo_hh", **changes), made_up(2)[0], 1)
