"""Laws of the policies for over-long examples, on random lengths."""

import numpy as np
import pytest

from slpojax.data import too_long
from slpojax.data.formats import Unusable
from slpojax.data.too_long import PROMPT_CUT, RESPONSE_CUT, Budget

EOS, BOS = 9, 8


def random_case(seed):
    random = np.random.default_rng(seed)
    prompt = np.concatenate([[BOS], random.integers(0, 8, random.integers(0, 40))]).astype(np.int32)
    responses = tuple(np.append(random.integers(0, 8, random.integers(0, 40)), EOS).astype(np.int32) for _ in range(3))
    return prompt, responses, Budget(length=32, prompt=int(random.integers(1, 31)), bos=BOS)


@pytest.mark.parametrize("name", too_long.POLICIES)
def test_laws(name):
    policy, outcomes = too_long.find(name), {"whole": 0, "cut": 0, "dropped": 0}
    for seed in range(500):
        prompt, responses, budget = random_case(seed)
        fits = len(prompt) + max(map(len, responses)) <= budget.length
        try:
            cut = policy(prompt, responses, budget)
        except Unusable:
            assert not fits and name in ("drop", "cut_prompt")
            outcomes["dropped"] += 1
            continue
        outcomes["whole" if fits else "cut"] += 1
        shorter = len(cut.prompt) < len(prompt)
        lost = [kept[-1] != EOS for kept in cut.responses]
        # What is kept fits, what fits is left alone, and nothing is cut without a note.
        assert len(cut.prompt) + max(map(len, cut.responses)) <= budget.length
        assert cut.notes == (PROMPT_CUT,) * shorter + (RESPONSE_CUT,) * sum(lost)
        assert bool(cut.notes) == (not fits)
        assert name in ("cut_response", "original") or not any(lost)
        # The prompt keeps its end (and its BOS), the responses their beginnings; none is empty.
        for kept, whole in zip(cut.responses, responses, strict=True):
            assert len(kept) and np.array_equal(kept, whole[: len(kept)])
            assert (kept[-1] == EOS) == (len(kept) == len(whole))
        if name != "original":
            assert cut.prompt[0] == BOS and np.array_equal(cut.prompt[1:], prompt[len(prompt) - len(cut.prompt) + 1 :])
            assert len(cut.prompt) >= min(len(prompt), budget.prompt)
    assert outcomes["whole"] > 20 and outcomes["dropped" if name == "drop" else "cut"] > 20


def test_cut_prompt_uses_all_the_room():
    prompt, response = np.arange(100, dtype=np.int32), np.array([1, 2, EOS], np.int32)
    cut = too_long.cut_prompt(prompt, (response, response[1:]), Budget(length=50, prompt=20))
    assert np.array_equal(cut.prompt, np.arange(53, 100))
    with pytest.raises(Unusable):
        too_long.cut_prompt(prompt, (np.arange(31, dtype=np.int32),), Budget(length=50, prompt=20))


def test_original_cuts_responses_to_the_same_length_after_a_short_prompt():
    prompt, response = np.arange(10, dtype=np.int32), np.arange(600, dtype=np.int32)
    cut = too_long.original(prompt, (response, response[:300], response[:30]), Budget(length=512, prompt=256))
    assert [len(cut.prompt), *map(len, cut.responses)] == [10, 256, 256, 30]
    assert cut.notes == (RESPONSE_CUT,) * 2


def test_an_unknown_policy_is_an_error():
    with pytest.raises(ValueError, match="near: cut_prompt.*drop, cut_prompt"):
        too_long.find("cut_promt")
