"""How well p(effusion) tells effusions in each view of the chest, as sets mix views and the sick lie: AP and PA.

    python benchmarks/chest_views.py --datalist FILE --views CSV [--split test] [--output FILE]

The CSV names the ``view`` of each ``row``, which is the number at the end of an image's name. Views whose healthy images get a
high p are told by how a patient was placed. Writes chest_effusion/views.json.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

from scripts import DISEASED, HEALTHY
from scripts.bundle import declared
from scripts.files import write
from scripts.learning.datalists import read_datalist


def by_view(probability: np.ndarray, diseased: np.ndarray, views: np.ndarray) -> dict[str, Any]:
    """The AUROC of p(diseased) ``(N,)`` within each view, the mean p of both classes, and how p tells AP among the healthy."""
    found: dict[str, Any] = {}
    for view in sorted(set(views.tolist())):
        of_view = views == view
        p, truth = probability[of_view], diseased[of_view]
        found[view] = {
            "images": int(of_view.sum()),
            "diseased": int((truth == DISEASED).sum()),
            "auroc": round(float(roc_auc_score(truth, p)), 3),
            "mean_p_healthy": round(float(p[truth == HEALTHY].mean()), 3),
            "mean_p_diseased": round(float(p[truth == DISEASED].mean()), 3),
        }
    healthy = diseased == HEALTHY
    of_ap = roc_auc_score(views[healthy] == "AP", probability[healthy])
    return {"views": found, "auroc_of_p_for_ap_among_healthy": round(float(of_ap), 3)}


def benchmark(
    datalist: str,
    views: str,
    split: str = "test",
    output: str = str(ROOT / "benchmarks" / "chest_effusion" / "views.json"),
) -> None:
    """Write `output`; see the module."""
    with Path(views).open(newline="", encoding="utf-8") as file:
        view_of = {int(row["row"]): row["view"] for row in csv.DictReader(file)}
    preprocessing, inferer = declared("preprocessing", "chest"), declared("inferer", "chest", device="cpu")
    probability, diseased, seen = [], [], []
    for item in tqdm(read_datalist(datalist, split), unit="image"):
        image = preprocessing({k: v for k, v in item.items() if k in ("image", "spacing")})["image"]
        with torch.no_grad():
            probability.append(float(inferer.probability(image.as_tensor().movedim(-1, 0).float())[0]))
        diseased.append(item["label"] if isinstance(item["label"], int) else item["label"][0])
        [number] = re.findall(r"(\d+)$", Path(item["image"]).stem)
        seen.append(view_of[int(number)])
    record = {"split": split, **by_view(np.array(probability), np.array(diseased), np.array(seen))}
    write(Path(output), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(benchmark)
