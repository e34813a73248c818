"""Test utilities: servers, clocks, processes, waits."""

from __future__ import annotations
