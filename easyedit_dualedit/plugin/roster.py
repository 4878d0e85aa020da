"""The rows of the benchmark that are EasyEdit's own methods."""

import hashlib
from dataclasses import replace

from easyedit_dualedit.methods import Contender
from easyedit_dualedit.plugin.baselines import baselines
from easyedit_dualedit.plugin.host import Host, is_available
from easyedit_dualedit.plugin.registry import register
from easyedit_dualedit.plugin.serac import serac
from easyedit_dualedit.plugin.trained_baselines import mend


def easyedit_contenders() -> list[Contender]:
    """Return every multimodal method of the EasyEdit that is installed; none without EasyEdit.

    Raises:
        EasyEditNotFoundError: if there is one, but it cannot be imported.
    """
    if not is_available():
        return []
    host = register()
    identity = {"easyedit": easyedit_version()}
    every = [mend(host), serac(host), *baselines(host)]
    return [replace(contender, identity={**identity, **contender.identity}) for contender in every]


def easyedit_version() -> str:
    """Return the edition and a hash of its sources, which have no version; or "none"."""
    return _describe(register()) if is_available() else "none"


def _describe(host: Host) -> str:
    digest = hashlib.sha256()
    for path in sorted(host.folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{host.edition}, sources {digest.hexdigest()[:12]}"
