"""What of a policy is trained: what an expression finds, what a state holds, and adapters beside weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.test_every_family import CONFIGS, FIRST
from model_tools import logits_of, plain

from configs import base
from slpojax import bench, grid, models, named, settings, train, trained, training
from slpojax.trained import Lora, pairs

PYTHIA = {  # of 2.8 billion parameters
    "model_type": "gpt_neox",
    "vocab_size": 50304,
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 10240,
    "rotary_pct": 0.25,
}


@functools.cache
def small(name=FIRST):
    """A model, the shapes of its parameters, and some."""
    model, random = models.build(CONFIGS[name]), np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, shapes, jax.tree.map(lambda x: random.normal(0, 0.3, x.shape).astype(np.float32), shapes)


def planned(what="lora", lora=None, beside=""):
    model, shapes, _ = small()
    return trained.plan(what, model, shapes, lora=lora or Lora(4, 8.0), beside=beside)


def with_adapters(plan, params, seed=None):
    """A policy's parameters; with a seed, the halves that start at zero are drawn, too."""
    adapters = jax.jit(lambda key: trained.first(plan, key))(jax.random.key(7))
    if seed is not None:
        random = np.random.default_rng(seed)
        adapters = jax.tree.map(lambda x: random.normal(0, 0.3, x.shape).astype(np.float32), adapters)
    frozen, moved = trained.split(plan, params)
    base = named.nested(named.flatten(frozen) | trained.scales(plan))
    return trained.join(plan, base, named.nested(named.flatten(moved) | named.flatten(adapters)))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("^embed/", {"embed/weight": ()}),
        ("layers/1/mlp/up", {"layers/mlp/up/weight": (1,)}),
        ("norm", dict.fromkeys(("layers/attention_norm/weight", "layers/mlp_norm/weight", "final_norm/weight"), ())),
        ("layers/(0|1)/mlp/down", {"layers/mlp/down/weight": ()}),
    ],
)
def test_an_expression_finds_parameters_and_layers(what, expected):
    assert planned(what).layers == expected


@pytest.mark.parametrize("what", ["^embed/", "layers/1/", "layers/0/", "norm|layers/1/mlp", ".", "^(?!embed)"])
def test_what_is_split_is_joined_bit_for_bit_and_the_trained_part_is_what_was_asked_for(what):
    plan, params = planned(what), small()[2]
    frozen, moved = trained.split(plan, params)
    jax.tree.map(np.testing.assert_array_equal, trained.join(plan, frozen, moved), params)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(lambda x: x.shape, trained.like(plan))
    count = sum(leaf.size for leaf in jax.tree.leaves((frozen, moved)))
    assert count == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"what": "layers/9/"},
            r"config.train.what='layers/9/' is found in no parameter's path.*correct the expression",
        ),
        ({"what": "heads/weight"}, r"found in no parameter's path \(near: "),
        ({"what": "(embed"}, r"config.train.what='\(embed' is no regular expression"),
        ({"beside": "head_"}, r"config.lora.beside='head_' is found in no parameter's path"),
        ({"beside": "query"}, r"config.lora.beside='query' trains layers/attention/query, which has an adapter"),
        ({"lora": Lora(4, 8.0, ("qery",))}, r"unknown linear map in config.lora.targets 'qery' \(near: query.*q_proj"),
        ({"lora": Lora(4, 8.0, ("lm_head",))}, r"head are trained whole, beside adapters, by config.lora.beside"),
    ],
)
def test_what_names_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        planned(**changes)


def test_targets_are_the_ends_of_names_here_or_in_the_checkpoint():
    def adapted(*targets):
        return planned(lora=Lora(4, 8.0, targets)).adapted

    assert adapted("q_proj", "attention/out") == ("layers/attention/query", "layers/attention/out")
    assert adapted("self_attn.v_proj") == adapted("value") == ("layers/attention/value",)
    assert len(adapted()) == 7


