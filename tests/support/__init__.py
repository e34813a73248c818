"""What tests need and no user sees: servers, clocks, processes, patience."""

from __future__ import annotations
