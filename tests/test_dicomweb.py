"""Studies on a DICOMweb server: what is fetched, what is listed, what goes back; with a server that is stood in for."""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import json
import multiprocessing
import os
import shutil
import threading
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

import dicom
from lib.demonstration.mr_series import series_from_nifti
from lib.grids import reordered
from lib.studies.connection import client_of
from lib.studies.dicom_server import DicomServer
from lib.studies.dicomweb import DICOMwebStudies
from lib.studies.folder_studies import FolderStudies
from lib.studies.names import UID
from lib.studies.tags import FINAL, SCORE
from lib.tasks.triage import EveryStudy, MostAnomalousFirst
from machine import files_up_to
from main import AnomalyDetection
from synthetic import write_images

GRID = (7, 6, 8)
AFFINE = np.diag([-2.0, -3.0, 5.0, 1.0])


def make_series(folder: Path, description: str = "AX FLAIR", **keywords: Any) -> list[Dataset]:
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(0).integers(0, 1000, GRID, dtype=np.int16)
    nib.save(nib.Nifti1Image(array, AFFINE), folder / "volume.nii.gz")
    keywords = {"patient_id": "P", "patient_name": "A^B", **keywords}
    paths = series_from_nifti(folder / "volume.nii.gz", folder / "dicom", series_description=description, **keywords)
    return [pydicom.dcmread(path) for path in paths]


class Archive:
    """A DICOMweb server that answers with what it holds, and counts what it is asked."""

    base_url = "http://archive.example/dicom-web"

    def __init__(self, *instances: Dataset) -> None:
        self.instances = list(instances)
        self.asked: Counter[str] = Counter()
        self.away: bool | str = False
        self.away_for: str | None = None
        self.refuses: tuple[str, int] | None = None
        self.slow = 0.0
        self.lost: dict[str, int] = {}
        self.most: int | None = None
        self.knows_offset = True
        self.tells = ["PatientID", "PatientName"]

    def _of(self, study: str, series: str) -> list[Dataset]:
        return [i for i in self.instances if (i.StudyInstanceUID, i.SeriesInstanceUID) == (study, series)]

    def _ask(self, what: str) -> None:
        self.asked[what] += 1
        if self.away in (True, what):
            raise requests.ConnectionError("nobody listens")

    def _page(self, rows: list[dict[str, Any]], offset: int | None) -> list[dict[str, Any]]:
        begin = (offset or 0) if self.knows_offset else 0
        return rows[begin : begin + (self.most or len(rows))]

    def search_for_series(
        self, search_filters: dict[str, str], fields: list[str], offset: int | None = None
    ) -> list[dict[str, Any]]:
        self._ask("series")
        rows = {}
        for instance in self.instances:
            row = Dataset()
            names = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription", "ProtocolName")
            for key in (*names, *self.tells):
                setattr(row, key, instance.get(key, ""))
            found = self._of(row.StudyInstanceUID, row.SeriesInstanceUID)
            row.NumberOfSeriesRelatedInstances = len(found)
            if all(str(row[key].value) == value for key, value in search_filters.items()):
                rows[row.StudyInstanceUID, row.SeriesInstanceUID] = row.to_json_dict()
        return self._page(list(rows.values()), offset)

    def search_for_instances(
        self, study: str, series: str, fields: list[str], offset: int | None = None
    ) -> list[dict[str, Any]]:
        self._ask("instances")
        for uid in (study, series):  # as the client does
            if not UID.fullmatch(uid):
                raise ValueError(f'UID "{uid}" is malformed')
        found = []
        for instance in self._of(study, series):
            row = Dataset()
            row.SOPInstanceUID = instance.SOPInstanceUID
            found.append(row.to_json_dict())
        return self._page(found, offset)

    def retrieve_series(self, study: str, series: str, media_types: Any) -> list[Dataset]:
        self._ask("retrieve")
        assert media_types == (("application/dicom", "*"),)
        return self._of(study, series)

    def retrieve_series_metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        self._ask("metadata")
        if series in self.lost:
            response = requests.Response()
            response.status_code = self.lost[series]
            response.raise_for_status()
        return [i.to_json_dict() for i in self._of(study, series)]

    def store_instances(self, datasets: list[Dataset]) -> Dataset:
        self._ask("store")
        time.sleep(self.slow)
        answer = Dataset()
        if datasets[0].Modality == self.away_for:
            raise requests.ConnectionError("went away")
        if self.refuses and datasets[0].Modality == self.refuses[0]:
            answer.FailedSOPSequence = [Dataset()]
            answer.FailedSOPSequence[0].FailureReason = self.refuses[1]
            return answer
        self.instances += datasets
        answer.ReferencedSOPSequence = [Dataset() for _ in datasets]
        for item, dataset in zip(answer.ReferencedSOPSequence, datasets, strict=True):
            item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
        return answer


def studies_on(archive: Archive, folder: Path) -> DICOMwebStudies:
    studies = DICOMwebStudies(client=archive, search_filter={}, modalities=["MR"], cache_path=str(folder))
    studies.channels, studies.version = [["FLAIR"]], "1"
    return studies


def write_mask(path: Path, image: str, value: int = 1, depth: int = 1) -> str:
    source = nib.load(image)
    mask = np.zeros(source.shape, np.uint8)
    mask[2:4, 1:3, depth] = value
    nib.save(nib.Nifti1Image(mask, source.affine), path)
    return str(path)


# -- what is fetched


@pytest.fixture
def half(tmp_path: Path) -> tuple[Archive, DICOMwebStudies, str, list[Dataset]]:
    """A series of eight images of which four have arrived and were worked on and read."""
    images = make_series(tmp_path / "series")
    archive = Archive(*images[4:])
    studies = studies_on(archive, tmp_path / "cache")
    uid = str(images[0].SeriesInstanceUID)
    mask = write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid))
    assert nib.load(studies.get_image_uri(uid)).shape == (7, 6, 4)
    studies.save_label(uid, mask, FINAL, {})
    made_with = {"options": {}, "weights": "w", "version": "1"}
    params = {"score": 0.5, "p_diseased": 0.9, **made_with}
    studies.save_results(uid, "original", mask, {"anomaly_map": Path(mask)}, params)
    studies.update_image_info(uid, {"dice": 0.5, "image_label": 1})
    return archive, studies, uid, images


def test_a_series_that_was_fetched_while_it_arrived_is_fetched_whole_later(half: Any, tmp_path: Path) -> None:
    archive, studies, uid, images = half
    archive.instances += images[:4]
    image = nib.load(studies.get_image_uri(uid))
    assert image.shape == GRID
    # the first slices have come, so that the volume begins elsewhere
    np.testing.assert_allclose(image.affine, AFFINE)
    assert len(studies.series(uid)) == 8
    # what was made of four images is not shown on eight
    info = studies.get_image_info(uid)
    assert not {SCORE, "p_diseased", "stored", "dice"} & set(info) and info["image_label"] == 1
    assert not [p for tag in (FINAL, "original", "anomaly_map") for p in (tmp_path / "cache").rglob(f"{tag}/*")]
    assert not studies.get_label_uri(uid, "original")
    # but what a reader drew is kept
    kept = studies.get_label_uri(uid, "final-of-4-images")
    assert nib.load(kept).shape == (7, 6, 4) and np.asarray(nib.load(kept).dataobj).sum() == 4
    # and stays when one more comes
    archive.instances.remove(images[0])
    assert nib.load(studies.get_image_uri(uid)).shape == (7, 6, 7)
    assert studies.get_label_uri(uid, "final-of-4-images") == kept and Path(kept).is_file()


def test_a_series_of_which_more_images_came_is_unread_until_those_are_read(half: Any, tmp_path: Path) -> None:
    archive, studies, uid, images = half
    # read twice, and with the AI's result three Segmentations
    studies.save_label(uid, write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid), depth=2), FINAL, {})
    segs = [i for i in archive.instances if i.Modality == "SEG"]
    assert len(segs) == 3 and studies.get_labeled_images() == [uid]
    archive.instances += images[:4]
    studies.get_image_uri(uid)
    for server in (studies, studies_on(archive, tmp_path / "cache")):
        assert (server.get_labeled_images(), server.get_unlabeled_images()) == ([], [uid])
        assert server.status()["completed"] == 0
        sample = MostAnomalousFirst()({}, server)
        assert sample and sample["id"] == uid
    # other software's counts, and the next one that is sent from here
    archive.instances.append(segmentation_series(images[0], "MANUAL", uid="1.2.9"))
    assert studies.get_labeled_images() == [uid]
    archive.instances.pop()
    studies.save_label(uid, write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid)), FINAL, {})
    studies.remove_label(uid, FINAL)
    assert studies.get_labeled_images() == [uid]
    # the same images of another patient are read all the same
    correct(archive, CORRECTED[3])
    studies.save_label(uid, write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid)), FINAL, {})
    assert studies.get_labeled_images() == [uid]


def test_a_series_that_is_the_same_is_not_fetched_again(half: Any) -> None:
    archive, studies, uid, _ = half
    before = archive.asked["retrieve"]
    studies.get_image_uri(uid)
    assert archive.asked["retrieve"] == before
    assert studies.get_image_info(uid)[SCORE] == 0.5 and studies.get_label_uri(uid, FINAL)


def test_a_series_that_can_no_longer_be_fetched_whole_stays_as_it_was(half: Any) -> None:
    archive, studies, uid, images = half
    archive.instances += images[:3]  # one is still on its way
    with pytest.raises(MONAILabelException, match=r"1 missing image\(s\) between instance numbers 3 and 5"):
        studies.get_image_uri(uid)
    assert len(studies.series(uid)) == 4 and studies.get_image_info(uid)[SCORE] == 0.5
    assert studies.get_label_uri(uid, FINAL)
    archive.instances.clear()
    with pytest.raises(ImageNotFoundException):
        studies.get_image_uri(uid)
    assert len(studies.series(uid)) == 4


