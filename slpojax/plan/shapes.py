"""The shape of the model that is planned for: the content of its config.json, from a folder or by name.

Knows folders, worlds and public shapes; loads no weight and asks no network.
"""

from typing import Any

from slpojax import adapters, folders, hf, wording, worlds
from slpojax.public import SHAPES
from slpojax.settings import Config


def find(config: Config) -> tuple[dict[str, Any], str]:
    """Return the content of config.json of the model that a configuration trains, and where it is from.

    It is that of `model.path` where this is on the machine, or in the hub's cache; else the shape that `plan.model`
    names, or the public one that `model.path` names. A world brings its own.

    Args:
        config: `world`, `model.path`, `plan.model`.

    Raises:
        ValueError: none of them is there; names the key that helps.
    """
    path, asked = config.model.path, config.plan.model
    if config.world and not path:
        name, world = worlds.find(config.world)
        return dict(world.model), f"of the world {name}"
    if folder := folders.here(path):
        also = folders.SCORING if config.model.head == "score" else ""
        model = adapters.base_of(folder, "model.path") if adapters.is_one(folder) else folder
        return hf.read_config(model, also=also), f"config.json of model.path={path}"
    if asked in SHAPES:
        return dict(SHAPES[asked]), f"plan.model={asked}, as model.path={path} is not on this machine"
    if asked:
        if folder := folders.here(asked):
            return hf.read_config(folder), f"config.json of plan.model={asked}"
        raise wording.unknown("plan.model", asked, SHAPES, also="a folder with a config.json")
    name = path.rpartition("/")[2].lower()
    # The longest that it begins with: "Llama-3.1-8B-Instruct" is a llama-3.1-8b.
    known = [shape for shape in SHAPES if name == shape or name.startswith(f"{shape}-")]
    if known:
        return dict(SHAPES[max(known, key=len)]), f"the public shape of {path}, which is not on this machine"
    raise ValueError(
        f"config.model.path={path!r} is not on this machine, and plan.model names no shape; set --config.plan.model to "
        f"a folder with a config.json, or to one of {', '.join(SHAPES)}"
    )
