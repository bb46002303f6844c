"""DPO of Tulu 3: the 8B model after its SFT, on its authors' mixture of preferences, with log-ratios per token.

Command:   python -m slpojax.train --config=configs/tulu3_dpo.py
Offline:   ... --config.model.path=FOLDER --config.data.path=FOLDER, a copy of the data set in its own layout
Hardware:  weights, gradients and moments in float32 take 128 GB: `mesh.fsdp` over eight accelerators of 40 GB; the
           reference's log-probs are computed once and cached.
Settings:  Lambert et al., Tulu 3, 2024 (arXiv 2411.15124, section 5 and the released recipe): DPO whose log-ratios are
           divided by the length, beta 5, rate 5e-7, linear with a tenth of warm-up, batch 128, 2,048 tokens, one pass.
Differs:   a tenth of warm-up is counted for their 271,409 pairs; the prompt may keep 1,024 of the tokens.
Expected:  at step 0 a loss of log 2 and margins of exactly 0. Not run at this size yet; the tests run it with a tiny
           model of the same type and layout.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = base.get_config()
    c.output = "output/tulu3_dpo"
    c.model.path = "allenai/Llama-3.1-Tulu-3-8B-SFT"
    c.model.dtype = "bfloat16"
    c.model.remat = "layer"
    c.mesh.fsdp = -1
    c.mesh.data = 1

    c.data.path = "allenai/llama-3.1-tulu-3-8b-preference-mixture"
    c.data.eval_rows = "0:1024"
    c.data.rows = "1024:"
    c.data.format = "conversational"
    c.data.max_length = 2048
    c.data.max_prompt_length = 1024

    c.objective = ConfigDict({"name": "margin.sigmoid_norm", "beta": 5.0})
    c.batch_size = 128
    c.accumulate = 16
    c.optimizer = ConfigDict({"name": "adamw"})
    c.learning_rate = 5e-7
    c.schedule = "linear"
    c.warmup_steps = 212
    c.clip_norm = 1.0
    return c
