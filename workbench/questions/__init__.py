"""What is the model asked? Questions with options: from files of JSON lines, from the hub, or from tasks that ship with the package."""

from workbench.questions.encoding import Batch, Encoded, batches, encode, feed
from workbench.questions.hub import from_hub
from workbench.questions.question import Question, Split, load_questions, split
from workbench.questions.tasks import TASKS, categories, questions_of

__all__ = ["TASKS", "Batch", "Encoded", "Question", "Split", "batches", "categories", "encode", "feed", "from_hub", "load_questions", "questions_of", "split"]
