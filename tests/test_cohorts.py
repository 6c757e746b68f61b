"""Many studies on several processes: the files of one process, whoever ran which study."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.ranks import each_once, of_first
from small_bundle import write_small_bundle
from synthetic import write_head
from test_evaluation import changed, write_patients
from torchrun import said, torchrun

GRIDS = ("plain", "flipped", "oblique", "plain", "flipped")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle, and studies of which one can't be read."""
    folder = tmp_path_factory.mktemp("cohorts")
    write_small_bundle(folder)
    for n, grid in enumerate(GRIDS):
        (folder / "studies" / f"p{n}").mkdir(parents=True)
        Path(write_head(folder / "studies" / f"p{n}", grid)["foreground"]).unlink()
    (folder / "studies" / "p1b").mkdir()
    (folder / "studies" / "p1b" / "flair.nii.gz").write_bytes(b"no image")
    return folder


def bundle_run(folder: Path, *configs: str, **options: str) -> list[str]:
    files = [str(folder / "bundle" / "configs" / f"{name}.json") for name in ("inference", *configs)]
    run = [sys.executable, "-m", "monai.bundle", "run", "--config_file", repr(files)]
    return run + [part for key, value in options.items() for part in (f"--{key}", value)]


def contents(folder: Path) -> dict[str, Any]:
    """Every file that can be seen in a folder, but for the time that it took and the name of the folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            content: bytes = path.read_bytes().replace(str(folder).encode(), b"OUT")
            if path.suffix == ".json":
                content = re.sub(rb'"seconds": \{[^}]*\}', b"", content)
                content = re.sub(rb'"seconds_per_slice_in_networks": [\d.e-]+', b"", content)
            found[str(path.relative_to(folder))] = content
    return found


def test_two_ranks_write_the_results_of_one(folder: Path) -> None:
    """The study that fails is in the summary with its reason; a second run begins none that is done."""
    studies = str(folder / "studies")
    said(bundle_run(folder, input=studies, output_dir=str(folder / "one")), folder, status=1)
    two = torchrun(bundle_run(folder, input=studies, output_dir=str(folder / "two")), 2)
    output = said(two, folder, status=1)
    found, expected = contents(folder / "two"), contents(folder / "one")
    assert found.keys() == expected.keys() and len(found) == 5 * 5 + 1 + 2
    assert [name for name in found if found[name] != expected[name]] == []
    volumes = json.loads((folder / "two" / "summary.json").read_text())["volumes"]
    assert [v["status"] for v in volumes] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert "p1b/flair.nii.gz" in volumes[2]["error"] and "p1b-flair: FAILED" in output
    # each study once, and what all need once
    assert output.count("p(diseased)") == 5 and output.count("6 volumes found") == output.count("Summary:") == 1
    assert not [p.name for p in (folder / "two").iterdir() if p.name.startswith(".run-")]
    before = {p: p.stat().st_mtime_ns for p in (folder / "two").glob("*/pred.nii.gz")}
    output = said(two, folder, status=1)
    assert "5 done before, skipped" in output and output.count("FAILED p1b-flair") == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before and contents(folder / "two") == found


def test_two_ranks_judge_as_one(folder: Path) -> None:
    """The same tables, numbers, figure and failure; what one rank kept is found by the others."""
    data = folder / "data"
    write_patients(data)
    changed(data, lambda split, item: item | {"mask": "none.nii.gz"} if item["subject"] == "validationA" else item)
    options = {"datalist": str(data / "datalist.json"), "baselines": "[]"}
    for name, launch in (("judged_by_one", None), ("judged_by_two", 2)):
        run = bundle_run(
            folder, "evaluate", **options, output_dir=str(folder / name), cache_dir=str(folder / f"cache_{name}")
        )
        said(run if launch is None else torchrun(run, launch), folder, status=1)
        assert len(list((folder / f"cache_{name}").glob("evaluated-*.pt"))) == 3
    one, two = contents(folder / "judged_by_one"), contents(folder / "judged_by_two")
    assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []
    failed = json.loads((folder / "judged_by_two" / "results.json").read_text())["failed"]
    assert list(failed) == [str(data / "validationA" / "flair.nii.gz")] and "none.nii.gz" in next(iter(failed.values()))


def test_two_ranks_calibrate_as_one(folder: Path) -> None:
    """The same numbers, said and written once."""
    data = folder / "to_calibrate"
    write_patients(data)
    written = []
    for name, launch in (("one", None), ("two", 2)):
        paths = {"manifest": str(data / f"{name}.json"), "cache_dir": str(data / f"cache_{name}")}
        run = bundle_run(folder, "evaluate", "calibrate", datalist=str(data / "datalist.json"), **paths)
        output = said(run if launch is None else torchrun(run, launch), folder)
        assert output.count(f"{paths['manifest']}: ") == 1
        written.append(json.loads(Path(paths["manifest"]).read_text()))
    assert written[0] == written[1] and written[0]["calibration"]["values"]


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
import ignite.distributed as idist
from scripts.ranks import each_once, join, of_first
join()
def say(*words):
    print(" ".join(map(str, words)) + chr(10), end="", flush=True)  # in one piece, as others say something too
say("LOCAL", idist.get_local_rank())
idist.barrier()  # a busy machine may start one much later
done = []
for item in each_once(range(20)):
    time.sleep(1 if idist.get_rank() == 0 else 0.01)
    done.append(item)
again = list(each_once("abc"))
ranks = idist.all_gather([done, again])
if idist.get_rank() == 0:
    say("EACH", ranks)
asked = []
say("FIRST", of_first(lambda: asked.append(1) or "found"), len(asked))
idist.barrier()
of_first(lambda: sys.exit("rank 0 says why"))
"""


def test_no_rank_waits_for_a_slow_one(tmp_path: Path) -> None:
    """A rank that takes a hundred times as long has a few of the items; each has them once. What all need is found by one."""
    (tmp_path / "slow.py").write_text(SLOW)
    bundle = str(Path(__file__).resolve().parent.parent / "bundle")
    # as SLURM has it on the first of two machines
    names = ("JOB_ID", "PROCID", "LOCALID", "NTASKS", "JOB_NUM_NODES", "JOB_NODELIST")
    slurm = {f"SLURM_{name}": value for name, value in zip(names, ("7", "0", "0", "2", "2", "n[1-2]"), strict=True)}
    output = said(torchrun([sys.executable, "-m", "slow", bundle], 2), tmp_path, status=1, **slurm)
    assert sorted(re.findall(r"LOCAL (.*)", output)) == ["0", "1"]
    [(slow, letters), (fast, others)] = eval(re.findall(r"EACH (.*)", output)[0])
    assert sorted(slow + fast) == list(range(20)) and 1 <= len(slow) <= 5
    assert sorted(letters + others) == ["a", "b", "c"]
    assert sorted(re.findall(r"FIRST (.*)", output)) == ["found 0", "found 1"]
    assert output.count("rank 0 says why") == 1


def test_a_process_alone_does_all_of_it() -> None:
    assert list(each_once("abc")) == ["a", "b", "c"] and of_first(lambda: 3) == 3
