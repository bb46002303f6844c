"""Laws that hold for every objective of the package, found by walking it: a new one inherits them."""

import functools
import inspect

import hurry
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slpojax import needs, objectives
from slpojax.base import ABSENT, Logps, Shapes
from slpojax.sequence import TooFewCandidates
from slpojax.step import couples_examples, on_examples

NAMES = objectives.names()
EXAMPLES, LENGTH, LONG = 8, 12, 64


def logps(odds, lengths) -> Logps:
    """Logps [B, K, T] from token log-odds."""
    here = jnp.arange(odds.shape[-1])[None, None, :] < jnp.asarray(lengths)[..., None]
    token, other = -jax.nn.softplus(-odds), -jax.nn.softplus(odds)
    return Logps(jnp.where(here, token, 0.0), jnp.where(here, other, ABSENT), jnp.asarray(lengths, jnp.int32))


def draw(candidates: int = 3, length: int = LENGTH, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Odds of the policy, of the reference, and lengths, of a batch."""
    rng = np.random.default_rng(seed)
    ref = rng.normal(-1.0, 1.5, (EXAMPLES, candidates, length))
    policy = ref + 0.2 * rng.standard_normal(ref.shape)
    return policy, ref, rng.integers(length // 2, length + 1, ref.shape[:2])


def distribution(policy: Logps, ref: Logps) -> dict[str, jax.Array]:
    """What an objective may ask for of the whole distribution, in a vocabulary of two: the token and the other."""
    here = jnp.arange(policy.token.shape[-1])[None, None, :] < jnp.asarray(policy.length)[..., None]
    p, q = (jnp.stack([x.token, jnp.where(here, x.other, -1.0)]) for x in (policy, ref))
    values = {
        "activity": jnp.mean(q, axis=0),
        "collision": jax.nn.logsumexp(2 * p, axis=0),
        "entropy": -jnp.sum(jnp.exp(p) * p, axis=0),
        "kl": jnp.sum(jnp.exp(q) * (q - p), axis=0),
        "reward_mask": jax.nn.relu(0.7 + 0.1 * q[0]),
        "kl_mask": jax.nn.relu(0.5 + 0.1 * q[1]),
    }
    values = {name: jnp.where(here, x, 0.0) for name, x in values.items()}
    values["degree"] = jnp.where(here[..., None], jnp.moveaxis(p, 0, -1), 0.0)
    values["reward"] = jnp.where(here, jnp.cumsum(policy.token, axis=-1), 0.0)
    return values | {"layer_activity": jnp.stack([values["activity"], values["activity"] ** 2], axis=-1)}


def prompts(index) -> Logps:
    """Logps [B, P] of eight prompts in turn, some of a single token, which has none."""
    rng = np.random.default_rng(4)
    odds, lengths = rng.normal(-1.0, 1.5, (EXAMPLES, 1, 5)), rng.integers(0, 6, (EXAMPLES, 1))
    return jax.tree.map(lambda x: x[index % EXAMPLES, 0], logps(jnp.asarray(odds), lengths))


def run(objective: objectives.Objective, policy: Logps, ref: Logps, index=None, **hyperparameters):
    """(losses [B], metrics [B] each) as the step computes them; `index` [B] decides the labels.

    `hyperparameters` are those of the call, in place of those that the objective was built with.
    """
    count, candidates = policy.token.shape[:2]
    index = jnp.arange(count) if index is None else index
    objective = objective._replace(function=functools.partial(objective.function, **hyperparameters))
    inputs = {
        "policy": policy,
        "ref": ref,
        "score": jnp.broadcast_to(3.0 - jnp.arange(candidates)[None], (count, candidates)),
        "label": index % 2.0,
        "weight": 1.0 + index % 3,
        "state": objective.state,
    }
    if "previous" in objective.needs:
        odds = ref.token - ref.other + 0.5  # a third model, absent where they are
        inputs["previous"] = Logps(-jax.nn.softplus(-odds), -jax.nn.softplus(odds), ref.length)
    if "prompt" in objective.needs:
        inputs["prompt"] = prompts(index)
    if objective.needs & set(needs.of_source("head", "reader", "score")):
        inputs |= distribution(policy, ref)
    # Keys go with the examples; an objective that couples them may draw for the batch, by the key of the first place.
    keys = jax.random.split(jax.random.key(0), EXAMPLES)
    if "key" in objective.needs and not couples_examples(objective, Shapes(count, candidates, LENGTH, 1, 1, 1)):
        keys = keys[index % EXAMPLES]
    return on_examples(objective, inputs, keys[:count])[:2]


def same(a, b, rtol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5), a, b)


@pytest.fixture(params=NAMES, scope="module")
def objective(request):
    return built(request.param)


@functools.cache
def built(name: str) -> objectives.Objective:
    return objectives.build(name)


# Most of what the laws take is compilation, so they share two programs an objective: one of short responses, and one of
# long ones with its gradient, into which everything else is put with what is absent around it. The numbers of the first
# are Python's, those of the second arrays. XLA need not make them fast.
JIT = functools.partial(jax.jit, compiler_options=hurry.OPTIONS)


def moved(name: str) -> dict[str, float]:
    """Hyperparameters of an objective that differ from its defaults, all that are floats."""
    floats = {key: value for key, value in objectives.defaults(name).items() if type(value) is float}
    return {key: 0.9 * value or 0.05 for key, value in floats.items()}


def arrays(values: dict[str, float]) -> dict[str, jax.Array]:
    return {key: jnp.float32(value) for key, value in values.items()}


@functools.lru_cache(maxsize=2)
def short(name: str):
    """(policy, ref, index) -> (losses, metrics), jitted; of the batch of `draw`, with the numbers of `moved`."""
    objective = objectives.build(name, **moved(name))
    program = JIT(lambda *sides: run(objective, *sides))
    return lambda *sides: jax.device_get(program(*sides))


@functools.lru_cache(maxsize=2)
def long(name: str):
    """(odds [B, 4, 64], lengths, the reference's, index, hyperparameters) -> (losses, metrics, gradient by the odds).

    Jitted; the gradient is that of their sum; the hyperparameters are the objective's defaults where there are none.
    """
    objective = built(name)
    defaults = arrays({key: objective.hyperparameters[key] for key in moved(name)})

    @JIT
    def program(odds, lengths, ref_odds, ref_lengths, index, values):
        def total(odds):
            sides = logps(odds, lengths), logps(ref_odds, ref_lengths)
            losses, metrics = run(objective, *sides, index, **values)
            return losses.sum(), (losses, metrics)

        (_, (losses, metrics)), gradient = jax.value_and_grad(total, has_aux=True)(odds)
        return losses, metrics, gradient

    return lambda *inputs, **values: jax.device_get(program(*inputs, defaults | arrays(values)))


def widened(policy, ref, lengths, ref_lengths=None, *, fourth: int = 0):
    """Return arguments of `long`: odds that mean nothing up to 64 tokens, and a fourth candidate of `fourth` tokens."""

    def wide(x):
        return np.pad(x, ((0, 0), (0, 1), (0, LONG - x.shape[-1])), constant_values=0.7)

    def more(lengths):
        return np.pad(lengths, ((0, 0), (0, 1)), constant_values=fourth)

    ref_lengths = lengths if ref_lengths is None else ref_lengths
    return np.float32(wide(policy)), more(lengths), np.float32(wide(ref)), more(ref_lengths)


def take(x, order):
    return jax.tree.map(lambda a: a[order], x)


def test_order_padding_further_candidates_and_numbers_as_arrays_change_nothing(objective):
    law_of_invariance(objective)


@pytest.mark.check
@pytest.mark.parametrize("name", ["noisy", "best_of_all", "running"])
def test_what_the_contract_offers_meets_the_laws(name):
    """Draws of an example and of its tokens, all candidates, a state that is one number; in another module."""
    law_of_invariance(built(f"law_examples.{name}"))


def law_of_invariance(objective):
    policy, ref, lengths = draw()
    sides = jax.device_get((logps(jnp.float32(policy), lengths), logps(jnp.float32(ref), lengths)))
    index = np.arange(EXAMPLES)
    losses, metrics = short(objective.name)(*sides, index)
    assert losses.shape == (EXAMPLES,) and all(m.shape == (EXAMPLES,) for m in metrics.values())
    assert set(metrics) == set(objective.metrics)

    order = np.random.default_rng(1).permutation(EXAMPLES)
    same(take((losses, metrics), order), short(objective.name)(*take((*sides, index), order)))

    # An objective over all candidates reads a further one, unless it is absent.
    over_all = objectives.over_all(objective.name)
    wide = widened(policy, ref, lengths, fourth=0 if over_all else 3)
    same((losses, metrics), long(objective.name)(*wide, index, **moved(objective.name))[:2])
    if over_all:
        there = widened(policy, ref, lengths, fourth=3)
        assert np.all(long(objective.name)(*there, index, **moved(objective.name))[0] != losses), "it reads them all"


def test_the_other_examples_change_nothing(objective):
    if couples_examples(objective, Shapes(EXAMPLES, 3, LENGTH, 1, 1, 1)):
        pytest.skip("couples its examples")
    policy, ref, lengths = draw()
    every = jax.device_get(
        (logps(jnp.float32(policy), lengths), logps(jnp.float32(ref), lengths), jnp.arange(EXAMPLES))
    )
    program = short(objective.name)
    alone = [take(program(*take(every, np.full(EXAMPLES, i))), 0) for i in range(EXAMPLES)]
    same(program(*every), jax.tree.map(lambda *x: np.stack(x), *alone))


@pytest.mark.check
def test_jit_equals_eager_and_vmap_a_loop(objective):
    """One operation after the other, and where examples are not coupled, one example after the other."""
    policy, ref, lengths = draw()
    sides, index = (logps(jnp.float32(policy), lengths), logps(jnp.float32(ref), lengths)), jnp.arange(EXAMPLES)
    whole = short(objective.name)(*sides, index)
    objective = objectives.build(objective.name, **moved(objective.name))
    same(whole, run(objective, *sides))
    if not couples_examples(objective, Shapes(EXAMPLES, 3, LENGTH, 1, 1, 1)):
        alone = [run(objective, *take((*sides, index), slice(i, i + 1))) for i in range(2)]
        same(take(whole, slice(0, 2)), jax.tree.map(lambda *x: jnp.concatenate(x), *alone))


def test_gradients_are_finite_and_not_negligible_at_64_tokens(objective):
    rng = np.random.default_rng(3)
    odds, index = rng.normal(-1.5, 1.0, (EXAMPLES, 3, LONG)), jnp.arange(EXAMPLES)
    lengths = np.full((EXAMPLES, 3), LONG)

    # Where the reward compares policy and reference alone, it starts at zero.
    anchored = (
        "ref" in objective.needs and not {"previous", "label"} & objective.needs and "gamma" not in objective.name
    )
    for moved in (0.0, 0.2):
        policy = odds + moved * rng.standard_normal(odds.shape)
        _, metrics, grad = long(objective.name)(*widened(policy, odds, lengths), index)
        assert np.all(np.isfinite(grad))
        # By the log-prob of a response: DPO's is beta / 2 = 0.05 at the start. Equals teach each other nothing.
        size = np.abs(np.sum(grad, axis=-1)).max()
        equal = moved == 0 and objective.name.startswith("distil.")
        assert size > 3e-3 or equal, f"largest gradient of a response: {size}"
        if moved == 0 and "rewards/margins" in metrics and anchored:
            margins, accuracies = metrics["rewards/margins"], metrics["rewards/accuracies"]
            np.testing.assert_allclose(margins, 0.0, atol=1e-6)  # two passes through the same sums, one with gradient
            assert np.all(accuracies[margins == 0] == 0.5) and np.any(margins == 0)
            # Of the same numbers, exactly: no pass with a gradient beside one without.
            same = jax.device_get(logps(jnp.float32(odds[..., :LENGTH]), np.minimum(lengths, LENGTH)))
            equal = short(objective.name)(same, same, np.arange(EXAMPLES))[1]
            assert not np.any(equal["rewards/margins"]) and np.all(equal["rewards/accuracies"] == 0.5)


@pytest.mark.check
def test_the_gradient_is_that_of_the_loss_and_the_same_with_numbers_as_arrays(objective, monkeypatch):
    rng, step, values = np.random.default_rng(7), 1e-5, moved(objective.name)
    with jax.enable_x64(True):
        policy, ref, lengths = (jnp.asarray(x[:2]) for x in draw(length=4))
        reference = logps(ref, lengths)

        def mean(odds, values, objective):
            return run(objective, logps(odds, lengths), reference, **values)[0].mean()

        static = functools.partial(mean, values={}, objective=objectives.build(objective.name, **values))
        traced = functools.partial(mean, objective=objective)
        values = jax.tree.map(jnp.float64, values)
        same(JIT(jax.value_and_grad(static))(policy), JIT(jax.value_and_grad(traced))(policy, values), rtol=1e-9)

        # With what an objective holds still let go: differences of the loss would see it move.
        monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
        program = JIT(jax.value_and_grad(lambda odds: traced(odds, values)))
        gradient = program(policy)[1]
        for _ in range(3):
            way = rng.standard_normal(policy.shape)
            slope = (program(policy + step * way)[0] - program(policy - step * way)[0]) / (2 * step)
            np.testing.assert_allclose(np.vdot(gradient, way), slope, rtol=1e-5, atol=1e-7)


def test_every_float_may_be_an_array(objective):
    assert set(objectives.numeric(objective)) == moved(objective.name).keys()


def test_one_candidate_fewer_than_it_reads_is_refused(objective):
    """By `first`, so that whoever calls the function is told, and not only by what `build` finds in its program."""
    if objective.fewest > 1:
        with pytest.raises(TooFewCandidates) as refused:
            objectives._trace(objective, objective.fewest - 1)
        assert refused.value.needed == objective.fewest and "candidates" in str(refused.value)
    assert objectives._trace(objective, objective.fewest + 1) == objective.metrics


def degenerate() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Odds and lengths of the policy and of the reference, [B, 3, 6]."""
    rng = np.random.default_rng(5)
    base = rng.normal(-1.0, 1.0, 6)
    sure = np.full(6, 200.0)  # p is exactly one, in float32 and in float64
    cases = {
        "identical": (base, base, (6, 6)),
        "rejected begins the chosen": (base, base, (6, 2)),
        "chosen begins the rejected": (base, base, (2, 6)),
        "likely, nested": (base + 8, base + 8, (6, 3)),
        "one token each": (base, base[::-1], (1, 1)),
        "chosen is certain": (sure, base, (6, 6)),
        "rejected is certain": (base, sure, (6, 6)),
        "both are certain": (sure, sure, (6, 6)),
        "impossible": (-sure, -sure, (6, 6)),
        "no rejected": (base, base, (6, 0)),
        "no chosen": (base, base, (0, 6)),
        "nothing": (base, base, (0, 0)),
    }
    # A third candidate, shorter than the others or as absent as they are.
    odds = np.stack([np.stack([*pair, base[::-1]]) for *pair, _ in cases.values()])
    lengths = np.array([(*n, min(4, max(n))) for *_, n in cases.values()])
    # The same with a policy that has moved, and where only the policy's are missing, as another micro-batch's share is.
    ref_lengths = np.concatenate([lengths] * 3)
    lengths = np.concatenate([lengths, lengths, np.zeros_like(lengths)])
    names = [*cases, *(f"{c}, moved" for c in cases), *(f"{c}, not here" for c in cases)]
    return np.concatenate([odds, odds + 0.5, odds]), np.concatenate([odds] * 3), lengths, ref_lengths, names


def test_degenerate_examples_are_finite(objective):
    policy, ref, lengths, ref_lengths, names = degenerate()
    index = np.arange(len(names))
    index += index // 12  # a case and the same, moved, have different labels
    for batch in np.array_split(np.arange(len(names)), -(-len(names) // EXAMPLES)):
        batch = np.resize(batch, EXAMPLES)
        arguments = widened(*(x[batch] for x in (policy, ref, lengths, ref_lengths)))
        losses, metrics, grad = long(objective.name)(*arguments, jnp.asarray(index[batch]))
        for i, name in enumerate(names[n] for n in batch):
            finite = np.isfinite(losses[i]) and np.all(np.isfinite(grad[i]))
            assert finite, f"{name}: loss {losses[i]}, gradient {grad[i]}"
            wrong = {key: float(value[i]) for key, value in metrics.items() if not np.isfinite(value[i])}
            assert not wrong, f"{name}: {wrong}"
            absent = np.arange(LONG)[None, :] >= np.asarray(arguments[1])[i][:, None]
            assert not np.any(np.asarray(grad[i])[absent]), f"{name}: padding gets a gradient"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented(name):
    function = objectives.find(name)
    text = inspect.getdoc(function)
    for part in (".. math::", "Args:", "Returns:", "Example:", ">>>", "Verified:"):
        assert part in text, f"{name} has no {part}"
    for section in ("Args:", "Returns:", "Example:", "Verified:", "Reference:"):
        assert text.count(f"\n{section}\n") <= 1, f"{name} has {section} twice"
    assert name.startswith("sft.") or "Reference:" in text
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter}: " in text, f"{name} does not describe {parameter}"
