"""The questions of ComprehendEdit's two metrics, by name: the samples nearest to an edit.

An edit to one sample may mend its neighbours (knowledge generalisation index, KGI) or spoil them
(knowledge preservation index, KPI): arXiv 2412.12821.
"""

from collections.abc import Mapping

from easyedit_dualedit.data.comprehend_edit import Nearest
from easyedit_dualedit.model.inputs import Query

GENERALISATION = "knowledge_generalisation"
PRESERVATION = "knowledge_preservation"

WRONG = "nearest_wrong"
RIGHT = "nearest_right"


def nearest_questions(nearest: Nearest | None) -> dict[str, Query]:
    """Return the questions about the samples nearest to an edit, by name."""
    if nearest is None:
        return {}
    groups = {WRONG: nearest.wrong, RIGHT: nearest.right}
    return {
        f"{kind}_{place}": query
        for kind, queries in groups.items()
        for place, query in enumerate(queries)
    }


def of_kind(questions: Mapping[str, Query], kind: str) -> dict[str, Query]:
    """Return the questions about samples of one kind: `WRONG` or `RIGHT`."""
    return {name: query for name, query in questions.items() if name.startswith(f"{kind}_")}
