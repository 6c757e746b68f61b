"""The app end to end with the real parts: Orthanc for the DICOM, OHIF in Chromium, MONAI Label's client for 3D Slicer."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.client import MONAILabelClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import serve
from lib.demonstration.label_server import label_server, ohif_url
from lib.demonstration.mr_series import series_from_nifti
from lib.demonstration.orthanc import find_orthanc, orthanc, upload
from lib.demonstration.servers import LOGIN, ServeError, answers, running
from machine import free_port
from scripts.dicom.parametric_map import NOT_ASSESSED
from serve import RADIOGRAPH, SAMPLE, sample_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
missing = [
    name
    for name, found in {"Orthanc with its DICOMweb plugin": find_orthanc(), "Chromium": CHROMIUM}.items()
    if not found
]
if missing:
    message = f"{' and '.join(missing)} not found; `make viewers` installs what these tests need."
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message, allow_module_level=True)

REPOSITORY = Path(__file__).parents[1]
ARTIFACTS = Path(os.environ.get("ARTIFACTS", REPOSITORY / "output" / "artifacts"))
# Chromium draws WebGL without a graphics card and calls no host
FLAGS = (
    "--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist "
    "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
).split()
LESION_RAS = np.array([53.0, 42.0, 32.0])
"""Where the sample's glioma is, in mm."""
TO_LPS = np.array([-1.0, -1.0, 1.0])
QUICK = {"num_inference_steps": 2}
VIEWPORT = "cornerstone.getRenderingEngines()[0].getViewports()[0]"


@dataclass
class Site:
    """The servers, and the series on them: `glioma` is the sample, in `healthy` a ball of brain replaces the lesion."""

    folder: Path
    port: int
    server: str
    study: str
    glioma: str
    healthy: str
    archive: ExitStack = field(default_factory=ExitStack)
    """Orthanc, closed and opened again by the test of an outage."""

    @property
    def dicomweb(self) -> DICOMwebClient:
        return DICOMwebClient(f"http://127.0.0.1:{self.port}/dicom-web", create_session_from_user_pass(*LOGIN.values()))

    def post(self, path: str, **kwargs: Any) -> requests.Response:
        return requests.post(f"{self.server}/{path}", timeout=300, **kwargs)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.server}/{path}", timeout=60)

    def next_sample(self) -> dict[str, Any]:
        response = self.post("activelearning/most_anomalous_first", json={})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def label(self, series: str, tag: str) -> tuple[np.ndarray, np.ndarray]:
        """A stored label's array and affine (RAS), as a viewer downloads it."""
        return volume(MONAILabelClient(self.server, tmpdir=str(self.folder)).download_label(series, tag))

    def objects(self, modality: str, study: str) -> list[pydicom.Dataset]:
        """The instances of this modality in a study."""
        found = self.dicomweb.search_for_instances(study, search_filters={"Modality": modality})
        uids = [pydicom.Dataset.from_json(f) for f in found]
        return [self.dicomweb.retrieve_instance(study, u.SeriesInstanceUID, u.SOPInstanceUID) for u in uids]


def volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def without_lesion(path: Path) -> Path:
    """The sample with a ball of 30 mm at the lesion set to what is the median of the middle of the brain."""
    image = nib.load(SAMPLE)
    array = np.asarray(image.dataobj).copy()
    grid = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1)
    ras = nib.affines.apply_affine(image.affine, grid)
    middle = nib.affines.apply_affine(image.affine, np.array(array.shape) / 2)
    median = np.median(array[np.linalg.norm(ras - middle, axis=-1) < 40])
    array[np.linalg.norm(ras - LESION_RAS, axis=-1) < 30] = median
    nib.save(nib.Nifti1Image(array, image.affine, image.header), path)
    return path


def series_uid(files: list[Path]) -> str:
    return str(pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)


