"""Training with MONAI's own command and tools: each config trains, publishes nothing, and writes down what it did."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from scripts.bundle import bundle_root, declared
from scripts.device import compilation_pays
from tiny_run import TINY
from training_data import OVERLAYS, command, files, options, parsed, write_datalist, write_teacher


def shipped() -> dict[str, bytes]:
    models = Path(bundle_root()) / "models"
    return {str(p.relative_to(models)): p.read_bytes() for p in models.rglob("*") if p.is_file()}


def run(config: str, folder: Path, images: int = 32, **overrides: Any) -> str:
    """Train, which must succeed and leave the bundle's weights alone; what was printed."""
    before = shipped()
    write_datalist(folder)
    done = subprocess.run(
        command(config, folder, **{"max_images": images, "epoch_images": images, "val_interval": 1, **overrides}),
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert shipped() == before
    return output


@pytest.mark.parametrize("config", list(OVERLAYS))
def test_a_workflows_properties_are_those_of_its_training(config: str, tmp_path: Path) -> None:
    write_datalist(tmp_path)
    settings = options(tmp_path, **write_teacher(tmp_path))
    workflow = ConfigWorkflow(files(config), workflow_type="train", logging_file=False, **settings)
    try:
        workflow.initialize()
        assert workflow.max_epochs == workflow.trainer.state.max_epochs
        assert [item["subject"] for item in workflow.train_dataset_data] == ["plain", "flipped", "oblique"]
        assert workflow.train_inferer is workflow.val_inferer is workflow.trainer.inferer
    finally:
        set_determinism(None)


class FakeMLflow:
    """As much of mlflow as MONAI's handler uses, for one run."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.artifacts: list[str] = []
        self.client = self
        self.entities = SimpleNamespace(
            RunStatus=SimpleNamespace(FINISHED=3, to_string=str),
            ViewType=SimpleNamespace(ACTIVE_ONLY=1),
            LifecycleStage=SimpleNamespace(ACTIVE="active"),
            Metric=lambda key, value, timestamp, step: (key, value),
            Param=lambda key, value: (key, value),
        )
        self.uri = ""

    def MlflowClient(self, tracking_uri: str) -> FakeMLflow:  # noqa: N802
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="0", name=name, lifecycle_stage="active")

    def search_runs(self, *args: Any, **kwargs: Any) -> list[Any]:
        return []

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="1", run_name=run_name, status="1"))

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(params={}))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        for key, value in metrics:
            self.metrics.setdefault(key, []).append(value)

    def log_artifact(self, run_id: str, local_path: str) -> None:
        self.artifacts.append(str(local_path))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_tracking_by_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI's option adds its handlers to the trainer and to the validation, and takes none away."""
    fake = FakeMLflow()
    monkeypatch.setattr("monai.handlers.mlflow_handler.mlflow", fake)
    monkeypatch.chdir(tmp_path)
    write_datalist(tmp_path)
    limits = {"max_images": 32, "epoch_images": 32, "val_interval": 1, "compile": "false", "run_dir": "run"}
    workflow = ConfigWorkflow(
        files("train_classifier"),
        workflow_type="train",
        run_id="training",
        logging_file=False,
        tracking="mlflow",
        **options(tmp_path, **limits),
    )
    try:
        workflow.initialize()
        workflow.run()
    finally:
        set_determinism(None)
    assert workflow.parser.get_parsed_content("train#trainer#compile") is False
    assert len(fake.metrics["train_loss"]) == 2 and all(map(math.isfinite, fake.metrics["train_loss"]))
    assert len(fake.metrics["val_loss"]) == 1 and "val_auroc_t0" in fake.metrics
    [written] = (tmp_path / "run").glob("config_*.json")
    assert json.loads(written.read_text())["epoch_images"] == 32
    assert [Path(p).resolve() for p in fake.artifacts] == [written] and fake.uri.startswith("sqlite:///")
    # the handlers of the config itself
    assert (tmp_path / "run" / "model.pt").exists() and len(list((tmp_path / "run").glob("events.out*"))) == 2
    assert not (Path(bundle_root()) / "eval").exists()


def test_every_override_of_inference_counts_in_training(tmp_path: Path) -> None:
    """Each network is the one that inference would load with the same options, whatever they are."""
    for config, name in (("train", "network"), ("train_classifier", "classifier"), ("train_student", "student")):
        other = {f"{name}_def#channels": [8, 16], f"{name}_def#features": [6] * 6}
        other = {key: value for key, value in other.items() if ("features" in key) == (name == "student")}
        trained = parsed(config, tmp_path, **other).get_parsed_content("train#network")
        assert trained.state_dict().keys() == declared(f"{name}_def", **{**TINY, **other}).state_dict().keys()
        assert any(6 in p.shape if name == "student" else 16 in p.shape for p in trained.parameters())


def test_a_model_between_the_configs_moves_its_weights(tmp_path: Path) -> None:
    """An overlay with channels, a shape and a folder of its own; training, teacher and publishing follow it."""
    overlay = tmp_path / "other.json"
    overlay.write_text(json.dumps({"num_channels": 2, "spatial_size": [32, 48], "models_dir#folder": "models/other"}))
    overlays = {
        "train": "model",
        "train_classifier": "classifier",
        "train_student": "student",
    }
    for config, name in overlays.items():
        first, *others = files(config)
        parser = ConfigParser()
        parser.read_config([first, str(overlay), *others])
        parser.update(options(tmp_path))
        assert parser.get_parsed_content("published") == f"{bundle_root()}/models/other/{name}.pt"
        network = parser.get_parsed_content("train#network")
        assert next(network.parameters()).shape[1] == 2
        path = parser.get_parsed_content("network#path")
        assert path == f"{bundle_root()}/models/other/model.pt"


def test_a_dry_run_says_what_would_be_trained(tmp_path: Path) -> None:
    """The ids in use with their values, the data, the sizes; nothing is trained, and the run says the same."""
    output = run("train_classifier", tmp_path, images=160, dry_run="true", **{"classifier_def#channels": [8, 16]})
    plan = json.loads(output[output.index("\n{\n") : output.rindex("\n}\n") + 2])
    assert not (tmp_path / "run").exists()
    config = plan["config"]
    assert config["classifier_def"]["channels"] == [8, 16] and config["budget"]["images"] == 160
    assert config["optimizer"]["lr"] == 0.0003 and config["train"]["network"]["network"] == "@classifier_def"
    # what only inference uses is not there
    assert not {"report", "postprocessing", "evaluator", "student", "publish"} & config.keys()
    training = plan["data"]["training"]
    assert training["slices_by_class"] == {"0": 4, "1": 9}
    assert training["slices_by_subject"] == {"plain": 4, "flipped": 4, "oblique": 5}
    assert plan["data"]["validation"]["slices"] == training["slices"] == 13
    sizes = plan["sizes"]
    assert (sizes["images_a_step"], sizes["steps"], sizes["epochs"]) == (16, 10, 1) and sizes["parameters"] > 1000
    run("train_classifier", tmp_path, images=160, **{"classifier_def#channels": [8, 16]})
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["settings"] == plan["settings"] and written["sizes"] == sizes and written["data"] == plan["data"]
    assert written["config"].keys() == config.keys() and written["config"]["budget"] == config["budget"]


@pytest.mark.skipif(not compilation_pays("cpu", 10**6), reason="there is no C++ compiler, or no Python.h")
def test_a_compiled_training_writes_the_same_kind_of_weights(tmp_path: Path) -> None:
    """Its loss falls from that of an untrained network, about 1, and the weights have the names of one that is not compiled."""
    run("train", tmp_path, images=240, compile=True, learning_rate=0.01)
    [loss] = re.findall(r"240 of 240 images: loss ([\d.]+)", (tmp_path / "run" / "train.log").read_text())
    assert float(loss) < 0.95
    network = declared("network_def", **TINY)
    network.load_state_dict(torch.load(tmp_path / "run" / "model.pt", weights_only=True))


def test_classifier_is_validated_at_several_noise_levels(tmp_path: Path) -> None:
    """One that calls every slice diseased, and learns nothing: right in 9 of the 13 slices, and it ranks none above another."""
    network = declared("classifier_def", **TINY)
    state = {name: torch.zeros_like(values) for name, values in network.state_dict().items()}
    state[[name for name in state if name.endswith("bias")][-1]][1] = 1.0
    torch.save(state, tmp_path / "given.pt")
    output = run("train_classifier", tmp_path, initial_weights=str(tmp_path / "given.pt"), learning_rate=0.0)
    for level in (0, 250, 500, 750):
        assert re.findall(rf"val_auroc_t{level}: ([\d.]+)", output) == ["0.5000"]
        assert re.findall(rf"val_accuracy_t{level}: ([\d.]+)", output) == ["0.6923"]
    assert float(re.findall(r"val_loss: ([\d.]+)", output)[0]) == pytest.approx(
        (9 * math.log(1 + math.exp(-1)) + 4 * math.log(1 + math.e)) / 13, abs=1e-3
    )
    assert re.search(r"images/s, [\d.]+ % of the time waiting for data", output)
    assert (tmp_path / "run" / "model.pt").exists()
    assert list((tmp_path / "run").glob("events.out.tfevents*"))


def test_a_student_learns_from_the_diffusion_model(tmp_path: Path) -> None:
    """The student's weights are written, fit inference.json's student, and say which networks taught it."""
    output = run("train_student", tmp_path, **write_teacher(tmp_path))
    assert re.search(r"lesion is what is above \d\.\d+ in the maps", output)
    assert re.search(r"val_loss: \d", output)
    student = declared("student_def", **TINY)
    student.load_state_dict(torch.load(tmp_path / "run" / "model.pt", weights_only=True))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["teacher"].keys() == {
        "network",
        "classifier",
    }


def test_a_gradient_scaler_goes_on_as_if_the_training_had_not_been_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI's, of float16, which it makes when a training starts."""

    class Scaler(torch.amp.GradScaler):  # a GPU's, on the CPU
        def __init__(self) -> None:
            super().__init__("cpu", init_scale=4.0, growth_interval=2)

    monkeypatch.setattr("torch.cuda.amp.GradScaler", Scaler)
    write_datalist(tmp_path)
    budget = {"max_images": 48, "epoch_images": 12, "batch_size": 4, "val_interval": 5, "compile": False}
    scales: dict[str, list[float]] = {"whole": [], "stopped": []}
    for run, stops in (("whole", [0]), ("stopped", [6, 0])):
        for stop in stops:
            given = {**budget, "run_dir": str(tmp_path / run), "train#trainer#amp": True}
            parser = parsed("train", tmp_path, precision="bfloat16", num_workers=0, **given)
            trainer, checkpoint = (parser.get_parsed_content(name) for name in ("train#trainer", "checkpoint"))
            checkpoint.every_seconds = float("inf")
            checkpoint.open()

            def look(engine: Engine, run: str = run, stop: int = stop, checkpoint: Any = checkpoint) -> None:
                scales[run].append(engine.scaler.get_scale())
                if engine.state.iteration == stop:
                    checkpoint._save(engine)
                    engine.terminate()

            trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
            try:
                trainer.run()
            finally:
                set_determinism(None)
    assert scales["whole"] == scales["stopped"] and scales["whole"][-1] > scales["whole"][5] > 4
    state = torch.load(tmp_path / "stopped" / "last.pt", weights_only=True)
    assert state["scaler"]["scale"] == scales["whole"][-1]
