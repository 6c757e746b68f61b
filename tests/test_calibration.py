"""Thresholds and temperature belong to weights: where they are read, written and warned of, and how they are chosen."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.schedulers import DDIMScheduler

from gaussians import NoisedClassifier, images
from scripts import DISEASED
from scripts.bundle import bundle_root
from scripts.files import write
from scripts.judging.cases import SliceCase
from scripts.judging.probabilities import calibration_error, fitted_temperature, negative_log_likelihood, reliability
from scripts.judging.readings import gated, probabilities
from scripts.method.inferer import StudentInferer
from scripts.weights import calibrate, calibrated, not_together, read_manifest

CONFIGS = Path(bundle_root()) / "configs"


def test_the_temperature_divides_the_logits() -> None:
    """p(diseased) is the sigmoid of the difference of the two logits, divided by the temperature."""
    x = images(DISEASED, 8) * 0.3
    plain, warm = (StudentInferer(NoisedClassifier(), temperature=t) for t in (1.0, 4.0))
    difference = plain.logits(x).diff(dim=1)[:, 0]
    torch.testing.assert_close(plain.probability(x), difference.sigmoid())
    torch.testing.assert_close(warm.probability(x), (difference / 4).sigmoid())
    with pytest.raises(ValueError, match="temperature must be from 0.01 to 100, got 0"):
        StudentInferer(NoisedClassifier(), temperature=0)


class MeanAndLevel(torch.nn.Module):
    """Logits 0, and the mean of the slice plus the timestep."""

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros(len(x)), x.mean(dim=(1, 2, 3)) + timesteps], dim=1)


def test_p_is_read_at_several_noise_levels() -> None:
    """The logits' mean, with a noise that is the same for every slice, whatever it is in a batch with."""
    scheduler = DDIMScheduler(1000, "linear_beta", beta_start=1e-4, beta_end=0.02)
    x = torch.full((5, 1, 64, 64), 0.5)
    x[3] = -0.5
    inferer = StudentInferer(MeanAndLevel(), classified_at=[0, 250], scheduler=scheduler)
    logits = inferer.logits(x)[:, 1]
    kept = [float(scheduler.alphas_cumprod[t]) ** 0.5 for t in (0, 250)]
    assert kept == pytest.approx([0.99995, 0.7221], abs=1e-4)
    assert logits[0].item() == pytest.approx(125 + 0.5 * sum(kept) / 2, abs=0.02)
    assert (logits[0] - logits[3]).item() == pytest.approx(sum(kept) / 2, abs=1e-4)
    assert torch.equal(logits[:1], inferer.logits(x[:1])[:, 1]) and logits[0] == logits[4]
    assert StudentInferer(MeanAndLevel()).logits(x)[0, 1] == 0.5
    with pytest.raises(ValueError, match="classified_at needs a scheduler"):
        StudentInferer(MeanAndLevel(), classified_at=[0])
    with pytest.raises(ValueError, match="classified_at must be .* got 1000"):
        StudentInferer(MeanAndLevel(), classified_at=[1000], scheduler=scheduler)


def test_numbers_are_read_from_the_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "weights.json"
    assert calibrated(manifest, "temperature", 1.0) == 1.0
    with pytest.raises(
        ValueError, match="holds no threshold, and there are no weights beside it; train the model first"
    ):
        calibrated(manifest, "threshold")
    (tmp_path / "model.pt").touch()
    with pytest.raises(ValueError, match="weights.json: holds no threshold; run the config calibrate.json"):
        calibrated(manifest, "threshold")
    manifest.write_text('{"calibration": {"values": {"threshold": 0.2, "temperature": "hot"}}}')
    assert calibrated(manifest, "threshold") == 0.2
    with pytest.raises(ValueError, match="its temperature must be a number, got 'hot'"):
        calibrated(manifest, "temperature", 1.0)


