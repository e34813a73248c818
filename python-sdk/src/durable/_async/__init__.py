"""What comes in two colours, written once: `_sync` is made from this."""
