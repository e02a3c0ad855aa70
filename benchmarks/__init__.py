"""What the figures in README come from."""

import os

# As tff_kit does, but before TensorFlow is imported here: no start-up messages, and the plain loops that it is compared with have
# the same kernels.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
