"""Open media files and find the streams that a player plays. Files are untrusted: use the sandbox."""

from __future__ import annotations

import errno
from pathlib import Path

import av
import av.container
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.video.stream import VideoStream

from shards.files import open_file
from stages.engine.outcome import Drop

# Demuxers that read one file and nothing else: no playlists, which could name other files.
DEMUXERS = "flv,mpeg,mpegvideo,mpegts,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,ogg,mxf,dv,rm,nut"
# Also formats that hold audio only. Like DEMUXERS, these read one file and nothing else.
AUDIO_DEMUXERS = f"{DEMUXERS},wav,w64,aiff,caf,au,mp3,aac,ac3,eac3,flac,amr"

# First bytes of still pictures and animations: FFmpeg's own message for them is "Invalid argument".
PICTURE_HEADS = (
    (b"\x89PNG\r\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
# Brands in the first box of an MP4 file that holds pictures, which FFmpeg would read as video.
PICTURE_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}
HEAD_BYTES = 16


def open_media(path: Path, *, demuxers: str = DEMUXERS, kind: str = "video") -> av.container.InputContainer:
    """Open a local file without access to any other file or host. Raises Drop if no demuxer reads it."""
    if (picture := _read_picture_format(path)) is not None:
        raise Drop("not_media", f"is a picture ({picture}), expected {kind}")
    options = {"protocol_whitelist": "file", "format_whitelist": demuxers}
    try:
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.FFmpegError as err:
        raise Drop("not_media", f"cannot be opened as {kind} ({err.strerror})") from err


def open_audio(path: Path) -> av.container.InputContainer:
    """Open a local audio or video file. Raises Drop when it is neither."""
    return open_media(path, demuxers=AUDIO_DEMUXERS, kind="sound")


def _read_picture_format(path: Path) -> str | None:
    """The format of a still picture, by its first bytes; None for other files.

    Raises Drop for what is not a regular file: opening a pipe would wait for ever.
    """
    try:
        with open_file(path) as file:
            head = file.read(HEAD_BYTES)
    except OSError as err:
        if err.errno == errno.EINVAL:
            raise Drop("not_regular", f"{err.strerror}") from err
        raise Drop("unreadable", f"cannot be read ({err.strerror})") from err
    if head[4:8] == b"ftyp":
        return PICTURE_BRANDS.get(head[8:12])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return next((name for start, name in PICTURE_HEADS if head.startswith(start)), None)


def find_video_stream(container: av.container.InputContainer) -> VideoStream:
    """The stream that a player shows. Raises Drop when there is none; a cover picture is not video."""
    best = container.streams.best("video")
    if not isinstance(best, VideoStream) or best.codec_context is None:
        raise Drop("no_video", "has no video stream")
    if best.disposition & av.stream.Disposition.attached_pic:
        raise Drop("no_video", "has a cover picture but no video stream")
    if not best.codec_context.is_open:  # it is open already after a seek
        best.thread_type = "NONE"
        # Else a picture keeps columns that its coding crops off on the left, for the sake of alignment.
        best.codec_context.flags |= Flags.unaligned
    return best


def find_audio_stream(container: av.container.InputContainer) -> AudioStream:
    """The stream that a player plays with the picture. Raises Drop when there is none."""
    # Of a broadcast with several programmes, that of the picture's own one.
    best = container.streams.best("audio", related=container.streams.best("video"))
    if not isinstance(best, AudioStream) or best.codec_context is None:
        raise Drop("no_audio", "has no sound")
    return best
