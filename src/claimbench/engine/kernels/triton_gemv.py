"""A matrix times one to four rows, in Triton: weights go from memory to registers once and are widened there.

Imported only where Triton is. A program has some rows of the matrix; its lanes lie along the columns, so that a thread
loads 16 bytes at a time. What comes before the product, a norm, and behind it, an activation, a gate, the residual
stream or rotary positions, is done in the same program. Where a matrix has few rows, its columns are split among
programs; the last one to finish adds up all of their sums, in the same order each time.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, unused-ignore"

from __future__ import annotations

import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]


@triton.jit
def wait_for_previous(pdl: tl.constexpr):
    """With programmatic launches the next kernel may begin now; what the one before wrote is there afterwards."""
    if pdl:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def activate(x, activation: tl.constexpr):
    if activation == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif activation == "gelu":
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif activation == "tanh_gelu":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif activation == "relu":
        x = tl.maximum(x, 0.0)
    elif activation == "squared_relu":
        x = tl.maximum(x, 0.0)
        x = x * x
    return x


@triton.jit
def widen_e4m3(codes, native: tl.constexpr):
    """uint8 -> float32. GPUs before 8.9 have no such type: its bits are those of a half that is 256 times as small."""
    if native:
        return codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    wide = codes.to(tl.uint16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def statistics(x, columns: tl.constexpr, eps, batch: tl.constexpr, whole: tl.constexpr, centred: tl.constexpr):
    """Mean and reciprocal deviation of each row of x [batch, columns], float32 [batch]."""
    row, column = tl.arange(0, batch)[:, None], tl.arange(0, whole)[None, :]
    inside = column < columns
    value = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.zeros([batch], tl.float32)
    if centred:
        mean = tl.sum(value, 1) / columns
        value = tl.where(inside, value - mean[:, None], 0.0)
    return mean, tl.rsqrt(tl.sum(value * value, 1) / columns + eps)


@triton.jit
def normalised(x, gain, shift, column, inside, mean, deviation, norm: tl.constexpr, shifted: tl.constexpr):
    """A tile of x as the norm hands it on; that of an RMS norm is divided by its deviation behind the product."""
    if norm == "rms":
        x = x * tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    elif norm == "layer":
        x = (x - mean) * deviation * tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
        if shifted:
            x += tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def group_sums(codes, scale, minimum, row, byte, group, inside, low, high, columns: tl.constexpr, bits: tl.constexpr):
    """Sums over the columns of each group of 16 bytes: [batch, rows, groups]."""
    sixteens: tl.constexpr = columns * bits // 128
    groups: tl.constexpr = columns // 32
    code = tl.load(codes + row[:, :, :, None] * (16 * sixteens) + byte, mask=inside[:, :, :, None], other=0)
    factor = tl.load(scale + row * groups + group, mask=inside, other=0.0).to(tl.float32)
    if bits == 8:
        return tl.sum(code.to(tl.float32) * low, 3) * factor
    summed = tl.sum((code & 15).to(tl.float32) * low + (code >> 4).to(tl.float32) * high, 3)
    least = tl.load(minimum + row * groups + group, mask=inside, other=0.0).to(tl.float32)
    return summed * factor + tl.sum(low + high, 3) * least


@triton.jit
def plain_products(codes, row, column, inside, x, columns: tl.constexpr, form: tl.constexpr, native: tl.constexpr):
    """[batch, rows, tile]"""
    code = tl.load(codes + row * columns + column, mask=inside, other=0)
    if form == "fp8":
        return widen_e4m3(code, native) * x
    return code.to(tl.float32) * x


@triton.jit
def dot_rows(
    x, codes, scale, minimum, gain, shift, first_row, second_row, mean, deviation, split,
    columns: tl.constexpr, per_split: tl.constexpr, batch: tl.constexpr, rows: tl.constexpr, tile: tl.constexpr,
    form: tl.constexpr, norm: tl.constexpr, shifted: tl.constexpr, paired: tl.constexpr, native: tl.constexpr,
):  # fmt: skip
    """Products of x [batch, columns] with two sets of rows, [batch, rows] each, and of x with itself, [batch]."""
    begin = split * per_split
    end = tl.minimum(begin + per_split, columns)
    if form == "int8" or form == "int4":
        bits: tl.constexpr = 8 if form == "int8" else 4
        per_byte: tl.constexpr = 8 // bits
        sixteens: tl.constexpr = tile // (16 * per_byte)  # groups of 16 bytes
        first = tl.zeros([batch, rows, sixteens], tl.float32)
        second = tl.zeros([batch, rows, sixteens], tl.float32)
        squares = tl.zeros([batch, 1, sixteens], tl.float32)
        lane = tl.arange(0, 16)[None, None, None, :]
        row_of_x = (tl.arange(0, batch) * columns)[:, None, None, None]
        mean4, deviation4 = mean[:, None, None, None], deviation[:, None, None, None]
        for offset in tl.range(0, per_split, tile):
            start = begin + offset
            sixteen = (start // (16 * per_byte) + tl.arange(0, sixteens))[None, None, :]
            inside = sixteen * (16 * per_byte) < end
            group = sixteen if bits == 4 else sixteen // 2
            inside4 = inside[:, :, :, None]
            column = sixteen[:, :, :, None] * (16 * per_byte) + lane
            raw = tl.load(x + row_of_x + column, mask=inside4, other=0.0).to(tl.float32)
            low = normalised(raw, gain, shift, column, inside4, mean4, deviation4, norm, shifted)
            squares += tl.sum(raw * raw, 3)
            high = low
            if bits == 4:
                raw = tl.load(x + row_of_x + column + 16, mask=inside4, other=0.0).to(tl.float32)
                high = normalised(raw, gain, shift, column + 16, inside4, mean4, deviation4, norm, shifted)
                squares += tl.sum(raw * raw, 3)
            byte = sixteen[:, :, :, None] * 16 + lane
            first += group_sums(codes, scale, minimum, first_row, byte, group, inside, low, high, columns, bits)
            if paired:
                second += group_sums(codes, scale, minimum, second_row, byte, group, inside, low, high, columns, bits)
        return tl.sum(first, 2), tl.sum(second, 2), tl.sum(tl.sum(squares, 2), 1)
    first = tl.zeros([batch, rows, tile], tl.float32)
    second = tl.zeros([batch, rows, tile], tl.float32)
    squares = tl.zeros([batch, 1, tile], tl.float32)
    row_of_x = (tl.arange(0, batch) * columns)[:, None, None]
    mean3, deviation3 = mean[:, None, None], deviation[:, None, None]
    for offset in tl.range(0, per_split, tile):
        start = begin + offset
        column = (start + tl.arange(0, tile))[None, None, :]
        inside = column < end
        raw = tl.load(x + row_of_x + column, mask=inside, other=0.0).to(tl.float32)
        value = normalised(raw, gain, shift, column, inside, mean3, deviation3, norm, shifted)
        squares += raw * raw
        first += plain_products(codes, first_row, column, inside, value, columns, form, native)
        if paired:
            second += plain_products(codes, second_row, column, inside, value, columns, form, native)
    return tl.sum(first, 2), tl.sum(second, 2), tl.sum(tl.sum(squares, 2), 1)


@triton.jit
def add_up(partial, batch_row, row, many, batch: tl.constexpr, splits: tl.constexpr):
    """The sums of all splits, always in their order; past the first cache, where others' writes are not seen."""
    total = tl.zeros([batch_row.shape[0], row.shape[1]], tl.float32)
    for split in tl.static_range(splits):
        total += tl.load(partial + (split * batch + batch_row) * many + row, cache_modifier=".cg")
    return total


