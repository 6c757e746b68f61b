"""Checkpoints of guided_diffusion in MONAI's U-Net: the same outputs, by a small network with those names written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.networks.nets import DiffusionModelUNet
from torch import nn

from scripts.bundle import bundle_root
from scripts.learning.guided_diffusion import convert, converted
from scripts.weights import load_weights

CHANNELS, TIME = (8, 8, 16), 32
ATTENDS = (False, True, False)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(4, channels)  # an epsilon of 1e-5


class Residual(nn.Module):
    """x + f(x, embedding of time), at half or twice the resolution with `resize` 0.5 or 2."""

    def __init__(self, before: int, after: int, resize: float = 1) -> None:
        super().__init__()
        self.resize = resize
        self.in_layers = nn.Sequential(norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(TIME, after))
        self.out_layers = nn.Sequential(norm(after), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(after, after, 3, padding=1))
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def resized(self, x: torch.Tensor) -> torch.Tensor:
        return (
            F.avg_pool2d(x, 2)
            if self.resize < 1
            else F.interpolate(x, scale_factor=self.resize)
            if self.resize > 1
            else x
        )

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.in_layers[2](self.resized(self.in_layers[1](self.in_layers[0](x))))
        return self.skip_connection(self.resized(x)) + self.out_layers(h + self.emb_layers(time)[..., None, None])


class Attention(nn.Module):
    """Softmax attention among all pixels; each head has its own query, key and value side by side."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.proj_out = (
            norm(channels),
            nn.Conv1d(channels, 3 * channels, 1),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        parts = []
        for head in self.qkv(self.norm(x).flatten(2)).chunk(self.heads, dim=1):
            query, key, value = head.chunk(3, dim=1)
            weight = (query.transpose(1, 2) @ key / query.shape[1] ** 0.5).softmax(dim=2)
            parts.append(value @ weight.transpose(1, 2))
        return x + self.proj_out(torch.cat(parts, 1)).view_as(x)


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class First(nn.Conv2d):
    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class GuidedUNet(nn.Module):
    """A U-Net of three levels with two residual blocks each, its parts named and ordered as guided_diffusion's."""

    def __init__(self, heads: int = 1, updown: bool = False, classes: int = 0) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(CHANNELS[0], TIME), nn.SiLU(), nn.Linear(TIME, TIME))
        if classes:
            self.label_emb = nn.Embedding(classes, TIME)
        blocks: list[list[nn.Module]] = [[First(2, CHANNELS[0], 3, padding=1)]]
        width, skips = CHANNELS[0], [CHANNELS[0]]
        for level, after in enumerate(CHANNELS):
            for _ in range(2):
                blocks.append([Residual(width, after), *([Attention(after, heads)] if ATTENDS[level] else [])])
                width = after
                skips.append(width)
            if level < 2:
                blocks.append([Residual(width, width, 0.5) if updown else Down(width)])
                skips.append(width)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        self.middle_block = nn.ModuleList([Residual(width, width), Attention(width, heads), Residual(width, width)])
        blocks = []
        for level, after in reversed(list(enumerate(CHANNELS))):
            for n in range(3):
                blocks.append(
                    [Residual(width + skips.pop(), after), *([Attention(after, heads)] if ATTENDS[level] else [])]
                )
                width = after
                if level and n == 2:
                    blocks[-1].append(Residual(width, width, 2) if updown else Up(width))
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: int = 0) -> torch.Tensor:
        angle = t[:, None] * 10000 ** (-torch.arange(CHANNELS[0] // 2) / (CHANNELS[0] // 2))
        time = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1))
        if hasattr(self, "label_emb"):
            time = time + self.label_emb.weight[label]
        skips = []
        for block in self.input_blocks:
            for part in block:
                x = part(x, time)
            skips.append(x)
        for part in self.middle_block:
            x = part(x, time)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], 1)
            for part in block:
                x = part(x, time)
        return self.out(x)


def of_monai(**options: Any) -> DiffusionModelUNet:
    shape = {"channels": CHANNELS, "attention_levels": ATTENDS, "num_res_blocks": 2, "num_head_channels": [8, 8, 16]}
    fixed = {"spatial_dims": 2, "in_channels": 2, "out_channels": 4, "norm_num_groups": 4, "norm_eps": 1e-5}
    return DiffusionModelUNet(**{**fixed, **shape, **options}).eval()


