"""What is read first, what runs on every study, and how well it went."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import DiceHelper
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from lib.grids import read_volume, reordered
from lib.studies.base import Studies
from lib.studies.names import batch_images
from lib.studies.tags import DICE, FINAL, ORIGINAL, SCORE
from lib.tasks.flags import flag

logger = logging.getLogger(__name__)

LISTING_WAITS = (5.0, 30.0)
"""Seconds before the list of studies is asked for again."""
SLOW_SECONDS, LEFT_OUT_SECONDS = 5.0, 600.0
"""A study that the DICOM server doesn't give, and took longer than that to say so, is not asked for again for so long."""
PATIENCE_SECONDS = 90.0
"""So long one study after the other is asked for that the DICOM server doesn't give."""


class MostAnomalousFirst(Strategy):
    """The unread study with the highest stored score; then those without a score, by their id. Nothing is left to chance.

    One whose image can't be used is named in the log, and the next one follows.

    Args:
        modalities: of the studies, in DICOM's words; none allows all.
    """

    def __init__(self, modalities: Sequence[str] = ()) -> None:
        among = f" among {', '.join(modalities)}" if modalities else ""
        super().__init__(f"Most anomalous first{among}, by the score that batch inference stored")
        self._modalities = modalities
        # by their ids, until when, and why
        self._left_out: dict[str, tuple[float, MONAILabelException]] = {}

    def __call__(self, request: dict[str, Any], datastore: Studies) -> dict[str, Any] | None:
        unread = datastore.get_unlabeled_images()
        unread = datastore.taken_by(unread, self._modalities) if self._modalities else unread
        scores = {i: _number(datastore.get_image_info(i).get(SCORE)) for i in unread}
        ranked = sorted(scores, key=lambda i: (scores[i] is None, -(scores[i] or 0.0), i))
        until = time.monotonic() + PATIENCE_SECONDS
        failed: list[MONAILabelException] = []
        first = next((i for i in ranked if self._is_usable(i, datastore, until, failed)), None)
        if first is None and failed:  # there are such that are unread
            raise failed[-1]
        return None if first is None else {"id": first, "score": scores[first], "unread": len(ranked)}

    def _is_usable(self, image_id: str, datastore: Studies, until: float, failed: list[MONAILabelException]) -> bool:
        """Whether an image can be given to a reader; `failed` is added to where the server could not give it."""
        begin = time.monotonic()
        if image_id in self._left_out and begin < self._left_out[image_id][0]:
            failed.append(self._left_out[image_id][1])
            return False
        try:
            datastore.get_image_uri(image_id)
        except MONAILabelException as error:
            now = time.monotonic()
            if error.error == MONAILabelError.SERVER_ERROR:
                if not datastore.fails_alone(image_id, error):  # the next one would fail too
                    raise
                failed.append(error)
                if now - begin > SLOW_SECONDS:
                    self._left_out[image_id] = now + LEFT_OUT_SECONDS, error
                if now > until:
                    raise
            logger.warning("%s is passed over: %s", image_id, error.msg)
            return False
        return True


def _number(score: Any) -> float | None:
    # clients could write it
    try:
        return float(score) if isinstance(score, int | float) and math.isfinite(score) else None
    except OverflowError:
        return None


class _Once(list[str]):
    """A list that copies share: MONAI Label copies the whole request, with it all ids, for every study."""

    def __deepcopy__(self, memo: Any) -> _Once:
        return self


