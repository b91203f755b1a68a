"""The stages of dvc.yaml; `edit`, `fetch`, `preview`, `synth`; and what they share: corpora, engine, media."""
