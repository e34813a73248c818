"""The census in plain Python: `python -m durable.demo.direct LIBRARY` prints it.

It shares no code with the tasks whose result it confirms.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

__all__ = ["census"]


class Definitions(ast.NodeVisitor):
    """Counts definitions. Expressions are skipped, since they contain none."""

    def __init__(self) -> None:
        self.functions = self.classes = 0

    def visit(self, node: ast.AST) -> None:
        self.functions += isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        self.classes += isinstance(node, ast.ClassDef)
        if not isinstance(node, ast.expr):
            self.generic_visit(node)


def census(library: Path) -> dict[str, int]:
    """Count the files, lines, functions and classes of the standard library."""
    files = lines = 0
    found = Definitions()
    for file in source_files(library):
        text = file.read_bytes()
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        files += 1
        lines += len(text.splitlines())
        found.visit(tree)
    return {
        "files": files,
        "lines": lines,
        "functions": found.functions,
        "classes": found.classes,
    }


def source_files(library: Path) -> Iterator[Path]:
    """Yield every Python file of every module of the standard library."""
    for directory, below, names in os.walk(library):
        if Path(directory) == library:
            below[:] = sys.stdlib_module_names.intersection(below)
            single = (
                f"{name}.py" for name in sys.stdlib_module_names.difference(below)
            )
            names[:] = set(single).intersection(names)
        yield from (Path(directory, name) for name in names if name.endswith(".py"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.stdout.write(json.dumps(census(Path(sys.argv[1]))))
