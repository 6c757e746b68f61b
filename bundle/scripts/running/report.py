"""Running the bundle on one's own files: what to read, what to write, and what to say about it."""

from __future__ import annotations

import errno
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from tqdm import tqdm

from ..bundle import bundle_version
from ..checks import is_true
from ..digests import json_digest
from ..errors import cause_of
from ..fingerprints import code_digest, settings_of
from ..ranks import join
from ..weights import digests_of, in_use, not_together
from .dicom_objects import check_dicom_inputs, write_dicom_objects
from .inputs import INPUTS
from .overview import draw_overview
from .records import measured
from .results import Results
from .saving import is_of_picture, save_labels_png, save_nifti

OUTPUTS = ("anomaly_map", "counterfactual", "pred")


class Report:
    """Writes each volume's results whole or not at all, and a summary of all that lie in the output folder.

    In `output_dir`: a folder a volume with ``anomaly_map.nii.gz``, ``counterfactual.nii.gz``, ``pred.nii.gz`` (of a picture
    ``pred.png`` too), ``overview.png`` and ``result.json``, the volume's record; ``summary.json`` with the records of all
    volumes, of earlier runs too; ``summary.csv`` with a line a slice and a volume. As a handler it follows an evaluator whose
    postprocessing ends with `RestoreGridd`.

    Args:
        items: see `find_inputs`.
        output_dir: made if it is missing.
        settings: the options of a run, for the record.
        networks: those that the results depend on, likewise; one that is None has no part in them.
        pipeline: all else that they depend on: transforms and inferer.
        overwrite: compute again what was computed before from the same input in the same way.
        manifest: says which weights belong together, see `weights.not_together`; where they don't, every volume has a warning.
        write_dicom: also write DICOM objects, see `write_dicom_objects`; an item that is no DICOM is a failed one.
        other_settings: what is no option but changes the result, for the record beside `settings`, see `weights.in_use`.
    """

    def __init__(
        self,
        items: Sequence[dict[str, Any]],
        output_dir: str,
        settings: Mapping[str, Any],
        networks: Mapping[str, torch.nn.Module | None],
        pipeline: Mapping[str, Any],
        manifest: str | None = None,
        overwrite: bool | str = False,
        write_dicom: bool | str = False,
        other_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.items = items
        self.write_dicom = is_true(write_dicom, "write_dicom")
        if self.write_dicom:
            check_dicom_inputs(items)
        self.about = {
            "settings": in_use(settings, other_settings),
            "weights": digests_of(networks),
            "versions": {"bundle": bundle_version(), "monai": monai.__version__, "torch": torch.__version__},
        }
        self.warnings = not_together(manifest, self.about["weights"], self.about["settings"]) if manifest else []
        recipe = json_digest([self.about, self.warnings, code_digest(), settings_of(pipeline), self.write_dicom])
        self.results = Results(output_dir, recipe, is_true(overwrite, "overwrite"))
        self.volumes: list[dict[str, Any]] = []
        self.skipped = 0
        self.all_begun = False
        """Whether there is no other volume to begin with, as `VolumeDataset` says."""
        self._current: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """To an evaluator with batches of one volume."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._tick)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._networks_done)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def run(self, evaluator: Evaluator) -> None:
        """Run the evaluator on all volumes; say what was found and where it lies.

        A volume whose networks fail is a failed one, and the next one follows. Ctrl-C leaves whole results and a summary. Of
        the processes that torchrun starts, each runs the next volume that none has begun.

        Raises:
            ValueError: no input, batches of several volumes, or what is in the way in the output folder, see `Results.prepare`.
            SystemExit: with status 1 if a volume failed, 130 after Ctrl-C.
        """
        if not self.items:
            raise ValueError(f"--input PATH is needed: {INPUTS}.")
        loader = evaluator.data_loader
        if loader.batch_size != 1 or loader.num_workers:
            raise ValueError(
                "dataloader#batch_size must be 1 and num_workers 0: a volume's results are written before the next."
            )
        join()
        self.results.prepare(self.items)
        stopped = False
        try:
            # behind a run that failed, ignite's next one does nothing
            for _ in range(2 * len(self.items) + 1):
                if self.all_begun:
                    break
                try:
                    evaluator.run()
                except Exception as error:
                    if not self._current:
                        raise
                    self.failed(self._current["item"], error)
        except KeyboardInterrupt:
            stopped = True
        except BaseException:
            with suppress(OSError):  # on a full disk the summary fails too, and this error says what to do
                self.results.close()
            raise
        self.results.close()
        self._say()
        if stopped:
            print("Stopped; the same command, without --overwrite, goes on with the other volumes.")
            raise SystemExit(130)
        if self._of_all(sum(v["status"] == "failed" for v in self.volumes)) and idist.get_rank() == 0:
            raise SystemExit(1)

    @staticmethod
    def _of_all(number: int) -> int:
        """The sum over the ranks."""
        return int(idist.all_reduce(number))

    def was_done(self, item: dict[str, Any]) -> bool:
        """Whether a volume can be skipped, as its results are there, of the same input, settings, weights and version."""
        done = self.results.done(item)
        self.skipped += done
        return done

    def begin(self, item: dict[str, Any], seconds: float, warnings: Sequence[str]) -> None:
        """The next volume was preprocessed in so many seconds, with such warnings."""
        self._current = {"item": item, "seconds": {"preprocessing": seconds}, "warnings": [*warnings]}

    def failed(self, item: dict[str, Any], error: Exception) -> None:
        """A volume could not be processed; what lay there of older results is replaced by a record that says so.

        Raises:
            ValueError: the disk is full, which is no fault of the volume's and would be that of all others.
        """
        self._current = {}
        cause = cause_of(error)
        reason = str(cause) or type(cause).__name__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"{item['name']}: {reason}. Make room; the same command, without --overwrite, goes on."
            ) from error
        if not isinstance(cause, (ValueError, OSError)):  # a fault of the program's
            tqdm.write("".join(traceback.format_exception(error)), file=sys.stderr)
        tqdm.write(f"FAILED {item['name']}: {reason}")
        record = {"status": "failed", "error": reason, "warnings": [*item.get("warnings", [])], **self.about}
        self.volumes.append(self.results.place(item, self.results.new_folder(), record))

    def _tick(self, engine: Engine) -> None:
        self._start = time.perf_counter()

    def _networks_done(self, engine: Engine) -> None:
        self._current["seconds"]["networks"] = time.perf_counter() - self._start
        self._start = time.perf_counter()

    def _write(self, engine: Engine) -> None:
        item, seconds, warnings = (self._current[key] for key in ("item", "seconds", "warnings"))
        result = {**engine.state.batch[0], **engine.state.output[0], "warnings": warnings}
        seconds["postprocessing"] = time.perf_counter() - self._start
        start = time.perf_counter()
        try:
            folder = self.results.new_folder()
            self._write_files(item, result, folder)
            seconds["writing"] = time.perf_counter() - start
            self.volumes.append(self.results.place(item, folder, self._record(result, seconds, folder)))
        except Exception as error:
            self.failed(item, error)
        self._current = {}

    def _record(self, result: Mapping[str, Any], seconds: Mapping[str, float], folder: Path) -> dict[str, Any]:
        return {
            "status": "ok",
            **measured(result),
            "warnings": result["warnings"],
            "slices": result["slices"],
            "seconds": {k: round(v, 2) for k, v in seconds.items()},
            "outputs": sorted(path.name for path in folder.iterdir()),
            **self.about,
        }

    def _write_files(self, item: Mapping[str, Any], result: Mapping[str, Any], folder: Path) -> None:
        for key in self._outputs(result):
            save_nifti(result[key], result["input_image"].meta["source"], folder / f"{key}.nii.gz")
        if is_of_picture(result["pred"], item["image"]):
            save_labels_png(result["pred"], folder / "pred.png")
        picture = folder / "overview.png"
        try:
            draw_overview(result, item.get("mask"), item["name"], picture)
        except Exception as error:
            if item.get("mask") is None:
                raise
            # the mask is there to look at: without it the result is the same
            tqdm.write(f"{item['name']}: {cause_of(error)}")
            result["warnings"].append("The known lesion mask could not be drawn beside the result.")
            draw_overview(result, None, item["name"], picture)
        if self.write_dicom:  # last, with all warnings
            write_dicom_objects(result, self.about["settings"], folder)

    @staticmethod
    def _outputs(result: Mapping[str, Any]) -> list[str]:
        return [o for o in OUTPUTS if o in result]

    def _say(self) -> None:
        for v in self.volumes:
            if v["status"] == "failed":
                print(f"{v['name']}: FAILED: {v['error']}")
                continue
            if v["score"] is None:
                print(f"{v['name']}: not assessed: no slice has enough foreground.")
            else:
                unit = next(key for key in v if key.startswith("lesion_")).removeprefix("lesion_")
                digits = 0 if unit == "pixels" else 1
                print(
                    f"{v['name']}: p(diseased) {v['p_diseased']:.2f}, score {v['score']:.3f}, "
                    f"marked {v[f'lesion_{unit}']:.{digits}f} {unit}, "
                    f"not assessed {v[f'not_assessed_{unit}']:.{digits}f} {unit}"
                )
            for warning in v["warnings"]:
                print(f"  WARNING: {warning}")
            print(f"  {self.results.output_dir / v['name']}: {', '.join(v['outputs'])}")
            print("  " + ", ".join(f"{part} {s:.1f} s" for part, s in v["seconds"].items()))
        skipped = self._of_all(self.skipped)
        if idist.get_rank() > 0:
            return
        if skipped:
            print(f"{skipped} done before, skipped; --overwrite true runs them again.")
        print(f"Summary: {self.results.output_dir / 'summary.json'} and summary.csv. Not for clinical use.")
