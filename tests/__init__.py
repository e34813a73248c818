"""Tests of durable's promises, one file per promise."""

from __future__ import annotations
