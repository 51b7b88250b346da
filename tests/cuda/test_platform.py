"""The harness itself: kernels that are wrong are found, and what is right computes what CUDA does."""

import ctypes
import functools
import re

import on_host
import pytest
import torch

pytestmark = pytest.mark.usefixtures("thread_order")

THREADS = 64
ALL_LANES = range(32)
# Hazard -> what the harness says of it.
FAULTS = {
    "two_barriers": "threads wait at different barriers",
    "returned_before_barrier": "a thread has returned without reaching the barrier",
    "lane_at_barrier": "a warp operation|waits at a barrier",
    "lane_returned": "names a lane that has returned|waits for lanes that do not come",
    "lane_not_named": "whose mask does not name it",
    "source_not_named": "reads a lane that its mask does not name",
    "two_operations": "a warp operation waits for lanes that do not come to it",
    "lanes_miss_mma": "names a lane that has returned|waits for lanes that do not come",
    "trap": "__trap",
    "misaligned_vector": "a misaligned access to .*float4.* at .*hazards.cu:",
    "null_pointer": "an access through a null pointer to .*float.* at .*hazards.cu:",
    "index_out_of_bounds": r"index \d+ is outside of .*float \[64\].* at .*hazards.cu:",
    "misaligned_copy_target": "writes to an address that is not aligned to its size",
    "misaligned_copy_source": "reads from an address that is not aligned to its size",
    "copy_to_global": "writes to what is not shared memory",
    "misaligned_matrix": "a row for ldmatrix is not aligned to 16 bytes",
    "matrix_in_global": "a row for ldmatrix is not in shared memory",
    "dynamic_overflow": "dynamic shared memory is written past its end",
    "copy_pending_at_return": "a thread returns while its asynchronous copies are on their way",
}
# Hazards that show in what is computed: not a number.
SPOILT = (
    "uninitialised_dynamic",
    "uninitialised_static",
    "copy_not_waited_for",
    "copy_waited_for_too_little",
    "copy_not_committed",
)
# These depend on the order of threads: some order in ten shows them.
RACES = ("missing_barrier", "missing_warp_barrier")


@functools.cache
def library():
    """The kernels of hazards.cu and semantics.cu, with a harness of their own."""
    kernels = [on_host.ROOT / "tests/cuda" / name for name in ("hazards.cu", "semantics.cu")]
    objects = (
        *on_host.harness(),
        *(
            on_host.Compile(path, (*on_host.LIBRARY, "-O1", *on_host.CHECKED, "-x c++"), f"{path.stem}.o")
            for path in kernels
        ),
    )
    [path] = on_host.build([on_host.Target("test_platform.so", objects, ("-shared", "-lpthread"))])
    loaded = ctypes.CDLL(str(path))
    loaded.run_hazard.restype = ctypes.c_char_p
    return loaded


@pytest.fixture(autouse=True)
def order(thread_order):
    configure(seed=thread_order)


def configure(*, seed=0, os_threads=1):
    library().snipkern_on_host_configure(ctypes.c_uint64(seed), os_threads, 4, 166912)


def pointer(tensor):
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def run_hazard(name, *, blocks=2, threads=THREADS, shared_bytes=THREADS * 4, allowed_bytes=0):
    """What the harness says, and what the kernel has written."""
    given, out = torch.arange(1.0, THREADS + 5), torch.zeros(THREADS)
    said = library().run_hazard(
        name.encode(), blocks, threads, shared_bytes, allowed_bytes, pointer(given), pointer(out)
    )
    return said.decode(), out


