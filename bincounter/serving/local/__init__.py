"""Local server of an archive on 127.0.0.1, with a page for photos."""
