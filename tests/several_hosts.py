"""One of several processes that work together, as on several hosts: what tests/test_hosts.py starts.

`python tests/several_hosts.py NUMBER COUNT PORT FOLDER ACT ...`: the acts are names of `programs.PROGRAMS`, `sample`
and `judge`. All of them run in the same processes, since a start takes longer than a small run.
"""

import contextlib
import json
import pathlib
import sys
from unittest import mock

import jax
import numpy as np
import programs

from configs import base
from slpojax import grid, hf, models, sampling, settings, simulate, train
from slpojax.folders import exports
from slpojax.worlds import reviews

MESH = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2}
PROMPTS = [[3, 4, 5], [7], [2, 9, 11, 6, 8, 3], [12, 12], [5, 2, 10, 4]]


def sample(folder: pathlib.Path, devices: grid.Grid) -> dict:
    """Load a model, sample from it, score what it says and save it; count what this process reads and gathers."""
    config = hf.read_config(folder / "model")
    model = models.build(config, grid=devices)
    with _counted(hf._slice) as read:
        params = hf.load(folder / "model", model, devices)
    options = {"max_new_tokens": 8, "grid": devices}
    sampled = sampling.generate(model, params, PROMPTS, key=jax.random.key(1), eos=(0,), slots=3, **options)
    responses = [response for (response,) in sampled]
    tokens = [response.token for response in responses]
    scored = sampling.score(model, params, PROMPTS, tokens, batch=3, **options)
    with _counted(exports.gather) as gathered:
        hf.save(folder / "saved", params, model, config)
    return {
        "token": [x.tolist() for x in tokens],
        "logp": [response.logp.tolist() for response in responses],
        "scored": [x.tolist() for x in scored],
        "read": sum(read),
        "gathered": max(gathered),
    }


@contextlib.contextmanager
def _counted(function):
    """Give the list of the bytes of what a function of a module returns."""
    sizes = []

    def counted(*args):
        out = function(*args)
        sizes.append(out.nbytes)
        return out

    with mock.patch.object(sys.modules[function.__module__], function.__name__, counted):
        yield sizes


def judge(folder: pathlib.Path, mesh: dict) -> dict:
    """Judge a model of a world's shape by the world, which asks for few answers."""
    path = folder / "world"
    changes = mesh | {"world": "reviews", "model.path": str(path), "output": str(folder / "judged")}
    config = settings.resolve(base.get_config(), changes, choices=train.CHOICES)
    devices = grid.make(*(config.mesh[axis] for axis in grid.AXES))
    model = models.build(hf.read_config(path), grid=devices)
    params = hf.load(path, model, devices)
    params = params | {"head": {"weight": 1.3 * params["head"]["weight"]}}
    world = reviews.WORLD._replace(judged=24)
    with mock.patch.object(reviews, "WORLD", world), mock.patch.object(simulate, "BATCH", 16):
        return dict(simulate.judge(config)(params, 0))


def write_world(folder: pathlib.Path) -> None:
    """Write a model of the world's shape with weights from NumPy."""
    config = reviews.LLAMA | {"vocab_size": len(reviews.WORLD.tokenizer()), "num_hidden_layers": 1}
    model, rng = models.build(config), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(0.0, 0.2, x.shape).astype(np.float32), shapes)
    hf.save(folder / "world", params, model, config)


def main() -> None:
    """Do the acts of the command line, one after the other."""
    number, count, port, folder, *acts = sys.argv[1:]
    folder = pathlib.Path(folder)
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(number))
    for act in acts:
        if act in programs.PROGRAMS:
            changes = programs.changes(folder, act) | MESH
            train.train(settings.resolve(base.get_config(), changes, choices=train.CHOICES))
        else:
            made = sample(folder, grid.make(*MESH.values())) if act == "sample" else judge(folder, MESH)
            (folder / f"{act}.{number}.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main()
