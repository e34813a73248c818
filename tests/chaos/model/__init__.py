"""Compare the engine with a program that specifies it, step by step."""
