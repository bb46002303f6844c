"""DPO of Pythia-2.8B on Anthropic HH, from the model that `sft_hh.py` exports.

Command:   python -m slpojax.train --config=configs/dpo_hh.py
Offline:   ... --config.model.path=FOLDER --config.data.path=train.jsonl.gz --config.data.eval_path=test.jsonl.gz
           (or --config.data.rows=0:2000 --config.data.eval_rows=2000:2352 of one file)
Hardware:  as `sft_hh.py`; the reference's log-probs are computed once and cached, so its weights take no memory after.
           The 8 micro-batches of a step are about 2,000 tokens each, on one device in turn or on 8 at once.
Settings:  Rafailov et al. 2023 (arXiv 2305.18290, appendix B): beta 0.1, batch 64, RMSprop at 1e-6 (their program's
           default is 5e-7), warm-up of 150 steps, then constant; 512 tokens, gradient norm at most 10, one epoch.
Differs:   the prompt ends where the two dialogues part (the program splits at the last "Assistant:" of the chosen one),
           and a long prompt loses its beginning before an answer loses its end. For the program's own choices:
           --config.data.format=hh_rightmost --config.data.too_long=original
Expected:  at step 0 a loss of log 2 and margins of exactly 0. Not run at this size yet; the authors report 2h45 on four
           A100 of 80 GB, and 60-63% of wins against the chosen answers (GPT-4 as judge, temperature 0.7 to 1).
"""

from ml_collections import ConfigDict

from configs import sft_hh


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = sft_hh.get_config()
    c.output = "output/dpo_hh"
    c.model.path = "output/sft_hh/hf"

    c.objective = ConfigDict({"name": "dpo.sigmoid", "beta": 0.1})
    c.reference.mode = "cached"
    c.data.candidates = 2  # chosen and rejected
    c.learning_rate = 1e-6
    c.accumulate = 8
    return c
