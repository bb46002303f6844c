"""OnMC-PO on Reddit's TL;DR: Pythia-1B summarises, a reward model of its size judges.

Command:   python -m slpojax.online --config=configs/onmcpo_tldr.py
Offline:   ... --config.model.path=SFT --config.judge.path=REWARD --config.generate.prompts=prompts.jsonl
Hardware:  policy, moments and reference in float32 take 16 GB, the reward model 4 GB; one accelerator of 40 GB with
           `accumulate` as here, or `mesh.fsdp` over several.
Settings:  policy and reward model are those of Huang et al., The N+ Implementation Details of RLHF with PPO, 2024,
           arXiv:2403.17031, which this line of work shares; learning rate 3e-6, beta 0.1, batches of 128, prompts of
           512 tokens and 1,024 in all are open-instruct's for online DPO. Three segments, six samples a prompt and the
           kernel are MC-PO's (Chen et al., 2025, arXiv:2502.04567). The temperatures are ours: the reward model was
           made for samples at 0.7. Online DPO: --config.objective.name=dpo.sigmoid --config.generate.samples=2
           --config.generate.temperature="(0.7,)" --config.selector.name=everything --config.data.candidates=2.
Expected:  not run at this size yet; the tests run it with tiny models of the same layout.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = base.get_config()
    c.output = "output/onmcpo_tldr"
    c.model.path = "cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr"
    c.model.remat = "dots"

    c.online.segments = 3
    c.generate.prompts = "trl-lib/tldr"
    c.generate.count = 3072
    c.generate.samples = 6
    c.generate.temperature = (0.5, 0.7, 1.0)
    c.generate.max_new_tokens = 53
    c.generate.slots = 192
    path = "cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr"
    c.judge = ConfigDict({"name": "reward_model.score", "path": path})

    c.objective = ConfigDict({"name": "listwise.rnce", "beta": 0.1})
    c.selector = ConfigDict({"name": "mc_kernel", "picks": 1, "weight": "reward"})
    c.data.candidates = 6
    c.data.max_length = 1024
    c.data.max_prompt_length = 512

    c.batch_size = 128
    c.accumulate = 8
    c.steps = 24
    c.optimizer = ConfigDict({"name": "adamw"})
    c.learning_rate = 3e-6
    c.schedule = "linear"
    c.warmup_steps = 0
    c.clip_norm = 1.0
    c.checkpoint_every = 0
    c.best_metric = "eval/loss"
    return c
