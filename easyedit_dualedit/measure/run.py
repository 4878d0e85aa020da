"""An evaluation run on disk: its settings, one JSON per case, the numbers at the end.

Every file is written whole or not at all, so a run can be stopped at any moment and continued.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.files import clear_parts, read_json, write_json
from easyedit_dualedit.measure.metrics import means, summary
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS, OF_SOME_RECORDS
from easyedit_dualedit.measure.target_split import TargetSplit, told

SETTINGS_FILE = "run.json"
METRICS_FILE = "metrics.json"
CASES_FOLDER = "cases"
QUERIES_FOLDER = "specificity"
"""Of a run: the queries drawn for it, a file for every few edits."""
PICTURES = "pictures"
"""Key of a case: digest of the pictures that it was made with."""


def clear_queries(folder: Path) -> None:
    """Remove the queries that were drawn for a run, so that they are drawn anew.

    Args:
        folder: of the run; one that holds none is left alone.
    """
    if (folder / SETTINGS_FILE).is_file():
        shutil.rmtree(folder / QUERIES_FOLDER, ignore_errors=True)


class Run:
    """The folder of one evaluation run."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        fresh: bool = False,
        shown: Mapping[int, str] | None = None,
    ):
        """Open or continue the run in a folder.

        Args:
            folder: made if it is not there.
            settings: plain values that decide the results; a run continues only under the same.
            fresh: remove the results of an earlier run first.
            shown: digest of the pictures that a case shows, by its index: a case that was stored
                with other pictures is made again.

        Raises:
            ConfigError: if the folder holds a run with other settings, or something else.
        """
        self.folder = folder
        self._shown = dict(shown or {})
        for place in (folder, folder / CASES_FOLDER):
            clear_parts(place)
        if fresh and (folder / SETTINGS_FILE).is_file():
            # The settings go last: as long as they are there, the folder is known to be a run.
            shutil.rmtree(folder / CASES_FOLDER, ignore_errors=True)
            for name in (METRICS_FILE, SETTINGS_FILE):
                (folder / name).unlink(missing_ok=True)
        settings = json.loads(json.dumps(settings))
        # Looked for first: another process may begin the run between the two.
        has_cases = (folder / CASES_FOLDER).exists()
        stored = read_json(folder / SETTINGS_FILE)
        if stored is None:
            if has_cases:
                raise ConfigError(
                    f"{folder} holds {CASES_FOLDER}/ but no {SETTINGS_FILE}; choose another --name"
                )
            write_json(folder / SETTINGS_FILE, settings)
        elif stored != settings:
            differing = "; ".join(_differences(stored, settings))
            raise ConfigError(
                f"{folder} holds a run with other settings: {differing}; choose another --name, or"
                " start anew with --fresh"
            )

    @staticmethod
    def holds(folder: Path, settings: Mapping[str, Any]) -> bool:
        """Return whether a folder holds a run with these settings."""
        stored = read_json(folder / SETTINGS_FILE)
        return stored is not None and stored == json.loads(json.dumps(settings))

    def case(self, index: int) -> dict[str, Any] | None:
        """Return a case that was stored earlier; None if there is none, or its pictures changed.

        Raises:
            DataError: if its file is damaged.
        """
        path = self._case_path(index)
        case = read_json(path)
        if case is None:
            return None
        if case.get("index", index) != index or not case.keys() - {PICTURES}:
            raise DataError(
                f"{path} is damaged (it holds no case); remove it to have it made again"
            )
        shown = case.pop(PICTURES, None)
        return case if shown in (None, self._shown.get(index, shown)) else None

    def store(self, index: int, case: Mapping[str, Any]) -> Path:
        """Write one case, and return its file."""
        shown = {PICTURES: self._shown[index]} if index in self._shown else {}
        path = self._case_path(index)
        write_json(path, {**case, **shown})
        return path

    def finish(
        self, cases: Sequence[Mapping[str, Any]], split: TargetSplit | str | None = None
    ) -> dict[str, Any]:
        """Write and return the numbers of all cases.

        Args:
            cases: what `case` returns of each record.
            split: which targets were seen in training, or why that is not known; None leaves it
                out.

        Returns:
            `{"methods": {name: {"protocols": {protocol: {metric: {mean, low, high, n}}}}}}`, in
            percent, of protocols that the cases have; with a split also `targets` (see
            `target_split.told`), and for each method `by_target` (see `TargetSplit.means`).
        """
        methods: dict[str, Any] = {}
        for name in cases[0]["methods"]:
            protocols = {}
            for protocol in EVALUATION_PROTOCOLS:
                values = [case["methods"][name]["values"][protocol] for case in cases]
                protocols[protocol] = {
                    metric: mean.to_dict() for metric, mean in summary(values).items()
                }
            for protocol in OF_SOME_RECORDS:
                some = [case["methods"][name]["values"].get(protocol) for case in cases]
                if any(some):
                    found = means([values for values in some if values])
                    protocols[protocol] = {metric: mean.to_dict() for metric, mean in found.items()}
            methods[name] = {"protocols": protocols}
            if isinstance(split, TargetSplit):
                methods[name]["by_target"] = split.means(
                    {case["index"]: case["methods"][name]["values"] for case in cases}
                )
        metrics: dict[str, Any] = {"methods": methods}
        if split is not None:
            metrics["targets"] = told(split)
        write_json(self.folder / METRICS_FILE, metrics)
        return metrics

    def _case_path(self, index: int) -> Path:
        return self.folder / CASES_FOLDER / f"{index:05d}.json"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], name: str = "") -> list[str]:
    """Return what differs between two mappings, those within them looked into."""
    told: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            told += _differences(old, new, f"{name}{key}.")
        elif old != new:
            told.append(f"{name}{key} was {old!r} and is {new!r}")
    return told
