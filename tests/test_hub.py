"""A released zip as a repository on the Hugging Face Hub: one front matter, our licence, links and commands that work there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from monai.bundle import download, push_to_hf_hub

from release.__main__ import content
from release.archive import write_zip
from release.describing import FACTS
from release.hub import main, stage
from release.models import Model, models
from release.verify import tree
from scripts.bundle import bundle_root
from scripts.manifest import check_manifest
from test_readme import ROOT, blocks, commands

MODELS = [model for model in models(Path(bundle_root())) if model.why_not() is None]


@pytest.fixture(autouse=True)
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what was uploaded: one takes the place of the Hub, a repository a folder."""

    class Api:
        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None: ...

        def upload_folder(self, repo_id: str, folder_path: str) -> None:
            shutil.copytree(folder_path, folder / repo_id)

    def snapshot_download(repo_id: str, revision: str, local_dir: str) -> None:
        shutil.copytree(folder / repo_id, local_dir)

    folder = tmp_path / "remote"
    refs = SimpleNamespace(tags=[], branches=[SimpleNamespace(name="main")])
    hub = SimpleNamespace(HfApi=Api, list_repo_refs=lambda repo_id: refs, snapshot_download=snapshot_download)
    monkeypatch.setattr("monai.bundle.scripts.huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    return folder


def zipped(model: Model) -> Path:
    """Its zip, in ``dist`` of the current folder."""
    path = Path("dist", f"{model.name}.zip")
    path.parent.mkdir()
    write_zip(path, model.name, content(model))
    return path


def front_matters(card: str) -> list[dict[str, str]]:
    """What stands between rules at the head of a card, one after the other."""
    found = []
    while matter := re.match(r"\s*---\n(.*?)\n---\n", card, re.DOTALL):
        found.append(yaml.safe_load(matter[1]))
        card = card[matter.end() :]
    return found


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_model_as_a_repository(model: Model, remote: Path) -> None:
    path = zipped(model)
    folder = stage(path, "owner/it", Path("staged"))
    card = (folder / "README.md").read_text("utf-8")
    [head] = front_matters(card)
    own = json.loads((FACTS / model.config["model"] / "card.json").read_text("utf-8"))["front_matter"]
    here = "https://huggingface.co/owner/it/blob/main/"
    assert head == own | ({"license_link": f"{here}docs/data_license.txt"} if "license_link" in own else {})
    linked = {target for target in re.findall(r"\]\((.+?)\)", card) if not target.startswith("https:")}
    assert {"LICENSE", "docs/data_license.txt"} <= linked
    assert "#the-datalist" in linked and "\n## The datalist\n" in card
    for target in linked - {"#the-datalist"} | {head.get("license_link", "").removeprefix(here)}:
        assert (folder / target).exists(), target
    # all of the zip is there, the card in another place
    with zipfile.ZipFile(path) as archive:
        names = {name.removeprefix(f"{model.name}/") for name in archive.namelist()}
    assert set(tree(folder)) == names - {"docs/README.md"} | {"README.md"}
    # what is uploaded is that folder, and the card's commands fetch it and run it
    push_to_hf_hub(repo="owner/it", name=model.name, bundle_dir="staged")
    assert tree(remote / "owner" / "it") == tree(folder)
    fetch, run, *_ = re.findall(r"^python -m monai.bundle (.*)$", card, re.MULTILINE)
    verb, *options = shlex.split(fetch)
    assert verb == "download"
    download(**{name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)})
    assert check_manifest(model.name) == len(names) - 1
    # a PATH of one's own and the output have none
    assert all(Path(model.name, word).is_file() for word in shlex.split(run) if "/" in word)


def test_the_commands_of_the_guide_upload_it(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(MODELS[0])
    [line] = [line for line in commands(ROOT / "CONTRIBUTING.md") if "release.hub" in line]
    monkeypatch.setattr(sys, "argv", shlex.split(line)[3:])
    main()
    [block] = blocks(ROOT / "CONTRIBUTING.md", "python")
    exec(block)
    [uploaded] = (remote / "OWNER").iterdir()
    assert check_manifest(uploaded) is not None and len(front_matters((uploaded / "README.md").read_text("utf-8"))) == 1


def test_monai_writes_the_licence_of_the_code_over_the_card_of_a_zip(remote: Path) -> None:
    """Why there is `release.hub`."""
    with zipfile.ZipFile(zipped(MODELS[0])) as archive:
        archive.extractall()
    push_to_hf_hub(repo="owner/it", name=MODELS[0].name, bundle_dir=".")
    heads = front_matters((remote / "owner" / "it" / "README.md").read_text("utf-8"))
    assert [head["license"] for head in heads] == ["apache-2.0", "cc-by-nc-sa-4.0"]


def test_what_is_there_and_what_was_changed_is_refused() -> None:
    path = zipped(MODELS[0])
    Path("staged", path.stem).mkdir(parents=True)
    with pytest.raises(ValueError, match="is there already; remove it"):
        stage(path, "owner/it", Path("staged"))
    with pytest.raises(ValueError, match="'me and' names no repository"):
        stage(path, "me and", Path("elsewhere"))
    renamed = Path(shutil.copy(path, f"{path.stem} (1).zip"))
    assert stage(renamed, "owner/it", Path("renamed")).name == path.stem
    for held in (b"no zip", b"PK\x05\x06" + bytes(18)):  # the second is an empty one
        Path("other.zip").write_bytes(held)
        with pytest.raises(ValueError, match=r"other.zip: (can't be unpacked|is no released bundle)"):
            stage(Path("other.zip"), "owner/it", Path("elsewhere"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/configs/more.json", "{}")
    with pytest.raises(ValueError, match=r"configs/more.json was added"):
        stage(path, "owner/it", Path("elsewhere"))
    assert not list(Path("elsewhere").iterdir())  # nothing is left of what was refused
