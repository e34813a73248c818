"""Generate the synchronous client from the asynchronous one.

    python tools/async_to_sync.py            writes the _sync beside every _async
    python tools/async_to_sync.py --check    fails if that would change anything

It removes `async` and `await`, and replaces NAMES in code, strings and comments. Two
marks control the rest, each after a statement, or on a line of its own before it:

    # async only           removes it, with its body, decorators and comments
    # sync: statement      replaces it by this statement; several marks, several lines
"""

from __future__ import annotations

import argparse
import io
import itertools
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenInfo
from typing import Final

SDK: Final = Path(__file__).resolve().parents[1]
BANNER: Final = "# Made from {} by tools/async_to_sync.py: edit that, not this.\n"

NAMES: Final = {
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncClient": "Client",
    "AsyncClientCursor": "ClientCursor",
    "AsyncConnection": "Connection",
    "AsyncConnectionPool": "ConnectionPool",
    "AsyncContextManager": "ContextManager",
    "AsyncCursor": "Cursor",
    "AsyncDurable": "Durable",
    "AsyncEngine": "Engine",
    "AsyncExitStack": "ExitStack",
    "AsyncWatchdogConnection": "WatchdogConnection",
    "AsyncIterable": "Iterable",
    "AsyncIterator": "Iterator",
    "AsyncOwnPool": "OwnPool",
    "AsyncPipeline": "Pipeline",
    "AsyncPlainClientCursor": "PlainClientCursor",
    "AsyncPlainCursor": "PlainCursor",
    "AsyncTaskHandle": "TaskHandle",
    "AsyncTaskStream": "TaskStream",
    "AsyncWaker": "Waker",
    "StopAsyncIteration": "StopIteration",
    "TaskContext": "SyncTaskContext",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "_async": "_sync",
    "acquired_within_async": "acquired_within",
    "aclose": "close",
    "aiter": "iter",
    "aiter_bytes": "iter_bytes",
    "anext": "next",
    "asynccontextmanager": "contextmanager",
    "asyncio.Event": "threading.Event",
    "asyncio.Lock": "threading.Lock",
    "asyncio.sleep": "time.sleep",
    "calls: Run": "calls: SyncRun",
    "enter_async_context": "enter_context",
    "execute_async": "execute",
    "import asyncio": "import asyncio\nimport threading\nimport time",  # ruff prunes
    "push_async_callback": "callback",
    "push_async_exit": "push",
    "set_within_async": "set_within",
    "start_async": "start",
}
# Awaitable[T] and Coroutine[Any, Any, T] become T: the number of arguments before T
WRAPPERS: Final = {"Awaitable": 0, "Coroutine": 2}

NAME: Final = re.compile(
    rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(NAMES, reverse=True)))})(?!\w)"
)
# in strings and comments, only in what looks like code: "to await it" is prose
QUOTED: Final = re.compile(r"\basync (?=(?:def|for|with) )|\bawait (?=[\w.]+[(\[])")
MARK: Final = re.compile(r"# (?:(async only)|sync: (.*))")
STANDIN: Final = "__sync_{}__"  # a placeholder for the verbatim text of a mark
TEXTS: Final = {"STRING", "COMMENT", "FSTRING_MIDDLE"}
BETWEEN: Final = {"COMMENT", "NL", "INDENT", "DEDENT", "ENDMARKER"}


def to_sync(source: str) -> str:
    """Return the synchronous form of a module, not yet formatted."""
    source, texts = _follow_marks(source)
    source = NAME.sub(lambda name: NAMES[name[0]], source)
    source = _without_keywords(source)
    for number, text in enumerate(texts):
        source = source.replace(STANDIN.format(number), text)
    return source


def _follow_marks(source: str) -> tuple[str, list[str]]:
    """Remove async-only statements, and replace marked ones by placeholders."""
    lines = dict(enumerate(io.StringIO(source), 1))
    tokens = _tokens(source)
    statements = list(_statements(tokens))
    dropped: set[int] = set()
    replaced: dict[range, str] = {}
    texts: list[str] = []
    for token in tokens:
        if not (mark := MARK.fullmatch(token.string)):
            continue
        row = token.start[0]
        rows = next(rows for rows in statements if rows.stop > row)
        dropped |= {row, *rows}
        if mark[1]:
            dropped.update(_whole(rows, statements, lines))
        else:
            standin = f"{_indent(lines[rows.start])}{STANDIN.format(len(texts))}\n"
            replaced[rows] = replaced.get(rows, "") + standin
            texts.append(mark[2])
    for rows, standins in replaced.items():
        lines[rows.start] = standins
        dropped.discard(rows.start)
    return "".join(lines[row] for row in lines if row not in dropped), texts


