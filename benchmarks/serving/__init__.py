"""The service beside other servers of the same ensemble, and beside the limits of the machine."""
