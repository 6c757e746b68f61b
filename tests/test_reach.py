"""What in configs reaches outside MONAI, torch, ignite and the scripts: nothing of ours does, and each way out is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bundle import bundle_root
from scripts.reach import FETCHES, MODULE, OWN_PATH, main, outward

SCRIPT = """import os
from torch import nn

raise SystemExit("imported")

class Net(nn.Module):
    pass

def make():
    pass
"""


def bundle(folder: Path, config: Any, logging: str = "") -> Path:
    (folder / "scripts" / "room").mkdir(parents=True)
    (folder / "scripts" / "room" / "nets.py").write_text(SCRIPT)
    (folder / "configs").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "logging.conf").write_text(logging)
    return folder


def test_nothing_of_this_bundle_reaches_outside() -> None:
    assert outward(bundle_root()) == []


@pytest.mark.parametrize(
    "value",
    [
        {"_target_": "scripts.room.nets.Net"},
        {"_target_": "UNet", "spatial_dims": 2},
        {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()"},
        {"_target_": "ignite.metrics.Loss"},
        {"_target_": "monai.networks.nets.resnet50", "pretrained": False},
        OWN_PATH,
        "$from scripts.room.nets import make",
        "$torch.device('cpu')",
        "$monai.utils.set_determinism(@seed)",
        "$torch.float32",
        "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "$torch.cat([@a, torch.sigmoid(@b)]) * torch.pi",
        "$monai.networks.nets.resnet50(pretrained=False)",
        "$@precision == 'float16'",
        "$len(@train#dataset#data) + int(@x)",
        "%other#id",
        "a text",
    ],
)
def test_what_stays_inside_passes(value: Any, tmp_path: Path) -> None:
    assert outward(bundle(tmp_path, {"value": value})) == []


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"_target_": "os.system", "command": "true"}, "'os.system' uses os"),
        ({"_target_": "builtins.exec"}, "uses builtins"),
        ({"_target_": "torch.os.system"}, "uses posix"),
        ({"_target_": "run_cmd"}, "'run_cmd' may fetch, or run other code"),
        ({"_target_": "monai.bundle.download"}, FETCHES),
        ({"_target_": "torch.hub.load"}, FETCHES),
        ({"_target_": "torch.load", "weights_only": False}, FETCHES),
        ({"_target_": "torch.utils.collect_env.run", "command": "true"}, FETCHES),
        ({"_target_": "torch.utils.benchmark.Timer", "stmt": "1"}, FETCHES),
        ({"_target_": "torch.import_ir_module"}, FETCHES),
        ({"_target_": "monai.data.load_net_with_metadata"}, FETCHES),
        ({"_target_": "monai.networks.nets.resnet50", "pretrained": True}, FETCHES),
        ("$torch.utils.collect_env.run('true')", FETCHES),
        ("$torch.compile(@network)", FETCHES),
        ({"_target_": "EfficientNetBN", "model_name": "efficientnet-b0"}, FETCHES),  # pretrained by default
        ({"_target_": "TorchVisionFCModel", "weights": "DEFAULT"}, FETCHES),
        ("$monai.networks.nets.resnet50(pretrained=True)", FETCHES),
        ({"_target_": "CSVDataset", "src": "https://elsewhere/x.csv"}, FETCHES),
        ({"_target_": "MLFlowHandler", "tracking_uri": "https://elsewhere"}, FETCHES),
        ({"_target_": "ignite.handlers.WandBLogger"}, FETCHES),
        ({"_target_": "scripts.room.nets.os.system"}, "isn't defined in the bundle's scripts"),
        ({"_target_": "scripts.room.nets.nn"}, "isn't defined in the bundle's scripts"),
        ({"_target_": "scripts.none.Net"}, "isn't defined in the bundle's scripts"),
        ({"_target_": "site.addsitedir", "sitedir": "/tmp"}, "uses site"),
        ({"_target_": "NoSuchNet"}, "uses NoSuchNet"),
        ("$import glob", "'$import glob' uses glob"),
        ("$from torch import os", "uses os"),
        ("$__import__('os').system('true')", "uses __import__"),
        ("$open('/etc/passwd').read()", "uses open"),
        ("$@network.__init__.__globals__", "reaches into what is private"),
        ("$().__class__.__base__.__subclasses__()", "reaches into what is private"),
        ("$monai.utils.optional_import('os')[0].system('true')", FETCHES),
        ("$torch.hub.os.system('true')", "uses posix"),
        ("$os.listdir()", "uses os"),
        ("$torch.get_device_module('cpu').os.system('true')", FETCHES),
        # what refers to a module by its id reaches all in it, such as "$@list#0#value.misc.os.system('true')"
        ("$monai.utils", MODULE),
        ("$torch", MODULE),
        ("$[monai.utils][0].misc.os.system('true')", MODULE),
        ("$import monai.utils", MODULE),
        ("$import scripts.room.nets", MODULE),
        ({"_target_": "monai.utils"}, MODULE),
        ("%/elsewhere/other.json::id", "reads another file"),
    ],
)
def test_every_way_out_is_found(value: Any, why: str, tmp_path: Path) -> None:
    [found] = outward(bundle(tmp_path, {"fine": "@value", "list": [{"value": value}]}))
    assert found.startswith("inference.json: list#0#value: ") and found.endswith(why)


@pytest.mark.parametrize(("root", "found"), [(".", 0), ("/elsewhere", 1), ("$'/elsewhere'", 1)])
def test_no_other_folder_may_be_on_the_path(root: str, found: int, tmp_path: Path) -> None:
    """Whichever of the configs names it."""
    folder = bundle(tmp_path, {"bundle_root": ".", "initialize": [OWN_PATH]})
    (folder / "configs" / "other.json").write_text(json.dumps({"bundle_root": root}))
    assert outward(folder) == ["inference.json: initialize#0: 'site.addsitedir' uses site"] * found


@pytest.mark.parametrize("line", ["class=os.system", "args=(open('/tmp/x', 'w'),)", "kwargs=__import__('os').environ"])
def test_a_logging_config_may_only_name_the_terminal(line: str, tmp_path: Path) -> None:
    [found] = outward(bundle(tmp_path, {}, f"[handler_a]\nlevel=INFO\n{line}\n"))
    assert found.startswith("logging.conf: handler_a: ") and found.endswith("is evaluated by Python")


@pytest.mark.parametrize(("options", "status"), [(["--help"], 0), (["--none"], 2), (["a", "b"], 2)])
def test_the_command_says_how_it_is_used(
    options: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reach", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert "usage: python -m scripts.reach [-h] [folder]" in "".join(capsys.readouterr())


def test_the_command_lists_and_refuses(tmp_path: Path) -> None:
    bad = bundle(tmp_path / "bad", {"a": "$import os", "b": {"_target_": "subprocess.run"}})
    command = [sys.executable, "-m", "scripts.reach"]
    done = subprocess.run([*command, str(bad)], cwd=bundle_root(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "inference.json: a: '$import os' uses os",
        "inference.json: b: 'subprocess.run' uses subprocess",
    ]
    done = subprocess.run([*command, str(tmp_path)], cwd=bundle_root(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "there are no configs" in done.stderr and "Traceback" not in done.stderr
