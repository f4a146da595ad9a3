"""Several small operations as one: softmax, norm, GELU and the linear layer of flash_santacoder.

What PyTorch has a kernel for is called; the rest is compiled, by TorchScript or by torch.compile, from the functions
here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from claimbench.engine.model.parts import Linear, Norm, PlainGelu, PlainLinear, PlainNorm, Softmax
from claimbench.engine.model.shards import Affine
from claimbench.engine.model.spec import Spec
from claimbench.errors import Unavailable

Fusion = Literal["jit", "compile"]
TensorFunction = Callable[..., Tensor]


@functools.cache
def scripted(function: TensorFunction) -> TensorFunction:
    """`function` in TorchScript, which fuses on CUDA what it can after its first calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fused: TensorFunction = torch.jit.script(function)
        return fused


@functools.cache
def compiled(function: TensorFunction) -> TensorFunction:
    """`function` compiled once for all lengths; a dimension of one is code of its own."""
    return torch.compile(function, dynamic=True, fullgraph=True)


FUSED: dict[str, Callable[[TensorFunction], TensorFunction]] = {"jit": scripted, "compile": compiled}


# Softmax: scores [batch, heads, new, keys] in, probabilities of their type out; the order of the plain way is kept.


def wide_softmax(scores: Tensor, scale: float) -> Tensor:
    return torch.softmax(scores * scale, -1, dtype=torch.float32).to(scores.dtype)


def wide_masked_softmax(scores: Tensor, bias: Tensor, scale: float) -> Tensor:
    return torch.softmax(scores * scale + bias, -1, dtype=torch.float32).to(scores.dtype)


def narrow_softmax(scores: Tensor, scale: float) -> Tensor:
    return torch.softmax(scores * scale, -1)


def narrow_masked_softmax(scores: Tensor, bias: Tensor, scale: float) -> Tensor:
    return torch.softmax(scores * scale + bias, -1)


def fused_softmax(how: Fusion, wide: bool) -> Softmax:
    """Scale, mask and softmax in one: in float32, or in the scores' own type."""
    fuse = FUSED[how]
    bare = fuse(wide_softmax if wide else narrow_softmax)
    masked = fuse(wide_masked_softmax if wide else narrow_masked_softmax)

    def softmax(scores: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        return bare(scores, scale) if bias is None else masked(scores, bias, scale)

    return softmax


# Norms: [..., hidden] in and out, each made for its weights.


class NativeNorm(PlainNorm):
    """PyTorch's own kernel: one read and one write."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim > 1:  # weights of each head's own: the kernels know one for all
            shape = self.weight.shape[-1:]
            bare = torch.layer_norm(x, shape, eps=self.eps) if self.centred else torch.rms_norm(x, shape, eps=self.eps)
            return bare * self.weight
        if self.centred:
            return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return torch.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    wide = x.float()
    wide = wide - wide.mean(-1, keepdim=True)
    scaled = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
    return scaled if bias is None else scaled + bias


class CompiledNorm(PlainNorm):
    """The plain operations, compiled into one."""

    def __init__(self, affine: Affine, spec: Spec) -> None:
        super().__init__(affine, spec)
        self.fused = compiled(layer_norm if self.centred else rms_norm)

    def forward(self, x: Tensor) -> Tensor:
        if self.centred:
            return self.fused(x, self.weight, self.bias, self.eps)
        return self.fused(x, self.weight, self.eps)


NORMS: dict[str, Callable[[Affine, Spec], Norm]] = {"native": NativeNorm, "compile": CompiledNorm}


# GELU: what a matrix gave in, [..., intermediate], and out.


def native_tanh_gelu(y: Tensor) -> Tensor:
    return functional.gelu(y, approximate="tanh")


def native_erf_gelu(y: Tensor) -> Tensor:
    return functional.gelu(y)


def tanh_gelu(y: Tensor) -> Tensor:
    return 0.5 * y * (1.0 + torch.tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)))


def erf_gelu(y: Tensor) -> Tensor:
    return 0.5 * y * (1.0 + torch.erf(y * 0.7071067811865476))


class FusedGelu(PlainGelu):
    """GELU in one operation, after the matrix."""

    def __init__(self, dense: Linear, spec: Spec, how: str) -> None:
        super().__init__(dense, spec)
        self.gelu: TensorFunction
        if how == "native":
            self.gelu = native_tanh_gelu if self.by_tanh else native_erf_gelu
        else:
            self.gelu = FUSED[how](tanh_gelu if self.by_tanh else erf_gelu)

    def forward(self, x: Tensor) -> Tensor:
        return self.gelu(self.dense(x))


class DenseGelu(nn.Module):
    """Matrix, bias and GELU in one operation: cuBLASLt applies the activation before the product is written."""

    def __init__(self, dense: Linear, spec: Spec) -> None:
        """
        Raises:
            Unavailable: it is not a product that cuBLASLt can end with this activation.
        """
        super().__init__()
        if spec.activation != "tanh_gelu":
            raise Unavailable("cuBLASLt ends a product with the tanh form of GELU, and this model has the exact one")
        if not isinstance(dense, PlainLinear | FastLinear) or dense.bias is None:
            raise Unavailable("cuBLASLt ends products of plain matrices with a bias, and this model has others")
        self.bias = dense.bias
        turned = dense.weight if isinstance(dense, FastLinear) else dense.weight.t()
        self.weight = nn.Parameter(turned, requires_grad=False)  # [in, out]

    def forward(self, x: Tensor) -> Tensor:
        inputs, outputs = self.weight.shape
        activated = torch._addmm_activation(self.bias, x.reshape(-1, inputs), self.weight, use_gelu=True)
        return activated.view(*x.shape[:-1], outputs)


class FastLinear(nn.Module):
    """A matrix that is held as [in, out], so that a product transposes nothing, and adds its bias as it goes."""

    def __init__(self, affine: Affine, copied: bool = False) -> None:
        super().__init__()
        turned = affine.weight.t()
        self.weight = nn.Parameter(turned.contiguous() if copied else turned, requires_grad=False)  # [in, out]
        self.bias = None if affine.bias is None else nn.Parameter(affine.bias, requires_grad=False)
        self.inputs, self.outputs = self.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return torch.matmul(x, self.weight)
        batch, new, _ = x.shape
        return torch.addmm(self.bias, x.reshape(-1, self.inputs), self.weight).view(batch, new, self.outputs)
