"""Download corpora, checked file by file."""
