"""What the tests of models share: rows for plain sequences, and gradients under the names of a checkpoint."""

import pathlib

import jax
import numpy as np
from safetensors.numpy import load_file

from slpojax import base, hf
from slpojax.numerics import soften


def plain(ids) -> base.Rows:
    """Rows of one sequence each."""
    ids = np.asarray(ids, np.int32)
    one = np.ones_like(ids)
    return base.Rows(ids, np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32)[None], ids.shape), one, 0 * one)


def logits_of(model: base.Model, params, rows: base.Rows):
    """[R, L, V]."""
    hidden, _ = model.apply(params, rows, None)
    return soften(jax.numpy.einsum("rld,dv->rlv", hidden, model.unembed(params)), model.cap)


def cross_entropy(model: base.Model, params, rows: base.Rows):
    """The mean over all tokens but the first of each row, and the logits."""
    logits = logits_of(model, params, rows)
    logps = jax.nn.log_softmax(logits[:, :-1])
    return -jax.numpy.take_along_axis(logps, rows.token[:, 1:, None], -1).mean(), logits


def named(tree, model: base.Model, config: dict, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """A tree like the parameters (a gradient) under the names of the checkpoint."""
    hf.save(folder, tree, model, config)
    return load_file(folder / hf.WEIGHTS)
