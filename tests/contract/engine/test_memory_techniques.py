"""Caches, padded keys, surgery and buffers do to memory what they say."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import psutil
import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, Use, rows_of

pytestmark = pytest.mark.model


def addresses(session: Any) -> list[int]:
    return [tensor.data_ptr() for tensor in session.decoder.cache.tensors()]


def test_a_static_cache_stays_in_its_place_from_one_generation_to_the_next(load_engine: LoadEngine) -> None:
    session = load_engine("cache_static", batch=2)
    rows_of(session)
    first = addresses(session)
    generation = session.generate()
    for _ in range(4):
        next(generation)
        assert addresses(session) == first
    generation.close()
    rows_of(session)
    assert addresses(session) == first
    assert session.decoder.cache.allocations == 1


@pytest.mark.parametrize(("ahead", "allocations"), [(1, 5), (3, 3), (8, 2), (32, 1)])
def test_a_cache_is_copied_every_so_many_tokens(ahead: int, allocations: int, load_engine: LoadEngine) -> None:
    """Nine columns follow the prompt's: the tenth token is never read again."""
    session = load_engine(("cache_preallocated", {"ahead": ahead}))
    rows_of(session)
    assert session.decoder.cache.allocations == allocations


@pytest.mark.parametrize("company", ["cache_preallocated", "cache_static"])
@pytest.mark.parametrize("multiple", [2, 16])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_attention_goes_over_padded_keys(
    architecture: str, multiple: int, company: str, load_engine: LoadEngine
) -> None:
    workload: dict[str, Any] = {"architecture": architecture, "batch": 3, "shortest": 5}
    session = load_engine(company, ("key_padding", {"multiple": multiple}), **workload)
    assert rows_of(session) == rows_of(load_engine(**workload))
    found = session.prove()["optimizations"]["key_padding"]
    assert found["keys"] == [-(-tokens // multiple) * multiple for tokens in found["tokens"]]
    assert found["keys"] != found["tokens"]


def test_keys_cannot_be_padded_in_a_cache_without_room(load_engine: LoadEngine) -> None:
    from claimbench.errors import Unavailable

    with pytest.raises(Unavailable, match="cache_preallocated or cache_static"):
        load_engine("key_padding")


SURGERIES: dict[str, tuple[Use, ...]] = {
    "copy": (("surgery", {"how": "copy", "every": 2, "leave": 2}),),
    "copy_preallocated": (("surgery", {"how": "copy", "every": 1}), "cache_preallocated"),
    "slots": (("surgery", {"how": "slots", "every": 2, "leave": 2}), "cache_static"),
    "slots_preallocated": (("surgery", {"how": "slots", "every": 1}), "cache_preallocated"),
}


@pytest.mark.parametrize("uses", SURGERIES.values(), ids=SURGERIES)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_requests_leave_and_join_and_say_the_same(
    architecture: str, uses: tuple[Use, ...], load_engine: LoadEngine
) -> None:
    workload: dict[str, Any] = {"architecture": architecture, "batch": 4, "shortest": 5}
    session = load_engine(*uses, **workload)
    rows = rows_of(load_engine(**workload))
    assert rows_of(session) == rows
    assert session.prove()["optimizations"]["surgery"]["events"] > 1
    assert rows_of(session) == rows


@pytest.mark.parametrize(
    ("how", "company", "moves"), [("copy", "cache_preallocated", True), ("slots", "cache_static", False)]
)
def test_copying_moves_the_cache_and_slots_do_not(how: str, company: str, moves: bool, load_engine: LoadEngine) -> None:
    session = load_engine(company, ("surgery", {"how": how, "every": 1}), batch=3)
    generation = session.generate()
    next(generation)
    before = addresses(session)
    next(generation)
    assert (addresses(session) != before) == moves
    generation.close()


def test_slots_write_the_rows_that_join_and_no_others(load_engine: LoadEngine) -> None:
    import torch

    from claimbench.engine.continuous_batching import by_slots

    session = load_engine("cache_static", batch=3)
    rows_of(session)
    cache = session.decoder.cache
    before_all = [tensor.clone() for tensor in cache.tensors()]
    with torch.inference_mode():
        cache.replace(torch.tensor([2]), cache.filter(torch.tensor([0])))
        assert by_slots(cache, 1) is cache
    for after, before in zip(cache.tensors(), before_all, strict=True):
        assert torch.equal(after[2], before[0])
        assert torch.equal(after[:2], before[:2])


@pytest.mark.parametrize(
    ("how", "company", "batch", "reason"),
    [
        ("copy", (), 1, "raise the batch"),
        ("copy", ("cache_static",), 2, "stays where it is"),
        ("slots", (), 2, "allocated ahead"),
    ],
)
def test_surgery_says_why_it_cannot_be(
    how: str, company: tuple[str, ...], batch: int, reason: str, load_engine: LoadEngine
) -> None:
    from claimbench.errors import Unavailable

    with pytest.raises(Unavailable, match=reason):
        load_engine(("surgery", {"how": how}), *company, batch=batch)


def test_a_part_of_a_cache_joins_the_rest_again() -> None:
    import torch

    from claimbench.cost_model import cost
    from claimbench.engine.kv_cache import AllocatedCache, CacheShape, ConcatenatedCache
    from claimbench.engine.model.parts import PassContext

    room = CacheShape(cost.architecture("tiny-llama"), 3, 6, torch.float32, torch.device("cpu"))
    shape = 3, room.arch.kv_heads, 4, room.arch.head_dim
    for cache in (ConcatenatedCache(room), AllocatedCache(room, 5), AllocatedCache(room, None)):
        cache.keys_after(4)
        for slot in cache.slots:
            slot.write(torch.randn(shape), torch.randn(shape), PassContext(0, torch.zeros((3, 4), dtype=torch.int64)))
        cache.length = 4
        held = [tensor.clone() for tensor in cache.tensors()]
        part = cache.filter(torch.tensor([2, 0]))
        joined = part.concatenate(cache.filter(torch.tensor([1])))  # type: ignore[arg-type] # of its own kind
        assert (part.shape.batch, joined.shape.batch, joined.length) == (2, 3, 4)
        for whole, again in zip(held, joined.tensors(), strict=True):
            assert torch.equal(whole[[2, 0, 1]], again)
        column = 3, room.arch.kv_heads, 1, room.arch.head_dim
        joined.keys_after(1)
        keys, _ = joined.slots[0].write(torch.ones(column), torch.ones(column), PassContext(4, torch.full((3, 1), 4)))
        assert keys.shape[2] == 5
        assert bool((keys[:, :, 4] == 1).all())


def allocations(session: Any) -> list[int]:
    """Times that memory was asked for in each of the first passes: the profiler counts in the allocator."""
    from torch.profiler import profile

    generation, counts = session.generate(), []
    for _ in range(4):
        with profile(profile_memory=True) as profiler:
            next(generation)
        asked = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        counts.append(sum(event.nbytes() > 0 for event in asked))
    generation.close()
    return counts


@pytest.mark.parametrize("architecture", FAMILIES)
def test_reused_buffers_are_not_allocated_again(architecture: str, load_engine: LoadEngine) -> None:
    workload: dict[str, Any] = {"architecture": architecture, "batch": 3, "shortest": 5}
    plain, session = load_engine(**workload), load_engine("reused_buffers", **workload)
    assert rows_of(session) == rows_of(plain)
    layers = session.decoder.spec.arch.layers
    for before, after in zip(allocations(plain), allocations(session), strict=True):
        # of each layer four matrices and two sums; the head, and the sequence and its positions besides
        assert before - after >= 6 * layers + 3, f"{before} allocations a pass, then {after}"


def test_a_sequence_grows_in_its_place(load_engine: LoadEngine) -> None:
    session = load_engine("reused_buffers", batch=2)
    generation = session.generate()
    places = set()
    for _ in range(5):
        next(generation)
        places.add(session.decoder.sequence.data_ptr())
    assert len(places) == 1
    generation.close()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to return freed memory")
def test_memory_that_loading_freed_is_given_back() -> None:
    from claimbench.engine.session import give_back_memory

    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    blocks, size = [], 64_000  # under the size that is mapped by itself
    for _ in range(2000):
        blocks.append(libc.malloc(size))
        ctypes.memset(blocks[-1], 1, size)
    for block in blocks[:-1]:  # the last one holds the top of the heap
        libc.free(block)
    before = psutil.Process().memory_info().rss
    give_back_memory()
    freed = before - psutil.Process().memory_info().rss
    libc.free(blocks[-1])
    assert freed > 0.8 * len(blocks) * size
