"""The settings of a data set: every name is known once, and an unknown one is refused."""

import pytest

from configs import base
from slpojax import data


def test_settings_are_taken_by_name_and_given_back():
    chosen = data.settings({"format": "ranked", "candidates": 4, "max_length": 99})
    assert chosen.encoding.format == "ranked" and chosen.candidates.candidates == 4
    assert chosen.encoding._replace(format="hh", max_length=512) == data.Settings().encoding
    named = data.settings_as_dict(chosen)
    assert tuple(named) == data.FIELDS and data.settings(named) == chosen


def test_the_defaults_are_those_of_the_configuration():
    config = base.get_config().data.to_dict()
    assert data.settings_as_dict(data.Settings()) == {name: config[name] for name in data.FIELDS}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"max_lenght": 3},
            r"unknown setting of data 'max_lenght' .near: max_length, .*; there are \d+ .slpojax/defaults.py",
        ),
        ({"format": "hh", "rows": "0:3"}, r"unknown setting of data 'rows'"),  # where it lies is a `Source`
    ],
)
def test_an_unknown_setting_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        data.settings(values)
