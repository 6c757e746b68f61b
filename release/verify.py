"""``python -m release.verify sample|core|label ZIP...``: what a zip must stand, as zoo, MONAI's tools and MONAI Label run it.

A zip is unpacked in an empty folder with spaces in its path, and can't be written there. Nothing here needs a network. Zips are
checked side by side, one a processor, as each command keeps to one. With ``--python`` the checks run in another environment:
``sample`` needs what ``python -m release.requirements`` lists, ``core`` the ``tools`` too, ``label`` needs MONAI Label.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image

from .describing import ONNX_OF_THE_METHOD

HERE = Path(__file__).resolve().parent
SHORT = {"max_images": 8, "epoch_images": 8, "batch_size": 4, "val_interval": 1, "compile": False, "num_workers": 0}
"""A training of two steps."""
LISTS = [
    ["inference"],
    ["inference", "preview"],
    ["inference", "evaluate"],
    ["inference", "evaluate", "calibrate"],
    ["inference", "export"],
    ["train"],
    ["train", "multi_gpu_train"],
    ["train", "train_classifier"],
    ["train", "train_student"],
    ["train", "train_chest"],
    ["train", "train_classifier", "train_chest", "train_chest_classifier"],
]
"""The configs of a zip as they are run, one over the other; each is the last of a list."""


class Verification:
    """The checks of one zip.

    Args:
        path: of the zip.
        folder: empty, where it is unpacked and results go.
        python: the interpreter of the environment that is checked.
    """

    def __init__(self, path: Path, folder: Path, python: str) -> None:
        # not resolved, as a link tells an environment; commands run in other folders
        self.zip, self.folder, self.python = path, folder, os.path.abspath(python)
        self.bundle = folder / "unpacked bundle" / path.stem
        with zipfile.ZipFile(path) as archive:
            archive.extractall(self.bundle.parent)
        self.before = tree(self.bundle)
        for entry in (self.bundle, *self.bundle.rglob("*")):
            entry.chmod(0o555 if entry.is_dir() else 0o444)
        config = json.loads((self.bundle / "configs" / "inference.json").read_text("utf-8"))
        self.has_student = "counterfactual_def" in config  # else network_def is that, see `merging`
        self.sequences = config["sequences"]
        self.samples = sample_of(self.bundle, self.sequences, folder / "sample")
        self.cache = str(folder / "cache")

    def run(self, *command: str, cwd: Path | None = None) -> None:
        """Run a command without a network and without the right to write what belongs to root.

        Raises:
            AssertionError: it failed, with the end of what it said.
        """
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
        environment |= {"no_proxy": "127.0.0.1", "HOME": str(self.folder), "XDG_CACHE_HOME": self.cache}
        environment |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        done = subprocess.run(
            [*unprivileged(), self.python, *command],
            cwd=cwd or self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout[-1500:] + done.stderr)[-4000:]

    def monai(self, command: str, **options: Any) -> None:
        """Run a command of ``python -m monai.bundle``."""
        self.run("-m", "monai.bundle", command, *(f"--{k}={v}" for k, v in options.items()))

    def probe(self, name: str, *arguments: Any, bundle: Path | None = None) -> None:
        """Run one of `probes`."""
        self.run(str(HERE / "probes.py"), name, str(bundle or self.bundle), *map(str, arguments))

    def configs(self, *names: str) -> str:
        """The option that names config files."""
        return str([str(self.bundle / "configs" / f"{name}.json") for name in names])

    def training(self, name: str) -> dict[str, Any]:
        """Options of a short training in a folder of its own."""
        datalist = self.folder / "datalist.json"
        if not datalist.exists():
            parts = {
                split: labelled(self.samples, self.folder / "data" / split) for split in ("training", "validation")
            }
            datalist.write_text(json.dumps(parts))
        return {**SHORT, "datalist": str(datalist), "cache_dir": self.cache, "run_dir": str(self.folder / name)}

    def zoo(self) -> None:
        """What the zoo runs, with a path relative to the current folder as there; and ONNX."""
        schema = self.folder / "schema.json"
        shutil.copy(HERE / "meta_schema_20240725.json", schema)
        output = self.folder / "network_def"
        output.mkdir()
        onnx = json.dumps({} if self.has_student else ONNX_OF_THE_METHOD)
        self.probe("zoo", schema, output, onnx, bundle=self.bundle.relative_to(self.folder))

    def released(self) -> None:
        """The hashes that lie in the zip are those of its files."""
        self.run("-m", "scripts.manifest", "check", cwd=self.bundle)

    def reach(self) -> None:
        """The configs reach nothing outside MONAI, torch, ignite and the bundle's scripts."""
        self.run("-m", "scripts.reach", cwd=self.bundle)

    def load(self) -> None:
        """By name."""
        self.probe("load")

    def sample_run(self) -> None:
        """The card's first command, from another folder and with one step; the demonstrations take all."""
        out = self.folder / "out put"
        image = self.samples[0] if len(self.samples) == 1 else self.bundle / "sample"
        options: dict[str, Any] = {"input": image, "output_dir": out, "brain_cache": self.cache}
        options["displayable_configs#num_inference_steps"] = 1
        self.monai("run", config_file=self.bundle / "configs" / "inference.json", **options)
        [volume] = json.loads((out / "summary.json").read_text("utf-8"))["volumes"]
        assert volume["status"] == "ok" and len(list(out.rglob("pred*"))) >= 1, volume

    def properties(self) -> None:
        """Of every config."""
        there = {path.stem for path in (self.bundle / "configs").glob("*.json")} - {"metadata"}
        lists = [names for names in LISTS if there >= set(names)]
        assert {names[-1] for names in lists} == there, there
        few = {"settings#num_inference_steps": 1, "num_fixed_point_iterations": 0}
        options = {"infer": {}, "train": {**self.training("properties"), "device": "cpu", **few}}
        self.probe("properties", json.dumps(lists), json.dumps(options))

    def tracking(self) -> None:
        """A short training with MLflow beside it writes its weights and MLflow's records."""
        # no folder with spaces: SQLAlchemy 2.0, the last for Python 3.10, writes the records to one with "%20" in its name
        with tempfile.TemporaryDirectory() as run_dir:
            options = self.training("tracked") | {"run_dir": run_dir}
            self.monai("run", config_file=self.configs("train"), tracking="mlflow", device="cpu", **options)
            written = set(os.listdir(run_dir))
            assert written >= {"model.pt", "mlruns.db"}, written
            with closing(sqlite3.connect(Path(run_dir, "mlruns.db"))) as records:
                [names] = zip(*records.execute("SELECT DISTINCT key FROM metrics"), strict=True)
        assert "val_loss" in names, names

    def all_networks(self) -> None:
        """The bundle's own export."""
        out = self.folder / "exported"
        self.monai("run", config_file=self.configs("inference", "export"), output_dir=out, device="cpu")
        networks = {"diffusion", "classifier"} | ({"student"} if self.has_student else set())
        assert {path.name for path in out.iterdir()} == {
            f"{name}.{kind}" for name in networks for kind in ("ts", "onnx")
        }

    def download(self) -> None:
        """From a web server."""
        handler = partial(SimpleHTTPRequestHandler, directory=str(self.zip.resolve().parent))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/{self.zip.name}"
            self.monai("download", name=self.zip.stem, bundle_dir=self.folder / "downloaded", url=url)
            server.shutdown()
        assert tree(self.folder / "downloaded" / self.zip.stem) == self.before

    def label_infer(self) -> None:
        """MONAI Label's own task, with one step; it takes one file, so that several sequences lie in one of four dimensions."""
        self.probe("label_infer", self.one_file(), json.dumps({"num_inference_steps": 1}))

    def label_train(self) -> None:
        """MONAI Label's own task, a short training on images and masks, as its datastore has them."""
        options = self.training("label run")
        del options["datalist"]
        items = []
        # half of them validate, and of radiographs each half needs both classes
        for n in range(4 if self.samples[0].suffix == ".dcm" else 2):
            image = self.folder / f"study {n}{''.join(self.one_file().suffixes)}"
            shutil.copy(self.one_file(), image)
            items.append({"image": str(image), "label": str(mask_of(image, self.folder / f"mask {n}", n % 2 == 0))})
        self.probe("label_train", json.dumps(items), json.dumps(options))

    def one_file(self) -> Path:
        """The sample, its sequences in the last dimension of one file."""
        if len(self.samples) == 1:
            return self.samples[0]
        path = self.folder / "sequences.nii.gz"
        if not path.exists():
            nib.save(nib.concat_images([str(sample) for sample in self.samples]), path)
        return path

    def unchanged(self) -> None:
        """Nothing of all that wrote into the bundle."""
        assert tree(self.bundle) == self.before


