"""Folder, manifest or IDX file → samples and splits. Knows labels, names and where pixels lie; batches are not here."""