def run(name, *arguments):
    error = getattr(library(), name)(*(pointer(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    assert error == 0, name


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_kernel_and_place(name):
    said, _ = run_hazard(name)
    assert re.search(FAULTS[name], said), said
    assert "[kernel, block (" in said and said.endswith(", 0, 0)]"), said


def test_after_faults_the_same_threads_run_another_kernel():
    for name in ("two_barriers", "trap", "copy_pending_at_return"):
        assert run_hazard(name)[0] != ""
        said, out = run_hazard("fine")
        assert said == "" and out.tolist() == list(range(THREADS, 0, -1))


def test_a_mask_names_lanes_that_the_block_does_not_have():
    assert "names a lane outside the block" in run_hazard("part_of_a_warp", threads=20)[0]


@pytest.mark.parametrize("name", SPOILT)
def test_memory_read_too_early_is_not_a_number(name):
    said, out = run_hazard(name)
    assert said == "" and out.isnan().all()


@pytest.mark.parametrize("name", RACES)
def test_some_order_of_threads_shows_a_missing_barrier(name):
    shown = 0
    for seed in range(10):
        configure(seed=seed)
        shown += bool(run_hazard(name)[1].isnan().any())
    assert shown > 0


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"threads": 0}, "a block must have 1 to 1024 threads (got 0 x 1 x 1)"),
        ({"threads": 1025}, "a block must have 1 to 1024 threads (got 1025 x 1 x 1)"),
        ({"blocks": 0}, "a grid must have 1 to 2147483647 x 65535 x 65535 blocks (got 0 x 1 x 1)"),
        ({"shared_bytes": 49153}, "the kernel may have 49152 bytes of dynamic shared memory;"),
        ({"shared_bytes": 60001, "allowed_bytes": 60000}, "the kernel may have 60000 bytes of dynamic shared memory;"),
        ({"allowed_bytes": 166913}, "cudaErrorInvalidValue"),
    ],
    ids=str,
)
def test_launches_that_a_device_refuses(launch, message):
    said, out = run_hazard("large", **launch)
    assert said.startswith(message) and not out.any()


def test_dynamic_shared_memory_that_was_asked_for():
    said, out = run_hazard("large", shared_bytes=166912, allowed_bytes=166912)
    assert said == "" and out.all()


# What instructions compute


def tensors_16_bits(dtype, *shape, generator):
    return torch.randn(*shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_mma_of_16_bit_types(dtype, generator):
    a, b = tensors_16_bits(dtype, 16, 16, generator=generator), tensors_16_bits(dtype, 16, 8, generator=generator)
    d = torch.randn(16, 8, generator=generator)
    expected = (d.double() + a.double() @ b.double()).float()
    run("run_multiply", {torch.float16: 2, torch.bfloat16: 3}[dtype], a, b, d)
    torch.testing.assert_close(d, expected, rtol=2**-23, atol=1e-12)


def test_mma_of_tf32_ignores_low_bits(generator):
    a, b, d = (torch.randn(*shape, generator=generator) for shape in ((16, 8), (8, 8), (16, 8)))

    def cut(x):
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32).double()

    expected = (d.double() + cut(a) @ cut(b)).float()
    whole = (d.double() + a.double() @ b.double()).float()
    run("run_multiply", 0, a, b, d)
    torch.testing.assert_close(d, expected, rtol=2**-23, atol=1e-12)
    assert (d - whole).abs().max() > 1e-5


def test_tf32_rounds_to_nearest_ties_away(generator):
    x = torch.randn(1000, generator=generator) * 10.0 ** torch.randint(-37, 37, (1000,), generator=generator)
    ties = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-23, 3.4028e38, 0.0, -0.0, 1e-42])
    x = torch.cat([x, ties, torch.tensor([torch.inf, -torch.inf, torch.nan])])
    bits = torch.empty(len(x), dtype=torch.int32)
    run("run_round_tf32", x, len(x), bits)
    got = bits.view(torch.float32)
    assert not (bits[:-1] & 0x1FFF).any()
    assert got[1000:1008].tolist() == [1 + 2**-10, 1 + 2**-9, -1 - 2**-10, 1, torch.inf, 0, 0, 0]
    assert got[-3:-1].tolist() == [torch.inf, -torch.inf] and got[-1].isnan()
    normal = x[:1000].abs() > 1e-36
    assert ((got - x)[:1000].abs() <= x[:1000].abs() * 2**-11)[normal].all()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_every_16_bit_number_widens_as_in_torch(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    check_round_trip(every.double(), dtype, rounded=every)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16, torch.bfloat16), ids=str)
def test_rounding_is_torchs(dtype, generator):
    x = torch.randn(3000, generator=generator, dtype=torch.float64)
    x *= 10.0 ** torch.randint(-9, 9, (3000,), generator=generator)
    special = torch.tensor(
        [0.0, -0.0, 65504, 65519.99, 65520, -65520, 1e39, 2**-24, 2**-25, 1.5 * 2**-24, 3.39e38, 1e-40]
    )
    halfway = (
        1 + torch.arange(64, dtype=torch.float64) / 2**12
    )  # every other one a tie of float16, of bfloat16 less often
    x = torch.cat([x, special.double(), halfway, torch.tensor([torch.inf, torch.nan]).double()])
    accumulator = x if dtype == torch.float64 else x.float()
    check_round_trip(accumulator.double(), dtype, rounded=accumulator.to(dtype))


