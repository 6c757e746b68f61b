"""A training's weights into the bundle, and which of the bundle's weights belong together."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import monai.bundle.__main__ as command_line
import pytest
import torch

from machine import files_up_to
from scripts.bundle import bundle_root, declared
from scripts.command import command_config
from scripts.errors import message_of
from scripts.files import write
from scripts.learning.publishing import halved, publish, put
from scripts.manifest import check_manifest, write_manifest
from scripts.running.report import Report
from scripts.weights import MANIFEST, calibrate, in_use, load_weights, not_together, read_manifest, weights_digest
from training_data import OVERLAYS, files, parsed


def publishing(bundle: Path, config: str, run_dir: Path) -> None:
    """What `python -m monai.bundle run publish` does."""
    parsed(config, bundle, bundle_root=str(bundle), run_dir=str(run_dir)).get_parsed_content("publish")


def network_of(config: str, folder: Path) -> torch.nn.Module:
    return parsed(config, folder).get_parsed_content("train#network#network")


def test_publishing_keeps_the_old_weights_and_says_what_belongs_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, models, old = tmp_path, tmp_path / "models", {}
    digests, new = {}, {}
    names = {"train": "model", "train_classifier": "classifier", "train_student": "student"}
    keys = {"train": "network", "train_classifier": "classifier", "train_student": "student"}
    models.mkdir()
    for config, name in names.items():
        for folder, digest in ((models, digests), (tmp_path / config, new)):
            folder.mkdir(exist_ok=True)
            network = network_of(config, tmp_path)
            next(network.parameters()).data += len(digest) + (folder != models)
            torch.save(network.state_dict(), folder / (f"{name}.pt" if folder == models else "model.pt"))
            network.load_state_dict(halved(network.state_dict()))
            digest[keys[config]] = weights_digest(network)
        old[name] = (models / f"{name}.pt").read_bytes()
        teacher = {"teacher": {k: new[k] for k in ("network", "classifier")}} if name == "student" else {}
        (tmp_path / config / "run.json").write_text(json.dumps({"settings": teacher}))
    manifest = models / "weights.json"
    manifest.write_text(json.dumps({"student": digests, "calibration": {"values": {"threshold": 0.3}, **digests}}))
    report = Report([], str(tmp_path / "out"), {"threshold": 0.3}, {}, {}, manifest=str(manifest))
    assert not_together(manifest, digests, {"threshold": 0.3}) == report.warnings == []
    write_manifest(bundle)
    with pytest.raises(SystemExit, match="model.pt: no weights there"):
        publishing(bundle, "train", tmp_path / "nowhere")
    publishing(bundle, "train", tmp_path / "train")
    run, there = (torch.load(folder / "model.pt") for folder in (tmp_path / "train", models))
    assert run.keys() == there.keys() and all(torch.equal(there[name], run[name].half()) for name in run)
    assert weights_digest(load_weights(network_of("train", tmp_path), str(models / "model.pt"))) == new["network"]
    [kept] = models.glob("model-*Z.pt")
    assert kept.read_bytes() == old["model"] and kept.name in capsys.readouterr().out
    chosen = "The threshold was chosen for other networks than those in use."
    learned = "The student learned from other networks than those in use."
    mixed = digests | {"network": new["network"]}
    assert not_together(manifest, mixed, {"threshold": 0.3}) == [learned, chosen]
    assert not_together(manifest, mixed, {"threshold": 0.31}) == [learned]
    assert not_together(manifest, {k: v for k, v in mixed.items() if k != "student"}, {"threshold": 0.31}) == []
    publishing(bundle, "train_classifier", tmp_path / "train_classifier")
    assert "run with --student '$None' until there is a student" in capsys.readouterr().out
    publishing(bundle, "train_student", tmp_path / "train_student")
    assert "choose one anew" in capsys.readouterr().out
    assert (
        not_together(manifest, new, {"threshold": 0.3}) == [chosen]
        and not_together(manifest, new, {"threshold": 0.31}) == []
    )
    assert {p.stem for p in models.glob("*.pt") if "-2" not in p.stem} == set(old) and not list(models.glob("*.part"))
    assert check_manifest(bundle)  # the hashes are those of what was published


def test_a_student_is_one_whatever_its_file_is_called(tmp_path: Path) -> None:
    """In a released zip it is ``model.pt``."""
    network = network_of("train_student", tmp_path)
    (tmp_path / "run").mkdir()
    torch.save(network.state_dict(), tmp_path / "run" / "model.pt")
    teacher = {"network": "1", "classifier": "2"}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"settings": {"teacher": teacher}}))
    target = tmp_path / "models" / "model.pt"
    publish(str(tmp_path / "run"), str(target), network)
    student = {**teacher, "student": weights_digest(network)}
    assert read_manifest(target.with_name(MANIFEST)) == {"student": student}
    assert not_together(target.with_name(MANIFEST), student | {"network": "3"}, {"threshold": 0.3}) == [
        "The student learned from other networks than those in use."
    ]


def test_what_is_calibrated_while_a_student_is_published_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, manifest = network_of("train_student", tmp_path), tmp_path / "models" / MANIFEST
    (tmp_path / "run").mkdir()
    torch.save(network.state_dict(), tmp_path / "run" / "model.pt")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"settings": {"teacher": {"network": "1"}}}))
    with ThreadPoolExecutor(1) as pool:
        calibrating = []

        def interrupted(path: Path, content: bytes) -> None:
            calibrating.append(pool.submit(calibrate, manifest, {"temperature": 2.0}, {"classifier": "2"}))
            wait(calibrating, timeout=0.3)
            write(path, content)

        monkeypatch.setattr("scripts.learning.publishing.write", interrupted)
        publish(str(tmp_path / "run"), str(manifest.with_name("student.pt")), network)
        assert calibrating[0].result() is not None
    assert read_manifest(manifest) == {
        "student": {"network": "1", "student": weights_digest(network)},
        "calibration": {"values": {"temperature": 2.0}, "classifier": "2"},
    }


@pytest.mark.parametrize("config", sorted(OVERLAYS))
@pytest.mark.parametrize(
    ("trained", "options", "said"),
    [
        ({}, {}, None),
        ({"device": "cuda", "precision": "float16", "allow_any_image": "True", "bundle_root": "copy"}, {}, None),
        ({"learning_rate": 0.5, "max_norm": 3}, {}, None),
        # what publish is told, inference is not
        ({"pixel_size": 1.2}, {"pixel_size": 1.2}, "trained with pixel_size 1.2, not 2.4 as in"),
        (
            {"pixel_size": 1.2, "highest_intensity": 8, "scheduler#beta_end": 0.05},
            {},
            "trained with highest_intensity 8, not 2.0; pixel_size 1.2, not 2.4; scheduler#beta_end 0.05, not 0.02 as in",
        ),
        ({"spatial_size": "[64,88]"}, {}, "trained with spatial_size [64, 88], not [72, 88] as in"),
    ],
    ids=str,
)
def test_weights_of_another_preprocessing_or_schedule_are_published_with_a_warning(
    config: str,
    trained: dict[str, Any],
    options: dict[str, Any],
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command line of each: that of the training, which its record holds, and that of ``publish``."""

    def given(what: str, options: dict[str, Any]) -> None:
        typed = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        line = [command_line.__file__, "run", what, "--config_file", repr(files(config)), *typed]
        monkeypatch.setattr("sys.argv", line)

    network, run = torch.nn.Linear(1, 1), tmp_path / "run"
    run.mkdir()
    torch.save(network.state_dict(), run / "model.pt")
    given("training", trained)
    (run / "run.json").write_text(json.dumps({"settings": {}, "config": command_config()}))
    given("publish", {"run_dir": run, **options})
    publish(str(run), str(tmp_path / "models" / "model.pt"), network)
    printed = capsys.readouterr().out
    assert (tmp_path / "models" / "model.pt").is_file()
    assert "WARNING" not in printed if said is None else f"{run}/run.json: the weights were {said}" in printed


