"""A checkpoint -> an archive -> an application that answers requests."""
