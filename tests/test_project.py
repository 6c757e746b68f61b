"""The project's files agree with each other: versions, metadata and configs."""

from __future__ import annotations

import ast
import csv
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from release.requirements import CORE
from scripts.running.exporting import OF_ONNX
from test_locks import versions

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / "bundle" / "configs").glob("*.json")}
METADATA = CONFIGS["metadata"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_both_ends_of_each_range_are_tested() -> None:
    """The lowest version is that of the metadata, which `make verify` installs; the highest is locked, for `make test`."""
    lowest = {package: METADATA[key] for package, key in CORE.items()} | METADATA["required_packages_version"]
    highest = versions("cuda") | versions("locked")
    assert {found.name: found.specifier for found in map(Requirement, PROJECT["dependencies"])} == {
        name: SpecifierSet(f"=={low}" if low == highest[name] else f">={low},<={highest[name]}")
        for name, low in lowest.items()
    }
    assert all(Version(low) <= Version(highest[name]) for name, low in lowest.items())


def test_the_metadata_names_what_the_code_imports() -> None:
    """And what MONAI imports for it: einops in attention, pandas for MLflow, tensorboard for its log; torch for ONNX."""
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "bundle" / "scripts").rglob("*.py"))
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom) and node.level == 0}
    found = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    by_module = packages_distributions()
    packages = {canonicalize_name(by_module[name][0]) for name in found} | {"einops", "pandas", "tensorboard", *OF_ONNX}
    required, extra = (METADATA[f"{kind}_packages_version"] for kind in ("required", "extra"))
    assert packages == required.keys() | CORE.keys() | extra.keys()
    extras = PROJECT["optional-dependencies"]
    assert {f"{name}=={version}" for name, version in extra.items()} <= {*extras["dicom"], *extras["dev"]}
    # MONAI would take "optional_packages_version" for the required ones
    parser = ConfigParser()
    parser.read_meta(ROOT / "bundle" / "configs" / "metadata.json")
    assert parser["_meta_#required_packages_version"] == required


def test_version_is_the_same_everywhere() -> None:
    version = METADATA["version"]
    assert version in METADATA["changelog"]
    assert version == PROJECT["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    released = dict(re.findall(r"^## \[(.+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE))
    assert len(released) == changelog.count("\n## ") and list(released) == [*METADATA["changelog"]]
    assert next(iter(released)) == version
    assert sorted(released.values(), reverse=True) == list(released.values())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], str(citation["date-released"])) == (version, released[version])


def test_metadata_describes_the_declared_network() -> None:
    inference, formats = CONFIGS["inference"], METADATA["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert image["num_channels"] == len(image["channel_def"]) == pred["num_channels"] == inference["num_channels"]
    assert image["spatial_shape"] == pred["spatial_shape"] == inference["spatial_size"]
    assert formats["inputs"]["timesteps"]["value_range"] == [0, inference["scheduler"]["num_train_timesteps"] - 1]


def evaluated(table: str, row: str) -> dict[str, str]:
    """A row of an evaluation's table in benchmarks, without its intervals; the row of that name, or whose name ends so."""
    with (ROOT / "benchmarks" / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        rows = {next(iter(r.values())): r for r in csv.DictReader(file)}
    found = rows[row] if row in rows else next(r for name, r in rows.items() if name.endswith(row))
    return {name: value.split(" ")[0] for name, value in found.items()}


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ("bundle/configs/metadata.json", "brain_flair/whole"),
        ("release/models/brain_brats/metadata.json", "brats/test"),
    ],
)
def test_metadata_has_the_results_of_the_evaluation(metadata: str, part: str) -> None:
    """Those of the default on the whole volumes, at the threshold that it ships with."""
    pixels = evaluated(f"{part}_foreground", "at the bundle's threshold")
    scores = evaluated(f"{part}_scores", "counterfactual and student, gated by p(diseased)")
    assert json.loads((ROOT / metadata).read_text("utf-8"))["eval_metrics"] == {
        "pixel_average_precision": float(pixels["pixel AP"]),
        "pooled_dice": float(pixels["Dice pooled"]),
        "image_auroc": float(scores["image AUROC"]),
    }


def test_the_chests_card_and_metadata_have_the_results_of_the_evaluation() -> None:
    folder = ROOT / "release" / "models" / "chest_effusion"
    found = evaluated("chest_effusion/nih_scores", "p(diseased)")
    metrics = json.loads((folder / "metadata.json").read_text("utf-8"))["eval_metrics"]
    assert metrics == {
        "image_auroc": float(found["image AUROC"]),
        "image_average_precision": float(found["image AP"]),
    }
    card = json.loads((folder / "card.json").read_text("utf-8"))
    others = evaluated("chest_effusion/patients_scores", "p(diseased)")["image AUROC"].removeprefix("0")
    pointing = evaluated("chest_effusion/patients_foreground", "at the bundle's threshold")["pointing game"]
    [performance], [limits] = card["performance"], card["limits"]
    assert f"the AUROC is {others}." in performance
    assert f"the pointing game is won in {float(pointing):.2f}.".replace(" 0.", " .") in performance
    for view, images in (("AP", "75 images"), ("PA", "their 156 PA images")):
        with (ROOT / "benchmarks" / "chest_effusion" / "patients_groups.csv").open(encoding="utf-8") as file:
            [row] = [r for r in csv.DictReader(file) if next(iter(r.values())) == f"view: {view}"]
        numbers = map(float, re.findall(r"[\d.]+", row["image AUROC of p(diseased)"]))
        value, low, high = (f"{number:.2f}".removeprefix("0") for number in numbers)
        assert f"{value} ({low}-{high}) on {images}" in limits


