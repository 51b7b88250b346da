"""Several processes: the same masks as one, training like one, and failing together. The checks are in worker.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import worker
from forked import Ranks

SECONDS = 400


def launch(server: Ranks, ranks: int, folder: Path) -> list[dict[str, str]]:
    """What came of each check on every rank."""
    arguments = [(rank, ranks, str(folder)) for rank in range(ranks)]
    _, printed = server.run("worker.main", arguments, [{}] * ranks, folder / "printed", SECONDS)
    output = "".join(printed)
    files = [folder / f"rank{rank}.json" for rank in range(ranks)]
    return [{**(json.loads(file.read_text()) if file.exists() else {}), "output": output} for file in files]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found: dict[int, list[dict[str, str]]] = {}
    server = Ranks(worker.__name__)

    def of(ranks: int) -> list[dict[str, str]]:
        if ranks not in found:
            found[ranks] = launch(server, ranks, tmp_path_factory.mktemp(f"ranks{ranks}"))
        return found[ranks]

    yield of
    server.close()


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
