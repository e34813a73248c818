"""Output of the demo: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from typing import Self

from rich.box import ROUNDED
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from durable.demo import records
from durable.demo.proof import Claim

__all__ = ["Show"]

PLAIN_SECONDS = 2.0  # between two lines of progress, without a terminal


class Show:
    """Prints lines above a progress bar."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._started = time.monotonic()
        self._printed_at = 0.0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("census"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("modules, {task.fields[steps]:,} steps saved"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._census = self._bar.add_task("census", total=None, steps=0)

    def __enter__(self) -> Self:
        python = platform.python_version()
        self.console.print(
            f"[bold]A census of Python {python}'s standard library, killed halfway[/]"
        )
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print one line, with the seconds since the start."""
        seconds = time.monotonic() - self._started
        line = f"[dim]{seconds:5.1f} s[/]  {escape(text)}"
        self.console.print(line, style=style, soft_wrap=True)

    def progress(self, now: records.Progress) -> None:
        """Update the bar, or print the progress now and then."""
        self._bar.update(
            self._census, total=now.modules or None, completed=now.done, steps=now.steps
        )
        is_too_soon = time.monotonic() < self._printed_at + PLAIN_SECONDS
        if self.console.is_terminal or is_too_soon or not now.steps:
            return
        self._printed_at = time.monotonic()
        self.say(f"{now.done} of {now.modules} modules, {now.steps:,} steps saved")

    def summary(self, claims: Sequence[Claim], twice: Sequence[str]) -> None:
        """Print the claims, and the steps that ran twice."""
        good, bad = ("ok", "NO") if self.console.options.ascii_only else ("✓", "✗")
        table = Table(box=ROUNDED, title="The proof", title_style="bold")
        table.add_column()
        table.add_column("claim", no_wrap=True)
        table.add_column("evidence")
        for claim in claims:
            mark = f"[green]{good}[/]" if claim.holds else f"[bold red]{bad}[/]"
            table.add_row(mark, claim.text, escape(claim.because))
        self.console.print()
        self.console.print(table)
        if twice:
            self.console.print(
                f"[dim]Between effect and checkpoint when the kill fell, "
                f"so run twice: {escape(', '.join(twice))}.[/]"
            )
        failed = [claim for claim in claims if not claim.holds]
        seconds = time.monotonic() - self._started
        if failed:
            self.console.print(f"[bold red]{len(failed)} of them did not hold.[/]")
        else:
            self.console.print(f"[bold green]All of it held[/], in {seconds:.0f} s.")
