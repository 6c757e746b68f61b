"""The MONAI Label app over real HTTP, as the viewers call it, on a folder of studies; bad days included."""

from __future__ import annotations

import functools
import hashlib
import http.client
import json
import runpy
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import nibabel as nib
import nrrd
import numpy as np
import pytest
import requests
import SimpleITK
import torch
from monai.data import MetaTensor
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from monailabel.interfaces.exception import MONAILabelException
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from urllib3.filepost import encode_multipart_formdata

import serve
from lib.demonstration.label_server import label_server
from lib.http.answers import STATUS
from lib.http.guard import Guard
from lib.models.declaration import FULL, PREVIEW
from lib.models.fetching import fetch_bundle
from lib.models.finding import find_models
from lib.studies.dicomweb import DICOMwebStudies
from lib.tasks.infer_task import AnomalyInferTask
from lib.tasks.summaries import changed_options
from lib.tasks.views import HEAT_MAP_LABELS, MASK_LABELS, heat_map, lesion_mask
from lib.tasks.writing import write_results
from machine import free_port
from scripts.images.restoring import LESION, NOT_ASSESSED
from small_bundle import write_small_bundle
from synthetic import GRIDS, header_alone, write_head

# exactly what the plug-in of 3D Slicer sends
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8"}


class Server:
    """A running server: MONAI Label's client for it, and plain requests by their verb."""

    def __init__(self, url: str, studies: Path) -> None:
        self.url, self.studies = url, studies
        self.port = int(url.rsplit(":", 1)[1])
        self.client = MONAILabelClient(url, tmpdir=str(studies.parent))

    def __getattr__(self, verb: str) -> Any:
        return lambda path, **kwargs: getattr(requests, verb)(self.url + path, timeout=120, **kwargs)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("app")
    studies = folder / "studies"
    studies.mkdir()
    for grid in GRIDS:
        name = grid.replace(" ", "_")
        write_head(studies, grid, name)
        (studies / f"{name}_brain.nii.gz").unlink()
    (studies / "text.nii.gz").write_text("this is no image")
    whole = (studies / "plain.nii.gz").read_bytes()
    (studies / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.ones((40, 40, 4, 2), np.float32), np.eye(4)), studies / "two_channels.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 0), np.float32), np.eye(4)), studies / "no_slice.nii.gz")
    conf = {"bundle": str(write_small_bundle(folder)), "max_upload_mb": "16"}
    (folder / "tmp").mkdir()
    before = changes(serve.APP)
    with label_server(str(studies), folder, free_port(), conf, {"TMPDIR": str(folder / "tmp")}) as url:
        yield Server(url, studies)
    # it may be read-only
    assert changes(serve.APP) == before


