"""What ``stages.evaluate`` is made of: rows and cells of its table, what fills them, and what it means."""
