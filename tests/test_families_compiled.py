"""Every model family's training step, compiled as a run compiles it for devices that are not there."""

import importlib.util
import json
import os
import pathlib

import pytest

from slpojax import models, plan, settings
from slpojax.plan import making, programs

TPU = pathlib.Path(os.environ.get("TPU_LIBRARY_PATH", "")).is_file()
GPU = importlib.util.find_spec("jax_cuda13_plugin") is not None
CONFIG = {
    "vocab_size": 256,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "max_position_embeddings": 1024,
    "initializer_range": 0.02,
}
_WINDOW = {"sliding_window": 64}
ABSENT = object()  # a key that the family does not have
MORE = {
    "gpt_neox": {"num_key_value_heads": ABSENT, "head_dim": ABSENT},
    "mistral": _WINDOW,
    "gemma2": _WINDOW | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": _WINDOW | {"sliding_window_pattern": 2},
    "olmo3": _WINDOW | {"layer_types": ["full_attention", "sliding_attention"]},
    "smollm3": {"no_rope_layer_interval": 2, "pad_token_id": None},
}
CAPPED = ("gemma2",)  # cuDNN's kernel has no cap


def compiled(family: str, folder: pathlib.Path, changes: dict):
    """The plan of DPO on a small model of a family."""
    config = CONFIG | {"model_type": family} | MORE.get(family, {})
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ABSENT}))
    small = {"batch_size": 8, "data.row_length": 256, "data.max_length": 128, "plan.cache": "", "accumulate": 4}
    changes = small | {"model.path": str(folder), "model.dtype": "bfloat16"} | changes
    return making.make(settings.resolve(settings.load_file("configs/dpo_hh.py"), changes, choices=plan.CHOICES))


@pytest.mark.check
@pytest.mark.skipif(not TPU, reason="`make check` installs libtpu and points TPU_LIBRARY_PATH at it")
@pytest.mark.parametrize("family", sorted(models.families()))
def test_a_tpu_trains_every_family(family, tmp_path):
    """With its kernel of attention, which keeps to windows and caps, and heads over two chips."""
    mesh = {"plan.topology": "v5e-4", "mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2}
    made = compiled(family, tmp_path, mesh | {"model.attention": "splash"})
    assert making.fit(made).fits
    assert {axis for one in made.programs[programs.STEP].exchanges for axis in one.axes} >= {"fsdp", "tensor"}


@pytest.mark.check
@pytest.mark.skipif(not GPU, reason="pip install 'jax[cuda13]'")
@pytest.mark.parametrize("family", sorted(models.families()))
def test_a_gpu_trains_every_family(family, tmp_path):
    attention = "tiles" if family in CAPPED else "cudnn"
    mesh = {"plan.topology": "h200:2", "mesh.data": 1, "mesh.fsdp": 2}
    assert making.fit(compiled(family, tmp_path, mesh | {"model.attention": attention})).fits
