"""Vision Transformers from the command line and from Python. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