@pytest.mark.parametrize(
    ("part", "manifest"),
    [
        *((f"brain_flair/{part}", "weights.json") for part in ("middle", "whole", "brats", "both", "wmh", "tumour")),
        *((f"brats/{part}", "brats/weights.json") for part in ("test", "paper_slices", "validation")),
        ("chest_effusion/patients", "chest/weights.json"),
    ],
)
def test_the_tables_are_of_the_shipped_threshold(part: str, manifest: str) -> None:
    row = evaluated(f"{part}_foreground", "at the bundle's threshold")
    shipped = json.loads((ROOT / "bundle" / "models" / manifest).read_text("utf-8"))["calibration"]["values"]
    assert float(row["threshold"]) == pytest.approx(shipped["threshold"], abs=1e-3)


def test_bundle_carries_the_licence() -> None:
    assert (ROOT / "bundle" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


PLAIN_NODES = (
    *(ast.Expression, ast.Name, ast.Attribute, ast.Constant, ast.List, ast.Tuple, ast.Call, ast.keyword),
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context),
)


def why_a_program(expression: str) -> str | None:
    """Why a ``$`` expression (given without its ``$``) says too much for a config, or None if it doesn't.

    It may read attributes, call at most one thing, and join or compare at most three values.
    """
    try:
        nodes = list(ast.walk(ast.parse(re.sub(r"@[\w#:]+", "ref", expression), mode="eval")))
    except SyntaxError:
        return "is no expression"
    for node in nodes:
        if not isinstance(node, PLAIN_NODES):
            return f"has a {type(node).__name__}"
    if sum(isinstance(node, ast.Call) for node in nodes) > 1:
        return "calls more than one thing"
    if sum(isinstance(node, (ast.BinOp, ast.Compare)) for node in nodes) > 2:
        return "computes too much"
    return None


@pytest.mark.parametrize(
    "expression",
    [
        "@network.parameters()",
        "@train#trainer.run()",
        "@scheduler.num_train_timesteps",
        "@bundle_root + '/models/' + @name",
        "@precision == 'float16'",
        "monai.handlers.from_engine(['pred', 'label'], first=True)",
    ],
)
def test_plain_expressions_pass(expression: str) -> None:
    assert why_a_program(expression) is None


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("import glob", "is no expression"),
        ("sorted(glob.glob(@input))", "calls more than one thing"),
        ("[{'image': i} for i in @datalist]", "has a ListComp"),
        ("@a if @b else @c", "has a IfExp"),
        ("@a + @b + @c + @d", "computes too much"),
        ("lambda x: x['pred']", "has a Lambda"),
    ],
)
def test_programs_are_found(expression: str, why: str) -> None:
    assert why_a_program(expression) == why


def strings(node: Any, id_: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a config with its id."""
    if isinstance(node, str):
        yield id_, node
    elif isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from strings(value, f"{id_}#{key}" if id_ else str(key))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_configs_hold_no_program(name: str) -> None:
    found = {id_: why_a_program(text[1:]) for id_, text in strings(CONFIGS[name]) if text.startswith("$")}
    assert {id_: why for id_, why in found.items() if why} == {}


OVERLAYS = {
    "preview": ("inference",),
    "evaluate": ("inference",),
    "train": ("inference",),
    "train_classifier": ("inference", "train"),
    "train_student": ("inference", "train"),
    "multi_gpu_train": ("inference", "train"),
    "paper": ("inference",),
    "train_paper": ("inference", "paper", "train"),
    "train_paper_classifier": ("inference", "paper", "train", "train_classifier"),
}
"""The configs that each overlay lies on, in order."""


def flat(node: Any, id_: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config with its id; a list counts as one value, and so does a component."""
    if isinstance(node, dict) and "_target_" not in node:
        for key, value in node.items():
            yield from flat(value, f"{id_}#{key}" if id_ else key)
    else:
        yield id_, node


@pytest.mark.parametrize("name", sorted(OVERLAYS))
def test_an_overlay_restates_nothing(name: str) -> None:
    """What an overlay sets, it sets to something else than what it lies on."""
    below: dict[str, Any] = {}
    for config in OVERLAYS[name]:
        below |= dict(flat(CONFIGS[config]))
    assert [id_ for id_, value in flat(CONFIGS[name]) if id_ in below and below[id_] == value] == []


def test_the_overlays_of_training_are_short() -> None:
    for name in ("train_classifier", "train_student"):
        lines = (ROOT / "bundle" / "configs" / f"{name}.json").read_text("utf-8").splitlines()
        assert len(lines) <= 45, name
