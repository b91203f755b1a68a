"""The page of ``pipeline app``: what is on it, what it does, the runs it offers, the files of who visits."""
