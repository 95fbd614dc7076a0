#!/usr/bin/env python3
"""Checks that every folder of lpcd/ includes only what the table below lets it include, that only
linalg sees BLAS, LAPACK and OpenMP, and that the library neither prints nor reads the environment.

The table is that of docs/architecture.md; the link lines in lpcd/*/CMakeLists.txt must agree.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

ALLOWED = {
    "base": [],
    "tensor": ["base"],
    "report": ["base"],
    "linalg": ["base", "tensor"],
    "io": ["base", "tensor"],
    "nn": ["base", "tensor", "linalg"],
    "text": ["base", "tensor", "io"],
    "format": ["base", "tensor"],
    "arch": ["base", "tensor", "linalg", "io", "nn"],
    "solve": ["base", "tensor", "linalg", "format"],
    "calib": ["base", "tensor", "linalg", "io", "text", "nn", "arch"],
    "submodules": ["base", "tensor", "linalg", "nn", "arch", "calib", "format", "solve", "report"],
    "bundle": ["base", "tensor", "linalg", "io", "text", "nn", "format", "arch"],
    "eval": ["base", "tensor", "linalg", "io", "text", "nn", "arch", "calib", "report"],
    "pipeline": ["base", "tensor", "linalg", "io", "nn", "arch", "calib", "submodules", "solve",
                 "format", "report"],
    "api": ["base", "tensor", "linalg", "io", "text", "format", "arch", "calib", "bundle", "eval",
            "pipeline", "report"],
}  # fmt: skip

# What may appear in the named folders only.
BANNED = {
    r"#include <(cblas|lapacke|omp)\.h>": {"linalg"},
    r"#pragma omp": {"linalg"},
    r"\bgetenv\b": set(),
    r"\bstd::(cout|cerr)\b|\bprintf\(|\bfmt::print\b": set(),
    r"\bstd::ofstream\b|\bfopen\(": set(),  # files are written through io::AtomicFile
    r"#include <nlohmann": {"base"},
}


def check_links(folder):
    cmake = (ROOT / "lpcd" / folder / "CMakeLists.txt").read_text()
    depends = re.search(r"DEPENDS ([\w\s]*?)(?:LIBRARIES|\))", cmake)
    linked = set(depends.group(1).split()) if depends else set()
    extra = linked - set(ALLOWED[folder])
    if extra:
        yield f"lpcd/{folder}/CMakeLists.txt: may not link {sorted(extra)}"


def check_file(folder, path):
    may = {folder, *ALLOWED[folder]}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path.relative_to(ROOT)}:{number}"
        include = re.match(r'#include "lpcd/(\w+)/', line)
        if include and include.group(1) not in may:
            yield f"{where}: {folder} may not include {include.group(1)}"
        code = line.split("//")[0]
        for pattern, folders in BANNED.items():
            if folder not in folders and re.search(pattern, code):
                yield f"{where}: {pattern} is not for {folder}"


def problems():
    for folder in sorted(p.name for p in (ROOT / "lpcd").iterdir() if p.is_dir()):
        if folder not in ALLOWED:
            yield f"lpcd/{folder}: not in the table of {pathlib.Path(__file__).name}"
            continue
        yield from check_links(folder)
        for path in sorted((ROOT / "lpcd" / folder).iterdir()):
            if path.suffix in (".h", ".cpp") and not path.name.endswith("_test.cpp"):
                yield from check_file(folder, path)


if __name__ == "__main__":
    found = list(problems())
    print("\n".join(found) or "layers: ok")
    sys.exit(1 if found else 0)
