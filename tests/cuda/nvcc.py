"""Compiles .cu files for GPUs that are not here, and tells what their machine code is made of.

As a program it prints where nvcc is, and fails where there is none that knows all architectures.
"""

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "cubins"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
# setup.py's flags, but for the front end, which takes most of the time, running once for all architectures: no kernel asks
# for which one it is compiled. A spill is an error here.
FRONT_END = ("-O3", "-std=c++17", f"-I{CSRC}", "-ptx", "-arch=compute_80")
BACK_END = ("-O3", "-warn-spills", "-Werror")


@dataclass(frozen=True)
class Kernel:
    """One kernel's machine code.

    Attributes:
        name: Without namespaces and template arguments.
        arguments: The rest of the mangled name: template arguments and parameters.
        stack: Bytes of local memory for each thread.
        shared: Bytes of static shared memory.
        threads: Of a block at most, by its launch bounds; None where it has none.
        opcodes: How often each instruction stands in the code.
    """

    name: str
    arguments: str
    registers: int
    stack: int
    shared: int
    threads: int | None
    opcodes: Counter[str]

    def __str__(self):
        return f"{self.name}<{self.arguments}>"

    def has(self, pattern):
        return any(re.match(pattern, opcode) for opcode in self.opcodes)


@functools.cache
def find_nvcc():
    """The first nvcc that knows all architectures: in CUDA_HOME, on PATH, in /usr/local/cuda, from pip; or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [Path(home) / "bin" / "nvcc" for home in homes if home]
    places += [Path(found) for found in [shutil.which("nvcc")] if found]
    places += [Path("/usr/local/cuda/bin/nvcc")]
    places += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc"))
    return next((place for place in places if place.is_file() and _knows_all(place)), None)


def _knows_all(nvcc):
    result = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True)
    return {name.rstrip("a") for name in ARCHITECTURES} <= set(result.stdout.split())


@functools.cache
def find_tool(name):
    """ptxas, cuobjdump or nvdisasm: beside nvcc, on PATH, or Triton's copy; None where there is none."""
    nvcc = find_nvcc()
    places = [nvcc.resolve().with_name(name)] if nvcc else []
    places += [Path(found) for found in [shutil.which(name)] if found]
    triton = importlib.util.find_spec("triton")
    if triton is not None:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name)
    return next((place for place in places if place.is_file()), None)


def lacking():
    """What this machine lacks for compiling and looking at the result, empty where it has it all."""
    missing = [] if find_nvcc() else [f"an nvcc that knows {', '.join(ARCHITECTURES)}"]
    return ", ".join(missing + [name for name in ("ptxas", "cuobjdump", "nvdisasm") if find_tool(name) is None])


def included(path):
    """The file and all headers of the project that it includes, directly or not."""
    found, left = set(), [path]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            names = re.findall(r'^\s*#\s*include "([^"]+)"', file.read_text(), re.MULTILINE)
            left += [CSRC / name for name in names if (CSRC / name).is_file()]
    return sorted(found)


def portable(source):
    """The PTX of a .cu file; compiled only where the file, a header of it or nvcc changed.

    Raises:
        RuntimeError: With what nvcc said.
    """
    content = hashlib.sha256(" ".join([_version(), *FRONT_END, *BACK_END]).encode())
    for file in included(source):
        content.update(file.read_bytes())
    ptx = CACHE / f"{source.stem}-{content.hexdigest()[:16]}.ptx"
    return _made(ptx, f"{source.stem}-*", find_nvcc(), *FRONT_END, source)


def compiled(source, architecture):
    """The cubin of a .cu file for one architecture.

    Raises:
        RuntimeError: With what nvcc or ptxas said.
    """
    ptx = portable(source)
    cubin = ptx.with_name(f"{ptx.stem}-{architecture}.cubin")
    return _made(cubin, None, find_tool("ptxas"), *BACK_END, f"-arch={architecture}", ptx)


def _made(file, outdated, *command):
    """The file, made by a command that takes its place last, unless it is there; then removes what it replaces."""
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(outdated) if outdated else ():
            old.unlink()
        partial = file.with_name(f"{file.name}.partial")
        result = subprocess.run([*command, "-o", partial], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(result.stdout + result.stderr)
        partial.rename(file)
    return file


@functools.cache
def _version():
    return _run(find_nvcc(), "--version")


def compile_all(sources):
    """{(source, architecture): a future of its cubin}, as many at once as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(portable, sources))
        jobs = {(source, name): pool.submit(compiled, source, name) for name in ARCHITECTURES for source in sources}
    return jobs


@functools.cache
def kernels(cubin):
    """The kernels in a cubin. The disassembler takes up to a second."""
    usage = _run(find_tool("cuobjdump"), "-res-usage", cubin)
    sections = _run(find_tool("cuobjdump"), "-elf", cubin).split("\n.nv.info.")
    code = re.split(r"^//-+ \.text\.(\S+) -+$", _run(find_tool("nvdisasm"), "-c", cubin), flags=re.MULTILINE)
    listings = dict(zip(code[1::2], code[2::2], strict=True))
    bounds = {section.split(None, 1)[0]: _threads(section) for section in sections[1:]}
    found = []
    for symbol, registers, stack, shared in re.findall(
        r"Function (\S+):\n\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage
    ):
        opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?\s*([A-Z][A-Z0-9_.]+)", listings[symbol], re.M)
        name, arguments = split_symbol(symbol)
        numbers = int(registers), int(stack), int(shared), bounds[symbol]
        found.append(Kernel(name, arguments, *numbers, Counter(opcodes)))
    return found


def _threads(section):
    match = re.search(r"EIATTR_(?:MAX_THREADS|REQNTID)\n.*\n\s*Value:\s+(0x\w+) (0x\w+) (0x\w+)", section)
    return match and int(match[1], 16) * int(match[2], 16) * int(match[3], 16)


def split_symbol(symbol):
    """Name of the function and the rest of a mangled symbol, such as ``_ZN8snipkern4cuda3fooIfEEvPf``."""
    rest, name = symbol.removeprefix("_ZN").removeprefix("_Z"), symbol
    while match := re.match(r"(\d+)", rest):
        end = match.end() + int(match[1])
        name, rest = rest[match.end() : end], rest[end:]
    return name, rest


def _run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    print(find_nvcc())
    sys.exit(find_nvcc() is None)
