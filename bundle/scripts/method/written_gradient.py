"""The gradient of the guidance written out as plain operators, for formats that know no gradients, such as ONNX."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx


def written_gradient(classifier: torch.nn.Module, target_class: int, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """`ClassifierGuidance.gradient`, forward and backward pass as operators that have no gradient in them.

    It is meant for `torch.export`, which would lose what autograd computes. The classifier may not choose by the values
    that it is given.

    Args:
        classifier: f(x, t) -> logits ``(N, classes)``.
        target_class: whose log p is taken.
        x: ``(N, C, H, W)``.
        t: ``(N,)``.

    Returns:
        grad_x log p(target | x, t), ``(N, C, H, W)``.

    Raises:
        NotImplementedError: the classifier has a layer whose gradient has no such form.
    """

    def gradient(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(classifier(x, t).log_softmax(dim=1)[:, target_class].sum(), x)[0]

    operators = dict(torch.export.default_decompositions().items())
    operators[torch.ops.aten.convolution_backward.default] = _convolution_backward
    weights = list(classifier.parameters())
    wanted = [weight.requires_grad for weight in weights]
    try:
        classifier.requires_grad_(False)  # or their gradients are written too
        with disable_proxy_modes_tracing():  # the exporter's
            graph = make_fx(gradient, decomposition_table=operators)(x, t)
    finally:
        for weight, was in zip(weights, wanted, strict=True):
            weight.requires_grad_(was)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    found: torch.Tensor = graph(x, t)
    return found


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
