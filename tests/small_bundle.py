"""A copy of the bundle that runs in milliseconds: tiny networks with random weights, and all that is bright is foreground."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.bundle import bundle_root
from tiny_run import TINY
from training_data import fill_zeros

BRIGHT = '''"""All that is bright is foreground."""

from monai.transforms import MapTransform

from scripts.images.geometry import on_grid


class Brightd(MapTransform):
    def __call__(self, data):
        d = dict(data)
        image = d[self.keys[0]]
        d["foreground"] = on_grid((image.as_tensor()[:1] > 0).byte(), image.affine, image)
        return d
'''


def write_small_bundle(folder: Path, channels: tuple[str, ...] = ("FLAIR",)) -> Path:
    """Make the copy in `folder`; return it."""
    bundle = folder / "bundle"
    source = Path(bundle_root())
    shutil.copytree(source / "scripts", bundle / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(source / "configs", bundle / "configs")
    (bundle / "bright.py").write_text(BRIGHT)
    for overlay in (bundle / "configs").glob("*.json"):  # its other models are not made small
        if overlay.name != "inference.json" and "model" in json.loads(overlay.read_text()):
            overlay.unlink()
    path = bundle / "configs" / "inference.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["num_channels"] = len(channels)
    config["sequences"] = list(channels)
    for name, values in TINY.items():
        node = config
        *parents, last = name.split("#")
        for parent in parents:
            node = node[parent]
        node[last] = values
    config["displayable_configs"] |= {"num_inference_steps": 2, "threshold": 0.05}
    config["foreground"] = {"_target_": "bright.Brightd", "keys": "image"}
    path.write_text(json.dumps(config))
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["network_data_format"]["inputs"]["image"] |= {
        "num_channels": len(channels),
        "channel_def": {str(n): channel for n, channel in enumerate(channels)},
    }
    path.write_text(json.dumps(metadata))
    path = bundle / "configs" / "preview.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"displayable_configs": {"threshold": 0.436}}))
    torch.manual_seed(0)
    (bundle / "models").mkdir()
    for name, definition in (("model", "network_def"), ("classifier", "classifier_def"), ("student", "student_def")):
        network = fill_zeros(ConfigParser(config).get_parsed_content(definition))
        if name == "student":  # sees and heals next to nothing, so that the counterfactual shows
            torch.nn.init.constant_(network.final_conv.bias[:1], -5.0)
            torch.nn.init.constant_(network.final_conv.bias[1:], 0.0)
            network.final_conv.weight.data[1:] *= 0.01
        torch.save(network.state_dict(), bundle / "models" / f"{name}.pt")
    return bundle
