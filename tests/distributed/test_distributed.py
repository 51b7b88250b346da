"""Several processes: the same masks as one, training like one, and failing together. The checks are in worker.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import worker

WORKER = Path(worker.__file__)
SECONDS = 400


def launch(ranks: int, folder: Path) -> list[dict[str, str]]:
    """What came of each check on every rank."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(ranks), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    output = ""
    try:
        for process in processes:
            output += process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        output += f"not done after {SECONDS} s"
    finally:
        for process in processes:
            process.kill()
            process.wait()
    files = [folder / f"rank{rank}.json" for rank in range(ranks)]
    return [{**(json.loads(file.read_text()) if file.exists() else {}), "output": output} for file in files]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found: dict[int, list[dict[str, str]]] = {}

    def of(ranks: int) -> list[dict[str, str]]:
        if ranks not in found:
            found[ranks] = launch(ranks, tmp_path_factory.mktemp(f"ranks{ranks}"))
        return found[ranks]

    return of


@pytest.mark.parametrize(
    ("ranks", "name"),
    [(ranks, check.__name__) for ranks, checks in worker.CHECKS.items() for check in checks],
)
def test_on_several_ranks(ranks, name, results):
    for rank, result in enumerate(results(ranks)):
        if name == worker.a_rank_that_dies_fails_the_others.__name__ and rank == 1:
            assert name not in result  # it has died
            continue
        assert result.get(name) == "ok", f"rank {rank}: {result.get(name) or result['output'][-3000:]}"