def test_numbers_of_the_same_weights_stay_and_others_go(tmp_path: Path) -> None:
    """The preview's threshold alone may be chosen anew; with other weights, what was chosen for the old ones goes."""
    manifest = tmp_path / "weights.json"
    weights = {"network": "n", "classifier": "c", "student": "s"}
    manifest.write_text(json.dumps({"student": weights}))
    assert calibrate(manifest, {"threshold": 0.2, "preview_threshold": 0.4, "temperature": 2.0}, weights) is not None
    kept = calibrate(manifest, {"preview_threshold": 0.3}, {"network": "s", "classifier": "c", "student": "s"})
    values = {"threshold": 0.2, "preview_threshold": 0.3, "temperature": 2.0}
    assert read_manifest(manifest) == {"student": weights, "calibration": {"values": values, **weights}}
    assert read_manifest(tmp_path / str(kept))["calibration"]["values"]["preview_threshold"] == 0.4
    assert (
        not_together(manifest, weights, {"threshold": 0.2}) == not_together(manifest, weights, {"threshold": 0.3}) == []
    )
    other = {"network": "n", "classifier": "d"}
    chosen = "The threshold was chosen for other networks than those in use."
    warm = "The temperature was chosen for another classifier than the one in use."
    assert not_together(manifest, other, {"threshold": 0.2}) == [chosen, warm]
    assert not_together(manifest, other, {"threshold": 2.0}) == [warm]  # of a temperature's value, but a threshold
    # of the map without the student; its threshold is another's
    without = {k: v for k, v in weights.items() if k != "student"}
    assert not_together(manifest, without, {"threshold": 0.2}) == [chosen]
    calibrate(manifest, {"threshold": 0.15}, without)
    assert read_manifest(manifest)["calibration"] == {"values": {"threshold": 0.15}, **without}
    assert not_together(manifest, without, {"threshold": 0.15}) == [] and not_together(
        manifest, weights, {"threshold": 0.15}
    ) == [chosen]
    calibrate(manifest, {"threshold": 0.1}, other)
    assert read_manifest(manifest)["calibration"] == {"values": {"threshold": 0.1}, **other}


def test_a_threshold_of_other_settings_is_said(tmp_path: Path) -> None:
    """Those that it was chosen with stay beside it, as long as it does."""
    manifest = tmp_path / "weights.json"
    weights = {"network": "n", "classifier": "c", "student": "s"}
    settings = {"noise_level": 250, "guidance_scale": 6.0, "target_class": 0}
    both = {"threshold": settings, "preview_threshold": settings}
    calibrate(manifest, {"threshold": 0.2, "preview_threshold": 0.4}, weights, both)
    own = {"median_size": 3, "polarity": ["ignored", "both"]}
    of_preview = {"network": "s", "classifier": "c", "student": "s"}
    calibrate(manifest, {"preview_threshold": 0.3}, of_preview, {"preview_threshold": own})
    chosen_with = {"threshold": settings, "preview_threshold": own}
    assert read_manifest(manifest)["calibration"]["settings"] == chosen_with
    assert not_together(manifest, weights, {"threshold": 0.2, "noise_level": 250, "guidance_scale": 6}) == []
    other = {"threshold": 0.2, "noise_level": 500, "guidance_scale": 2.5, "guidance_exponent": 0}
    said = ["The threshold was chosen with noise_level 250, not 500, guidance_scale 6, not 2.5."]
    assert not_together(manifest, weights, other) == said
    # whoever gives a threshold isn't told, and the preview's is another one
    assert not_together(manifest, weights, other | {"threshold": 0.25}) == []
    assert not_together(manifest, weights, {"threshold": 0.3, "temperature": 1.0, **own}) == []
    said = ["The threshold was chosen with median_size 3, not 7, polarity ignored/both, not both."]
    assert not_together(manifest, weights, {"threshold": 0.3, "median_size": 7, "polarity": "both"}) == said
    calibrate(manifest, {"threshold": 0.1}, weights | {"network": "m"})
    assert "settings" not in read_manifest(manifest)["calibration"]


def test_of_two_calibrations_at_once_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(path: Path, content: bytes) -> None:
        time.sleep(0.05)
        write(path, content)

    monkeypatch.setattr("scripts.weights.write", slowly)
    manifest = tmp_path / "weights.json"
    weights = {"network": "n", "classifier": "c", "student": "s"}
    calibrate(manifest, {"threshold": 0.2}, weights)
    chosen = [{"temperature": 2.0}, {"preview_threshold": 0.3}]
    with ThreadPoolExecutor(len(chosen)) as pool:
        list(pool.map(lambda values: calibrate(manifest, values, weights), chosen))
    values = {"threshold": 0.2, "temperature": 2.0, "preview_threshold": 0.3}
    assert read_manifest(manifest)["calibration"] == {"values": values, **weights}


