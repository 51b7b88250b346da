"""Python processes of their own, for what has to be set before snipkern is imported.

Importing torch takes seconds: one process does it, and each call of run_python() is a fork of that one.
"""

import atexit
import functools
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import snipkern

PACKAGE = Path(snipkern.__file__).parent

SERVER = """
import json, os, sys, traceback
import torch

# The environment's own editable install would serve what a copied package lacks.
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in str(finder)]
os.chdir("/")
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(task["files"][stream - 1], os.O_WRONLY), stream)
        os.environ.update(task["environment"])
        sys.path.insert(0, task["path"])
        code = 0
        try:
            exec(compile(task["code"], "<string>", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@functools.cache
def server():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)
    return process


def run_python(code, *, package=PACKAGE, **environment):
    """Runs code in a new process that has imported torch, and that imports this package."""
    process = server()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        task = {"code": code, "path": str(package.parent), "environment": environment, "files": list(map(str, files))}
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        return Result(int(process.stdout.readline()), *(file.read_text() for file in files))
