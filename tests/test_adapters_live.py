"""Adapters against peft: the policy and its gradients on every family, folders both ways, whole runs against TRL's."""

import json

import jax
import numpy as np
import pytest
import reward_tools
import test_trl_live as trl_runs
import trl_tools
from laws.test_every_family import CONFIGS
from model_tools import cross_entropy, plain
from safetensors.numpy import load_file

from slpojax import adapters, grid, hf, models, named, rewards, trained
from slpojax.trained import pairs

pytestmark = [pytest.mark.check, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-4  # float32 in two frameworks, relative to 1 + the size of a number
STEPS = 10


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("torch", reason="the witness is torch: make check installs it")
    return pytest.importorskip("peft", reason="the witness is peft: make check installs it")


def near(ours, theirs, what=""):
    error = np.abs(ours - theirs) / (1 + np.abs(theirs))
    assert error.max() < TOLERANCE, (what, error.max())


def theirs(peft, folder, config, **options):
    """A random model and an adapter of it in folders, and the network with both."""
    import torch
    import transformers

    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    network.save_pretrained(folder / "model")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    wanted = {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    network = peft.get_peft_model(network, peft.LoraConfig(**(wanted | options)))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(folder / "adapter")
    return network


def policy_of(folder, model):
    """The parameters of a model with an adapter beside it, and the adapter."""
    adapter = adapters.read(folder / "adapter", model)
    held = adapters.load(adapter, model, None)
    leaves = named.flatten(hf.load(folder / "model", model, given={path: held[path] for path in adapter.whole}))
    weights = {path: leaves[f"{path}/weight"] for path in adapter.adapted}
    return adapter, named.nested(leaves | held | pairs.scales(adapter.lora, weights))


# A case of every family, and of everything that a folder may hold.
CASES = {
    "llama, grouped and tied": {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "gpt_neox": {"modules_to_save": ["embed_out", "gpt_neox.final_layer_norm"]},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"target_modules": ["q_proj", "k_proj", "up_proj"], "r": 3, "lora_alpha": 7},
    "gemma2": {},
    "gemma3_text": {},
    "olmo2": {},
    "olmo3": {},
    "smollm3": {},
}


def test_every_family_is_compared():
    assert {CONFIGS[name]["model_type"] for name in CASES} == models.families().keys()


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_peft_s(peft, name, tmp_path):
    import torch
    import transformers

    network, config = theirs(peft, tmp_path, CONFIGS[name], **CASES[name]), CONFIGS[name]
    ids = np.random.default_rng(0).integers(0, 61, (2, 7))
    logits = network(torch.tensor(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.tensor(ids[:, 1:]).flatten())
    loss.backward()

    model = models.build(config)
    adapter, policy = policy_of(tmp_path, model)
    gradient = jax.jit(jax.value_and_grad(lambda p: cross_entropy(model, p, plain(ids)), has_aux=True))
    (value, ours), slope = gradient(policy)
    near(ours, logits.detach().numpy(), "logits")
    near(value, loss.item(), "loss")
    slopes, compared = named.flatten(slope), 0
    of_names = dict(network.named_parameters())
    for path, names in adapter.tensors.items():
        for layer, tensor in enumerate(names):
            # A folder says neither the name of the adapter nor what holds a module that is saved whole.
            inner = tensor.removesuffix(".weight").removesuffix(".bias")
            end = tensor.removeprefix(inner)
            candidates = (f"{inner}.default{end}", f"{inner}.modules_to_save.default{end}")
            expected = next(of_names[c] for c in candidates if c in of_names).grad.numpy()
            near(slopes[path][layer] if len(names) > 1 or path.startswith("layers/") else slopes[path], expected, path)
            compared += 1
    assert compared == len([p for p in of_names.values() if p.requires_grad])

    # What is written is what peft reads, and the sum of both is a model without adapters.
    adapters.save(tmp_path / "ours", policy, model, adapter.lora, whole=adapter.whole, base=str(tmp_path / "model"))
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.tensor(ids)).logits, logits.detach(), atol=1e-5)
    both = [load_file(tmp_path / which / "adapter_model.safetensors") for which in ("ours", "adapter")]
    assert both[0].keys() == both[1].keys()
    for tensor in both[1]:
        np.testing.assert_array_equal(both[0][tensor], both[1][tensor])
    hf.save(tmp_path / "merged", named.nested(pairs.lazily_merged(named.flatten(policy))), model, config)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        near(merged(torch.tensor(ids)).logits.numpy(), logits.detach().numpy(), "merged")


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox"])
def test_an_adapter_of_a_reward_model_scores_as_peft_s(peft, family, tmp_path):
    """Of a language model, to which it brings the head; there and, written by us, back."""
    import torch
    import transformers

    reward_tools.make(tmp_path / "made", family)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "made")
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    for name in hf.TOKENIZER:
        if (tmp_path / "made" / name).is_file():
            (tmp_path / "model" / name).write_bytes((tmp_path / "made" / name).read_bytes())

    network = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1)
    wanted = peft.LoraConfig(target_modules="all-linear", r=4, lora_alpha=8, task_type="SEQ_CLS")
    network = peft.get_peft_model(network, wanted)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(tmp_path / "adapter")

    def scores(network):
        some = zip(reward_tools.PROMPTS, reward_tools.ANSWERS, strict=True)
        ids = [[reward_tools.texts(prompt, answer) for answer in answers] for prompt, answers in some]
        with torch.no_grad():
            return np.array([[network(torch.tensor([one])).logits.item() for one in answers] for answers in ids])

    expected = scores(network.eval())
    rewarder = rewards.load(tmp_path / "adapter", grid.one_device())
    near(rewards.scores(rewarder, reward_tools.PROMPTS, reward_tools.ANSWERS), expected, family)
    assert np.ptp(expected) > 0.1

    adapter = adapters.read(tmp_path / "adapter", rewarder.model)
    base = str(tmp_path / "model")
    adapters.save(tmp_path / "ours", rewarder.params, rewarder.model, adapter.lora, whole=adapter.whole, base=base)
    again = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "ours", num_labels=1)
    near(scores(again.eval()), expected, "written by us")


