"""Files made to break the readers: a harness that watches them, generators, and a test for each kind of file.

One input again, with its traceback: `python -m tests.hostile images 4711`.
"""
