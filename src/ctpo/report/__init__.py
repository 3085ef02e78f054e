"""Reports of runs: one HTML page, and the same figures as pictures. Everything is read from the files of the runs."""
