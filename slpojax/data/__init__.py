"""From a path to batches: source -> format -> tokens -> what fits -> rows -> batches. Knows no model and no mesh."""

from slpojax.data.examples import Example, Examples, build, pick
from slpojax.data.loading import load
from slpojax.data.orders import evaluation_order, order, passes
from slpojax.data.pipeline import batches, evaluation_batches, make_picked, scan_order
from slpojax.data.report import Report, as_dict, render, with_packing
from slpojax.data.rows import pack, plan, plan_together
from slpojax.data.tokenise import Tokenizer, load_tokenizer
from slpojax.data.tokenise import digest as tokenizer_digest

__all__ = [
    "Example",
    "Examples",
    "Report",
    "Tokenizer",
    "as_dict",
    "batches",
    "build",
    "evaluation_batches",
    "evaluation_order",
    "load",
    "load_tokenizer",
    "make_picked",
    "order",
    "pack",
    "passes",
    "pick",
    "plan",
    "plan_together",
    "render",
    "scan_order",
    "tokenizer_digest",
    "with_packing",
]
