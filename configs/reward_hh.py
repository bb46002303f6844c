"""A reward model of Pythia-2.8B on Anthropic HH, from the model that `sft_hh.py` exports.

Command:   python -m slpojax.train --config=configs/reward_hh.py
Offline:   ... --config.model.path=FOLDER --config.data.path=train.jsonl.gz --config.data.eval_path=test.jsonl.gz
           (or --config.data.rows=0:2000 --config.data.eval_rows=2000:2352 of one file)
Hardware:  as `dpo_hh.py`, with AdamW's second moment beside: 12 to 16 bytes a parameter, and no unembedding.
Settings:  the score head is drawn where the folder is a language model's, and read where it is a reward model's. One
           epoch, as Ouyang et al. 2022 (arXiv 2203.02155) recommend: a second one is learnt by heart. Batch 64, AdamW
           at 1e-5 falling to 0, and the pull of rewards to 0 (0.01, what TRL recommends) are ours.
Expected:  at step 0 an accuracy near one half. Not run at this size yet.
"""

from ml_collections import ConfigDict

from configs import dpo_hh


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = dpo_hh.get_config()
    c.output = "output/reward_hh"
    c.model.head = "score"
    c.data.end = "template"  # of chats; HH's dialogues end with EOS

    c.objective = ConfigDict({"name": "reward.bradley_terry", "centre": 0.01})
    c.reference.mode = "none"
    c.optimizer = ConfigDict({"name": "adamw"})
    c.learning_rate = 1e-5
    c.schedule = "linear"
    c.best_metric = "-eval/rewards/accuracies"
    return c
