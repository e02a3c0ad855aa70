"""Keyword spotting: a head on Whisper's embeddings of Speech Commands, the task of Flower's Whisper example."""

from tff_kit.tasks.keywords.task import CentralizedKeywordSpotting, KeywordSpotting

__all__ = ["CentralizedKeywordSpotting", "KeywordSpotting"]