workplace = trl_runs.workplace
CHANGES = {"train.what": "lora", "lora.rank": 4, "lora.alpha": 8.0, "model.frozen_dtype": "float32"}


@pytest.mark.optimised
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_ten_steps_are_trl_s(peft, workplace, family, monkeypatch):
    """Both start from the same adapter, whose product is zero; the reference is the model without it."""
    import torch
    import transformers
    import trl
    from datasets import Dataset

    for name, value in (("STEPS", STEPS), ("LEARNING_RATE", 1e-2)):
        monkeypatch.setattr(trl_runs, name, value)
    rows = trl_runs.pairs(workplace) * 2  # ten batches
    model, start, output = (workplace / family / name for name in ("policy", "start", "theirs"))
    torch.manual_seed(3)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    wanted = peft.LoraConfig(target_modules="all-linear", r=4, lora_alpha=8, task_type="CAUSAL_LM")
    network = peft.get_peft_model(network, wanted)
    network.save_pretrained(start)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(start)
    arguments = trl.DPOConfig(
        str(output),
        loss_type=["sigmoid"],
        beta=0.1,
        **trl_tools.arguments(
            per_device_train_batch_size=trl_runs.BATCH,
            max_steps=STEPS,
            learning_rate=1e-2,
            max_grad_norm=trl_runs.CLIP,
        ),
    )
    data = Dataset.from_list(rows[: STEPS * trl_runs.BATCH])
    trainer = trl.DPOTrainer(model=network, args=arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(output))
    expected = [row for row in trainer.state.log_history if "loss" in row]

    (workplace / "ten.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = CHANGES | {"model.path": start, "data.path": workplace / "ten.jsonl", "data.eval_rows": ""}
    got = trl_runs.run(workplace, f"ours_lora_{family}", family, "sigmoid", 1, changes | {"reference.path": ""})
    assert len(got) == len(expected) == STEPS
    for step, (mine, yours) in enumerate(zip(got, expected, strict=True)):
        for name in {*trl_runs.NAMES, "grad_norm"} - ({"rewards/accuracies"} if step == 0 else set()):  # margins of 0
            assert trl_runs.relative(mine[name], yours[name]) < TOLERANCE, (name, mine[name], yours[name])
    folders = [workplace / f"ours_lora_{family}" / "hf", output, start]
    ours, trls, begun = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert ours.keys() == trls.keys()
    assert max(np.abs(ours[name] - trls[name]).max() for name in trls) < TOLERANCE
    assert min(np.abs(ours[name] - begun[name]).max() for name in trls) > 1e-3
    assert trained.LORA in (workplace / f"ours_lora_{family}" / "config.json").read_text()
