"""The engine beside a program that says what it promises, step by step."""
