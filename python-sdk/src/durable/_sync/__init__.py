# Made from _async/__init__.py by tools/async_to_sync.py: edit that, not this.
"""What comes in two colours, written once: `_sync` is made from this."""
