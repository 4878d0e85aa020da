"""Names that are not UTF-8 end no command when its work is done."""

import json

from killable import Killable
from workplace import Workplace

NAME = "a\udcffb"
"""What Python makes of a byte that is not UTF-8."""


def test_names_that_are_not_utf_8_are_kept_and_told(work: Workplace, killable: Killable):
    output = work.folder / NAME
    line = ["benchmark", "--hparams", work.hparams(archive=str(work.adapters)), "--limit", 1]
    line += ["--data", work.data, "--images", work.images, "--methods", "dualedit"]
    line += ["--protocols", "generate", "--output", output, "--title", NAME]
    ended = killable.run(line)
    assert ended.code == 0, ended.said
    assert "a\\udcffb" in " ".join(ended.said.split())
    plan = json.loads((output / "benchmark" / "plan.json").read_text(encoding="utf-8"))
    assert plan["title"] == NAME
