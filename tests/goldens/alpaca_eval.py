"""Win rates by AlpacaEval's own package, of annotations that are made up here.

`pip install alpaca-eval` in an environment of its own, then, from the root of the repository,
`python tests/goldens/alpaca_eval.py > tests/goldens/alpaca_eval.json`. `tests/test_winrate.py` holds ours against them.

The package fetches the difficulty of AlpacaEval's 805 instructions from the hub before it fits anything, also where the
variant does not read it; here a file of zeros stands in, and made-up annotations need no hub.
"""

import hashlib
import importlib.metadata
import json
import math
import pathlib
import random
import sys
import tempfile

CASES = {
    "even": (200, 0.0, 0.0),
    "long answers win": (321, 1.0, -0.5),
    "weighted": (150, 0.5, 0.5),
    "few": (12, 1.0, 0.0),
}


def annotations(name):
    """Annotations in which the longer answer is preferred, more or less."""
    count, slope, better = CASES[name]
    draw, made = random.Random(name), []
    for i in range(count):
        theirs, ours = (max(1, int(draw.lognormvariate(4, 0.6))) for _ in range(2))
        p = 1 / (1 + math.exp(-better - slope * (ours - theirs) / 40 + draw.gauss(0, 0.5)))
        win = round(p, 6) if name == "weighted" else 0.5 if draw.random() < 0.1 else float(draw.random() < p)
        made.append(
            {
                "instruction": f"prompt {i}",
                "output_1": "b" * theirs,
                "generator_1": "baseline",
                "output_2": "m" * ours,
                "generator_2": "model",
                "dataset": "made up",
                "annotator": "judge",
                "preference": 1.0 + win,
            }
        )
    return made


def scores(annotations):
    """What the package says of annotations: its leaderboard's columns."""
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    with tempfile.TemporaryDirectory() as folder:
        difficulty = pathlib.Path(folder) / "df_gamed.csv"
        pd.DataFrame({"model": "none", "index": range(len(annotations)), "instruction_difficulty": 0.0}).to_csv(
            difficulty, index=False
        )
        glm_winrate.hf_hub_download = lambda **_: str(difficulty)
        table = pd.DataFrame(annotations)
        found = glm_winrate.get_length_controlled_winrate(
            table, glm_name="length_controlled_minimal", save_weights_dir=folder
        )
        (weights,) = (pathlib.Path(folder) / "length_controlled_minimal").glob("*.csv")
        weights = pd.read_csv(weights, index_col=0)
    return {name: float(value) for name, value in found.items()} | {
        "weights": weights.to_numpy()[0].tolist(),
        "folds": folds(len(annotations)),
    }


def folds(count):
    """Digest of the five folds that scikit-learn makes of so many comparisons: other processors sort ties otherwise."""
    import numpy as np
    from sklearn.model_selection import GroupKFold

    group = np.tile(np.arange(count), 2)
    left = [rows.astype(np.int64).tobytes() for _, rows in GroupKFold(n_splits=5).split(group, group, group)]
    return hashlib.sha256(b"".join(left)).hexdigest()


def main():
    """Print the numbers of all cases, or of the annotations in the file that the command line names."""
    if sys.argv[1:]:
        print(json.dumps(scores(json.loads(pathlib.Path(sys.argv[1]).read_text()))))
        return
    versions = {name: importlib.metadata.version(name) for name in ("alpaca-eval", "scikit-learn", "numpy")}
    print(json.dumps({"versions": versions, "cases": {name: scores(annotations(name)) for name in CASES}}, indent=1))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: the file would be taken for the package that it asks
    main()
