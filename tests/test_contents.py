"""What a resumed run must find unchanged: the code of an objective, but not what it says of itself."""

import importlib
import sys

import pytest

from slpojax import cached, objectives

CODE = "def loss(policy):\n    return policy.token.sum(), {}\n"


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ('"""A module."""\n\n' + CODE, True),
        (CODE.replace("return", "# why\n    return"), True),
        (CODE.replace("sum", "mean"), False),
        ("beta = 1\n" + CODE, False),
    ],
)
def test_the_digest_of_a_module_follows_its_code_alone(tmp_path, monkeypatch, changed, same):
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in (("idea_before", CODE), ("idea_after", changed)):
        (tmp_path / f"{name}.py").write_text(code)
    importlib.invalidate_caches()
    before, after = (cached.module_digest(importlib.import_module(name)) for name in ("idea_before", "idea_after"))
    del sys.modules["idea_before"], sys.modules["idea_after"]
    assert (before == after) == same


def test_a_mixture_s_code_is_that_of_all_its_terms():
    names = [function.__name__ for function in objectives.functions("dpo.sigmoid + 0.5 * sft.token_mean")]
    assert names == ["sigmoid", "token_mean"]
    assert [function.__name__ for function in objectives.functions("dpo.ipo")] == ["ipo"]
