"""Builds the extensions ``snipkern._C`` (CPU) and ``snipkern._C_cuda`` (CUDA) on the LibTorch stable ABI.

One abi3 shared object of each serves every torch >= 2.10 and every CPython >= 3.10. Without a C++ compiler the package
installs all the same and runs on its pure PyTorch reference kernels, without a CUDA toolkit on Triton's;
``snipkern.backends.status()`` says so. The kernels for CUDA are compiled where PyTorch is built for CUDA and a toolkit
is found; whether there is a GPU does not matter.

Environment:
    SNIPKERN_BUILD=require   a failing compile fails the installation (the default is to go on without)
    SNIPKERN_BUILD=skip      do not compile at all
    SNIPKERN_CUDA=1          compile for CUDA too or fail; "only": for CUDA alone; 0: not for CUDA
    TORCH_CUDA_ARCH_LIST     what to compile for, such as "8.6"; "8.0;9.0a;10.0+PTX" where nvcc knows them all
    MAX_JOBS                 how many compilers run at once
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
BUILD_MODES = ("auto", "require", "skip")
CUDA_MODES = ("", "0", "1", "only")
# 2.10, the oldest release whose stable ABI has parallel_for.
TORCH_TARGET_VERSION = "0x020a000000000000"
# What binaries are for: A100 and its kin, H100 with its own instructions, B200; from PTX anything later.
CUDA_ARCHITECTURES = {"compute_80": "8.0", "compute_90": "9.0a", "compute_100": "10.0"}
CXX_FLAGS = [
    # Not -O3: kernels say themselves what is inlined and unrolled, and -O3 took half as long again for the same speed.
    # But loops are vectorized as there.
    "-O2",
    "-ftree-vectorize",
    "-fvect-cost-model",
    "-Wno-ignored-optimization-argument",  # clang's, of the line above
    "-g0",  # Python is often built with -g, which would make the extension ten times as large
    "-std=c++17",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
    "-Wno-unused-parameter",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
]
NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    "-lineinfo",  # profilers show source lines; no cost at run time
    "-Xcompiler=-fvisibility=hidden",
    "-Xptxas=-warn-spills",
]


def sources(*patterns):
    return [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def cpu_extension():
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        "snipkern._C",
        sources("csrc/bindings/*.cpp", "csrc/cpu/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("csrc/bindings/*.h", "csrc/cpu/*.h"),
        extra_compile_args={"cxx": CXX_FLAGS},
        py_limited_api=True,
    )


def cuda_extension(toolkit):
    os.environ["CUDA_HOME"] = str(toolkit)  # where torch looks
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = known_architectures(toolkit)
    from torch.utils.cpp_extension import CUDAExtension

    return CUDAExtension(
        "snipkern._C_cuda",
        sources("csrc/bindings/cuda/*.cpp", "csrc/cuda/*.cu"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("csrc/bindings/*.h", "csrc/bindings/cuda/*.h", "csrc/cuda/*.h", "csrc/cuda/*.cuh"),
        extra_compile_args={
            "cxx": [
                *CXX_FLAGS,
                f'-DSNIPKERN_CUDA_ARCHITECTURES="{os.environ["TORCH_CUDA_ARCH_LIST"]}"',
            ],
            "nvcc": NVCC_FLAGS,
        },
        py_limited_api=True,
    )


def known_architectures(toolkit):
    """Those of CUDA_ARCHITECTURES that this nvcc compiles for, the last with PTX for later ones."""
    command = [str(toolkit / "bin" / "nvcc"), "--list-gpu-arch"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    numbers = ";".join(number for name, number in CUDA_ARCHITECTURES.items() if name in known)
    # PTX for "9.0a" would serve nothing later.
    return numbers.removesuffix("a") + "+PTX"


def cuda_toolkit():
    """Its folder, if there is one; torch's own search takes a script called nvcc for a part of a toolkit."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    places = [named] if named else [*([Path(nvcc).resolve().parents[1]] if nvcc else []), "/usr/local/cuda"]
    whole = [Path(place) for place in places if (Path(place) / "include" / "cuda_runtime.h").is_file()]
    return next((place for place in whole if (place / "bin" / "nvcc").is_file()), None)


