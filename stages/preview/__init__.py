"""Look into a dataset: a contact sheet of its clips, or one clip as video with the sound of its mels."""

from stages.preview.choice import clips_named, clips_spread
from stages.preview.sheet import write_sheet
from stages.preview.video import write_video

__all__ = ["clips_named", "clips_spread", "write_sheet", "write_video"]
