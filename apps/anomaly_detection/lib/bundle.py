"""The bundle, found or fetched, loaded once, and run on one study at a time."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import re
import stat
import sys
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from monai.apps.utils import HashCheckError, download_url, extractall
from monai.bundle import ConfigParser
from monai.transforms import LoadImage, ResampleToMatch
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

logger = logging.getLogger(__name__)

REPOSITORY_BUNDLE = Path(__file__).resolve().parents[3] / "bundle"
KEPT_STUDIES = 2
"""So many studies stay in memory, preprocessed and with what the networks gave: another option of one needs no brain
extraction, another threshold or the other view no network."""

FULL, PREVIEW = "inference", "preview"
"""How a study is run, by the config that says it: with a counterfactual, or by the student alone, one call a slice."""

MAX_BUNDLE_BYTES = 4 * 2**30
"""A fetched bundle is refused if it unpacks to more."""

abandoned: ContextVar[Callable[[], bool] | None] = ContextVar("abandoned", default=None)
"""Whether the client that asked for what runs here has gone; None: nobody can tell."""


class Abandoned(Exception):
    """The client has gone, so what it asked for is not finished."""


def proceed() -> None:
    """Called between two steps.

    Raises:
        Abandoned: nobody waits for the next one.
    """
    gone = abandoned.get()
    if gone is not None and gone():
        raise Abandoned


def fetch_bundle(url: str, sha256: str, folder: Path) -> Path:
    """Download a zipped bundle and check it before it is unpacked.

    Args:
        url: of the zip, which holds the bundle's folder or its content.
        sha256: of the zip, 64 hexadecimal digits. A bundle holds code, so it is never fetched unchecked.
        folder: where bundles are kept; one that is there already is not fetched again.

    Raises:
        ValueError: the file is another one than expected, or holds no bundle, or one that is too large or would write
            elsewhere.
    """
    if len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef"):
        raise ValueError(f"bundle_sha256 must be the 64 hexadecimal digits of the zip's SHA-256, got {sha256!r}.")
    target = folder / sha256.lower()
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            archive = Path(partial) / "bundle.zip"
            try:
                download_url(url, str(archive), hash_val=sha256.lower(), hash_type="sha256", progress=False)
            except HashCheckError as error:
                raise ValueError(f"{url}: its SHA-256 is not {sha256.lower()}; nothing of it was used.") from error
            try:
                _check_archive(archive)
                extractall(archive, Path(partial) / "bundle", file_type="zip", has_base=False)
            except (ValueError, zipfile.BadZipFile) as error:
                raise ValueError(f"{url}: {error}; nothing of it was used.") from error
            configs = sorted(Path(partial, "bundle").rglob("configs/inference.json"), key=lambda path: len(path.parts))
            if not configs:
                raise ValueError(f"{url}: there is no configs/inference.json in it, so it is no MONAI bundle.")
            os.replace(configs[0].parent.parent, target)
    return target


def _check_archive(path: Path) -> None:
    """MONAI's `extractall` refuses paths that lead elsewhere, this the rest; a file never unpacks to more than is declared."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    size = sum(member.file_size for member in members)
    if size > MAX_BUNDLE_BYTES:
        raise ValueError(f"it unpacks to {size >> 20} MiB, {MAX_BUNDLE_BYTES >> 20} are allowed")
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{member.filename!r} in it is a symbolic link")
        if "\\" in member.filename or Path(member.filename).is_absolute() or ".." in Path(member.filename).parts:
            raise ValueError(f"{member.filename!r} in it leads to another folder")


