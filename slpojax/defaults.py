"""Every key there is, once, with its default, what it may be, and which of them change no number.

An experiment is a file in `configs/` that changes some of them; it starts from `configs/base.py`, which is this file.
Any key can be overridden on the command line: `--config.batch_size=32 --config.objective.beta=0.2`. Knows keys; knows
nothing of what they do.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

# Keys, or groups of keys, that change neither what is learnt nor which checkpoint is best: where things lie and go, how
# often something is looked at, and how the work is cut up. They may differ when a run is resumed, and nothing that is
# made for several runs, such as a world's reference, depends on them.
CHANGE_NO_NUMBER = (
    *("output", "compiled", "data.cache", "reference.cache"),
    *("log_every", "eval_every", "diagnostics", "profile", "tensorboard", "wandb"),
    *("checkpoint_every", "keep_last", "keep_best", "resume", "nonfinite", "nonfinite_limit", "plan"),
    *("export", "export_dtype", "export_merged", "generate", "judge", "ranking", "online", "evaluate", "frontier"),
    *("mesh", "accumulate", "selection", "model.remat", "model.attention", "reference.batch_size"),
)

# Keys that name the place of something. Where a run is resumed, what lies there is compared by its digest, so it may
# have moved.
PLACES = (
    *("model.path", "data.path", "data.eval_path", "data.samples", "data.tokenizer", "data.chat_template"),
    *("reference.path", "reference.previous", "start", "data.mixture.*.path", "data.mixture.*.eval_path"),
)

# The keys of a source of data.mixture, and their defaults.
SOURCE: Mapping[str, Any] = {
    "path": "",  # as data.path
    "split": "train",
    "rows": "",
    "format": "",  # "" for data.format
    "weight": 0.0,  # its share of the examples, beside the other weights; 0 for none
    "count": 0,  # examples of it in a pass, exactly; 0 for those of its weight or, without one, all
    "eval_path": "",  # what is evaluated on: this, or eval_split or eval_rows of path; all three "" for nothing
    "eval_split": "",
    "eval_rows": "",
}

FLOAT32 = 3.4028234e38  # the largest number that a run computes with


class Range(NamedTuple):
    """What a number may be.

    Attributes:
        least: the smallest.
        most: the largest.
        above: whether it is above `least`, which is then refused itself.
        below: likewise, of `most`.
    """

    least: float | int
    most: float | int
    above: bool = False
    below: bool = False


_STEPS, _SHARE, _ANY = Range(0, 10**9), Range(0, 1, below=True), Range(0, 10**15)

# Every key that is a number, and what it may be; "*" stands for a source's name. The hyperparameters of optimisers,
# too, while objectives and selectors refuse those of theirs themselves. A size is at most what some machine could hold,
# so that a slip of the keyboard is refused before anybody asks for the memory.
RANGES: Mapping[str, Range] = {
    "seed": Range(0, 2**63 - 1),
    "batch_size": Range(1, 2**17),
    "accumulate": Range(1, 2**14),
    "epochs": Range(0, 10**6, above=True),
    **dict.fromkeys(("steps", "schedule_steps", "warmup_steps", "eval_every", "nonfinite_limit"), _STEPS),
    **dict.fromkeys(("generate.count", "generate.top_k"), _STEPS),
    **dict.fromkeys(("log_every", "reference.every", "reference.lag"), Range(1, 10**9)),
    **dict.fromkeys(("learning_rate", "clip_norm", "data.length_penalty", "data.least_gap"), Range(0, FLOAT32)),
    **dict.fromkeys(("generate.samples", "generate.engine_requests", "online.segments"), Range(1, 2**12)),
    **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.tensor"), Range(-1, 2**20)),
    "diagnostics": Range(0, 2**12),
    "checkpoint_every": Range(-1, 10**9),
    "keep_last": Range(1, 10**6),
    "keep_best": Range(0, 10**6),
    **dict.fromkeys(("data.mixture.*.weight", "optimizer.weight_decay_rate"), _ANY),
    "data.mixture.*.count": Range(0, 10**9),
    **dict.fromkeys(("data.candidates", "plan.tries"), Range(1, 2**10)),
    "data.accept": Range(0, 2**10),
    "data.accept_beta": Range(0, FLOAT32, above=True),
    "data.least_variance": Range(0, 0.25),
    "data.degrade": Range(0, 2**8),
    "frontier.at_once": Range(1, 2**8),
    "data.max_length": Range(2, 2**24),
    "data.max_prompt_length": Range(1, 2**24),
    "data.row_length": Range(0, 2**24),
    **dict.fromkeys(("generate.min_p", "generate.mixture", "optimizer.decay_rate"), Range(0, 1)),
    **dict.fromkeys(("generate.top_p", "reference.mix"), Range(0, 1, above=True)),
    "generate.max_new_tokens": Range(0, 2**24),
    "generate.slots": Range(1, 2**17),
    **dict.fromkeys(("generate.engine_timeout", "mesh.patience"), Range(0, 10**6, above=True)),
    "plan.examples": Range(0, 10**12),
    "reference.batch_size": Range(0, 2**20),
    "evaluate.bins": Range(2, 1000),
    **dict.fromkeys(("reference.ema_power", "reference.bias_power"), Range(0, 100)),
    "lora.rank": Range(1, 2**14),
    "lora.alpha": Range(0, 10**6, above=True),
    **dict.fromkeys(("optimizer.b1", "optimizer.b2", "optimizer.decay"), _SHARE),
    **dict.fromkeys((f"optimizer.{name}" for name in ("eps", "eps_root", "initial_scale", "weight_decay")), _ANY),
    "optimizer.min_dim_size_to_factor": Range(1, 10**9),
    "optimizer.clipping_threshold": Range(0, 10**15, above=True),
}

# Every key that is one of a few words, and which.
WORDS: Mapping[str, tuple[str, ...]] = {
    "resume": ("auto", "never", "force"),
    "nonfinite": ("stop", "skip"),
    "export_dtype": ("source", "float32", "bfloat16", "float16"),
    "selection": ("together", "score_first", "cheaper"),
    "moments": ("float32", "bfloat16"),
    "schedule": ("constant", "linear", "cosine"),
    "model.weights": ("load", "random"),
    "model.head": ("words", "score"),
    "model.dtype": ("float32", "bfloat16"),
    "model.frozen_dtype": ("float32", "bfloat16", "int8", "int4", "nf4"),
    "model.attention": ("tiles", "cudnn", "splash", "dense"),
    "model.remat": ("none", "dots", "layer", "offload"),
    "data.ties": ("drop", "keep"),
    "data.pairs": ("", "best", "extremes", "two_std_below", "all", "random"),
    "data.bos": ("tokenizer", "always", "never"),
    "data.end": ("eos", "template"),
    "data.turns": ("last", "assistant", "all"),
    "data.too_long": ("drop", "cut_prompt", "cut_response", "original"),
    "data.order": ("balanced", "shuffled", "by_length", "source", "original"),
    "generate.second": ("", "reference", "mixture"),
    "online.answers": ("ranked", "in_order", "versus_last", "quantiles", "beside_pairs"),
    "online.follow": ("initial", "segment"),
    "plan.lengths": ("hh", "data"),
    "plan.programs": ("all", "step"),
    "reference.mode": ("cached", "online", "moving", "bema", "none"),
    "ranking": ("scores", "duels", "all_pairs"),
}


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
    # Output folder of an earlier run, whose last state (parameters, optimiser, statistics) this one starts from; "" for
    # the model's parameters. The model stays the reference where reference.path is "".
    c.start = ""

    c.train, c.lora = _train(), _lora()

    # An objective: name = module.function of slpojax.objectives (or any importable one), plus that function's keyword
    # arguments. Another name starts from that function's own defaults.
    c.objective = ConfigDict({"name": "dpo.sigmoid"})

    # Which candidates the objective sees: a function of slpojax/selectors/ (everything | mc_kernel | uniform |
    # likeliest | least_likely | last) plus its keyword arguments; one of the value "objective" follows the objective's.
    c.selector = ConfigDict({"name": "everything"})
    c.selection = "cheaper"  # how: together (a gradient through all) | score_first | cheaper (counted in tokens)

    c.optimizer = ConfigDict({"name": "adamw"})  # rmsprop | adamw | lion | adafactor, plus its keyword arguments
    c.moments = "float32"  # how the optimiser keeps its moments: float32 | bfloat16 (half the memory, some noise)
    c.learning_rate = 1e-6  # peak
    c.schedule = "constant"  # constant | linear | cosine, after the warm-up
    c.schedule_steps = 0  # optimiser steps until it ends, those behind `start` included; 0 for the steps of this run
    c.warmup_steps = 150  # linear: step s (from 0) uses (s + 1) / (warmup_steps + 1) of the peak
    c.clip_norm = 10.0  # largest global norm of the gradient; 0 turns clipping off

    c.model, c.data, c.reference = _model(), _data(), _reference()
    c.generate, c.online = _generate(), _online()
    c.evaluate, c.frontier, c.plan = _evaluate(), _frontier(), _plan()

    c.mesh = ConfigDict()
    # Devices along each axis; one of them may be -1: all that are left. `data` splits rows and repeats weights, whose
    # gradients are summed once a step. `fsdp` splits weights, too: each layer's are gathered where they are used, and
    # every micro-batch's gradient is reduced and scattered. `tensor` splits the width of a layer.
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    c.mesh.distributed = False  # call jax.distributed.initialize() first (several hosts)
    c.mesh.patience = 120.0  # seconds without a sign of life from a host until all others end

    c.eval_every = 100  # steps; evaluation also runs at step 0 and at the end, with 0 only there
    c.diagnostics = 0  # held-out examples whose gradients every evaluation looks at (slpojax/explore/); 0 for none
    # Your own judge of the policy: module.function, see slpojax/measure.py; logged as score/...; "" for none
    c.scorer = ""
    # A judge of answers, for `python -m slpojax.judge`: a function of slpojax.judges (or any importable one), plus its
    # keyword arguments; "" for none.
    c.judge = ConfigDict({"name": ""})
    # How a judge ranks the answers to a prompt: scores (it gives them) | duels (it compares the winner so far with the
    # next answer) | all_pairs (it compares every two); comparisons become Bradley-Terry strengths.
    c.ranking = "scores"
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
    c.export_dtype = "source"  # of its weights: source (as the model's folder has them) | float32 | bfloat16 | float16
    # Adapters (train.what=lora) are written into their model's weights; else as a folder that peft loads
    c.export_merged = False
    # A step whose loss or gradient is not finite: stop | skip (leave the state as it was, say so, and go on)
    c.nonfinite = "stop"
    c.nonfinite_limit = 10  # so many steps may be skipped in a run; one more stops it

    c.lock()  # an experiment that sets a key which is not above is stopped
    for group in (c.objective, c.selector, c.optimizer, c.judge):  # hyperparameters belong to the function named
        group.unlock()
    for group in (c.data.mixture, c.data.chat_template_kwargs):  # names of one's own; resolving looks at what they hold
        group.unlock()
    return c


def _train() -> ConfigDict:
    """Return the keys of what is trained."""
    c = ConfigDict()
    # all (every weight) | lora (adapters) | a regular expression: the parameters in whose path it is found, those of
    # layers with the layer's number, as layers/3/attention/query/weight; the others are frozen
    c.what = "all"
    return c


def _lora() -> ConfigDict:
    """Return the keys of adapters of low rank, which are read where train.what is lora."""
    c = ConfigDict()
    c.rank = 16  # of each pair of matrices
    c.alpha = 32.0  # their product is multiplied with alpha / rank,
    c.rank_stabilized = False  # or with alpha / sqrt(rank) (rsLoRA)
    # Linear maps of the layers that have adapters, by the end of their names, here or in the checkpoint: query,
    # attention/out, q_proj, self_attn.o_proj; () for all
    c.targets = ()
    c.beside = ""  # an expression as in train.what: what is trained whole beside them, as ^(embed|head)/; "" for none
    return c


def _model() -> ConfigDict:
    """Return the keys of models."""
    c = ConfigDict()
    c.path = ""  # local folder in Hugging Face layout, or a hub name
    c.weights = "load"  # load | random (only config.json and the tokenizer are read from path)
    # words (a language model) | score (a reward model: one number a text; the head is drawn where the folder has none)
    c.head = "words"
    c.family = ""  # module of a family that slpojax.models lacks, as my_lab.gemma; "" finds it by the model type
    c.dtype = "float32"  # compute: float32 | bfloat16; weights that are trained are always float32
    # Of weights that are not trained: float32 | bfloat16 | int8, int4, nf4 (linear maps in blocks of 64, by qwix)
    c.frozen_dtype = "float32"
    c.attention = "tiles"  # tiles (any device) | cudnn (bfloat16) | splash (TPUs) | dense (quadratic memory)
    c.remat = "none"  # what the backward pass recomputes: none | dots | layer | offload
    return c


def _data() -> ConfigDict:
    """Return the keys of data."""
    c = ConfigDict()
    # Several sources in place of path, split and rows: name -> {path, split, rows, format, weight or count, eval_path,
    # eval_split, eval_rows}, see SOURCE above
    c.mixture = ConfigDict({})
    c.path = ""  # hub name, `datasets` folder, or .jsonl, .json, .csv, .parquet file(s) (comma-separated)
    c.eval_path = ""  # the same for evaluation; "" takes eval_split or eval_rows of path
    c.split = "train"  # split of a hub or saved dataset
    c.eval_split = ""  # "" means no split of its own
    c.rows = ""  # "start:stop" of the source rows used for training; "" for all
    c.eval_rows = ""  # "start:stop" of the source rows used for evaluation; "" for all of the evaluation's source
    c.format = "hh"  # a parser of slpojax.data.formats
    c.eval_format = ""  # the same of what is evaluated; "" for the same parser
    c.tokenizer = ""  # folder or hub name; "" takes the model's
    c.candidates = 2  # candidates kept per example, best first
    c.ties = "drop"  # candidates that are as good as the best: drop | keep (for objectives that read scores)
    # Pairs out of ranked candidates: best (the best with each lower one) | extremes (the best with the worst) |
    # two_std_below (the best with the one nearest to mean - 2 std of the scores) | all (each with every lower one) |
    # random (disjoint); "" for none
    c.pairs = ""
    c.accept = 0  # candidates that rejection sampling by score keeps for those pairs (RSO); 0 for all
    c.accept_beta = 0.5  # its temperature, in the unit of the scores
    c.length_penalty = 0.0  # taken from a score for each token of its response before pairs are ranked; 0 for none
    c.least_variance = 0.0  # drop prompts whose preference variance is below it, at most 0.25 (PVar); 0 for none
    c.least_gap = 0.0  # leave out pairs whose scores are nearer to each other, in their unit; 0 for none
    c.unpair = False  # make two labelled examples of each pair
    # Weigh undesirable examples so that their prompts are distributed as the desirable ones' (BCO's UDM)
    c.match_prompts = False
    c.mismatched = False  # add another prompt's response as the last candidate (KTO's estimate of the divergence)
    c.degrade = 0  # copies added of each response of a pair, with more and more of its key content removed (SPO)
    c.swapped = False  # add a copy of the best with two of its tokens swapped as the last candidate (MC-PO's noise)
    # samples.jsonl of the policy, whose answers to the same prompts go behind the two of a record, into the places that
    # `candidates` leaves (HyPO); "" for none
    c.samples = ""
    c.bos = "tokenizer"  # before plain prompts: tokenizer (as it does by itself) | always | never
    c.chat_template = ""  # for conversations: "" (the tokenizer's) | dialogue | a Jinja file
    # Further variables of the template, which must read each: c.data.chat_template_kwargs.enable_thinking = False
    c.chat_template_kwargs = ConfigDict({})
    # Where a response that a chat template writes ends: eos (its EOS is the last token) | template (as it is written to
    # the end of the turn, line break and all: what reward models are read at)
    c.end = "eos"
    # What counts of a response of messages, is scored and trained: all (also tools' results; it ends before a user's
    # next turn) | assistant (what it wrote, by the template's generation marks where it has them) | last (its last
    # turn); with these two a response goes on behind a user's turn
    c.turns = "all"
    c.max_length = 512  # tokens of prompt plus one response
    c.max_prompt_length = 256  # tokens that a prompt keeps where it is cut; see slpojax/data/too_long.py
    c.too_long = "cut_prompt"  # drop | cut_prompt | cut_response (loses EOS, counted) | original (the same)
    # balanced (shuffled by seed, the batches made equal in tokens) | shuffled | by_length (batches of similar examples,
    # for pack=False) | source (as the rows come) | original (that of the first DPO program)
    c.order = "balanced"
    c.row_length = 0  # tokens of a packed row; 0 for the length with the least padding
    c.pack = True  # False: one example per row, in up to four lengths of rows (see by_length)
    # Folder of tokenised examples that later starts read, of 16,384 records and more; "" for none
    c.cache = "~/.cache/slpojax/examples"
    return c


def _generate() -> ConfigDict:
    """Return the keys of `python -m slpojax.generate`; the model is that of model.path, or of `start`."""
    c = ConfigDict()
    # What is asked: a file, as data.path; "" for a world's prompts or, where no world is set, those of data.path, which
    # are read as data.format says
    c.prompts = ""
    # Its records: prompts (`prompt`, a text or messages; `instruction`, as AlpacaEval has; Arena-Hard's questions), or
    # a format of preference data, as data.format, each of whose prompts is asked once
    c.format = "prompts"
    c.split = "train"  # split of a hub or saved dataset
    c.count = 0  # prompts, the first ones that can be asked; 0 for all (of a world: as many as it judges)
    c.rows = ""  # "start:stop" of those, counted from 0; "" for all
    c.samples = 1  # answers to each
    c.temperature = (1.0,)  # of the draw; several are for equal shares of the samples: (0.7, 1.0); 0 for greedy
    c.top_k = 0  # draw among the k most probable tokens; 0 for all
    c.top_p = 1.0  # draw among the fewest most probable tokens that together have this probability
    c.min_p = 0.0  # draw among the tokens with at least this share of the most probable one's probability
    # Tokens of an answer; 0 for data.max_length - data.max_prompt_length, in a world for the longest of its answers
    c.max_new_tokens = 0
    c.stop = ()  # texts that end an answer, and are no part of it, beside the model's own end
    # Who gives the last answer to each prompt: "" (the policy, as all others) | reference | mixture (token by token the
    # policy's probability to the power 1 - a times the reference's to the power a)
    c.second = ""
    c.mixture = 0.125  # that a, from 0 (the policy) to 1 (the reference)
    c.slots = 64  # sequences that are sampled at once, over all devices
    c.engine = ""  # a server of the model's folder, as http://127.0.0.1:8000 (vLLM, SGLang); "" samples in this process
    c.engine_model = ""  # the name by which it serves the folder; "" where it serves one alone
    c.engine_key = ""  # environment variable that holds its key; "" for none
    c.engine_requests = 16  # requests at once
    c.engine_timeout = 600.0  # seconds that an answer may take
    c.generator = ""  # what the file calls who answers; "" for the last part of model.path
    c.to = ""  # folder of samples.jsonl; "" for `output`
    return c


def _online() -> ConfigDict:
    """Return the keys of `python -m slpojax.online`."""
    c = ConfigDict()
    c.segments = 3  # parts of equal size that a run is cut into; each samples, judges and trains on steps / segments
    c.follow = "initial"  # the reference: initial (stays) | segment (the policy that the segment starts from)
    c.keep = False  # train on the answers of earlier segments, too
    # What the answers are to training: ranked (best first) | in_order (as they were sampled, with the judge's scores) |
    # versus_last (in this order, with the probability of each to beat the last one) | quantiles (in this order, with
    # the quantile of each among the prompt's answers) | beside_pairs (not judged: they stand behind the given pairs of
    # data.path with their prompts)
    c.answers = "ranked"
    # With generate.engine: a command that starts the server anew and ends once it answers; the segment's model folder
    # is its last argument
    c.serve = ""
    return c


def _frontier() -> ConfigDict:
    """Return the keys of a comparison of methods; a run of one does not read them."""
    c = ConfigDict()
    # name -> {label, program (train | online), config (a file; "" for this one), keys (as on the command line, without
    # --config.), strength (a key), values (of it)}, see slpojax/frontier.py
    c.methods = ConfigDict({})
    c.methods.unlock()
    c.seeds = (0, 1, 2)  # of every method and strength; a seed has a reference and pairs of its own
    c.only = ""  # names of the methods that are run and shown, comma-separated, in this order; "" for all, by name
    c.at_once = 2  # runs beside each other
    c.budgets = (0.5, 1.0, 2.0)  # KL in nats per answer, at which the table compares
    c.page = ""  # where page and picture go besides, as docs/results/frontier_reviews; "" for nowhere
    c.known = ""  # numbers (frontier.json) of other machines or days, comma-separated: what they hold is not run again
    return c


def _plan() -> ConfigDict:
    """Return the keys of `python -m slpojax.plan`, which no other program reads."""
    c = ConfigDict()
    # Devices, there or not: v5e-16, v5p-128, v6e-8, tpu7x-64, 2xv5e-256, v5e:4x4, h200:8; "" for this machine's
    c.topology = ""
    # Where model.path is not here: a public shape, as pythia-2.8b, or a folder with config.json; "" by its name
    c.model = ""
    c.lengths = "hh"  # of the examples, in tokens: hh (drawn as those of Anthropic HH) | data (those of data.path)
    c.examples = 0  # of a pass; 0 for those of the data, or of HH (160,800)
    c.programs = "all"  # what is compiled: all (also a frozen model's pass over the data, and sampling) | step
    c.search = False  # try meshes, model.remat, accumulate and model.attention, and rank them
    c.tries = 8  # plans that a search compiles at most
    c.cache = "~/.cache/slpojax/plans"  # folder that keeps plans by all that they depend on; "" for none
    return c


def _reference() -> ConfigDict:
    """Return the keys of frozen models."""
    c = ConfigDict()
    # cached | online | moving (follows the policy) | bema (follows it as its bias-corrected average) | none (for
    # objectives without one)
    c.mode = "cached"
    c.path = ""  # "" means the model the policy starts from
    c.cache = ""  # folder; "" means <output>/reference_cache
    # Examples scored at once where there is no gradient, in evaluations too; 0 for one to four times a micro-batch,
    # such that the held-out ones fill their batches.
    c.batch_size = 0
    c.every = 512  # steps between the moves of a moving reference, or of one that is an average,
    c.mix = 0.6  # each to mix * policy + (1 - mix) * reference, where mode is moving;
    # where mode is bema, each at step t to mean + (lag + t)^-bias_power * (policy - its start)
    c.bias_power = 0.2
    c.ema_power = 0.5  # where mode is bema: the newest policy enters the mean by (lag + t)^-ema_power
    c.lag = 10.0  # where mode is bema: the age of the mean at the start, in steps
    c.previous = ""  # a second frozen model, the iterate of INPO; "" for none
    return c


def _evaluate() -> ConfigDict:
    """Return the keys of an evaluation, `python -m slpojax.evaluate`, which no other program reads."""
    c = ConfigDict()
    c.run = ""  # output folder of a run, whose checkpoint is evaluated; "" for the folder model.path
    c.step = "best"  # which checkpoint: best (by the run's best_metric) | newest | a number
    c.samples = ""  # the policy's samples.jsonl, for KL, lengths and variety; "" for none
    # judged.jsonl of the policy's answers, for win rates; FILE::0:4 for the first four answers of each prompt
    c.judged = ""
    c.baseline = ""  # judged.jsonl of the answers that they are compared with; "" compares with the reference's
    c.reference = ""  # judged.jsonl of the reference's answers, compared with the same baseline
    c.control = ""  # judged.jsonl of one constant answer to all prompts, which should lose
    # That answer, where the judge of config.judge is asked by this program; "" for no control
    c.constant = "I am sorry, but I cannot help with that."
    c.questions = ""  # Arena-Hard's question.jsonl: answers and judgements are written in its shapes, too; "" for none
    c.bins = 10  # of confidence, in which preferences are counted for the calibration
    c.to = ""  # folder of the report; "" for <output>/evaluation
    return c
