"""Show the bundle's sample studies in real viewers: Orthanc keeps the DICOM, MONAI Label runs the models."""

from __future__ import annotations

import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import fire
import pydicom

from lib.demonstration.label_server import APP, label_server, ohif_url
from lib.demonstration.mr_series import series_from_nifti
from lib.demonstration.orthanc import find_orthanc, orthanc, upload
from lib.demonstration.servers import LOGIN, ServeError, watch

BUNDLE = APP.parents[1] / "bundle"
SAMPLE = BUNDLE / "sample" / "TCGA_FG_6692_flair.nii.gz"
RADIOGRAPH = BUNDLE / "sample" / "NIH_61_effusion.dcm"
CHEST = BUNDLE / "models" / "chest" / "model.pt"
"""The weights without which no model takes the radiograph."""
NOTICE = "Research software, not for clinical use."


def sample_study(folder: str | Path) -> tuple[list[Path], str]:
    """The bundle's sample as a DICOM series: its files and its StudyInstanceUID."""
    files = series_from_nifti(
        SAMPLE, folder, series_description="FLAIR", patient_id="TCGA-FG-6692", patient_name="Sample^Frontal glioma"
    )
    return files, str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)


def serve(folder: str = "output/serve", port: int = 8000, orthanc_port: int = 8043, **conf: str) -> None:
    """Serve the sample studies until Ctrl-C: to OHIF and 3D Slicer; without Orthanc to 3D Slicer only.

    It ends with status 1, and says why, when one of its servers ends by itself.

    Args:
        folder: for all that is written; what an earlier run left there is shown again.
        port: of the MONAI Label server, which also serves OHIF.
        orthanc_port: of Orthanc; 8042 is that of the Orthanc which Debian's package starts.
        conf: options of the app, such as ``--device cpu``.
    """
    root = Path(folder).resolve()
    # ended with a signal, the servers must end too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    options = {key: str(value) for key, value in conf.items()}
    try:
        with ExitStack() as stack:
            if find_orthanc() is None:
                studies = root / "studies"
                studies.mkdir(parents=True, exist_ok=True)
                for sample in (SAMPLE, RADIOGRAPH):
                    shutil.copy(sample, studies)
                server = stack.enter_context(label_server(str(studies), root, port, options))
                ohif = "needs Orthanc with its DICOMweb plugin: `make viewers` installs them on Debian and Ubuntu"
            else:
                files, study = sample_study(root / "dicom")
                dicomweb = stack.enter_context(orthanc(root / "orthanc", orthanc_port))
                upload([*files, RADIOGRAPH], orthanc_port)
                server = stack.enter_context(label_server(dicomweb, root, port, options, LOGIN))
                ohif = f"{ohif_url(server, study)}\n             server, in the MONAI Label panel: {server}/"
                if CHEST.is_file():
                    radiograph = str(pydicom.dcmread(RADIOGRAPH, stop_before_pixels=True).StudyInstanceUID)
                    ohif += f"\n             the radiograph: {ohif_url(server, radiograph)}"
                ohif += f"\n             anomaly map, once a model ran: {ohif_url(server, study, 'viewer')}"
            print(f"\n  OHIF       {ohif}\n  3D Slicer  module MONAILabel, server {server}", flush=True)
            print(f"  Files      {root}\n\n{NOTICE} Ctrl-C ends it.", flush=True)
            watch()
    except ServeError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        print("ended")


if __name__ == "__main__":
    fire.Fire(serve)
