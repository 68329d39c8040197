"""What `vit inspect` found, as things to show: a table, sentences, every number, a figure. One exhibit an aspect.

The terminal, the HTML page, the files and `--json` all show the same exhibits. Models are the keys of a mapping, so one
model and two side by side are one case.
"""
