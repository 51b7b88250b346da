"""Ranks of a process group in processes of their own, forked from one that has imported torch and all else.

A rank that starts from nothing computes for six seconds before its first line of work. ``Ranks`` starts this file as a
program, which imports modules once and then forks whenever it is told to. It has computed nothing by then: no threads
of torch's are running that a fork would lose. interpreters.py does so for single programs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Ranks:
    """A process that forks ranks, one group of them at a time.

    Args:
        modules: What it imports before.
    """

    def __init__(self, *modules: str) -> None:
        # Optimizers import torch._dynamo when the first is made.
        command = [sys.executable, __file__, "torch._dynamo", *modules]
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(
        self,
        function: str,
        arguments: Sequence[Sequence[Any]],
        environments: Sequence[Mapping[str, str]],
        log: Path,
        seconds: float,
    ) -> tuple[list[int], list[str]]:
        """Exit statuses of the ranks, and what each printed; they are killed after some seconds.

        Args:
            function: ``module.name``, of a function that returns an exit status or None.
            arguments: Of each rank; JSON values.
            environments: Variables of each rank.
            log: A file for what is printed, to whose name the rank is appended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        logs = [f"{log}.{rank}" for rank in range(len(arguments))]
        calls = [[function, *of_rank] for of_rank in zip(arguments, environments, logs, strict=True)]
        watch = threading.Timer(seconds, self.close)
        watch.start()
        print(json.dumps(calls), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        watch.cancel()
        printed = [Path(log).read_text() if Path(log).exists() else "" for log in logs]
        assert answer, f"not done after {seconds} s: {printed}"
        return json.loads(answer), printed

    def close(self) -> None:
        """Ends the process and all ranks."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def serve(*modules: str) -> None:
    """Imports the modules, then starts the ranks of each line and answers with their exit statuses."""
    for name in modules:
        importlib.import_module(name)
    for line in sys.stdin:
        ranks = [started(call) for call in json.loads(line)]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in ranks]), flush=True)


def started(call: list[Any]) -> int:
    """The number of a rank's process."""
    process = os.fork()
    if not process:
        rank(call)
    return process


def rank(call: list[Any]) -> None:
    """Does what a rank has to do, and ends the process."""
    function, arguments, environment, log = call
    status = 1
    try:
        for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT)):
            os.dup2(os.open(path, flags, 0o600), number)
        os.dup2(1, 2)
        os.environ.update(environment)
        module, _, name = function.rpartition(".")
        status = getattr(importlib.import_module(module), name)(*arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(*sys.argv[1:])
