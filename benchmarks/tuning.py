"""What makes all maps of a pack, on any machine: algorithms in every setting that is tried, rivals, and the bound."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from algorithms import DEFAULT, FAMILIES, PAPERS_SETTING, STUDENT, Algorithms
from costs import SIZE, cost_of
from keeping import kept, machine, place, save
from packs import Slices, drawn, read_pack
from rivals import RIVALS, reader_of, seconds_of, tuned
from taught import SUPERVISED, supervised

from scripts.bundle import declared, parsed
from scripts.judging.readings import COUNTERFACTUAL, PAPER, readings
from scripts.method.slices import Findings
from scripts.weights import weights_digest

NUMBERS = (16, 32, 64, 128)
"""Of slices, for how the default's time and memory grow."""
OURS_LEARNED = ("", "train_classifier", "train_student")
"""The trainings of our three networks, as overlays on train.json."""


def our_images(*overlays: str) -> int:
    """How many images our networks see in training, all three together, by their configs: the budget of every rival."""
    return sum(parsed(*overlays, "train", *filter(None, [name]))["max_images"] for name in OURS_LEARNED)


def best_setting(quality: dict[tuple[int, float], float]) -> tuple[int, float]:
    """The rule that chose ours: the setting with the highest pixel AP; of several the one with the lowest noise level."""
    return max(sorted(quality), key=lambda setting: quality[setting])


