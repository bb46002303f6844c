"""The command line and the configuration files: what is accepted, and what the errors say."""

import re

import pytest
from ml_collections import ConfigDict

from configs import base
from slpojax import named, settings

FUNCTIONS = {
    "dpo.sigmoid": {"beta": 0.1},
    "dpo.conservative": {"beta": 0.1, "smoothing": 0.1},
    "slpo.shift": {"alpha": 0.9, "temperature": "length", "clip": None, "steps": 3, "betas": (0.9, 0.95), "norm": max},
    "adamw": {"b1": 0.9},
}


def defaults(name):
    if name not in FUNCTIONS:
        raise ValueError(f"no function {name!r}; there are {sorted(FUNCTIONS)}")
    return FUNCTIONS[name]


CHOICES = {"objective": defaults, "optimizer": defaults}


def resolve(overrides, config=None):
    return settings.resolve(config or base.get_config(), overrides, choices=CHOICES)


def test_text_becomes_the_type_of_the_value_it_replaces():
    config = resolve(
        {
            "batch_size": "32",
            "steps": "1e4",
            "learning_rate": "1",
            "data.pack": "false",
            "data.rows": "0:2000",
            "output": "7",
            "mesh.data": "-1",
        }
    )
    assert (config.batch_size, config.steps, config.learning_rate) == (32, 10_000, 1.0)
    assert (config.data.pack, config.data.rows, config.output, config.mesh.data) == (False, "0:2000", "7", -1)
    assert type(config.learning_rate) is float and type(config.steps) is int


def test_hyperparameters_are_spelt_out_and_overridden():
    config = resolve({"objective.beta": "0.3"})
    assert config.objective.to_dict() == {"name": "dpo.sigmoid", "beta": 0.3}
    assert config.optimizer.to_dict() == {"name": "adamw", "b1": 0.9}


def test_another_name_starts_from_its_own_defaults():
    config = base.get_config()
    config.objective = ConfigDict({"name": "dpo.conservative", "beta": 0.7, "smoothing": 0.2})
    assert resolve({"objective.name": "dpo.sigmoid"}, config).objective.to_dict() == {
        "name": "dpo.sigmoid",
        "beta": 0.1,
    }
    # The same name on the command line changes nothing.
    assert resolve({"objective.name": "dpo.conservative"}, config).objective.smoothing == 0.2


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("512", "temperature", 512.0),
        ("length", "temperature", "length"),
        ("1.5", "clip", 1.5),
        ("(0.8, 0.9)", "betas", (0.8, 0.9)),
    ],
)
def test_hyperparameters_are_literals(text, key, value):
    objective = resolve({"objective.name": "slpo.shift", f"objective.{key}": text}).objective
    assert objective[key] == value and type(objective[key]) is type(value)
    assert "norm" not in objective  # a default that JSON cannot hold stays with the function


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"batchsize": "3"}, ["config.batchsize", "near: config.batch_size"]),
        ({"max_length": "3"}, ["config.max_length", "config.data.max_length"]),
        ({"data.maxlength": "3"}, ["config.data.max_length"]),
        ({"modle.path": "x"}, ["config.modle.path", "config.model.path"]),
        ({"seed.x": "1"}, ["unknown key 'config.seed.x'", "near: config.seed"]),
        ({"model": "x"}, ["config.model: a group", "config.model.path"]),
        ({"objective": "dpo.ipo"}, ["config.objective: a group", "config.objective.name"]),
        ({"zzz": "1"}, ["config.zzz", "--help lists all", "slpojax/defaults.py explains each"]),
        ({"batch_size": "many"}, ["config.batch_size", "'many'", "an int"]),
        ({"batch_size": "2.5"}, ["config.batch_size", "2.5", "an int"]),
        ({"data.pack": "1"}, ["config.data.pack", "a bool"]),
        ({"clip_norm": "true"}, ["config.clip_norm", "True", "a float"]),
        ({"seed": 1.5}, ["config.seed"]),
        ({"output": 3}, ["config.output", "a str"]),
        ({"objective.name": "dpo.sigmod"}, ["dpo.sigmod", "dpo.sigmoid"]),
        (
            {"objective.betta": "1"},
            ["config.objective 'dpo.sigmoid' has no hyperparameter 'betta'", "near: beta", "it has beta"],
        ),
        ({"objective.beta": "big"}, ["config.objective.beta", "'big'", "a float"]),
        ({"objective.beta.x": "1"}, ["config.objective 'dpo.sigmoid' has no hyperparameter 'beta.x'"]),
    ],
)
def test_mistakes_are_named(overrides, words):
    with pytest.raises(ValueError) as caught:
        resolve(overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("learning_rate", "-5", "config.learning_rate = -5.0: expected a number from 0 to"),
        ("learning_rate", "1e999", "config.learning_rate = inf: expected a number from 0 to"),
        ("learning_rate", "1" + "0" * 400, "config.learning_rate = inf: expected"),
        ("learning_rate", "nan", "config.learning_rate: got 'nan', expected a float"),
        ("warmup_steps", "-1", "config.warmup_steps = -1: expected a whole number from 0 to"),
        ("clip_norm", "-1", "config.clip_norm = -1.0"),
        ("batch_size", "999999999999", "config.batch_size = 999999999999: expected a whole number from 1 to 131,072"),
        ("accumulate", "0", "config.accumulate = 0: expected a whole number from 1 to"),
        ("seed", "-1", "config.seed = -1: expected a whole number from 0"),
        ("epochs", "0", "config.epochs = 0.0: expected a number from above 0"),
        ("checkpoint_every", "-7", "config.checkpoint_every = -7: expected a whole number from -1"),
        ("reference.batch_size", "-1", "config.reference.batch_size = -1: expected"),
        ("reference.mix", "1.5", "config.reference.mix = 1.5: expected a number from above 0 to 1"),
        ("optimizer.b1", "1", "config.optimizer.b1 = 1.0: expected a number from 0 to below 1"),
        ("schedule", "liner", "unknown config.schedule 'liner' (near: linear); there are constant, linear, cosine"),
        ("objective.beta", "1e38", "config.objective.beta = 1e+38: expected a finite number from -1e+15 to 1e+15"),
        ("batch_size", "x" * 100_000, "config.batch_size: got 'xxx"),
        ("x" * 100_000, "1", "unknown key 'config.xxx"),
        ("steps", "(" * 5000, "config.steps: got '((("),
        ("model.path", "x" * 300, "config.model.path = 'xxx"),
        ("data.path", "a\x00b", "config.data.path = 'a\\x00b': expected a text on one line"),
        ("output", "a/" * 50_000, "expected at most 16,384 characters"),
    ],
)
def test_values_that_no_run_can_mean_are_refused_in_a_short_line(key, text, words):
    with pytest.raises(ValueError) as caught:
        resolve({key: text})
    assert words in str(caught.value) and len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_names_of_files_may_hold_any_letter():
    for path in ("runs/é 語\u3000x", "a\u200db \N{PARTY POPPER}", "lr[1e-6],b.jsonl", "~/%d%s"):
        assert resolve({"output": path}).output == path