@triton.jit
def place_in_cache(
    value, sequence, head, offset, inside, q_out, keys, values, past, of_batch, of_head,
    heads: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr,
):  # fmt: skip
    """Queries to `q_out` [batch, heads, head_dim], keys and values to their slot."""
    kind = value.to(q_out.dtype.element_ty)
    tl.store(q_out + (sequence * heads + head) * head_dim + offset, kind, mask=inside & (head < heads))
    slot = sequence * of_batch + past * head_dim + offset
    is_key = (head >= heads) & (head < heads + kv_heads)
    tl.store(keys + slot + (head - heads) * of_head, kind, mask=inside & is_key)
    tl.store(values + slot + (head - heads - kv_heads) * of_head, kind, mask=inside & (head >= heads + kv_heads))


@triton.jit
def turn_and_place(
    one, two, sequence, first, second, inside, cos, sin, padding, q_out, keys, values, past, of_batch, of_head,
    width: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr,
):  # fmt: skip
    """Queries and keys turned by the position, `one` with `two`, and all of them where they belong."""
    slot = tl.load(past)
    if width > 0:
        position = tl.maximum(slot - tl.load(padding + sequence), 0)
        turning = (first // head_dim < heads + kv_heads) & (first % head_dim < width // 2)
        angle = position * width + first % head_dim
        c = tl.load(cos + angle, mask=turning, other=1.0)
        s = tl.load(sin + angle, mask=turning, other=0.0)
        one, two = one * c - two * s, two * c + one * s
    place_in_cache(
        one, sequence, first // head_dim, first % head_dim, inside, q_out, keys, values, slot, of_batch, of_head,
        heads, kv_heads, head_dim,
    )  # fmt: skip
    place_in_cache(
        two, sequence, second // head_dim, second % head_dim, inside, q_out, keys, values, slot, of_batch, of_head,
        heads, kv_heads, head_dim,
    )  # fmt: skip


@triton.jit
def partners(number, head_dim: tl.constexpr, width: tl.constexpr):
    """The two columns of a head that turn into each other, or two that do not turn, of each of `number` pairs."""
    within = number % (head_dim // 2)
    begins = number // (head_dim // 2) * head_dim
    turns = within < width // 2
    first = begins + tl.where(turns, within, within + width // 2)
    return first, first + tl.where(turns, width // 2, (head_dim - width) // 2)


@triton.jit
def decode_gemv(
    x, codes, scale, minimum, bias, gain, shift, residual, out, partial, counter,
    cos, sin, keys, values, past, padding, of_batch, of_head, eps, cap,
    many: tl.constexpr, columns: tl.constexpr, per_split: tl.constexpr, splits: tl.constexpr, batch: tl.constexpr,
    rows: tl.constexpr, tile: tl.constexpr, whole: tl.constexpr, form: tl.constexpr, norm: tl.constexpr,
    shifted: tl.constexpr, biased: tl.constexpr, end: tl.constexpr, activation: tl.constexpr, width: tl.constexpr,
    heads: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr, native: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """out [batch, many] = what `end` names of norm(x) W^T + bias, with W [many, columns] of the format `form`.

    store   the product, activated; held by `cap`, if that is not 0
    add     the residual stream and the product
    gate    the activated first half of the rows times the second half: [batch, many / 2]
    heads   queries, keys and values, of which queries and keys turn: `width` of their columns, by the position
    """
    block, split = tl.program_id(0), tl.program_id(1)
    paired: tl.constexpr = end == "gate" or end == "heads"
    number = block * rows + tl.arange(0, rows)
    if paired:
        inside_row = number < many // 2
        number = tl.minimum(number, many // 2 - 1)
    else:
        inside_row = number < many
        number = tl.minimum(number, many - 1)
    first, second = number, number
    if end == "gate":
        second = number + many // 2
    if end == "heads":
        first, second = partners(number, head_dim, width)
    wait_for_previous(pdl)
    mean = tl.zeros([batch], tl.float32)
    deviation = tl.full([batch], 1.0, tl.float32)
    if norm == "layer" or (norm == "rms" and splits > 1):
        mean, deviation = statistics(x, columns, eps, batch, whole, norm == "layer")
    one, two, squares = dot_rows(
        x, codes, scale, minimum, gain, shift, first.to(tl.int64)[None, :, None], second.to(tl.int64)[None, :, None],
        mean, deviation, split, columns, per_split, batch, rows, tile, form, norm, shifted, paired, native,
    )  # fmt: skip
    sequence = tl.arange(0, batch)[:, None]
    first, second, inside = first[None, :], second[None, :], inside_row[None, :]
    if splits > 1:
        place = (split * batch + sequence) * many
        tl.store(partial + place + first, one, mask=inside)
        if paired:
            tl.store(partial + place + second, two, mask=inside)
        tl.debug_barrier()
        if tl.atomic_add(counter + block, 1, sem="acq_rel") != splits - 1:
            return
        tl.debug_barrier()
        one = add_up(partial, sequence, first, many, batch, splits)
        if paired:
            two = add_up(partial, sequence, second, many, batch, splits)
        tl.store(counter + block, 0)
    elif norm == "rms":
        deviation = tl.rsqrt(squares / columns + eps)
    if norm == "rms":
        one *= deviation[:, None]
        two *= deviation[:, None]
    if form == "fp8":
        one *= tl.load(scale + first)
        two *= tl.load(scale + second)
    if biased:
        one += tl.load(bias + first).to(tl.float32)
        two += tl.load(bias + second).to(tl.float32)
    if end == "heads":
        turn_and_place(
            one, two, sequence, first, second, inside, cos, sin, padding, out, keys, values, past, of_batch, of_head,
            width, heads, kv_heads, head_dim,
        )  # fmt: skip
    elif end == "gate":
        made = activate(one, activation) * two
        tl.store(out + sequence * (many // 2) + first, made.to(out.dtype.element_ty), mask=inside)
    else:
        made = activate(one, activation)
        if cap > 0:
            made = cap * tanh(made / cap)
        if end == "add":
            made += tl.load(residual + sequence * many + first).to(tl.float32)
        tl.store(out + sequence * many + first, made.to(out.dtype.element_ty), mask=inside)
