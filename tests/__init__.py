"""What `durable` promises, one file per promise."""

from __future__ import annotations
