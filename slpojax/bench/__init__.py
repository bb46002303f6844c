"""The bench: what every program prepares and none changes.

Devices, the model's folder and its functions, the tokenizer, and the streams of random keys, in `making`; the policy's
parameters in and out in `weights`. Knows a configuration, and no data, no objective and no step.
"""

from slpojax.bench.making import STEPS, Bench, Keys, keys, make, model, of_model, refuse, set_up_jax
from slpojax.bench.weights import (
    base_like,
    base_params,
    draw_params,
    export,
    first_digest,
    first_params,
    first_trained,
    load_params,
    params_like,
    policy_like,
    policy_params,
    reference_like,
    reference_params,
    require_same_base,
    restore_params,
    weights_digest,
)

__all__ = [
    "STEPS",
    "Bench",
    "Keys",
    "base_like",
    "base_params",
    "draw_params",
    "export",
    "first_digest",
    "first_params",
    "first_trained",
    "keys",
    "load_params",
    "make",
    "model",
    "of_model",
    "params_like",
    "policy_like",
    "policy_params",
    "reference_like",
    "reference_params",
    "refuse",
    "require_same_base",
    "restore_params",
    "set_up_jax",
    "weights_digest",
]
