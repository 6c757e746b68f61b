"""A model, run on one study at a time."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib.models.abandoning import Abandoned, proceed
from lib.models.declaration import FULL, Declaration
from lib.models.networks import Networks

logger = logging.getLogger(__name__)

KEPT_STUDIES = 2
"""So many studies stay in memory, preprocessed and with what the networks gave: another option of one needs no brain
extraction, another threshold or the other view no network."""


class Kept(OrderedDict[tuple[Any, ...], dict[str, Any]]):
    """What was used last of `KEPT_STUDIES` studies."""

    def keep(self, key: tuple[Any, ...], data: dict[str, Any]) -> None:
        """Keep one more, and forget the one that was not asked for the longest."""
        self[key] = data
        while len(self) > KEPT_STUDIES:
            self.popitem(last=False)


class Model:
    """What a bundle's configs declare, with networks that stay loaded, for studies on disk.

    Args:
        declared: by the bundle, whose folder is on ``sys.path``.
    """

    def __init__(self, declared: Declaration) -> None:
        self.declared = declared
        self.networks = Networks(declared)
        self._inputs, self._studies = Kept(), Kept()
        self._lock = threading.RLock()

    def load(self) -> None:
        """Load the networks, unless they are loaded and their files have not changed."""
        with self._lock:
            if self.networks.load():
                # one of the networks finds the brain
                self._inputs.clear()
                self._studies.clear()

    def __call__(
        self, paths: Sequence[str], options: Mapping[str, float], mode: str = FULL, allow_any_image: bool = False
    ) -> dict[str, Any]:
        """Process one study.

        Args:
            paths: its volumes, one a channel of the model, in the order of its channels.
            options: see `Declaration.checked_options`.
            mode: one of the model's.
            allow_any_image: run what is no image of the model's too, with a warning.

        Returns:
            What the bundle's postprocessing gives, all on the grid of ``input_image``: ``pred``, ``anomaly_map``,
            ``counterfactual`` and ``slices``; ``warnings``, sentences that say
            why it may be wrong; and ``seconds``, the time for "preprocessing", "networks"
            and "postprocessing", and ``transforms``, that for each of the preprocessing's.

        Raises:
            MONAILabelException: INVALID_INPUT, an option is out of range, or a volume can't be used; the message names it and
                says why. SERVER_ERROR, the memory was not enough. APP_INFERENCE_FAILED, a fault of the program's, whose
                traceback is in the log.
            Abandoned: see `proceed`.
        """
        from scripts.errors import InvalidImageError
        from scripts.sources import state

        with self._lock, torch.no_grad():
            proceed()
            self.load()
            try:
                inferer = self.networks.parsed("inferer", options, mode)
                postprocessing = self.networks.parsed("postprocessing", options, mode)
            except (RuntimeError, ValueError) as error:
                raise self._refusal(error, (), ValueError) from error
            files = tuple((path, str(state(path))) for path in paths)
            inputs_key = (allow_any_image, files)
            key = (mode, *inputs_key, *((k, v) for k, v in options.items() if k != "threshold"))
            seconds = {"preprocessing": 0.0, "networks": 0.0}
            transforms: dict[str, float] = {}
            start = perf_counter()
            try:
                if key not in self._studies:
                    if inputs_key not in self._inputs:
                        self._inputs.keep(inputs_key, self._preprocessed(paths, transforms, allow_any_image))
                    data = dict(self._inputs[inputs_key])
                    seconds["preprocessing"] = perf_counter() - start
                    start = perf_counter()
                    inputs, inside = (
                        data[name].as_tensor()[None].to(self.declared.device) for name in ("image", "foreground")
                    )
                    pred = inferer(inputs, self.networks[mode]["network"], inside)
                    data["pred"] = {name: tensor[0].cpu() for name, tensor in pred.items()}
                    seconds["networks"] = perf_counter() - start
                    start = perf_counter()
                    self._studies.keep(key, data)
                self._studies.move_to_end(key)
                result = dict(postprocessing(dict(self._studies[key])))
            except Abandoned:
                raise
            except Exception as error:
                raise self._refusal(error, paths, InvalidImageError) from error
            seconds["postprocessing"] = perf_counter() - start
            result["seconds"], result["transforms"] = seconds, transforms
            result["warnings"] = [*self.networks.not_together(mode, options), *result.get("warnings", [])]
            return result

    def _preprocessed(
        self, paths: Sequence[str], transforms: dict[str, float], allow_any_image: bool
    ) -> dict[str, Any]:
        """The networks' input; the seconds of each step go into `transforms`."""
        data: dict[str, Any] = {"image": paths[0] if len(paths) == 1 else list(paths)}
        data["allow_any_image"] = allow_any_image
        for transform in self.networks[FULL]["preprocessing"].transforms:
            proceed()
            begin = perf_counter()
            data = transform(data)
            transforms[type(transform).__name__] = round(perf_counter() - begin, 4)
        return data

    def _refusal(self, error: Exception, paths: Sequence[str], refused: type[Exception]) -> MONAILabelException:
        """What to say of an error; only what came from one of the kind `refused` is the client's to mend."""
        from scripts.errors import cause_of, out_of_memory

        cause = cause_of(error)
        if isinstance(cause, refused):
            return MONAILabelException(MONAILabelError.INVALID_INPUT, _said(cause, paths))
        if not out_of_memory(error):
            logger.exception("a fault of the program's")
            return MONAILabelException(
                MONAILabelError.APP_INFERENCE_FAILED,
                f"The server failed ({type(cause).__name__}: {_said(cause, paths)}). Its log says more.",
            )
        self._inputs.clear()
        self._studies.clear()
        logger.exception("out of memory")
        device = self.declared.device.type
        other = "a machine with more memory" if device == "cpu" else "the processor: --conf device cpu"
        return MONAILabelException(
            MONAILabelError.SERVER_ERROR,
            f"The memory of this server's {device} was not enough for this volume. Nothing was stored. "
            f"Try again when less runs beside it, or start the server on {other}.",
        )


def _said(cause: BaseException, paths: Sequence[str]) -> str:
    """What a transform or a config component said; the client knows names, not where this server keeps files."""
    message = str(cause) or type(cause).__name__
    for path in paths:
        message = message.replace(str(path), Path(path).name)
    return message
