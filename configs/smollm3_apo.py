"""APO-zero of SmolLM3-3B on two sources: Tulu 3's preferences, and pairs of a strong and a weak model that think.

Command:   python -m slpojax.train --config=configs/smollm3_apo.py
Offline:   ... --config.model.path=FOLDER, and for each source --config.data.mixture.NAME.path=FOLDER
Hardware:  weights, gradients and moments in float32 take 49 GB: `mesh.fsdp` over two accelerators of 40 GB or more;
           rows of 24,576 tokens want attention that is linear in the length, which `tiles` is.
Settings:  from the released recipe: APO-zero (D'Oosterlinck et al. 2024, arXiv 2408.06266) with beta 0.05, rate 1e-6,
           the gradient's norm at most 0.2, 24,576 tokens, half of the first source and a quarter of the second.
Differs:   the recipe's cosine ends at a tenth of the rate, ours at 0; shares are of what a pass draws, two to one, as
           sources of nearly one size give; the checkpoint to start from is the one after SFT, whose name on the hub is
           a branch: download it and give the folder.
Expected:  a loss of 1 at step 0, where chosen and rejected have a sigmoid of one half each. Not run at this size yet;
           the tests run it with a tiny model of the same type and layout.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = base.get_config()
    c.output = "output/smollm3_apo"
    c.model.path = "HuggingFaceTB/SmolLM3-3B"
    c.model.dtype = "bfloat16"
    c.model.remat = "layer"
    c.mesh.fsdp = -1
    c.mesh.data = 1

    preferences = {"path": "HuggingFaceTB/smoltalk2:Preference", "format": "conversational"}
    c.data.mixture.tulu = preferences | {
        "split": "llama_3.1_tulu_3_8b_preference_mixture_no_think",
        "weight": 2.0,
        "eval_rows": "0:256",
        "rows": "256:",
    }
    c.data.mixture.qwen = preferences | {
        "split": "tulu_3_8b_pref_mix_Qwen3_32B_Qwen3_0.6B_think",
        "weight": 1.0,
        "eval_rows": "0:256",
        "rows": "256:",
    }
    c.data.max_length = 24576
    c.data.max_prompt_length = 8192

    c.objective = ConfigDict({"name": "anchored.apo_zero", "beta": 0.05})
    c.batch_size = 32
    c.accumulate = 32
    c.optimizer = ConfigDict({"name": "adamw"})
    c.learning_rate = 1e-6
    c.schedule = "cosine"
    c.warmup_steps = 150
    c.clip_norm = 0.2
    return c
