"""The entropy coder. `docs/format.md` specifies its bytes; `stage.py` is where to begin to read.

stage       the encoding stage: chooses one of three coders
rows        codes a matrix by how large its rows and columns are
elements    codes integers one by one
tuples      codes several integers as one symbol
schedule    which symbols of `elements` the coder takes at the same time
classes     numbers as classes, which are coded, and bypass bits, which are copied
codebook    tuples, their frequencies and their places among the slots
tables      tables of frequencies
rans        the coder itself: symbols and frequencies to bits
header      the fields in front of each part
fields      numbers of different widths, one behind another
graphs      graphs that many callers share
"""

from tff_kit.encoders.entropy.stage import EntropyCodingStage, decode_integers, encode_integers

__all__ = ["EntropyCodingStage", "decode_integers", "encode_integers"]
