"""OnMC-PO as its paper has it: Llama-3.1-8B-Instruct learns from its own answers to UltraFeedback's prompts.

Command:   python -m slpojax.online --config=configs/onmcpo_llama.py --config.judge.url=http://HOST:8000
           JUDGE: any OpenAI-compatible server; the paper's is Llama-3.1-70B-Instruct
Hardware:  weights, moments and reference in float32 take 130 GB: `mesh.fsdp` over eight accelerators of 40 GB.
Settings:  stated by Chen et al., Preference Optimization via Contrastive Divergence, 2025, arXiv:2502.04567: the model,
           the prompts, three equal segments, six samples, two at each of three temperatures, five duels of the winner
           so far against the next by a language model, the kernel with one pick and one step, full parameters, a
           reference that does not move, two passes in all. Not stated, or lost to us: the temperatures (0.7, 0.8 and
           1.0 are what SPPO, SimPO and RLHFlow sample at), beta 0.01 and learning rate 5e-7 (SimPO's best DPO on a
           model of this kind), batches of 128, top-p 1, tokens of an answer, the judge's prompt. The paper's segments
           share two passes out; here each segment passes once over a third of the prompts, for the same reason that
           each asks the policy anew.
Expected:  not run at this size yet; the tests run it with tiny models of the same layout.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = base.get_config()
    c.output = "output/onmcpo_llama"
    c.model.path = "meta-llama/Llama-3.1-8B-Instruct"
    c.model.dtype = "bfloat16"
    c.model.remat = "layer"
    c.mesh.fsdp = 8
    c.mesh.data = 1

    c.online.segments = 3
    c.generate.prompts = "HuggingFaceH4/ultrafeedback_binarized"
    c.generate.split = "train_prefs"
    c.generate.count = 60672
    c.generate.samples = 6
    c.generate.temperature = (0.7, 0.8, 1.0)
    c.generate.max_new_tokens = 1024
    c.generate.slots = 512
    c.judge = ConfigDict({"name": "endpoint.compare", "url": "http://127.0.0.1:8000", "template": "helpfulness"})
    c.ranking = "duels"

    c.objective = ConfigDict({"name": "listwise.rnce", "beta": 0.01})
    c.selector = ConfigDict({"name": "mc_kernel", "picks": 1, "weight": "reward"})
    c.data.candidates = 6
    c.data.max_length = 2048
    c.data.max_prompt_length = 1024

    c.batch_size = 128
    c.accumulate = 16
    c.steps = 474
    c.optimizer = ConfigDict({"name": "adamw"})
    c.learning_rate = 5e-7
    c.schedule = "cosine"
    c.warmup_steps = 47
    c.clip_norm = 1.0
    c.checkpoint_every = 50
    return c
