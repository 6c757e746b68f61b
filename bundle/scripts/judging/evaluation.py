"""A model on labelled data: thresholds chosen on validation patients, test patients reported once."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import torch

from ..bundle import bundle_version
from ..files import write
from ..weights import digests_of, in_use, not_together
from .cases import Domain
from .figure import figure, reliability_figure
from .groups import by_group, write_groups
from .kept import KeptCases
from .parts import recalls, write_parts
from .readings import shipped
from .reporting import DOMAINS, OF_MAPS, write_reliability, write_rows, write_scores
from .rows import best_baseline, counted, differences, results, thresholds
from .volumes import LabelledVolumes


class Evaluation:
    """Choose thresholds on `validation`, report `test` once: tables, intervals, a figure and a record of it all.

    Lesions are known by masks, or where no diseased slice of a split has one, by the area of the boxes; a healthy slice has
    none. A diseased slice without either counts for its score alone. What can't be computed is left out, and said.

    Writes to `output_dir`: ``test_scores``, ``test_foreground`` and ``test_image``, ``validation_scores`` and
    ``validation_foreground`` (each .csv and .md), ``test_reliability`` and ``validation_reliability`` with ``reliability.png``,
    ``cases.png`` and ``results.json``; where masks have several values,
    ``test_parts`` too, which says how much of each is marked at the bundle's threshold; and where the datalist names groups,
    ``test_groups``, see `groups`. Of these, what an earlier evaluation wrote there and this one doesn't is removed.

    Args:
        validation, test: of a datalist; without validation, only the threshold that the bundle ships is reported.
        volumes: see `LabelledVolumes`.
        threshold: the one that the bundle ships.
        settings: the options, for the record.
        networks: that are judged, by the names of the config; None for one that isn't there.
        other_settings: what is no option but changes the result, for the record beside `settings`, see `weights.in_use`.
        manifest: says which weights belong together, see `weights.not_together`; where they don't, a warning is printed.
        output_dir: made if it is missing.
    """

    def __init__(
        self,
        validation: Sequence[Mapping[str, Any]],
        test: Sequence[Mapping[str, Any]],
        volumes: LabelledVolumes,
        threshold: float,
        settings: Mapping[str, Any],
        networks: Mapping[str, torch.nn.Module | None],
        other_settings: Mapping[str, Any],
        manifest: str,
        output_dir: str,
    ) -> None:
        self.datalists = {"validation": validation, "test": test}
        self.volumes = volumes
        self.threshold = threshold
        self.settings = in_use(settings, other_settings)
        self.weights = digests_of(networks)
        self.warnings = not_together(manifest, self.weights, self.settings)
        self.output_dir = Path(output_dir)
        self._best: str | None = None

    def run(self) -> None:
        """Evaluate and write everything; of several ranks, the first writes, once all volumes are done.

        Raises:
            SystemExit: with status 1 if a volume failed, after all else was written.
            ValueError: no slice of the test volumes could be evaluated.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        cases: dict[str, KeptCases] = {}
        record: dict[str, Any] = {
            "settings": self.settings,
            "weights": self.weights,
            "warnings": self.warnings,
            "machine": {"processor": platform.processor() or platform.machine(), "device": str(self.volumes.device)},
            "versions": {
                "bundle": bundle_version(),
                "monai": monai.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "failed": {},
        }
        for split, items in self.datalists.items():
            kept, failed = self.volumes.cases(items, split)
            record["failed"] |= failed
            if next(iter(kept), None) is not None:
                cases[split] = kept
        if idist.get_rank() > 0:
            return
        if "test" not in cases:
            raise ValueError(f"no slice of the test volumes could be evaluated; failed: {record['failed'] or 'none'}.")
        curves = {}
        for split, kept in cases.items():
            record[split] = counted(kept)
            write_scores(kept, self.output_dir / f"{split}_scores", record[split])
            curves[split] = write_reliability(kept, self.output_dir / f"{split}_reliability", record[split])
        reliability_figure(curves, self.output_dir / "reliability.png")
        for domain in DOMAINS:
            self._write_maps(domain, cases, record)
        method = shipped(next(iter(cases["test"])).maps)
        if parts := recalls(cases["test"], method, self.threshold, "foreground"):
            record["test"]["parts"] = parts
            write_parts(parts, method, self.threshold, DOMAINS["foreground"], self.output_dir / "test_parts")
        if groups := by_group(cases["test"], method, self.threshold, "foreground"):
            record["test"]["groups"] = {group: reached.values for group, reached in groups.items()}
            write_groups(groups, method, self.threshold, DOMAINS["foreground"], self.output_dir / "test_groups")
        self._remove_earlier(record)
        slices = sum(kept.assessed for kept in cases.values())
        record["seconds_per_slice_in_networks"] = sum(kept.seconds for kept in cases.values()) / slices
        write(self.output_dir / "results.json", json.dumps(record, indent=2, allow_nan=False).encode())
        for name in ("test_scores", "test_foreground"):
            print((self.output_dir / f"{name}.md").read_text("utf-8"))
        print(f"Tables, figure and record: {self.output_dir}")
        for warning in self.warnings:
            print(f"WARNING: {warning}")
        if record["failed"]:
            print(f"{len(record['failed'])} volumes failed and are left out: {', '.join(record['failed'])}")
            raise SystemExit(1)

    def _remove_earlier(self, record: Mapping[str, Any]) -> None:
        """What an earlier evaluation wrote here and this one did not would be taken for its results."""
        tables = [f"test_{name}" for name in ("parts", "groups") if name not in record["test"]]
        if "validation" not in record:
            tables += [f"validation_{name}" for name in ("scores", "foreground", "reliability")]
        files = [f"{name}.{ending}" for name in tables for ending in ("csv", "md")]
        if "figure" in record["test"]["left_out"]:
            files.append("cases.png")
        for name in files:
            (self.output_dir / name).unlink(missing_ok=True)

    def _write_maps(self, domain: Domain, cases: Mapping[str, KeptCases], record: dict[str, Any]) -> None:
        rows = thresholds(cases.get("validation"), list(next(iter(cases["test"])).maps), domain, self.threshold)
        found = {
            split: results(of_split, rows, domain)
            for split, of_split in cases.items()
            if split == "test" or domain == "foreground"
        }
        for split, of_split in found.items():
            write_rows(rows, of_split, domain, self.output_dir / f"{split}_{domain}", record[split])
        if domain == "foreground":
            names = [baseline.name for baseline in self.volumes.baselines]
            self._best = best_baseline(found.get("validation", found["test"]), names)
        chosen = shipped([row.method for row in rows.values()])
        ours = chosen if chosen in rows else next(reversed(rows))
        left = record["test"]["left_out"]
        if self._best is None:
            left["difference to the best baseline"] = "there is no baseline, or none can be measured"
        else:
            record["test"][domain]["difference to the best baseline"] = differences(found["test"], ours, self._best)
        threshold = rows[ours].value
        if domain == "image" or threshold is None:
            return
        if "dice_threshold_slice" in found["test"][ours].values:
            figure(cases["test"], chosen, threshold, self.output_dir / "cases.png", domain)
        else:
            left["figure"] = OF_MAPS["dice_threshold_slice"][1]
