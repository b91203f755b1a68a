"""One module per stage of dvc.yaml, and what they share: corpora, media, parts, the sandbox."""
