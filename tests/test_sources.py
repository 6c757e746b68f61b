"""What an image is read from is all that tells it from another: the files that a header names, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import Compose

from scripts.digests import digest_of, source_digest
from scripts.fingerprints import fingerprint
from scripts.images.volume_files import read_volume
from scripts.prepare.reads import Reads
from scripts.running.results import Results
from scripts.sources import data_files

META_IMAGE = """ObjectType = Image
NDims = 3
BinaryData = True
TransformMatrix = 1 0 0 0 1 0 0 0 1
DimSize = 4 4 3
ElementType = MET_SHORT
ElementDataFile"""
NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 4 3
space directions: (1,0,0) (0,1,0) (0,0,1)
endian: little
encoding: raw
"""
VOXELS = np.arange(48, dtype="<i2")
SLICES = ["s001.raw", "s002.raw", "s003.raw"]
LIST = "".join(f"{name}\n" for name in SLICES)

HEADERS: dict[str, tuple[str, str, list[str]]] = {
    "MetaImage": ("x.mhd", f"{META_IMAGE} = a.raw\n", ["a.raw"]),
    "a colon": ("x.mhd", f"{META_IMAGE}: a.raw", ["a.raw"]),
    "Windows": ("x.mhd", f"Comment = ElementDataFile = b.raw\n{META_IMAGE} = a.raw\n".replace("\n", "\r\n"), ["a.raw"]),
    "a blank, a folder": ("x.mha", f"{META_IMAGE} = in it/a b.raw \n", ["in it/a b.raw"]),
    "from the root": ("x.mhd", f"{META_IMAGE} = ROOT/a.raw\n", ["a.raw"]),
    "MetaImage's list": ("x.mhd", f"{META_IMAGE} = LIST 2D\n{LIST}", SLICES),
    "more in the list": ("x.mhd", f"{META_IMAGE} = LIST\n{LIST}no.raw\nb.raw\n", SLICES),
    "MetaImage's numbers": ("x.mhd", f"{META_IMAGE} = s%03d.raw 1 3 1\n", SLICES),
    "numbers alone": ("x.mhd", f"{META_IMAGE} = s%03d.raw\n", SLICES),
    "NRRD": ("x.nrrd", f"{NRRD}data file: a.raw\n", ["a.raw"]),
    "in NRRD's other spelling": ("x.nrrd", f"{NRRD}#data file: b.raw\nDataFile:  in it/a b.raw\n\n", ["in it/a b.raw"]),
    "NRRD's list": ("x.nrrd", f"{NRRD}data file: LIST\n{LIST}", SLICES),
    "NRRD's numbers": ("x.nrrd", f"{NRRD}data file: s%03d.raw 1 3 1\n", SLICES),
    "NRRD's numbers down": ("x.nrrd", f"{NRRD}data file: s%03d.raw 3 1 -1\n", SLICES[::-1]),
}


def patient(folder: Path, case: str = "MetaImage", add: int = 0) -> str:
    """An image whose voxels lie in other files, those of another patient larger by a number; return its header."""
    (folder / "in it").mkdir(parents=True)
    for name in ("a.raw", "in it/a b.raw"):
        (folder / name).write_bytes((VOXELS + add).tobytes())
    for name, part in zip(SLICES, np.split(VOXELS + add, 3), strict=True):
        (folder / name).write_bytes(part.tobytes())
    (folder / "b.raw").write_bytes(bytes(96))
    name, header, _ = HEADERS[case]
    (folder / name).write_text(header.replace("ROOT", str(folder)), newline="")
    return str(folder / name)