@pytest.mark.parametrize("attribute", ["SeriesInstanceUID", "StudyInstanceUID"])
def test_images_of_another_series_are_not_taken(
    attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    others = [copy.deepcopy(image) for image in images]
    setattr(others[5], attribute, "1.2.3")
    monkeypatch.setattr(archive, "retrieve_series", lambda study, series, media_types: others)
    with pytest.raises(MONAILabelException, match="it gave one of .*1.2.3") as error:
        studies_on(archive, tmp_path / "cache").get_image_uri(uid)
    assert error.value.error == MONAILabelError.SERVER_ERROR and not list((tmp_path / "cache").rglob("*.dcm"))


def test_an_image_that_comes_twice_does_not_stand_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive = Archive(*images)
    monkeypatch.setattr(archive, "retrieve_series", lambda study, series, media_types: [*images[:-1], images[0]])
    with pytest.raises(MONAILabelException, match="7 of 8 instances came from"):
        studies_on(archive, tmp_path / "cache").get_image_uri(str(images[0].SeriesInstanceUID))


def test_a_server_that_tells_a_part_and_knows_no_offset_is_not_asked_for_the_same_images_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    archive.most, archive.knows_offset = 3, False
    studies = studies_on(archive, tmp_path / "cache")
    for _ in range(3):
        assert nib.load(studies.get_image_uri(uid)).shape == GRID
    assert archive.asked["retrieve"] == 1
    # fetched again, what is the same stays as it was
    path = Path(studies.get_image_uri(uid))
    before = {file: file.stat() for file in (path, *path.parent.rglob("*.dcm"))}
    with monkeypatch.context() as lost:
        lost.setattr(studies, "_info_of", lambda image_id: None)
        studies.get_image_uri(uid)
    assert archive.asked["retrieve"] == 2 and {file: file.stat().st_mtime_ns for file in before} == {
        file: status.st_mtime_ns for file, status in before.items()
    }
    # and what isn't is found
    archive.instances = replaced(images)
    assert nib.load(studies.get_image_uri(uid)).get_fdata().max() == 0


def test_without_metadata_a_series_whose_images_have_gone_is_fetched_again(half: Any) -> None:
    archive, studies, uid, images = half
    archive.instances.remove(images[7])
    archive.lost = {uid: 501}
    assert nib.load(studies.get_image_uri(uid)).shape == (7, 6, 3)


CORRECTED: list[dict[str, str]] = [
    {"PatientID": "RIGHT"},
    {"PatientName": "Right^Patient"},
    {"StudyInstanceUID": "1.2.3.4"},
    {"PatientID": "RIGHT", "PatientName": "Right^Patient", "StudyInstanceUID": "1.2.3.4"},
]


def correct(archive: Archive, corrected: dict[str, str]) -> None:
    """Correct the images of a series on the server; their SOPInstanceUIDs stay."""
    archive.instances = [copy.deepcopy(i) if i.Modality == "MR" else i for i in archive.instances]
    for image in (i for i in archive.instances if i.Modality == "MR"):
        for key, value in corrected.items():
            setattr(image, key, value)


@pytest.mark.parametrize("corrected", CORRECTED, ids=lambda corrected: " ".join(corrected))
def test_what_is_sent_names_patient_and_study_as_the_server_does_by_now(
    corrected: dict[str, str], tmp_path: Path
) -> None:
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    studies = studies_on(archive, tmp_path / "cache")
    mask = write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid))
    volume = Path(studies.get_image_uri(uid)).stat()

    def send() -> list[Dataset]:
        before = len(archive.instances)
        studies.get_image_uri(uid)
        studies.save_label(uid, mask, FINAL, {})
        save(studies, uid, mask)
        return archive.instances[before:]

    old = send()
    studies.mark_done(uid, "original", PARAMS, {"version": "1"})
    correct(archive, corrected)
    new = send()
    expected = {"PatientID": "P", "PatientName": "A^B", "StudyInstanceUID": images[0].StudyInstanceUID, **corrected}
    assert [i.Modality for i in new] == ["SEG", "SEG", "OT"]
    assert [{key: str(i[key].value) for key in expected} for i in new] == [expected] * 3
    assert not {i.SOPInstanceUID for i in old} & {i.SOPInstanceUID for i in new}
    # the images are the same: what was made of them stays, but is not done until it is sent
    status = Path(studies.get_image_uri(uid)).stat()
    assert (status.st_ino, status.st_mtime_ns) == (volume.st_ino, volume.st_mtime_ns)
    assert studies.get_image_info(uid)[SCORE] == 0.5 and studies.get_label_uri(uid, FINAL)
    assert "made_with" not in studies.get_label_info(uid, "original")
    assert send() == [] and archive.asked["retrieve"] == 2
    # viewers and the log are given what is known of a series
    assert not [name for name in ("Right^Patient", "A^B") if name in str(studies.get_image_info(uid))]