def test_a_zero_adapter_changes_no_bit_and_any_other_is_the_sum_of_the_weights():
    model, _, params = small()
    plan, rows = planned(lora=Lora(4, 8.0, rank_stabilized=True)), plain([[5, 2, 8, 1], [3, 3, 9, 7]])
    hidden = jax.jit(lambda params: model.apply(params, rows, None)[0])
    np.testing.assert_array_equal(hidden(with_adapters(plan, params)), hidden(params))
    policy = with_adapters(plan, params, seed=0)
    leaves = named.flatten(policy)
    assert leaves["layers/mlp/up/lora_scale"].tolist() == [4.0, 4.0]  # 8 / sqrt(4)
    whole = trained.merged(leaves)
    np.testing.assert_allclose(hidden(policy), hidden(named.nested(whole)), atol=3e-5)
    for path in plan.adapted:
        w, a, b = (np.float64(leaves[f"{path}/{name}"]) for name in ("weight", pairs.A, pairs.B))
        np.testing.assert_allclose(whole[f"{path}/weight"], w + 4.0 * b @ a, atol=1e-5)
        merged = pairs.lazily_merged(leaves)[f"{path}/weight"]
        np.testing.assert_array_equal(merged.layer(1), whole[f"{path}/weight"][1])
    assert not {path for path in whole if "lora" in path}


@pytest.mark.check
@pytest.mark.parametrize("name", sorted(models.families().keys() - {"llama"}))
def test_a_zero_adapter_changes_no_bit_of_any_family(name):
    (model, shapes, params), rows = small(name), plain([[5, 2, 8, 1], [3, 3, 9, 7]])
    plan = trained.plan("lora", model, shapes, lora=Lora(4, 8.0))
    logps = jax.jit(lambda params: jax.nn.log_softmax(logits_of(model, params, rows)))
    np.testing.assert_array_equal(logps(with_adapters(plan, params)), logps(params))


def test_adapters_are_drawn_as_peft_draws_them_and_split_as_their_weights():
    model, plan = small()[0], planned()
    first = named.flatten(jax.jit(lambda key: trained.first(plan, key))(jax.random.key(0)))
    for path in plan.adapted:
        a, b = first[f"{path}/{pairs.A}"], first[f"{path}/{pairs.B}"]
        bound = a.shape[-1] ** -0.5
        assert not b.any() and np.abs(a).max() <= bound and a.std() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert not np.array_equal(first["layers/attention/query/lora_a"], first["layers/attention/value/lora_a"])
    where, notes = grid.tree(grid.make(2, 2, 2), model.sharding, named.nested(first))
    specs = {path: tuple(place.spec) for path, place in named.flatten(where).items()}
    assert specs["layers/mlp/up/lora_a"] == (None, None, "fsdp") and not notes
    assert specs["layers/mlp/up/lora_b"] == (None, "tensor", None)
    assert specs["layers/mlp/down/lora_a"] == (None, None, "tensor")


def shapes_of_a_state(**changes):
    """The state of a run of Pythia-2.8B and what is frozen, from shapes alone."""
    config = settings.resolve(base.get_config(), {"batch_size": 2, **changes}, choices=train.CHOICES)
    at = bench.of_model(config, PYTHIA, grid.one_device())
    method = training.method(config)
    shapes = jax.eval_shape(at.model.init, at.keys.init)
    like = bench.params_like(at)
    rule = training.optimizer(config, 10)
    first = jax.eval_shape(lambda p: training._first_state(rule, method, {}, at, p, None), like)
    return first, shapes


def test_a_checkpoint_of_adapters_is_less_than_a_hundredth_of_a_whole_one():
    def size(state):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state._replace(key=None)))

    whole, shapes = shapes_of_a_state()
    assert jax.tree.map(jnp.shape, whole.params) == jax.tree.map(jnp.shape, shapes)
    lora, _ = shapes_of_a_state(**{"train.what": "lora"})  # rank 16 on every linear map
    assert 0 < size(lora) < 0.01 * size(whole)
    assert size(whole) == pytest.approx(3 * 4 * 2.775e9, rel=1e-3)
