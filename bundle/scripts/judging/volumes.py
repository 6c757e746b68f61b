"""Labelled volumes through the networks, each once; what was found lies on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from tqdm import tqdm

from .. import DISEASED
from ..device import autocast
from ..digests import code_digest
from ..errors import ExhaustedError, cause_of, out_of_resources
from ..fingerprints import fingerprint, settings_of
from ..images.geometry import axial, slice_numbers
from ..images.mapping import check_finite
from ..method.slices import CPU_BATCH, SliceInferer, assessed_slices, each
from ..ranks import each_once, join
from ..weights import weights_digest
from ..wording import some
from .baselines import Baseline
from .cases import SliceCase
from .kept import KeptCases, keep
from .on_input import cases_of, volume_name
from .readings import baseline_readings, readings
from .truth import Truth, slice_labels

logger = logging.getLogger(__name__)

CHANGES_NOTHING = ("temperature", "batch_size", "progress")
"""Settings of an inferer that change nothing of what is kept."""


class LabelledVolumes:
    """What the networks find in labelled volumes, found once.

    One volume at a time is in the memory. What was found in it is written to `cache_dir`, where a run that was stopped finds
    it again, by the item, its files, the settings and the weights. Temperature and thresholds are not among them: others
    need no network. A volume that fails is named in the log, and the next one follows; of the others, the log has the warnings.
    Of the processes that torchrun starts, each takes the next volume that none has begun; `cache_dir` must be one for all.

    Args:
        preprocessing, inferer, network: the bundle's.
        device: of the networks.
        polarity, median_size: the bundle's, see `method.maps.anomaly_map`.
        baselines: see `baselines.Baseline`.
        cache_dir: made if it is missing; what lies in it as ``evaluated-*.pt`` may be deleted when all is done.
        mask_key: where maps and scores are read, see `images.mapping.AnomalyMapd`.
    """

    def __init__(
        self,
        preprocessing: Compose,
        inferer: SliceInferer,
        network: torch.nn.Module,
        device: torch.device,
        polarity: str | Sequence[str],
        median_size: int,
        cache_dir: str,
        baselines: Sequence[Baseline] = (),
        mask_key: str = "foreground",
    ) -> None:
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.network = network
        self.device = device
        self.polarity = polarity
        self.median_size = median_size
        self.cache_dir = Path(cache_dir)
        self.baselines = list(baselines)
        self.mask_key = mask_key

    @cached_property
    def _made_with(self) -> list[Any]:
        """All that the results depend on, beside a volume's files and the preprocessing."""
        networks = (self.network, self.inferer.classifier, getattr(self.inferer, "student", None))
        weights = [weights_digest(network) for network in networks if network is not None]
        settings = {k: v for k, v in vars(self.inferer).items() if k not in CHANGES_NOTHING}
        code = [code_digest(folder) for folder in ("method", "judging")]
        return [weights, settings_of([settings, self.baselines]), self.polarity, self.median_size, self.mask_key, code]

    def path(self, item: Mapping[str, Any]) -> Path:
        """Where what was found in a volume is kept: another file for everything that it depends on."""
        asked = {k: v for k, v in item.items() if k != "groups"}
        return self.cache_dir / f"evaluated-{fingerprint([asked, self._made_with], self.preprocessing)}.pt"

    def cases(self, items: Sequence[Mapping[str, Any]], name: str) -> tuple[KeptCases, dict[str, str]]:
        """The cases of a datalist's volumes, and what went wrong with those that failed, by their paths; of all ranks.

        Raises:
            ExhaustedError: memory, disk or files ran out; what was found before is kept.
        """
        join()
        paths: dict[int, Path] = {}
        failed: dict[int, tuple[str, str]] = {}
        wanted = [item for item in items if item.get("label") != -1]
        for n, item in tqdm(each_once(list(enumerate(wanted))), desc=name, unit="volume", total=len(wanted)):
            image = volume_name(item)
            path = self.path(item)
            try:
                if not path.is_file():
                    keep(path, *self.found(item))
                paths[n] = path
            except Exception as error:
                exhausted = out_of_resources(error)
                if exhausted is not None:
                    raise ExhaustedError(
                        f"{image}: stopped here, as memory, disk or open files ran out ({exhausted}). The volumes before it "
                        "are kept; free some and start again."
                    ) from error
                cause = cause_of(error)
                failed[n] = image, str(cause) or type(cause).__name__
                logger.error("FAILED %s: %s", *failed[n])
        for of_rank in idist.all_gather((paths, failed)):
            paths |= of_rank[0]
            failed |= of_rank[1]
        groups = [wanted[n].get("groups", {}) for n in sorted(paths)]
        kept = KeptCases([paths[n] for n in sorted(paths)], self.inferer.temperature, groups=groups)
        for n, warnings in zip(sorted(paths), kept.warnings, strict=True):
            for warning in warnings:
                logger.warning("%s: %s", volume_name(wanted[n]), warning)
        return kept, dict(failed[n] for n in sorted(failed))

    def found(
        self, item: Mapping[str, Any]
    ) -> tuple[list[SliceCase], torch.Tensor, torch.Tensor, float, list[str], dict[int, int]]:
        """What `keep` keeps of a volume, with the seconds that the networks took and the warnings.

        Of its labelled slices, that is what inference gives; labels of 0 and 1 in slices with less foreground than it asks for
        are judged too.

        Raises:
            ValueError: see `images.mapping.check_finite`, `truth.truth_of` and `truth.slice_labels`.
        """
        volume = self.preprocessing({k: v for k, v in item.items() if k in ("image", "spacing", "foreground")})
        image: MetaTensor = volume["image"]
        numbers = slice_numbers(image)
        depth = axial(volume["input_image"]).shape[3]
        inputs, inside = (volume[key].as_tensor()[None].to(self.device) for key in ("image", "foreground"))
        enough = assessed_slices(inside, self.inferer.min_area)
        wanted = enough
        if isinstance(item.get("label"), list):
            labels = slice_labels(item, volume["input_image"], Truth(None, None), ())
            labelled = torch.tensor([[labels[n] >= 0 for n in numbers]], device=self.device)
            # beside a labelled slice, what inference looks at counts for it; what lies further away does not
            near = torch.nn.functional.max_pool1d(labelled.float(), 3, 1, 1) > 0
            wanted = labelled | enough & near
        start = time.perf_counter()
        pred = self.inferer(inputs, self.network, inside, assessed=wanted)
        seconds = time.perf_counter() - start
        found = each(pred, lambda values: values[0].cpu())
        assessed = found["assessed"]
        logits, counted = torch.full((depth,), torch.nan), torch.zeros(depth, dtype=torch.bool)
        counted[numbers] = enough[0].cpu()
        if bool(assessed.any()):
            logits[torch.tensor(numbers)[assessed]] = self._logits(inputs[0].movedim(-1, 0)[assessed.to(self.device)])
        slices = each(found, lambda values: values.movedim(-1, 0))
        check_finite(slices, image)
        slices = each(slices, torch.nan_to_num)  # those of slices that are not assessed
        slices["probability"] = torch.ones(len(numbers))
        read_in = volume[self.mask_key].as_tensor().movedim(-1, 0) >= 0.5
        x = image.as_tensor().movedim(-1, 0)
        maps, scores = readings(x, slices, read_in, self.polarity, self.median_size)
        of_baselines = baseline_readings(x, read_in, self.baselines)
        maps, scores = maps | of_baselines[0], scores | of_baselines[1]
        on_input = [baseline for baseline in self.baselines if not baseline.on_networks_grid]
        healthy = found.get("counterfactual", found.get("counterpart"))
        cases, left = cases_of(item, volume, maps, scores, on_input, healthy, assessed, self.mask_key)
        warnings = list(volume.get("warnings", []))
        if left:
            named = [f"{n} ({'diseased' if label == DISEASED else 'healthy'})" for n, label in left.items()]
            warnings.append(f"No foreground was found in labelled slices, which are left out: {some(named)}.")
        return cases, logits, counted, seconds, warnings, left

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """Of diseased minus that of healthy, ``(N,)``."""
        target = self.inferer.target_class
        with torch.no_grad(), autocast(x.device, self.inferer.precision):
            both = torch.cat([self.inferer.logits(batch) for batch in x.split(CPU_BATCH)]).cpu()
        return both[:, 1 - target] - both[:, target]
