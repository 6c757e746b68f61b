"""What results depend on."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import numpy as np
import torch

from scripts.bundle import declared
from scripts.fingerprints import settings_of
from tiny_run import TINY


def test_settings_tell_what_results_depend_on(weights: dict[str, str]) -> None:
    def told(**overrides: Any) -> Any:
        options = {**TINY, **weights, "student": "$None", **overrides}
        parts = {name: declared(name, **options) for name in ("inferer", "preprocessing", "postprocessing")}
        return json.loads(json.dumps(settings_of(parts)))

    first = told()
    assert told() == first
    for id_, value in (
        ("displayable_configs#guidance_scale", 3.0),
        ("displayable_configs#threshold", 0.5),
        ("pixel_size", 2.0),
        ("median_size", 1),
        ("scheduler#beta_end", 0.03),
        ("min_area", 40),
        ("target_class", 1),
    ):
        assert told(**{id_: value}) != first, id_
    assert told(brain_cache="elsewhere") == told(brain_cache="here")


def power(n: float) -> Any:
    return lambda x: x**n


def test_functions_and_types_are_told_apart_by_what_they_do() -> None:
    """As a config of one's own may have them: "$lambda x: x * 2", "$torch.log1p", "$torch.float16"."""
    several = (
        *(eval(f"lambda x: {what}") for what in ("x * 2", "x * 3", "x + 2", "x.abs()", "x.exp()")),
        *(eval(f"lambda x, k={k}: x * k") for k in (1, 2)),
        *(power(2), power(3), partial(max, 1), partial(min, 1)),
        *(torch.sqrt, torch.log1p, np.sqrt, np.log1p, max, torch.nn.functional.relu, torch.nn.functional.gelu),
        *(
            torch.float16,
            torch.float32,
            np.dtype("f4"),
            np.dtype("f8"),
            re.compile("a"),
            re.compile("b"),
            range(3),
            range(4),
        ),
    )
    told = [json.dumps(settings_of(thing)) for thing in several]
    assert len(set(told)) == len(several)
    assert settings_of(eval("lambda x: x * 2")) == settings_of(eval("lambda x: x * 2"))
    assert settings_of(power(2)) == settings_of(power(2))
    # another process tells the same: no address of a thing in memory
    assert "0x" not in "".join(told)
    # what is drawn next is no setting
    assert settings_of(np.random.RandomState(0)) == settings_of(np.random.RandomState(1))


class Scaled:
    def __init__(self, by: float) -> None:
        self.by = by

    def up(self, x: Any) -> Any:
        return x * self.by

    def down(self, x: Any) -> Any:
        return x / self.by


def test_methods_are_told_apart_and_what_a_function_finds_around_it_may_be_anything() -> None:
    several = [Scaled(2).up, Scaled(3).up, Scaled(2).down]
    assert len({json.dumps(settings_of(method)) for method in several}) == 3
    assert settings_of(Scaled(2).up) == settings_of(Scaled(2).up)

    class Here:
        pass

    module = np
    later: Any
    things = [lambda: module, lambda: Here, lambda: later]  # noqa: F821  # a name without a value yet
    for thing in (Here, *things):
        json.dumps(settings_of(thing))
    later = 1
