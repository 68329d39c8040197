"""The terminal: options declared once, one thin command per file, rendering, the error boundary."""
