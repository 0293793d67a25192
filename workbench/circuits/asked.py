"""What can be asked of a model about a circuit, in one call of plain data? To find one on a task; to evaluate one that is given."""

from workbench.circuits.circuit import Circuit
from workbench.circuits.faithfulness import Faithfulness, evaluate
from workbench.circuits.finding import Search, find, unseen
from workbench.circuits.patching import Progress
from workbench.circuits.tasks import prepare
from workbench.models import HFModel


def find_on(
    model: HFModel, task: str, how: Search, *, items: int = 32, held_out: int = 32, by: str = "template", progress: Progress = lambda *_: None
) -> tuple[Circuit, list[str]]:
    """Make the prompts of a task, hold some `by` template or a fact out, search and evaluate: the circuit, and remarks worth reading. Raises as `find` does."""
    prepared, remarks = prepare(model, task, items + held_out, how.seed), []
    if by == "template" and len({item.template for item in prepared.items}) == 1:
        remarks.append("there is one template only: items are held out, not templates")
        by = "item"
    searched, kept = prepared.split(items / (items + held_out), by, how.seed)
    return find(model, searched, kept, how, progress), remarks


def evaluate_on(model: HFModel, circuit: Circuit, task: str | None, items: int, seed: int, metric: str | None) -> tuple[Faithfulness, int]:
    """Evaluate a circuit on new prompts of a task, its own by default: how faithful it is, and how many of the items it was not searched on."""
    circuit.check_model(model.card)
    data = unseen(prepare(model, task or circuit.task, items, seed), circuit)
    chosen = metric or (circuit.provenance.get("metric") if task is None else None)
    return evaluate(model, data, circuit.heads, seed=seed, metric=chosen), len(data)
