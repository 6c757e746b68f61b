"""``python -m release.verify core|label ZIP...``: what a zip must stand, as the zoo, MONAI's tools and MONAI Label run it.

A zip is unpacked in an empty folder with spaces in its path, and can't be written there. Nothing here needs a network. With
``--python`` the checks run in another environment: ``core`` needs the packages of the zip's metadata, and jsonschema, onnx,
onnxscript, onnxruntime, mlflow-skinny, sqlalchemy and alembic, which the tools want; ``label`` needs MONAI Label.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter
from typing import Any

import nibabel as nib

HERE = Path(__file__).resolve().parent
FLAIR = HERE.parent / "bundle" / "sample" / "TCGA_FG_6692_flair.nii.gz"
SHORT = {"max_images": 8, "epoch_images": 8, "batch_size": 4, "val_interval": 1, "compile": False, "num_workers": 0}
"""A training of two steps."""


class Verification:
    """The checks of one zip.

    Args:
        path: of the zip.
        folder: empty, where it is unpacked and results go.
        python: the interpreter of the environment that is checked.
    """

    def __init__(self, path: Path, folder: Path, python: str) -> None:
        self.zip, self.folder, self.python = path, folder, python
        self.bundle = folder / "unpacked bundle" / path.stem
        with zipfile.ZipFile(path) as archive:
            archive.extractall(self.bundle.parent)
        self.before = tree(self.bundle)
        for entry in (self.bundle, *self.bundle.rglob("*")):
            entry.chmod(0o555 if entry.is_dir() else 0o444)
        samples = sample_of(self.bundle, folder / "sample")
        self.sample = samples[0] if len(samples) == 1 else samples[0].parent
        config = json.loads((self.bundle / "configs" / "inference.json").read_text("utf-8"))
        self.gives_a_map = "diffusion_def" in config  # see `merging`
        parts = {split: labelled(samples, folder / "data" / split) for split in ("training", "validation")}
        self.items = [item for part in parts.values() for item in part]
        self.datalist = folder / "datalist.json"
        self.datalist.write_text(json.dumps(parts))
        self.options = {"datalist": str(self.datalist), "cache_dir": str(folder / "cache"), "device": "cpu"}

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run a command without a network and without the right to write what belongs to root.

        Raises:
            AssertionError: it failed, with the end of what it said.
        """
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
        environment |= {"no_proxy": "127.0.0.1", "HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache")}
        done = subprocess.run(
            [*unprivileged(), self.python, *command],
            cwd=cwd or self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout[-1500:] + done.stderr)[-4000:]
        return done.stdout

    def monai(self, command: str, *, cwd: Path | None = None, **options: Any) -> str:
        """Run a command of ``python -m monai.bundle``."""
        return self.run("-m", "monai.bundle", command, *(f"--{k}={v}" for k, v in options.items()), cwd=cwd)

    def probe(self, name: str, *arguments: Any) -> str:
        """Run one of `probes`."""
        return self.run(str(HERE / "probes.py"), name, str(self.bundle), *map(str, arguments))

    def configs(self, *names: str) -> str:
        """The option that names config files."""
        return str([str(self.bundle / "configs" / f"{name}.json") for name in names])

    # what the zoo runs

    def metadata(self) -> None:
        """Against the schema that it names."""
        schema = self.folder / "schema.json"
        shutil.copy(HERE / "meta_schema_20240725.json", schema)  # a file that is there is not downloaded
        self.monai("verify_metadata", cwd=self.bundle, meta_file="configs/metadata.json", filepath=schema)

    def data_shape(self) -> None:
        """Of ``network_def``."""
        files = {"meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}
        self.monai("verify_net_in_out", cwd=self.bundle, net_id="network_def", **files)

    def exports(self) -> None:
        """TorchScript and ONNX of ``network_def``, which give its numbers."""
        files = {
            "meta_file": "configs/metadata.json",
            "config_file": "configs/inference.json",
            "ckpt_file": "models/model.pt",
        }
        paths = {"ckpt_export": self.folder / "model.ts", "onnx_export": self.folder / "model.onnx"}
        for command, path in paths.items():
            self.monai(command, cwd=self.bundle, net_id="network_def", filepath=path, **files)
        self.probe("exported", *paths.values())

    # what MONAI's tools do

    def load(self) -> None:
        """By name."""
        self.probe("load")

    def sample_run(self) -> None:
        """The card's first command, from another folder."""
        out = self.folder / "out put"
        options: dict[str, Any] = {"input": self.sample, "output_dir": out, "brain_cache": self.options["cache_dir"]}
        self.monai("run", config_file=self.bundle / "configs" / "inference.json", **options)
        [volume] = json.loads((out / "summary.json").read_text("utf-8"))["volumes"]
        assert volume["status"] == "ok" and len(list(out.rglob("pred*"))) >= 1, volume

    def properties(self) -> None:
        """Of every workflow."""
        there = {path.stem for path in (self.bundle / "configs").glob("*.json")}
        options = json.dumps({**self.options, "run_dir": str(self.folder / "run")})
        for names in (
            ["inference"],
            ["inference", "preview"],
            ["inference", "evaluate"],
            ["inference", "evaluate", "calibrate"],
        ):
            if there >= set(names):
                self.probe("properties", ",".join(names), "infer", "{}")
        for names in (["train"], ["train", "train_classifier"]):
            self.probe("properties", ",".join(names), "train", options)

    def tracking(self) -> None:
        """A short training with MLflow beside it writes its weights and MLflow's records."""
        run_dir = self.folder / "tracked"
        options: dict[str, Any] = {**self.options, **SHORT, "run_dir": run_dir, "tracking": "mlflow"}
        self.monai("run", config_file=self.configs("train"), **options)
        assert (run_dir / "model.pt").is_file() and (run_dir / "mlruns.db").stat().st_size > 0

    def all_networks(self) -> None:
        """The bundle's own export."""
        self.monai(
            "run", config_file=self.configs("inference", "export"), output_dir=self.folder / "exported", device="cpu"
        )
        assert {path.stem for path in (self.folder / "exported").glob("*.onnx")} >= {"diffusion", "classifier"}

    def download(self) -> None:
        """From a web server."""
        handler = partial(SimpleHTTPRequestHandler, directory=str(self.zip.resolve().parent))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/{self.zip.name}"
            self.monai("download", name=self.zip.stem, bundle_dir=self.folder / "downloaded", url=url)
            server.shutdown()
        assert tree(self.folder / "downloaded" / self.zip.stem) == self.before

    # what MONAI Label does

    def label_infer(self) -> None:
        """Its own task, on the sample."""
        self.probe("label_infer", self.sample)

    def label_train(self) -> None:
        """Its own task, a short training."""
        short = {k: v for k, v in {**self.options, **SHORT}.items() if k != "device"}
        options = json.dumps({**short, "run_dir": str(self.folder / "label run")})
        items = [{k: v for k, v in item.items() if k != "subject"} for item in self.items]
        self.probe("label_train", json.dumps(items), options)

    def unchanged(self) -> None:
        """Nothing of all that wrote into the bundle."""
        assert tree(self.bundle) == self.before


NEED_A_MAP = ("data_shape", "exports")
"""What the zoo asks of a ``network_def`` that takes an image alone."""
CORE = ("metadata", "data_shape", "exports", "load", "sample_run", "properties", "tracking", "all_networks", "download")
CHECKS = {"core": (*CORE, "unchanged"), "label": ("label_infer", "label_train", "unchanged")}


def sample_of(bundle: Path, folder: Path) -> list[Path]:
    """The image in a zip; where there is none, that of another model as each of the model's sequences."""
    found = [path for path in sorted(bundle.glob("sample/*")) if path.name != "ATTRIBUTION.md"]
    if not found:
        folder.mkdir()
        sequences = json.loads((bundle / "configs" / "inference.json").read_text("utf-8"))["sequences"]
        found = [Path(shutil.copy(FLAIR, folder / f"p1_{name.lower()}.nii.gz")) for name in sequences]
    return found


def labelled(samples: list[Path], folder: Path) -> list[dict[str, Any]]:
    """Items of a datalist, copies of a sample: a volume whose slices are healthy and diseased in turn, or two pictures."""
    is_volume = samples[0].name.endswith(".nii.gz")
    items = []
    for n in range(1 if is_volume else 2):
        (folder / str(n)).mkdir(parents=True)
        paths = [str(shutil.copy(path, folder / str(n))) for path in samples]
        label = [z % 2 for z in range(nib.load(paths[0]).shape[2])] if is_volume else n
        items.append({"image": paths[0] if len(paths) == 1 else paths, "label": label, "subject": f"{folder.name}/{n}"})
    return items


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


def verify(path: Path, kind: str, python: str) -> list[str]:
    """Print how each check of a zip went, and return the names of those that failed."""
    failed = []
    with tempfile.TemporaryDirectory(prefix="a bundle ") as folder:
        verification = Verification(path, Path(folder), python)
        for name in CHECKS[kind]:
            if name in NEED_A_MAP and not verification.gives_a_map:
                print(f"{path.stem}: {name}: LEFT OUT, network_def gives no map: this model has no student", flush=True)
                continue
            start = perf_counter()
            try:
                getattr(verification, name)()
                outcome = "passed"
            except AssertionError as error:
                outcome = f"FAILED\n{error}"
                failed.append(name)
            print(f"{path.stem}: {name}: {outcome} ({perf_counter() - start:.0f} s)", flush=True)
        for entry in (verification.bundle, *verification.bundle.rglob("*")):
            if entry.is_dir():
                entry.chmod(0o755)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="release.verify", description=__doc__)
    parser.add_argument("kind", choices=CHECKS, help="MONAI's own tools, or MONAI Label")
    parser.add_argument("zips", type=Path, nargs="+", help="as python -m release writes them")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of another environment")
    arguments = parser.parse_args()
    if any([verify(path, arguments.kind, arguments.python) for path in arguments.zips]):
        raise SystemExit(1)
