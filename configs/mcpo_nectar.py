"""MC-PO of Pythia-2.8B on Nectar's ranked answers, from the model that `sft_hh.py` exports.

Command:   python -m slpojax.train --config=configs/mcpo_nectar.py
Offline:   ... --config.model.path=FOLDER --config.data.path=nectar.jsonl.gz
Hardware:  as `dpo_hh.py`; every prompt is computed once for all its answers. Five rejected answers are scored without
           gradient and one is trained on, where that is cheaper than a gradient through all (`config.selection`).
Settings:  Chen et al. 2025 (arXiv 2502.04567): rank 1 is the chosen answer, rank 2 is left out to lessen noise, the
           others are the pool; one negative per prompt, drawn in proportion to exp(reward) under the current policy;
           two passes (their third gained nothing). The learning rate and beta of the paper are lost to us: those here
           are `dpo_hh.py`'s. `--config.selector.weight=policy` draws by the policy's log-likelihood, as the published
           version says; `--config.selector.name=uniform` is RNCE, which with one negative is DPO on random pairs.
Expected:  at the start a training loss of log 2, margins of 0 and a uniform draw. Not run at this size yet; on
           small data see `mcpo_ranked.py`.
"""

from ml_collections import ConfigDict

from configs import dpo_hh


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = dpo_hh.get_config()
    c.output = "output/mcpo_nectar"
    c.objective = ConfigDict({"name": "listwise.rnce", "beta": 0.1})
    c.selector = ConfigDict({"name": "mc_kernel", "picks": 1, "weight": "reward"})
    c.epochs = 2.0

    c.data.path = "berkeley-nest/Nectar"
    c.data.format = "nectar"
    c.data.candidates = 6  # ranks 1 and 3 to 7
    c.data.eval_split = ""
    c.data.rows = "1000:"
    c.data.eval_rows = "0:1000"
    return c