def _statements(tokens: list[TokenInfo]) -> Iterator[range]:
    """Yield the rows of every statement; of a compound one, those of its header."""
    start = None
    for token in tokens:
        if token.type == tokenize.NEWLINE and start is not None:
            yield range(start, token.start[0] + 1)
            start = None
        elif tokenize.tok_name[token.type] not in BETWEEN:
            start = start or token.start[0]


def _whole(header: range, statements: list[range], lines: dict[int, str]) -> range:
    """Return the rows of a statement with its body, decorators and comments."""
    indent = _indent(lines[header.start])
    first, last = header, header
    index = statements.index(header)
    for rows in statements[index + 1 :]:
        if len(_indent(lines[rows.start])) <= len(indent):
            break
        last = rows
    for rows in reversed(statements[:index]):
        if not lines[rows.start].startswith(f"{indent}@"):
            break
        first = rows
    start = first.start
    while lines.get(start - 1, "").startswith(f"{indent}#"):
        start -= 1
    return range(start, last.stop)


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _without_keywords(source: str) -> str:
    """Remove `async`, `await`, and the wrappers of awaitable types."""
    starts = [0, *itertools.accumulate(map(len, io.StringIO(source)))]
    tokens = _tokens(source)
    begins = [starts[token.start[0] - 1] + token.start[1] for token in tokens]
    edits: list[tuple[int, int, str]] = []
    for i, token in enumerate(tokens):
        end = begins[i] + len(token.string)
        if token.string in {"async", "await"}:
            edits.append((begins[i], begins[i + 1], ""))
        elif token.string in WRAPPERS and tokens[i + 1].string == "[":
            kept, closing = _argument(tokens, i + 1, WRAPPERS[token.string])
            edits.append((begins[i], begins[kept], ""))
            edits.append((begins[closing], begins[closing] + 1, ""))
        elif tokenize.tok_name[token.type] in TEXTS:
            edits.append((begins[i], end, QUOTED.sub("", source[begins[i] : end])))
    for begin, end, text in sorted(edits, reverse=True):
        source = source[:begin] + text + source[end:]
    return source


def _argument(tokens: list[TokenInfo], opening: int, before: int) -> tuple[int, int]:
    """Return the index of the argument after `before` others, and of its `]`."""
    depth, kept, i = 0, opening + 1, opening
    while True:
        depth += (tokens[i].string in {"[", "("}) - (tokens[i].string in {"]", ")"})
        if depth == 0:
            return kept, i
        if depth == 1 and tokens[i].string == "," and before > 0:
            before, kept = before - 1, i + 1
        i += 1


def _tokens(source: str) -> list[TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


def _tidy(source: str, path: Path) -> str:
    """Let ruff drop unused imports, sort the rest, and format."""
    for command in (["check", "--fix-only", "--exit-zero"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--quiet"]
        file = ["--config", str(SDK / "pyproject.toml"), "--stdin-filename", str(path)]
        source = subprocess.run(  # noqa: S603 - its own interpreter
            [*ruff, *file, "-"], input=source, stdout=-1, text=True, check=True
        ).stdout
    return source


def main() -> int:
    """Write the synchronous modules, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", nargs="?", type=Path, default=SDK / "src/durable")
    parser.add_argument("--check", action="store_true", help="write nothing, only fail")
    chosen = parser.parse_args()
    made: dict[Path, str | None] = {}
    for source in sorted(chosen.package.rglob("_async")):
        target = source.with_name("_sync")
        made |= dict.fromkeys(target.glob("*.py"))
        for module in sorted(source.glob("*.py")):
            path = target / module.name
            banner = BANNER.format(f"_async/{module.name}")
            made[path] = _tidy(banner + to_sync(module.read_text()), path)
    if not any(made.values()):
        parser.error(f"there is no _async in {chosen.package}")
    stale = [p for p in made if made[p] != (p.read_text() if p.exists() else None)]
    for path in stale:
        text = made[path]
        if chosen.check:
            print(f"{path} is out of date: run tools/async_to_sync.py")
        elif text is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return int(chosen.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
