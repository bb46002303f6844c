"""OnMC-PO in the world of short reviews: the policy learns from its own answers; needs no download.

Command:   python -m slpojax.online --config=configs/onmcpo_quickstart.py
           Offline MC-PO on answers of the reference alone: --config.online.segments=1. Other methods are other values
           of the same keys; README.md, "Online", lists them.
Hardware:  2 CPU cores.
Settings:  three segments of 64 steps. At the start of each the current policy answers 4,096 prompts six times, twice at
           each of three temperatures, and five duels find the winner: the best so far against the next, each decided
           with the Bradley-Terry probability of the gold reward. Trained is the likelihood of the winner against one of
           the other five, drawn at every step by MC-PO's kernel with the current policy. The reference stays the model
           that all began from (Chen et al., Preference Optimization via Contrastive Divergence, 2025, arXiv:2502.04567;
           the paper's temperatures and beta are not known, these are ours).
Expected:  with seed 0 the gold reward gains 1.93 standard deviations of the reference's at a KL of 3.30 nats (behind
           the segments its mean is 1.42, 3.28 and 4.00, the KL 0.94, 2.58 and 3.30); 99% of the answers end. Four
           minutes of processor time. `docs/results` has it beside offline MC-PO at other strengths.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = quickstart.get_config()
    c.output = "output/onmcpo_quickstart"

    c.online.segments = 3
    c.generate.count = 12288
    c.generate.samples = 6
    c.generate.temperature = (0.8, 1.0, 1.2)
    c.generate.slots = 512
    c.judge = ConfigDict({"name": "world.vote"})
    c.ranking = "duels"

    c.objective = ConfigDict({"name": "listwise.rnce", "beta": 0.1})
    c.selector = ConfigDict({"name": "mc_kernel", "picks": 1, "weight": "reward"})
    c.data.candidates = 6
    c.data.row_length = 256

    c.learning_rate = 2e-4
    c.schedule = "linear"
    c.eval_every = 32
    c.checkpoint_every = 0
    return c
