"""Laws that hold for every world of the package, found by walking it: a new one inherits them."""

import math
import pkgutil

import numpy as np
import pytest

from slpojax import defaults, models, named, worlds

# World -> (environment variable, folder of the shared data) where it needs some; those take their time.
FOLDERS = {"imdb": ("SLPOJAX_IMDB", "imdb")}
NAMES = [module.name for module in pkgutil.iter_modules(worlds.__path__)]
MARKED = [pytest.param(name, marks=[pytest.mark.check] * (name in FOLDERS)) for name in NAMES]
COUNT = 60


@pytest.fixture(params=MARKED, scope="module")
def world(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param in FOLDERS:
            variable, folder = FOLDERS[request.param]
            patch.setenv(variable, str(request.getfixturevalue("shared_data") / folder))
        yield worlds.find(request.param)[1]


def texts(world, seed: int = 0):
    return list(world.texts(COUNT, np.random.default_rng(seed)))


def test_equal_seeds_give_equal_texts_that_follow_its_prompts(world):
    first, again, other = texts(world), texts(world), texts(world, seed=1)
    assert first == again != other and len(first) == COUNT
    assert len(world.prompts(COUNT)) == COUNT and world.prompts(COUNT) == world.prompts(COUNT)
    assert {prompt for prompt, _ in first} <= set(world.prompts(world.text_count))


def test_its_tokenizer_reads_its_texts_within_the_longest_answer(world):
    tokenizer = world.tokenizer()
    assert tokenizer.eos_token_id is not None
    for prompt, response in texts(world):
        before, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + response))
        assert whole[: len(before)] == before, "a response's tokens are what follows its prompt's"
        assert 1 <= len(whole) - len(before) < world.longest, "with EOS it fits"
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in whole


def test_its_reward_is_finite_for_any_answer_and_tells_its_texts_apart(world):
    (prompt, _), *_ = texts(world)
    rewards = [world.reward(*text) for text in texts(world)]
    assert all(map(math.isfinite, [*rewards, world.reward(prompt, ""), world.reward(prompt, "? x 7")]))
    assert np.std(rewards) > 0.1 and rewards == [world.reward(*text) for text in texts(world)]


def test_its_model_and_settings_are_those_of_the_package(world):
    assert world.settings.keys() <= named.flatten(defaults.get_config().to_dict(), ".").keys()
    models.build({"vocab_size": len(world.tokenizer()), **world.model})
    assert min(world.text_count, world.pair_count, world.held_out, world.judged) > 0