class EveryStudy(BatchInferTask):
    """Inference on many studies, one after the other.

    One that fails is named in the report and the next one follows. One whose result is there from the same images, options,
    config, weights and version is not run again, unless the request has ``overwrite``: true.

    Args:
        is_done: whether the result of a request, which names a model and an image, is there.
        modalities_of: of a request's model. Images of others are not run, unless the request names them one by one.
    """

    def __init__(
        self,
        is_done: Callable[[dict[str, Any], Studies], bool],
        modalities_of: Callable[[dict[str, Any]], Sequence[str]],
    ) -> None:
        self._is_done, self._modalities_of = is_done, modalities_of

    def __call__(
        self, request: dict[str, Any], datastore: Studies, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        def one(task: dict[str, Any], datastore: Studies) -> dict[str, Any]:
            try:
                result = infer(task, datastore)
            except Exception as error:
                message = _said(error)
                logger.warning("FAILED %s: %s", task["image"], message)
                return {"status": "failed", "error": message}
            logger.info("%s: score %s", task["image"], result["params"]["score"])
            return {**{key: value for key, value in result.items() if key != "read"}, "status": "ok"}

        def done(image_id: str) -> bool:
            try:
                return self._is_done({**request, "image": image_id}, datastore)
            except Exception as error:
                # it is run, and then named if it fails again
                logger.info("%s: whether it is done can't be told: %s", image_id, _said(error))
                return False

        images = self._listed(request, datastore)
        overwrite = flag(request, "overwrite")
        skipped = [] if overwrite else [i for i in images if done(i)]
        todo = _Once(sorted(set(images) - set(skipped)))
        # networks already run in batches of slices: a second study beside the first only takes memory
        result = super().__call__({**request, "images": todo, "multi_gpu": False, "max_workers": 1}, datastore, one)
        result |= {i: {"status": "skipped"} for i in skipped}
        failed = {i: row["error"] for i, row in result.items() if row["status"] == "failed"}
        logger.info(
            "%d studies: %d done now, %d skipped as they were done before, %d failed, %d left for another time",
            len(images),
            len(result) - len(skipped) - len(failed),
            len(skipped),
            len(failed),
            len(images) - len(result),
        )
        for image_id, message in failed.items():
            logger.warning("FAILED %s: %s", image_id, message)
        return result

    def get_images(self, request: dict[str, Any], datastore: Studies) -> list[str]:
        """The ids of the studies to run: as MONAI Label chooses them, of the model's modalities."""
        chosen = batch_images(request.get("images", "all"))
        images = list(super().get_images({**request, "images": chosen}, datastore))
        return images if isinstance(chosen, list) else datastore.taken_by(images, self._modalities_of(request))

    def _listed(self, request: dict[str, Any], datastore: Studies) -> list[str]:
        """The studies to run; a server that does not answer is asked again, and that is said."""
        for wait in LISTING_WAITS:
            try:
                return self.get_images(request, datastore)
            except MONAILabelException as error:
                if error.error != MONAILabelError.SERVER_ERROR:
                    raise
                logger.warning("The studies can't be listed: %s Asked again in %g s.", error.msg, wait)
                time.sleep(wait)
        return self.get_images(request, datastore)


def _said(error: Exception) -> str:
    from scripts.errors import cause_of

    cause = cause_of(error)
    return str(getattr(error, "msg", None) or cause) or type(cause).__name__


class Dice(ScoringMethod):
    """Dice of the predicted and the submitted mask of every study that has both, 1 where both are empty."""

    def __init__(self) -> None:
        super().__init__("Dice of the predicted and the submitted mask")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        from scripts.images.restoring import LESION

        tag, pred_tag = request.get("y", FINAL), request.get("y_pred", ORIGINAL)
        dice = DiceHelper(include_background=True, ignore_empty=False, get_not_nans=False)
        result: dict[str, Any] = {}
        for image_id in datastore.list_images():
            try:
                files = [datastore.get_label_uri(image_id, t) for t in (pred_tag, tag)]
                if not all(files):
                    continue
                (pred, affine), (mask, mask_affine) = map(read_volume, files)
                mask_there = reordered(mask, mask_affine, affine, pred.shape)
                if mask_there is None:
                    raise ValueError("predicted and submitted mask lie on different grids.")
            except Exception as error:
                logger.warning("%s: not scored: %s", image_id, _said(error))
                continue
            y_pred, y = (torch.as_tensor(np.ascontiguousarray(m == LESION))[None, None] for m in (pred, mask_there))
            result[image_id] = float(dice(y_pred, y).squeeze())
            datastore.update_image_info(image_id, {DICE: result[image_id]})
        return result
