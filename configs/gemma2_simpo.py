"""SimPO of Gemma-2-9B-it, as its authors trained their best model: their own pairs, labelled by ArmoRM.

Command:   python -m slpojax.train --config=configs/gemma2_simpo.py
Offline:   ... --config.model.path=FOLDER --config.data.path=FOLDER, a copy of the data set in its own layout
Hardware:  weights, gradients and moments in float32 take 148 GB: `mesh.fsdp` over eight accelerators of 40 GB. SimPO
           has no reference. The 2B model (google/gemma-2-2b-it) takes 42 GB.
Settings:  Meng, Xia, Chen: SimPO, 2024 (arXiv 2405.14734) and the authors' recipe of gemma-2-9b-it-SimPO: beta 10,
           gamma half of it, rate 8e-7 with the cosine and a tenth of warm-up, batch 128, 2,048 tokens of which 1,800
           may be the prompt, one pass. The attention's cap is Gemma's: `tiles`, as cuDNN has none.
Expected:  the loss starts wherever the model's mean log-probs put it, not at log 2. Not run at this size yet; the tests
           run it with a tiny model of the same type and layout.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = base.get_config()
    c.output = "output/gemma2_simpo"
    c.model.path = "google/gemma-2-9b-it"
    c.model.dtype = "bfloat16"
    c.model.remat = "layer"
    c.mesh.fsdp = -1
    c.mesh.data = 1

    c.data.path = "princeton-nlp/gemma2-ultrafeedback-armorm"
    c.data.eval_split = "test"
    c.data.format = "conversational"
    c.data.max_length = 2048
    c.data.max_prompt_length = 1800

    c.objective = ConfigDict({"name": "reference_free.simpo", "beta": 10.0, "gamma": 5.0})
    c.batch_size = 128
    c.accumulate = 16
    c.optimizer = ConfigDict({"name": "adamw"})
    c.learning_rate = 8e-7
    c.schedule = "cosine"
    c.warmup_steps = 46
    c.clip_norm = 1.0
    return c
