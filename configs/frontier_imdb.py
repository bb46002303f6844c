"""DPO, SLPO and MC-PO on real text: beginnings of film reviews gone on with, a classifier of sentiment as gold reward.

Command:   SLPOJAX_IMDB=FOLDER python -m slpojax.frontier --config=configs/frontier_imdb.py
           FOLDER holds train.jsonl.gz and test.jsonl.gz with `text` and `label`; without it the hub's stanfordnlp/imdb.
           One run alone: python -m slpojax.train --config=configs/frontier_imdb.py
Hardware:  2 CPU cores.
Settings:  the world `slpojax/worlds/imdb`: a Llama of 0.4M parameters learns pieces of training reviews and is the
           reference; its prompts are held-out beginnings. Fewer methods, strengths and seeds than
           `frontier_reviews.py`, as a run takes longer.
Expected:  see `docs/results/README.md`.
"""

from ml_collections import ConfigDict

from configs import frontier_reviews
from configs.frontier_reviews import method

RATES = (3e-4, 1e-3)
POOLED = (
    "data.format=pool",
    "data.candidates=4",
    "data.row_length=512",
    "objective.name=listwise.rnce",
)
METHODS = {
    "dpo": method("DPO", "objective.name=dpo.sigmoid", strength="learning_rate", values=RATES),
    "slpo_shift": method("SLPO shift", "objective.name=slpo.shift", strength="learning_rate", values=RATES),
    "slpo_joint": method("SLPO joint", "objective.name=slpo.joint", strength="learning_rate", values=RATES),
    "mcpo": method("MC-PO", *POOLED, "selector.name=mc_kernel", strength="learning_rate", values=RATES),
}


def get_config() -> ConfigDict:
    """Return the comparison; its other keys are those of every run."""
    c = frontier_reviews.get_config()
    c.output = "output/frontier_imdb"
    c.world = "imdb"
    c.objective = ConfigDict({"name": "dpo.sigmoid", "beta": 0.1})
    c.data.rows = ""
    c.data.max_length = 80
    c.data.max_prompt_length = 40
    c.data.row_length = 256
    c.frontier.methods = ConfigDict(METHODS)
    c.frontier.only = ",".join(METHODS)
    c.frontier.seeds = (0, 1)
    return c