def changes(folder: Path) -> dict[Path, int]:
    """When everything in a folder was changed, but Python's caches."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def test_info_lists_the_models_with_the_options_of_the_bundle(server: Server) -> None:
    info = server.client.info()
    assert "not for clinical use" in info["name"]
    assert set(info["models"]) == {"lesion_mask", "anomaly_heat_map", "lesion_preview"}
    for name, model in info["models"].items():
        assert model["type"] == "segmentation"
        full = {"noise_level", "guidance_scale", "num_inference_steps", "threshold"}
        assert set(model["config"]) == ({"threshold"} if name == "lesion_preview" else full)
    assert info["models"]["lesion_mask"]["labels"] == {"lesion": 1, "not assessed": 2}
    assert list(info["models"]["anomaly_heat_map"]["labels"].values()) == list(range(1, 11))
    legend = "level n is above n / 3 of the threshold 0.05, so that 1 begins at 0.0167, 3 is the edge of the mask, 9 is above"
    assert f"{legend} 0.15; level 10 was not assessed" in info["models"]["anomaly_heat_map"]["description"]
    assert "2 not assessed" in info["models"]["lesion_mask"]["description"]
    assert {"classifier", "diffusion"} == set(info["trainers"])
    assert "most_anomalous_first" in info["strategies"] and "dice" in info["scoring"]


@pytest.mark.parametrize("grid", GRIDS)
def test_masks_and_maps_lie_on_the_input_grid(server: Server, grid: str, tmp_path: Path) -> None:
    name = grid.replace(" ", "_")
    shape, affine = GRIDS[grid]
    for model, top in (("lesion_mask", 2), ("anomaly_heat_map", 10)):
        file, params = server.client.infer(model, name, {**SLICER, "save_label": True, "noise_level": 400})
        array, header = nrrd.read(file)
        assert array.shape == shape and array.dtype == np.uint8 and array.max() <= top
        assert header["space"] == "left-posterior-superior"
        to_lps = np.diag([-1.0, -1.0, 1.0])
        np.testing.assert_allclose(header["space directions"].T, to_lps @ affine[:3, :3], atol=1e-5)
        np.testing.assert_allclose(header["space origin"], to_lps @ affine[:3, 3], atol=1e-4)
        assert params["label_names"] and 0 <= params["result"]["p_diseased"] <= 1
    source = nib.load(server.studies / f"{name}.nii.gz")
    for tag in ("anomaly_map", "counterfactual"):
        image = nib.load(server.client.download_label(name, tag))
        assert image.shape == shape
        np.testing.assert_array_equal(image.affine, source.affine)
    assert nib.load(server.client.download_label(name, "anomaly_map")).get_data_dtype() == np.float32


def test_the_second_view_and_another_threshold_need_no_network(server: Server) -> None:
    options = {**SLICER, "noise_level": 300}
    _, first = server.client.infer("lesion_mask", "plain", options)
    _, view = server.client.infer("anomaly_heat_map", "plain", options)
    _, threshold = server.client.infer("lesion_mask", "plain", {**options, "threshold": 1e-6})
    assert first["latencies"]["infer"] > 0
    assert view["latencies"]["infer"] == threshold["latencies"]["infer"] == 0
    assert threshold["result"]["lesion_ml"] > first["result"]["lesion_ml"]
    assert view["result"] == first["result"]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_preview_lies_on_the_grid_and_is_no_original(server: Server, grid: str) -> None:
    """It neither overwrites the mask that readers correct nor gives a score to the worklist; brains are not found twice."""
    name = grid.replace(" ", "_")
    before = server.get(f"/datastore/image/info?image={name}").json()
    server.client.infer("lesion_mask", name, {**SLICER, "noise_level": 250})
    file, params = server.client.infer("lesion_preview", name, {**SLICER, "save_label": True, "threshold": 1e-6})
    array, _ = nrrd.read(file)
    assert array.shape == GRIDS[grid][0] and {0, 1} <= set(np.unique(array)) <= {0, 1, 2}
    assert params["latencies"]["pre"] < 0.05 and params["options"] == {"threshold": 1e-6}
    after = server.get(f"/datastore/image/info?image={name}").json()
    assert after.get("anomaly_score") == before.get("anomaly_score")
    server.client.download_label(name, "lesion_preview")


def test_the_same_request_gives_the_same_bytes(server: Server) -> None:
    files = []
    for steps in (2, 1, 3, 2):  # the first is no longer kept when it comes again
        file, _ = server.client.infer("anomaly_heat_map", "oblique", {**SLICER, "num_inference_steps": steps})
        files.append(Path(file).read_bytes())
    assert files[0] == files[3] != files[2]


BAD = [
    ("lesion_mask", "nobody", {}, 404, "There is no image 'nobody'"),
    (
        "no_model",
        "plain",
        {},
        400,
        "There is no model 'no_model'; there are lesion_mask, anomaly_heat_map, lesion_preview",
    ),
    ("lesion_mask", "../studies/plain", {}, 400, "a name without slashes"),
    ("lesion_mask", "..", {}, 400, "not beginning with a dot"),
    ("lesion_mask", "/etc/passwd", {}, 400, "a name without slashes"),
    ("lesion_mask", "plain", {"image": "/etc/passwd"}, 400, "a name without slashes"),
    ("lesion_mask", "plain", {"image": "../studies/plain"}, 400, "a name without slashes"),
    ("lesion_mask", "plain", {"noise_level": 1000}, 400, "noise_level must be above 0 and below 1000, got 1000"),
    ("lesion_mask", "plain", {"noise_level": "much"}, 400, "noise_level must be a whole number, got 'much'"),
    ("lesion_mask", "plain", {"num_inference_steps": 0}, 400, "num_inference_steps must be from 1"),
    ("lesion_mask", "plain", {"threshold": 0}, 400, "threshold must be above 0"),
    ("lesion_mask", "plain", {"threshold": 99}, 400, "threshold must be above 0 and at most 2, got 99.0"),
    ("lesion_mask", "plain", {"threshold": "nan"}, 400, "threshold must be above 0 and at most 2, got nan"),
    ("lesion_mask", "plain", {"guidance_scale": 1e30}, 400, "guidance_scale must be from 0 to 1000, got 1e+30"),
    ("lesion_mask", "plain", {"guidance_scale": "-inf"}, 400, "guidance_scale must be from 0 to 1000, got -inf"),
    ("lesion_preview", "plain", {"threshold": "inf"}, 400, "threshold must be above 0 and at most 2, got inf"),
    ("lesion_mask", "plain", {"guidance_scale": None}, 400, "guidance_scale must be a number, got None"),
    ("lesion_mask", "plain", {"result_extension": "/../../x.nrrd"}, 400, "result_extension must be one of .nii.gz"),
    ("lesion_mask", "plain", {"result_dtype": "object"}, 400, "result_dtype must be one of uint8"),
    ("lesion_mask", "plain", {"save_label": "false"}, 400, "save_label must be true or false, got 'false'"),
    ("lesion_mask", "plain", {"save_label": 1}, 400, "save_label must be true or false, got 1"),
    ("lesion_mask", "plain", {"save_label": True, "label_tag": "../.."}, 400, "label tag '../..' is not allowed"),
    ("lesion_mask", "plain", {"save_label": True, "label_tag": "final"}, 400, "'final' is the label of a reader"),
    ("lesion_mask", "text", {}, 400, "text.nii.gz: can't be read as an image"),
    ("lesion_mask", "cut", {}, 400, "cut.nii.gz: can't be read as an image"),
    ("lesion_mask", "two_channels", {}, 400, "two_channels.nii.gz: has 2 channel(s), the model takes 1"),
    ("lesion_mask", "no_slice", {}, 400, "no_slice.nii.gz"),
]


@pytest.mark.parametrize(("model", "image", "params", "status", "message"), BAD)
def test_bad_requests(
    server: Server, model: str, image: str, params: dict[str, Any], status: int, message: str
) -> None:
    config = server.studies / "datastore_v2.json"
    before = config.read_bytes(), sorted(server.studies.rglob("*"))
    answer = server.post(f"/infer/{model}", params={"image": image}, data={"params": json.dumps({**SLICER, **params})})
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert (config.read_bytes(), sorted(server.studies.rglob("*"))) == before
    assert server.client.info()["models"]


def test_an_image_named_as_another_sequence_runs_only_if_that_is_asked_for(server: Server) -> None:
    other = server.studies / "sub-1_T1w.nii.gz"
    shutil.copy(server.studies / "plain.nii.gz", other)
    try:
        answer = server.post("/infer/lesion_mask", params={"image": "sub-1_T1w", "output": "json"})
        assert answer.status_code == 400
        assert "sub-1_T1w is named as T1, the model takes FLAIR." in answer.json()["detail"]
        assert '"allow_any_image": true' in answer.json()["detail"]
        _, params = server.client.infer("lesion_mask", "sub-1_T1w", {**SLICER, "allow_any_image": True})
        warning = "The series is named as T1, the model takes FLAIR."
        assert warning in params["warnings"] and warning in params["result"]["warnings"]
        with pytest.raises(MONAILabelClientException, match="allow_any_image must be true or false, got .*yes"):
            server.client.infer("lesion_mask", "sub-1_T1w", {**SLICER, "allow_any_image": "yes"})
        _, params = server.client.infer("lesion_mask", "plain", SLICER)
        assert not [w for w in params["warnings"] if "named" in w]
    finally:
        other.unlink()


def test_paths_in_names_of_other_endpoints(server: Server) -> None:
    data = {"file": ("x.nii.gz", b"x")}
    assert server.put("/datastore/image", params={"image": "../evil"}, files=data).status_code == 400
    label = {"label": ("x.nii.gz", b"x")}
    assert server.put("/datastore/label", params={"image": "plain", "tag": "../evil"}, files=label).status_code == 400
    assert server.get("/datastore/label", params={"label": "../x", "tag": "final"}).status_code == 400
    assert server.delete("/datastore/image", params={"id": "../../x"}).status_code == 400
    assert server.get("/datastore/image", params={"image": "nobody"}).status_code == 404
    assert server.put("/datastore/label", params={"image": "nobody"}, files=label).status_code == 404
    assert not list(server.studies.parent.glob("evil*"))
    before = {p: p.read_bytes() for p in server.studies.rglob("*") if p.is_file()}
    for name, content in (("x.exe", b"MZ"), ("x.nii.gz", b""), ("x.nii.gz", b"no image")):
        bad = {"label": (name, content)}
        answer = server.put("/datastore/label", params={"image": "plain", "tag": "final"}, files=bad)
        assert answer.status_code == 400 and "The label 'final' of plain" in answer.json()["detail"]
    assert {p: p.read_bytes() for p in server.studies.rglob("*") if p.is_file()} == before
    archive = {"files": ("x.zip", b"x")}
    answer = server.put("/session/", params={"uncompress": "true"}, files=archive)
    assert answer.status_code == 400 and "Archives are not unpacked" in answer.json()["detail"]
    answer = server.post("/infer/lesion_mask", params={"image": "plain"}, data={"params": "{no json"})
    assert answer.status_code == 400 and "params is not JSON" in answer.json()["detail"]


def test_what_is_said_of_an_image_leads_to_no_other_file(server: Server) -> None:
    secret = server.studies.parent / "secret"
    secret.write_text("of the server's user")
    query, image = {"image": "plain"}, (server.studies / "plain.nii.gz").read_bytes()
    for name in (str(secret), "../secret", "Miller", 5):
        answer = server.put("/datastore/image/info", params=query, data={"info": json.dumps({"name": name})})
        assert answer.status_code == 400 and "name can't be changed" in answer.json()["detail"]
        assert server.get("/datastore/image", params=query).content == image
    # nor do they say which one is next
    before = server.get("/datastore/image/info", params=query).json()
    for key, value in (
        ("strategy", "x"),
        ("id", "flipped"),
        ("score", 0.01),
        ("unread", 0),
        ("anomaly_score", 10**400),
    ):
        answer = server.put("/datastore/image/info", params=query, data={"info": json.dumps({key: value, "note": 1})})
        assert answer.status_code == 400 and f"{key} can't be changed" in answer.json()["detail"]
    assert server.get("/datastore/image/info", params=query).json() == before
    added = {"params": json.dumps({"id": "flipped", "anomaly_score": 9, "note": 1})}
    assert server.put("/datastore/image?image=added", data=added, files={"file": ("x.nii.gz", image)}).ok
    assert server.get("/datastore/image/info?image=added").json().keys() & {"id", "anomaly_score", "note"} == {"note"}
    server.delete("/datastore/image?id=added")
    found = server.post("/activelearning/random", json={"client_id": "x"}).json()
    assert Path(found["path"]) == server.studies / f"{found['id']}.nii.gz"
    asked = server.get("/datastore/image/info", params={"image": found["id"]}).json()
    assert asked["strategy"]["random"]["client_id"] == "x"
    # what it was told, a client may send back
    assert server.put("/datastore/image/info", params=query, data={"info": json.dumps(before)}).status_code == 200
    said = {"info": json.dumps({"reader": "R"})}
    assert server.put("/datastore/image/info", params=query, data=said).status_code == 200
    assert server.get("/datastore/image/info", params=query).json()["reader"] == "R" and secret.exists()


@pytest.mark.parametrize("method", ["SHA256", "SHA512", "MD5", ""])
def test_an_image_is_compared_by_its_sum(server: Server, method: str) -> None:
    digits = hashlib.new(method or "SHA256", (server.studies / "plain.nii.gz").read_bytes()).hexdigest()
    begin = f"{method}:" if method else ""
    wrong = digits.replace(digits[0], "0" if digits[0] != "0" else "1")
    for wanted, status in ((digits, 200), (digits.upper(), 200), (wrong, 404), (digits[:-1], 404)):
        query = {"image": "plain", "check_sum": begin + wanted}
        assert server.head("/datastore/image", params=query).status_code == status
    assert server.head("/datastore/image", params={"image": "nobody", "check_sum": digits}).status_code == 404


def test_an_image_may_have_the_name_of_the_register(server: Server) -> None:
    name, image = "datastore_v2.json", (server.studies / "plain.nii.gz").read_bytes()
    before = (server.studies / name).read_bytes()
    assert server.put("/datastore/image", params={"image": name}, files={"file": ("x.nii.gz", image)}).ok
    assert name in server.client.datastore()["objects"]
    assert server.get("/datastore/image", params={"image": name}).content == image
    assert server.delete("/datastore/image", params={"id": name}).ok
    assert name not in server.client.datastore()["objects"]
    assert json.loads((server.studies / name).read_bytes())["objects"].keys() == json.loads(before)["objects"].keys()


def test_a_header_is_not_sent_without_its_voxels(server: Server) -> None:
    header = server.studies / "detached.mhd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 5, 6), np.uint8)), str(header))
    try:
        answer = server.get("/datastore/image", params={"image": "detached"})
        assert (
            answer.status_code == 400 and "detached.mhd is a header, and its voxels lie in other files" in answer.text
        )
    finally:
        header.unlink()
        header.with_suffix(".raw").unlink()


def test_an_added_image_keeps_the_name_of_its_sequence(server: Server) -> None:
    image = (server.studies / "plain.nii.gz").read_bytes()
    # MONAI Label's client sends the whole path
    answer = server.put("/datastore/image", files={"file": ("/home/p.1/p1.t1.nii.gz", image)})
    try:
        assert answer.json() == {"image": "p1.t1"}
        answer = server.post("/infer/lesion_mask", params={"image": "p1.t1", "output": "json"})
        assert answer.status_code == 400 and "p1.t1 is named as T1, the model takes FLAIR." in answer.json()["detail"]
    finally:
        assert server.delete("/datastore/image", params={"id": "p1.t1"}).status_code == 200
    assert "p1.t1" not in server.client.datastore()["objects"]


def temporary_files(server: Server) -> set[str]:
    return {p.name for p in (server.studies.parent / "tmp").glob("tmp*")}


def test_uploads_are_processed_and_removed(server: Server, tmp_path: Path) -> None:
    before = temporary_files(server)
    file, params = server.client.infer("lesion_mask", "", SLICER, file=str(server.studies / "flipped.nii.gz"))
    assert nrrd.read(file)[0].shape == GRIDS["flipped"][0]
    with pytest.raises(MONAILabelClientException, match="be read as an image"):
        server.client.infer("lesion_mask", "", SLICER, file=str(server.studies / "text.nii.gz"))
    session = server.client.create_session(str(server.studies / "plain.nii.gz"))["session_id"]
    file, _ = server.client.infer("lesion_mask", "", SLICER, session_id=session)
    assert nrrd.read(file)[0].shape == GRIDS["plain"][0]
    server.delete(f"/session/{session}")
    assert temporary_files(server) <= before


def test_too_large_an_upload_is_refused_but_read_to_its_end(server: Server, tmp_path: Path) -> None:
    large = {"file": ("large.nii.gz", bytes(17 * 2**20))}
    answer = server.post("/infer/lesion_mask", files=large)
    assert answer.status_code == 413 and "16 MiB" in answer.json()["detail"]

    # what is no file need not be as large
    for kind in ("application/json", "application/x-www-form-urlencoded", ""):
        sent = {"data": b"[" + b"1," * 2**19 + b"1]", "headers": {"content-type": kind}}
        for path in ("/activelearning/random", "/datastore/image/info?image=plain"):
            answer = server.post(path, **sent) if "active" in path else server.put(path, **sent)
            assert answer.status_code == 413 and "1 MiB that are allowed for one without a file" in answer.text

    # some bytes that claim to be a volume of 32 MiB
    claims = Path(header_alone(tmp_path / "x.nii.gz", (200, 200, 210))).read_bytes()
    session = server.put("/session/", files={"files": ("x.nii.gz", claims)}).json()["session_id"]
    for answer in (
        server.post("/infer/lesion_mask", files={"file": ("x.nii.gz", claims)}),
        server.post(f"/infer/lesion_mask?session_id={session}"),
        server.put("/datastore/image", params={"image": "large"}, files={"file": ("x.nii.gz", claims)}),
    ):
        assert answer.status_code == 400 and "too large once it is unpacked" in answer.json()["detail"]

    # in chunks: no length is announced
    body, kind = encode_multipart_formdata(large)
    chunks = (body[i : i + 2**20] for i in range(0, len(body), 2**20))
    answer = server.put("/datastore/image", params={"image": "large"}, data=chunks, headers={"content-type": kind})
    assert answer.status_code == 413 and "16 MiB" in answer.json()["detail"]
    assert "large" not in server.client.datastore()["objects"]


def test_a_client_that_goes_away_and_two_at_once(server: Server) -> None:
    gone = http.client.HTTPConnection("127.0.0.1", server.port)
    body = b"params=%7B%22num_inference_steps%22%3A40%7D"
    headers = {"content-type": "application/x-www-form-urlencoded"}
    gone.request("POST", "/infer/lesion_mask?image=flipped", body, headers)
    time.sleep(0.3)
    start = time.perf_counter()
    server.client.info()
    free = time.perf_counter() - start
    gone.close()
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(server.client.infer, "lesion_mask", name, SLICER) for name in ("plain", "anisotropic")]
        shapes = [nrrd.read(run.result()[0])[0].shape for run in runs]
    assert shapes == [GRIDS["plain"][0], GRIDS["anisotropic"][0]]
    assert free < 5  # the loop isn't blocked by the networks


def wait_for(server: Server, task: str) -> dict[str, Any]:
    for _ in range(240):
        status = server.get(task).json()
        if status.get("status") in ("DONE", "ERROR"):
            return status
        time.sleep(0.5)
    raise TimeoutError(task)


def test_triage_and_scoring(server: Server, tmp_path: Path) -> None:
    server.post("/batch/infer/lesion_mask", params={"images": "unlabeled"}, json={"device": "cpu"})
    report = "\n".join(wait_for(server, "/batch/infer")["details"])
    assert "failed" in report and "can't be read as an image" in report
    infos = {name: study["image"]["info"] for name, study in server.client.datastore()["objects"].items()}
    scores = {name: info["anomaly_score"] for name, info in infos.items() if "anomaly_score" in info}
    assert set(scores) == {g.replace(" ", "_") for g in GRIDS}
    ranked = sorted(scores, key=lambda name: -scores[name])
    first = server.client.next_sample("most_anomalous_first", {})
    assert first["id"] == ranked[0] and first["score"] == scores[ranked[0]]
    # which OHIF asks for, whatever it is called
    assert server.client.next_sample("random", {})["id"] == ranked[0]
    strategies = server.client.info()["strategies"]
    assert strategies["random"]["description"].startswith("Most anomalous first")

    # half of the predicted mask, submitted by a reader
    server.client.infer("lesion_mask", ranked[0], {"save_label": True})
    predicted = nib.load(server.client.download_label(ranked[0], "original"))
    mask = np.asarray(predicted.dataobj)
    marked = np.argwhere(mask == 1)
    half = np.zeros_like(mask)
    half[tuple(marked[::2].T)] = 1
    path = tmp_path / "reader.nii.gz"
    nib.save(nib.Nifti1Image(half, predicted.affine), path)
    server.client.save_label(ranked[0], str(path))
    assert server.client.next_sample("most_anomalous_first", {})["id"] == ranked[1]
    server.post("/scoring/dice", json={})
    wait_for(server, "/scoring/")
    kept = len(marked[::2])
    dice = server.client.datastore()["objects"][ranked[0]]["image"]["info"]["dice"]
    assert dice == pytest.approx(2 * kept / (kept + len(marked)), abs=1e-6)


def test_fine_tuning_over_http(server: Server, tmp_path: Path) -> None:
    for name in ("plain", "flipped"):
        image = nib.load(server.studies / f"{name}.nii.gz")
        mask = np.zeros(image.shape, np.uint8)
        mask[30:34, 30:34, 2] = 1
        nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / f"{name}.nii.gz")
        server.client.save_label(name, str(tmp_path / f"{name}.nii.gz"))
    assert server.client.info()["train_stats"]["classifier"] == {}
    server.client.train_start("classifier", {"max_minutes": 0.02, "val_split": 0.5})
    status = wait_for(server, "/train/")
    details = "\n".join(status["details"])
    assert status["status"] == "DONE", details
    report = server.client.info()["train_stats"]["classifier"]
    assert report["patients"]["train"] >= 1 and report["patients"]["validation"] >= 1 and report["iterations"] > 0
    assert report["published"] == (report["after"]["val_loss"] <= report["before"]["val_loss"])
    assert server.client.infer("lesion_mask", "plain", SLICER)[1]["weights"]


def test_heat_map_levels() -> None:
    threshold = 0.3
    a = torch.tensor([0.0, 0.1, 0.1001, 0.2001, 0.3, 0.3001, 0.9001, 5.0, torch.nan]).view(1, -1, 1, 1)
    pred = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2]).view(1, -1, 1, 1)
    result = {"anomaly_map": MetaTensor(a), "pred": MetaTensor(pred)}
    levels = heat_map(result, threshold).flatten().tolist()
    assert levels == [0, 0, 1, 2, 2, 3, 9, 9, 10]
    assert lesion_mask(result, threshold).flatten().tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2]
    # where the mask is, the level is at least the third
    assert [n >= 3 for n in levels] == [bool(m) for m in lesion_mask(result, threshold).flatten()]
    assert list(HEAT_MAP_LABELS.values()) == list(range(1, 11))
    assert HEAT_MAP_LABELS["not assessed: no result"] == 10


def test_the_mask_has_the_bundles_numbers() -> None:
    assert MASK_LABELS == {"lesion": LESION, "not assessed": NOT_ASSESSED}


def test_the_colours_of_ohif_run_from_dark_to_light() -> None:
    def colour(name: str) -> tuple[int, ...]:
        n = 4 * len(name) + sum(map(ord, name))  # fixedRGBForLabel in OHIF's MONAI Label extension
        return tuple(k * n % 256 for k in (2, 3, 5))

    *levels, not_assessed = HEAT_MAP_LABELS
    luminances = [np.dot(colour(name), (0.3, 0.59, 0.11)) for name in levels]
    assert luminances == sorted(luminances)
    # what was not assessed looks like no level and no lesion
    assert colour(not_assessed) == (60, 90, 150)
    assert colour("not assessed") == (248, 244, 236) and colour("lesion")[1] > 2 * colour("lesion")[0]


def test_options_that_are_not_the_default_are_named_shortly() -> None:
    defaults = {"noise_level": 400, "guidance_scale": 100.0, "num_inference_steps": 40, "threshold": 0.294}
    assert changed_options(defaults, defaults) == ""
    others = {"noise_level": 500, "guidance_scale": 100.0, "num_inference_steps": 20, "threshold": 0.2}
    assert changed_options(others, defaults) == "L500 s20 t0.2"


def test_networks_load_once_and_again_when_their_files_change(tmp_path: Path) -> None:
    bundle = find_models(write_small_bundle(tmp_path), "cpu")[0]
    item = write_head(tmp_path)
    bundle([item["image"]], bundle.declared.options())
    network = bundle.networks[FULL]["network"]
    bundle([item["image"]], {**bundle.declared.options(), "noise_level": 200})
    assert bundle.networks[FULL]["network"] is network
    path = bundle.declared.path / "models" / "model.pt"
    torch.save(torch.load(path, weights_only=True), path)
    bundle.load()
    # one that finds the foreground may have changed too
    assert bundle.networks[FULL]["network"] is not network and not bundle._inputs and not bundle._studies


def test_numbers_that_were_chosen_for_other_networks_are_said_of_each_result(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path)
    values = {"threshold": 0.05, "preview_threshold": 0.436}
    (path / "models" / "weights.json").write_text(json.dumps({"calibration": {"values": values, "network": "0"}}))
    bundle = find_models(path, "cpu")[0]
    image = write_head(tmp_path)["image"]
    chosen = "The threshold was chosen for other networks than those in use."
    for mode in (FULL, PREVIEW):
        task = AnomalyInferTask(bundle, "mask", mode)
        for request, said in (({}, True), ({}, True), ({"threshold": 0.06}, False)):
            file, params = task({"image": image, **request})
            Path(file).unlink()
            assert [params["warnings"].count(chosen), params["result"]["warnings"].count(chosen)] == [said, said]


def test_viewers_are_shown_the_threshold_of_now(tmp_path: Path) -> None:
    """They send back what they are shown, and a threshold of before would count as one that somebody chose."""
    path = write_small_bundle(tmp_path)
    for name, chosen in (("inference", "threshold"), ("preview", "preview_threshold")):
        file = path / "configs" / f"{name}.json"
        config = json.loads(file.read_text())
        calibrated = {"_target_": "scripts.weights.calibrated", "manifest": "@manifest", "name": chosen}
        config["displayable_configs"]["threshold"] = calibrated
        file.write_text(json.dumps(config))
    manifest = path / "models" / "weights.json"

    def calibrate(**values: float) -> None:
        manifest.with_suffix(".new").write_text(json.dumps({"calibration": {"values": values, "network": "0"}}))
        manifest.with_suffix(".new").replace(manifest)

    calibrate(threshold=0.06, preview_threshold=0.3)
    bundle = find_models(path, "cpu")[0]
    image = write_head(tmp_path)["image"]
    tasks = [
        AnomalyInferTask(bundle, view, mode) for view, mode in (("mask", FULL), ("heat_map", FULL), ("mask", PREVIEW))
    ]
    for threshold, preview in ((0.06, 0.3), (0.12, 0.4), (0.24, 0.5)):
        calibrate(threshold=threshold, preview_threshold=preview)
        shown = [task.info() for task in tasks]
        assert [one["config"]["threshold"] for one in shown] == [threshold, threshold, preview]
        assert f"of the threshold {threshold:g}, so that 1 begins at {threshold / 3:.3g}," in shown[1]["description"]
        for task, one in zip(tasks, shown, strict=True):
            file, params = task({"image": image, **one["config"]})
            Path(file).unlink()
            assert params["changed_options"] == ""
            assert "The threshold was chosen for other networks than those in use." in params["warnings"]
    # what is shown can be changed by nobody but a calibration
    tasks[0].config()["threshold"] = 1.0
    assert tasks[0].config()["threshold"] == 0.24
    # without one for the student alone, its preview is refused, and the models are listed all the same
    calibrate(threshold=0.12)
    assert [task.info()["config"]["threshold"] for task in tasks] == [0.12, 0.12, 0.5]


def test_options_are_parsed_once_for_every_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = find_models(write_small_bundle(tmp_path), "cpu")[0]
    parsed, asked = bundle.declared.parsed, []
    monkeypatch.setattr(bundle.declared, "parsed", lambda name, **given: asked.append(name) or parsed(name, **given))
    for content in ("{}", '{"a": 1}'):
        (bundle.declared.models_dir / "weights.json").write_text(content)
        for _ in range(3):
            bundle.declared.options()
    assert len(asked) == 2


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError])
def test_a_fault_of_the_program_is_none_of_the_clients(
    error: type[Exception], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = find_models(write_small_bundle(tmp_path), "cpu")[0]
    bundle.load()
    image = write_head(tmp_path)["image"]

    def fails(*_: Any) -> None:
        raise error(f"shapes of {image} differ")

    bundle.networks[FULL]["network"].register_forward_pre_hook(fails)
    with pytest.raises(MONAILabelException) as failure:
        bundle([image], bundle.declared.options())
    assert STATUS.get(failure.value.error, 500) == 500
    name = error.__name__
    assert failure.value.msg == f"The server failed ({name}: shapes of flair.nii.gz differ). Its log says more."
    assert "Traceback" in caplog.text and "in fails" in caplog.text


def test_both_modes_share_one_student(tmp_path: Path) -> None:
    bundle = find_models(write_small_bundle(tmp_path), "cpu")[0]
    bundle.load()
    assert bundle.networks[PREVIEW]["network"] is bundle.networks[FULL]["student"]


def test_a_bundle_without_a_student_has_no_preview(tmp_path: Path) -> None:
    path = write_small_bundle(tmp_path)
    config = path / "configs" / "inference.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "student": None}))
    bundle = find_models(path, "cpu")[0]
    assert bundle.declared.modes == [FULL]
    assert bundle([write_head(tmp_path)["image"]], bundle.declared.options())["anomaly_map"].shape == (
        1,
        *GRIDS["plain"][0],
    )


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".NII.GZ"])
def test_an_image_of_another_format_gives_nifti_on_its_grid(ending: str, tmp_path: Path) -> None:
    bundle = find_models(write_small_bundle(tmp_path), "cpu")[0]
    source = write_head(tmp_path, "flipped")["image"]
    path = str(tmp_path / f"image{ending}")
    if ending == ".NII.GZ":
        shutil.copy(source, path)
    else:
        SimpleITK.WriteImage(SimpleITK.ReadImage(source), path)
    file, _, result = AnomalyInferTask(bundle, "mask").run({"image": path})
    for written in (file, *write_results(result, path, tmp_path).values()):
        image = nib.load(written)
        assert image.shape == GRIDS["flipped"][0]
        np.testing.assert_allclose(image.affine, GRIDS["flipped"][1], atol=1e-5)


class Archive:
    """A DICOMweb server's answers: two studies, one with a T1, and series that can't be used."""

    base_url = "http://archive.example/dicom-web"
    rows = [
        ("1.2.1", "1.2", "AX FLAIR", "MR", 1),
        ("1.2.2", "1.2", "AX T1", "MR", 1),
        ("1.3.1", "1.3", "FLAIR", "MR", 1),
        ("1.4.1", "1.4", "HEAD", "CT", 1),
        ("1.5.1", "1.5", "FLAIR", "MR", 0),
        ("1.6.1", "1.6", "FLAIR", "MR", 9),
    ]

    def search_for_series(
        self, search_filters: dict[str, str], fields: list[str], offset: int | None = None
    ) -> list[dict[str, Any]]:
        found = []
        for uid, study, description, modality, instances in self.rows:
            series = Dataset()
            series.SeriesInstanceUID, series.StudyInstanceUID, series.Modality = uid, study, modality
            series.SeriesDescription, series.NumberOfSeriesRelatedInstances = description, instances
            if all(str(series[key].value) == value for key, value in search_filters.items()):
                found.append(series.to_json_dict())
        return found

    def search_for_instances(
        self, study: str, uid: str, fields: list[str], offset: int | None = None
    ) -> list[dict[str, Any]]:
        rows = []
        for n in range(1, 10):
            row = Dataset()
            row.SOPInstanceUID = f"{uid}.{n}"
            rows.append(row.to_json_dict())
        return rows[offset or 0 :]

    def retrieve_series(self, study: str, uid: str, media_types: Any) -> list[Dataset]:
        # what is there is no image
        instance = Dataset()
        instance.SOPInstanceUID, instance.SOPClassUID = f"{uid}.1", "1.2.840.10008.5.1.4.1.1.4"
        instance.StudyInstanceUID, instance.SeriesInstanceUID = study, uid
        instance.file_meta = FileMetaDataset()
        instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        instance.is_little_endian, instance.is_implicit_VR = True, False
        return [] if uid == "1.5.1" else [instance]


def test_series_of_a_dicomweb_server(tmp_path: Path) -> None:
    studies = DICOMwebStudies(client=Archive(), search_filter={}, modalities=["MR"], cache_path=str(tmp_path))
    studies.channels = [["FLAIR"]]
    assert studies.list_images() == ["1.2.1", "1.3.1", "1.5.1", "1.6.1"]
    assert studies.siblings("1.2.1", ["FLAIR", "T1"]) == ["1.2.1", "1.2.2"]
    for image, error in {
        "1.3.1": "T1 is missing in this study. Found: FLAIR (1.3.1)",
        "9.9": "There is no series 9.9 on http://archive.example/dicom-web",
        "nobody": "'nobody' is no SeriesInstanceUID",
    }.items():
        with pytest.raises(MONAILabelException) as refusal:
            studies.siblings(image, ["FLAIR", "T1"])
        assert error in refusal.value.msg
    for image, error in {
        "1.4.1": "1.4.1: is CT; allowed is MR",
        "1.5.1": "Series 1.5.1 holds no image",
        "1.6.1": "1.6.1: 1 of 9 instances came from http://archive.example/dicom-web; try again",
        "1.2.1": "Series 1.2.1 can't be read as a volume",
        "../1.2.1": "a name without slashes",
    }.items():
        with pytest.raises(MONAILabelException) as refusal:
            studies.get_image_uri(image)
        assert error in refusal.value.msg
    # nothing of what failed is left
    assert not list(tmp_path.rglob("*.dcm")) and not list(tmp_path.rglob("*.nii.gz"))


def test_a_bundle_by_its_address(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    archive = Path(shutil.make_archive(str(site / "b"), "zip", write_small_bundle(tmp_path).parent, "bundle"))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site_server:
        threading.Thread(target=site_server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site_server.server_port}/b.zip"
        with pytest.raises(ValueError, match="its SHA-256 is .* nothing of it was used"):
            fetch_bundle(url, "0" * 64, tmp_path / "kept")
        assert not list((tmp_path / "kept").iterdir())
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            fetch_bundle(url, "", tmp_path / "kept")
        path = fetch_bundle(url, sha256, tmp_path / "kept")
        site_server.shutdown()
    assert find_models(path, "cpu")[0].declared.channels == ["FLAIR"]
    assert fetch_bundle(url, sha256, tmp_path / "kept") == path  # kept, not fetched again


def test_other_machines_are_refused_unless_asked_for() -> None:
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello"))])
    for client, host, status in (("10.0.0.7", None, 403), ("10.0.0.7", "10.0.0.1", 200), ("127.0.0.1", None, 200)):
        guarded = Guard(app, host=host, max_bytes=100)
        assert TestClient(guarded, "http://127.0.0.1", client=(client, 1)).get("/").status_code == status


def test_the_stock_task_serves_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # MONAI Label imports torchvision for two functions that are not used here; it has no CPU build beside this torch
    for name in ("torchvision", "torchvision.utils"):
        module = ModuleType(name)
        module.make_grid = module.save_image = None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    from monailabel.tasks.infer.bundle import BundleInferTask

    mine = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "scripts"}
    try:
        task = BundleInferTask(str(write_small_bundle(tmp_path)), {})
        item = write_head(tmp_path, "sagittal")
        file, params = task({"image": item["image"], "device": "cpu", "result_extension": ".nii.gz"})
    finally:
        # it imports the bundle's scripts anew; the other tests keep theirs
        for name in [n for n in sys.modules if n.split(".")[0] == "scripts"]:
            del sys.modules[name]
        sys.modules.update(mine)
    mask = nib.load(file)
    assert mask.shape == GRIDS["sagittal"][0]
    np.testing.assert_allclose(mask.affine, GRIDS["sagittal"][1], atol=1e-4)
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2}


def test_the_slicer_script_loads_what_the_server_keeps(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests are real; Slicer itself is stood in for, so only what it is asked to load can be checked."""
    slicer, loaded = MagicMock(), {}

    def load(path: str, properties: dict[str, Any]) -> MagicMock:
        loaded[properties["name"]] = nib.load(path).get_fdata()
        return MagicMock()

    slicer.util.loadVolume = load
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    monkeypatch.setitem(sys.modules, "vtk", MagicMock())
    script: dict[str, Any] = runpy.run_path(str(Path(serve.__file__).parent / "slicer" / "show_anomaly.py"))
    node = MagicMock()
    node.GetName.return_value = "plain"
    scores = script["show_anomaly"](server.url, node)
    assert scores["label_names"] == {"lesion": 1, "not assessed": 2} and 0 <= scores["p_diseased"] <= 1
    assert set(loaded) == {"plain anomaly_map", "plain counterfactual"}
    assert all(volume.shape == GRIDS["plain"][0] for volume in loaded.values())
    node.GetName.return_value = "nobody"
    with pytest.raises(RuntimeError, match="There is no image 'nobody' among the studies"):
        script["show_anomaly"](server.url, node)