def test_what_a_file_sets_is_checked_like_an_override():
    config = base.get_config()
    config.learning_rate = -1.0
    with pytest.raises(ValueError, match=r"config.learning_rate = -1.0"):
        resolve({}, config)


def test_result_is_frozen_and_the_file_untouched():
    config = base.get_config()
    frozen = resolve({"seed": "5"}, config)
    with pytest.raises(AttributeError):
        frozen.seed = 6
    assert config.seed == 0 and "beta" not in config.objective


def test_replace_checks_like_an_override():
    config = resolve({"objective.beta": "0.5"})
    changed = settings.replace(config, {"model.path": "a", "data.path": "b"})
    assert (changed.model.path, changed.data.path, changed.objective.beta, config.model.path) == ("a", "b", 0.5, "")
    with pytest.raises(ValueError, match="config.model.path"):
        settings.replace(config, {"modle.path": "a"})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"warmup_steps": 0}, []),
        ({"warmup_steps": 40, "schedule_steps": 120}, []),
        ({"warmup_steps": 40}, ["the warm-up of 40 steps is as long as the run of 40: the learning rate ends at 98%"]),
        ({"warmup_steps": 0, "checkpoint_every": 10, "eval_every": 4}, ["ranks those of every 20 steps and the last"]),
        (
            {"warmup_steps": 0, "checkpoint_every": 30, "eval_every": 20},
            ["keep_best=1 ranks the last checkpoint alone"],
        ),
        ({"warmup_steps": 0, "checkpoint_every": 20, "eval_every": 0}, ["keep_best=1 ranks the last checkpoint alone"]),
        ({"warmup_steps": 0, "checkpoint_every": 30, "eval_every": 20, "keep_best": 0}, []),
        ({"warmup_steps": 0, "model.dtype": "bfloat16"}, ["margins in training are rounding"]),
    ],
    ids=str,
)
def test_what_the_keys_do_not_say_at_first_sight_is_said(changes, says):
    notes = settings.notes(resolve({"data.eval_rows": "0:9"} | changes), 40, reference=True)
    assert len(notes) == len(says)
    for note, words in zip(notes, says, strict=True):
        assert words in note


def test_json_round_trip():
    config = resolve({"objective.name": "slpo.shift"})
    assert settings.load(settings.dump(config)) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--confg=x.py"], "--confg=x.py: expected --config=FILE"),
        (["--config"], "--config: expected a value"),
        (["--config.seed", "--config.steps=1"], "--config.seed: expected a value"),
        (["seed=3"], "seed=3: expected"),
    ],
)
def test_malformed_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        settings.parse(arguments, default="x.py")


