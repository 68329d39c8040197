"""File → pixels: find, decode, orient, resize, crop, normalise. One preprocessing for every command. No torch."""
