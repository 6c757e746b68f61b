"""What results depend on."""

from __future__ import annotations

import json
from typing import Any

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
