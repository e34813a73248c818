"""Connections: addresses, sessions, pools, drivers, the schema and notifications."""