def test_a_correction_that_was_killed_is_made_the_next_time(half: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, studies, uid, _ = half
    correct(archive, CORRECTED[3])

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as kill:
        kill.setattr(studies, "_publish_info", killed)
        with pytest.raises(KeyboardInterrupt):
            studies.get_image_uri(uid)
    studies.get_image_uri(uid)
    assert {i.PatientID for i in studies.series(uid)} == {studies.get_image_info(uid)["PatientID"]} == {"RIGHT"}
    assert not {"stored", "sent"} & studies.get_image_info(uid).keys()


def test_a_correction_that_was_killed_between_two_images_keeps_what_is_known(
    half: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, studies, uid, _ = half
    correct(archive, CORRECTED[3])
    given, moved = os.replace, []

    def killed(source: Any, target: Any) -> None:
        if Path(target).parent == studies._folder_of(uid):
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        given(source, target)

    with monkeypatch.context() as kill:
        kill.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            studies.get_image_uri(uid)
    studies.get_image_uri(uid)
    assert {i.PatientID for i in studies.series(uid)} == {"RIGHT"} and studies.get_labeled_images() == [uid]
    assert studies.get_label_uri(uid, FINAL) and SCORE in studies.get_image_info(uid)


def test_a_server_that_begins_to_tell_names_is_not_asked_for_all_again(tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    tells, archive.tells = archive.tells, []
    studies = studies_on(archive, tmp_path / "cache")
    studies.get_image_uri(uid)
    asked, archive.tells = archive.asked["retrieve"], tells
    studies.get_image_uri(uid)
    assert archive.asked["retrieve"] == asked


def test_what_a_client_enters_of_a_patient_is_no_correction(half: Any) -> None:
    archive, studies, uid, _ = half
    asked = archive.asked["retrieve"]
    studies.update_image_info(uid, {"PatientID": "MINE"})
    studies.get_image_uri(uid)
    assert archive.asked["retrieve"] == asked and studies.get_image_info(uid)["PatientID"] == "MINE"
    with pytest.raises(MONAILabelException, match="identity can't be changed"):
        studies.update_image_info(uid, {"identity": {"PatientID": "MINE"}})


def test_a_correction_is_seen_too_of_what_a_version_before_kept(half: Any, tmp_path: Path) -> None:
    archive, studies, uid, _ = half
    register = Path(studies._datastore_config_path)
    content = json.loads(register.read_text())
    del content["objects"][uid]["image"]["info"]["identity"]
    register.write_text(json.dumps(content))
    asked, again = archive.asked["retrieve"], studies_on(archive, tmp_path / "cache")
    again.get_image_uri(uid)
    assert archive.asked["retrieve"] == asked
    correct(archive, CORRECTED[0])
    assert again.get_image_uri(uid) and {i.PatientID for i in again.series(uid)} == {"RIGHT"}


@pytest.mark.parametrize("told", [[], ["PatientID"], ["PatientName"]], ids=str)
def test_what_a_server_does_not_tell_of_a_patient_is_no_difference(told: list[str], half: Any) -> None:
    archive, studies, uid, _ = half
    asked, archive.tells = archive.asked["retrieve"], told
    studies.get_image_uri(uid)
    assert archive.asked["retrieve"] == asked


def test_a_server_that_gives_other_names_than_it_tells_is_asked_for_a_series_once(
    half: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, studies, uid, _ = half
    asked, given = archive.asked["retrieve"], [copy.deepcopy(i) for i in archive.instances if i.Modality == "MR"]
    correct(archive, CORRECTED[0])

    def retrieve(study: str, series: str, media_types: Any) -> list[Dataset]:
        archive.asked["retrieve"] += 1
        return given

    monkeypatch.setattr(archive, "retrieve_series", retrieve)
    for _ in range(3):
        studies.get_image_uri(uid)
    assert archive.asked["retrieve"] == asked + 1 and studies.get_image_info(uid)["PatientID"] == "RIGHT"


def test_two_that_ask_for_a_series_at_once_fetch_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_series(tmp_path / "series")
    archive, uid, given = Archive(*images), str(images[0].SeriesInstanceUID), Archive.retrieve_series

    def slowly(study: str, series: str, media_types: Any) -> list[Dataset]:
        time.sleep(0.3)
        return given(archive, study, series, media_types)

    monkeypatch.setattr(archive, "retrieve_series", slowly)
    servers = [studies_on(archive, tmp_path / "cache") for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda studies: studies.get_image_uri(uid), [*servers, servers[0]]))
    assert len(set(paths)) == 1 and archive.asked["retrieve"] == 1


def test_while_the_server_is_away_what_was_fetched_is_used(half: Any, caplog: pytest.LogCaptureFixture) -> None:
    archive, studies, uid, _ = half
    archive.away = True
    assert nib.load(studies.get_image_uri(uid)).shape == (7, 6, 4)
    assert "whether more images have come can't be told" in caplog.text


def test_a_series_of_which_nothing_is_known_any_more_is_fetched_again(half: Any, tmp_path: Path) -> None:
    archive, studies, uid, _ = half
    Path(studies._datastore_config_path).write_text("{half")
    again = studies_on(archive, tmp_path / "cache")
    # what lies there is found, but not of which study it is
    assert set(again.get_image_info(uid)) == {"name", "ts", "path"}
    assert (again.modality(uid), again.named(uid)) == ("MR", "FLAIR")
    assert nib.load(again.get_image_uri(uid)).shape == (7, 6, 4)
    assert again.get_image_info(uid)["StudyInstanceUID"] and again.modality(uid) == "MR"
    assert again.get_label_uri(uid, FINAL) and again.get_labeled_images() == [uid]
    before = archive.asked["retrieve"]
    again.get_image_uri(uid)
    assert archive.asked["retrieve"] == before


def test_what_the_client_cannot_ask_for_is_an_error_of_the_server() -> None:
    with pytest.raises(MONAILabelException, match="ValueError: UID .* is malformed") as error:
        DicomServer(Archive()).instances("None", "1.2")  # type: ignore[arg-type]
    assert error.value.error == MONAILabelError.SERVER_ERROR


def test_a_volume_off_the_images_grid_is_refused_and_not_kept(tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    studies = studies_on(Archive(*images[:3], *images[4:]), tmp_path / "cache")
    with pytest.raises(MONAILabelException) as refusal:
        studies.get_image_uri(str(images[0].SeriesInstanceUID))
    message = refusal.value.msg
    assert "between instance numbers 3 and 5" in message and str(tmp_path) not in message and ".fetch" not in message
    assert not list((tmp_path / "cache").rglob("*.dcm")) and not list((tmp_path / "cache").rglob("*.nii.gz"))


def jpeg2000(dataset: Dataset, stream: bytes | None = None, syntax: str = JPEG2000Lossless) -> Dataset:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(dataset.pixel_array).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
    dataset.PixelData = encapsulate([stream or buffer.getvalue()])
    dataset["PixelData"].is_undefined_length, dataset["PixelData"].VR = True, "OB"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    return dataset


def test_jpeg_2000_is_decoded(tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    archive = Archive(*[jpeg2000(i) for i in images])
    path = studies_on(archive, tmp_path / "cache").get_image_uri(str(images[0].SeriesInstanceUID))
    expected = np.asarray(nib.load(tmp_path / "series" / "volume.nii.gz").dataobj)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), expected)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"stream": b"no image at all"}, "its pixels can't be read .* is the file complete"),
        ({"syntax": "1.2.840.10008.1.2.4.100"}, "its pixels can't be decoded .MPEG2 Main Profile"),
    ],
    ids=["broken", "no decoder"],
)
def test_what_cannot_be_decoded_is_refused(broken: dict[str, Any], message: str, tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    archive = Archive(*[jpeg2000(i, **broken) for i in images])
    with pytest.raises(MONAILabelException, match=message):
        studies_on(archive, tmp_path / "cache").get_image_uri(str(images[0].SeriesInstanceUID))


ROTATION = np.linalg.qr([[0.9, -0.3, 0.2], [0.3, 0.9, -0.1], [-0.2, 0.1, 0.95]])[0]
GRIDS = {
    "anisotropic": (GRID, np.diag([-0.43, -0.9, 6.5, 1.0])),
    "oblique": (GRID, nib.affines.from_matvec(ROTATION @ np.diag([1.1, 0.9, 4.7]), [-31.5, 22.25, 10.125])),
    "flipped": (GRID, nib.affines.from_matvec(np.diag([2.0, -3.0, -5.0]), [4.0, 5.0, 6.0])),
    "one slice": ((7, 6, 1), AFFINE),
}


def fetched(images: list[Dataset], folder: Path) -> nib.Nifti1Image:
    """The volume that the app makes of images."""
    files = [pydicom.dcmread(dicom.save(image, folder / f"{n}.dcm")) for n, image in enumerate(images)]
    return nib.load(studies_on(Archive(*files), folder / "cache").get_image_uri(str(images[0].SeriesInstanceUID)))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_voxel_lies_where_the_images_say(grid: str, tmp_path: Path) -> None:
    shape, affine = GRIDS[grid]
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    volume = fetched(dicom.series(array, affine), tmp_path)
    found = reordered(np.asarray(volume.dataobj), volume.affine, affine, shape)
    assert found is not None
    np.testing.assert_array_equal(found, array)


RESCALED: dict[str, tuple[list[float], list[float]]] = {
    "negative after the first": ([1, 1, 1], [0, -500, 0]),
    "beyond 16 bits after the first": ([1, 65, 1], [0, 40000, 0]),
    "fractions after the first": ([1, 0.5, 0.25], [0, 0, 0.125]),
    "fractions": ([0.5, 0.5, 0.5], [-3.5, -3.5, -3.5]),
}


@pytest.mark.parametrize("case", RESCALED)
def test_each_slice_has_its_own_rescale(case: str, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (7, 6, 3), dtype=np.uint16)
    images = dicom.series(stored, AFFINE)
    slopes, intercepts = RESCALED[case]
    for image, slope, intercept in zip(images, slopes, intercepts, strict=True):
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
    volume = np.asarray(fetched(images, tmp_path).dataobj)
    np.testing.assert_array_equal(volume, stored * np.array(slopes) + np.array(intercepts))


def test_a_series_that_shows_high_values_dark_is_refused(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (7, 6, 3), dtype=np.uint16)
    with pytest.raises(MONAILabelException, match="shows high values dark .MONOCHROME1.") as refused:
        fetched(dicom.series(stored, AFFINE, PhotometricInterpretation="MONOCHROME1"), tmp_path)
    assert refused.value.error == MONAILabelError.INVALID_INPUT


# -- what is left


def test_what_was_left_by_a_kill_while_fetching_is_removed_and_what_is_being_fetched_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive, uid, given = Archive(*images), str(images[0].SeriesInstanceUID), Archive.retrieve_series
    studies = studies_on(archive, tmp_path / "cache")

    def killed(*args: Any, **kwargs: Any) -> None:
        os._exit(9)

    with monkeypatch.context() as kill:
        kill.setattr("lib.studies.fetched_studies.volume_of", killed)
        child = multiprocessing.get_context("fork").Process(target=studies.get_image_uri, args=(uid,))
        child.start()
        child.join(60)
    assert child.exitcode == 9 and len(list((tmp_path / "cache").rglob(".fetch-*/series/*.dcm"))) == 8

    def another_starts(study: str, series: str, media_types: Any) -> list[Dataset]:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(studies_on, archive, tmp_path / "cache").result()
        assert list((tmp_path / "cache").rglob(".fetch-*/series"))
        return given(archive, study, series, media_types)

    after = studies_on(archive, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob(".fetch-*"))
    monkeypatch.setattr(archive, "retrieve_series", another_starts)
    assert nib.load(after.get_image_uri(uid)).shape == GRID
    assert not list((tmp_path / "cache").rglob(".fetch-*"))
    # a batch may be killed while its server goes on
    (Path(after._datastore_path) / f".fetch-{uid}" / "series").mkdir(parents=True)
    (Path(after._datastore_path) / f".fetch-{uid}" / "series" / "1.2.dcm").touch()
    monkeypatch.setattr(archive, "retrieve_series", lambda *args, **kwargs: given(archive, *args, **kwargs))
    archive.instances = images[1:]
    assert nib.load(after.get_image_uri(uid)).shape == (*GRID[:2], 7)


def test_a_kill_leaves_no_volume_among_the_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_series(tmp_path / "series")
    paths = []

    def kept(self: Any, image_id: str, fetched: Path, nifti: str, info: Any) -> None:
        paths.append((Path(nifti).parent, fetched.parent))

    monkeypatch.setattr(DICOMwebStudies, "_take_in", kept)
    studies_on(Archive(*images), tmp_path / "cache").get_image_uri(str(images[0].SeriesInstanceUID))
    assert [beside == folder for beside, folder in paths] == [True]


def test_of_an_image_that_is_removed_nothing_stays(half: Any, tmp_path: Path) -> None:
    _, studies, uid, _ = half
    studies.remove_image(uid)
    left = [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".dcm", ".gz") or p.is_dir() and uid in p.name]
    assert left == [] and not studies.get_image_info(uid)
    with pytest.raises(ImageNotFoundException):
        studies.remove_image(uid)


def test_an_archive_of_nothing_is_refused(half: Any) -> None:
    _, studies, uid, _ = half
    with zipfile.ZipFile(studies.get_dataset_archive(None)) as archive:
        assert f"label/{uid}.nii.gz" in archive.namelist()
    studies.remove_label(uid, FINAL)
    with pytest.raises(MONAILabelException, match="No study has a label of a reader") as error:
        studies.get_dataset_archive(None)
    assert error.value.error == MONAILabelError.INVALID_INPUT


# -- what is replaced while it is worked on


def replaced(images: list[Dataset]) -> list[Dataset]:
    """Others on the same grid: all black, with UIDs of their own."""
    others = [copy.deepcopy(image) for image in images]
    for n, image in enumerate(others):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{n + 1}"
        image.PixelData = bytes(len(image.PixelData))
    return others


