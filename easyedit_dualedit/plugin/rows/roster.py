"""The rows of the benchmark that are EasyEdit's own methods."""

import hashlib
from dataclasses import replace

from easyedit_dualedit.measure.contender import Contender
from easyedit_dualedit.plugin.host import easyedit_folder, is_available
from easyedit_dualedit.plugin.registry import register
from easyedit_dualedit.plugin.rows.grace import grace
from easyedit_dualedit.plugin.rows.ike import ike
from easyedit_dualedit.plugin.rows.lora import lora
from easyedit_dualedit.plugin.rows.mend import mend
from easyedit_dualedit.plugin.rows.serac import serac
from easyedit_dualedit.plugin.rows.wise import wise

_EDITORS = {"LoRA": lora, "WISE": wise, "GRACE": grace, "IKE": ike}
"""Name in EasyEdit's registry of editors -> what makes the row."""


def easyedit_contenders() -> list[Contender]:
    """Return every multimodal method of the EasyEdit that is installed; none without EasyEdit.

    Raises:
        EasyEditNotFoundError: if there is one, but it cannot be imported.
    """
    if not is_available():
        return []
    host = register()
    identity = {"easyedit": easyedit_version()}
    makers = [mend, serac, *(make for name, make in _EDITORS.items() if name in host.editors)]
    rows = [make(host) for make in makers]
    return [replace(row, identity={**identity, **row.identity}) for row in rows]


def easyedit_version() -> str:
    """Return the edition and a hash of the sources, which have no version; or "none".

    Nothing of EasyEdit is imported, which takes seconds.
    """
    folder = easyedit_folder()
    if folder is None:
        return "none"
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    registry = folder / "util" / "alg_dict.py"
    is_master = registry.is_file() and "MULTIMODAL_DS_DICT" in registry.read_text(encoding="utf-8")
    return f"{'master' if is_master else 'pypi'}, sources {digest.hexdigest()[:12]}"
