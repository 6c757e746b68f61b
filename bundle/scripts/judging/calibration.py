"""Thresholds and temperature for one's own weights, chosen on validation patients."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch

from ..checks import is_true
from ..weights import calibrate, digests_of, in_use, read_manifest
from .cases import Domain
from .probabilities import calibration_error, fitted_temperature, of_cases
from .readings import COUNTERFACTUAL, OURS, STUDENT
from .thresholds import chosen_threshold
from .volumes import KeptCases, LabelledVolumes

DOMAIN: Domain = "foreground"


class Calibration:
    """Choose the temperature of p(diseased), then the thresholds of the maps that it gates, and write them to the manifest.

    With masks, a threshold is that of the best pooled Dice in the foreground; without, Otsu's of the foreground of slices
    labelled diseased, see `thresholds.label_threshold`. Boxes are not looked at. Of a full model the preview's threshold, that
    of the student alone, is chosen too.

    Args:
        validation: of a datalist.
        volumes: see `LabelledVolumes`.
        networks: those that the numbers are chosen for, by the names of the config; None for one that isn't there.
        other_settings: what the thresholds are chosen with, besides the inferer's numbers; see `weights.in_use`.
        manifest: see `weights.read_manifest`.
        use_masks: false lets image-level labels alone choose. Where every slice has its own label a mask is read and must fit
            all the same, so that what an evaluation kept is found.
    """

    def __init__(
        self,
        validation: Sequence[Mapping[str, Any]],
        volumes: LabelledVolumes,
        networks: Mapping[str, torch.nn.Module | None],
        other_settings: Mapping[str, Any],
        manifest: str,
        use_masks: bool | str = True,
    ) -> None:
        self.use_masks = is_true(use_masks, "use_masks")
        self.validation = [
            {k: v for k, v in item.items() if k != "mask" or self.use_masks or isinstance(item.get("label"), list)}
            for item in validation
        ]
        self.volumes = volumes
        self.weights = digests_of(networks)
        self.other_settings = other_settings
        self.manifest = Path(manifest)

    def run(self) -> None:
        """Choose, write, and say what was chosen; of several ranks, the first does, once all volumes are done.

        Raises:
            SystemExit: with status 1 if a volume failed, after the numbers were written.
            ValueError: no slice could be evaluated, none is diseased, or a map is the same everywhere.
        """
        cases, failed = self.volumes.cases(self.validation, "validation")
        if idist.get_rank() > 0:
            return
        first = next(iter(cases), None)
        if first is None:
            raise ValueError(f"no slice of the validation volumes could be evaluated; failed: {failed or 'none'}.")
        full = OURS if OURS in first.maps else COUNTERFACTUAL
        values = {"temperature": self._temperature(cases, full in first.maps)}
        for name, method in (("threshold", full), ("preview_threshold", STUDENT)):
            if method in first.maps:
                values[name] = self._threshold(cases, name, method)
        of_inferer = {
            k: v
            for k, v in self.volumes.inferer.settings.items()
            if isinstance(v, (int, float)) and k != "target_class"
        }
        settings = in_use(of_inferer, {**self.other_settings, "temperature": values["temperature"]})
        # a student has no steps: what is the inferer's of the whole model does not change its map
        of_student = {k: v for k, v in settings.items() if k not in of_inferer}
        by_name = {"threshold": settings, "preview_threshold": of_student}
        kept = calibrate(self.manifest, values, self.weights, {n: by_name[n] for n in by_name.keys() & values.keys()})
        print(f"{self.manifest}: written." + (f" What it was is kept as {kept}." if kept else ""))
        if failed:
            print(f"{len(failed)} volumes failed and are left out: {', '.join(failed)}")
            raise SystemExit(1)

    def _temperature(self, cases: KeptCases, full: bool) -> float:
        """Chosen, and from here on that of the cases, whose thresholds are chosen with it."""
        chosen = read_manifest(self.manifest).get("calibration", {})
        there = chosen.get("values", {})
        is_own = chosen.get("classifier") == self.weights.get("classifier")
        if not is_own and cases.temperature == there.get("temperature"):
            cases.temperature = 1.0  # that was another classifier's
        if is_own and not full and {"temperature", "threshold"} <= there.keys():
            cases.temperature = there["temperature"]
            print(f"temperature: {cases.temperature:g} stays, as the threshold of the whole model was chosen with it.")
            return cases.temperature
        before = calibration_error(*of_cases(cases))
        temperature = fitted_temperature(cases, cases.logits)
        if temperature is None:
            print(
                f"temperature: {cases.temperature:g} stays, as it takes more validation patients of both classes to choose one."
            )
            return cases.temperature
        cases.temperature = rounded(temperature)
        probability, diseased = of_cases(cases)
        print(
            f"temperature: {cases.temperature:.3g}; expected calibration error {before:.3f} before, "
            f"{calibration_error(probability, diseased):.3f} now, on {len(diseased)} slices, {sum(diseased)} of them diseased."
        )
        return cases.temperature

    def _threshold(self, cases: KeptCases, name: str, method: str) -> float:
        chosen = chosen_threshold(cases, method, DOMAIN, self.use_masks)
        if chosen is None:
            raise ValueError(f"{name}: no validation slice is labelled diseased, so none can be chosen.")
        threshold = rounded(chosen[0])
        if not sys.float_info.min <= threshold < float("inf"):
            raise ValueError(f"{name}: {method} is the same everywhere or marks nothing, so none can be chosen.")
        print(f"{name}: {threshold:.4g} ({chosen[1]}) of {method}.")
        return threshold


def rounded(value: float) -> float:
    """To six digits."""
    return float(f"{value:.6g}")