def check_round_trip(x, dtype, *, rounded):
    number = (torch.float32, torch.float64, torch.float16, torch.bfloat16).index(dtype)
    got, widened = torch.empty(len(x), dtype=dtype), torch.empty(len(x), dtype=torch.float64)
    run("run_round_trip", number, x, len(x), got, widened)
    nan = rounded.isnan()
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(got.view(integer)[~nan], rounded.view(integer)[~nan])
    assert torch.equal(widened[~nan], rounded.double()[~nan]) and widened[nan].isnan().all()


def test_ldmatrix_gives_lanes_their_elements():
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    out = torch.empty(12, 32, dtype=torch.int32)
    run("run_load_matrices", matrices, out)
    pairs = matrices.int()
    plain = (pairs[:, :, 0::2] | pairs[:, :, 1::2] << 16).view(4, 32)  # lane 4 g + t: row g, columns 2t and 2t + 1
    down = pairs.transpose(1, 2)
    transposed = (down[:, :, 0::2] | down[:, :, 1::2] << 16).reshape(4, 32)
    assert torch.equal(out, torch.cat([plain, transposed, plain[:2], transposed[:2]]))


@pytest.mark.parametrize("width", (32, 8, 2))
@pytest.mark.parametrize("argument", (0, 1, 5, 17))
def test_warp_operations(argument, width):
    out = torch.empty(8, 32, dtype=torch.int32)
    run("run_exchange", argument, width, out)

    def sources(pick):
        return [100 + pick(lane, lane // width * width) for lane in ALL_LANES]

    assert out[0].tolist() == sources(lambda lane, first: first + argument % width)
    assert out[1].tolist() == sources(lambda lane, first: lane - argument if lane - argument >= first else lane)
    assert out[2].tolist() == sources(lambda lane, first: lane + argument if lane + argument < first + width else lane)
    assert out[3].tolist() == sources(
        lambda lane, first: lane ^ argument if (lane ^ argument) < first + width else lane
    )
    assert out[4].unique().tolist() == [sum(1 << lane for lane in ALL_LANES if lane % 3 == 0)]
    same = [sum(1 << other for other in ALL_LANES if other // 5 == lane // 5) for lane in ALL_LANES]
    assert [value % 2**32 for value in out[5].tolist()] == same
    assert out[6].unique().tolist() == [2]
    assert out[7].tolist() == [100 + (lane if lane < 8 or lane == 31 else lane + 1) for lane in ALL_LANES]


@pytest.mark.parametrize("bytes_kept", (16, 12, 8, 4, 0))
def test_asynchronous_copies_arrive_group_by_group(bytes_kept, generator):
    given, out = torch.randn(256, generator=generator), torch.empty(3, 128)
    run("run_copy_in_groups", given, bytes_kept, out)
    kept = given.view(2, 32, 4).clone()
    kept[:, :, bytes_kept // 4 :] = 0
    assert torch.equal(out[0], kept[0].flatten()) and torch.equal(out[2], kept[1].flatten())
    assert out[1].isnan().all()  # on its way


# Order


def tickets(blocks, threads, **settings):
    configure(**settings)
    given = torch.zeros(1, dtype=torch.int32)
    counts, order = torch.empty(blocks, dtype=torch.int32), torch.empty(blocks, threads, dtype=torch.int32)
    run("run_take_tickets", blocks, threads, given, counts, order)
    assert int(given) == blocks * threads and order.flatten().sort().values.equal(torch.arange(blocks * threads).int())
    assert counts.unique().tolist() == [(threads + 1) // 2 * 10000 + 1010]
    return order


@pytest.mark.parametrize("threads", (5, 96, 1024))
@pytest.mark.parametrize("os_threads", (1, 3))
def test_barriers_count_and_every_thread_comes_once(threads, os_threads):
    tickets(5, threads, os_threads=os_threads)


def test_a_seed_is_an_order_of_threads_and_blocks():
    orders = [tickets(7, 64, seed=seed) for seed in (0, 1, 2)]
    assert torch.equal(orders[1], tickets(7, 64, seed=1))
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[1], orders[2])
    assert len({tuple(order[:, 0].argsort().tolist()) for order in orders}) > 1
