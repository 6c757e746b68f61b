"""For 3D Slicer's Python console: the anomaly map over the image, and its healthy counterpart beside it.

    exec(open("/path/to/apps/anomaly_detection/slicer/show_anomaly.py").read())
    show_anomaly()

MONAI Label's plug-in shows label maps only. This loads what the app keeps beside the label: the float map as a colour
overlay on the image in the red view, the counterfactual in the yellow one, and the score in the corner. Needs nothing but
Slicer.
"""

import json
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request

import vtk

import slicer

COLORS = "Inferno"


def _ask(url, data=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data)) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        try:
            message = json.loads(error.read())["detail"]
        except (ValueError, KeyError):
            message = str(error)
        raise RuntimeError(message) from None
    except urllib.error.URLError as error:
        raise RuntimeError(f"{url}: no answer ({error.reason}); is the server running?") from None


def _load(server, image_id, tag):
    content = _ask(f"{server}/datastore/label?{urllib.parse.urlencode({'label': image_id, 'tag': tag})}")
    path = os.path.join(tempfile.mkdtemp(), f"{tag}.nii.gz")
    with open(path, "wb") as file:
        file.write(content)
    try:
        return slicer.util.loadVolume(path, {"name": f"{image_id} {tag}", "show": False})
    finally:
        os.unlink(path)
        os.rmdir(os.path.dirname(path))


def show_anomaly(server="http://127.0.0.1:8000", image=None, model="lesion_mask"):
    """Run the model on the volume in the red view, unless it has run, and show the result.

    Args:
        server: address of the MONAI Label server.
        image: the volume's node; by default the one in the background of the red view. Its name is the image's id, as
            MONAI Label's plug-in names the volumes that it loads.
        model: what to run, such as "chest_effusion_lesion_mask" on a radiograph.

    Returns:
        The scores, a dictionary.

    Raises:
        RuntimeError: the server said no; the message is its own. Or it keeps no map of this model for the image.
    """
    server = server.rstrip("/")
    if image is None:
        composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
        image = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID())
    image_id = image.GetName()
    body = urllib.parse.urlencode({"params": json.dumps({"save_label": True})}).encode()
    query = urllib.parse.urlencode({"image": image_id, "output": "json"})
    scores = json.loads(_ask(f"{server}/infer/{model}?{query}", body))
    query = urllib.parse.urlencode({"label": image_id, "tag": "anomaly_map"})
    kept = json.loads(_ask(f"{server}/datastore/label/info?{query}")).get("params", {})
    if any(kept.get(name) != scores[name] for name in ("options", "weights", "version")):
        raise RuntimeError(f"the server keeps no map of {model}, only that of the first model which takes {image_id}")
    anomaly_map = _load(server, image_id, "anomaly_map")
    counterfactual = _load(server, image_id, "counterfactual")

    threshold = scores["options"]["threshold"]
    display = anomaly_map.GetDisplayNode()
    display.SetAndObserveColorNodeID(slicer.util.getFirstNodeByClassByName("vtkMRMLColorNode", COLORS).GetID())
    # the same scale for every study: dark is a third of the threshold, bright is three times it
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 3.0 * threshold)
    display.SetLowerThreshold(threshold / 3.0)
    display.SetUpperThreshold(1e6)
    display.SetApplyThreshold(True)

    layout = slicer.app.layoutManager()
    layout.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
    for view, background, foreground in (("Red", image, anomaly_map), ("Yellow", counterfactual, None)):
        widget = layout.sliceWidget(view)
        widget.mrmlSliceNode().SetOrientationToAxial()
        composite = widget.mrmlSliceCompositeNode()
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(foreground.GetID() if foreground else None)
        composite.SetForegroundOpacity(0.5)
        composite.SetLinkedControl(True)
    # the grey values of both mean the same
    ours, theirs = counterfactual.GetDisplayNode(), image.GetDisplayNode()
    ours.SetAutoWindowLevel(False)
    ours.SetWindowLevel(theirs.GetWindow(), theirs.GetLevel())
    score, p = scores["score"], scores["p_diseased"]
    text = "not assessed" if score is None else f"anomaly score {score:.3f}, p(diseased) {p:.2f}"
    annotation = layout.sliceWidget("Red").sliceView().cornerAnnotation()
    annotation.SetText(vtk.vtkCornerAnnotation.UpperRight, f"{text}\nnot for clinical use")
    layout.sliceWidget("Red").sliceView().forceRender()
    slicer.util.resetSliceViews()
    return scores
