"""A model spread over the devices of one node: what each must hold, and how long a pass must take. Pure arithmetic.

Three ways to spread it, and what limits each:

    pipeline          whole layers, dealt out in order. One device works while the others wait, so a step reads all
                      weights at the bandwidth of one device. Keys and values lie with their layers.
    tensor_parallel   every matrix, head and key-value head cut into equal parts. A step reads its bytes at the
                      bandwidth of all devices, and each layer waits for two all-reduces of the residual stream.
    zero              every weight cut into equal parts and gathered before its use (ZeRO's third stage), so each device
                      receives nearly all weights that a pass uses. Rows are computed whole: each device has all of
                      the cache.

Everything is a lower bound. Bytes leave out the libraries, the allocator's fragments and buffers that a system reserves
ahead; times leave out launches, latencies and waiting. So a batch that does not fit here cannot fit, and one that fits
here may not; a time that is below its floor was counted otherwise or is wrong. A model whose layers are not known to be
alike is bounded by an equal part of it, however it is dealt out or cut.
"""

from __future__ import annotations

from typing import NamedTuple

from claimbench.cost_model import cost
from claimbench.cost_model.cost import Architecture
from claimbench.cost_model.decoder import Decoder
from claimbench.cost_model.hardware import Hardware
from claimbench.cost_model.weight_bytes import Precision, held_weight_bytes, read_weight_bytes, stored_precision
from claimbench.schema.card import Card
from claimbench.schema.frozen import Frozen
from claimbench.schema.load import InferenceLoad


def model_of(load: InferenceLoad) -> Decoder:
    """Its model, cut to the layers that it keeps.

    Raises:
        ValueError: the load names none.
    """
    if load.architecture is not None:
        return cost.architecture(load.architecture).kept(load.layers)
    if load.card is None:
        raise ValueError("a load without a model")
    return load.card if load.card.shape is None else Architecture(**load.card.shape)  # type: ignore[arg-type]


def share_of(model: Decoder, devices: int) -> Decoder:
    """What the fullest of `devices` tensor-parallel devices has of `model` at least.

    Raises:
        ValueError: it cannot be cut into so many equal parts.
    """
    if isinstance(model, Architecture):
        return cost.device_share(model, devices)
    assert isinstance(model, Card)
    return model if devices == 1 else _equal_part(model, devices)


def _equal_part(card: Card, devices: int) -> Card:
    """A part of all that could be cut. How a system cuts such a model is not known, and what it does not cut is more:
    norms, a latent cache, key-value heads that devices outnumber.
    """
    names = ("weights", "looked_up", "towers", "in_layers", "matrices", "largest", "widest", "vocabulary")
    of_kept = ("token_values", "fixed_values", "query_values")
    kept = tuple(each.model_copy(update=_parts(each, of_kept, devices)) for each in card.kept or ())
    mixture = card.experts
    experts = mixture.model_copy(update=_parts(mixture, ("weights", "biases"), devices)) if mixture else None
    return card.model_copy(update={**_parts(card, names, devices), "kept": kept or card.kept, "experts": experts})


