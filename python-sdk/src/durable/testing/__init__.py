"""What helps to test tasks."""

from __future__ import annotations

from durable.testing.replay import check_replay

__all__ = ["check_replay"]
