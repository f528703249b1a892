"""Build script: metadata, recipes as package data, and one optional compiled extension.

``fastrot/kernels``, ``fastrot/benchmarks`` and ``fastrot/configs`` are committed links to the
top-level folders, so every path below goes through ``fastrot/`` and means the same in a checkout
and in an unpacked source distribution.

The extension is plain setuptools over nanobind's single-file build. When it does not compile,
the installation goes on, and the compiler's words are kept in
``fastrot/kernels/_native_error.txt``, where ``fastrot doctor`` finds them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

KERNELS = Path("fastrot/kernels")
ERROR_FILE = "_native_error.txt"
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-strict-aliasing", "-pthread"]

# Older libjpeg-turbo has known heap overflows; IJG's libjpeg upsamples differently, so its pixels
# would not equal Pillow's.
JPEG_PROBE = """
#include <cstdio>
#include <jpeglib.h>
#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001005
#error "libjpeg-turbo 2.1.5 or newer is needed"
#endif
int main() {
  jpeg_decompress_struct info;
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, nullptr, 0);
}
"""


class OptionalBuildExt(build_ext):
    """Build ``_native``; on failure record why, remove a stale one, and let the install go on."""

    def run(self) -> None:
        """Build, remembering whether the result belongs into the source tree."""
        # super().run() clears the flag while it builds
        self.into_source = bool(self.inplace)
        super().run()

    def build_extensions(self) -> None:
        """Build with a compiler whose words are kept."""
        self.compiler.spawn = self._spawn
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Build, or record why not."""
        try:
            self._complete(ext)
            super().build_extension(ext)
        except (CCompilerError, BaseError, ImportError, OSError) as error:
            self._record(ext, f"{type(error).__name__}: {error}\n")
        else:
            self._record(ext, None)

    def _complete(self, ext: Extension) -> None:
        """Add nanobind, which is known only now, and the decoder if libjpeg-turbo is there."""
        import nanobind

        root = Path(nanobind.include_dir()).parent
        ext.sources = [*ext.sources, str(root / "src" / "nb_combined.cpp")]
        ext.include_dirs += [str(root / "include"), str(root / "ext" / "robin_map" / "include")]
        ext.define_macros += [("NDEBUG", None), ("NB_COMPACT_ASSERTIONS", None)]
        ext.define_macros += [("NB_DOMAIN", "fastrot")]
        if problem := self._jpeg_problem():
            print(f"fastrot: built without JPEG decoding; Pillow decodes.\n{problem}")
        else:
            ext.sources.insert(1, str(KERNELS / "decode" / "decode.cpp"))
            ext.libraries.append("jpeg")
            ext.define_macros.append(("FASTROT_WITH_DECODE", None))

    def _jpeg_problem(self) -> str | None:
        """The compiler's words where a program over libjpeg-turbo does not build, else None."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.cpp"
            probe.write_text(JPEG_PROBE)
            try:
                objects = self.compiler.compile(
                    [str(probe)], output_dir=folder, extra_postargs=FLAGS
                )
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, libraries=["jpeg"], target_lang="c++"
                )
            except CCompilerError as error:
                return str(error)
        return None

    def _spawn(self, command: list[str], **_: object) -> None:
        """Run the compiler and keep its words, which distutils would only let pass by."""
        print(" ".join(command), flush=True)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        sys.stderr.write(done.stdout)
        if done.returncode:
            raise CompileError(
                f"exit status {done.returncode} of: {' '.join(command)}\n{done.stdout}"
            )

    def _record(self, ext: Extension, problem: str | None) -> None:
        folders = [Path(self.build_lib) / KERNELS]
        if self.into_source:
            folders.append(KERNELS)
        for folder in folders:
            if problem is None:
                (folder / ERROR_FILE).unlink(missing_ok=True)
                continue
            # An extension of an earlier build would hide that this one failed.
            (folder / Path(self.get_ext_filename(ext.name)).name).unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ERROR_FILE).write_text(problem)
        if problem is not None:
            print(f"fastrot: compiled kernels did not build; slower ones serve.\n{problem}")


def read_version() -> str:
    """``__version__`` without importing the package."""
    text = Path("fastrot/__init__.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise SystemExit("fastrot/__init__.py: no line __version__ = ...")
    return match.group(1)


NATIVE = Extension(
    "fastrot.kernels._native",
    sources=[str(KERNELS / "native.cpp"), str(KERNELS / "rotate" / "rotate.cpp")],
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    language="c++",
    optional=True,
)

setup(
    name="fastrot",
    version=read_version(),
    description="Rotation-prediction (RotNet) pretraining, as fast as the hardware allows",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["fastrot", "fastrot.*"]),
    package_data={
        "fastrot": ["configs/*.yaml", "configs/**/*.yaml"],
        "fastrot.kernels": ["*.pyi"],
    },
    ext_modules=[NATIVE],
    cmdclass={"build_ext": OptionalBuildExt},
    entry_points={"console_scripts": ["fastrot = fastrot.cli:main"]},
    install_requires=[
        "torch>=2.10",
        "torchvision",
        "numpy",
        "pillow",
        "pydantic>=2",
        "pyyaml",
        "typer",
        "rich",
        "safetensors",
        "xxhash",
        "scikit-learn",
        "tensorboard",
    ],
    extras_require={
        "dali": [
            "nvidia-dali-cuda130>=2.3; sys_platform == 'linux' and platform_machine == 'x86_64'"
        ],
        "ffcv": ["ffcv==1.0.2"],
        "slurm": ["submitit"],
        "test": [
            "pytest",
            "hypothesis",
            "ruff",
            "mypy",
            "import-linter",
            "types-PyYAML",
            "setuptools>=77",
            "nanobind>=2.4",
        ],
    },
)
