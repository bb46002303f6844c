r"""The gradient desk: what an objective does to log-probs, what its step does to both responses, how far a step may go.

Knows objectives, log-probs and models as functions; knows no plot, and only `held_out` a configuration. `arrays` works
on log-probs that anybody may write down (`responses`, `gradient`, `field`, `safe_radius`, `effective_sample_size`),
`parameters` on those of a model (`scorer`, `entanglement`, `logit_spread`); `diagnostics` brings both to batches, and
`held_out` to a run.

With g_w and g_l the gradients of log P(chosen) and log P(rejected) with respect to the parameters, a small step on a
loss of the margin moves them by

.. math:: \Delta \log P(y_w) \propto ||g_w||^2 - g_w \cdot g_l, \quad
    \Delta \log P(y_l) \propto g_w \cdot g_l - ||g_l||^2,

so both move the same way as soon as the inner product exceeds one of the squared norms.

Reference:
    Hui Yuan, Yifan Zeng, Yue Wu, Huazheng Wang, Mengdi Wang, Liu Leqi, A Common Pitfall of Margin-based Language Model
    Alignment: Gradient Entanglement, 2024, arXiv:2410.13828.
    Piyush Sao, Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in Cross-Entropy, 2026,
    arXiv:2603.13552.
"""

from slpojax.explore.arrays import Field, Gradient, field, gradient, responses, safe_radius, safe_radius_pair
from slpojax.explore.diagnostics import make_diagnostics
from slpojax.explore.held_out import of_held_out
from slpojax.explore.parameters import Entanglement, Scorer, entanglement, logit_spread, scorer
from slpojax.numerics import effective_sample_size

__all__ = [
    "Entanglement",
    "Field",
    "Gradient",
    "Scorer",
    "effective_sample_size",
    "entanglement",
    "field",
    "gradient",
    "logit_spread",
    "make_diagnostics",
    "of_held_out",
    "responses",
    "safe_radius",
    "safe_radius_pair",
    "scorer",
]
