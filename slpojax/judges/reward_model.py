"""A trained reward model as a judge. Knows its folder; `slpojax.rewards` computes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from slpojax import bench, folders, grid, rewards
from slpojax.judges import SCORES, Context, Loaded, Question, Skip, Verdict, require

AT_ONCE = 64  # prompts, with all of their answers
CHANGE_NO_VERDICT = ("path",)  # a place, of whose contents there is a digest
_LONG = Skip("an answer longer than the reward model reads")


def score(context: Context, *, path: str = "") -> Loaded:
    """Score answers by a reward model: a folder of `...ForSequenceClassification` with one label, or an adapter of one.

    Args:
        context: devices and dtype.
        path: the folder, or a name on the hub.

    Raises:
        ValueError: there is no such folder, or it holds no reward model that is known.
    """
    require(path, "path", path, "the folder of a reward model")
    folder = folders.resolve(path, key="judge.path")
    devices = context.grid or grid.one_device()
    rewarder = rewards.load(folder, devices, context.dtype, key="judge.path")

    def scores(questions: Sequence[Question]) -> list[Verdict]:
        """Return the scores of prompts with as many answers each."""
        asked = [question.prompt for question in questions], [list(question.answers) for question in questions]
        try:
            found: Any = rewards.scores(rewarder, *asked, too_long="skip")
        except ValueError as error:
            if len(questions) == 1:
                return [Skip("the reward model refuses the prompt or an answer", more=str(error))]
            return [verdict for question in questions for verdict in scores([question])]
        return [_LONG if np.isnan(row).all() else row for row in found]

    def ask(questions: Sequence[Question]) -> list[Verdict]:
        found: dict[int, Verdict] = {}
        for count in sorted({len(question.answers) for question in questions}):
            here = [i for i, question in enumerate(questions) if len(question.answers) == count]
            found |= zip(here, scores([questions[i] for i in here]), strict=True)
        return [found[i] for i in range(len(questions))]

    depends = {"reward model": bench.weights_digest(folder, "judge.path"), "dtype": context.dtype}
    return Loaded(SCORES, ask, at_once=AT_ONCE, depends=depends, every_host=True)
