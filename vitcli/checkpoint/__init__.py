"""A name or a path becomes a model: read, verify, write; bundled weights; the Hub. Imports nothing on its own."""
