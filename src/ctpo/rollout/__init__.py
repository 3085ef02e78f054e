"""Multi-turn generation with tool calls: exact tokens, masks and log-probs."""

from ctpo.rollout.endpoint import Endpoint
from ctpo.rollout.engine import TransformersEngine
from ctpo.rollout.records import Rollout, ToolCall
from ctpo.rollout.remote import EndpointEngine
from ctpo.rollout.tools import ToolRunner
from ctpo.rollout.vllm import VLLMEngine

__all__ = [
    "Endpoint",
    "EndpointEngine",
    "Rollout",
    "ToolCall",
    "ToolRunner",
    "TransformersEngine",
    "VLLMEngine",
]
