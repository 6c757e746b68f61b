"""The gradient of the guidance written out as plain operators, for formats that know no gradients, such as ONNX."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx.experimental.proxy_tensor import make_fx

Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""f(x, t) -> grad_x log p(target | x, t), of slices ``(N, C, H, W)`` and timesteps ``(N,)``."""


def written_gradient(classifier: torch.nn.Module, target_class: int, x: torch.Tensor, t: torch.Tensor) -> Gradient:
    """`ClassifierGuidance.gradient`, forward and backward pass as one graph of operators that have no gradient in them.

    The classifier may not choose by the values that it is given.

    Args:
        classifier: f(x, t) -> logits ``(N, classes)``; its weights are not copied.
        target_class: whose log p is taken.
        x: ``(1, C, H, W)``. The graph is that of one slice, and runs once for each slice that it is given.
        t: ``(1,)``.
    """

    def gradient(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(classifier(x, t).log_softmax(dim=1)[:, target_class].sum(), x)[0]

    operators = dict(torch.export.default_decompositions().items())
    operators[torch.ops.aten.convolution_backward.default] = _convolution_backward
    wanted = [weight.requires_grad for weight in classifier.parameters()]
    classifier.requires_grad_(False)  # or their gradients are written too
    graph = make_fx(gradient, decomposition_table=operators)(x, t)
    for weight, was in zip(classifier.parameters(), wanted, strict=True):
        weight.requires_grad_(was)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return lambda x, t: torch.cat([graph(x[n : n + 1], t[n : n + 1]) for n in range(x.shape[0])])


def _convolution_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[torch.Tensor | None, None, None]:
    """That of the input, which PyTorch doesn't write as other operators: the convolution transposed.

    Raises:
        NotImplementedError: it is transposed already, or a gradient of weights is wanted.
    """
    if transposed or wanted[1] or wanted[2]:
        raise NotImplementedError("only gradients of the input of plain convolutions are written out.")
    # what the stride left over at the end of the input
    over = [
        size + 2 * p - d * (kernel - 1) - 1 - (of_grad - 1) * s
        for size, of_grad, kernel, s, p, d in zip(
            x.shape[2:], grad.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    found = torch.ops.aten.convolution(grad, weight, None, stride, padding, dilation, True, over, groups)
    return found, None, None
