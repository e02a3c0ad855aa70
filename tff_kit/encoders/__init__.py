"""How a tensor becomes small: encoding stages for `tensor_encoding`, and the names they go by. Knows nothing of TFF."""

from tff_kit.encoders.auto import AutoStage
from tff_kit.encoders.codec import BroadcastCodec, MeanCodec
from tff_kit.encoders.eden import EdenStage
from tff_kit.encoders.entropy import EntropyCodingStage
from tff_kit.encoders.low_rank import LowRankStage
from tff_kit.encoders.message import PayloadError
from tff_kit.encoders.packing import BitpackingStage
from tff_kit.encoders.quantization import StepQuantizationStage, UniformQuantizationStage
from tff_kit.encoders.rate_control import RateControlStage
from tff_kit.encoders.registry import add_stage
from tff_kit.encoders.rice import RiceCodingStage
from tff_kit.encoders.rotation import RotationStage
from tff_kit.encoders.size import payload_bits
from tff_kit.encoders.sparsification import RandomKStage, TopKStage
from tff_kit.encoders.spec import THRESHOLD, Spec, SpecError, build_broadcast_encoder_fn, build_mean_encoder_fn, parse_spec

__all__ = [
    "THRESHOLD",
    "AutoStage",
    "BitpackingStage",
    "BroadcastCodec",
    "EdenStage",
    "EntropyCodingStage",
    "LowRankStage",
    "MeanCodec",
    "PayloadError",
    "RandomKStage",
    "RateControlStage",
    "RiceCodingStage",
    "RotationStage",
    "Spec",
    "SpecError",
    "StepQuantizationStage",
    "TopKStage",
    "UniformQuantizationStage",
    "add_stage",
    "build_broadcast_encoder_fn",
    "build_mean_encoder_fn",
    "parse_spec",
    "payload_bits",
]
