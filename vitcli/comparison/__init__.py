"""Several models × several amounts of data → table and curves (paper, section 4.3, figures 3 and 4).

`compare` begins a study or goes on with one. `study` says what is to be done, `queue` who does it, `cells` how,
`contenders` which models there are, `results` what came out, `tables` in words, `report` in files.
"""
