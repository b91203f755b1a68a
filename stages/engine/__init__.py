"""What every stage stands on: outcomes, the sandbox, the cache, locks, parts."""
