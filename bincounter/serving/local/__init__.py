"""The archive served on 127.0.0.1, with a page to drop photos on."""
