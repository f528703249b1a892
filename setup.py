"""Build script: metadata, recipes as package data, and one optional compiled extension.

``fastrot/kernels``, ``fastrot/benchmarks`` and ``fastrot/configs`` are committed links to the
top-level folders, so every path below goes through ``fastrot/`` and is valid both in a checkout and
in an unpacked source distribution.

The extension uses plain setuptools and nanobind's single-file build. If it does not compile, the
installation continues, and the compiler's output is kept in
``fastrot/kernels/_native_error.txt``, where ``fastrot doctor`` finds it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

KERNELS = Path("fastrot/kernels")
ERROR_FILE = "_native_error.txt"
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-fno-strict-aliasing", "-pthread"]

# Older libjpeg-turbo has known heap overflows; IJG's libjpeg upsamples differently, so its pixels
# would not equal Pillow's.
JPEG_PROBE = """
#include <cstdio>
#include <jpeglib.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001005
#error "libjpeg-turbo 2.1.5 or newer is needed"
#endif
#if XXH_VERSION_NUMBER < 800
#error "xxHash 0.8 or newer is needed"
#endif
int main() {
  jpeg_decompress_struct info;
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, nullptr, 0);
}
"""


class OptionalBuildExt(build_ext):
    """Builds ``_native``; on failure it records why, removes a stale one, and does not stop."""

    def run(self) -> None:
        """Build, and remember whether the result belongs in the source tree."""
        self.into_source = bool(self.inplace)  # super().run() clears it while it builds
        self.force = True  # the result also depends on the machine's packages
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Build the extension, or record why it failed."""
        problem = None
        with captured_output() as output:
            try:
                self._complete(ext)
                super().build_extension(ext)
            except (CCompilerError, BaseError, ImportError, OSError) as error:
                problem = f"{type(error).__name__}: {error}\n"
        self._record(ext, None if problem is None else problem + output[0])

    def _complete(self, ext: Extension) -> None:
        """Add nanobind, which can be imported only now, and the decoder if its libraries exist."""
        import nanobind

        root = Path(nanobind.include_dir()).parent
        ext.sources = [*ext.sources, str(root / "src" / "nb_combined.cpp")]
        ext.include_dirs += [str(root / "include"), str(root / "ext" / "robin_map" / "include")]
        ext.define_macros += [("NDEBUG", None), ("NB_COMPACT_ASSERTIONS", None)]
        ext.define_macros += [("NB_DOMAIN", "fastrot")]
        if self._finds_libraries():
            ext.sources[1:1] = sorted(map(str, (KERNELS / "decode" / "native").glob("*.cpp")))
            ext.libraries.append("jpeg")
            ext.define_macros.append(("FASTROT_WITH_DECODE", None))
        else:
            print("fastrot: built without JPEG decoding; Pillow will decode", flush=True)

    def _finds_libraries(self) -> bool:
        """Return whether a program with a recent libjpeg-turbo and xxHash compiles and links."""
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
            except CCompilerError:
                return False
        return True

    def _record(self, ext: Extension, problem: str | None) -> None:
        folders = [Path(self.build_lib) / KERNELS]
        if self.into_source:
            folders.append(KERNELS)
        for folder in folders:
            if problem is None:
                (folder / ERROR_FILE).unlink(missing_ok=True)
                continue
            # An extension from an earlier build would hide that this one failed.
            (folder / Path(self.get_ext_filename(ext.name)).name).unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ERROR_FILE).write_text(problem)
        if problem is not None:
            print(f"fastrot: no compiled kernels, slower ones replace them; why: {ERROR_FILE}")


@contextmanager
def captured_output() -> Iterator[list[str]]:
    """Collect the output of this process and of the compiler, and print it at the end.

    It works on file descriptors, because the compiler is a child process, and setuptools has
    changed how it starts that.
    """
    output: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile() as file:
        for number in kept:
            os.dup2(file.fileno(), number)
        try:
            yield output
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            output.append(file.read().decode(errors="replace"))
            print(output[0], end="", flush=True)


def read_version() -> str:
    """Return ``__version__`` without importing the package."""
    text = Path("fastrot/__init__.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise SystemExit("fastrot/__init__.py: no line __version__ = ...")
    return match.group(1)


NATIVE = Extension(
    "fastrot.kernels._native",
    sources=[
        str(KERNELS / "native.cpp"),
        str(KERNELS / "rotate" / "rotate.cpp"),
        str(KERNELS / "cosine_topk" / "products.cpp"),
    ],
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    language="c++",
    optional=True,
)

setup(
    name="fastrot",
    version=read_version(),
    description="Rotation-prediction (RotNet) pretraining, as fast as the hardware allows",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["fastrot", "fastrot.*"]),
    package_data={
        "fastrot": ["configs/*.yaml", "configs/**/*.yaml"],
        "fastrot.kernels": ["*.pyi"],
    },
    ext_modules=[NATIVE],
    cmdclass={"build_ext": OptionalBuildExt},
    entry_points={"console_scripts": ["fastrot = fastrot.cli.app:main"]},
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
        "scipy",
        "threadpoolctl",
        "tensorboard",
        "jinja2",
        "markupsafe",
        "triton; sys_platform == 'linux'",
    ],
    extras_require={
        "eval": ["cyanure>=1.2", "faster-coco-eval>=1.8", "pycocotools>=2.0.8"],
        "bench": ["cyanure>=1.2", "faiss-cpu", "liblinear-multicore"],
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "dali": [
            "nvidia-dali-cuda130>=2.3; sys_platform == 'linux' and platform_machine == 'x86_64'"
        ],
        "ffcv": ["ffcv==1.0.2"],
        "slurm": ["submitit"],
        "wandb": ["wandb"],
        # Without a server, MLflow keeps its runs in a database, which requires the other two.
        "mlflow": ["mlflow-skinny", "sqlalchemy", "alembic"],
        "test": [
            "cyanure>=1.2",
            "faster-coco-eval>=1.8",
            "pycocotools>=2.0.8",
            "faiss-cpu",
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "import-linter",
            "grimp",
            "packaging",
            "submitit",
            "wandb",
            "mlflow-skinny",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "timm",
            "transformers",
            "types-PyYAML",
            "setuptools>=77",
            "nanobind>=2.4",
        ],
    },
)
