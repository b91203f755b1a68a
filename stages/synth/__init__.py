"""A synthetic corpus with known ground truth: a photographed face that talks in sync with synthetic speech.

The face is NASA's portrait of Eileen Collins (public domain), which is part of the scikit-image wheel.
Nothing is downloaded and no model file is needed: the position of the mouth in the photograph is hard-coded.

Each clip comes with ``<clip>.truth.json``: the mouth opening, the time stamp and the barcode position of
each frame, and the audio offset. The barcode encodes the frame number.

Three coordinate systems are used, all with pixel centres at integers:
  photo     the 512 x 512 photograph; the constants below are in photo px
  portrait  the photograph enlarged ``PORTRAIT_SCALE`` times; mouth and barcode are drawn in it
  source    the frames of the clip
"""

from stages.synth.clip import make_clip
from stages.synth.corpus import make_corpus
from stages.synth.spec import ClipSpec, SynthError, SynthParams, Truth

__all__ = ["ClipSpec", "SynthError", "SynthParams", "Truth", "make_clip", "make_corpus"]
