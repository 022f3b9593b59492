"""Other servers of the same ensemble: each an app and a requirements file."""
