"""A census of the standard library: a task with a child for each of its modules.

It is ordinary code. It survives `kill -9` because it does its work in steps: the result
of each step is saved, and a saved step does not run again.
"""

from __future__ import annotations

import ast
import platform
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Lock

from pydantic import BaseModel

from durable import Task, TaskContext
from durable.demo.ledger import Ledger, Page

__all__ = ["Approval", "Assignment", "Census", "Count", "CountModule", "Report"]


class Assignment(BaseModel):
    """The params of the census."""

    library: Path
    report: Path


class Module(BaseModel):
    """The params of a child: a top-level module or package."""

    library: Path
    name: str


class Outline(BaseModel):
    """The lines, functions and classes of one file."""

    lines: int
    functions: list[str]
    classes: list[str]


class Count(BaseModel):
    """The numbers of files, lines, functions and classes."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            files=self.files + other.files,
            lines=self.lines + other.lines,
            functions=self.functions + other.functions,
            classes=self.classes + other.classes,
        )


class Approval(BaseModel):
    """The payload of the event "approved"."""

    by: str


class Report(BaseModel):
    """The result of the census."""

    python: str
    approved_by: str
    total: Count
    modules: dict[str, Count]


class Census(Task[Assignment, Report]):
    """The parent: spawns a child for each module, then reports their counts."""

    async def run(self, assignment: Assignment, ctx: TaskContext[Ledger]) -> Report:
        """Spawn the children, join them, sleep, await approval, write the report."""
        page = ctx.state.page(ctx.task_id)
        names = await ctx.step("find", find_modules, assignment.library, page)

        modules = [Module(library=assignment.library, name=name) for name in names]
        children = await ctx.spawn_many("module", CountModule, modules)
        counts = await ctx.gather(*children)  # suspended, it holds no worker

        await ctx.sleep_for("rest", timedelta(seconds=1))  # a day would cost the same
        approval = await ctx.await_event("approved", as_type=Approval)

        report = Report(
            python=platform.python_version(),
            approved_by=approval.by,
            total=sum(counts, start=Count()),
            modules=dict(zip(names, counts, strict=True)),
        )
        await ctx.step("write", write_report, report, assignment.report, page)
        return report


class CountModule(Task[Module, Count]):
    """A child: counts one module, file by file."""

    async def run(self, module: Module, ctx: TaskContext[Ledger]) -> Count:
        """List the files, parse each, and count their definitions."""
        page = ctx.state.page(ctx.task_id)
        files = await ctx.step("list", list_files, module, page)
        outlines = [
            await ctx.step(f"parse {file}", parse, module.library, file, page)
            for file in files
        ]
        return await ctx.step("count", count, outlines, page)


# The steps: plain functions, which run in threads. Each writes a line to the ledger.

ONE_AT_A_TIME = Lock()  # `ast.parse` in several threads can fail in Python 3.11


def find_modules(library: Path, page: Page) -> list[str]:
    """Return the names of all top-level modules and packages written in Python."""
    page.write("find")
    return [
        name
        for name in sorted(sys.stdlib_module_names)
        if (library / f"{name}.py").exists() or (library / name).is_dir()
    ]


def list_files(module: Module, page: Page) -> list[str]:
    """Return the files of a module, relative to the library."""
    page.write("list")
    package = module.library / module.name
    files = sorted(package.rglob("*.py")) or [package.with_name(f"{module.name}.py")]
    return [file.relative_to(module.library).as_posix() for file in files]


def parse(library: Path, file: str, page: Page) -> Outline | None:
    """Return the definitions of a file; None if it does not parse, as test data may."""
    with ONE_AT_A_TIME:
        page.write(f"parse {file}")
        source = (library / file).read_bytes()
        try:
            nodes = list(walk(ast.parse(source)))
        except (SyntaxError, ValueError):
            return None
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return Outline(
        lines=len(source.splitlines()),
        functions=[node.name for node in nodes if isinstance(node, functions)],
        classes=[node.name for node in nodes if isinstance(node, ast.ClassDef)],
    )


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the descendants of a node, except expressions, which define nothing."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield child
            yield from walk(child)


def count(outlines: list[Outline | None], page: Page) -> Count:
    """Add up the files of a module."""
    page.write("count")
    parsed = [outline for outline in outlines if outline is not None]
    return Count(
        files=len(parsed),
        lines=sum(outline.lines for outline in parsed),
        functions=sum(len(outline.functions) for outline in parsed),
        classes=sum(len(outline.classes) for outline in parsed),
    )


def write_report(report: Report, path: Path, page: Page) -> None:
    """Write the report; it is idempotent."""
    page.write("write")
    path.write_text(report.model_dump_json(indent=2))
