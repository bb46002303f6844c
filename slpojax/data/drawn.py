"""Examples without a data set: random tokens, of the lengths that dialogues have.

For plans and benchmarks, whose numbers depend on lengths alone. Knows distributions of lengths; knows no text and no
tokenizer.
"""

from collections.abc import Sequence

import numpy as np

from slpojax.base import Int
from slpojax.data.examples import Example, Examples, build

HH = 160_800  # pairs of Anthropic's HH that are trained on (Bai et al. 2022, its published files)


def lengths(
    count: int, candidates: int = 2, seed: int = 0, longest: int = 512
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, "N K"]]:
    """Return the tokens of prompts [count] and responses [count, candidates], log-normal as those of HH.

    The means are about 138 and 60 before any is cut; prompts have at least 4 tokens, and with any of their responses at
    most `longest`.
    """
    drawn = np.random.default_rng(seed).lognormal([4.65] + [3.8] * candidates, 0.75, (count, 1 + candidates))
    drawn = np.clip(drawn, 4, longest // 2).astype(int)
    return drawn[:, 0], drawn[:, 1:]


def examples(
    prompt: np.ndarray | Sequence[int],
    response: np.ndarray | Sequence[Sequence[int]],
    vocabulary: int,
    seed: int = 0,
) -> Examples:
    """Return examples of random tokens, of given lengths, the first candidate scored best.

    Args:
        prompt: [N] tokens of each prompt.
        response: [N, K] of each, tokens of every response.
        vocabulary: how many tokens there are.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)

    def text(size: int) -> np.ndarray:
        return rng.integers(0, vocabulary, size).astype(np.int32)

    made = [
        Example(text(size), tuple(text(n) for n in sizes), tuple(float(-k) for k in range(len(sizes))), i)
        for i, (size, sizes) in enumerate(zip(np.asarray(prompt).tolist(), np.asarray(response).tolist(), strict=True))
    ]
    return build(made, candidates=len(made[0].responses))
