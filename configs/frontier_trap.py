"""MC-PO's trap: hard negatives where a noisy copy of the preferred answer is among the candidates, and seeds that vary.

Command:   python -m slpojax.frontier --config=configs/frontier_trap.py
           One run alone: python -m slpojax.train --config=configs/frontier_trap.py
Hardware:  2 CPU cores.
Settings:  MC-PO's table 2 in kind (Chen et al. 2025, arXiv 2502.04567): pools of six answers in the world of reviews,
           one of them preferred, and for the methods "with noise" a seventh, the preferred one with two of its words
           swapped. DPO takes as rejected always the copy (its worst case there), one of the others at random, or one of
           all at random; MC-PO draws by its kernel. One beta and learning rate, two thirds of a run of
           `frontier_reviews.py`, and six seeds, so that the spread over seeds of DPO and MC-PO, of which the paper says
           that MC-PO's is the smaller, can be compared.
Expected:  see `docs/results/README.md`.
"""

from ml_collections import ConfigDict

from configs import frontier_reviews
from configs.frontier_reviews import POOLED, method

RATE = (5e-4,)
NOISE = (*POOLED, "data.swapped=True")

METHODS = {
    "dpo_random": method("DPO, random", *POOLED, "selector.name=uniform", strength="learning_rate", values=RATE),
    "dpo_noise": method("DPO on the noise", *NOISE, "selector.name=last", strength="learning_rate", values=RATE),
    "dpo_random_noise": method(
        "DPO, random with noise", *NOISE, "selector.name=uniform", strength="learning_rate", values=RATE
    ),
    "mcpo": method("MC-PO", *POOLED, "selector.name=mc_kernel", strength="learning_rate", values=RATE),
    "mcpo_noise": method("MC-PO with noise", *NOISE, "selector.name=mc_kernel", strength="learning_rate", values=RATE),
}


def get_config() -> ConfigDict:
    """Return the comparison; its other keys are those of every run."""
    c = frontier_reviews.get_config()
    c.output = "output/frontier_trap"
    c.objective = ConfigDict({"name": "dpo.sigmoid", "beta": 0.1})
    c.data.rows = "0:4096"
    c.steps = 64
    c.checkpoint_every = 0
    c.frontier.methods = ConfigDict(METHODS)
    c.frontier.only = ",".join(METHODS)
    c.frontier.seeds = (0, 1, 2, 3, 4, 5)
    return c
