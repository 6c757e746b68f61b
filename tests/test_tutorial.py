"""docs/tutorial.ipynb runs from input to figure, and finds what the cards say of the samples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from test_readme import anchors

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTEBOOK = DOCS / "tutorial.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
FIGURES = 5


def test_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All cells, in order, in a kernel of this environment; the numbers hold in float32 too."""
    import nbformat
    from nbclient import NotebookClient

    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):  # nobody's own settings
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(DOCS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    text = "".join(output.get("text", "") for output in outputs)
    card = " ".join((DOCS.parent / "bundle" / "docs" / "README.md").read_text("utf-8").split())
    [said] = re.findall(r"the default marks ([\d.]+) ml, the student ([\d.]+) ml", card)
    marked = [float(number) for number in re.findall(r"marked ([\d.]+) ml", text)]
    assert marked == pytest.approx([float(number) for number in said], abs=0.5)
    ends = {
        name: float(p) for name, p in re.findall(r"^((?:not )?guided): p\(healthy\) at the end ([\d.]+)$", text, re.M)
    }
    assert ends["not guided"] < 0.1 and ends["guided"] > 0.8
    [dice] = re.findall(r"Dice between the two masks: ([\d.]+)", text)
    [effusion] = re.findall(r"p\(effusion\) ([\d.]+)", text)
    assert float(dice) > 0.9 and float(effusion) == pytest.approx(0.56, abs=0.02)


def test_it_is_committed_as_it_was_written() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert sum("plt.subplots" in "".join(cell["source"]) for cell in code) == FIGURES
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_its_links_lead_somewhere() -> None:
    text = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    assert "not for clinical use" in text
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        assert (DOCS / name).is_file() and (not anchor or anchor in anchors(DOCS / name)), target
