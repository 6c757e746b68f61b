"""How bright brains are by nature in FLAIR, where a coil adds nothing: what `images.bias_field.FittedFieldd` must leave in.

    python benchmarks/flair_pattern.py --datalist FILE [--brain_cache DIR]

The field of every training volume is fitted as if brains were equally bright everywhere. The medians of its coefficients are
what they have in common, as coils and lesions lie elsewhere in each. Writes them to
``bundle/scripts/images/flair_pattern.json``, with the span of the fields that are left.
"""

from __future__ import annotations

import json
import sys
from itertools import takewhile
from pathlib import Path

import fire
import numpy as np
from monai.transforms import Compose
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.bundle import parsed
from scripts.files import write
from scripts.images.bias_field import CorrectFieldd, FittedFieldd
from scripts.images.polynomials import Polynomials
from scripts.learning.datalists import read_datalist

OUTPUT = ROOT / "bundle" / "scripts" / "images" / "flair_pattern.json"


def main(datalist: str, brain_cache: str | None = None, output: str = str(OUTPUT)) -> None:
    """See the module."""
    config = parsed()
    config.update({"brain_cache": brain_cache})
    transforms = config.get_parsed_content("preprocessing").transforms
    before = Compose(list(takewhile(lambda t: not isinstance(t, CorrectFieldd), transforms)))
    fit, none = FittedFieldd("image"), np.zeros(len(Polynomials(np.zeros(3), np.ones(3)).exponents))
    volumes = []
    for item in tqdm(read_datalist(datalist, "training"), unit="volume"):
        d = before({k: v for k, v in item.items() if k in ("image", "spacing", "foreground")})
        x = d["image"].as_tensor()[0].numpy()
        volumes.append((x, (d["foreground"].as_tensor()[0].numpy() >= 0.5) & (x > 0), d["image"].pixdim.tolist()))
    found = [fit.coefficients(*volume, pattern=none, ridge=0.0) for volume in volumes]
    pattern = np.median([c for c in found if c is not None], axis=0).round(4)
    spans = []
    for x, brain, pixdim in volumes:
        left = fit.coefficients(x, brain, pixdim, pattern, fit.RIDGE)
        if left is not None:
            low, high = np.percentile(Polynomials.over(brain).sum(left, brain.shape)[brain], [5, 95])
            spans.append(float(np.exp(high - low)))
    quantiles = np.percentile(spans, [0, 5, 50, 95, 100]).round(2).tolist()
    record = {
        "coefficients": pattern.tolist(),
        "volumes": len(spans),
        "span": dict(zip(("least", "5 %", "median", "95 %", "most"), quantiles, strict=True)),
    }
    write(Path(output), (json.dumps(record, indent=4) + "\n").encode())
    print(json.dumps(record))


if __name__ == "__main__":
    fire.Fire(main)
