"""The client: spawns tasks, waits for results, and operates queues."""
