"""Many trainings that go on where they were interrupted: what the JSON file holds already is not done again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["carry_out", "key", "missing", "saved", "write"]


def key(run: Any) -> str:
    """What tells a run (a dataclass of JSON values) from every other one."""
    return json.dumps(asdict(run), sort_keys=True)


def missing(runs: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The runs without a row, each once, in their order; a row holds its run's fields beside what was found."""
    wanted = {key(run): run for run in runs}
    for kind in {type(run) for run in runs}:
        names = [field.name for field in fields(kind)]
        for row in rows:
            if all(name in row for name in names):
                wanted.pop(json.dumps({name: row[name] for name in names}, sort_keys=True), None)
    return list(wanted.values())


def carry_out(
    runs: Sequence[Any],
    work: Callable[[Any], dict[str, Any]],
    content: dict[str, Any],
    *,
    path: Path | None,
    jobs: int,
    console: Console,
    said: Callable[[Mapping[str, Any]], str],
) -> None:
    """Does what is missing in ``jobs`` processes and appends its rows to ``content["results"]``.

    Args:
        runs: Dataclasses of JSON values.
        work: What is done for one; picklable. Returns its row.
        path: Where ``content`` is written after every row, if anywhere.
        said: What the progress bar says of a row.
    """
    left = missing(runs, content["results"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Forked workers would share torch's thread pool.
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ProcessPoolExecutor(jobs, mp_context=context) as pool,
    ):
        task = progress.add_task("training", total=len(left))
        futures = [pool.submit(work, run) for run in left]
        try:
            for future in as_completed(futures):
                row = future.result()
                content["results"].append(row)
                progress.update(task, advance=1, description=said(row))
                if path:
                    write(path, content)
        finally:
            pool.shutdown(cancel_futures=True)


def saved(path: Path, program: str, format: int) -> dict[str, Any]:
    """What a file of results holds.

    Raises:
        SystemExit: If there is none, or it is of another format.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{program}: {path} must be a file of results ({error})") from None
    if content.get("format") != format:
        raise SystemExit(f"{program}: {path} must be of format {format} (got {content.get('format')!r})")
    return content


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file anew, so that an interruption leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)
