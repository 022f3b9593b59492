"""The Open Inference Protocol v2 without its transport: what is asked, and what is answered."""

from service.oip.answers import metadata, offered, write_answer
from service.oip.questions import Question, read_question

__all__ = ["Question", "metadata", "offered", "read_question", "write_answer"]
