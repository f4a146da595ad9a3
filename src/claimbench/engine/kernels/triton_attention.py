"""Attention of one new token over a static cache, and the small kernels of a decode step, in Triton.

Imported only where Triton is. The keys of a head are split among programs, each of which keeps the largest score, the
sum of weights and the weighted values of its part (Flash-Decoding, Dao et al., 2023); a second pass joins the parts.
How many keys there are is read on the device, so that a captured graph serves every length and reads no empty slot.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, unused-ignore"

from __future__ import annotations

import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]

from claimbench.engine.kernels.triton_gemv import tanh, wait_for_previous


@triton.jit
def decode_attention(
    q, keys, values, past, padding, slopes, out, peaks, sums, scale, cap, of_batch, of_head,
    heads: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr, shared: tl.constexpr, wide: tl.constexpr,
    tile: tl.constexpr, splits: tl.constexpr, window: tl.constexpr, sloped: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """One part of the keys for all queries of a key-value head: `shared` rows, of which heads / kv_heads are used.

    `out` is [splits, batch, heads, head_dim], with its rows' `peaks` and `sums` [splits, batch, heads]; of one part it
    is the result, in its type.
    """
    queries: tl.constexpr = heads // kv_heads
    sequence, kv_head, split = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads, tl.program_id(1)
    query, column = tl.arange(0, shared), tl.arange(0, wide)
    head = kv_head * queries + query
    used, inside = query < queries, column < head_dim
    wait_for_previous(pdl)
    slot, begin = tl.load(past).to(tl.int32), tl.load(padding + sequence).to(tl.int32)
    empty = begin  # slots of padding, from which distances count
    length = slot + 1
    if window > 0:
        begin = tl.maximum(begin, length - window)
    part = tl.cdiv(tl.cdiv(length - begin, splits), tile) * tile
    first = begin + split * part
    last = tl.minimum(first + part, length)
    of_query = (sequence * heads + head)[:, None] * head_dim + column[None, :]
    row = tl.load(q + of_query, mask=used[:, None] & inside[None, :], other=0.0)
    peak = tl.full([shared], -float("inf"), tl.float32)
    total = tl.zeros([shared], tl.float32)
    mixed = tl.zeros([shared, wide], tl.float32)
    place = sequence * of_batch + kv_head * of_head
    slope = tl.zeros([shared], tl.float32)
    if sloped:
        slope = tl.load(slopes + head, mask=used, other=0.0)
    for start in tl.range(first, last, tile):
        key = start + tl.arange(0, tile)
        seen = key < last
        spot = place + key[:, None] * head_dim + column[None, :]
        mask = seen[:, None] & inside[None, :]
        k = tl.load(keys + spot, mask=mask, other=0.0)
        scores = tl.dot(row, tl.trans(k), input_precision="ieee") * scale
        if cap > 0:
            scores = cap * tanh(scores / cap)
        if sloped:
            scores += slope[:, None] * (key - empty).to(tl.float32)[None, :]
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        kept = tl.exp(peak - higher)
        v = tl.load(values + spot, mask=mask, other=0.0)
        mixed = mixed * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        peak = higher
    batch = tl.num_programs(0) // kv_heads
    mask = used[:, None] & inside[None, :]
    if splits == 1:
        tl.store(out + of_query, (mixed / total[:, None]).to(out.dtype.element_ty), mask=mask)
    else:
        number = split * batch * heads + sequence * heads + head
        tl.store(out + number[:, None] * head_dim + column[None, :], mixed, mask=mask)
        tl.store(peaks + number, peak, mask=used)
        tl.store(sums + number, total, mask=used)


@triton.jit
def decode_combine(
    parts, peaks, sums, out,
    head_dim: tl.constexpr, wide: tl.constexpr, splits: tl.constexpr, many: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """The parts of one head, joined; `many` is `splits` up to a power of two. A part without keys has a sum of 0."""
    number, total = tl.program_id(0), tl.num_programs(0)
    split, column = tl.arange(0, many), tl.arange(0, wide)
    wait_for_previous(pdl)
    there, inside = split < splits, column < head_dim
    peak = tl.load(peaks + split * total + number, mask=there, other=-float("inf"))
    weight = tl.exp(peak - tl.max(peak, 0))
    whole = tl.sum(weight * tl.load(sums + split * total + number, mask=there, other=0.0), 0)
    spot = (split * total + number)[:, None] * head_dim + column[None, :]
    part = tl.load(parts + spot, mask=there[:, None] & inside[None, :], other=0.0)
    mixed = tl.sum(part * weight[:, None], 0) / whole
    tl.store(out + number * head_dim + column, mixed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def normalise_tile(value, gain, shift, column, inside, columns, eps, centred: tl.constexpr, shifted: tl.constexpr):
    """One row, float32 [whole], with zeros outside of its columns."""
    if centred:
        value = tl.where(inside, value - tl.sum(value, 0) / columns, 0.0)
    value = value * tl.rsqrt(tl.sum(value * value, 0) / columns + eps)
    value = value * tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    if shifted:
        value += tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    return value


@triton.jit
def decode_embed(
    tokens, table, places, past, padding, gain, shift, out, factor, eps,
    columns: tl.constexpr, whole: tl.constexpr, placed: tl.constexpr, norm: tl.constexpr, shifted: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    """A token's row of the table, with that of its position, and the norm that some families have behind it."""
    sequence, column = tl.program_id(0), tl.arange(0, whole)
    inside = column < columns
    wait_for_previous(pdl)
    token = tl.load(tokens + sequence)
    value = tl.load(table + token * columns + column, mask=inside, other=0.0).to(tl.float32) * factor
    if placed:
        position = tl.maximum(tl.load(past) - tl.load(padding + sequence), 0)
        value += tl.load(places + position * columns + column, mask=inside, other=0.0).to(tl.float32)
    if norm != "none":
        value = normalise_tile(value, gain, shift, column, inside, columns, eps, norm == "layer", shifted)
    tl.store(out + sequence * columns + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def decode_norm_add(
    given, residual, gain, shift, out, eps,
    columns: tl.constexpr, whole: tl.constexpr, norm: tl.constexpr, shifted: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """The residual stream and the norm of what a half of a layer gives."""
    column = tl.arange(0, whole)
    inside, spot = column < columns, tl.program_id(0) * columns + column
    wait_for_previous(pdl)
    value = tl.load(given + spot, mask=inside, other=0.0).to(tl.float32)
    value = normalise_tile(value, gain, shift, column, inside, columns, eps, norm == "layer", shifted)
    value += tl.load(residual + spot, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + spot, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def decode_heads(
    mixed, q_gain, q_shift, k_gain, k_shift, cos, sin, q_out, keys, values, past, padding, of_batch, of_head, eps,
    heads: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr, wide: tl.constexpr, section: tl.constexpr,
    together: tl.constexpr, own: tl.constexpr, width: tl.constexpr, centred: tl.constexpr, shifted: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    """Norms of queries and keys, their turn, and their place: a program for each head of `mixed`, [batch, all heads].

    `together`: a norm is over all heads, of which `section` columns hold the most; `own`: each head has its weights.
    """
    every: tl.constexpr = heads + 2 * kv_heads
    sequence, head = tl.program_id(0) // every, tl.program_id(0) % every
    column, half = tl.arange(0, wide), width // 2
    inside = column < head_dim
    wait_for_previous(pdl)
    slot = tl.load(past)
    start = mixed + (sequence * every + head) * head_dim
    first_of_kind = tl.where(head < heads, 0, heads)
    value = tl.load(start + column, mask=inside, other=0.0).to(tl.float32)
    # the column that each turns into
    other = tl.where(column < half, column + half, tl.where(column < width, column - half, column))
    partner = tl.load(start + other, mask=inside, other=0.0).to(tl.float32)
    if head < heads + kv_heads:
        if together:
            many = tl.where(head < heads, heads, kv_heads) * head_dim
            spot = tl.arange(0, section)
            base = mixed + (sequence * every + first_of_kind) * head_dim
            whole = tl.load(base + spot, mask=spot < many, other=0.0).to(tl.float32)
            whole_inside = spot < many
        else:
            many = head_dim + 0 * head
            whole, whole_inside = value, inside
        mean = 0.0
        if centred:
            mean = tl.sum(whole, 0) / many
            whole = tl.where(whole_inside, whole - mean, 0.0)
        deviation = tl.rsqrt(tl.sum(whole * whole, 0) / many + eps)
        row = 0
        if together or own:
            row = (head - first_of_kind) * head_dim
        gain, shift = q_gain, q_shift
        if head >= heads:
            gain, shift = k_gain, k_shift
        factor = tl.load(gain + row + column, mask=inside, other=0.0).to(tl.float32)
        value = (value - mean) * deviation * factor
        factor = tl.load(gain + row + other, mask=inside, other=0.0).to(tl.float32)
        partner = (partner - mean) * deviation * factor
        if shifted:
            value += tl.load(shift + row + column, mask=inside, other=0.0).to(tl.float32)
            partner += tl.load(shift + row + other, mask=inside, other=0.0).to(tl.float32)
        if width > 0:
            position = tl.maximum(slot - tl.load(padding + sequence), 0)
            turning = column < width
            c = tl.load(cos + position * width + column, mask=turning, other=1.0)
            s = tl.load(sin + position * width + column, mask=turning, other=0.0)
            value = value * c + tl.where(column < half, -partner, partner) * s
    kind = value.to(q_out.dtype.element_ty)
    spot = sequence * of_batch + slot * head_dim + column
    if head < heads:
        tl.store(q_out + (sequence * heads + head) * head_dim + column, kind, mask=inside)
    elif head < heads + kv_heads:
        tl.store(keys + spot + (head - heads) * of_head, kind, mask=inside)
    else:
        tl.store(values + spot + (head - heads - kv_heads) * of_head, kind, mask=inside)
