"""What every stage is built on: the stage contract, outcomes, the sandbox, the cache, parts and locks."""
