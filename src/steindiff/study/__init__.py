"""The study: testbeds × solvers × grids × NFE × corrections, resumable cell by cell."""
