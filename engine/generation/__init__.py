"""Writing on behind prompts under edits: tokens one step at a time, or whole texts."""

from engine.decoding import Greedy, Sample, Sampling, Stop, StopReason
from engine.generation.collected import Generated, Written, collected, complete
from engine.generation.stream import Step, Token, generate, never

__all__ = [
    "Generated",
    "Greedy",
    "Sample",
    "Sampling",
    "Step",
    "Stop",
    "StopReason",
    "Token",
    "Written",
    "collected",
    "complete",
    "generate",
    "never",
]
