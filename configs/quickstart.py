"""SLPO in a world of short reviews whose gold reward is known; needs no download.

Command:   python -m slpojax.train --config=configs/quickstart.py
           (another objective: --config.objective.name=dpo.sigmoid)
Hardware:  2 CPU cores; 80 s of one core, a minute or two in all.
Settings:  the world (`slpojax/worlds/reviews`) trains the reference, a Llama of 113,000 parameters, to the entropy of a
           grammar, and labels 12,288 pairs of its samples by the gold reward: one pass of 192 steps. `slpo.shift` with
           each response's own length as root, since its targets are finite: training comes to rest. `scale` is 1, the
           loss as its author wrote it, as AdamW takes a common factor back anyway.
Expected:  the gold reward gains more than 0.5 standard deviations of the reference's at a KL below 0.6 nats, and stays.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = base.get_config()
    c.output = "output/quickstart"
    c.world = "reviews"

    c.objective = ConfigDict({"name": "slpo.shift", "alpha": 0.9, "temperature": "length", "scale": 1.0})
    c.optimizer = ConfigDict({"name": "adamw"})
    c.learning_rate = 5e-4
    c.schedule = "linear"
    c.warmup_steps = 10
    c.steps = 192
    c.batch_size = 64

    c.data.format = "pairs"
    c.data.max_length = 40
    c.data.max_prompt_length = 16
    c.data.row_length = 128

    c.eval_every = 24
    c.checkpoint_every = 96
    return c
