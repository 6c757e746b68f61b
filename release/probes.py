"""What is asked of a bundle from Python, run in an environment of its own: ``python probes.py PROBE BUNDLE ...``.

Imports nothing of this project, as a stranger's program would not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def _network(bundle: str) -> Any:
    """The network that the bundle declares for the zoo, and its weights in it."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(f"{bundle}/configs/inference.json")
    parser["bundle_root"] = bundle
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(f"{bundle}/models/model.pt", weights_only=True))
    return network


def zoo(bundle: str, schema: str, output: str, onnx: str) -> None:
    """What the zoo's ``ci/verify_bundle.py`` asks, as it asks, and ONNX; the files that it exports give the network's numbers.

    It runs all in one process, from a folder that is not the bundle's, with the bundle's on the path.

    Args:
        bundle: its folder.
        schema: a file that is there already is not downloaded.
        output: a folder for the exports, as the bundle can't be written.
        onnx: options of `onnx_export`, as JSON.
    """
    import numpy as np
    import onnxruntime
    import torch
    from monai.bundle import ckpt_export, create_workflow, onnx_export, verify_metadata, verify_net_in_out

    sys.path.insert(0, bundle)
    meta_file, config_file = f"{bundle}/configs/metadata.json", f"{bundle}/configs/inference.json"
    of_network: dict[str, Any] = {"meta_file": meta_file, "config_file": config_file, "bundle_root": bundle}
    verify_metadata(meta_file=meta_file, filepath=schema)
    logging_file = f"{bundle}/configs/logging.conf"
    workflow = create_workflow(workflow_type="inference", logging_file=logging_file, **of_network)
    assert workflow.check_properties() == [], workflow.check_properties()
    verify_net_in_out(net_id="network_def", **of_network)
    exporting: dict[str, Any] = {"ckpt_file": f"{bundle}/models/model.pt", **of_network}
    ckpt_export(net_id="network_def", filepath=f"{output}/model.ts", **exporting)

    image = json.loads(Path(meta_file).read_text())["network_data_format"]["inputs"]["image"]
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(1, image["num_channels"], *image["spatial_shape"], generator=draw) * 2 - 1
    with torch.no_grad():
        expected = _network(bundle)(x)
        torch.testing.assert_close(torch.jit.load(f"{output}/model.ts")(x), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01
    onnx_export(net_id="network_def", filepath=f"{output}/model.onnx", **exporting, **json.loads(onnx))
    session = onnxruntime.InferenceSession(f"{output}/model.onnx")
    given = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(given, expected.numpy(), rtol=0, atol=1e-3)


def load(bundle: str) -> None:
    """`monai.bundle.load` gives the network that ``models/model.pt`` belongs to, by the bundle's name.

    That of the training, as by default, and that of the inference, which may be code of the bundle.
    """
    import monai.bundle
    import torch

    path = Path(bundle)
    state = torch.load(path / "models" / "model.pt", weights_only=True)
    for kind in ("train", "inference"):
        config = json.loads((path / "configs" / f"{kind}.json").read_text())
        if kind == "inference" and config["network_def"]["_target_"].startswith("scripts."):
            sys.path.insert(0, bundle)
        network = monai.bundle.load(path.name, bundle_dir=str(path.parent), workflow_type=kind, device="cpu")
        found = network.state_dict()
        assert found.keys() == state.keys(), kind
        assert all(torch.equal(found[name].cpu(), value.to(found[name].dtype)) for name, value in state.items()), kind


def properties(bundle: str, lists: str, options: str) -> None:
    """Workflows have all that MONAI expects of their kind, from another folder and told where the bundle is.

    Args:
        bundle: its folder.
        lists: of names of configs, as JSON.
        options: by the kind of workflow, as JSON.
    """
    from monai.bundle import ConfigWorkflow

    for names in json.loads(lists):
        kind = "train" if names[0] == "train" else "infer"
        files = [f"{bundle}/configs/{name}.json" for name in names]
        workflow = ConfigWorkflow(files, workflow_type=kind, logging_file=False)
        workflow.initialize()
        workflow.bundle_root = bundle
        workflow.parser.update(json.loads(options)[kind])
        workflow.initialize()
        assert workflow.check_properties() == [], (names, workflow.check_properties())


def label_infer(bundle: str, image: str, options: str) -> None:
    """MONAI Label's own inference task serves the bundle."""
    _stand_in_for_torchvision()
    import nibabel as nib
    import numpy as np
    from monailabel.tasks.infer.bundle import BundleInferTask

    task = BundleInferTask(bundle, {})
    assert task.is_valid()
    request = {"image": image, "device": "cpu", "result_extension": ".nii.gz"}
    file, params = task({**request, **json.loads(options)})
    found = np.unique(nib.load(file).dataobj)
    assert 1 in found and set(found) <= {0, 1, 2}, found


def label_train(bundle: str, items: str, options: str) -> None:
    """MONAI Label's own training task goes on with the bundle's diffusion network; `options` makes it short."""
    _stand_in_for_torchvision()
    import torch
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
    files = task.config()["model_filename"]
    file = "diffusion.pt" if "diffusion.pt" in files else "model.pt"
    chosen = {
        "device": "cpu",
        "max_epochs": 1,
        "val_split": 0.5,
        "model": "bundle",
        "tracking": "None",
        "model_filename": file,
    }
    task({**task.config(), **chosen}, Studies())
    before = torch.load(f"{bundle}/models/{file}", weights_only=True)
    after = torch.load(f"{json.loads(options)['run_dir']}/model.pt", weights_only=True)
    steps = [float((after[name] - value.to(after[name].dtype)).abs().max()) for name, value in before.items()]
    assert before.keys() == after.keys() and 0 < max(steps) < 1e-3, max(steps)  # two of a rate of 2e-4


def _stand_in_for_torchvision() -> None:
    """MONAI Label imports torchvision for two functions that are not used here; it has no CPU build beside this torch."""
    for name in ("torchvision", "torchvision.utils"):
        module: Any = ModuleType(name)
        module.make_grid = module.save_image = None
        sys.modules[name] = module


if __name__ == "__main__":
    # the folder of this file is not the stranger's
    sys.path.pop(0)
    {f.__name__: f for f in (zoo, load, properties, label_infer, label_train)}[sys.argv[1]](*sys.argv[2:])
