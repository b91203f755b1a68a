"""The mark of a file whose mouths a network has drawn: that it is so, for machines and for people.

IPTC's property "Digital Source Type" says how a medium came to be. Its term for a recording of which a model
has drawn a part is "edited using generative AI", ``compositeWithTrainedAlgorithmicMedia``. Where it stands
depends on the container:

    .mp4         an XMP packet in a box ``uuid`` at the end of the file (XMP specification, part 3)
    .mov         an XMP packet in ``moov/udta/XMP_``, which FFmpeg writes
    .mkv         tags, as Matroska has no place for XMP

In each of them the container's comment, which players show, says it in words. A mark is the same for every
file of one version of redub, so the same edit gives the same bytes.
"""

from __future__ import annotations

import struct
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DIGITAL_SOURCE_TYPE = f"{SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia"
COMMENT = "AI: the lower face in this video was re-drawn by redub, with a trained model, to match the speech"
XMP_BOX = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes
MATROSKA_TAG = "DIGITAL_SOURCE_TYPE"


def make_xmp() -> str:
    """The XMP packet: Digital Source Type, description, and the software."""
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   <Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{COMMENT}</rdf:li></rdf:Alt></dc:description>
   <xmp:CreatorTool>redub {version("redub")}</xmp:CreatorTool>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def make_tags(muxer: str) -> dict[str, str]:
    """The container's metadata that make up the mark, by the name of FFmpeg's muxer: mp4, mov, matroska.

    They are set before the file's header is written.
    """
    tags = {"comment": COMMENT}
    if muxer == "mov":
        tags["xmp"] = make_xmp()
    if muxer == "matroska":
        tags[MATROSKA_TAG] = DIGITAL_SOURCE_TYPE
    return tags


def append_mark(path: Path, muxer: str) -> None:
    """Add to a complete file what the muxer could not: the XMP packet of an mp4.

    It comes last, so no offset in the file changes.
    """
    if muxer == "mp4":
        content = XMP_BOX + make_xmp().encode()
        with path.open("ab") as file:
            file.write(struct.pack(">I4s", 8 + len(content), b"uuid") + content)
