"""Several models × several amounts of data → table and curves (paper, section 4.3, figures 3 and 4).

`study` says what is to be done, `queue` who does it, `contenders` which models there are, `results` what came out,
`tables` in words, `report` in files. How a cell is trained and scored is given by whoever calls: nothing here knows
about training.
"""