class Run:
    """Stands in for a model's task: a mask of the volume that it reads, during which something may happen."""

    model = SimpleNamespace(
        declared=SimpleNamespace(channels=["FLAIR"], modalities=["MR"], reference="FLAIR", version="1")
    )
    is_original = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.meanwhile = folder, lambda: None

    def made_with(self, request: dict[str, Any]) -> dict[str, Any]:
        return {}

    def run(self, request: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        [path] = request["image"]
        mask = write_mask(self.folder / "given.nii.gz", path)
        self.meanwhile()
        params = {"score": 0.5, "p_diseased": 0.9, "options": {}, "weights": "w", "version": "1"}
        return mask, {**params, "result": {}}, {"input_image": SimpleNamespace(meta={"source": path})}


def app_of(studies: Any, task: Run, monkeypatch: pytest.MonkeyPatch) -> AnomalyDetection:
    app = object.__new__(AnomalyDetection)
    app._datastore, app._sessions, app._one_at_a_time = studies, None, threading.Lock()
    app._infers, app.models = {"lesion_mask": task}, [task.model]
    monkeypatch.setattr("main.write_results", lambda *args: {"anomaly_map": task.folder / "given.nii.gz"})
    return app


@pytest.mark.parametrize("tag", ["original", "mine"])
def test_a_mask_is_not_kept_for_images_that_came_while_it_was_made(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive, uid, task = Archive(*images), str(images[0].SeriesInstanceUID), Run(tmp_path)
    studies = studies_on(archive, tmp_path / "cache")
    app = app_of(studies, task, monkeypatch)
    request = {"model": "lesion_mask", "image": uid, "save_label": True, "label_tag": tag}

    def another_request() -> None:
        archive.instances = replaced(images)
        studies.get_image_uri(uid)

    task.meanwhile = another_request
    with pytest.raises(MONAILabelException, match="the series was replaced meanwhile; run it again") as error:
        app.infer(dict(request))
    assert error.value.error == MONAILabelError.SERVER_ERROR
    assert not archive.asked["store"] and SCORE not in studies.get_image_info(uid)
    assert not studies.get_label_uri(uid, tag) and not (tmp_path / "given.nii.gz").exists()
    task.meanwhile = lambda: None
    assert app.infer(dict(request))["tag"] == tag and studies.get_label_uri(uid, tag)
    sent = [i for i in archive.instances if i.Modality == "SEG"]
    assert len(sent) == (tag == "original")


def test_no_segmentation_is_made_for_images_that_came_while_its_mask_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    studies = studies_on(archive, tmp_path / "cache")
    app = app_of(studies, Run(tmp_path), monkeypatch)
    result = app.infer({"model": "lesion_mask", "image": uid})
    path = app.dicom_segmentation(uid, result)
    (reference,) = pydicom.dcmread(path).ReferencedSeriesSequence
    # those that the mask marks something on
    assert {i.ReferencedSOPInstanceUID for i in reference.ReferencedInstanceSequence} <= {
        i.SOPInstanceUID for i in images
    }
    Path(path).unlink()
    archive.instances = replaced(images)
    studies.get_image_uri(uid)
    with pytest.raises(MONAILabelException, match="the series was replaced meanwhile; run it again"):
        app.dicom_segmentation(uid, result)


def test_in_a_folder_too_a_mask_is_not_kept_for_another_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "studies", "a", "b")
    task, studies = Run(tmp_path), FolderStudies(str(tmp_path / "studies"), [["FLAIR"]])
    app = app_of(studies, task, monkeypatch)
    monkeypatch.setattr(studies, "taken_by", lambda images, modalities: images)
    request = {"model": "lesion_mask", "image": "a", "save_label": True}
    task.meanwhile = lambda: shutil.copyfile(tmp_path / "studies" / "b.nii.gz", tmp_path / "studies" / "a.nii.gz")
    with pytest.raises(MONAILabelException, match="a: the series was replaced meanwhile; run it again"):
        app.infer(dict(request))
    assert SCORE not in studies.get_image_info("a") and not studies.get_label_uri("a", "original")
    task.meanwhile = lambda: None
    app.infer(dict(request))
    assert studies.get_image_info("a")[SCORE] == 0.5


def test_a_readers_label_of_images_that_were_replaced_is_refused_once(half: Any, tmp_path: Path) -> None:
    archive, studies, uid, images = half
    sent, mask = archive.asked["store"], write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid))
    archive.instances = replaced(images[4:])
    with pytest.raises(MONAILabelException, match="were replaced on http://archive.example/dicom-web.*submit it again"):
        studies.save_label(uid, mask, FINAL, {})
    assert archive.asked["store"] == sent and not studies.get_label_uri(uid, FINAL)
    studies.save_label(uid, mask, FINAL, {})
    assert archive.asked["store"] == sent + 1 and studies.get_label_uri(uid, FINAL)


# -- what another process wrote


