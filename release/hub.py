"""``python -m release.hub ZIP OWNER/NAME --output DIR``: a released zip as a repository on the Hugging Face Hub.

The card lies in the root, where the Hub reads it, and not in ``docs``: MONAI's ``push_to_hf_hub`` would copy it from there,
under front matter of its own with the licence of the code. Nothing here needs a network.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import sys
import tempfile
import zipfile
from pathlib import Path

from .verify import tree


def stage(path: Path, repo: str, output: Path) -> Path:
    """Unpack a zip for the Hub: its card in the root, the hashes of its files written anew.

    Args:
        path: of the zip.
        repo: the repository that is uploaded to, ``OWNER/NAME``.
        output: where the folder goes, which is named as the one in the zip.

    Raises:
        ValueError: the file is no released zip, or not as it was released; the folder is there; or `repo` names none.
    """
    from scripts.manifest import SUMS, check_manifest, sums  # of the source tree

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"{repo!r} names no repository; it is OWNER/NAME.")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(scratch)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path}: can't be unpacked ({error}); give a zip that python -m release wrote."
            ) from error
        roots = list(Path(scratch).iterdir())
        if len(roots) != 1 or check_manifest(roots[0]) is None:
            raise ValueError(f"{path}: is no released bundle; give a zip that python -m release wrote.")
        [unpacked] = roots
        folder = output / unpacked.name
        if folder.exists():
            raise ValueError(f"{folder}: is there already; remove it, or give another --output.")
        card = unpacked / "docs" / "README.md"
        (unpacked / "README.md").write_text(in_root(card.read_text("utf-8"), unpacked.name, repo), "utf-8")
        card.unlink()
        (unpacked / SUMS).unlink()
        (unpacked / SUMS).write_text(sums(tree(unpacked)), "utf-8")
        return unpacked.rename(folder)


def in_root(card: str, name: str, repo: str) -> str:
    """A zip's card for the root of a repository: its links, the link of its licence and the download lead there."""
    card = re.sub(r"\]\((?!https?:|#)(.+?)\)", lambda link: f"]({posixpath.normpath(f'docs/{link[1]}')})", card)
    # the Hub takes an URL, or the name LICENSE
    card = card.replace('license_link: "docs/', f'license_link: "https://huggingface.co/{repo}/blob/main/docs/')
    told = "Download, with huggingface_hub installed:"
    command = f"python -m monai.bundle download --name {name} --source huggingface_hub --repo {repo} --bundle_dir ."
    return re.sub(r"Download and unpack, .*?\n```\n.*?\n", f"{told}\n\n```\n{command}\n", card, flags=re.DOTALL)


def main() -> None:
    """The command."""
    from scripts.errors import say  # of the source tree

    sys.excepthook = say
    parser = argparse.ArgumentParser(prog="release.hub", description=__doc__)
    parser.add_argument("zip", type=Path, help="as python -m release writes it")
    parser.add_argument("repo", help="OWNER/NAME, where it will be uploaded")
    parser.add_argument(
        "--output", type=Path, required=True, help="where the folder goes, which is named as the one in the zip"
    )
    arguments = parser.parse_args()
    print(stage(arguments.zip, arguments.repo, arguments.output))


if __name__ == "__main__":
    main()
