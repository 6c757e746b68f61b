"""The whole method as one network, for tools that give a network an image alone, as TorchScript and as ONNX."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .classifiers import CleanAndNoised
from .guidance import ClassifierGuidance
from .inferer import CounterfactualInferer
from .sampler import ddim_step
from .written_gradient import written_gradient


class CounterfactualNetwork(torch.nn.Module):
    """Slices to their healthy counterparts, as `CounterfactualInferer` finds them, in float32 and as if all were foreground.

    `torch.jit.script` takes it whole, the gradient of the guidance too. `torch.export`, which writes ONNX, knows no gradients
    and is given that one as operators, see `written_gradient`. TorchScript takes no function as an argument, so what `sampler`
    and `guidance` do with noise models is written out here once more.

    Its state is the diffusion network's, so that a file of that network's weights fits.

    Args:
        network: the diffusion network, f(x, t) -> eps ``(N, C, H, W)``, or ``(N, 2C, H, W)`` if it learned the variance too.
        guidance: its classifier, which brings its own weights, and how strong it is.
        inferer: whose timesteps, iterations, exponent and levels of p(diseased) are taken.
        channels: C of all slices, for TorchScript.
        spatial_size: ``(H, W)`` likewise.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        guidance: ClassifierGuidance,
        inferer: CounterfactualInferer,
        channels: int,
        spatial_size: Sequence[int],
    ) -> None:
        super().__init__()
        self.shape = (channels, *spatial_size)
        self.network, self.classifier = network, guidance.classifier
        if isinstance(guidance.classifier, CleanAndNoised):
            self.classifier = guidance.classifier.noised  # no slice is guided at t = 0
        self.alphas_cumprod: torch.Tensor
        self.register_buffer("alphas_cumprod", guidance.alphas_cumprod, persistent=False)
        self.guidance_scale, self.target_class = float(guidance.guidance_scale), guidance.target_class
        self.guidance_exponent, self.decider = float(inferer.guidance_exponent), inferer.classifier
        self.levels, self.signal, noise = (list(values) for values in zip(*inferer.levels(self.shape), strict=True))
        self.noise_of_levels: torch.Tensor
        self.register_buffer("noise_of_levels", torch.stack(noise), persistent=False)
        self.timesteps, self.num_fixed_point_iterations = inferer.timesteps, inferer.num_fixed_point_iterations

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` in [-1, 1] to the same; under `torch.no_grad` too."""
        last = len(self.timesteps) - 1
        strength = self.strength(x)
        eps = self.noise(x, self.timesteps[0])
        for k in range(last):
            t, t_next = self.timesteps[k], self.timesteps[k + 1]
            if self.num_fixed_point_iterations == 0 and k > 0:
                eps = self.noise(x, t)
            x_next = ddim_step(x, eps, self.alphas_cumprod[t], self.alphas_cumprod[t_next])
            for _ in range(self.num_fixed_point_iterations):
                eps = self.noise(x_next, t_next)
                x_next = ddim_step(x, eps, self.alphas_cumprod[t], self.alphas_cumprod[t_next])
            x = x_next
        for k in range(last, 0, -1):
            t, t_next = self.timesteps[k], self.timesteps[k - 1]
            sigma = (1 - self.alphas_cumprod[t]).sqrt()
            eps = self.noise(x, t) - self.guidance_scale * (sigma * strength) * self.gradient(x, t)
            x = ddim_step(x, eps, self.alphas_cumprod[t], self.alphas_cumprod[t_next])
        return x.clamp(-1, 1)

    def strength(self, x: torch.Tensor) -> torch.Tensor:
        """See `CounterfactualInferer`'s ``guidance_exponent``; ``(N, 1, 1, 1)``."""
        if self.guidance_exponent == 0:
            return torch.ones(x.shape[0], 1, 1, 1, device=x.device)
        logits: list[torch.Tensor] = []
        for k in range(len(self.levels)):
            t = torch.full([x.shape[0]], self.levels[k], dtype=torch.long, device=x.device)
            logits.append(self.decider(self.signal[k] * x + self.noise_of_levels[k].to(x.device), t))
        p = 1 - torch.stack(logits).mean(dim=0).softmax(dim=1)[:, self.target_class]
        return (p**self.guidance_exponent).view(-1, 1, 1, 1)

    def noise(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """By the diffusion network, without the variance."""
        eps: torch.Tensor = self.network(x, torch.full([x.shape[0]], t, dtype=torch.long, device=x.device))
        return eps[:, : x.shape[1]]

    def gradient(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """See `ClassifierGuidance.gradient`."""
        if not torch.jit.is_scripting():  # of what TorchScript doesn't know
            if torch.compiler.is_exporting():
                every = torch.full([x.shape[0]], t, dtype=torch.long, device=x.device)
                return written_gradient(self.classifier, self.target_class, x, every)
        enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(True)  # TorchScript knows it as no context
        x = x.detach().clone().requires_grad_(True)
        logits: torch.Tensor = self.classifier(x, torch.full([x.shape[0]], t, dtype=torch.long, device=x.device))
        log_p = logits.log_softmax(dim=1)[:, self.target_class]
        found = torch.autograd.grad([log_p.sum()], [x])[0]
        torch.set_grad_enabled(enabled)
        assert found is not None  # for TorchScript, to which it may be
        return found

    def __prepare_scriptable__(self) -> CounterfactualNetwork:
        """What `torch.jit.script` compiles: MONAI's networks can't be, but traced."""
        # two slices, as of one the tracer may take the number for a constant
        t = torch.tensor([1, 2], device=self.alphas_cumprod.device)
        example = (torch.zeros(2, *self.shape, device=t.device), t)
        prepared = copy.copy(self)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sizes become constants, as they are meant to
            prepared._modules = {
                name: torch.jit.trace(module, example, check_trace=False)
                for name, module in self._modules.items()
                if module is not None
            }
        return prepared

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Of the diffusion network."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Into the diffusion network."""
        return self.network.load_state_dict(state_dict, *args, **kwargs)
