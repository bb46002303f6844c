"""From a path to batches: records -> texts -> token ids -> examples -> rows -> batches. Knows no model and no mesh."""

from slpojax.data.chain import Group, Text, Transform, each, settle
from slpojax.data.examples import Example, Examples, build, pick
from slpojax.data.loading import CHAIN, load
from slpojax.data.mixing import mix, sizes
from slpojax.data.options import FIELDS, Rules, Settings, Setup, Source, settings
from slpojax.data.options import as_dict as settings_as_dict
from slpojax.data.orders import evaluation_order, order, passes
from slpojax.data.pipeline import batches, evaluation_batches, make_picked, scan_order
from slpojax.data.planning import plan, plan_together
from slpojax.data.refusals import refuse
from slpojax.data.report import Report, as_dict, render, with_overlap, with_packing
from slpojax.data.rows import pack
from slpojax.data.tokenise import Tokenizer, load_tokenizer
from slpojax.data.tokenise import digest as tokenizer_digest

__all__ = [
    "CHAIN",
    "FIELDS",
    "Example",
    "Examples",
    "Group",
    "Report",
    "Rules",
    "Settings",
    "Setup",
    "Source",
    "Text",
    "Tokenizer",
    "Transform",
    "as_dict",
    "batches",
    "build",
    "each",
    "evaluation_batches",
    "evaluation_order",
    "load",
    "load_tokenizer",
    "make_picked",
    "mix",
    "order",
    "pack",
    "passes",
    "pick",
    "plan",
    "plan_together",
    "refuse",
    "render",
    "scan_order",
    "settings",
    "settings_as_dict",
    "settle",
    "sizes",
    "tokenizer_digest",
    "with_overlap",
    "with_packing",
]
