"""Every key there is, once, with its default, and which of them change no number.

An experiment is a file in `configs/` that changes some of them; it starts from `configs/base.py`, which is this file.
Any key can be overridden on the command line: `--config.batch_size=32 --config.objective.beta=0.2`. Knows keys; knows
nothing of what they do.
"""

from ml_collections import ConfigDict

# Keys, or groups of keys, that change neither what is learnt nor which checkpoint is best: where things lie and go, how
# often something is looked at, and how the work is cut up. They may differ when a run is resumed, and nothing that is
# made for several runs, such as a world's reference, depends on them.
CHANGE_NO_NUMBER = (
    *("output", "compiled", "reference.cache"),
    *("log_every", "eval_every", "diagnostics", "profile", "tensorboard", "wandb"),
    *("checkpoint_every", "keep_last", "keep_best", "resume", "export", "nonfinite", "nonfinite_limit"),
    *("mesh", "accumulate", "selection", "model.remat", "model.attention", "reference.batch_size"),
)

# Keys that name the place of something. Where a run is resumed, what lies there is compared by its digest, so it may
# have moved.
PLACES = (
    *("model.path", "data.path", "data.eval_path", "data.tokenizer", "data.chat_template"),
    *("reference.path", "reference.previous"),
)


def get_config() -> ConfigDict:
    """Return the defaults: DPO with AdamW from a local or hub model and local or hub pairs, on one device."""
    c = ConfigDict()

    c.seed = 0  # parameters (if random), order of the data, objectives that sample
    c.output = "output"  # folder of checkpoints, metrics.jsonl, plots and the exported model
    # A world makes the model and the pairs and judges the policy: a module of slpojax.worlds, or any importable one; ""
    # for none.
    c.world = ""

    c.batch_size = 64  # examples (prompts with their candidates) per optimiser step, over all devices
    # Micro-batches a step is cut into, over all devices: N devices compute N at a time. Changes memory, not numbers.
    c.accumulate = 1
    c.epochs = 1.0  # passes over the training examples; ignored where steps > 0
    c.steps = 0  # optimiser steps; 0 means epochs decide

    # An objective: name = module.function of slpojax.objectives (or any importable one), plus that function's keyword
    # arguments. Another name starts from that function's own defaults.
    c.objective = ConfigDict({"name": "dpo.sigmoid"})

    # Which candidates the objective sees: a function of slpojax/selectors/ (everything | mc_kernel | uniform |
    # likeliest | least_likely) plus its keyword arguments; one of the value "objective" follows the objective's.
    c.selector = ConfigDict({"name": "everything"})
    c.selection = "cheaper"  # how: together (a gradient through all) | score_first | cheaper (counted in tokens)

    c.optimizer = ConfigDict({"name": "adamw"})  # rmsprop | adamw | lion | adafactor, plus its keyword arguments
    c.moments = "float32"  # how the optimiser keeps its moments: float32 | bfloat16 (half the memory, some noise)
    c.learning_rate = 1e-6  # peak
    c.schedule = "constant"  # constant | linear | cosine, after the warm-up
    c.warmup_steps = 150  # linear: step s (from 0) uses (s + 1) / (warmup_steps + 1) of the peak
    c.clip_norm = 10.0  # largest global norm of the gradient; 0 turns clipping off

    c.model, c.data, c.reference = _model(), _data(), _reference()

    c.mesh = ConfigDict()
    # Devices along each axis; one of them may be -1: all that are left. `data` splits rows and repeats weights, whose
    # gradients are summed once a step. `fsdp` splits weights, too: each layer's are gathered where they are used, and
    # every micro-batch's gradient is reduced and scattered. `tensor` splits the width of a layer.
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    c.mesh.distributed = False  # call jax.distributed.initialize() first (several hosts)

    c.eval_every = 100  # steps; evaluation also runs at step 0 and at the end, with 0 only there
    c.diagnostics = 0  # held-out examples whose gradients every evaluation looks at (slpojax/explore/); 0 for none
    c.scorer = (
        ""  # your own judge of the policy: module.function, see slpojax/measure.py; logged as score/...; "" for none
    )
    c.log_every = 1  # steps between lines of metrics.jsonl and updates of the console
    c.profile = ""  # "first:last" steps whose trace goes to <output>/profile, for XProf; "" for none
    c.compiled = ""  # folder that keeps compiled programs from run to run; "" for none
    c.tensorboard = False
    c.wandb = ""  # project, in which the run is called after its output folder; "" for none
    c.checkpoint_every = 100  # steps; 0 saves only at the end, -1 never
    c.keep_last = 2
    c.keep_best = 1
    c.best_metric = "eval/loss"  # lower is better; prefix "-" for higher is better
    # Where output holds checkpoints: auto (go on from the newest) | never (refuse) | force (go on whatever has changed,
    # and list it; for a lower learning rate, say)
    c.resume = "auto"
    c.export = True  # write <output>/hf at the end, a folder that transformers loads
    # A step whose loss or gradient is not finite: stop | skip (leave the state as it was, say so, and go on)
    c.nonfinite = "stop"
    c.nonfinite_limit = 10  # so many steps may be skipped in a run; one more stops it

    c.lock()  # an experiment that sets a key which is not above is stopped
    for group in (c.objective, c.selector, c.optimizer):  # hyperparameters belong to the function named
        group.unlock()
    return c


