"""Commands and entry points; the top layer, which may import all other packages."""
