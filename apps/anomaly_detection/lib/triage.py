"""What is read first, what runs on every study, and how well it went."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from monai.metrics import DiceHelper
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from lib.bundle import reason
from lib.infer import LESION
from lib.studies import FINAL, ORIGINAL, SCORE, read_volume

logger = logging.getLogger(__name__)


class MostAnomalousFirst(Strategy):
    """The unread study with the highest stored score; then those without a score, by their id."""

    def __init__(self) -> None:
        super().__init__("Most anomalous first, by the score that batch inference stored")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        scores = {i: datastore.get_image_info(i).get(SCORE) for i in datastore.get_unlabeled_images()}
        ranked = sorted(scores, key=lambda i: (scores[i] is None, -(scores[i] or 0.0), i))
        return {"id": ranked[0], "score": scores[ranked[0]], "unread": len(ranked)} if ranked else None


class EveryStudy(BatchInferTask):
    """Inference on many studies, one after the other; one that fails is named in the report and the next one follows."""

    def __call__(
        self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        def one(task: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
            try:
                result = infer(task, datastore)
            except Exception as error:
                message = getattr(error, "msg", None) or reason(error)
                logger.warning("FAILED %s: %s", task["image"], message)
                return {"status": "failed", "error": message}
            logger.info("%s: score %s", task["image"], result["params"]["score"])
            return {**result, "status": "ok"}

        # networks already run in batches of slices: a second study beside the first only takes memory
        return super().__call__({**request, "multi_gpu": False, "max_workers": 1}, datastore, one)


class Dice(ScoringMethod):
    """Dice of the predicted and the submitted mask of every study that has both, 1 where both are empty."""

    def __init__(self) -> None:
        super().__init__("Dice of the predicted and the submitted mask")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        tag, pred_tag = request.get("y", FINAL), request.get("y_pred", ORIGINAL)
        dice = DiceHelper(include_background=True, ignore_empty=False, get_not_nans=False)
        result: dict[str, Any] = {}
        for image_id in datastore.list_images():
            files = [datastore.get_label_uri(image_id, t) for t in (pred_tag, tag)]
            if not all(files):
                continue
            try:
                (pred, affine), (mask, mask_affine) = (read_volume(f) for f in files)
                if pred.shape != mask.shape or not torch.allclose(
                    torch.as_tensor(affine), torch.as_tensor(mask_affine), atol=1e-3
                ):
                    raise ValueError("predicted and submitted mask lie on different grids.")
            except Exception as error:
                logger.warning("%s: not scored: %s", image_id, reason(error))
                continue
            y_pred, y = (torch.as_tensor(m == LESION)[None, None] for m in (pred, mask))
            result[image_id] = float(dice(y_pred, y).squeeze())
            datastore.update_image_info(image_id, {"dice": result[image_id]})
        return result
