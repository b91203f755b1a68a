"""The browser page of ``pipeline app``: its layout, its actions, the runs it offers, its visitors' files."""
