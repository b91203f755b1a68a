"""A made corpus whose truth is known: a photographed face that talks, in step with made speech.

The face is NASA's portrait of Eileen Collins (public domain), which scikit-image carries in its
wheel. Nothing is fetched and no model file is needed: where the mouth lies in that photograph is
written down here.

Each clip comes with `<clip>.truth.json`: how open the mouth is in each frame, when the frame is
shown, how late the sound was planted, and where in the frame a small barcode with the frame's
number lies.

Three spaces, all with pixel centres at integers:
  photo     the 512 x 512 photograph; the constants below are in it
  portrait  the same, `PORTRAIT_SCALE` times larger; mouth and barcode are drawn in it
  source    the clip's own frames
"""

from stages.synth.barcode import read_counter
from stages.synth.clip import make_clip
from stages.synth.corpus import MadeClip, clip_place, make_corpus
from stages.synth.curves import speech_opening
from stages.synth.face import Mouth, draw_portrait
from stages.synth.lag import measure_lag_seconds
from stages.synth.looks import draw_look
from stages.synth.spec import SAMPLE_RATE, ClipSpec, SynthError, SynthParams, Truth

__all__ = [
    "SAMPLE_RATE", "ClipSpec", "MadeClip", "Mouth", "SynthError", "SynthParams", "Truth", "clip_place",
    "draw_look", "draw_portrait", "make_clip", "make_corpus", "measure_lag_seconds", "read_counter",
    "speech_opening",
]  # fmt: skip
