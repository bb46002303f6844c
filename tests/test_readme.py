"""The code that README shows does what README says; its objective trains in test_train.py."""

import pathlib
import re

import pytest

from slpojax import bench, judges, quantities, settings, train
from slpojax.data import formats

README = (pathlib.Path(__file__).resolve().parents[1] / "README.md").read_text()


def code(holding: str) -> str:
    """The one Python block that holds some words."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if holding in block]
    return block


def test_a_configuration_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(code("DPO on my pairs"))
    config = settings.resolve(settings.load_file(str(tmp_path / "mine.py")), {}, choices=train.CHOICES)
    assert (config.output, config.data.format, config.data.rows) == ("output/mine", "pairs", "200:")


def test_a_parser_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "data_of_the_readme.py").write_text(code("def orca"))
    monkeypatch.syspath_prepend(tmp_path)
    orca = formats.find("data_of_the_readme.orca")
    assert orca({"question": "q", "good": "a", "bad": "b"}) == formats.Parsed("q", ("a", "b"))
    with pytest.raises(formats.Unusable, match="no second answer"):
        orca({"question": "q", "good": "a", "bad": ""})


def test_the_scorer_has_the_signature_that_is_shown():
    scope = {"measure": lambda model, params: 0.5}
    exec(code("def accuracy(config, bench)"), scope)  # noqa: S102

    class Bench:
        model = None

    assert scope["accuracy"](None, Bench)({}, 0) == {"accuracy": 0.5}
    assert quantities.label("score/accuracy") == "accuracy" and "model" in bench.Bench._fields


def test_a_judge_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "judges_of_the_readme.py").write_text(code("def brief"))
    monkeypatch.syspath_prepend(tmp_path)
    judge = judges.build("judges_of_the_readme.brief", words=2)
    assert judge.ask([judges.Question("?", ("Yes.", "I do not know", "no"))]) == [[2.0, 0.0, 1.0]]
    assert {name.partition(".")[0] for name in judges.names()} <= set(re.findall(r"`(\w+)\.", README))


def test_every_format_and_every_family_is_in_a_table():
    from slpojax import models

    assert set(formats.FORMATS) <= set(re.findall(r"`(\w+)`", README))
    assert set(models.families()) <= set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