def write_bundle(folder: Path) -> Path:
    """The bundle, whose brain model looks at slices of a good size alone, so that some of the brain is not assessed."""
    bundle = folder / "bundle"
    shutil.copytree(serve.BUNDLE / "configs", bundle / "configs")
    for name in ("scripts", "models"):
        (bundle / name).symlink_to(serve.BUNDLE / name)
    path = bundle / "configs" / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "min_area": 1000}))
    return bundle


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    sample, study = sample_study(folder / "glioma")
    healthy = series_from_nifti(
        without_lesion(folder / "healthy.nii.gz"),
        folder / "healthy",
        series_description="FLAIR",
        patient_id="HEALTHY",
        patient_name="Sample^Without lesion",
    )
    port = free_port()
    with ExitStack() as archive:
        dicomweb = archive.enter_context(orthanc(folder / "orthanc", port))
        upload([*sample, *healthy], port)
        bundle = {"bundle": str(write_bundle(folder))}
        with label_server(dicomweb, folder / "server", free_port(), bundle, LOGIN) as server:
            yield Site(folder, port, server, study, series_uid(sample), series_uid(healthy), archive)


@dataclass
class Triage:
    """A morning of a reader: the state of the batch, then the worklist's head before and after a submitted label."""

    batch: dict[str, Any]
    first: dict[str, Any]
    second: dict[str, Any]
    label: np.ndarray


