r"""Relatives of DPO that take its margin otherwise: another loss of it, an offset, a penalty, scores, lengths.

With :math:`\rho(y) = \log P(y) - \log P_{ref}(y)` summed over tokens, :math:`h = \rho(y_w) - \rho(y_l)`, |y| the number
of tokens and s the scores. An absent response has the log-ratio 0. Metrics: those of
`slpojax.sequence.preference_metrics` with the reward :math:`\beta \rho`, whatever the objective.
"""

from slpojax.objectives.margin.lengths import ld_dpo, r_dpo, sampo
from slpojax.objectives.margin.losses import discopop, dpo_shift, dpop, exo_pair, hybrid_dpo, sigmoid_norm
from slpojax.objectives.margin.scores import odpo, rpo_backward_kl, rpo_forward_kl, rpo_squared, spce, todo

__all__ = [
    "exo_pair",
    "sigmoid_norm",
    "discopop",
    "dpop",
    "dpo_shift",
    "hybrid_dpo",
    "r_dpo",
    "ld_dpo",
    "sampo",
    "odpo",
    "spce",
    "rpo_squared",
    "rpo_backward_kl",
    "rpo_forward_kl",
    "todo",
]
