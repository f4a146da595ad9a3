"""PyTorch's flash kernels, called by name: there is no other kernel that the call could fall back to.

`functional.scaled_dot_product_attention` chooses among kernels, and `sdpa_kernel` narrows its choice at every call,
which takes longer than a small kernel does. On CUDA the kernel is FlashAttention-2's; it hides the future by itself
and takes no mask. The CPU's takes one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from claimbench.engine.evidence import Pass
from claimbench.engine.model.parts import Attend, PassContext, Softmax
from claimbench.errors import Unavailable


def kernels_in(seen: Pass) -> int:
    """Times that a flash kernel ran; in a captured graph only the device's own record tells."""
    on_device = sum(count for name, count in seen.operators.items() if "flash_fwd" in name)
    return on_device or sum(
        seen.operators.get(f"aten::_{operator}", 0)
        for operator in ("flash_attention_forward", "scaled_dot_product_flash_attention_for_cpu")
    )


def check_device(device: torch.device) -> None:
    """
    Raises:
        Unavailable: this GPU, or this build of PyTorch, has no flash kernel.
    """
    if device.type != "cuda":
        return
    if not torch.backends.cuda.is_flash_attention_available():
        raise Unavailable("this build of PyTorch has no FlashAttention kernel for CUDA: install an official one")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise Unavailable(f"FlashAttention-2 needs compute capability 8.0 or more, and this GPU has {major}.{minor}")


def attention_on(device: torch.device) -> Attend:
    return attend_on_cuda if device.type == "cuda" else attend_on_cpu


def attend_on_cpu(q: Tensor, k: Tensor, v: Tensor, context: PassContext, scale: float, softmax: Softmax) -> Tensor:
    """Queries that share a key-value head read it once; without a bias, the pass is a whole prompt or one token."""
    if context.bias is None:
        k, v = _seen(k, context), _seen(v, context)
    if q.shape[2] == 1:
        return _one_token(q, k, v, context.bias, scale)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    mixed: Tensor = flash(q, k, v, 0.0, context.bias is None, attn_mask=context.bias, scale=scale)[0]
    return mixed


def _one_token(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The heads that share a key-value head as if they were several queries of one head: its keys are read once."""
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    shared = heads // kv_heads
    if bias is not None and bias.shape[1] > 1:
        bias = bias.reshape(bias.shape[0], kv_heads, shared, bias.shape[3])
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    mixed: Tensor = flash(q.reshape(batch, kv_heads, shared, head_dim), k, v, 0.0, False, attn_mask=bias, scale=scale)[
        0
    ]
    return mixed.reshape(batch, heads, 1, head_dim)


def attend_on_cuda(q: Tensor, k: Tensor, v: Tensor, context: PassContext, scale: float, softmax: Softmax) -> Tensor:
    """The kernel aligns the last query with the last key, so that several new tokens may follow a past."""
    if context.bias is not None:
        raise Unavailable("FlashAttention takes no mask on CUDA, and this pass has one: padding, or a window")
    causal = q.shape[2] > 1
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default
    mixed: Tensor = flash(q, _seen(k, context), _seen(v, context), 0.0, causal, False, scale=scale)[0]
    return mixed


def attend_packed_on_cuda(
    q: Tensor, k: Tensor, v: Tensor, context: PassContext, scale: float, softmax: Softmax
) -> Tensor:
    """All requests of a packed row, [1, heads, tokens, head_dim], in one launch."""
    assert context.packed is not None
    if any(own.bias is not None for own in context.packed.contexts):
        raise Unavailable("FlashAttention takes no mask on CUDA, and this model has a window")
    starts, longest = context.packed.starts, context.packed.longest
    tokens_first = (each[0].transpose(0, 1) for each in (q, k, v))  # [tokens, heads, head_dim]
    flash = torch.ops.aten._flash_attention_forward.default
    mixed: Tensor = flash(*tokens_first, starts, starts, longest, longest, 0.0, True, False, scale=scale)[0]
    return mixed.transpose(0, 1)[None]


def _seen(keys: Tensor, context: PassContext) -> Tensor:
    """Without the excess that a multiple of keys adds behind the last token: the kernel's tiles need no padding."""
    return keys[:, :, : context.past + context.new]