CORE = ("released", "reach", "zoo", "load", "properties", "tracking", "all_networks", "download", "unchanged")
CHECKS = {"sample": ("sample_run", "unchanged"), "core": CORE, "label": ("label_infer", "label_train", "unchanged")}
ONCE = {"tracking"}
"""What the last zip alone is asked, as the handlers of ``train.json`` are the same for all."""


def sample_of(bundle: Path, sequences: list[str], folder: Path) -> list[Path]:
    """The image in a zip; where there are several, not all on one grid, a study that has one of them for each sequence."""
    found = [path for path in sorted(bundle.glob("sample/*")) if path.name != "ATTRIBUTION.md"]
    if len(found) > 1:
        folder.mkdir()
        found = [Path(shutil.copy(found[0], folder / f"p1_{name.lower()}.nii.gz")) for name in sequences]
    return found


def labelled(samples: list[Path], folder: Path) -> list[dict[str, Any]]:
    """Items of a datalist, copies of a sample: a volume with a healthy and a diseased slice, or two pictures."""
    is_volume = samples[0].name.endswith(".nii.gz")
    items = []
    for n in range(1 if is_volume else 2):
        (folder / str(n)).mkdir(parents=True)
        paths = [str(shutil.copy(path, folder / str(n))) for path in samples]
        label: int | list[int] = n
        if is_volume:
            depth = nib.load(paths[0]).shape[2]
            label = [{0: 0, 1: 1}.get(z - depth // 2, -1) for z in range(depth)]
        items.append({"image": paths[0] if len(paths) == 1 else paths, "label": label, "subject": f"{folder.name}/{n}"})
    return items


def mask_of(image: Path, path: Path, marked: bool) -> Path:
    """A mask of an image as readers give it: of a volume every second slice, of a radiograph all of it or nothing."""
    if image.suffix == ".dcm":
        header = pydicom.dcmread(image, stop_before_pixels=True)
        path = path.with_suffix(".png")
        Image.new("L", (header.Columns, header.Rows), int(marked)).save(path)
        return path
    volume = nib.load(image)
    mask = np.zeros(volume.shape[:3], np.uint8)
    mask[:, :, ::2] = 1
    path = path.with_suffix(".nii.gz")
    nib.save(nib.Nifti1Image(mask, volume.affine), path)
    return path


def tree(folder: Path) -> dict[str, str]:
    """The files of a folder and what they hold."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def unprivileged() -> list[str]:
    """What root puts before a command so that modes of files count for it, where the system has it."""
    command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    if os.geteuid() or shutil.which("setpriv") is None:
        return []
    return command if subprocess.run([*command, "true"], capture_output=True).returncode == 0 else []


def verify(path: Path, checks: Sequence[str], python: str) -> list[str]:
    """Print how each check of a zip went, and return the names of those that failed."""
    failed = []
    with tempfile.TemporaryDirectory(prefix="a bundle ") as folder:
        verification = Verification(path, Path(folder), python)
        for name in checks:
            start = perf_counter()
            try:
                getattr(verification, name)()
                outcome = "passed"
            except Exception as error:
                outcome = f"FAILED\n{type(error).__name__}: {error}"
                failed.append(name)
            print(f"{path.stem}: {name}: {outcome} ({perf_counter() - start:.0f} s)", flush=True)
        for entry in (verification.bundle, *verification.bundle.rglob("*")):
            if entry.is_dir():
                entry.chmod(0o755)
    return failed


def main() -> None:
    """Check all zips."""
    parser = argparse.ArgumentParser(prog="release.verify", description=__doc__)
    parser.add_argument("kind", choices=CHECKS, help="a run on the sample, MONAI's own tools, or MONAI Label")
    parser.add_argument("zips", type=Path, nargs="+", help="as python -m release writes them")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of another environment")
    arguments = parser.parse_args()
    checks = CHECKS[arguments.kind]
    of_all = [name for name in checks if name not in ONCE]
    *others, last = arguments.zips
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(verify, path, of_all, arguments.python) for path in others]
        running.append(pool.submit(verify, last, checks, arguments.python))
        if any([task.result() for task in running]):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
