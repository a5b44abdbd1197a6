"""Pages and tables for people: report.html, data.html, ``bincounter compare``."""
