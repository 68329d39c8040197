"""Results → pictures and self-contained pages. Knows no models, no torch, no terminal."""
