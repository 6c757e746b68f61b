"""What is asked of a bundle from Python, run in an environment of its own: ``python probes.py PROBE BUNDLE ...``.

Imports nothing of this project, as a stranger's program would not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def _student(bundle: str) -> Any:
    """The network that the bundle declares for the zoo, and its weights in it."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(f"{bundle}/configs/inference.json")
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(f"{bundle}/models/model.pt", weights_only=True))
    return network


def exported(bundle: str, torchscript: str, onnx: str) -> None:
    """The exported files give the network's numbers, and no map of zeros."""
    import numpy as np
    import onnxruntime
    import torch

    image = json.loads(Path(bundle, "configs", "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    x = (
        torch.rand(1, image["num_channels"], *image["spatial_shape"], generator=torch.Generator().manual_seed(0)) * 2
        - 1
    )
    with torch.no_grad():
        expected = _student(bundle)(x)
        torch.testing.assert_close(torch.jit.load(torchscript)(x), expected, rtol=0, atol=1e-4)
    session = onnxruntime.InferenceSession(onnx)
    given = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(given, expected.numpy(), rtol=0, atol=1e-3)
    assert expected.std() > 0.01


def load(bundle: str) -> None:
    """`monai.bundle.load` gives the network with its weights, by the bundle's name."""
    import monai.bundle
    import torch

    path = Path(bundle)
    network = monai.bundle.load(path.name, bundle_dir=str(path.parent), workflow_type="inference", device="cpu")
    for name, value in _student(bundle).state_dict().items():
        assert torch.equal(network.state_dict()[name].cpu(), value), name


def properties(bundle: str, names: str, kind: str, options: str) -> None:
    """A workflow has all that MONAI expects of its kind, from another folder and told where the bundle is."""
    from monai.bundle import ConfigWorkflow

    files = [f"{bundle}/configs/{name}.json" for name in names.split(",")]
    workflow = ConfigWorkflow(files, workflow_type=kind, logging_file=False)
    workflow.initialize()
    workflow.bundle_root = bundle
    workflow.parser.update(json.loads(options))
    workflow.initialize()
    assert workflow.check_properties() == [], workflow.check_properties()


def label_infer(bundle: str, image: str) -> None:
    """MONAI Label's own inference task serves the bundle."""
    _stand_in_for_torchvision()
    import nibabel as nib
    import numpy as np
    from monailabel.tasks.infer.bundle import BundleInferTask

    task = BundleInferTask(bundle, {})
    assert task.is_valid()
    file, params = task({"image": image, "device": "cpu", "result_extension": ".nii.gz"})
    found = np.unique(nib.load(file).dataobj)
    assert 1 in found and set(found) <= {0, 1, 2}, found


def label_train(bundle: str, items: str, options: str) -> None:
    """MONAI Label's own training task trains the bundle's diffusion network; `options` makes it short."""
    _stand_in_for_torchvision()
    from monailabel.tasks.train.bundle import BundleTrainTask

    class Short(BundleTrainTask):
        def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
            overrides.update(json.loads(options))
            return overrides

    class Studies:
        def datalist(self) -> list[dict[str, Any]]:
            return list(json.loads(items))

    task = Short(bundle, {})
    assert task.is_valid()
    task(
        {**task.config(), "device": "cpu", "max_epochs": 1, "val_split": 0.5, "model": "bundle", "tracking": "None"},
        Studies(),
    )
    assert Path(json.loads(options)["run_dir"], "model.pt").is_file()


def _stand_in_for_torchvision() -> None:
    """MONAI Label imports torchvision for two functions that are not used here; it has no CPU build beside this torch."""
    for name in ("torchvision", "torchvision.utils"):
        module: Any = ModuleType(name)
        module.make_grid = module.save_image = None
        sys.modules[name] = module


if __name__ == "__main__":
    # the folder of this file is not the stranger's
    sys.path.pop(0)
    {f.__name__: f for f in (exported, load, properties, label_infer, label_train)}[sys.argv[1]](*sys.argv[2:])
