"""docs/method.md: the code that it names is there, and its numbers are those of the configs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.bundle import declared, parsed
from test_house import is_there

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "method.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    section = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    [body] = [part for part in section if part.startswith(heading)]
    return [[c.strip() for c in line.strip("|").split("|")] for line in body.splitlines() if line.startswith("|")][2:]


def test_the_code_that_it_names_is_there() -> None:
    named = {n for n in re.findall(r"`([a-z_]+(?:\.\w+)+)`", TEXT) if not n.endswith((".json", ".md"))}
    assert len(named) >= 20
    assert {name for name in named if not is_there(f"scripts.{name}")} == set()


@pytest.mark.parametrize("row", rows("Symbols"), ids=lambda row: row[2])
def test_a_symbol_has_the_value_of_the_config(row: list[str]) -> None:
    config = parsed()
    values: list[Any] = []
    for id_ in re.findall(r"`([^`]+)`", row[2]):
        value = config[id_]
        values += value if isinstance(value, list) else [value]
    assert values == [json.loads(number) for number in row[3].split(", ")]


def test_what_differs_is_what_the_configs_say() -> None:
    found = {row[0]: row[1:] for row in rows("What differs")}
    scales = [parsed(*overlay)["displayable_configs#guidance_scale"] for overlay in ((), ("brats",), ("chest",))]
    assert found["guidance scale"][1] == "{:g} (FLAIR), {:g} (four sequences), {:g} (chest)".format(*scales)
    exponents = [parsed(*overlay)["guidance_exponent"] for overlay in ((), ("brats",), ("paper",), ("chest",))]
    assert (exponents, found["scale of a slice"][1]) == ([0, 0, 0, 2], "chest: times $p^2$")
    card = (ROOT / "bundle" / "docs" / "chest.md").read_text("utf-8")
    assert f"at a guidance scale of {scales[2]:g} p², p being" in card
    assert found["guidance scale"][0] == f"{parsed('paper')['displayable_configs#guidance_scale']:g}"
    steps, iterations = parsed()["displayable_configs#num_inference_steps"], parsed()["num_fixed_point_iterations"]
    assert found["steps"][2].startswith(f"time: {iterations * steps + 1 + steps} calls and {steps} gradients a slice")
    for overlays, cell in (((), found["networks"][1]), (("paper",), found["networks"][0])):
        network = declared("network_def", *overlays)
        [millions] = re.findall(r"([\d.]+) M", cell)
        size = " x ".join(map(str, parsed(*overlays)["spatial_size"]))
        assert float(millions) == round(
            sum(p.numel() for p in network.parameters()) / 1e6, len(millions.partition(".")[2])
        )
        assert f"{size} pixels" in cell