def wanted_cuda_toolkit():
    """The toolkit to compile for CUDA with, or None; raises where that is asked for and cannot be."""
    wanted = os.environ.get("SNIPKERN_CUDA", "")
    if wanted not in CUDA_MODES:
        raise SystemExit(f"SNIPKERN_CUDA: must be 0, 1 or only (got {wanted!r})")
    if wanted == "0":
        return None
    import torch

    toolkit = cuda_toolkit()
    if torch.version.cuda is not None and toolkit is not None:
        return toolkit
    if wanted:
        lacking = "PyTorch must be built for CUDA" if torch.version.cuda is None else "CUDA_HOME must be a CUDA toolkit"
        got = torch.__version__ if torch.version.cuda is None else os.environ.get("CUDA_HOME", "none")
        raise SystemExit(f"SNIPKERN_CUDA={wanted}: {lacking} (got {got})")
    return None


def build_command(required):
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        """Compiles each extension by itself; where one is optional, a failure is said and survived."""

        def finalize_options(self):
            super().finalize_options()
            # One place for objects, also in editable installs, whose default is a new folder each time: only what
            # changed is compiled again.
            self.build_temp = self.objects = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}")

        def run(self):
            self.into_source = self.inplace  # which is 0 while extensions are built
            super().run()

        def build_extensions(self):
            built = []
            for extension in self.extensions:
                self.extensions = [extension]
                # Ninja's notes of one extension would be lost on the other.
                self.build_temp = self.objects + extension.name.removeprefix("snipkern._C")
                try:
                    super().build_extensions()
                    built += self.extensions
                except Exception as error:
                    if required[extension.name]:
                        raise
                    self.drop(extension)
                    instead = "Triton's" if extension.name.endswith("_cuda") else "the reference"
                    print(
                        f"snipkern: the C++ extension {extension.name} was not built ({error}); the package will run"
                        f" on {instead} kernels instead",
                        file=sys.stderr,
                    )
            self.extensions = self.distribution.ext_modules = built
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None and not built:
                wheel.root_is_pure = True

        def drop(self, extension):
            """Removes what an earlier build left behind, which would not fit the rest."""
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            if self.into_source:
                (ROOT / self.get_ext_filename(extension.name)).unlink(missing_ok=True)

        def get_outputs(self):
            return [path for path in super().get_outputs() if Path(path).exists()]

    return Build.with_options(use_ninja=True)


def main():
    mode = os.environ.get("SNIPKERN_BUILD", "auto")
    if mode not in BUILD_MODES:
        raise SystemExit(f"SNIPKERN_BUILD: must be one of {', '.join(BUILD_MODES)} (got {mode!r})")
    compiled = {}
    if mode != "skip":
        toolkit = wanted_cuda_toolkit()
        extensions = [] if toolkit is None else [cuda_extension(toolkit)]
        if os.environ.get("SNIPKERN_CUDA") != "only":
            extensions.insert(0, cpu_extension())
        required = {
            "snipkern._C": mode == "require",
            "snipkern._C_cuda": mode == "require" or os.environ.get("SNIPKERN_CUDA") in ("1", "only"),
        }
        compiled = {
            "ext_modules": extensions,
            "cmdclass": {"build_ext": build_command(required)},
            "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
        }
    setup(
        packages=[
            "snipkern",
            "snipkern.allocation",
            "snipkern.backends",
            "snipkern.criteria",
            "snipkern.engine",
            "snipkern.nn",
            "snipkern.ops",
            "snipkern.parallel",
            "snipkern.plots",
            "snipkern.schedule",
            "snipkern.scoring",
            "snipkern.selection",
            "snipkern.structured",
            "snipkern.topology",
            "snipkern.triton_kernels",
        ],
        package_dir={"": ".", "snipkern.triton_kernels": "triton_kernels"},
        package_data={"snipkern": ["py.typed"]},
        **compiled,
    )


main()