def pair(**options: Any) -> GuidedUNet:
    torch.manual_seed(0)
    network = GuidedUNet(**options).eval()
    for parameter in network.parameters():  # norms too are to have weights of their own
        nn.init.normal_(parameter, 0.1, 0.3)
    return network


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"heads": 2}, {"num_head_channels": [4, 4, 8]}),
        ({"updown": True}, {"resblock_updown": True}),
        ({"classes": 2}, {}),
    ],
    ids=["plain", "two heads", "resblock_updown", "class-conditional"],
)
def test_the_outputs_are_equal(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Of a network with classes, those of the healthy one."""
    network, monai = pair(**theirs), of_monai(**ours)
    monai.load_state_dict(converted(network.state_dict(), monai))
    x, t = torch.randn(3, 2, 16, 16), torch.tensor([0, 17, 999])
    with torch.no_grad():
        expected, found = network(x, t), monai(x, t)
        assert expected.std() > 0.1 and expected.shape == (3, 4, 16, 16)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        if "classes" in theirs:
            assert not torch.allclose(network(x, t, 1), expected, atol=1e-2)


def test_rows_and_columns_keep_their_places() -> None:
    """The images of the overlay are stored as the reference's, so that kernels need no turning."""
    network, monai = pair(), of_monai()
    monai.load_state_dict(converted(network.state_dict(), monai))
    x, t = torch.randn(1, 2, 16, 32), torch.tensor([500])
    with torch.no_grad():
        torch.testing.assert_close(monai(x, t), network(x, t), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(monai(x.mT, t).mT, network(x, t), atol=1e-2)


def scale_shift(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: torch.cat([w, w]) if "emb_layers" in n else w for n, w in state.items()}


def classifier(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: w for n, w in state.items() if not n.startswith("output_blocks")}


@pytest.mark.parametrize(
    ("network", "options", "change", "message"),
    [
        ({}, {}, classifier, "A classifier's head is not that of MONAI's"),
        ({}, {}, scale_shift, "use_scale_shift_norm, which MONAI's"),
        ({}, {"norm_eps": 1e-6}, dict, "an epsilon of 1e-5; declare the network with norm_eps 1e-5"),
        ({"updown": True}, {}, dict, "op.conv.weight is missing"),
        (
            {},
            {"out_channels": 2},
            dict,
            r"2 differences, the first: out.2.conv.weight is \[4, 8, 3, 3\], not \[2, 8, 3, 3\]",
        ),
        (
            {},
            {},
            lambda s: s | {"low_res.weight": s["out.0.bias"]},
            "1 differences, the first: low_res.weight has no place",
        ),
    ],
)
def test_what_does_not_agree_is_refused(network: Any, options: Any, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converted(change(pair(**network).state_dict()), of_monai(**options))


def test_a_checkpoint_is_brought_into_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the run `convert` of paper.json, twice: the weights before are kept."""
    network = pair()
    torch.save(network.state_dict(), tmp_path / "ema.pt")
    definition = {
        "num_channels": 2,
        "network_def#out_channels": 4,
        "network_def#channels": list(CHANNELS),
        "network_def#attention_levels": list(ATTENDS),
        "network_def#norm_num_groups": 4,
        "network_def#num_head_channels": [8, 8, 16],
    }
    for _ in range(2):
        config = ConfigParser()
        config.read_config([str(Path(bundle_root()) / "configs" / f"{name}.json") for name in ("inference", "paper")])
        config.update({**definition, "bundle_root": str(tmp_path), "checkpoint_to_convert": str(tmp_path / "ema.pt")})
        config.get_parsed_content("convert")
    models = tmp_path / "models" / "paper"
    assert (
        len(list(models.glob("*.pt"))) == 2 and f"{models / 'model.pt'}: converted. The old" in capsys.readouterr().out
    )
    monai = load_weights(of_monai(), str(models / "model.pt"))
    x, t = torch.randn(1, 2, 16, 16), torch.tensor([3])
    torch.testing.assert_close(monai(x, t), network(x, t).detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(SystemExit, match="--checkpoint_to_convert"):
        convert(None, str(models / "model.pt"), of_monai())
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match="text.pt: is not a PyTorch state dict"):
        convert(str(tmp_path / "text.pt"), str(models / "model.pt"), of_monai())
