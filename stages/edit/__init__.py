"""Edit a video: re-draw the mouth of the person in it to match another recording of speech."""