def test_what_another_process_wrote_is_seen_without_a_watcher(
    half: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(self: Any) -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr("monailabel.datastore.local.Observer.start", none_left)
    archive, _, uid, _ = half
    server, batch = (studies_on(archive, tmp_path / "cache") for _ in range(2))
    mask = write_mask(tmp_path / "mask.nii.gz", server.get_image_uri(uid))
    for n in range(2):
        batch.save_results(uid, "original", mask, {"anomaly_map": Path(mask)}, {**PARAMS, "score": 0.25 + n})
        assert server.get_image_info(uid)[SCORE] == 0.25 + n
        batch.save_label(uid, mask, f"mine{n}", {"number": n})
        assert Path(server.get_label_uri(uid, f"mine{n}")).is_file()
        assert server.get_label_info(uid, f"mine{n}")["number"] == n
    assert set(server.json()["objects"][uid]["labels"]) >= {"mine0", "mine1"}
    archive.instances = [i for i in archive.instances if i.Modality != "SEG"]
    server.remove_label(uid, FINAL)
    assert server.get_labeled_images() == batch.get_labeled_images() == [] == batch.datalist()
    batch.save_label(uid, mask, FINAL, {})
    archive.instances = [i for i in archive.instances if i.Modality != "SEG"]
    assert server.get_labeled_images() == [uid] and len(server.datalist()) == 1
    server.remove_image(uid)
    assert not server.get_image_info(uid) and not batch.get_image_info(uid) and batch.datalist() == []


# -- what is listed


def segmentation_series(image: Dataset, *types: str, uid: str) -> Dataset:
    """What matters of a Segmentation that some software stored for a series."""
    seg = Dataset()
    seg.StudyInstanceUID, seg.SeriesInstanceUID, seg.SOPInstanceUID, seg.Modality = (
        image.StudyInstanceUID,
        uid,
        uid,
        "SEG",
    )
    seg.ReferencedSeriesSequence, seg.SegmentSequence = [Dataset()], [Dataset() for _ in types]
    seg.ReferencedSeriesSequence[0].SeriesInstanceUID = image.SeriesInstanceUID
    for segment, kind in zip(seg.SegmentSequence, types, strict=True):
        segment.SegmentAlgorithmType = kind
    return seg


@pytest.mark.parametrize(
    ("types", "read"),
    [
        (["AUTOMATIC"], False),
        (["AUTOMATIC", "AUTOMATIC"], False),
        (["MANUAL"], True),
        (["SEMIAUTOMATIC"], True),
        (["AUTOMATIC", "SEMIAUTOMATIC"], True),
        ([], False),
    ],
)
def test_only_a_readers_segmentation_makes_a_study_read(types: list[str], read: bool, tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    studies = studies_on(Archive(*images, segmentation_series(images[0], *types, uid="1.2.9")), tmp_path / "cache")
    uid = str(images[0].SeriesInstanceUID)
    assert (studies.get_labeled_images(), studies.get_unlabeled_images()) == (([uid], []) if read else ([], [uid]))


def test_each_segmentation_is_asked_for_once_also_after_a_restart(tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    uid = str(images[0].SeriesInstanceUID)
    archive = Archive(*images, *[segmentation_series(images[0], "AUTOMATIC", uid=f"1.2.9.{n}") for n in range(50)])
    studies = studies_on(archive, tmp_path / "cache")
    for _ in range(3):
        assert studies.get_unlabeled_images() == [uid]
    assert archive.asked == {"series": 12, "metadata": 50}
    again = studies_on(archive, tmp_path / "cache")
    assert again.get_unlabeled_images() == [uid] and archive.asked["metadata"] == 50
    archive.instances.append(segmentation_series(images[0], "MANUAL", uid="1.2.9.99"))
    assert again.get_labeled_images() == [uid] and archive.asked["metadata"] == 51
    # a second one in the series of the first
    archive.instances.append(segmentation_series(images[0], "MANUAL", uid="1.2.9.0"))
    assert again.get_labeled_images() == [uid] and archive.asked["metadata"] == 52
    (kept,) = (tmp_path / "cache").rglob("readings.json")
    kept.write_text('{"half')
    assert again.get_labeled_images() == [uid] and archive.asked["metadata"] == 52 + 51


def test_one_bad_segmentation_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = make_series(tmp_path / "series")
    uid = str(images[0].SeriesInstanceUID)
    without, alone, lost, broken = (segmentation_series(images[0], "MANUAL", uid=f"1.2.9.{n}") for n in range(4))
    del without.ReferencedSeriesSequence[0].SeriesInstanceUID
    del alone.ReferencedSeriesSequence
    archive = Archive(*images, without, alone, lost, broken)
    archive.lost = {"1.2.9.2": 404, "1.2.9.3": 500}
    studies = studies_on(archive, tmp_path / "cache")
    assert studies.get_unlabeled_images() == [uid]
    logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["1.2.9.0" in logged[0], "1.2.9.2" in logged[1], "1.2.9.3" in logged[2]] == [True] * len(logged)
    # what the server didn't give is asked for again, the others are not
    archive.lost = {}
    asked = archive.asked["metadata"]
    assert studies.get_labeled_images() == [uid] and archive.asked["metadata"] == asked + 2


def test_a_segmentation_with_values_that_are_none_does_not_stop_the_others(tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    uid = str(images[0].SeriesInstanceUID)
    read, broken = (segmentation_series(images[0], "MANUAL", uid=f"1.2.9.{n}") for n in range(2))
    archive = Archive(*images, read, broken)
    given = archive.retrieve_series_metadata

    def metadata(study: str, series: str) -> list[dict[str, Any]]:
        number = {"vr": "IS", "Value": ["1.5.3"]}
        return [{**row, "00200013": number} if series == "1.2.9.1" else row for row in given(study, series)]

    archive.retrieve_series_metadata = metadata  # type: ignore[method-assign]
    assert studies_on(archive, tmp_path / "cache").get_labeled_images() == [uid]


@pytest.mark.parametrize("answer", [[], {"error": 1}, [{"0020000E": {}}]], ids=["nothing", "an error", "garbage"])
def test_one_odd_answer_does_not_hide_a_reading_for_ever(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive = Archive(*images, segmentation_series(images[0], "MANUAL", uid="1.2.9"))
    with monkeypatch.context() as odd:
        odd.setattr(archive, "retrieve_series_metadata", lambda study, series: answer)
        assert len(studies_on(archive, tmp_path / "cache").get_unlabeled_images()) == 1
    # the server is well again, and this one has started anew
    assert studies_on(archive, tmp_path / "cache").get_unlabeled_images() == []


@pytest.mark.parametrize("name", ["datastore_v2.json.part", "datastore_v2.json", "readings.json", "1.2.3", ""])
def test_no_client_puts_a_file_beside_what_was_fetched(half: Any, name: str, tmp_path: Path) -> None:
    """One of that name would take the place of a series, or of what is known."""
    _, studies, uid, _ = half
    (cache,) = {path.parent for path in tmp_path.rglob("datastore_v2.json")}
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    file = tmp_path / "upload.nii.gz"
    file.write_bytes(b"mine")
    for image_id in (name, uid):
        with pytest.raises(MONAILabelException, match="store the image on that server. Nothing was stored here"):
            studies.add_image(image_id, str(file), {})
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("status", [None, 401, 503])
def test_a_server_that_does_not_answer_on_segmentations_is_said(
    status: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive = Archive(*images, segmentation_series(images[0], "MANUAL", uid="1.2.9"))
    if status:
        archive.lost = {"1.2.9": status}
    else:

        def goes_away(study: str, series: str) -> list[dict[str, Any]]:
            archive.away = True
            raise requests.ConnectionError("reset")

        monkeypatch.setattr(archive, "retrieve_series_metadata", goes_away)
    with pytest.raises(MONAILabelException, match="doesn't answer as it should"):
        studies_on(archive, tmp_path / "cache").get_unlabeled_images()


@pytest.mark.parametrize("failure", [requests.ReadTimeout("60 s"), requests.ConnectionError("reset"), 502, 504])
def test_one_segmentation_that_is_never_answered_does_not_stop_the_others(
    failure: Exception | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, others = (make_series(tmp_path / name, name) for name in ("AX FLAIR", "COR FLAIR"))
    slow, read = (segmentation_series(i[0], "MANUAL", uid=f"1.2.9.{n}") for n, i in enumerate((images, others)))
    archive, given = Archive(*images, *others, slow, read), Archive.retrieve_series_metadata

    def metadata(study: str, series: str) -> list[dict[str, Any]]:
        rows = given(archive, study, series)
        if series == "1.2.9.0" and isinstance(failure, Exception):
            raise failure
        return rows

    monkeypatch.setattr(archive, "retrieve_series_metadata", metadata)
    if isinstance(failure, int):
        archive.lost = {"1.2.9.0": failure}
    studies = studies_on(archive, tmp_path / "cache")
    for _ in range(2):
        assert studies.get_unlabeled_images() == [images[0].SeriesInstanceUID]
    # readers need not wait again and again for one that takes a minute
    assert archive.asked["metadata"] == (2 if isinstance(failure, requests.Timeout) else 3)
    studies._reviews._left_out.clear()  # the time is over
    archive.lost = {}
    monkeypatch.undo()
    assert studies.get_unlabeled_images() == []


def test_a_segmentation_in_two_studies_that_is_not_given_does_not_stop_the_others(tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    segs = [segmentation_series(images[0], "MANUAL", uid="1.2.9") for _ in range(2)]
    segs[1].StudyInstanceUID = "1.2.3"
    archive = Archive(*images, *segs)
    archive.lost = {"1.2.9": 500}
    studies = studies_on(archive, tmp_path / "cache")
    assert studies.get_unlabeled_images() == [images[0].SeriesInstanceUID]
    archive.lost = {}
    assert studies.get_unlabeled_images() == []


@pytest.mark.parametrize("rows", [[{}], [None], None, {"error": 1}, [{"0020000E": {}}]], ids=str)
def test_rows_that_are_none_are_an_error_of_the_server_and_a_batch_asks_again(
    rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive = Archive(*images)
    studies, uid = studies_on(archive, tmp_path / "cache"), str(images[0].SeriesInstanceUID)
    given, answers = Archive.search_for_series, [rows]

    def search(search_filters: dict[str, str], fields: list[str], offset: int | None = None) -> Any:
        return answers.pop() if answers else given(archive, search_filters, fields, offset)

    monkeypatch.setattr(archive, "search_for_series", search)
    with pytest.raises(MONAILabelException, match="doesn't answer as it should") as error:
        studies.list_images()
    assert error.value.error == MONAILabelError.SERVER_ERROR
    answers.append(rows)
    monkeypatch.setattr("lib.tasks.triage.LISTING_WAITS", (0.0,))
    batch = EveryStudy(lambda request, datastore: True, lambda request: ["MR"])
    assert batch._listed({"images": "all"}, studies) == [uid]
    answers.append([{"0020000E": {"vr": "UI", "Value": [uid]}}])
    with pytest.raises(MONAILabelException, match="doesn't answer as it should"):  # of which study?
        studies.get_image_uri(uid)


@pytest.mark.parametrize("value", [["many"], [1, 2], [None], ["2"]], ids=str)
def test_a_server_whose_count_of_instances_is_no_number_lists_and_gives_its_series(
    value: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    given = archive.search_for_series

    def search(**asked: Any) -> list[dict[str, Any]]:
        numbers = {tag: {"vr": "IS", "Value": value} for tag in ("00201209", "00200011")}
        return [row | numbers for row in given(**asked)]

    monkeypatch.setattr(archive, "search_for_series", search)
    studies = studies_on(archive, tmp_path / "cache")
    assert studies.list_images() == [uid]
    assert Path(studies.get_image_uri(uid)).is_file()


def test_a_series_without_a_uid_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row, named = ({"vr": "UI", "Value": [uid]} for uid in ("", "1.2.3"))
    rows = [{"0020000E": uid, "00080060": {"vr": "CS", "Value": ["MR"]}} for uid in (row, named)]
    archive = Archive()
    monkeypatch.setattr(archive, "search_for_series", lambda search_filters, fields, offset=None: rows)
    assert studies_on(archive, tmp_path / "cache").list_images() == ["1.2.3"]
    assert "is no UID; it is left out" in caplog.text


PARTS = 'multipart/related; type="application/dicom"; boundary=edge'
PART = b"--edge\r\nContent-Type: application/dicom\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (200, {"Content-Type": "text/html"}, b"<html>login</html>"),
        (204, {}, b""),
        (200, {}, b"abc"),
        (200, {"Content-Type": "application/json"}, b'{"error": 1}'),
        (200, {"Content-Type": PARTS}, PART + b"hello\r\n--edge--\r\n"),
        (200, {"Content-Type": PARTS}, PART + bytes(128) + b"DICM hello\r\n--edge--\r\n"),
    ],
    ids=["login page", "204", "no content type", "JSON", "no DICOM", "no DICOM after its prefix"],
)
def test_what_is_no_image_is_an_error_of_the_server(
    status: int, headers: dict[str, str], content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(self: Any, request: Any, **kwargs: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.raw, response.request = status, io.BytesIO(content), request
        response.headers.update(headers)
        return response

    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", send)
    server = DicomServer(client_of("http://archive.example/dicom-web", {}))
    with pytest.raises(MONAILabelException, match="doesn't answer as it should") as error:
        server.retrieve("1.2", "1.3", tmp_path)
    assert error.value.error == MONAILabelError.SERVER_ERROR
    assert not list(tmp_path.iterdir())


def test_an_image_without_a_uid_is_an_error_of_the_server_and_a_full_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    studies, uid = studies_on(Archive(*images), tmp_path / "cache"), str(images[0].SeriesInstanceUID)
    with files_up_to(100), pytest.raises(MONAILabelException, match="The studies' disk can't be written to") as error:
        studies.get_image_uri(uid)
    assert error.value.error == MONAILabelError.SERVER_ERROR
    del images[3].SOPInstanceUID
    monkeypatch.setattr(studies._client, "retrieve_series", lambda study, series, media_types: images)
    with pytest.raises(MONAILabelException, match="doesn't answer as it should .AttributeError"):
        studies._fetch(uid)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["Path.mkdir", "tempfile.mkstemp", "nibabel.save", "shutil.copyfile", "os.replace"])
def test_a_disk_that_is_full_at_any_step_of_a_fetch_is_said_and_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    studies, mkdir = studies_on(archive, tmp_path / "cache"), Path.mkdir

    def full(*args: Any, **kwargs: Any) -> None:
        if step == "Path.mkdir" and ".fetch-" not in str(args[0]):
            return mkdir(*args, **kwargs)
        raise FULL

    for ask in (lambda: studies.get_image_uri(uid), lambda: MostAnomalousFirst()({}, studies)):
        with monkeypatch.context() as disk:
            disk.setattr(step.replace("Path", "pathlib.Path"), full)
            with pytest.raises(MONAILabelException, match="disk can't be written to .No space left on device") as error:
                ask()
        assert error.value.error == MONAILabelError.SERVER_ERROR
        assert not [p for p in (tmp_path / "cache").rglob("*") if ".fetch-" in p.name or p.suffix in (".dcm", ".gz")]
    assert nib.load(studies.get_image_uri(uid)).shape == GRID


def test_on_a_full_disk_what_readers_have_reviewed_is_still_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, unread = (make_series(tmp_path / name, name) for name in ("AX FLAIR", "COR FLAIR"))
    archive = Archive(*read, *unread, segmentation_series(read[0], "MANUAL", uid="1.2.9"))
    studies = studies_on(archive, tmp_path / "cache")
    uid = str(unread[0].SeriesInstanceUID)
    studies.get_image_uri(uid)

    def full(path: Path, content: bytes) -> None:
        raise FULL

    with monkeypatch.context() as disk:
        disk.setattr("scripts.files.write", full)
        assert studies.get_unlabeled_images() == [uid] and studies.status()["completed"] == 1
        sample = MostAnomalousFirst()({}, studies)
        assert sample and sample["id"] == uid
    assert "is not kept: The studies' disk can't be written to (No space left on device)" in caplog.text
    before = archive.asked["metadata"]
    for _ in range(2):
        assert studies.get_unlabeled_images() == [uid]
    assert archive.asked["metadata"] == before + 1


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_what_a_server_returns_in_parts_is_asked_for_to_its_end(most: int, tmp_path: Path) -> None:
    series = [make_series(tmp_path / f"{n}", f"AX FLAIR {n}") for n in range(3)]
    uids = [str(images[0].SeriesInstanceUID) for images in series]
    readings = [segmentation_series(images[0], "MANUAL", uid=f"1.2.9.{n}") for n, images in enumerate(series[:2])]
    archive = Archive(*(image for images in series for image in images), *readings)
    archive.most = most
    studies = studies_on(archive, tmp_path / "cache")
    assert studies.list_images() == uids
    assert (studies.get_labeled_images(), studies.get_unlabeled_images()) == (uids[:2], uids[2:])
    for _ in range(2):
        assert nib.load(studies.get_image_uri(uids[2])).shape == GRID
    assert archive.asked["retrieve"] == 1


def test_a_server_that_knows_no_offset_is_not_asked_for_ever(tmp_path: Path) -> None:
    series = [make_series(tmp_path / f"{n}", f"AX FLAIR {n}")[0] for n in range(3)]
    archive = Archive(*series)
    archive.knows_offset = False
    for most, expected in ((None, 3), (2, 2)):
        archive.most = most
        assert len(studies_on(archive, tmp_path / "cache").list_images()) == expected
    assert archive.asked["series"] == 4


@pytest.mark.parametrize(("status", "ends"), [(400, True), (404, True), (401, False), (503, False)])
def test_a_server_that_refuses_an_offset_behind_the_end_has_said_all(status: int, ends: bool, tmp_path: Path) -> None:
    archive = Archive(*[make_series(tmp_path / f"{n}", f"AX FLAIR {n}")[0] for n in range(3)])
    given = archive.search_for_series

    def search(search_filters: dict[str, str], fields: list[str], offset: int | None = None) -> list[dict[str, Any]]:
        if offset:
            response = requests.Response()
            response.status_code = status
            raise requests.HTTPError("no", response=response)
        return given(search_filters, fields, offset)

    archive.search_for_series = search  # type: ignore[method-assign]
    studies = studies_on(archive, tmp_path / "cache")
    if ends:
        assert len(studies.list_images()) == 3
    else:
        with pytest.raises(MONAILabelException, match="doesn't answer as it should"):
            studies.list_images()


def test_what_a_server_returns_of_other_modalities_and_studies_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "flair")
    t2, other = (make_series(tmp_path / name, "AX T2", patient_id=name)[0] for name in ("mine", "other"))
    t2.StudyInstanceUID = images[0].StudyInstanceUID
    for image in images:
        image.SeriesNumber = 1
    archive, given = Archive(*images, other, t2), Archive.search_for_series
    archive.instances.append(segmentation_series(images[0], "AUTOMATIC", uid="1.0.9"))
    monkeypatch.setattr(
        archive, "search_for_series", lambda search_filters, fields, offset=None: given(archive, {}, fields, offset)
    )
    studies = DICOMwebStudies(
        client=archive, search_filter={}, modalities=["MR", "CT"], cache_path=str(tmp_path / "cache")
    )
    studies.channels, uid = [["FLAIR"]], str(images[0].SeriesInstanceUID)
    assert studies.list_images() == [uid] and studies.taken_by([uid, "1.0.9"], ["MR", "CT"]) == [uid]
    assert studies.taken_by([uid], ["CT"]) == []
    assert studies.siblings(uid, ["FLAIR", "T2"]) == [uid, t2.SeriesInstanceUID]
    assert not studies.choices(uid, ["FLAIR", "T2"])
    # and no image is looked into for a reading
    assert studies.get_unlabeled_images() == [uid] and archive.asked["metadata"] == 1


@pytest.mark.parametrize("most", [None, 1])
@pytest.mark.parametrize("first", [0, 1])
def test_a_series_that_is_in_two_studies_is_refused(
    first: int, most: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = make_series(tmp_path / "series")
    alone, others = make_series(tmp_path / "alone", patient_id="ALONE"), [copy.deepcopy(i) for i in images]
    for n, image in enumerate(others):
        image.StudyInstanceUID, image.PatientID, image.SOPInstanceUID = "1.2.3.4", "OTHER", f"1.2.3.4.{n}"
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    archive.most = most
    studies = studies_on(archive, tmp_path / "cache")
    mask = write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid))
    # the second one comes, and is found first or last; another server has fetched neither
    archive.instances = [*alone, *((images, others)[first]), *((images, others)[1 - first])]
    asks = [
        lambda: studies.get_image_uri(uid),
        lambda: studies.save_label(uid, mask, FINAL, {}),
        lambda: studies.siblings(uid, ["FLAIR", "T1"]),
        lambda: studies_on(archive, tmp_path / "another").get_image_uri(uid),
    ]
    for ask in asks:
        with pytest.raises(MONAILabelException, match="is in several studies on ") as error:
            ask()
        assert error.value.error == MONAILabelError.INVALID_INPUT
        assert images[0].StudyInstanceUID in error.value.msg and "1.2.3.4" in error.value.msg
    assert not archive.asked["store"] and not list((tmp_path / "another").rglob("*.dcm"))
    for _ in range(2):
        assert studies.list_images() == studies.get_unlabeled_images() == [alone[0].SeriesInstanceUID]
    (said,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert uid in said and images[0].StudyInstanceUID in said and "1.2.3.4" in said


def test_only_series_that_are_named_as_the_models_sequence_or_as_nothing_are_work(tmp_path: Path) -> None:
    names = {
        "t2_tirm_tra_dark-fluid": "FLAIR",
        "AX FLAIR": "FLAIR",
        "Head": None,
        "localizer": "localizer",
        "t1_mprage_sag": "T1",
        "Ax T1 FLAIR": "T1",
        "ep2d_diff_ADC": "DWI",
    }
    series = {name: make_series(tmp_path / str(n), name)[0] for n, name in enumerate(names)}
    # one whose description is empty
    by_protocol = make_series(tmp_path / "protocol", "x")[0]
    by_protocol.SeriesDescription, by_protocol.ProtocolName = "", "t2_tse_tra"
    studies = studies_on(Archive(*series.values(), by_protocol), tmp_path / "cache")
    wanted = {str(series[name].SeriesInstanceUID) for name in ("t2_tirm_tra_dark-fluid", "AX FLAIR", "Head")}
    assert set(studies.list_images()) == wanted
    assert studies.named(str(series["t1_mprage_sag"].SeriesInstanceUID)) == "T1"
    assert studies.named(str(series["Head"].SeriesInstanceUID)) is None
    assert studies.named(str(by_protocol.SeriesInstanceUID)) == "T2"
    assert all((studies.named(str(series[n].SeriesInstanceUID)) == "FLAIR") is (s == "FLAIR") for n, s in names.items())


def test_series_that_are_no_volumes_are_passed_over_and_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    series = [make_series(tmp_path / f"{n}", f"AX FLAIR {n}") for n in range(3)]
    series.sort(key=lambda images: str(images[0].SeriesInstanceUID))
    uids = [str(images[0].SeriesInstanceUID) for images in series]
    lacking = series[0].pop(3)
    archive = Archive(*(image for images in series for image in images))
    studies = studies_on(archive, tmp_path / "cache")
    monkeypatch.setattr(studies, "get_unlabeled_images", lambda: ["1.2", *uids])  # the first is gone from the server
    app = app_of(studies, Run(tmp_path), monkeypatch)
    app._strategies, app._auto_update_scoring = {"random": MostAnomalousFirst()}, False
    for _ in range(2):
        sample = app.next_sample({})
        assert (sample["id"], sample["unread"]) == (uids[1], 4)
    assert archive.asked["retrieve"] == 2
    said = [r.getMessage() for r in caplog.records if "passed over" in r.getMessage()]
    assert "There is no series 1.2 " in said[0] and "between instance numbers 3 and 5" in said[1] and len(said) == 4
    # until the missing one comes
    archive.instances.append(lacking)
    assert app.next_sample({})["id"] == uids[0] and archive.asked["retrieve"] == 3
    archive.away = True
    monkeypatch.setattr(studies, "get_unlabeled_images", lambda: uids[2:])
    with pytest.raises(MONAILabelException, match="doesn't answer as it should"):
        app.next_sample({})
    archive.away, archive.instances = False, []
    assert app.next_sample({}) == {}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Archive, DICOMwebStudies, str, str]:
    """A server with two series, and their UIDs as they are ranked."""
    series = [make_series(tmp_path / f"{n}", f"AX FLAIR {n}") for n in range(2)]
    first, second = sorted(str(images[0].SeriesInstanceUID) for images in series)
    archive = Archive(*series[0], *series[1])
    return archive, studies_on(archive, tmp_path / "cache"), first, second


def failing(archive: Archive, uid: str, failure: Exception | int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server give all series but one."""
    given = archive.retrieve_series

    def retrieve(study: str, series: str, media_types: Any) -> list[Dataset]:
        images = given(study, series, media_types)
        if series == uid and isinstance(failure, int):
            response = requests.Response()
            response.status_code = failure
            response.raise_for_status()
        if series == uid and isinstance(failure, Exception):
            raise failure
        return images

    monkeypatch.setattr(archive, "retrieve_series", retrieve)


@pytest.mark.parametrize(
    "failure", [404, 500, 502, requests.ReadTimeout("60 s"), requests.ConnectionError("reset")], ids=str
)
def test_one_series_that_cannot_be_fetched_does_not_stop_the_next(
    failure: Exception | int, two: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archive, studies, first, second = two
    failing(archive, first, failure, monkeypatch)
    strategy = MostAnomalousFirst()
    for _ in range(2):
        sample = strategy({}, studies)
        assert sample and (sample["id"], sample["unread"]) == (second, 2)
    assert f"{first} is passed over" in caplog.text and archive.asked["retrieve"] == 3
    # who asks for it is told so
    with pytest.raises(MONAILabelException) as error:
        studies.get_image_uri(first)
    assert error.value.error == MONAILabelError.SERVER_ERROR
    # readers need not wait again and again for one that takes a minute
    monkeypatch.setattr("lib.tasks.triage.SLOW_SECONDS", -1.0)
    asked = archive.asked["retrieve"]
    for _ in range(2):
        sample = strategy({}, studies)
        assert sample and sample["id"] == second
    assert archive.asked["retrieve"] == asked + 1
    strategy._left_out.clear()  # the time is over
    # nor for one after the other
    with monkeypatch.context() as impatient:
        impatient.setattr("lib.tasks.triage.PATIENCE_SECONDS", -1.0)
        with pytest.raises(MONAILabelException):
            strategy({}, studies)
    strategy._left_out.clear()
    monkeypatch.undo()
    sample = strategy({}, studies)
    assert sample and sample["id"] == first


def test_the_only_unread_series_that_fails_is_not_said_to_be_none(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, studies, first, second = two
    archive.instances = [i for i in archive.instances if i.SeriesInstanceUID == first]
    failing(archive, first, 500, monkeypatch)
    monkeypatch.setattr("lib.tasks.triage.SLOW_SECONDS", -1.0)
    strategy = MostAnomalousFirst()
    for _ in range(2):
        with pytest.raises(MONAILabelException) as error:
            strategy({}, studies)
        assert error.value.error == MONAILabelError.SERVER_ERROR
    assert archive.asked["retrieve"] == 1


@pytest.mark.parametrize("failure", [401, 503, requests.ConnectionError("reset"), "disk"], ids=str)
def test_what_every_series_fails_with_is_said(failure: Any, two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, studies, first, second = two
    failing(archive, first, failure, monkeypatch)
    if isinstance(failure, Exception):
        given = archive.search_for_series

        def search(**asked: Any) -> list[dict[str, Any]]:
            archive.away = archive.asked["retrieve"] > 0
            return given(**asked)

        monkeypatch.setattr(archive, "search_for_series", search)
    with (
        files_up_to(100) if failure == "disk" else contextlib.nullcontext(),
        pytest.raises(MONAILabelException) as error,
    ):
        MostAnomalousFirst()({}, studies)
    assert error.value.error == MONAILabelError.SERVER_ERROR and archive.asked["retrieve"] == 1


@pytest.mark.parametrize("told", [9, 8, 7])
def test_a_series_is_whole_when_all_that_is_listed_came_whatever_number_is_told(
    told: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(tmp_path / "series")
    archive, uid, given = Archive(*images), str(images[0].SeriesInstanceUID), Archive.search_for_series

    def search(search_filters: dict[str, str], fields: list[str], offset: int | None = None) -> list[dict[str, Any]]:
        number = {"00201209": {"vr": "IS", "Value": [told]}}
        return [row | number for row in given(archive, search_filters, fields, offset)]

    monkeypatch.setattr(archive, "search_for_series", search)
    studies = studies_on(archive, tmp_path / "cache")
    for _ in range(2):
        assert nib.load(studies.get_image_uri(uid)).shape == GRID
    assert archive.asked["retrieve"] == 1
    for what in ("retrieve_series", "search_for_instances"):
        monkeypatch.setattr(archive, what, lambda *args, **kwargs: [])
    with pytest.raises(MONAILabelException, match="holds no image"):
        studies_on(archive, tmp_path / "another").get_image_uri(uid)


# -- what goes back


PARAMS: dict[str, Any] = {
    "score": 0.5,
    "p_diseased": 0.9,
    "options": {"threshold": 0.3},
    "weights": "w",
    "version": "1",
}


def test_results_are_stored_once_for_each_setting_and_say_it(tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    studies = studies_on(archive, tmp_path / "cache")
    mask = write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid))
    changed = {**PARAMS, "options": {"threshold": 0.2}, "changed_options": "t0.2", "warnings": ["It is bright."]}
    for params in (PARAMS, PARAMS, changed, changed):
        studies.save_results(uid, "original", mask, {"anomaly_map": Path(mask)}, params)
    assert [i.SeriesDescription for i in archive.instances[8:]] == [
        "AI 0.500 anomaly of AX FLAIR, not for clinical use",
        "AI 0.500 map of AX FLAIR, not for clinical use",
        "AI 0.500 CHECK anomaly of AX FLAIR (t0.2, research)",
        "AI 0.500 CHECK map of AX FLAIR (t0.2, research)",
    ]
    assert archive.instances[10].SegmentSequence[0].SegmentDescription == "It is bright."
    # they are no work and no reading
    assert studies.list_images() == studies.get_unlabeled_images() == [uid]


Sending = tuple[Archive, DICOMwebStudies, str, str]


@pytest.fixture
def sending(tmp_path: Path) -> Sending:
    """A server, studies on it, a series and a mask of it."""
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    studies = studies_on(archive, tmp_path / "cache")
    return archive, studies, uid, write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid))


def save(studies: DICOMwebStudies, uid: str, mask: str) -> None:
    studies.save_results(uid, "original", mask, {"anomaly_map": Path(mask)}, PARAMS)


def test_a_result_that_the_server_did_not_get_is_kept_and_sent_when_it_answers(sending: Sending) -> None:
    archive, studies, uid, mask = sending
    for away in ("SEG", "OT"):
        archive.away_for = away
        with pytest.raises(MONAILabelException, match="went away.*result and its score are kept here") as error:
            save(studies, uid, mask)
        assert "Nothing" not in error.value.msg
        assert studies.get_image_info(uid)[SCORE] == 0.5 and studies.get_label_uri(uid, "original")
    archive.away_for = None
    save(studies, uid, mask)
    save(studies, uid, mask)
    assert [i.Modality for i in archive.instances[8:]] == ["SEG", "OT"]


def ai(archive: Archive) -> list[str]:
    """What is on the server of results."""
    return [i.SeriesDescription[:8] for i in archive.instances if i.Modality in ("SEG", "OT")]


@pytest.mark.parametrize("what", ["input", "options", "config", "weights", "version"])
def test_a_result_of_other_makings_is_sent_and_one_of_the_same_is_not(what: str, sending: Sending) -> None:
    archive, studies, uid, mask = sending
    made_with = {"input": [[1]], "config": "c", **{key: PARAMS[key] for key in ("options", "weights", "version")}}
    other = write_mask(Path(mask).with_name("other.nii.gz"), studies.get_image_uri(uid), depth=5)
    for _ in range(2):
        for file, score, change in ((mask, 0.5, {}), (other, 0.25, {what: "another"})):
            results = {"anomaly_map": Path(file)}
            params = {**PARAMS, "score": score}
            studies.save_results(uid, "original", file, results, params, None, {**made_with, **change})
    assert ai(archive) == ["AI 0.500"] * 2 + ["AI 0.250"] * 2


def test_a_result_of_a_series_beside_it_that_was_sent_anew_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flair, t1 = make_series(tmp_path / "flair"), make_series(tmp_path / "t1", "AX T1")
    for image in t1:
        image.StudyInstanceUID = flair[0].StudyInstanceUID
    archive, uid = Archive(*flair, *t1), str(flair[0].SeriesInstanceUID)
    studies, task = studies_on(archive, tmp_path / "cache"), Run(tmp_path)
    declared = SimpleNamespace(channels=["FLAIR", "T1"], modalities=["MR"], reference="FLAIR", version="1")
    monkeypatch.setattr(task, "model", SimpleNamespace(declared=declared, load=lambda: None))

    def made_with(request: dict[str, Any]) -> dict[str, Any]:
        return {"input": [os.stat(path).st_mtime_ns for path in request["image"]]}

    def run(request: dict[str, Any]) -> Any:
        file, params, result = Run.run(task, {"image": request["image"][:1]})
        return file, {**params, "score": nib.load(request["image"][1]).get_fdata().max()}, result

    monkeypatch.setattr(task, "made_with", made_with)
    monkeypatch.setattr(task, "run", run)
    app, request = app_of(studies, task, monkeypatch), {"model": "lesion_mask", "image": uid, "save_label": True}
    app.infer(dict(request))
    score = studies.get_image_info(uid)[SCORE]
    archive.instances = [i for i in archive.instances if i not in t1] + replaced(t1)
    assert score and not app._is_done(request, studies)
    app.infer(dict(request))
    assert studies.get_image_info(uid)[SCORE] == 0 and app._is_done(request, studies)
    assert ai(archive) == [f"AI {score:.3f}"[:8]] * 2 + ["AI 0.000"] * 2


@pytest.mark.parametrize("status", [None, 404, 500])
def test_a_result_that_was_deleted_on_the_server_is_sent_again_with_uids_of_its_own(
    status: int | None, sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, studies, uid, mask = sending
    save(studies, uid, mask)
    *_, seg, parametric_map = archive.instances
    archive.instances.remove(seg)
    given = archive.search_for_series

    def search(search_filters: dict[str, str], **kwargs: Any) -> list[dict[str, Any]]:
        rows = given(search_filters=search_filters, **kwargs)
        if rows or not status or kwargs["offset"]:
            return rows
        response = requests.Response()  # some have no empty list
        response.status_code = status
        raise requests.HTTPError("none", response=response)

    monkeypatch.setattr(archive, "search_for_series", search)
    save(studies, uid, mask)
    sent = [i for i in archive.instances if i.Modality == "SEG"]
    if status == 500:  # that says nothing of it
        assert not sent
    else:
        assert len(sent) == 1 and sent[0].SOPInstanceUID != seg.SOPInstanceUID
    assert [i for i in archive.instances if i.Modality == "OT"] == [parametric_map]
    before = archive.asked["store"]
    save(studies, uid, mask)
    assert archive.asked["store"] == before


@pytest.mark.parametrize("arrives", [True, False])
def test_what_is_sent_again_as_its_answer_was_lost_is_there_once(
    arrives: bool, sending: Sending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, studies, uid, mask = sending
    given, tried = Archive.store_instances, []

    def lost(datasets: list[Dataset]) -> Dataset:
        tried.append((datasets[0].SeriesInstanceUID, datasets[0].file_meta.MediaStorageSOPInstanceUID))
        if arrives:
            given(archive, datasets)
        raise requests.ReadTimeout("60 s")

    monkeypatch.setattr(archive, "store_instances", lost)
    another = studies_on(archive, tmp_path / "cache")
    for server in (studies, another):
        with contextlib.suppress(MONAILabelException):
            server.save_label(uid, mask, FINAL, {})
    assert len(tried) == (1 if arrives else 2) and len(set(tried)) == 1
    for server in (studies, another, studies_on(archive, tmp_path / "cache")):
        with contextlib.suppress(MONAILabelException):
            save(server, uid, mask)
    assert len(set(tried)) == (3 if arrives else 2)
    monkeypatch.undo()
    if not arrives:
        studies.save_label(uid, mask, FINAL, {})
    save(studies, uid, mask)
    there = [(i.SeriesInstanceUID, i.SOPInstanceUID) for i in archive.instances[8:]]
    assert sorted(i.Modality for i in archive.instances[8:]) == ["OT", "SEG", "SEG"] and set(tried) <= set(there)
    assert another.get_label_info(uid, FINAL)["SeriesInstanceUID"] in dict(there)
    (stored,) = another.get_image_info(uid)["stored"].values()
    assert len(stored) == 2 and set(stored) <= dict(there).keys()
    # another label is another object, also the first one after it; the same one twice, as our answer may be lost too, is one
    other = write_mask(tmp_path / "other.nii.gz", studies.get_image_uri(uid), depth=2)
    for file, number in ((other, 1), (other, 1), (mask, 2), (mask, 2)):
        studies.save_label(uid, file, FINAL, {})
        assert len(archive.instances) == 8 + 3 + number
        assert studies.get_label_info(uid, FINAL)["SeriesInstanceUID"] == archive.instances[-1].SeriesInstanceUID


def test_a_server_that_knows_no_such_series_has_not_got_the_object(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, studies, uid, mask = sending
    archive.away_for = "SEG"
    with pytest.raises(MONAILabelException, match="went away"):
        studies.save_label(uid, mask, FINAL, {})
    archive.away_for, given = None, Archive.search_for_instances

    def instances(study: str, series: str, fields: list[str], offset: int | None = None) -> list[dict[str, Any]]:
        if rows := given(archive, study, series, fields, offset):
            return rows
        response = requests.Response()
        response.status_code = 404
        raise requests.HTTPError("no such series", response=response)

    monkeypatch.setattr(archive, "search_for_instances", instances)
    studies.save_label(uid, mask, FINAL, {})
    assert [i.Modality for i in archive.instances[8:]] == ["SEG"]


@pytest.mark.parametrize("refused", ["SEG", "OT"])
def test_what_a_server_takes_at_no_time_is_a_warning(
    refused: str, sending: Sending, caplog: pytest.LogCaptureFixture
) -> None:
    archive, studies, uid, mask = sending
    archive.refuses = (refused, 0x0122)
    save(studies, uid, mask)
    assert studies.get_image_info(uid)[SCORE] == 0.5 and studies.get_label_uri(uid, "anomaly_map")
    (said,) = [r.getMessage() for r in caplog.records if "refused it" in r.getMessage()]
    assert f"{uid}: " in said and "0x0122" in said and "It is kept here all the same" in said
    other = {"SEG": "OT", "OT": "SEG"}[refused]
    assert [i.Modality for i in archive.instances[8:]] == [other]
    # until it takes it, and the other one is not sent again
    archive.refuses = None
    save(studies, uid, mask)
    assert [i.Modality for i in archive.instances[8:]] == [other, refused]


def test_a_server_without_space_is_asked_again(sending: Sending) -> None:
    archive, studies, uid, mask = sending
    for reason in (0xA700, 0x0110):
        archive.refuses = ("SEG", reason)
        with pytest.raises(MONAILabelException, match=f"0x{reason:04X}.*kept here"):
            save(studies, uid, mask)
    assert studies.get_image_info(uid)[SCORE] == 0.5


def test_a_full_disk_sends_nothing(sending: Sending) -> None:
    archive, studies, uid, mask = sending
    with files_up_to(100):
        for _ in range(3):
            with pytest.raises(MONAILabelException, match="can't be written to .*Nothing was stored"):
                save(studies, uid, mask)
            with pytest.raises(MONAILabelException, match="can't be written to .*Nothing was stored"):
                studies.save_label(uid, mask, FINAL, {})
    assert not archive.asked["store"] and not studies.get_label_uri(uid, FINAL)


def test_a_readers_label_that_the_server_did_not_get_is_kept(sending: Sending) -> None:
    archive, studies, uid, mask = sending
    archive.away_for = "SEG"
    with pytest.raises(MONAILabelException, match="went away.*The label is kept on this server alone; submit it again"):
        studies.save_label(uid, mask, FINAL, {})
    assert studies.get_label_uri(uid, FINAL) and studies.get_labeled_images() == [uid]
    archive.away_for = None
    studies.save_label(uid, mask, FINAL, {})
    (seg,) = archive.instances[8:]
    assert studies.get_label_info(uid, FINAL)["SeriesInstanceUID"] == seg.SeriesInstanceUID


def test_two_at_once_send_a_result_once(sending: Sending, tmp_path: Path) -> None:
    archive, studies, uid, mask = sending
    archive.slow = 0.2
    with ThreadPoolExecutor(2) as pool:
        # as the server and a batch
        list(pool.map(lambda mine: save(mine, uid, mask), (studies, studies_on(archive, tmp_path / "cache"))))
    assert [i.Modality for i in archive.instances[8:]] == ["SEG", "OT"]


def test_a_readers_label_has_the_lesion_alone_and_one_that_does_not_fit_is_sent_nowhere(tmp_path: Path) -> None:
    images = make_series(tmp_path / "series")
    archive, uid = Archive(*images), str(images[0].SeriesInstanceUID)
    studies = studies_on(archive, tmp_path / "cache")
    mask = write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid))
    array = np.array(nib.load(mask).dataobj)
    array[0, 0, 2:] = 2
    nib.save(nib.Nifti1Image(array[:, :, :5], AFFINE), tmp_path / "short.nii.gz")
    (tmp_path / "short.bin").write_bytes(bytes(7 * 6 * 5))
    for name in ("short.nii.gz", "short.bin"):
        with pytest.raises(MONAILabelException, match="The label 'final' of .* Nothing was stored"):
            studies.save_label(uid, str(tmp_path / name), FINAL, {})
    assert not archive.asked["store"]
    nib.save(nib.Nifti1Image(array, nib.load(mask).affine), tmp_path / "both.nii.gz")
    studies.save_label(uid, str(tmp_path / "both.nii.gz"), FINAL, {})
    (segment,) = archive.instances[-1].SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("anomaly", "MANUAL")
    assert archive.instances[-1].pixel_array.sum() == (array == 1).sum() == 4
    assert studies.get_labeled_images() == [uid]


# -- radiographs


def test_a_radiograph_is_work_where_a_model_takes_it_and_a_picture_of_its_mask_goes_back(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (40, 50), dtype=np.uint16)
    made = dicom.image(pixels, PixelSpacing=[0.2, 0.3], SeriesDescription="Chest")
    radiograph = pydicom.dcmread(dicom.save(made, tmp_path / "chest.dcm"))
    uid, slices = str(radiograph.SeriesInstanceUID), make_series(tmp_path / "series")
    archive = Archive(radiograph, *slices)
    studies = studies_on(archive, tmp_path / "mr")
    assert studies.list_images() == [str(slices[0].SeriesInstanceUID)]
    studies = DICOMwebStudies(
        client=archive, search_filter={}, modalities=["MR", "DX"], cache_path=str(tmp_path / "both")
    )
    both = [str(slices[0].SeriesInstanceUID), uid]
    assert studies.list_images() == both and studies.modality(uid) == "DX"
    assert (studies.taken_by(both, ["MR"]), studies.taken_by(both, ["CR", "DX"])) == (both[:1], both[1:])
    image = nib.load(studies.get_image_uri(uid))
    np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0], pixels.T)
    np.testing.assert_allclose(image.header.get_zooms()[:2], (0.3, 0.2), rtol=1e-6)
    assert pydicom.dcmread(studies.input_of(uid)).SOPInstanceUID == radiograph.SOPInstanceUID
    mask = write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri(uid), depth=0)
    studies.version = "1"
    params = {"score": 0.5, "p_diseased": 0.9, "options": {}, "weights": "w", "version": "1"}
    for _ in range(2):  # the second time, it is there
        studies.save_results(uid, "original", mask, {"anomaly_map": Path(mask)}, params)
    assert studies.get_labeled_images() == []
    studies.save_label(uid, mask, FINAL, {})
    [sent] = archive.instances[1 + len(slices) :]
    assert sent.Modality == "OT" and sent.pixel_array.shape == (40, 50, 3)
    assert studies.get_labeled_images() == [uid]
    marked = np.asarray(nib.load(mask).dataobj)[:, :, 0].T == 1
    np.testing.assert_array_equal(studies.segmentation_of(uid, mask, params).pixel_array == 1, marked)
    assert studies.list_images() == [str(slices[0].SeriesInstanceUID), uid]  # none of them is work


def test_a_readers_masks_of_a_radiograph_that_is_replaced_again_and_again_are_all_kept(tmp_path: Path) -> None:
    archive = Archive()
    studies = DICOMwebStudies(client=archive, search_filter={}, modalities=["DX"], cache_path=str(tmp_path / "cache"))
    images = [dicom.image(np.zeros((40, 50), np.uint8), SeriesInstanceUID="1.2.3") for _ in range(2)]
    # the first one comes again, and is read again
    for n, image in enumerate((*images, *images)):
        archive.instances = [pydicom.dcmread(dicom.save(image, tmp_path / "chest.dcm"))]
        mask = write_mask(tmp_path / "mask.nii.gz", studies.get_image_uri("1.2.3"), value=n % 3, depth=0)
        studies.save_label("1.2.3", mask, FINAL, {"reader": n})
    tags = ["final-of-1-images", "final-of-1-images-2", "final-of-1-images-3", FINAL]
    labels = [np.asarray(nib.load(studies.get_label_uri("1.2.3", tag)).dataobj) for tag in tags]
    assert [label.max() for label in labels] == [0, 1, 2, 0]
    assert [studies.get_label_info("1.2.3", tag)["reader"] for tag in tags] == [0, 1, 2, 3]


def test_a_series_of_several_radiographs_is_refused(tmp_path: Path) -> None:
    first, second = (dicom.image(np.zeros((40, 50), np.uint8), SeriesInstanceUID="1.2.3") for _ in range(2))
    second.StudyInstanceUID = first.StudyInstanceUID
    studies = DICOMwebStudies(
        client=Archive(first, second), search_filter={}, modalities=["DX"], cache_path=str(tmp_path)
    )
    with pytest.raises(MONAILabelException, match="holds 2 radiographs; allowed is a series of one"):
        studies.get_image_uri("1.2.3")
