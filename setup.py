"""Builds the CPU extension ``snipkern._C`` on the LibTorch stable ABI.

One abi3 shared object serves every torch >= 2.10 and every CPython >= 3.10. Without a C++ compiler the package
installs all the same and runs on its pure PyTorch reference kernels; ``snipkern.backends.status()`` says so.

Environment:
    SNIPKERN_BUILD=require   a failing compile fails the installation (the default is to go on without)
    SNIPKERN_BUILD=skip      do not compile at all
    MAX_JOBS                 how many compilers run at once
"""

import os
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
BUILD_MODES = ("auto", "require", "skip")
# 2.10, the oldest release whose stable ABI has parallel_for.
TORCH_TARGET_VERSION = "0x020a000000000000"


def cpu_extension():
    from torch.utils.cpp_extension import CppExtension

    sources = sorted((ROOT / "csrc" / "bindings").glob("*.cpp"))
    sources += sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    return CppExtension(
        "snipkern._C",
        [str(path.relative_to(ROOT)) for path in sources],
        include_dirs=[str(ROOT / "csrc")],
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.h"))],
        extra_compile_args={
            "cxx": [
                "-O3",
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
        },
        py_limited_api=True,
    )


def build_command(required):
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        """Compiles the extension; where that is optional, a failure is said and survived."""

        def finalize_options(self):
            super().finalize_options()
            # One place for objects, also in editable installs, whose default is a new folder each time: only what
            # changed is compiled again.
            self.build_temp = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}")

        def run(self):
            in_place = self.inplace  # which a failing run() leaves at 0
            try:
                super().run()
            except Exception as error:
                if required:
                    raise
                self.go_on_without(in_place)
                print(
                    f"snipkern: the C++ extension was not built ({error}); the package will run on its"
                    " reference kernels, which save memory but no time",
                    file=sys.stderr,
                )

        def go_on_without(self, in_place):
            """Makes the distribution a pure Python one, without what an earlier build left behind."""
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
                if in_place:
                    (ROOT / self.get_ext_filename(extension.name)).unlink(missing_ok=True)
            self.extensions = self.distribution.ext_modules = []
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None:
                wheel.root_is_pure = True

        def get_outputs(self):
            return [path for path in super().get_outputs() if Path(path).exists()]

    return Build.with_options(use_ninja=True)


def main():
    mode = os.environ.get("SNIPKERN_BUILD", "auto")
    if mode not in BUILD_MODES:
        raise SystemExit(f"SNIPKERN_BUILD: must be one of {', '.join(BUILD_MODES)} (got {mode!r})")
    compiled = {}
    if mode != "skip":
        compiled = {
            "ext_modules": [cpu_extension()],
            "cmdclass": {"build_ext": build_command(required=mode == "require")},
            "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
        }
    setup(
        packages=[
            "snipkern",
            "snipkern.allocation",
            "snipkern.engine",
            "snipkern.nn",
            "snipkern.ops",
            "snipkern.parallel",
            "snipkern.scoring",
            "snipkern.selection",
            "snipkern.topology",
            "snipkern.triton_kernels",
        ],
        package_dir={"": ".", "snipkern.triton_kernels": "triton_kernels"},
        package_data={"snipkern": ["py.typed"]},
        **compiled,
    )


main()