class Bundle:
    """What ``configs/inference.json`` declares, with networks that stay loaded, for studies on disk.

    MONAI Label's own `BundleInferTask` serves the bundle too, but imports its scripts and loads its classifier and the brain
    extraction anew in every request.

    Args:
        path: the bundle's folder.
        device: as torch names it; by default a GPU if there is one.

    Raises:
        ValueError: `path` is no bundle.
    """

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        self.path = Path(path).resolve()
        if not (self.path / "configs" / "inference.json").is_file():
            raise ValueError(f"{self.path}: there is no configs/inference.json, so it is no MONAI bundle.")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.metadata = json.loads((self.path / "configs" / "metadata.json").read_text())
        image = self.metadata["network_data_format"]["inputs"]["image"]
        self.modality: str = image["modality"]
        self.channels: list[str] = [image["channel_def"][str(c)] for c in range(image["num_channels"])]
        # the bundle's code is imported as `scripts`, the name that its configs use
        if str(self.path) not in sys.path:
            sys.path.insert(0, str(self.path))
        config = ConfigParser.load_config_file(self.path / "configs" / f"{FULL}.json")
        self._configs: dict[str, dict[str, Any]] = {FULL: config}
        overlay = self.path / "configs" / f"{PREVIEW}.json"
        if overlay.is_file():
            preview = {**config, **ConfigParser.load_config_file(overlay)}
            # a bundle that was trained anew may have no student yet
            if preview["network"] != "@student" or preview.get("student"):
                self._configs[PREVIEW] = preview
        self._loaded: dict[str, dict[str, Any]] = {}
        self._weights: tuple[int, ...] = ()
        self._inputs: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()
        self._studies: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def modes(self) -> list[str]:
        """The ways in which this bundle can run a study."""
        return list(self._configs)

    def options(self, mode: str = FULL) -> dict[str, float]:
        """The options that a request may set, with their defaults."""
        return dict(self.declared("displayable_configs", mode=mode))

    def config(self, mode: str = FULL) -> dict[str, Any]:
        """What the bundle's files say of a mode."""
        return deepcopy(self._configs[mode])

    @property
    def version(self) -> str:
        """Of the bundle."""
        return str(self.metadata["version"])

    @property
    def weights(self) -> list[int]:
        """When each weights file was changed, in ns: two runs with the same weights, options and version are the same."""
        return list(self._weights)

    def declared(self, name: str, options: Mapping[str, float] | None = None, mode: str = FULL) -> Any:
        """What the config declares under `name`, with these options and the networks that are loaded."""
        known = {"bundle_root": str(self.path), "device": self.device, **self._loaded.get(mode, {})}
        parser = ConfigParser({**deepcopy(self._configs[mode]), **known})  # it writes into what it is given
        parser.update({f"displayable_configs#{k}": v for k, v in (options or {}).items()})
        return parser.get_parsed_content(name)

    def load(self) -> None:
        """Load the networks, unless they are loaded and their files have not changed."""
        with self._lock:
            weights = tuple(path.stat().st_mtime_ns for path in sorted((self.path / "models").glob("*.pt")))
            if self._loaded and weights == self._weights:
                return
            logger.info("loading the networks of %s on %s", self.path, self.device)
            self._loaded, self._weights = {}, ()
            names = [n for n in ("classifier", "student", "preprocessing") if n in self._configs[FULL]]
            shared: dict[str, Any] = {name: self.declared(name) for name in names}
            for transform in shared["preprocessing"].transforms:
                if hasattr(transform, "load"):
                    transform.load()
            self._loaded = {mode: dict(shared) for mode in self.modes}
            for mode, loaded in self._loaded.items():
                loaded["network"] = self.declared("network", mode=mode)
                self._warn(loaded, self.options(mode).get("threshold", math.nan))
                # a batch of slices is what can't be interrupted
                loaded["network"].register_forward_pre_hook(lambda *_: proceed())
            self._weights = weights
            self._studies.clear()

    def _warn(self, loaded: Mapping[str, Any], threshold: float) -> None:
        """Log which weights don't belong together, where the bundle says that."""
        scripts = importlib.import_module("scripts.weights")
        if hasattr(scripts, "not_together"):  # another bundle may not know
            networks = {name: loaded.get(name) for name in ("network", "classifier", "student")}
            digests = {
                name: scripts.weights_digest(network) for name, network in networks.items() if network is not None
            }
            for warning in scripts.not_together(self.path / "models" / scripts.MANIFEST, digests, threshold):
                logger.warning("%s: %s", self.path, warning)

    def checked_options(self, request: Mapping[str, Any], mode: str = FULL) -> dict[str, float]:
        """The options of a request, each a number of its default's type; those it lacks have their defaults.

        Raises:
            MONAILabelException: INVALID_INPUT, an option is no number.
        """
        options = {}
        for name, default in self.options(mode).items():
            value = request.get(name, default)
            try:
                number = float(value)
                if isinstance(value, bool) or (isinstance(default, int) and number != int(number)):
                    raise ValueError
            except (TypeError, ValueError, OverflowError):
                kind = "a whole number" if isinstance(default, int) else "a number"
                raise MONAILabelException(
                    MONAILabelError.INVALID_INPUT, f"{name} must be {kind}, got {value!r}; its default is {default}."
                ) from None
            options[name] = int(number) if isinstance(default, int) else number
        return options

    def __call__(
        self, paths: Sequence[str], options: Mapping[str, float], mode: str = FULL, allow_any_image: bool = False
    ) -> dict[str, Any]:
        """Process one study.

        Args:
            paths: its volumes, one a channel of the model, in the order of `channels`. Those that lie on another grid than
                the first are resampled to it.
            options: see `checked_options`.
            mode: one of `modes`.
            allow_any_image: run what is no MR image of a head too, with a warning.

        Returns:
            What the bundle's postprocessing gives, all on the grid of the first volume: ``pred``, ``anomaly_map``,
            ``counterfactual`` (not from a preview) and ``slices``; ``warnings``, sentences that say why it may be wrong;
            and ``seconds``, the time for "preprocessing", "networks"
            and "postprocessing", and ``transforms``, that for each of the preprocessing's.

        Raises:
            MONAILabelException: INVALID_INPUT, an option is out of range, or a volume can't be used; the message names it and
                says why. SERVER_ERROR, the memory was not enough.
            Abandoned: see `proceed`.
        """
        with self._lock, torch.no_grad():
            proceed()
            self.load()
            try:
                inferer = self.declared("inferer", options, mode)
                postprocessing = self.declared("postprocessing", options, mode)
            except (RuntimeError, ValueError) as error:
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, reason(error)) from error
            files = tuple((p, os.stat(p).st_mtime_ns, os.stat(p).st_size) for p in paths)
            inputs_key = (allow_any_image, files)
            key = (mode, *inputs_key, *((k, v) for k, v in options.items() if k != "threshold"))
            seconds = {"preprocessing": 0.0, "networks": 0.0}
            transforms: dict[str, float] = {}
            start = perf_counter()
            try:
                if key not in self._studies:
                    if inputs_key not in self._inputs:
                        _keep(self._inputs, inputs_key, self._preprocessed(paths, transforms, allow_any_image))
                    data = dict(self._inputs[inputs_key])
                    seconds["preprocessing"] = perf_counter() - start
                    start = perf_counter()
                    inputs = data["image"].as_tensor()[None].to(self.device)
                    inside = data["foreground"].as_tensor()[None].to(self.device)
                    pred = inferer(inputs, self._loaded[mode]["network"], inside)
                    data["pred"] = {name: tensor[0].cpu() for name, tensor in pred.items()}
                    seconds["networks"] = perf_counter() - start
                    start = perf_counter()
                    _keep(self._studies, key, data)
                self._studies.move_to_end(key)
                result = dict(postprocessing(dict(self._studies[key])))
            except (RuntimeError, ValueError, MemoryError) as error:
                if out_of_memory(error):
                    self._inputs.clear()
                    self._studies.clear()
                    logger.exception("out of memory")
                    other = (
                        "a machine with more memory"
                        if self.device.type == "cpu"
                        else "the processor: --conf device cpu"
                    )
                    raise MONAILabelException(
                        MONAILabelError.SERVER_ERROR,
                        f"The memory of this server's {self.device.type} was not enough for this volume. Nothing was stored. "
                        f"Try again when less runs beside it, or start the server on {other}.",
                    ) from error
                message = reason(error)
                for path in paths:  # the client knows names, not where this server keeps files
                    message = message.replace(str(path), Path(path).name)
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, message) from error
            seconds["postprocessing"] = perf_counter() - start
            result["seconds"], result["transforms"] = seconds, transforms
            return result

    def _preprocessed(
        self, paths: Sequence[str], transforms: dict[str, float], allow_any_image: bool
    ) -> dict[str, Any]:
        """The networks' input; the seconds of each step go into `transforms`."""
        with on_one_grid(paths) as volumes:
            data: dict[str, Any] = {"image": volumes[0] if len(volumes) == 1 else volumes}
            data["allow_any_image"] = allow_any_image
            for transform in self._loaded[FULL]["preprocessing"].transforms:
                proceed()
                begin = perf_counter()
                data = transform(data)
                transforms[type(transform).__name__] = round(perf_counter() - begin, 4)
        return data


