"""Models behind HTTP: a page to try them with, and the same answers for programs."""
