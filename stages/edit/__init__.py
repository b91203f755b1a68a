"""Edit a video: re-draw its mouth to match another recording of speech."""
