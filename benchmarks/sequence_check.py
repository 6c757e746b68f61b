"""What the checks of the input say about real images: the sequence, a removed skull, and the size and signal of the brain.

    python benchmarks/sequence_check.py --brain_mr DIR --brats DIR --others DATALIST [--brain_cache DIR]

`brain_mr` is the folder of TCGA-LGG with ``slices.csv`` and T1, T1 with contrast and FLAIR (see `prepare.brain_mr`), `brats`
one of BraTS with a folder a case and ``cases.csv``, and `others` a JSON datalist with ``image``, ``sequence``, ``subject``,
``stripped`` and, where there is one, ``foreground``. Brains are the data set's own, or what the bundle finds.

Fits the logistic regression of `images.sequence_check` on all images and writes it to the JSON file beside that module; its
errors, from five-fold cross-validation over patients (a person in two sets is one patient) and from fits on one set alone, go
to benchmarks/sequence_check.json, with how many images of each set the other checks warn of.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fire
import numpy as np
from keeping import ROOT
from monai.transforms import Orientationd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from scripts.files import write
from scripts.images.brain import ExtractBraind
from scripts.images.intensities import RepairIntensitiesd
from scripts.images.loading import LoadVolumed
from scripts.images.plausibility import CheckBraind
from scripts.images.resampling import ResampleInPlaned
from scripts.images.sequence_check import sequence_features
from scripts.learning.datalists import read_datalist
from scripts.prepare.brain_mr import brain_mr as prepare_brain_mr

THRESHOLD = 0.3
"""The least probability of FLAIR that is not warned of: chosen so that about 2 % of FLAIR are."""
KNOWN = {"flair": "FLAIR", "t1": "T1", "t1gd": "T1Gd", "t1ce": "T1Gd", "t2": "T2"}


def items(brain_mr: str, brats: str, others: str) -> Iterator[dict[str, Any]]:
    """Every image with ``set``, ``sequence``, ``subject`` and ``stripped``."""
    with TemporaryDirectory() as folder:
        for name in ("flair", "t1", "t1gd"):
            path = f"{folder}/{name}.json"
            prepare_brain_mr(root=brain_mr, output=path, sequences=name, brain_masks=True)
            for item in read_datalist(path):
                yield {**item, "set": "TCGA-LGG", "sequence": KNOWN[name], "stripped": False}
    with (Path(brats) / "cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name in ("flair", "t1", "t1ce", "t2"):
                yield {
                    "image": str(Path(brats) / row["case"] / f"{row['case']}_{name}.nii.gz"),
                    "set": "BraTS",
                    "sequence": KNOWN[name],
                    "subject": row["tcga_patient"] or row["case"],
                    "stripped": True,
                }
    for item in json.loads(Path(others).read_text()):
        yield {**item, "set": "others"}


def measured(item: dict[str, Any], extract: ExtractBraind) -> dict[str, Any]:
    """Of one image: the features, whether it was taken for stripped, the volume of the brain, and the warnings."""
    d = LoadVolumed("image")({k: v for k, v in item.items() if k in ("image", "foreground", "spacing")})
    d = RepairIntensitiesd("image")(Orientationd("image", axcodes="LPS", labels=None)(d))
    found = "foreground" in d
    d = CheckBraind("image")(extract(d))
    brain = d["foreground"]
    ml = float(brain.sum()) * float(np.prod(brain.pixdim.tolist())) / 1000
    # in the images of these sets no field is so strong that it is corrected
    d = ResampleInPlaned(["image", "foreground"], 2.4)(d)
    image, coverage = (d[k].as_tensor()[0].numpy() for k in ("image", "foreground"))
    features = sequence_features(image, coverage, d["image"].pixdim.tolist())
    return {"features": features, "taken_for_stripped": found, "ml": ml, "warnings": d["warnings"]}


def model() -> Pipeline:
    """The classifier of sequences."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=10_000))


def rates(flair: np.ndarray, sets: np.ndarray, sequences: np.ndarray) -> dict[str, dict[str, str]]:
    """Of each set and sequence how many are warned of, given the probability of FLAIR."""
    warned = flair < THRESHOLD
    return {
        s: {
            q: f"{int(warned[m].sum())} of {int(m.sum())}"
            for q in ("FLAIR", "T1", "T1Gd", "T2")
            if (m := (sets == s) & (sequences == q)).any()
        }
        for s in dict.fromkeys(sets.tolist())
    }


def main(brain_mr: str, brats: str, others: str, brain_cache: str | None = None) -> None:
    """Fit, cross-validate and write."""
    extract = ExtractBraind("image", cache_dir=brain_cache)
    images = [{**item, **measured(item, extract)} for item in tqdm(list(items(brain_mr, brats, others)))]
    x = np.stack([i["features"] for i in images])
    sequences, sets, subjects = (np.array([i[k] for i in images]) for k in ("sequence", "set", "subject"))

    def flair(fitted: Pipeline, x: np.ndarray) -> np.ndarray:
        return fitted.predict_proba(x)[:, fitted.classes_.tolist().index("FLAIR")]

    p = np.zeros(len(images))
    for train, test in GroupKFold(5).split(x, sequences, subjects):
        p[test] = flair(model().fit(x[train], sequences[train]), x[test])
    transfer = {}
    for s in ("TCGA-LGG", "BraTS"):
        fit, rest = sets == s, (sets != s) & ~np.isin(subjects, subjects[sets == s])
        transfer[f"fitted on {s}"] = rates(
            flair(model().fit(x[fit], sequences[fit]), x[rest]), sets[rest], sequences[rest]
        )
    fitted = model().fit(x, sequences)
    scaler, regression = fitted[0], fitted[1]
    parameters = {
        "sequences": regression.classes_.tolist(),
        "mean": scaler.mean_.round(5).tolist(),
        "scale": scaler.scale_.round(5).tolist(),
        "coefficients": regression.coef_.round(4).tolist(),
        "intercept": regression.intercept_.round(4).tolist(),
        "threshold": THRESHOLD,
    }
    lines = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in parameters.items())
    write(ROOT / "bundle" / "scripts" / "images" / "sequence_check.json", f"{{\n{lines}\n}}\n".encode())

    checks = {}
    for s in dict.fromkeys(sets.tolist()):
        of_set = [i for i in images if i["set"] == s]
        ml = sorted(i["ml"] for i in of_set)
        checks[s] = {
            "images": len(of_set),
            "stripped, taken for whole heads": sum(i["stripped"] and not i["taken_for_stripped"] for i in of_set),
            "whole heads, taken for stripped": sum(i["taken_for_stripped"] and not i["stripped"] for i in of_set),
            "brain in ml": [round(ml[0]), round(float(np.median(ml))), round(ml[-1])],
            "images with a warning": sum(bool(i["warnings"]) for i in of_set),
            "warnings": dict(Counter(" ".join(w.split()[:4]) for i in of_set for w in i["warnings"])),
        }
    result = {
        "warned that it is not FLAIR": {
            "cross-validated over patients": rates(p, sets, sequences),
            **transfer,
            "threshold": THRESHOLD,
        },
        "other checks": checks,
    }
    write(ROOT / "benchmarks" / "sequence_check.json", (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    fire.Fire(main)
