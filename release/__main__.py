"""``python -m release --output dist``: one zip for each model that has weights."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from .archive import write_zip
from .describing import card, facts, failures, metadata
from .merging import configs, dumped, weights
from .models import Model, models

ROOT = Path(__file__).resolve().parent.parent
CODE = (".py", ".json")
"""What a bundle's ``scripts`` are: its code, and the numbers that it reads."""


def content(model: Model) -> dict[str, bytes]:
    """The files of a model's zip: their paths in it and what they hold, the hashes of all of them last."""
    from scripts.manifest import SUMS, sums  # of the source tree, as what is released

    files = dict(hashed_files(model))
    return files | {SUMS: sums({name: hashlib.sha256(held).hexdigest() for name, held in files.items()}).encode()}


def hashed_files(model: Model) -> Iterator[tuple[str, bytes]]:
    """All files of a model's zip but the one with their hashes."""
    for name, config in {**configs(model), "metadata": metadata(model)}.items():
        yield f"configs/{name}.json", dumped(config).encode()
    yield "docs/README.md", card(model).encode()
    for path in sorted((model.bundle / "scripts").rglob("*")):
        if path.suffix in CODE:
            yield path.relative_to(model.bundle).as_posix(), path.read_bytes()
    from_files = {
        "configs/logging.conf": model.bundle / "configs" / "logging.conf",
        "LICENSE": model.bundle / "LICENSE",
    }
    from_files |= {f"models/{name}": path for name, path in weights(model).items()}
    from_files["docs/data_license.txt"] = facts(model, "data_license.txt")
    if (picture := failures(model)).is_file():
        from_files["docs/failures.jpg"] = picture
    yield from ((name, path.read_bytes()) for name, path in from_files.items())
    yield from sample(model)


def sample(model: Model) -> Iterator[tuple[str, bytes]]:
    """The images that a card's command runs on, and whose they are; of a model that has some.

    Raises:
        ValueError: of one it isn't said whose it is.
    """
    names = json.loads(facts(model, "card.json").read_text("utf-8"))["sample"]
    if not names:
        return
    folder = model.bundle / "sample"
    said: dict[str, list[str]] = {}
    for part in (folder / "ATTRIBUTION.md").read_text("utf-8").split("# ")[1:]:
        heading, body = part.split("\n", 1)
        if own := [name for name in names if name in heading.split(", ")]:
            said[body.strip()] = own
    if unsaid := [name for name in names if not any(name in own for own in said.values())]:
        raise ValueError(f"{folder / 'ATTRIBUTION.md'}: says nothing of {', '.join(unsaid)}.")
    text = "\n".join(f"# {', '.join(own)}\n\n{body}\n" for body, own in said.items())
    yield "sample/ATTRIBUTION.md", text.encode()
    yield from ((f"sample/{name}", (folder / name).read_bytes()) for name in names)


def release(bundle: Path, output: Path) -> list[Path]:
    """Write a zip for each model that has weights, and say of the others why they have none."""
    output.mkdir(parents=True, exist_ok=True)
    made = []
    for model in models(bundle):
        if why := model.why_not():
            print(f"{model.name}: left out; {why}.")
            continue
        path = output / f"{model.name}.zip"
        write_zip(path, model.name, content(model))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}")
        made.append(path)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundle", help="the source tree's bundle")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where the zips go")
    arguments = parser.parse_args()
    release(arguments.bundle, arguments.output)
