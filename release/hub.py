"""``python -m release.hub ZIP OWNER/NAME --output DIR``: a released zip as a repository on the Hugging Face Hub.

The card lies in the root, where the Hub reads it, and not in ``docs``: MONAI's ``push_to_hf_hub`` would copy it from there,
under front matter of its own with the licence of the code. Nothing here needs a network.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import zipfile
from pathlib import Path


def stage(path: Path, repo: str, output: Path) -> Path:
    """Unpack a zip for the Hub: its card in the root, the hashes of its files written anew.

    Args:
        path: of the zip.
        repo: the repository that is uploaded to, ``OWNER/NAME``.
        output: where the folder goes, which is named as the zip.

    Raises:
        FileExistsError: that folder is there.
        ValueError: the zip is not as it was released.
    """
    from scripts.manifest import check_manifest, write_manifest  # of the source tree

    folder = output / path.stem
    folder.mkdir(parents=True)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(output)
    check_manifest(folder)
    card = folder / "docs" / "README.md"
    (folder / "README.md").write_text(in_root(card.read_text("utf-8"), path.stem, repo), "utf-8")
    card.unlink()
    write_manifest(folder)
    return folder


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
    parser = argparse.ArgumentParser(prog="release.hub", description=__doc__)
    parser.add_argument("zip", type=Path, help="as python -m release writes it")
    parser.add_argument("repo", help="OWNER/NAME, where it will be uploaded")
    parser.add_argument("--output", type=Path, required=True, help="where the folder goes, which is named as the zip")
    arguments = parser.parse_args()
    print(stage(arguments.zip, arguments.repo, arguments.output))


if __name__ == "__main__":
    main()
