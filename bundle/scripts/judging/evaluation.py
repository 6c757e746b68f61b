"""The bundle on labelled data: thresholds chosen on validation patients, test patients reported once."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from ..errors import cause_of
from ..files import replacing, write
from ..fingerprints import fingerprint
from ..images.geometry import slice_numbers
from ..method.inferer import CounterfactualInferer
from ..method.slices import each
from ..weights import weights_digest
from .bootstrap import bootstrap, paired_bootstrap
from .cases import Domain, SliceCase
from .metrics import best_threshold, metrics
from .readings import BASELINE, COUNTERFACTUAL, OURS, cases_of, readings
from .reporting import figure, table

logger = logging.getLogger(__name__)


def _packed(value: Any) -> Any:
    """Arrays as tensors of their own, also within dictionaries, for `torch.save`."""
    if isinstance(value, dict):
        return {k: _packed(v) for k, v in value.items()}
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _unpacked(value: Any) -> Any:
    """The arrays again, on the same memory."""
    if isinstance(value, dict):
        return {k: _unpacked(v) for k, v in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value


class Evaluation:
    """Choose thresholds on `validation`, report `test` once: tables, intervals, a figure and a record of it all.

    Writes to `output_dir`: ``test_foreground`` and ``test_image`` (.csv and .md), ``validation_foreground`` (.csv and .md),
    ``cases.png`` and ``results.json``.

    One volume at a time is in the memory. What was found in it is written to `cache_dir`, from where the metrics read one
    method's maps after the other, and where a run that was stopped finds it again, by the item, its files, the settings and
    the weights. A volume that fails is named in the log and in the record, and the next one follows.

    Args:
        validation, test: datalists, see `cases_of`.
        preprocessing, inferer, network: the bundle's.
        device: of the networks.
        polarity, median_size: the bundle's, see `method.maps.anomaly_map`.
        settings: for the record.
        output_dir: made if it is missing.
        cache_dir: likewise; what lies in it as ``evaluated-*.pt`` may be deleted when all is done.
    """

    def __init__(
        self,
        validation: Sequence[Mapping[str, Any]],
        test: Sequence[Mapping[str, Any]],
        preprocessing: Compose,
        inferer: CounterfactualInferer,
        network: torch.nn.Module,
        device: torch.device,
        polarity: str | Sequence[str],
        median_size: int,
        settings: Mapping[str, Any],
        output_dir: str,
        cache_dir: str,
    ) -> None:
        self.datalists = {"validation": validation, "test": test}
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.network = network
        self.device = device
        self.polarity = polarity
        self.median_size = median_size
        self.settings = dict(settings)
        self.output_dir = Path(output_dir)
        self.cache_dir = Path(cache_dir)

    @cached_property
    def _made_with(self) -> list[Any]:
        """All that the results depend on, beside a volume's files and the preprocessing."""
        networks = (self.network, self.inferer.classifier, self.inferer.student)
        weights = [weights_digest(network) for network in networks if network is not None]
        alphas = float(self.inferer.alphas_cumprod.double().sum())
        return [weights, self.inferer.settings, alphas, self.polarity, self.median_size]

    def _path(self, item: Mapping[str, Any]) -> Path:
        """Where the results of a volume are kept: another file for everything that they depend on."""
        return self.cache_dir / f"evaluated-{fingerprint([item, self._made_with], self.preprocessing)}.pt"

    def _kept(self, item: Mapping[str, Any]) -> tuple[list[SliceCase], float]:
        """A volume's cases, whose arrays are read from disk where they are used, and the seconds that the networks took."""
        path = self._path(item)
        if not path.is_file():
            cases, seconds = self._evaluated(item)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                torch.save({"cases": [_packed(vars(case)) for case in cases], "seconds": seconds}, partial)
        kept = torch.load(path, mmap=True, weights_only=True)
        return [SliceCase(**_unpacked(case)) for case in kept["cases"]], kept["seconds"]

    def _evaluated(self, item: Mapping[str, Any]) -> tuple[list[SliceCase], float]:
        volume = self.preprocessing({k: v for k, v in item.items() if k in ("image", "spacing", "foreground")})
        image: MetaTensor = volume["image"]
        depth = volume["input_foreground"].shape[-1]
        if len(item["label"]) != depth:
            raise ValueError(f"{item['image']}: has {depth} slices, but {len(item['label'])} labels.")
        wanted = torch.tensor([[item["label"][n] >= 0 for n in slice_numbers(image)]])
        start = time.perf_counter()
        inputs = image.as_tensor()[None].to(self.device)
        inside = volume["foreground"].as_tensor()[None].to(self.device)
        pred = self.inferer(inputs, self.network, inside, assessed=wanted.to(self.device))
        seconds = time.perf_counter() - start
        found = each(pred, lambda values: values[0].cpu())
        slices = each(found, lambda values: values.movedim(-1, 0).nan_to_num())
        foreground = volume["foreground"].as_tensor().movedim(-1, 0) >= 0.5
        maps, scores = readings(image.as_tensor().movedim(-1, 0), slices, foreground, self.polarity, self.median_size)
        scores |= {"p(diseased)": found["probability"]}
        return cases_of(item, volume, maps, scores, found["counterfactual"]), seconds

    def run(self) -> None:
        """Evaluate and write everything.

        Raises:
            SystemExit: with status 1 if a volume failed, after all else was written.
            ValueError: of a split no volume is left.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        cases: dict[str, list[SliceCase]] = {split: [] for split in self.datalists}
        failed: dict[str, str] = {}
        seconds = 0.0
        for split, items in self.datalists.items():
            for item in tqdm(items, desc=split, unit="volume"):
                try:
                    found, spent = self._kept(item)
                except Exception as error:
                    cause = cause_of(error)
                    failed[str(item["subject"])] = str(cause) or type(cause).__name__
                    logger.error("FAILED %s: %s", item["subject"], failed[str(item["subject"])])
                    continue
                cases[split] += found
                seconds += spent
            if not cases[split]:
                raise ValueError(f"no slice of the {split} patients could be evaluated; failed: {failed}.")
        methods = list(cases["test"][0].maps)
        ours = OURS if OURS in methods else COUNTERFACTUAL
        record: dict[str, Any] = {
            "settings": self.settings,
            "machine": {"processor": platform.processor() or platform.machine(), "device": str(self.device)},
            "versions": {"monai": monai.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "seconds_per_slice_in_networks": seconds / sum(len(c) for c in cases.values()),
            "failed": failed,
        }
        for split, chosen in cases.items():
            diseased = [c.diseased for c in chosen]
            record[split] = {
                "patients": len({c.subject for c in chosen}),
                "slices": len(chosen),
                "diseased_slices": sum(diseased),
                "image_auroc_of_p_diseased": float(roc_auc_score(diseased, [c.scores["p(diseased)"] for c in chosen])),
            }
        domains: tuple[Domain, ...] = ("foreground", "image")
        for domain in domains:
            thresholds = {m: best_threshold(cases["validation"], m, domain) for m in methods}
            for split in ("validation", "test") if domain == "foreground" else ("test",):
                results = {
                    m: (metrics(cases[split], m, t, domain), bootstrap(cases[split], m, t, domain))
                    for m, t in thresholds.items()
                }
                note = "Thresholds are those with the best pooled Dice on validation patients."
                table(results, self.output_dir / f"{split}_{domain}", domain, note)
                record[split][domain] = {m: {"threshold": thresholds[m], **r[0]} for m, r in results.items()}
            record["test"][domain]["difference to the baseline"] = {
                metric: paired_bootstrap(
                    cases["test"], ours, BASELINE, metric, thresholds[ours], thresholds[BASELINE], domain
                )
                for metric in ("pixel_ap", "dice_threshold", "image_auroc")
            }
            if domain == "foreground":
                figure(cases["test"], ours, thresholds[ours], self.output_dir / "cases.png", domain)
        write(self.output_dir / "results.json", json.dumps(record, indent=2).encode())
        print((self.output_dir / "test_foreground.md").read_text())
        print(f"Tables, figure and record: {self.output_dir}")
        if failed:
            print(f"{len(failed)} volumes failed and are left out: {', '.join(failed)}")
            raise SystemExit(1)
