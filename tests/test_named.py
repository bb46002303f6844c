"""Names of a configuration: found in the package or anywhere, bound, or refused with what was probably meant."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import named, wording

OUTSIDE = '''
def mine(policy, *, beta=0.1, loss="x"):
    """An idea."""

def helper(x):
    """None of its kind."""

def prepare(config):
    """Of a world."""
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "named_ideas.py").write_text(OUTSIDE)
    (tmp_path / "named_broken.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)


def test_functions_of_a_package_and_of_a_module(outside):
    found = named.functions("slpojax.objectives")
    assert found["dpo.sigmoid"].__name__ == "sigmoid" and "margin.rpo_squared" in found
    assert not [name for name in found if "._" in name or name.startswith("pairs.")]
    assert list(named.functions("named_ideas")) == ["mine"]
    assert list(named.functions("named_ideas", first="config")) == ["prepare"]


def test_the_package_comes_first_then_any_module(outside):
    def known(policy):
        pass

    assert named.find("objective", "named_ideas.mine", {"named_ideas.mine": known}) is known
    assert named.find("objective", "named_ideas.mine", {}).__name__ == "mine"
    for name in ("named_ideas.helper", "named_ideas.absent", "absent.mine", "mine", ".mine", ""):
        with pytest.raises(ValueError, match=f"unknown objective {name!r}.* whose first parameter is `policy`"):
            named.find("objective", name, {})
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        named.find("objective", "named_broken.mine", {})


def test_modules_are_found_likewise(outside):
    package = "slpojax.objectives"
    assert named.find_module("world", "dpo", package).__name__ == "slpojax.objectives.dpo"
    assert named.find_module("world", "named_ideas", package, having=["prepare"]).__name__ == "named_ideas"
    with pytest.raises(ValueError, match="world 'named_ideas' lacks report; it needs prepare, report"):
        named.find_module("world", "named_ideas", package, having=["prepare", "report"])
    with pytest.raises(
        ValueError, match="unknown world 'dpoo' .near: dpo.; there are .* importable module with report"
    ):
        named.find_module("world", "dpoo", package, having=["report"])


def test_an_unknown_name_says_what_is_near_and_what_there_is():
    few, many = ["rmsprop", "adamw"], [f"group{i}.key" for i in range(99)] + ["seed"]
    assert str(wording.unknown("optimizer", "adam", few)) == (
        "unknown optimizer 'adam' (near: adamw); there are rmsprop, adamw"
    )
    assert str(wording.unknown("key", "sed", many, listed="configs/base.py")) == (
        "unknown key 'sed' (near: seed); there are 100 (configs/base.py)"
    )
    assert str(wording.unknown("key", "x", few, also="any other")) == (
        "unknown key 'x'; there are rmsprop, adamw, or any other"
    )


def test_near_words():
    keys = ["objective.beta", "selector.beta", "batch_size", "mesh.data"]
    assert wording.near("beta", keys) == " (near: objective.beta, selector.beta)"
    assert wording.near("optimizer.beta", keys) == " (near: objective.beta, selector.beta)"
    assert wording.near("Batchsize", keys) == " (near: batch_size)"
    assert wording.near("", keys) == wording.near("zzz", keys) == ""


def test_a_requirement_of_a_traced_number_waits_for_a_python_one():
    @jax.jit
    def program(beta):
        named.require(beta > 0, "beta", beta, "a number above 0")
        named.require((0 < beta) & (beta < 1), "beta", beta, "a share")
        return beta

    assert program(-1.0) == -1.0
    for beta in (-1.0, np.float32(-1.0), jnp.float32([1.0, -1.0])):
        with pytest.raises(ValueError, match="beta = .*: expected a number above 0"):
            named.require(beta > 0, "beta", beta, "a number above 0")


def test_which_numbers_may_be_traced():
    def function(x, *, beta=0.1, root=0.5, kind="a", count=2, flag=True, weight=1.0):
        extra = {} if weight == 0 else {"weight": weight}
        return {"loss": beta * x / (root if root > 1 else 1.0), **extra}

    def same(values, arrays):
        return jax.eval_shape(lambda arrays: function(1.0, **(values | arrays)), arrays).keys() == {"loss", "weight"}

    values = {"beta": 0.1, "root": 0.5, "kind": "a", "count": 2, "flag": True}
    assert named.numeric(values, lambda arrays: same(values, arrays)) == ("beta",)


def test_trees_are_flattened_in_their_order():
    tree = {"b": {"y": 1, "x": {}, "z": (1, 2)}, "a": None}
    assert list(named.flatten(tree, ".").items()) == [("b.y", 1), ("b.z", (1, 2)), ("a", None)]


@pytest.mark.parametrize(
    ("value", "default", "words"),
    [
        ("x", 0.1, "beta: got 'x', expected a float such as 0.1"),
        (True, 0.1, "beta: got True, expected a float"),
        (None, 0.1, "beta: got None"),
        ([1.0], 0.1, "beta: got"),
        (1.5, 1, "beta: got 1.5, expected an int such as 1"),
        (True, "length", "beta: got True, expected a str"),
        ({"a": 1}, None, "beta = {'a': 1}: expected a number, a word, or several of them"),
        (-(10**400), 0.1, "beta = -inf: expected a finite number from -1e+15 to 1e+15"),
        (math.nan, "length", "beta = nan: expected"),
        ((0.9, -1e300), (0.9, 0.95), "expected a finite number from"),
        (1e38, None, "beta = 1e+38: expected"),
    ],
)
def test_a_hyperparameter_of_another_type_or_size_is_refused(value, default, words):
    with pytest.raises(ValueError) as caught:
        named.hyperparameter("beta", value, default)
    assert words in str(caught.value) and len(str(caught.value)) < 200


def test_hyperparameters_take_the_type_of_their_default():
    for value, default, expected in [
        (np.float32(0.5), 0.1, 0.5),
        (jnp.int32(3), 0.1, 3.0),
        (3.0, 1, 3),
        (2, "objective", 2.0),
    ]:
        got = named.hyperparameter("beta", value, default)
        assert got == expected and type(got) is type(expected)
    assert named.hyperparameter("norm", max, min) is max


def test_a_hyperparameter_whose_inverse_is_no_float32_is_refused():
    def objective(policy, *, beta=0.1):
        return policy, beta

    assert named.bind("objective", "o", objective, {"beta": 0})["beta"] == 0.0
    with pytest.raises(ValueError, match="objective.beta = 1e-30: expected 0, or a number of at least 1e-15"):
        named.bind("objective", "o", objective, {"beta": 1e-30})


@pytest.mark.parametrize("name", ["subprocess.run", "nosuch.orca", "pares", "", "a..b", "hh\0", "x" * 100_000])
def test_a_function_of_another_signature_or_none_is_refused_and_never_called(name):
    with pytest.raises(ValueError, match="unknown data.format .*whose first parameter is `record`") as caught:
        named.find("data.format", name, {"pairs": max}, first="record")
    assert len(str(caught.value)) < 300


def test_a_near_function_of_the_module_that_was_named_is_shown():
    with pytest.raises(ValueError, match="near: slpojax.data.formats.pairs"):
        named.find("data.format", "slpojax.data.formats.pears", {}, first="record")
