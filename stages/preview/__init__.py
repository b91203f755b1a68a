"""Preview a dataset: a contact sheet of its clips, or one clip as a video with audio made from its mels."""

from stages.preview.selection import select_clips, spread_clips
from stages.preview.sheet import write_sheet
from stages.preview.video import write_video

__all__ = ["select_clips", "spread_clips", "write_sheet", "write_video"]
