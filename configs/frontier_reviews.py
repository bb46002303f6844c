"""DPO, IPO, SimPO, KTO, three forms of SLPO and MC-PO in the world of reviews: gold reward against the KL it costs.

Command:   python -m slpojax.frontier --config=configs/frontier_reviews.py
           A part of it: --config.frontier.only=dpo,slpo_shift --config.frontier.seeds=(0,). One run alone:
           python -m slpojax.train --config=configs/frontier_reviews.py --config.objective.name=dpo.ipo
Hardware:  2 CPU cores.
Settings:  the quickstart's, but for the length of a run and its evaluations. A method's strength is what its paper
           varies, and the learning rate; `slpo.listing` has the rate alone. MC-PO sees pools of six answers, as in its
           paper, and DPO on pools one of the five others at random.
Expected:  see `docs/results/README.md`.
"""

from ml_collections import ConfigDict

from configs import quickstart

POOLED = (
    "data.format=pool",
    "data.candidates=6",
    "data.row_length=256",
    "objective.name=listwise.rnce",
)
RATES = (2e-4, 5e-4)  # learning rates


def method(label: str, *keys: str, strength: str, values: tuple, **more: str) -> ConfigDict:
    """Return a method: what it is called, what it sets, and the values that trace its curve."""
    return ConfigDict({"label": label, "keys": keys, "strength": strength, "values": values, **more})


def crossed(label: str, *keys: str, strength: str, values: tuple[float, ...], **more: str) -> ConfigDict:
    """Return a method whose curve both learning rates trace, each with every value of the method's own strength."""
    both = tuple((value, rate) for rate in RATES for value in values)
    return method(label, *keys, strength=f"{strength},learning_rate", values=both, **more)


KTO = ("objective.name=unpaired.kto", "data.unpair=True", "data.mismatched=True", "batch_size=128")
SIMPO = ("objective.name=reference_free.simpo", "reference.mode=none")
METHODS = {
    "dpo": crossed("DPO", "objective.name=dpo.sigmoid", strength="objective.beta", values=(0.1, 1.0)),
    "ipo": crossed("IPO", "objective.name=dpo.ipo", strength="objective.beta", values=(0.3, 3.0)),
    "simpo": crossed("SimPO", *SIMPO, strength="objective.beta", values=(2.0, 10.0)),
    "kto": crossed("KTO", *KTO, strength="objective.beta", values=(0.1, 1.0)),
    "slpo_listing": method(
        "SLPO listing", "objective.name=slpo.listing", strength="learning_rate", values=(1e-4, 2e-4, 3.5e-4, 5e-4)
    ),
    "slpo_shift": crossed("SLPO shift", "objective.name=slpo.shift", strength="objective.alpha", values=(0.9, 0.99)),
    "slpo_joint": crossed("SLPO joint", "objective.name=slpo.joint", strength="objective.alpha", values=(0.9, 0.99)),
    "dpo_pool": crossed("DPO on pools", *POOLED, "selector.name=uniform", strength="objective.beta", values=(0.1, 1.0)),
    "mcpo": crossed("MC-PO", *POOLED, "selector.name=mc_kernel", strength="objective.beta", values=(0.1, 1.0)),
    "onmcpo": crossed(
        "OnMC-PO",
        "steps=96",
        "online.segments=4",
        "generate.count=6144",
        "generate.temperature=(1.0,)",
        "data.row_length=256",
        "eval_every=16",
        program="online",
        config="configs/onmcpo_quickstart.py",
        strength="objective.beta",
        values=(0.1, 1.0),
    ),
}


def get_config() -> ConfigDict:
    """Return the comparison; its other keys are those of every run."""
    c = quickstart.get_config()
    c.output = "output/frontier_reviews"
    c.data.rows = "0:6144"  # one pass, and quick to read
    c.steps = 96
    c.eval_every = 16
    c.checkpoint_every = 48
    c.keep_best = 0
    c.export = False
    c.objective = ConfigDict({"name": "dpo.sigmoid"})
    c.frontier.methods = ConfigDict(METHODS)
    c.frontier.only = ",".join(METHODS)
    return c
