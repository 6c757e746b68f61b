"""Checkpoints of the reference code, whose networks are those of openai/guided-diffusion, for MONAI's `DiffusionModelUNet`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from monai.networks.nets import DiffusionModelUNet

from .. import HEALTHY
from ..weights import read_state
from .publishing import put

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1.conv",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2.conv",
    "skip_connection": "skip_connection.conv",
}
ATTENTION = {"norm": "norm", "qkv": "attn.qkv", "proj_out": "attn.out_proj"}
DOWN, UP = {"op": "op.conv"}, {"conv": "postconv.conv"}
"""The layers of each kind of block there, and in MONAI."""


def convert(checkpoint: str | None, path: str, network: torch.nn.Module) -> None:
    """Bring a checkpoint of guided_diffusion into the bundle; what is there is kept beside it under a name with the time.

    Both compute the same where they agree: see `converted`.

    Args:
        checkpoint: a state dict of its ``UNetModel``, such as ema_0.9999_060000.pt.
        path: in the bundle's ``models``.
        network: of the definition that the bundle declares.

    Raises:
        SystemExit: no checkpoint is given, or the bundle can't be written.
        FileNotFoundError: there is no such file.
        ValueError: the file is no state dict, or not one that the network can take.
    """
    if checkpoint is None:
        raise SystemExit(
            "Give the file of guided_diffusion's weights, such as --checkpoint_to_convert ema_0.9999_060000.pt."
        )
    assert isinstance(network, DiffusionModelUNet)
    try:
        state = converted(read_state(checkpoint), network)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    target = Path(path)
    kept = put(state, target)
    print(f"{target}: converted." + (f" The old weights are {kept}." if kept else ""))


def converted(state: dict[str, torch.Tensor], network: DiffusionModelUNet) -> dict[str, torch.Tensor]:
    """The state dict that `network` computes the same with, in float32.

    They agree in convolutions, time embedding, attention, and in both ways to change the resolution. A network that takes a
    class is given the healthy one for good, as the reference does when it samples: its embedding is added to that of time. A
    state dict does not say into how many heads attention is split: the network's number is taken, in guided_diffusion's older
    order of heads, which is its default. Dropout has no weights.

    Raises:
        ValueError: the network's group norm has another epsilon; or the state dict is that of a classifier, of a network with
            ``use_scale_shift_norm``, or of other sizes.
    """
    if not any(name.startswith("output_blocks.") for name in state):
        raise ValueError(
            "holds no U-Net of guided_diffusion. A classifier's head is not that of MONAI's DiffusionModelEncoder, and "
            "can't be converted; train one with train_classifier.json."
        )
    state = {name: tensor.float() for name, tensor in state.items()}
    if "label_emb.weight" in state:
        state["time_embed.2.bias"] = state["time_embed.2.bias"] + state.pop("label_emb.weight")[HEALTHY]
    found: dict[str, torch.Tensor] = {}
    for theirs, ours in _layers(network):
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in state:
                found |= _of_monai(f"{ours}.{kind}", state.pop(f"{theirs}.{kind}"), network)
    wanted = network.state_dict()
    if any(n in wanted and len(w) == 2 * len(wanted[n]) for n, w in found.items() if "time_emb_proj" in n):
        raise ValueError("was trained with use_scale_shift_norm, which MONAI's DiffusionModelUNet does not have.")
    sizes = {n: (list(found[n].shape), list(w.shape)) for n, w in wanted.items() if n in found}
    wrong = [f"{n} is {theirs}, not {ours}" for n, (theirs, ours) in sizes.items() if theirs != ours]
    wrong += [f"{n} is missing" for n in wanted if n not in found]
    wrong += [f"{n} has no place" for n in (*found, *state) if n not in wanted]
    if wrong:
        raise ValueError(
            f"doesn't fit the network that the config declares ({len(wrong)} differences, the first: {wrong[0]})."
        )
    if any(m.eps != 1e-5 for m in network.modules() if isinstance(m, torch.nn.GroupNorm)):
        raise ValueError(
            "guided_diffusion's group norm has an epsilon of 1e-5; declare the network with norm_eps 1e-5."
        )
    return found


def _layers(network: DiffusionModelUNet) -> Iterator[tuple[str, str]]:
    """The names of all layers there, and in `network`."""
    yield from (
        ("time_embed.0", "time_embed.0"),
        ("time_embed.2", "time_embed.2"),
        ("input_blocks.0.0", "conv_in.conv"),
    )
    n = 1
    for i, block in enumerate(network.down_blocks):
        for j in range(len(block.resnets)):
            yield from _block(f"input_blocks.{n}", f"down_blocks.{i}", j, hasattr(block, "attentions"))
            n += 1
        if block.downsampler is not None:
            yield from _named(f"input_blocks.{n}.0", f"down_blocks.{i}.downsampler", RESIDUAL | DOWN)
            n += 1
    yield from _named("middle_block.0", "middle_block.resnet_1", RESIDUAL)
    yield from _named("middle_block.1", "middle_block.attention", ATTENTION)
    yield from _named("middle_block.2", "middle_block.resnet_2", RESIDUAL)
    n = 0
    for i, block in enumerate(network.up_blocks):
        attends = hasattr(block, "attentions")
        for j in range(len(block.resnets)):
            yield from _block(f"output_blocks.{n}", f"up_blocks.{i}", j, attends)
            n += 1
        if block.upsampler is not None:
            yield from _named(f"output_blocks.{n - 1}.{2 if attends else 1}", f"up_blocks.{i}.upsampler", RESIDUAL | UP)
    yield from (("out.0", "out.0"), ("out.2", "out.2.conv"))


def _block(theirs: str, ours: str, j: int, attends: bool) -> Iterator[tuple[str, str]]:
    yield from _named(f"{theirs}.0", f"{ours}.resnets.{j}", RESIDUAL)
    if attends:
        yield from _named(f"{theirs}.1", f"{ours}.attentions.{j}", ATTENTION)


def _named(theirs: str, ours: str, layers: dict[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((f"{theirs}.{a}", f"{ours}.{b}") for a, b in layers.items())


def _of_monai(name: str, tensor: torch.Tensor, network: DiffusionModelUNet) -> dict[str, torch.Tensor]:
    """A tensor under its name in MONAI; of attention, a convolution over all pixels there, the parts of a linear layer."""
    if ".attn." in name:
        tensor = tensor.flatten(1) if tensor.ndim == 3 else tensor
    if ".attn.qkv." not in name:
        return {name: tensor}
    heads = network.get_submodule(name.rpartition(".qkv.")[0]).num_heads
    # there each head has its query, key and value together
    parts = tensor.unflatten(0, (heads, 3, -1)).unbind(1)
    return {name.replace("qkv", f"to_{n}"): part.flatten(0, 1) for n, part in zip("qkv", parts, strict=True)}
