"""What sweeps and runs have found, to look at: charts, tables, one page."""