def _parts(whole: Frozen, names: tuple[str, ...], devices: int) -> dict[str, int]:
    return {name: getattr(whole, name) // devices for name in names}


def precision_of(load: InferenceLoad) -> Precision:
    if load.layer_bits is None:
        return stored_precision(model_of(load), load.value_bytes)
    return Precision(value_bytes=load.value_bytes, layer_bits=load.layer_bits)


class DeviceBytes(NamedTuple):
    """What the fullest device holds at the end of a generation."""

    weights: float
    gathered: float
    """Whole weights beside its own part of all of them, for as long as they are used."""
    kv: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gathered + self.kv + self.activations


def device_bytes(load: InferenceLoad) -> DeviceBytes:
    """Bytes that the fullest device cannot do without.

    Raises:
        ValueError: the model cannot be cut into so many equal parts.
    """
    model, precision, size = model_of(load), precision_of(load), load.value_bytes
    kv = cost.kv_bytes(model, load.batch, load.length, size)
    activations = cost.activation_bytes(model, load.batch, 1, size)
    if load.layout == "tensor_parallel":
        share = share_of(model, load.devices)
        kv = cost.kv_bytes(share, load.batch, load.length, size)
        activations = cost.activation_bytes(share, load.batch, 1, size)
        return DeviceBytes(held_weight_bytes(share, precision), 0, kv, activations)
    weights = held_weight_bytes(model, precision)
    if load.layout == "zero":
        gathered = model.largest * size * (1 - 1 / load.devices)
        return DeviceBytes(weights / load.devices, gathered, kv, activations)
    if not isinstance(model, Architecture):  # its layers need not be alike, so the best deal of them is not known
        return DeviceBytes(weights / load.devices, 0, kv / load.devices, activations)
    ends = (model.weights - model.in_layers) * size
    layer = (weights - ends) / model.layers
    layers, has_ends = _fullest_stage(model.layers, load.devices, ends, layer + kv / model.layers)
    return DeviceBytes(layers * layer + has_ends * ends, 0, layers * kv / model.layers, activations)


def _fullest_stage(layers: int, devices: int, ends: float, layer: float) -> tuple[int, int]:
    """Layers of the fullest device, and whether it holds embedding and head (1 or 0), in the best possible deal.

    `ends` and `layer` are bytes; embedding and head share their weights, so they lie on one device.
    """
    if devices == 1:
        return layers, 1
    deals = []
    for beside_ends in range(layers + 1):
        others = -(-(layers - beside_ends) // (devices - 1))
        deals.append(max((ends + beside_ends * layer, beside_ends, 1), (others * layer, others, 0)))
    _, held, has_ends = min(deals)
    return held, has_ends


def largest_batch(load: InferenceLoad, memory_bytes: float) -> int:
    """The most rows that could fit into `memory_bytes` of each device; 0 where the weights alone do not."""

    def fits(batch: int) -> bool:
        return device_bytes(load.model_copy(update={"batch": batch})).total <= memory_bytes

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def pass_seconds(load: InferenceLoad, new: int, past: int, hardware: Hardware) -> float:
    """The least time of one pass over `new` tokens a row behind `past` cached ones."""
    model, precision = model_of(load), precision_of(load)
    rate = hardware.flops_per_s * (2 if load.layer_bits == 8 else 1)
    stream = load.batch * new * model.hidden * load.value_bytes  # the residual stream of all rows

    def working(part: Decoder) -> float:
        read = read_weight_bytes(part, precision)
        read += cost.kv_bytes(part, load.batch, past + new, load.value_bytes)
        flops = cost.pass_flops(part, load.batch, new, past, heads_at=1)
        return max(read / hardware.read_bytes_per_s, flops / rate)

    if load.layout == "tensor_parallel":
        share = share_of(model, load.devices)
        a_layer = 2 if isinstance(model, Architecture) else 1  # where attention and feed-forward run side by side
        return working(share) + a_layer * model.layers * all_reduce_seconds(stream, load.devices, hardware)
    if load.layout == "pipeline":
        return working(model) + (load.devices - 1) * stream / hardware.link_bytes_per_s
    passed = read_weight_bytes(model, precision) + model.looked_up * load.value_bytes  # towers and idle experts are not
    return max(working(model), passed * (1 - 1 / load.devices) / hardware.link_bytes_per_s)


def all_reduce_seconds(size: float, devices: int, hardware: Hardware) -> float:
    """Each device sends and receives all but its own part twice: to sum it, and to spread the sums."""
    return 2 * size * (1 - 1 / devices) / hardware.link_bytes_per_s


def ms_per_token(load: InferenceLoad, hardware: Hardware) -> float:
    """The floor of a generation's wall time over its tokens, those of all rows: prompt first, then its steps."""
    prefill = pass_seconds(load, load.prompt_tokens, 0, hardware)
    lengths = range(load.prompt_tokens, load.length - 1)  # behind which a step runs: windows fill, so none is the mean
    steps = sum(pass_seconds(load, 1, length, hardware) for length in lengths)
    return (prefill + steps) / (load.batch * load.new_tokens) * 1e3
