"""Review of an audited table of bins by people: a page on 127.0.0.1, and Label Studio's JSON."""
