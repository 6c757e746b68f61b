"""What a student learns from: labels from the maps of counterfactuals, made once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gaussians import NoisedClassifier, exact
from scripts.learning.pseudo_labels import PseudoLabels, Teacher, filled
from training_data import forked


class FakeSlices:
    """Eight slices of 4 x 4, every second one diseased: brain at 0, and in the diseased a bright square, some brighter.

    Patient B's squares are faint, of an eighth of the brightness.
    """

    digest = "fake"
    labels = [0, 1] * 4
    subjects = ["A"] * 6 + ["B"] * 2

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = torch.zeros(1, 4, 4)
        image[0, 0] = -1
        if self.labels[i]:
            image[0, 2:, 2:] = (0.5 + 0.05 * i) * (1 if self.subjects[i] == "A" else 0.125)
            image[0, 1, 1] = 0.2 if self.subjects[i] == "A" else 0.02
        return {"image": image, "label": self.labels[i]}

    def image(self, i: int) -> torch.Tensor:
        image: torch.Tensor = self[i]["image"]
        return image

    def foreground(self, i: int) -> torch.Tensor:
        return self.image(i) > -1


def healed(x: torch.Tensor, foreground: torch.Tensor, network: Any) -> dict[str, torch.Tensor]:
    """A perfect teacher: the foreground is 0 everywhere."""
    return {"counterfactual": torch.where(foreground, 0.0, x), "probability": torch.ones(len(x))}


def pseudo_labels(folder: Path, slices: Any, batch_size: int = 2, dry_run: bool = False) -> PseudoLabels:
    inferer = exact(NoisedClassifier(), guidance_scale=1.0, batch_size=batch_size)
    inferer.slices = healed
    return Teacher(torch.nn.Conv2d(1, 1, 1), inferer, "hyperintense", 1, str(folder), dry_run)(slices).labels


def test_pseudo_labels_are_what_the_teacher_brought_back(tmp_path: Path) -> None:
    """The map is the brightness: Otsu's threshold parts 0.2 from 0.55 and more, and healthy slices are empty.

    Patient B's square at 0.106 is below that of all, 0.2, but above B's own, 0.02, and their geometric mean, 0.06.
    """
    torch.manual_seed(0)
    labels = pseudo_labels(tmp_path, FakeSlices())
    assert 0.19 < labels.threshold < 0.55
    for i in range(8):
        label = labels[i]
        expected = torch.zeros(1, 4, 4)
        if i % 2:
            expected[0, 2:, 2:] = 1 if i < 6 else 2 / 3
            label[0, 1, 1] = 0  # so near a threshold that a rounding decides
        torch.testing.assert_close(label, expected)


def test_a_dry_run_names_the_labels_and_makes_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    planned = pseudo_labels(tmp_path, FakeSlices(), dry_run=True)
    assert not list(tmp_path.iterdir())
    torch.manual_seed(0)
    whole = pseudo_labels(tmp_path, FakeSlices())
    assert whole.digest == planned.digest
    [maps] = tmp_path.glob("maps-*.f16")
    content = maps.read_bytes()
    for stopped in (0, 5, len(content) // 2):
        maps.write_bytes(content[:stopped])
        torch.manual_seed(0)
        planned = pseudo_labels(tmp_path, FakeSlices(), dry_run=True)
        assert planned.digest == whole.digest and planned.threshold != planned.threshold
        assert maps.read_bytes() == content[:stopped]


def test_a_dark_core_belongs_to_its_lesion() -> None:
    """A ring of 0.8 with a gap of 0.5 fills to 0.5, a closed ring to 0.8; what touches the edge is no hole."""
    a = torch.zeros(2, 1, 5, 6)
    a[:, 0, 1:4, 1:4] = 0.8
    a[:, 0, 2, 2] = 0.1
    a[1, 0, 1, 2] = 0.5
    a[:, 0, 0, 5] = 0.3
    expected = a.clone()
    expected[0, 0, 2, 2], expected[1, 0, 2, 2] = 0.8, 0.5
    torch.testing.assert_close(filled(a), expected)


def test_making_pseudo_labels_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    whole = pseudo_labels(tmp_path, FakeSlices())
    files = {path: path.read_bytes() for path in tmp_path.glob("*.f16")}
    assert sorted(path.name.split("-")[0] for path in files) == ["changes", "maps"]
    for path, content in files.items():
        path.write_bytes(content[: 32 * 3 + 5])  # killed within the fourth, so the second batch is made again
    seen: list[int] = []
    monkeypatch.setitem(
        globals(), "healed", lambda x, inside, n, heal=healed: (seen.append(len(x)), heal(x, inside, n))[1]
    )
    torch.manual_seed(0)
    assert pseudo_labels(tmp_path, FakeSlices()).threshold == whole.threshold
    assert seen == [2] and all(path.read_bytes() == content for path, content in files.items())


def test_two_processes_make_the_same_pseudo_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected = pseudo_labels(tmp_path / "alone", FakeSlices())
    seen = tmp_path / "seen"

    def slow(x: torch.Tensor, foreground: torch.Tensor, network: Any, heal: Any = healed) -> dict[str, torch.Tensor]:
        with seen.open("a") as file:
            file.write("batch\n")
        time.sleep(0.3)
        return dict(heal(x, foreground, network))

    def work() -> None:
        torch.set_rng_state(state)
        assert pseudo_labels(tmp_path / "both", FakeSlices()).threshold == expected.threshold

    monkeypatch.setitem(globals(), "healed", slow)
    processes = [forked(work) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert seen.read_text().count("batch") == 2  # of two maps each, by one of the two
    alone, both = ({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.f16")} for name in ("alone", "both"))
    assert both == alone and len(both) == 2


def test_pseudo_labels_need_a_diseased_slice(tmp_path: Path) -> None:
    slices = FakeSlices()
    slices.labels = [0] * 8
    with pytest.raises(ValueError, match="no slice is labelled diseased"):
        pseudo_labels(tmp_path, slices)


def test_a_teacher_that_changes_nothing_teaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "healed", lambda x, inside, network: {"counterfactual": x})
    with pytest.raises(ValueError, match="change nothing in any slice labelled diseased"):
        pseudo_labels(tmp_path, FakeSlices())


def test_labels_are_others_where_other_slices_are_one_patients(tmp_path: Path) -> None:
    """The maps are found again; a training on labels by other thresholds does not go on."""
    two, one, renamed = FakeSlices(), FakeSlices(), FakeSlices()
    one.subjects, renamed.subjects = ["A"] * 8, ["C"] * 6 + ["A"] * 2
    labels = []
    for slices in (two, one, renamed):
        torch.manual_seed(0)  # one teacher
        labels.append(pseudo_labels(tmp_path, slices))
    assert labels[0].digest == labels[2].digest != labels[1].digest
    assert len(list(tmp_path.glob("maps-*.f16"))) == 1
