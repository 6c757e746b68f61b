"""How well p(effusion) tells effusions in each view of the chest: AP, in which patients lie, and PA, in which they stand.

    python benchmarks/chest_views.py --datalist FILE --views CSV [--split test] [--output FILE]

The CSV names the ``view`` of each ``row``, which is the number at the end of an image's name. Intervals are of resampled
patients. Writes chest_effusion/views.json.
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
from scripts.judging.bootstrap import measured_scores
from scripts.judging.scored import Scored
from scripts.learning.datalists import read_datalist


def auroc(probability: np.ndarray, diseased: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    """Of p(diseased), with the 95 % interval of resampled patients; all ``(N,)``."""
    scored = Scored("p(diseased)")
    for patient, label, p in zip(patients, diseased, probability, strict=True):
        scored.slices.add(str(patient), int(label), float(p))
    found = measured_scores(scored)
    interval = [round(float(v), 3) for v in found.intervals["image_auroc"]]
    return {"auroc": round(found.values["image_auroc"], 3), "interval": interval}


def by_view(probability: np.ndarray, diseased: np.ndarray, views: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    """`auroc` within each view that holds both classes, the mean p of each class, and how p tells AP among the healthy."""
    found: dict[str, Any] = {}
    for view in sorted(set(views.tolist())):
        of_view = views == view
        p, truth = probability[of_view], diseased[of_view]
        if len(np.unique(truth)) < 2:
            continue
        found[view] = {
            "images": int(of_view.sum()),
            "diseased": int((truth == DISEASED).sum()),
            **auroc(p, truth, patients[of_view]),
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
    probability, diseased, seen, patients = [], [], [], []
    for item in tqdm(read_datalist(datalist, split), unit="image"):
        image = preprocessing({k: v for k, v in item.items() if k in ("image", "spacing")})["image"]
        with torch.no_grad():
            probability.append(float(inferer.probability(image.as_tensor().movedim(-1, 0).float())[0]))
        diseased.append(item["label"] if isinstance(item["label"], int) else item["label"][0])
        patients.append(item["subject"])
        [number] = re.findall(r"(\d+)$", Path(item["image"]).stem)
        seen.append(view_of[int(number)])
    record = {"split": split, **by_view(*map(np.array, (probability, diseased, seen, patients)))}
    write(Path(output), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(benchmark)
