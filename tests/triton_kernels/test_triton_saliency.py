"""The Triton saliency kernels without a GPU: interpreted against the reference, faults planted, compiled for GPUs."""

import importlib.util

import pytest
from processes import SHARED_MEMORY, needs_linux, needs_triton, run_compiled, run_interpreted

pytestmark = [pytest.mark.slow, needs_triton]


def test_interpreted():
    run_interpreted("interpreted_saliency", "interpreted_saliency_many", "interpreted_saliency_sums")


def test_planted_faults_are_caught():
    run_interpreted("interpreted_mutants")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """For all of NVIDIA's architectures, and where this Triton can for AMD's, in one process."""
    amd = ["amd"] if importlib.util.find_spec("triton.backends.amd") else []
    return run_compiled("compiled_saliency", tmp_path_factory.mktemp("triton"), *SHARED_MEMORY, *amd)


@needs_linux
def test_compiled(compiled):
    """For NVIDIA's architectures no registers are spilled, shared memory is there, and loads have 16 bytes."""
    results = [result for result in compiled if result["arch"] != "amd"]
    assert {result["arch"] for result in results} == set(SHARED_MEMORY)
    assert len({result["kernel"] for result in results}) == 12
    for result in results:
        assert not result["spills"], result
        assert result["shared"] <= SHARED_MEMORY[result["arch"]], result
        assert not result["flushes"], result
        assert result["loads"] >= result["wide"], result


@needs_linux
def test_compiled_for_amd(compiled):
    """Every kernel; Triton says nothing of what the machine code needs."""
    pytest.importorskip("triton.backends.amd", reason="this Triton has no compiler for AMD's GPUs")
    assert len([result for result in compiled if result["arch"] == "amd"]) == 12
