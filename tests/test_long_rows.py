"""Long rows: a run on one device, against rows of one example each.

`make check` takes rows of 4,096 tokens; SLPOJAX_LONG_ROWS=16384 takes others, some minutes on a processor.
"""

import json
import os
import random

import numpy as np
import pytest
import tiny

from configs import base
from slpojax import metrics, settings, train


@pytest.mark.check
@pytest.mark.optimised
@pytest.mark.timeout(3600)
def test_long_dialogues_train_in_packed_rows_as_they_do_alone(tmp_path):
    """Losses and gradient norms are those of rows of one example."""
    length = int(os.environ.get("SLPOJAX_LONG_ROWS", "4096"))
    folder, draw = tiny.make(tmp_path), random.Random(0)
    (folder / "model" / "config.json").write_text(json.dumps(tiny.MODEL | {"max_position_embeddings": length}))

    def text(count):
        return " ".join(draw.choices(tiny.WORDS[1:], k=count))

    longest = length - 600
    sizes = [(longest // 2, longest // 4, longest // 8), (100, 120, 80), (longest // 3, longest // 5, longest // 3)]
    records = [
        {"prompt": text(prompt), "chosen": text(chosen), "rejected": text(rejected)}
        for prompt, chosen, rejected in [*sizes, (60, 90, 200)]
    ]
    (folder / "long.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    written = {}
    for name, packed in (
        ("packed", {"data.row_length": length}),
        ("alone", {"data.pack": False, "data.row_length": 0}),
    ):
        changes = tiny.changes(folder, name) | {
            "data.path": str(folder / "long.jsonl"),
            "data.rows": "",
            "data.eval_rows": "",
            "data.max_length": length,
            "data.max_prompt_length": length // 2,
            "data.too_long": "drop",
            "batch_size": 4,
            "steps": 2,
            "export": False,
            "checkpoint_every": -1,
            "mesh.fsdp": 1,
            **packed,
        }
        train.train(settings.resolve(base.get_config(), changes, choices=train.CHOICES))
        rows = metrics.read_jsonl(folder / name / "metrics.jsonl", "train")
        written[name] = [[row[key] for key in ("loss", "grad_norm", "logps/chosen", "logps/rejected")] for row in rows]
    assert np.isfinite(written["packed"]).all() and len(written["packed"]) == 2
    np.testing.assert_allclose(written["packed"], written["alone"], rtol=1e-4)
