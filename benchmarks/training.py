"""Training speed: images a second of the bundle's training and of a plain loop as in MONAI's diffusion tutorials.

    python benchmarks/training.py --datalist FILE [--minutes 1]

Both train the bundle's diffusion network on the same cached slices, batches and augmentation. The plain loop is that of the
tutorials: float32, the default memory layout, MONAI's `DiffusionInferer`, Adam, nothing else. Ours is ``configs/train.json`` as
it is, with its moving average, clipping, checkpoints and progress, with and without `torch.compile`, whose own time is in the
first iteration, given apart. They take turns, twice. Writes benchmarks/training.json.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from typing import Any

import fire
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from keeping import ROOT, machine, versions
from monai.bundle import ConfigParser
from monai.inferers import DiffusionInferer

from scripts.bundle import parsed
from scripts.files import write


def ours(parser: ConfigParser, minutes: float) -> dict[str, float]:
    """The trainer of the config, from the second batch on, and the share of the time that it waits for batches."""
    trainer = parser.get_parsed_content("train#trainer")
    first = Events.ITERATION_COMPLETED(once=1)
    begin, after = Timer(), Timer().attach(trainer, start=first)
    waiting = Timer().attach(trainer, start=first, pause=Events.GET_BATCH_COMPLETED, resume=Events.GET_BATCH_STARTED)
    trainer.add_event_handler(first, begin.pause)

    @trainer.on(Events.ITERATION_COMPLETED)
    def stop(engine: Engine) -> None:
        if after.value() > 60 * minutes:
            after.pause()
            engine.terminate()

    parser.get_parsed_content("checkpoint").open()
    trainer.run()
    return {
        "images_per_second": (trainer.state.iteration - 1) * parser["batch_size"] / after.value(),
        "share_waiting_for_batches": waiting.value() / after.value(),
        "first_iteration_seconds": begin.value(),
    }


def plain(parser: ConfigParser, minutes: float) -> dict[str, float]:
    """The tutorials' loop."""
    network = parser.get_parsed_content("network_def")
    scheduler, loader = (parser.get_parsed_content(i) for i in ("scheduler", "train#dataloader"))
    inferer, optimizer = DiffusionInferer(scheduler), torch.optim.Adam(network.parameters(), lr=2.5e-5)
    images, begin = 0, time.perf_counter()
    network.train()
    for batch in loader:  # without end
        x = batch["image"]
        optimizer.zero_grad(set_to_none=True)
        noise = torch.randn_like(x)
        timesteps = torch.randint(0, scheduler.num_train_timesteps, (len(x),))
        prediction = inferer(inputs=x, diffusion_model=network, noise=noise, timesteps=timesteps)
        torch.nn.functional.mse_loss(prediction, noise).backward()
        optimizer.step()
        images += len(x)
        if time.perf_counter() - begin > 60 * minutes:
            break
    return {"images_per_second": images / (time.perf_counter() - begin)}


def training(datalist: str, minutes: float = 1, cache_dir: str = str(ROOT / "bundle" / "cache")) -> None:
    """Run both twice in turns and write training.json; see the module."""
    data = {"datalist": datalist, "cache_dir": cache_dir}
    turns: list[dict[str, Any]] = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            turns.append({"plain": plain(parsed("train", **data, run_dir=folder), minutes)})
            turns[-1]["ours"] = ours(parsed("train", **data, run_dir=folder, compile=False), minutes)
        with tempfile.TemporaryDirectory() as folder:
            torch.compiler.reset()
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"  # so that nothing is taken from an earlier run
            turns[-1]["compiled"] = ours(parsed("train", **data, run_dir=folder, compile=True), minutes)
    ratios = [
        {n: t[n]["images_per_second"] / t["plain"]["images_per_second"] for n in ("ours", "compiled")} for t in turns
    ]
    record = {
        "machine": machine(),
        "versions": versions(),
        "turns": turns,
        "ratios": ratios,
    }
    write(ROOT / "benchmarks" / "training.json", (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    fire.Fire(training)