@pytest.mark.parametrize("case", HEADERS)
def test_the_files_that_a_header_names_are_those_that_are_read(case: str, tmp_path: Path) -> None:
    """What the reader gives changes with each of them, and so do the digest and the fingerprint, but with no other file."""
    path, names = patient(tmp_path / "p", case), HEADERS[case][2]

    def known() -> tuple[list[float], str | None, str]:
        voxels = read_volume(path).voxels.permute(2, 1, 0).flatten().tolist()
        return voxels, source_digest(path), fingerprint([{"image": path}], Compose([]))

    assert data_files(path) == [str(tmp_path / "p" / name) for name in names]
    before = known()
    assert before[0] == (VOXELS if "down" not in case else VOXELS.reshape(3, 16)[::-1].ravel()).tolist()
    (tmp_path / "p" / "b.raw").write_bytes(b"\1")
    assert known() == before and before[1] is not None
    for name in names:
        file = tmp_path / "p" / name
        file.write_bytes(bytes(len(file.read_bytes())))
        os.utime(file, ns=(0, names.index(name)))
        after = known()
        assert all(a != b for a, b in zip(after, before, strict=True)), name
        before = after


def test_a_file_that_holds_its_voxels_is_known_by_itself(tmp_path: Path) -> None:
    """By the same digest as before, whatever stands among its voxels."""
    for name, content in {
        "x.mha": f"{META_IMAGE} = LOCAL\nElementDataFile = a.raw\n",
        "x.nrrd": f"{NRRD}\ndata file: a.raw\n",
        "x.nii": "ElementDataFile = a.raw\n",
    }.items():
        (tmp_path / name).write_text(content)
        assert data_files(str(tmp_path / name)) == []
        assert source_digest(str(tmp_path / name)) == digest_of(tmp_path / name)


@pytest.mark.parametrize("named", ["no.raw", "/dev/zero", "pipe", ".", "%s%d.raw", "s%999999999d.raw", "s%d.raw 1 3 0"])
def test_what_is_no_plain_file_is_not_followed(named: str, tmp_path: Path) -> None:
    """Such an image can't be read, so it is no other's."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.mhd").write_text(f"{META_IMAGE} = {named}\n")
    assert source_digest(str(tmp_path / "x.mhd")) is None


def test_no_patient_gets_anothers_result(tmp_path: Path) -> None:
    """Two images of one grid have the same header."""
    first, second = (patient(tmp_path / f"p{n}", add=n) for n in (1, 2))
    assert Path(first).read_bytes() == Path(second).read_bytes()
    results = Results(str(tmp_path / "out"), "recipe")

    def names_of(path: str) -> tuple[bool, str]:
        item: dict[str, Any] = {"image": path, "name": "x"}
        results.prepare([item])
        done = results.done(item)
        if not done:
            results.place(item, results.new_folder(), {"status": "ok"})
        results.close()
        return done, item["name"]

    assert [names_of(path) for path in (first, second, first)] == [(False, "x"), (False, "p2-x"), (True, "x")]


def test_a_case_whose_voxels_changed_is_read_anew(tmp_path: Path) -> None:
    path = patient(tmp_path / "p")
    reads = Reads(tmp_path / "reads")
    assert [reads.once([Path(path)], "lesion", lambda n=n: n) for n in (1, 2)] == [1, 1]
    (tmp_path / "p" / "a.raw").write_bytes(bytes(90))
    assert reads.once([Path(path)], "lesion", lambda: 3) == 3


def test_a_series_that_was_replaced_in_place_is_another_one(tmp_path: Path) -> None:
    """The folder itself stays as it was: the files have the same names, and one even the same size."""
    folder = tmp_path / "series"
    folder.mkdir()
    reads = Reads(tmp_path / "reads")
    seen = set()
    for n, content in enumerate((b"aaa", b"bbb", b"bbbb")):
        for k in range(3):
            (folder / f"{k}.dcm").write_bytes(content)
            os.utime(folder / f"{k}.dcm", ns=(0, n))
        os.utime(folder, ns=(0, 0))
        assert reads.once([folder], "lesion", lambda n=n: n) == n
        seen.add(fingerprint([{"image": str(folder)}], Compose([])))
    assert len(seen) == 3
    (folder / ".hidden").write_bytes(b"c")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "0.dcm").write_bytes(b"c")
    assert reads.once([folder], "lesion", lambda: 3) == 2
    assert fingerprint([{"image": str(folder)}], Compose([])) in seen
