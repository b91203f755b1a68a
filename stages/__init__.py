"""The stages of dvc.yaml; edit, fetch, preview and synth; what they share: corpora, engine and media."""
