"""Runs of inference.json on files, as ``monai.bundle run`` makes them, with networks that take milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.bundle import bundle_root

TINY: dict[str, Any] = {
    "network_def#channels": [8, 8],
    "network_def#attention_levels": [False, False],
    "network_def#norm_num_groups": 4,
    "network_def#num_head_channels": 8,
    "classifier_def#channels": [8, 8],
    "classifier_def#attention_levels": [False, False],
    "classifier_def#norm_num_groups": 4,
    "classifier_def#num_head_channels": 8,
    "student_def#features": [4] * 6,
    "displayable_configs#num_inference_steps": 2,
    "num_fixed_point_iterations": 1,
}


def run(weights: dict[str, str], **overrides: Any) -> int:
    """Run inference.json as ``monai.bundle run`` does, with tiny networks; return the exit status."""
    parser = ConfigParser()
    parser.read_config(Path(bundle_root()) / "configs" / "inference.json")
    parser.update({**TINY, "report#manifest": None, **weights, **overrides})
    try:
        parser.get_parsed_content("run")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def summary(out: Path) -> dict[str, dict[str, Any]]:
    """The volumes of a summary by their names."""
    return {v["name"]: v for v in json.loads((out / "summary.json").read_text())["volumes"]}


def visible(folder: Path) -> list[str]:
    """What lies in a folder; hidden is a lock alone."""
    names = sorted(p.name for p in folder.iterdir())
    assert {name for name in names if name.startswith(".")} <= {".summary.lock"}
    return [name for name in names if not name.startswith(".")]


def datalist(folder: Path, items: list[dict[str, Any]]) -> str:
    path = folder / "datalist.json"
    path.write_text(json.dumps([{("subject" if k == "name" else k): v for k, v in i.items()} for i in items]))
    return str(path)