def _model() -> ConfigDict:
    """Return the keys of models."""
    c = ConfigDict()
    c.path = ""  # local folder in Hugging Face layout, or a hub name
    c.weights = "load"  # load | random (only config.json and the tokenizer are read from path)
    c.family = ""  # module of a family that slpojax.models lacks, as my_lab.gemma; "" finds it by the model type
    c.dtype = "float32"  # compute: float32 | bfloat16; master weights are always float32
    c.attention = "tiles"  # tiles (any device) | cudnn (bfloat16) | splash (TPUs) | dense (quadratic memory)
    c.remat = "none"  # what the backward pass recomputes: none | dots | layer | offload
    return c


def _data() -> ConfigDict:
    """Return the keys of data."""
    c = ConfigDict()
    c.path = ""  # hub name, `datasets` folder, or .jsonl, .jsonl.gz, .parquet file(s) (comma-separated)
    c.eval_path = ""  # the same for evaluation; "" takes eval_split or eval_rows of path
    c.split = "train"  # split of a hub or saved dataset
    c.eval_split = ""  # "" means no split of its own
    c.rows = ""  # "start:stop" of the source rows used for training; "" for all
    c.eval_rows = ""  # "start:stop" of the source rows used for evaluation; "" for all of the evaluation's source
    c.format = "hh"  # a parser of slpojax.data.formats
    c.tokenizer = ""  # folder or hub name; "" takes the model's
    c.candidates = 2  # candidates kept per example, best first
    c.ties = "drop"  # candidates that are as good as the best: drop | keep (for objectives that read scores)
    # Pairs out of ranked candidates: best (the best with each lower one) | all (each with every lower one) | random
    # (disjoint); "" for none
    c.pairs = ""
    c.accept = 0  # candidates that rejection sampling by score keeps for those pairs (RSO); 0 for all
    c.accept_beta = 0.5  # its temperature, in the unit of the scores
    c.unpair = False  # make two labelled examples of each pair
    # Weigh undesirable examples so that their prompts are distributed as the desirable ones' (BCO's UDM)
    c.match_prompts = False
    c.mismatched = False  # add another prompt's response as the last candidate (KTO's estimate of the divergence)
    c.degrade = 0  # copies added of each response of a pair, with more and more of its key content removed (SPO)
    c.bos = "tokenizer"  # before plain prompts: tokenizer (as it does by itself) | always | never
    c.chat_template = ""  # for conversations: "" (the tokenizer's) | dialogue | a Jinja file
    c.max_length = 512  # tokens of prompt plus one response
    c.max_prompt_length = 256  # tokens that a prompt keeps where it is cut; see slpojax/data/too_long.py
    c.too_long = "cut_prompt"  # drop | cut_prompt | cut_response (loses EOS, counted) | original (the same)
    # balanced (shuffled by seed, the batches made equal in tokens) | shuffled | by_length (batches of similar examples,
    # for pack=False) | source (as the rows come) | original (that of the first DPO program)
    c.order = "balanced"
    c.row_length = 0  # tokens of a packed row; 0 for the length with the least padding
    c.pack = True  # False: one example per row, in up to four lengths of rows (see by_length)
    return c


def _reference() -> ConfigDict:
    """Return the keys of frozen models."""
    c = ConfigDict()
    c.mode = "cached"  # cached | online | moving (follows the policy) | none (for objectives without one)
    c.path = ""  # "" means the model the policy starts from
    c.cache = ""  # folder; "" means <output>/reference_cache
    # Examples scored at once where there is no gradient, in evaluations too; 0 for one to four times a micro-batch,
    # such that the held-out ones fill their batches.
    c.batch_size = 0
    c.every = 512  # steps between the moves of a moving reference,
    c.mix = 0.6  # each to mix * policy + (1 - mix) * reference
    c.previous = ""  # a second frozen model, the iterate of INPO; "" for none
    return c
