"""DPO of Qwen3-0.6B by adapters on UltraFeedback: one GPU of 16 GB, or one TPU chip.

Command:   python -m slpojax.train --config=configs/qwen3_lora_dpo.py
           The output folder's hf/ is an adapter that peft loads beside the model.
Offline:   ... --config.model.path=FOLDER --config.data.path=FOLDER, a copy of the data set in its own layout
Hardware:  `python benchmarks/fits.py` says what the compiler asks for; README.md has the table.
Settings:  the data, 1,024 tokens of which 512 may be the prompt, AdamW, the cosine with a tenth of warm-up and one pass
           are the alignment handbook's for UltraFeedback. Adapters on every linear map, of rank 16 with alpha 32, and a
           rate of 5e-6, ten times that of all weights, are ours, after Schulman et al., LoRA Without Regret, 2025
           (adapters want ten times the rate); beta 0.1 is the paper's.
Expected:  at step 0 a loss of log 2 and margins of exactly 0. Not run at this size yet; the tests run it with a tiny
           model of the same type and layout.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = base.get_config()
    c.output = "output/qwen3_lora_dpo"
    c.model.path = "Qwen/Qwen3-0.6B"
    c.model.dtype = "bfloat16"
    c.model.frozen_dtype = "bfloat16"
    c.model.remat = "layer"
    c.train.what = "lora"

    c.data.path = "HuggingFaceH4/ultrafeedback_binarized"
    c.data.split = "train_prefs"
    c.data.eval_split = "test_prefs"
    c.data.format = "conversational"
    c.data.chat_template_kwargs.enable_thinking = False
    c.data.max_length = 1024
    c.data.max_prompt_length = 512

    c.objective = ConfigDict({"name": "dpo.sigmoid", "beta": 0.1})
    c.batch_size = 64
    c.accumulate = 16
    c.optimizer = ConfigDict({"name": "adamw"})
    c.learning_rate = 5e-6
    c.schedule = "cosine"
    c.warmup_steps = 95
    c.clip_norm = 1.0
    return c