@pytest.mark.parametrize("model", ["chest", "paper", "own"])
def test_weights_of_a_config_of_their_own_are_published_without_a_warning(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named over the bundle's; without it, `publish` says what it had."""
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"pixel_size": 1.2, "scheduler#beta_end": 0.05}))
    overlay = str(own) if model == "own" else files("train", None, model)[-1]
    network, run = torch.nn.Linear(1, 1), tmp_path / "run"
    run.mkdir()
    torch.save(network.state_dict(), run / "model.pt")
    for configs, warns in (([*files("train"), overlay], False), (files("train"), True)):
        line = [command_line.__file__, "run", "publish", "--config_file", repr(configs)]
        monkeypatch.setattr("sys.argv", line)
        if not warns:
            (run / "run.json").write_text(json.dumps({"settings": {}, "config": command_config()}))
        publish(str(run), str(tmp_path / "models" / "model.pt"), network)
        assert ("WARNING" in capsys.readouterr().out) is warns


def test_a_full_disk_leaves_no_half_of_the_weights_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights, the copy of the old ones, and what is calibrated."""
    state, models = {"weight": torch.zeros(4)}, tmp_path / "models"
    full = OSError(errno.ENOSPC, "No space left on device")

    def half(*paths: Path) -> None:
        paths[-1].touch()
        raise full

    put(state, models / "model.pt")
    calibrate(models / MANIFEST, {"threshold": 0.3}, {})
    before = {path: path.read_bytes() for path in models.iterdir()}
    said = "can't be written \\(No space left on device\\); free some space."
    monkeypatch.setattr("shutil.copy2", half)
    with pytest.raises(SystemExit, match=f"model.pt: {said}"):
        put(state, models / "model.pt")
    with pytest.raises(ValueError, match=f"weights.json: {said}"):
        calibrate(models / MANIFEST, {"threshold": 0.4}, {})
    with files_up_to(1000), pytest.raises(SystemExit, match="classifier.pt: can't be written \\(File too large\\)"):
        put({"weight": torch.zeros(4000)}, models / "classifier.pt")
    monkeypatch.undo()
    left = {path: path.read_bytes() for path in models.iterdir() if path.name != ".weights.json.lock"}
    assert left == {path: content for path, content in before.items() if path.name != ".weights.json.lock"}


def test_half_precision_keeps_three_digits_and_what_it_cannot_hold() -> None:
    """Known roundings: 1/3 is 1365/4096 in float16."""
    state = {
        "third": torch.tensor([1 / 3, -65504.0, 2.0**-24]),
        "large": torch.tensor([1 / 3, 65520.0]),
        "count": torch.tensor(70000),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
    }
    half = halved(state)
    assert half["third"].dtype == torch.float16 and half["third"].tolist() == [1365 / 4096, -65504.0, 2.0**-24]
    assert all(half[name] is state[name] for name in ("large", "count", "double"))
    draw = torch.randn(100000, generator=torch.Generator().manual_seed(0))
    error = (halved({"w": draw})["w"].float() - draw).abs()
    assert bool((error <= draw.abs() / 2048 + 2.0**-25).all())


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path) -> None:
    """The folder of a classifier with the config of the diffusion network; nothing is written."""
    (tmp_path / "run").mkdir()
    classifier = parsed("train_classifier", tmp_path).get_parsed_content("classifier_def")
    torch.save(classifier.state_dict(), tmp_path / "run" / "model.pt")
    with pytest.raises(RuntimeError) as error:
        publishing(tmp_path, "train", tmp_path / "run")
    assert (message_of(error.value) or "").startswith(f"{tmp_path}/run/model.pt: its weights don't fit the Diffusion")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("config", sorted(OVERLAYS))
def test_whatever_a_command_runs_checks_its_options_first(config: str, tmp_path: Path) -> None:
    """And with that, says in one line what is wrong."""
    assert [parsed(config, tmp_path)[name][0] for name in ("run", "publish")] == ["@command"] * 2


def test_the_weights_of_the_bundle_belong_together() -> None:
    manifest = Path(bundle_root()) / "models" / MANIFEST
    weights = {n: weights_digest(declared(n, device="cpu")) for n in ("network", "classifier", "student")}
    thresholds = [declared("displayable_configs", *overlays)["threshold"] for overlays in ((), ("preview",))]
    content = json.loads(manifest.read_text())
    values = {"temperature": 1.05559, "threshold": 0.20058, "preview_threshold": 0.192968}
    settings = content["calibration"].pop("settings")
    assert content == {"student": weights, "calibration": {"values": values, **weights}}
    of_steps = {
        "noise_level",
        "guidance_scale",
        "num_inference_steps",
        "num_fixed_point_iterations",
        "guidance_exponent",
    }
    assert settings["threshold"]["noise_level"] == 500
    assert settings["preview_threshold"] == {k: v for k, v in settings["threshold"].items() if k not in of_steps}
    # a request to the app's preview may name what its student has not
    of_preview = {"threshold": thresholds[1], "noise_level": 250, "guidance_scale": 10.0}
    assert not_together(manifest, weights, of_preview) == []
    assert thresholds == [0.20058, 0.192968]
    assert [not_together(manifest, weights, {"threshold": t}) for t in thresholds] == [[], []]
    assert len(not_together(manifest, weights | {"network": "0"}, {"threshold": thresholds[0]})) == 2


@pytest.mark.parametrize("model", [(), ("brats",), ("chest",)])
def test_each_threshold_was_chosen_with_the_settings_of_today(model: tuple[str, ...]) -> None:
    """A config whose settings change needs another threshold."""
    settings = in_use(declared("displayable_configs", *model), declared("report#other_settings", *model))
    threshold = settings.pop("threshold")
    calibration = read_manifest(declared("manifest", *model))["calibration"]
    assert calibration["settings"]["threshold"] == settings and calibration["values"]["threshold"] == threshold
