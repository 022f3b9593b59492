"""Which engine, precision and number of threads: time and parity, measured in one run."""
