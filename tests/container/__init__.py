"""Postgres in a container, without a registry."""

from __future__ import annotations
