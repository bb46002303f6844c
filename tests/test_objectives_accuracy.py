"""Float32 values and gradients of the objectives against 120 digits, in every regime from one token to 2,048."""

import jax
import jax.numpy as jnp
import numpy as np
import papers
import pytest

from slpojax import objectives
from slpojax.base import ABSENT, Logps


def odds(count: int, mean: float, seed: int, spread: float = 1.5) -> np.ndarray:
    return (mean + spread * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


def near(x: np.ndarray, move: float, seed: int) -> np.ndarray:
    """A policy that has moved a little."""
    return x + np.float32(move) * np.random.default_rng(seed).standard_normal(len(x)).astype(np.float32)


def regime(length_w, length_l, mean_w, mean_l, move, spread=1.5) -> papers.Pair:
    ref = [odds(length_w, mean_w, 1, spread), odds(length_l, mean_l, 2, spread)]
    policy = [near(ref[0], move, 3), near(ref[1], move, 4)]
    return papers.Pair(*([float(d) for d in x] for x in (*policy, *ref)))


REGIMES = {
    "T=8": regime(8, 8, -2.0, -2.0, 0.3),
    "T=1, 1 - p = 1e-6": regime(1, 1, 13.8, -15.5, 0.3, 0.1),
    "T=1, 1 - p = 1e-9": regime(1, 1, 20.7, -22.5, 0.3, 0.1),
    "T=1, 1 - p = 1e-17": regime(1, 1, 39.0, -41.0, 0.3, 0.1),
    "T=64, each 1 - 1e-6": regime(64, 64, 13.8, -2.0, 0.3, 0.1),
    "T=512, each 1 - 3e-9": regime(512, 512, 19.6, -2.0, 0.3, 0.1),
    "T=512 moved": regime(512, 400, -2.3, -2.6, 0.3),
    "T=512, policy == reference": regime(512, 512, -2.3, -2.3, 0.0),
    "T=512, policy == reference, ranked right": regime(512, 521, -2.3, -2.3, 0.0),
    "T=512, tiny move": regime(512, 512, -2.3, -2.3, 1e-4),
    "T=2048": regime(2047, 2047, -3.2, -3.2, 0.3),
    "T=60": regime(60, 45, -1.2, -1.2, 0.2),
}
OBJECTIVES = {
    "slpo.shift": ({"alpha": 0.5, "scale": "1"}, lambda pair: papers.shift(pair, 0.5)),
    "slpo.pooled": ({"alpha": 0.875, "scale": "1"}, lambda pair: papers.pooled(pair, 0.875)),
    "slpo.mse": ({"alpha": 0.5, "scale": "1"}, lambda pair: papers.mse(pair, 0.5)),
    "slpo.listing": ({"scale": "1"}, papers.listing),
    "slpo.joint": ({"alpha": 0.875, "scale": "1"}, lambda pair: papers.joint_rooted(pair, 0.875)),
    "dpo.sigmoid": ({"beta": 0.125}, lambda pair: papers.dpo(pair, 0.125)),
}
STEP = papers.mpf(10) ** -40


def in_float32(pair: papers.Pair) -> list[tuple[float, list[np.ndarray]]]:
    """Each objective's loss and its gradient by the token log-odds of the chosen and the rejected."""
    lengths = jnp.asarray([len(pair.chosen), len(pair.rejected)], jnp.int32)
    length = int(lengths.max())
    here = jnp.arange(length)[None, :] < lengths[:, None]

    def stack(*responses):
        return jnp.asarray([[*x, *[0.0] * (length - len(x))] for x in responses], jnp.float32)

    def logps(d):
        token, other = -jax.nn.softplus(-d), -jax.nn.softplus(d)
        return Logps(jnp.where(here, token, 0.0), jnp.where(here, other, ABSENT), lengths)

    ref = logps(stack(pair.ref_chosen, pair.ref_rejected))
    functions = [objectives.build(name, **rest).function for name, (rest, _) in OBJECTIVES.items()]
    values = [jax.value_and_grad(lambda d, f=f: f(policy=logps(d), ref=ref)[0]) for f in functions]
    results = jax.jit(lambda d: [value(d) for value in values])(stack(pair.chosen, pair.rejected))
    return [(float(x), [np.asarray(g[k, : int(lengths[k])], np.float64) for k in (0, 1)]) for x, g in results]


def exact_gradient(loss, pair: papers.Pair, side: str) -> np.ndarray:
    """dL/dd_k: a difference quotient for the first token, and dL/dlog p_k is the same for every token."""
    y = getattr(pair, side)

    def moved(step):
        return loss(papers.Pair(**(vars(pair) | {side: [papers.mpf(y[0]) + step, *y[1:]]})))

    first = (moved(STEP) - moved(-STEP)) / (2 * STEP)
    gone = [1 / (1 + papers.mp.exp(papers.mpf(d))) for d in y]
    return np.array([float(first * g / gone[0]) for g in gone])


# The longest in every run of the tests; all of them in `make check`.
FEW = ("T=2048",)


@pytest.mark.parametrize(
    "pair",
    [pytest.param(x, id=name, marks=[] if name in FEW else pytest.mark.check) for name, x in REGIMES.items()],
)
def test_float32_keeps_three_digits_of_every_gradient(pair):
    table = {}
    for (name, (_, paper)), (loss, grads) in zip(OBJECTIVES.items(), in_float32(pair), strict=True):
        truth = [exact_gradient(paper, pair, side) for side in ("chosen", "rejected")]
        norms = [np.linalg.norm(t) for t in truth]
        if name == "slpo.joint":
            # Next to p = 1 two classes exchange nearly all mass; the chosen's gradient is what their balance leaves,
            # 1e-7 of the rejected's and as exact as float32 holds the larger one.
            norms = [np.linalg.norm(norms)] * 2
        errors = [np.linalg.norm(g - t) / n for g, t, n in zip(grads, truth, norms, strict=True) if n > 1e-30]
        value = abs(loss - float(paper(pair))) / float(paper(pair))
        table[name] = [value, *errors]
        print(f"{name:13} value {value:.0e}, gradient {', '.join(f'{e:.0e}' for e in errors)}")
    assert all(max(errors) < 1e-3 for errors in table.values()), table