def _keep(studies: OrderedDict[tuple[Any, ...], dict[str, Any]], key: tuple[Any, ...], data: dict[str, Any]) -> None:
    """Keep one more, and forget the one that was not asked for the longest."""
    studies[key] = data
    while len(studies) > KEPT_STUDIES:
        studies.popitem(last=False)


def out_of_memory(error: BaseException) -> bool:
    """Whether this, or what it came from, is a lack of memory; on the CPU, torch says so in words only."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(cause, RuntimeError) and re.search(
            r"DefaultCPUAllocator|not enough memory|out of memory", str(cause)
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def reason(error: Exception) -> str:
    """What a transform or a config component said, without the frames that MONAI puts around it."""
    cause: BaseException = error
    while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause) or type(cause).__name__


@contextmanager
def on_one_grid(paths: Sequence[str]) -> Iterator[list[str]]:
    """Volumes on the grid of the first: itself, and for as long as this is open, copies of those that need it."""
    if len(paths) == 1:
        yield list(paths)
        return
    from scripts.running.saving import save_nifti

    load = LoadImage(image_only=True, ensure_channel_first=True)
    first = load(paths[0])
    with tempfile.TemporaryDirectory(prefix="sequences-") as folder:
        placed = [paths[0]]
        for n, path in enumerate(paths[1:], start=1):
            image = ResampleToMatch(mode="bilinear", padding_mode="zeros")(load(path), img_dst=first)
            placed.append(str(Path(folder) / f"{n}.nii.gz"))
            save_nifti(image, path, Path(placed[-1]))
        yield placed