def test_configs_read_the_numbers_and_an_option_replaces_them(tmp_path: Path) -> None:
    """Resolved they are plain numbers, as MONAI Label wants its options."""
    values = {"threshold": 0.2, "preview_threshold": 0.4, "temperature": 2.0}
    (tmp_path / "weights.json").write_text(json.dumps({"calibration": {"values": values}}))
    for overlay, expected in (([], 0.2), ([CONFIGS / "preview.json"], 0.4)):
        parser = ConfigParser()
        parser.read_config([CONFIGS / "inference.json", *overlay])
        parser["models_dir"] = str(tmp_path)
        assert parser.get_parsed_content("displayable_configs")["threshold"] == expected
        assert parser.get_parsed_content("temperature") == 2.0
        parser["displayable_configs#threshold"] = 0.7
        assert parser.get_parsed_content("displayable_configs", lazy=False)["threshold"] == 0.7


def test_the_temperature_of_known_logits_is_found() -> None:
    """Labels are drawn with the probability that the logits have at a temperature of 2.5; two slices would say nothing."""
    draw = torch.Generator().manual_seed(0)
    ones = np.ones((2, 2), bool)
    cases, logits = [], []
    for volume in range(3000):
        # of one slice each: neighbours average probabilities, not logits
        logit = 5 * torch.randn(1, generator=draw)
        label = int(torch.rand(1, generator=draw) < (logit / 2.5).sigmoid())
        logits.append((logit, None))
        cases.append(SliceCase(f"p{volume}", 0, np.zeros((2, 2)), ones, None, label))
    found = fitted_temperature(cases, logits)
    assert found == pytest.approx(2.5, rel=0.05)
    p, labels = torch.cat([logit for logit, _ in logits]), torch.tensor([c.diseased for c in cases])
    losses = [negative_log_likelihood((p / t).sigmoid(), labels) for t in (found * 0.9, found, found * 1.1)]
    assert losses[1] == min(losses)
    errors = [calibration_error((p / t).sigmoid().tolist(), labels.tolist()) for t in (1.0, found)]
    assert errors[0] > 0.1 > 0.03 > errors[1]
    separable = [SliceCase("a", 0, np.zeros((2, 2)), ones, None, int(v > 0)) for v in (-1, 1)]
    assert fitted_temperature([separable[0]], [(torch.tensor([-1.0]), None)]) is None
    separable[1].volume = "b"
    assert fitted_temperature(separable, [(torch.tensor([v]), None) for v in (-1.0, 1.0)]) is None


def test_the_reliability_curve_by_hand() -> None:
    curve = reliability([0.9, 0.89, 0.01, 1.0], [1, 0, 0, 1])
    assert [tuple(b) for b in curve] == [(1, 0.01, 0), (2, pytest.approx(0.895), 0.5), (1, 1.0, 1)]
    assert [b.name for b in curve] == ["0.00-0.07", "0.87-0.93", "0.93-1.00"]


def test_the_calibration_error_by_hand() -> None:
    """Three slices at 0.9 of which two are diseased, one at 0.1 that is: (3 |0.9 - 2/3| + |0.1 - 1|) / 4."""
    assert calibration_error([0.9, 0.9, 0.9, 0.1], [1, 1, 0, 1]) == pytest.approx((3 * (0.9 - 2 / 3) + 0.9) / 4)
    assert calibration_error([0.0, 1.0], [0, 1]) == 0


def test_neighbours_share_probabilities_and_the_gate_follows() -> None:
    p = probabilities(torch.tensor([torch.nan, 0.0, 2.0]), 2.0)
    low, high = 0.5, float(torch.tensor(1.0).sigmoid())
    assert p.isnan().tolist() == [True, False, False]
    torch.testing.assert_close(p[1:], torch.tensor([(2 * low + high) / 3, (low + 2 * high) / 3]))
    method = "counterfactual alone, gated by p(diseased)"
    a, ones = np.full((2, 2), 0.8, np.float32), np.ones((2, 2), bool)
    case = gated(SliceCase("a", 0, a, ones, None, 1, {method: a, "b": a}, {method: 0.8, "b": 0.8}), 0.25)
    assert case.scores == pytest.approx({method: 0.8 * 0.5 * 0.25, "b": 0.8, "p(diseased)": 0.25})
    assert case.maps[method] == pytest.approx(0.4 * ones) and case.maps["b"] is a
