"""Stage 7: generate the clips of a split with their own or another clip's speech."""
