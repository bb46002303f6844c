"""Supervised fine-tuning of Pythia-2.8B on the chosen answers of Anthropic HH: the model that DPO and SLPO start from.

Command:   python -m slpojax.train --config=configs/sft_hh.py
Offline:   ... --config.model.path=FOLDER --config.data.path=train.jsonl.gz --config.data.eval_path=test.jsonl.gz
           (or --config.data.rows=0:2000 --config.data.eval_rows=2000:2352 of one file)
Hardware:  float32 weights, gradients and RMSprop state take 34 GB, activations come on top: one 80 GB device, or 8 of
           16 GB and more, over which the weights are split. The devices share the 4 micro-batches of a step: where one
           has all of them, each of 8 has one of half the size.
Settings:  Rafailov et al. 2023 (arXiv 2305.18290, appendix B) and the authors' program: batch 64, RMSprop, warm-up of
           150 steps, 512 tokens, gradient norm at most 10. Learning rate 5e-7 is the program's default; the paper gives
           none for SFT. The loss is the sum over a response's tokens and the mean over examples, as there.
Expected:  not run at this size yet. The authors report 1h30 on four A100 of 80 GB.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the experiment."""
    c = base.get_config()
    c.output = "output/sft_hh"

    c.objective = ConfigDict({"name": "sft.sequence_sum"})
    c.reference.mode = "none"
    c.data.candidates = 1  # the chosen answer

    c.optimizer = ConfigDict({"name": "rmsprop"})  # torch's defaults: decay 0.99, epsilon outside the root
    c.learning_rate = 5e-7
    c.warmup_steps = 150
    c.clip_norm = 10.0
    c.batch_size = 64
    c.accumulate = 4

    c.model.path = "EleutherAI/pythia-2.8b"
    c.plan.model = "pythia-2.8b"  # of all experiments that go on from this one
    c.model.dtype = "bfloat16"
    c.model.remat = "layer"

    c.data.path = "Anthropic/hh-rlhf"
    c.data.eval_split = "test"
    c.data.format = "hh"
    c.data.max_length = 512
    c.data.max_prompt_length = 256
    c.data.too_long = "cut_prompt"  # an answer always keeps its end

    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.eval_every = 312  # about every 20,000 examples
    c.checkpoint_every = 312
    return c
