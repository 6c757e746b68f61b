"""Two sites that train with the same configs through MONAI's federated client, and a server that averages their weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from small_bundle import write_small_bundle
from training_data import write_datalist

SITES = """
import json
import sys
import torch
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
folder, rounds = sys.argv[1], 3
configs = ["configs/inference.json", "configs/train.json"]


def site(name, rate, trained_before):
    data = f"{folder}/{name}"
    options = {"datalist": f"{data}/datalist.json", "cache_dir": f"{data}/cache", "run_dir": f"{data}/run"}
    options |= {"max_images": 8 * rounds, "epoch_images": 8, "batch_size": 4, "compile": False, "learning_rate": rate}
    if trained_before:
        files = [f"{folder}/bundle/{config}" for config in configs]
        workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **options)
        workflow.initialize()
        workflow.run()
    algo = MonaiAlgo(
        "bundle",
        send_weight_diff=False,
        config_train_filename=configs,
        train_kwargs=options,
        config_evaluate_filename=configs,
        eval_kwargs=options,
    )
    algo.initialize({ExtraItems.CLIENT_NAME: name, ExtraItems.APP_ROOT: folder})
    return algo


def apart(a, b):
    return max(float((torch.as_tensor(a[k]) - torch.as_tensor(b[k])).abs().max()) for k in a)


sites = [site("north", 1e-3, True), site("south", 0.0, False)]
before = open(f"{folder}/north/run/last.pt", "rb").read()
server = torch.load(f"{folder}/bundle/models/model.pt", weights_only=True)
said = []
for n in range(rounds):
    # far from where the sites left off, so that these can't be theirs
    server = {k: v + torch.full_like(v, 0.01 * (n + 1)) for k, v in server.items()}
    back = []
    for algo in sites:
        algo.train(ExchangeObject(weights=server), extra={})
        back.append({k: torch.as_tensor(v).clone() for k, v in algo.get_weights().weights.items()})
    loss = sites[0].evaluate(ExchangeObject(weights=server)).metrics["val_loss"]
    steps = [algo.trainer.state.iteration for algo in sites]
    moved = [apart(server, weights) for weights in back]
    said.append({"moved": moved, "steps": steps, "loss": loss})
    server = {k: sum(weights[k] for weights in back) / len(back) for k in server}
assert open(f"{folder}/north/run/last.pt", "rb").read() == before
print("SAID", json.dumps(said))
"""


def test_the_servers_weights_count_in_every_round(tmp_path: Path) -> None:
    """Each site goes two steps from what the server sent, in each of three rounds.

    South has a rate of 0 and sends just that back. North holds the checkpoint of a training of its own, with the same
    settings, which is not gone on from and stays as it is.
    """
    write_small_bundle(tmp_path)
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        write_datalist(tmp_path / name)
    command = [sys.executable, "-c", SITES, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    rounds = json.loads(done.stdout.split("SAID ")[1])
    assert [r["steps"] for r in rounds] == [[2, 2], [4, 4], [6, 6]]
    for r in rounds:
        north, south = r["moved"]
        # AdamW goes about as far as its rate in a step; the server moves ten times as far
        assert 0 < north < 3e-3 and south == 0
    assert len({r["loss"] for r in rounds}) == 3
    assert not list((tmp_path / "south" / "run").glob("*.pt"))
