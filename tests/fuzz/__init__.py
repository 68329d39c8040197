"""Damaged files fed to the commands, thousands of them, each in a process of its own: `python -m tests.fuzz --help`.

`engine` runs one command line and judges how it ended; `damage` changes bytes, JSON and TOML; every other module knows
one kind of file. What may never happen is listed in `engine.verdict`.
"""