class Maps:
    """All that the table is made of, but for the masks of the test patients; made once, and found again.

    Args:
        pack: see `packs`.
        folder: where everything is kept.
        device: that makes what is not there.
        images: that a rival is trained on; by default as many as our networks together.
        only: the first letters of the names of what is made, to divide the work among calls; by default everything.
        settings_of: the table of another data set, see `compare`: its settings are taken, no other is tried, and no cost is
            taken anew.

    Raises:
        ValueError: that is not a table of these weights.
    """

    def __init__(
        self,
        pack: Path,
        folder: Path,
        device: torch.device,
        images: int | None = None,
        seed: int = 0,
        only: str = "",
        settings_of: str | None = None,
    ) -> None:
        self.pack, self.folder, self.device, self.seed, self.only = pack, folder, device, seed, only
        self.splits, self.overlays, self.digest = read_pack(pack)
        self.algorithms = Algorithms(*self.overlays, device=device)
        self.images = our_images(*self.overlays) if images is None else images
        networks = (self.algorithms.network, self.algorithms.classifier, self.algorithms.student)
        self.weights = ["" if network is None else weights_digest(network) for network in networks]
        self.elsewhere = None if settings_of is None else self._table(Path(settings_of))
        self.subset = {name: drawn(self.splits[name].depths, name, seed) for name in ("validation", "test")}
        self.reading = declared("polarity", *self.overlays), declared("median_size", *self.overlays)
        of_split = {name: self.splits[name] for name in ("validation", "test")}
        self.probability = {name: self.algorithms.probability(s.x, s.depths) for name, s in of_split.items()}
        self.learned = {
            name: self.algorithms.learned(s.x, s.depths)
            for name, s in of_split.items()
            if self.algorithms.student is not None
        }

    @property
    def weights_by_name(self) -> dict[str, str]:
        """The digests of the networks, as tables have them."""
        return dict(zip(("network", "classifier", "student"), self.weights, strict=True))

    def _table(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if found.get("weights") != self.weights_by_name or "tuned" not in found:
            raise ValueError(
                f"{path}: must be a table of compare.py of the weights {self.weights_by_name}, got {found.get('weights')}."
            )
        return found

    def counterfactuals(self, name: str, split: str) -> dict[str, Any]:
        """Those of an algorithm; of the default on all slices, of others on the subset."""
        slices: Slices = self.splits[split]
        chosen = torch.ones_like(self.subset[split]) if name == DEFAULT else self.subset[split]
        state = (self.digest, self.weights[:2], split)
        return self.algorithms.run(name, slices.x[chosen], slices.foreground[chosen], self.seed, self.folder, *state)

    def tuned_settings(self, family: str) -> dict[str, Any]:
        """What each setting of a family gives on the validation subset, read in both ways, and the best for each way.

        Of settings that were chosen elsewhere, only those are there, and which is best is not asked again.
        """
        chosen = self.subset["validation"]
        slices = self.splits["validation"].at(chosen)
        of_family = FAMILIES[family]
        quality: dict[str, dict[tuple[int, float], float]] = {COUNTERFACTUAL: {}, PAPER: {}}
        elsewhere = None if self.elsewhere is None else self.elsewhere["tuned"][family]
        names = {setting: of_family.name(family, setting) for setting in of_family.settings}
        if elsewhere is not None:
            names = {setting: name for setting, name in names.items() if name in elsewhere["shown"]}
        for setting, name in names.items():
            made = self.counterfactuals(name, "validation")
            found = {"counterfactual": made["healthy"], "probability": self.probability["validation"][chosen]}
            maps, _ = readings(slices.x, found, slices.foreground, *self.reading)
            for way in quality:
                quality[way][setting] = slices.pixel_ap(maps[way])
        best = elsewhere["best"] if elsewhere else {way: names[best_setting(q)] for way, q in quality.items()}
        return {
            "pixel_ap": {way: {names[s]: v for s, v in q.items()} for way, q in quality.items()},
            "best": best,
            "shown": sorted({of_family.name(family, of_family.published), *best.values()}),
        }

    def of_rival(self, name: str) -> dict[str, Any]:
        """See `rivals.tuned`."""
        polarity = self.reading[0]
        state = (self.digest, self.weights[1])
        settings = RIVALS[name].settings
        if self.elsewhere is not None:
            settings = (self.elsewhere["tuned"][name]["chosen"]["setting"],)
        return tuned(
            *(name, settings, self.splits, self.probability, self.algorithms.classifier),
            *(self.images, self.seed, self.folder, self.device, polarity),
            *state,
        )

    def cost_of_rival(self, name: str) -> dict[str, float]:
        """Seconds a slice of a rival, on this machine or as they were `elsewhere`."""
        if self.elsewhere is not None:
            return self._cost_elsewhere(name)
        setting = self.of_rival(name)["chosen"]["setting"]
        images = self.images if RIVALS[name].is_trained else 0
        where = (images, self.seed, self.folder, self.device)
        state = (self.digest, self.weights[1])
        path = place(self.folder, f"cost of {name}", setting, images, self.seed, *state, machine(self.device))

        def make() -> dict[str, float]:
            reader = reader_of(name, self.splits["training"], self.algorithms.classifier, *where, setting, *state)
            return {"seconds": seconds_of(reader, self.splits["test"])}

        return kept(path, make)

    def of_masks(self) -> dict[str, Findings]:
        """The maps of the student's network, taught by masks, of validation and test."""
        images = parsed(*self.overlays, "train", "train_student")["max_images"]
        images = None if self.images >= images else self.images
        run = place(self.folder, SUPERVISED, self.digest, images, self.seed)

        def make() -> dict[str, Findings]:
            network = supervised(self.pack, run.with_suffix(""), self.device, self.seed, images, *self.overlays)
            seen = {n: s for n, s in self.splits.items() if n != "training"}
            # of a mask it learned no counterpart
            return {n: {"student": self.algorithms.learned(s.x, s.depths, network)["student"]} for n, s in seen.items()}

        return kept(run, make)

    def cost(self, row: str, number: int = 0) -> dict[str, Any]:
        """Seconds and memory of a row, on this machine or as they were `elsewhere`."""
        if self.elsewhere is not None:
            return self.elsewhere["default_by_number_of_slices"][str(number)] if number else self._cost_elsewhere(row)
        sample = self.folder / f"sample-{self.digest}.pt"
        if not sample.is_file():
            x = self.splits["test"].x[self.subset["test"]]
            save(sample, x.repeat(-(-SIZE // len(x)), 1, 1, 1)[:SIZE].clone())
        path = place(self.folder, f"cost of {row}", number, self.digest, self.weights, machine(self.device))
        return kept(path, lambda: cost_of(row, sample, self.device, self.overlays, number))

    def _cost_elsewhere(self, row: str) -> dict[str, float]:
        assert self.elsewhere is not None
        [found] = (r for r in self.elsewhere["rows"] if (r["where"], r["method"]) == ("subset", row))
        return {name: found[name] for name in ("seconds", "memory") if name in found}

    def make(self) -> None:
        """Everything, one thing after another; what is there is not made again."""
        work = {f"{DEFAULT}, {split}": lambda s=split: self.counterfactuals(DEFAULT, s) for split in self.subset}
        work |= {f"rival: {name}": lambda n=name: self.of_rival(n) for name in RIVALS}
        work[f"bound: {SUPERVISED}"] = self.of_masks
        work[PAPERS_SETTING] = lambda: [self.counterfactuals(PAPERS_SETTING, split) for split in self.subset]
        for family in FAMILIES:
            work[f"family: {family}"] = lambda f=family: [
                self.counterfactuals(name, "test") for name in self.tuned_settings(f)["shown"]
            ]
        work["costs"] = lambda: [self.cost(row) for row in self.rows_with_costs()]
        work["costs of rivals"] = lambda: [self.cost_of_rival(name) for name in RIVALS]
        work["scaling"] = lambda: [self.cost(DEFAULT, number) for number in NUMBERS]
        for name, one in work.items():
            if name.startswith(self.only):
                print(name, file=sys.stderr, flush=True)
                one()

    def rows_with_costs(self) -> list[str]:
        """The algorithms in the table that run the bundle's networks."""
        shown = [name for family in FAMILIES for name in self.tuned_settings(family)["shown"]]
        student = [] if self.algorithms.student is None else [STUDENT]
        return [DEFAULT, *student, PAPERS_SETTING, *shown]
