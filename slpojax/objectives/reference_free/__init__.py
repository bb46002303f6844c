r"""Objectives that need no reference model: SimPO, AlphaPO, SimPER, RePO, ConfPO, CPO, SLiC-HF, ORPO, TPO.

With :math:`L(y) = \log P(y)`, summed over tokens, and :math:`\bar L(y) = L(y) / |y|`, its mean. A response that is
absent counts as one of probability one. Several add the negative log-likelihood of a response, NLL, in the reduction
that `nll` names, see `slpojax.objectives.likelihood`. One takes the likelihood of the prompt with that of the response,
`orpo_with_prompt`; the others see no prompt.

Metrics: those of `slpojax.sequence.preference_metrics` with the reward that each docstring names, and nll_loss, the
likelihood term before its weight, where there is one. `logps/` are sums over tokens also where the loss takes means.
"""

from slpojax.objectives.reference_free.contrast import cpo, cpo_hinge, cpo_ipo, slic_hf
from slpojax.objectives.reference_free.means import alphapo, confpo, repo, simper, simpo
from slpojax.objectives.reference_free.odds import orpo, orpo_with_prompt
from slpojax.objectives.reference_free.triples import tpo, tpo_hinge, tpo_ipo, tpo_l

__all__ = [
    "simpo",
    "alphapo",
    "simper",
    "repo",
    "confpo",
    "cpo",
    "cpo_hinge",
    "cpo_ipo",
    "slic_hf",
    "orpo",
    "orpo_with_prompt",
    "tpo",
    "tpo_hinge",
    "tpo_ipo",
    "tpo_l",
]