@pytest.fixture(scope="module")
def triage(site: Site) -> Triage:
    response = site.post("batch/infer/lesion_mask?images=unlabeled&run_sync=false", json=QUICK)
    assert response.status_code == 200, response.text
    end = time.monotonic() + 180
    while (batch := site.get("batch/infer").json())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < end, batch
        time.sleep(1)
    first = site.next_sample()

    # a box that no axis' reversal or exchange leaves in place, as the raw buffer that OHIF sends: first axis fastest
    label = np.zeros(site.label(site.glioma, "original")[0].shape, np.uint8)
    label[30:60, 140:180, 7:10] = 1
    response = requests.put(
        f"{site.server}/datastore/label",
        params={"image": site.glioma},
        data={"params": "{}"},
        files={"label": ("label.bin", label.tobytes(order="F"))},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    return Triage(batch, first, site.next_sample(), label)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page(viewport={"width": 1400, "height": 900})
        browser.close()


def canvas(page: Page) -> np.ndarray:
    """What the viewport shows, ``(H, W, 3)``, once it no longer changes."""
    last = None
    for _ in range(60):
        data = page.evaluate(f"{VIEWPORT}.canvas.toDataURL('image/png')")
        if data == last:
            break
        last = data
        page.wait_for_timeout(500)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")).astype(int)


def chroma(picture: np.ndarray) -> np.ndarray:
    """The colour of each pixel, whatever the grey that it is blended with: ``(..., 2)``."""
    return picture[..., :2] - picture[..., 1:]


def connect(page: Page, site: Site) -> None:
    """MONAI Label's panel of a page that was opened, on which nothing is drawn yet, to the server."""
    page.wait_for_function("window.cornerstone?.getRenderingEngines()[0]?.getViewports().length", timeout=60_000)
    assert not drawn(canvas(page)).any()
    page.fill("#monailabelServerURL", f"{site.server}/")
    page.click(".settingsTable .actionButton")
    page.wait_for_selector("select.selectBox")
    page.wait_for_function("services.segmentationService.getLabelmapVolume('1')")
    # the panel sets its colours a second later
    page.wait_for_timeout(2000)


def drawn(picture: np.ndarray) -> np.ndarray:
    """Where something is drawn over the image, which is grey: ``(H, W)``."""
    return np.asarray(np.abs(chroma(picture)).max(-1) > 3)


def on_canvas(page: Page, labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The labels where the viewport shows them, ``(H, W)``, by its own geometry: the nearest voxel to each pixel."""
    return sampled(labels, nib.affines.apply_affine(np.linalg.inv(affine), places(page) * TO_LPS))


def places(page: Page, of: str = "v.canvasToWorld(p)") -> np.ndarray:
    """Where the centres of the viewport's pixels lie, ``(H, W, 3)``, of a linear function of its corners."""
    width, height, corners = page.evaluate(
        f"(v => [v.canvas.width, v.canvas.height, [[0, 0], [1, 0], [0, 1]].map(p => [...{of}])])({VIEWPORT})"
    )
    origin, x, y = np.array(corners)
    # the centre of a pixel is half a pixel from its corner
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.asarray(origin + columns[..., None] * (x - origin) + rows[..., None] * (y - origin))


def sampled(labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The labels at indices ``(H, W, 3)``; 0 outside."""
    index = np.rint(index).astype(int)
    inside = ((index >= 0) & (index < labels.shape)).all(-1)
    return np.where(inside, labels[tuple(np.where(inside[..., None], index, 0).transpose(2, 0, 1))], 0)


def run_in_ohif(page: Page, model: str) -> np.ndarray:
    page.select_option("select.selectBox", model)
    with page.expect_response(lambda r: f"/infer/{model}" in r.url, timeout=180_000) as response:
        page.click("button[title='Run Segmentation']")
    assert response.value.status == 200
    notice = page.get_by_text("Running Segmentation - Successful")
    notice.wait_for()
    notice.wait_for(state="hidden")
    return canvas(page)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    port = free_port()
    options: dict[str, Any] = {"name": "Archive", "ready": f"http://127.0.0.1:{port}/", "cwd": tmp_path}
    options["log"] = tmp_path / "log"
    fails = [sys.executable, "-c", "print('the disk is full'); raise SystemExit(3)"]
    with (
        pytest.raises(ServeError, match=r"(?s)Archive ended with status 3.*the disk is full"),
        running(fails, **options),
    ):
        pass
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(ServeError, match=f"Archive: port {port} can't be used"), running(fails, **options):
            pass


def test_a_server_takes_what_it_started_with_it(tmp_path: Path) -> None:
    port = free_port()
    # the child outlives its parent and ignores the polite signal
    script = (
        "import http.server, signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen(['sleep', '600']); signal.signal(signal.SIGTERM, signal.SIG_DFL); "
        "print(child.pid, flush=True); "
        f"http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
    )
    log = tmp_path / "log"
    url = f"http://127.0.0.1:{port}/"
    with running([sys.executable, "-c", script], name="Parent", ready=url, log=log, cwd=tmp_path) as process:
        child = Path("/proc") / log.read_text().split()[0]
        assert child.exists()
    assert process.returncode == -signal.SIGTERM
    end = time.monotonic() + 5
    # a zombie is gone, too: it waits for init to collect it
    while child.exists() and ") Z " not in (child / "stat").read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert not answers(url)


def test_serve_says_what_to_open_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, str(Path(serve.__file__)), "--folder", str(tmp_path)]
    command += ["--port", str(port), "--orthanc_port", str(free_port())]
    # tests that were started in the background ignore Ctrl-C, and so would what they start
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        addresses = [word for word in said.split() if "/ohif/" in word]
        modes = ["monai-label"] * (1 + serve.CHEST.is_file()) + ["viewer"]
        assert [a.split("/ohif/")[1].split("?")[0] for a in addresses] == modes
        assert all(requests.get(address, timeout=10).status_code == 200 for address in addresses)
        assert requests.get(f"http://127.0.0.1:{port}/datastore/", timeout=10).json()["total"] == len(modes) - 1
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()  # what doesn't end fails instead of hanging
    assert "not for clinical use" in said
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/info/", timeout=10)


def test_orthanc_answers_the_label_server_alone(site: Site) -> None:
    for method, path in (
        ("GET", "system"),
        ("GET", "dicom-web/studies"),
        ("POST", "tools/shutdown"),
        ("DELETE", "patients/x"),
    ):
        assert requests.request(method, f"http://127.0.0.1:{site.port}/{path}", timeout=10).status_code == 401
    found = site.get("proxy/dicom/qido/studies?PatientID=HEALTHY&includefield=PatientName").json()
    assert [study["00100020"]["Value"] for study in found] == [["HEALTHY"]]
    assert site.get("proxy/dicom/qido/studies?PatientID=NOBODY").json() == []
    config = site.folder / "orthanc" / "orthanc.json"
    assert config.stat().st_mode & 0o77 == 0 and LOGIN["MONAI_LABEL_DICOMWEB_PASSWORD"] in config.read_text()


def test_ohif_draws_the_mask_and_the_graded_map_where_they_are(site: Site, page: Page) -> None:
    page.goto(ohif_url(site.server, site.study))
    page.get_by_text("Confirm and Hide").click()
    connect(page, site)
    # the axial view alone
    page.evaluate("commandsManager.runCommand('toggleOneUp')")
    page.wait_for_function("cornerstone.getRenderingEngines()[0].getViewports().length == 1")
    page.evaluate(f"p => {VIEWPORT}.jumpToWorld(p)", (LESION_RAS * TO_LPS).tolist())
    assert not drawn(canvas(page)).any()

    run_in_ohif(page, "lesion_mask")
    client = MONAILabelClient(site.server, tmpdir=str(site.folder))
    mask, affine = volume(client.infer("lesion_mask", site.glioma, {"result_extension": ".nii.gz"})[0])
    largest = int((mask == 1).sum((0, 1)).argmax())
    centre = np.append(np.argwhere(mask[..., largest] == 1).mean(0), largest)
    centre = nib.affines.apply_affine(affine, centre)
    assert np.linalg.norm(centre - LESION_RAS) < 25
    page.evaluate(f"p => {VIEWPORT}.jumpToWorld(p)", (centre * TO_LPS).tolist())
    picture = canvas(page)
    page.screenshot(path=ARTIFACTS / "ohif_lesion_mask.png")
    expected = on_canvas(page, mask, affine) == 1
    assert expected.sum() > 1000
    # it is 1; a mask that lies one voxel off has 0.94, and its centre 2.7 pixels off
    marked = drawn(picture) & (on_canvas(page, mask, affine) != 2)  # what was not assessed is nearly white
    assert overlap(marked, expected) > 0.98
    assert np.linalg.norm(np.argwhere(marked).mean(0) - np.argwhere(expected).mean(0)) < 1

    picture = run_in_ohif(page, "anomaly_heat_map")
    page.screenshot(path=ARTIFACTS / "ohif_heat_map.png")
    levels, _ = volume(client.infer("anomaly_heat_map", site.glioma, {"result_extension": ".nii.gz"})[0])
    shown = on_canvas(page, levels, affine)
    assert overlap(drawn(picture), shown > 0) > 0.98
    assert shown[expected].min() == 3
    colours = [np.median(chroma(picture)[shown == n], 0) for n in range(1, 10) if (shown == n)[expected].sum() > 200]
    assert len(colours) >= 4
    distances = [np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 10

    # what was not assessed is slate blue, in a slice where there is most of it
    most = int((levels == 10).sum((0, 1)).argmax())
    centre = nib.affines.apply_affine(affine, np.append(np.argwhere(levels[..., most] == 10).mean(0), most))
    page.evaluate(f"p => {VIEWPORT}.jumpToWorld(p)", (centre * TO_LPS).tolist())
    picture, shown = canvas(page), on_canvas(page, levels, affine)
    page.screenshot(path=ARTIFACTS / "ohif_not_assessed.png")
    assert (shown == 10).sum() > 1000
    assert overlap(drawn(picture), shown > 0) > 0.98
    red, blue = np.median(chroma(picture)[shown == 10], 0)  # red less green, green less blue
    assert red < -3 and blue < -3


def test_the_most_anomalous_study_is_read_first(site: Site, triage: Triage) -> None:
    assert triage.batch["status"] == "DONE"
    assert (triage.first["id"], triage.first["unread"]) == (site.glioma, 2)
    assert (triage.second["id"], triage.second["unread"]) == (site.healthy, 1)
    assert triage.first["score"] > 5 * triage.second["score"] > 0


def test_results_on_the_dicom_server_are_no_work(site: Site, triage: Triage) -> None:
    found = [pydicom.Dataset.from_json(s) for s in site.dicomweb.search_for_series()]
    # the glioma has a reader's segmentation, too
    assert sorted(s.Modality for s in found) == ["MR", "MR", "OT", "OT", "SEG", "SEG", "SEG"]
    assert len({s.SeriesInstanceUID for s in found}) == len(found)
    assert set(site.get("datastore/?output=all").json()["objects"]) == {site.glioma, site.healthy}
    assert site.get("datastore/").json()["total"] == 2
    assert site.get("datastore/").json()["completed"] == 1


def frames_on(array: np.ndarray, affine: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """``array`` at the pixels of an object's frames, by the positions, orientation and spacing that the object gives."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down, across = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    rows, columns = np.meshgrid(np.arange(dataset.Rows), np.arange(dataset.Columns), indexing="ij")
    plane = rows[..., None] * down * column + columns[..., None] * across * row
    frames = []
    for group in dataset.PerFrameFunctionalGroupsSequence:
        lps = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) + plane
        index = nib.affines.apply_affine(np.linalg.inv(affine), lps * TO_LPS)
        assert np.abs(index - np.rint(index)).max() < 0.01
        frames.append(array[tuple(np.rint(index).astype(int).transpose(2, 0, 1))])
    return np.stack(frames)


@pytest.mark.parametrize("label", ["ANOMALY_AI", "ANOMALY"], ids=["automatic", "reviewed"])
def test_a_segmentation_holds_the_mask_on_the_images(site: Site, triage: Triage, label: str) -> None:
    segs = [s for s in site.objects("SEG", site.study) if s.ContentLabel == label]
    assert len(segs) == 1
    seg = hd.seg.Segmentation.from_dataset(segs[0])
    mask, affine = site.label(site.glioma, "original")
    mask = mask if label == "ANOMALY_AI" else triage.label
    assert (mask == 1).any()
    frames = [g.SegmentIdentificationSequence[0].ReferencedSegmentNumber for g in seg.PerFrameFunctionalGroupsSequence]
    assert set(frames) == set(range(1, mask.max() + 1))
    assert seg.pixel_array.sum() == (mask > 0).sum()
    assert (seg.pixel_array == (frames_on(mask, affine, seg) == np.array(frames)[:, None, None])).all()

    images = site.dicomweb.retrieve_series(site.study, site.glioma)
    positions = [tuple(g.PlanePositionSequence[0].ImagePositionPatient) for g in seg.PerFrameFunctionalGroupsSequence]
    assert set(positions) == {tuple(i.ImagePositionPatient) for i in images}
    assert {str(uid) for _, _, uid in seg.get_source_image_uids()} == {str(i.SOPInstanceUID) for i in images}
    assert seg.FrameOfReferenceUID == images[0].FrameOfReferenceUID


def test_a_parametric_map_holds_the_anomaly_map(site: Site, triage: Triage) -> None:
    maps = site.objects("OT", site.study)
    assert len(maps) == 1
    array, affine = site.label(site.glioma, "anomaly_map")
    assert np.nanmax(array) > 0.1
    values = np.frombuffer(maps[0].FloatPixelData, np.float32).reshape(-1, maps[0].Rows, maps[0].Columns)
    np.testing.assert_array_equal(values, frames_on(np.nan_to_num(array, nan=NOT_ASSESSED), affine, maps[0]))


def test_without_the_dicom_server_requests_say_so_and_with_it_again_they_work(site: Site, triage: Triage) -> None:
    files = series_from_nifti(
        SAMPLE, site.folder / "late", series_description="FLAIR", patient_id="LATE", patient_name="Sample^Late"
    )
    late = series_uid(files)
    upload(files, site.port)
    site.archive.close()

    begin = time.monotonic()
    not_fetched = site.post(f"infer/lesion_mask?image={late}&output=json")
    next_sample = site.post("activelearning/most_anomalous_first", json={})
    assert (not_fetched.status_code, next_sample.status_code) == (503, 503)
    for response in (not_fetched, next_sample, site.get("info/")):
        assert f"127.0.0.1:{site.port}" in response.text
        assert "Is it running?" in response.text
    # a viewer that waits for an answer looks as if it hung
    assert time.monotonic() - begin < 20

    site.archive.enter_context(orthanc(site.folder / "orthanc", site.port))
    assert site.get("info/").json()["datastore"]["total"] == 3
    fetched = site.folder / "late.nii.gz"
    fetched.write_bytes(site.get(f"datastore/image?image={late}").content)
    assert volume(fetched)[0].sum(dtype=float) == volume(SAMPLE)[0].sum(dtype=float)


def test_ohifs_basic_viewer_draws_the_parametric_map(site: Site, triage: Triage, page: Page) -> None:
    """In colour over the lesion, by a double click on the series."""
    description = str(site.objects("OT", site.study)[0].SeriesDescription)
    browser = page.context.browser
    assert browser is not None
    viewer = browser.new_page(viewport={"width": 1400, "height": 900})  # it has confirmed nothing yet
    viewer.goto(f"{site.server}/ohif/viewer?StudyInstanceUIDs={site.study}")
    viewer.get_by_text("Confirm and Hide").click()
    viewer.wait_for_function("window.cornerstone?.getRenderingEngines()[0]?.getViewports().length", timeout=60_000)
    assert not drawn(canvas(viewer)).any()
    viewer.get_by_text(description).first.dblclick()
    viewer.get_by_text("PMAP").first.wait_for()
    array, affine = site.label(site.glioma, "anomaly_map")
    voxel = np.array(np.unravel_index(np.nanargmax(array), array.shape))
    peak = nib.affines.apply_affine(affine, voxel) * TO_LPS
    # for a moment there is no viewport
    viewer.wait_for_function("!!cornerstone.getRenderingEngines()[0]?.getViewports()[0]?.jumpToWorld")
    viewer.evaluate(f"p => {VIEWPORT}.jumpToWorld(p)", peak.tolist())
    picture = canvas(viewer)
    viewer.screenshot(path=ARTIFACTS / "ohif_parametric_map.png")
    lesion = on_canvas(viewer, (np.nan_to_num(array) > 0.5 * np.nanmax(array)).astype(np.uint8), affine) == 1
    assert lesion.sum() > 500
    assert drawn(picture)[lesion].mean() > 0.95
    viewer.close()


def test_ohif_draws_the_mask_and_the_graded_map_of_a_radiograph(site: Site, page: Page) -> None:
    """As one picture, which MONAI Label's mode for OHIF does not do by itself."""
    upload([RADIOGRAPH], site.port)
    about = pydicom.dcmread(RADIOGRAPH, stop_before_pixels=True)
    study, series = str(about.StudyInstanceUID), str(about.SeriesInstanceUID)
    page.goto(ohif_url(site.server, study))
    connect(page, site)

    client = MONAILabelClient(site.server, tmpdir=str(site.folder))
    for task, fewest in (("lesion_mask", 1), ("anomaly_heat_map", 4)):
        picture = run_in_ohif(page, f"chest_effusion_{task}")
        page.screenshot(path=ARTIFACTS / f"ohif_radiograph_{task}.png")
        labels, _ = volume(client.infer(f"chest_effusion_{task}", series, {"result_extension": ".nii.gz"})[0])
        assert labels.shape == (1024, 1024, 1)
        # a picture has no place in the body, and OHIF makes one up
        shown = sampled(labels, places(page, "v.getImageData().imageData.worldToIndex(v.canvasToWorld(p))"))
        assert (shown > 0).sum() > 1000 and overlap(drawn(picture), shown > 0) > 0.95
        colours = [np.median(chroma(picture)[shown == n], 0) for n in range(1, 10) if (shown == n).sum() > 200]
        assert len(colours) >= fewest
        assert min((np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]), default=99) > 4

    # the work of this model alone; beside the radiograph a picture with the outline is stored
    response = site.post("batch/infer/chest_effusion_lesion_mask?images=unlabeled&run_sync=true", json={})
    assert {i: row["status"] for i, row in response.json().items()} == {series: "ok"}
    assert site.post("activelearning/most_anomalous_CR_DX_first", json={}).json()["id"] == series
    [overlay] = site.objects("OT", study)
    assert site.objects("SEG", study) == []
    mask, _ = site.label(series, "original")
    red = (overlay.pixel_array == (255, 64, 64)).all(-1)
    assert red.any() and (mask[:, :, 0].T[red] == 1).all()
    page.goto(ohif_url(site.server, study))
    page.wait_for_function("window.cornerstone?.getRenderingEngines()[0]?.getViewports().length", timeout=60_000)
    page.get_by_text(str(overlay.SeriesDescription)).first.dblclick()
    page.wait_for_timeout(1000)
    assert drawn(canvas(page)).any()
    page.screenshot(path=ARTIFACTS / "ohif_radiograph_overlay.png")
