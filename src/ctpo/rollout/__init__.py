"""Multi-turn generation with tool calls: exact tokens, masks and log-probs."""

from ctpo.extras import require

require("ctpo.rollout", "train", "transformers")

from ctpo.rollout.local.engine import TransformersEngine
from ctpo.rollout.records import Rollout, ToolCall
from ctpo.rollout.remote.endpoint import Endpoint
from ctpo.rollout.remote.engine import EndpointEngine
from ctpo.rollout.remote.vllm import VLLMEngine
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import ToolRunner
from ctpo.rollout.turns import Answer, Partner, Turn

__all__ = [
    "Answer",
    "Endpoint",
    "EndpointEngine",
    "Partner",
    "Rollout",
    "Sampling",
    "ToolCall",
    "ToolRunner",
    "TransformersEngine",
    "Turn",
    "VLLMEngine",
]
