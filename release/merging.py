"""A model's configs as one bundle has them: what the source tree lays over each other is one file.

``inference.json`` and ``train.json`` stand alone, as MONAI Label and the zoo's tools read one file. What goes over them stays
an overlay: the trainings of the other networks, preview, evaluation, calibration, several GPUs.

What the zip's ``network_def`` is: the zoo's tools load ``models/model.pt`` into it, give it an image alone, and export it to
TorchScript. In the source tree it is the diffusion network, which gives noise and wants a timestep too. In a zip that is
``diffusion_def``, and ``network_def`` is

- of a model with a student, that one, image -> map and what heals, and ``model.pt`` holds its weights;
- of another, ``counterfactual_def``, image -> healthy counterpart, which is the bundle's own code. The trainings keep
  ``network_def`` as it is, so that `monai.bundle.load`, which reads ``train.json`` by default and can't import that code,
  gives the diffusion network. ``model.pt`` holds its weights.

The ids ``network``, ``classifier`` and ``student`` name the same networks as in the source tree, so a run is the same.

MONAI Label's training task decides three things in ``train.json``. It shows the ``displayable_configs`` as options, and
resolves them before it can import code of the bundle; those of ``inference.json`` are none of a training's, so the trainings
have them as ``settings``. Its own option ``run_id`` is empty, for which MONAI evaluates the whole config; so it is ``run``. And
it loads the chosen weights into ``network``, so that is what is trained; a teacher's is the diffusion network as elsewhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from .models import Model

DIFFUSION = {"network_def": "diffusion_def"}
WITH_STUDENT = {**DIFFUSION, "student_def": "network_def"}
WITHOUT_STUDENT = {**DIFFUSION, "counterfactual_def": "network_def"}
OF_TRAINING = {"displayable_configs": "settings"}
"""Ids in a zip by those in the source tree."""
FILES = {"model.pt": "diffusion.pt", "student.pt": "model.pt"}
"""The names in a zip of a model with a student, by those in the source tree."""
OF_A_STUDENT = ("preview", "train_student")


def renamed(text: str, names: dict[str, str]) -> str:
    """A text with whole names replaced, all at once."""
    return re.sub(rf"(?<![\w.])({'|'.join(map(re.escape, names))})(?!\w)", lambda found: names[found[1]], text)


def overlays(model: Model) -> list[Path]:
    """The configs that go over a model's: those of all models, and its own such as ``train_chest.json``."""
    folder = model.bundle / "configs"
    all_configs = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    models = {name for name, config in all_configs.items() if "model" in config}
    others = models - {model.overlay}
    return [
        folder / f"{name}.json"
        for name in all_configs
        if name not in {"metadata", "train", *models}
        and others.isdisjoint(name.split("_"))
        and (model.has_student or name not in OF_A_STUDENT)
    ]


def configs(model: Model) -> dict[str, dict[str, Any]]:
    """The configs of a model's zip by their names, ``metadata.json`` not among them."""
    inference = json.loads(json.dumps(model.config))
    # the weights lie in models, where MONAI's tools look
    inference["models_dir"].pop("folder", None)
    # MONAI Label calls the inferer with network_def
    inference["inferer"]["network"] = "@network"
    train = json.loads((model.bundle / "configs" / "train.json").read_text("utf-8"))
    found = {"inference": inference, "train": merged(inference, train)}
    found |= {path.stem: json.loads(path.read_text("utf-8")) for path in overlays(model)}
    zipped = {name: json.loads(renamed(json.dumps(config), names(model, name))) for name, config in found.items()}
    trained = zipped["train"]["network"]
    zipped["train"] |= {"network": "@train#network", "displayable_configs": {"run_id": "run"}}
    for config in zipped.values():
        if "teacher" in config:
            config["network"] = trained
    return zipped


def names(model: Model, config: str) -> dict[str, str]:
    """What is called otherwise in a config of a model's zip than in the source tree."""
    of_training = OF_TRAINING if "train" in config else {}
    if model.has_student:
        return WITH_STUDENT | {f"/{old}": f"/{new}" for old, new in FILES.items()} | of_training
    return of_training or WITHOUT_STUDENT


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Configs one over the other, as MONAI merges files."""
    parser = ConfigParser({})
    for part in json.loads(json.dumps(parts)):
        for key, value in part.items():
            merge_kv(parser, key, value)
    return dict(parser.get())


def weights(model: Model) -> dict[str, Path]:
    """The files of a zip's ``models`` by their names: the weights, and what was chosen for them."""
    found = {path.name: path for path in (*model.weights.values(), model.models_dir / "weights.json")}
    for path in overlays(model):  # of a network that an overlay adds, if they are there
        overlay = json.loads(path.read_text("utf-8"))
        if isinstance(overlay.get("network"), dict):
            config = ConfigParser({**merged(model.config, overlay), "bundle_root": str(model.bundle)})
            added = [Path(config.get_parsed_content(id_)) for id_ in ("network#path", "manifest")]
            found |= {file.name: file for file in added if file.is_file()}
    return {FILES.get(name, name) if model.has_student else name: path for name, path in found.items()}


def dumped(config: dict[str, Any]) -> str:
    """JSON for people: four spaces, and lists of plain values and small groups on one line, as the source tree has them."""
    # MONAI takes both signs between the parts of an id, and gives the other one back
    return _dumped(config, 0).replace("::", "#") + "\n"


def _dumped(node: Any, indent: int) -> str:
    flat = json.dumps(node, ensure_ascii=False)
    if not isinstance(node, (dict, list)) or not node or (indent and len(flat) + indent <= 110):
        return flat
    inner = " " * (indent + 4)
    if isinstance(node, dict):
        parts = [f"{json.dumps(key)}: {_dumped(value, indent + 4)}" for key, value in node.items()]
        opening, closing = "{}"
    else:
        parts = [_dumped(value, indent + 4) for value in node]
        opening, closing = "[]"
    return f"{opening}\n" + ",\n".join(inner + part for part in parts) + f"\n{' ' * indent}{closing}"
