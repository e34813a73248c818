"""A running task: its context, its runtime, and what it records and replays."""
