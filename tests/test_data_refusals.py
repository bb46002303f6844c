"""What data cannot give is refused: the error says who asks for it, and which setting helps."""

import numpy as np
import pytest

from slpojax import data
from slpojax.data.examples import Example


def made(*, candidates=2, score=(0.0,), labelled=False, first=0):
    """Two examples, with scores of the candidates if they are given."""
    ids, scores = np.ones(3, np.int32), (*score, *(0.0,) * (candidates - len(score)))
    listed = [Example(ids, (ids,) * candidates, scores, first + i) for i in range(2)]
    return data.build(listed, candidates=candidates, labelled=labelled)


def both(**options):
    """The same kind of examples to train on and to hold out."""
    return {"train": made(**options), "eval": made(**options)}


def refuse(asked, *, parts=None, settings=None, **options):
    """Ask for `asked` of pairs, as an objective of pairs does."""
    chosen = data.settings({"format": "pairs"} | (settings or {}))
    options = {"objective": "dpo.sigmoid", "fewest": 2} | options
    data.refuse(asked, chosen, parts or {"train": made()}, **options)


def test_what_nobody_lacks_is_not_refused():
    refuse({"policy": "objective dpo.sigmoid", "ref": "selector mc_kernel", "kl": "objective dpo.sigmoid"})
    refuse({"score": "objective margin.odpo"}, parts={"train": made(score=(3.0,)), "eval": made(score=(2.0, 1.0))})
    refuse({"probability": "objective anchored.sppo"}, parts={"train": made(score=(1.0, 0.0))})
    refuse({"label": "objective unpaired.kto"}, parts={"train": made(labelled=True)}, settings={"mismatched": True})
    refuse({"degree": "objective self_supervised.spo"}, settings={"degrade": 1}, parts={"train": made(candidates=4)})
    weights = {"label": "objective unpaired.bco_unpaired", "weight": "objective unpaired.bco_unpaired"}
    refuse(weights, parts={"train": made(candidates=1, labelled=True)}, fewest=1, match_prompts=True)
    refuse({}, parts=both(candidates=5), diagnostics=4)


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (
            {"ref": "objective dpo.sigmoid"},
            {"settings": {"mismatched": True}},
            "config.data.mismatched=True .* objective dpo.sigmoid would take for .*; set it to False",
        ),
        (
            {"label": "objective unpaired.kto"},
            {},
            r"^objective unpaired.kto asks for labels, which data.format=pairs .*unpair=True --config.data.mismatched",
        ),
        ({"label": "objective sft.x"}, {"fewest": 1}, r"data.unpair=True to make .*data.candidates=1$"),
        ({"score": "objective margin.odpo"}, {}, r"^objective margin.odpo asks for .* scores, but the train data"),
        ({"score": "selector best"}, {}, r"^selector best asks for the candidates' scores.*data.format=ranked"),
        (
            {"score": "objective margin.odpo"},
            {"parts": {"train": made(score=(1.0,)), "eval": made()}},
            r"^objective margin.odpo asks for the candidates' scores, but the eval data has none",
        ),
        ({"probability": "objective anchored.sppo"}, {}, r"^objective anchored.sppo asks for the candidates' scores"),
        (
            {"probability": "objective anchored.sppo"},
            {"parts": {"train": made(score=(1.0, 0.0)), "eval": made(score=(5.0, -1.0), first=20)}},
            r"^objective anchored.sppo reads .* as probabilities to win, but those of the eval data go from -1 to 5 "
            r"\(2 of 2 examples, first that of row 20\)",
        ),
        (
            {"degree": "objective self_supervised.spo"},
            {},
            r"spo tells .*data.degrade is 0; set --config.data.degrade=3",
        ),
        ({}, {"settings": {"degrade": 2}}, r"data.degrade=2 adds copies .* objective dpo.sigmoid does not read"),
        ({}, {"match_prompts": True}, r"match_prompts=True weighs examples, which objective dpo.sigmoid does not read"),
        (
            {"weight": "objective ideas.mine"},
            {"match_prompts": True},
            r"match_prompts=True compares .*data.format=pairs does not label; set --config.data.unpair=True",
        ),
        ({}, {"fewest": 3}, r"^objective dpo.sigmoid reads 3 .*, the data gives 2; set --config.data.candidates=3"),
        (
            {"label": "objective unpaired.kto"},
            {"parts": {"train": made(candidates=1, labelled=True)}},
            r"reads 2 responses of an example, the data gives 1; set --config.data.mismatched=True",
        ),
        (
            {},
            {"parts": both(candidates=1), "fewest": 1, "diagnostics": 4},
            r"config.diagnostics=4 compares",
        ),
        ({}, {"parts": both(labelled=True), "diagnostics": 4}, r"config.diagnostics=4 compares"),
        (
            {"label": "objective unpaired.kto"},
            {"parts": both(labelled=True), "settings": {"mismatched": True}, "diagnostics": 4},
            r"config.diagnostics=4 compares",
        ),
        ({}, {"diagnostics": 4}, r"^config.diagnostics=4 looks at held-out examples, but there are none"),
    ],
)
def test_what_is_lacking_is_refused_by_who_asks(asked, options, message):
    with pytest.raises(ValueError, match=message):
        refuse(asked, **options)
