"""How full the rows are that the experiments on HH train on, on one device and on eight."""

import functools
import importlib

import numpy as np
import pytest

from slpojax import data, settings, train
from slpojax.data import report
from slpojax.data.examples import Example
from slpojax.run import Part

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
    return Part("train", stored, report.make("made up", 2000, report.tally(), stored, ""))


def fill(config, part, devices):
    """The share of the cells of training's rows that hold a token."""
    plan = train._plan(config, None, part, None, devices)
    assert plan.train.rows % devices == 0 and plan.train.groups == max(devices, config.accumulate)
    order = data.order(part.examples.lengths, config.batch_size, seed=config.seed, steps=plan.steps)
    return 1 - data.with_packing(part.report, part.examples, order, plan.train).packing.padding


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_made_up_dialogues_are_full(name, devices):
    config = config_of(name)
    assert fill(config, made_up(config.data.candidates), devices) > 0.95


@functools.cache
def real(folder, items):
    tokenizer = data.load_tokenizer(str(folder / "tokenizers" / "neox-20b"))
    source = data.Source(str(folder / "hh" / "helpful-base.test.jsonl.gz"), rows="0:2000")
    return Part("train", *data.load(source, data.settings(dict(items)), tokenizer=tokenizer))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_real_dialogues_are_full(name, devices, shared_data):
    config = config_of(name)
    part = real(shared_data, tuple((key, config.data[key]) for key in data.FIELDS))
    assert fill(config, part, devices) > 0.95


@pytest.mark.parametrize(
    ("accumulate", "devices", "each"), [(8, 1, 8), (8, 8, 1), (12, 8, 2), (1, 8, 1), (3, 2, 2), (1, 1, 1)]
)
def test_devices_share_the_micro_batches_of_one(accumulate, devices, each, capsys):
    config = config_of("dpo_hh", accumulate=accumulate, steps=2)
    plan = train._plan(config, None, made_up(2), None, devices)
    assert plan.train.groups == each * devices
    rows = plan.train.rows // plan.train.groups
    told = f"accumulate={accumulate} on {devices} device(s): {each} micro-batch(es) of {rows} row(s) on each"
    assert told in capsys.readouterr().out


def test_no_micro_batch_is_an_error():
    with pytest.raises(ValueError, match=r"config.accumulate=0: expected a number of micro-batches from 1"):
        train._plan(config_of("dpo_hh", accumulate=0), None, made_up(2), None, 1)