def test_negative_and_spaced_values():
    arguments = ["--config.mesh.data", "-1", "--config", "a.py", "--config.data.path=b=c"]
    assert settings.parse(arguments, default="") == ("a.py", {"mesh.data": "-1", "data.path": "b=c"})


def test_files(tmp_path, capsys):
    def write(name, text):
        (tmp_path / name).write_text("from configs import base\n" + text)
        return str(tmp_path / name)

    good = write("good.py", "def get_config():\n    c = base.get_config()\n    c.objective.beta = 0.3\n    return c\n")
    typo = write("typo.py", "def get_config():\n    c = base.get_config()\n    c.batchsize = 3\n    return c\n")
    kind = write("kind.py", "def get_config():\n    c = base.get_config()\n    c.batch_size = 'x'\n    return c\n")
    none = write("none.py", "")
    prose = write("prose.py", "This is no program.\n")
    empty = write("empty.py", "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n")

    def run(*arguments):
        return settings.from_command_line(arguments, default=good, choices=CHOICES)

    assert run("--config.seed=4").seed == 4 and run().objective.beta == 0.3
    for path, words in [
        (typo, "batchsize"),
        (kind, "batch_size"),
        (none, "get_config"),
        (prose, "no Python (line 2"),
        (empty, "keys such as"),
        ("x" * 300, "at most 255 bytes"),
        (good[:-4] + ".py", "near: "),
    ]:
        with pytest.raises(SystemExit, match="error: --config ?=.*") as caught:
            run(f"--config={path}")
        assert words in str(caught.value)
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0 and "--config.data.max_length=512" in capsys.readouterr().out


def test_help_explains_every_key(capsys):
    with pytest.raises(SystemExit):
        settings.from_command_line(["--help"], default="configs/quickstart.py", choices=CHOICES)
    shown = capsys.readouterr().out
    for key, words in [
        ("seed=0", "parameters (if random), order of the data"),
        ("data.too_long=cut_prompt", "drop | cut_prompt | cut_response (loses EOS, counted)"),
        ("objective.name=slpo.shift", "An objective: name = module.function of slpojax.objectives"),
        ("reference.mix=0.6", "each to mix * policy + (1 - mix) * reference"),
    ]:
        assert re.search(rf"--config\.{re.escape(key)}\n +{re.escape(words)}", shown), key
    assert shown.index("config.objective.name") < shown.index("config.objective.alpha") < shown.index("config.selector")
    assert "python -m slpojax.objectives slpo.shift" in shown and max(map(len, shown.splitlines())) <= 100
    assert len(settings._comments()) >= len(named.flatten(base.get_config().to_dict(), ".")) - 3


def test_variables_of_a_chat_template_are_named_freely_and_read_as_literals():
    config = base.get_config()
    config.data.chat_template_kwargs.depth = 3
    override = {"data.chat_template_kwargs.enable_thinking": "false", "data.chat_template_kwargs.mood": "calm"}
    found = settings.resolve(config, override, choices=CHOICES).data.chat_template_kwargs
    assert found.to_dict() == {"depth": 3, "enable_thinking": False, "mood": "calm"}
    with pytest.raises(ValueError, match="^config.data.chat_template_kwargs: a group of keys; set one, as"):
        settings.resolve(config, {"data.chat_template_kwargs": "x"}, choices=CHOICES)
    with pytest.raises(ValueError, match="^config.data.chat_template_kwargs.mood = {.*}: expected a number, a word"):
        settings.resolve(config, {"data.chat_template_kwargs.mood": "{'a': 1}"}, choices=CHOICES)


def test_help_shows_a_group_whose_names_are_free(capsys):
    with pytest.raises(SystemExit):
        settings.from_command_line(["--help"], default="configs/frontier_reviews.py", choices=CHOICES)
    shown = capsys.readouterr().out
    assert shown.index("config.frontier.methods.dpo.label=DPO") < shown.index("config.frontier.seeds")


@pytest.mark.parametrize(
    ("key", "near"),
    [("batchsize", "(near: config.batch_size"), ("data.pth", "(near: config.data.path"), ("prune.share", "")],
)
def test_an_unknown_key_lists_near_ones_and_no_others(key, near):
    with pytest.raises(ValueError, match=f"unknown key 'config.{key}'") as caught:
        resolve({key: "3"})
    assert near in str(caught.value) and len(str(caught.value)) < 250 and ("near" in str(caught.value)) == bool(near)


def test_a_shipped_config_is_found_from_anywhere_and_a_file_of_ones_own_comes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = settings.from_command_line([], default="configs/quickstart.py", choices={})
    assert (
        config.world == "reviews"
        and "configs/quickstart.py: the one that comes with slpojax" in capsys.readouterr().err
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text("from slpojax.defaults import get_config\n")
    assert settings.from_command_line([], default="configs/quickstart.py", choices={}).world == ""
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit, match="no such file"):
        settings.from_command_line(["--config=configs/mine.py"], default="", choices={})
