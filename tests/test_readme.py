"""README.md: what it tells to try can be tried."""

import re

from main import parse_options

from helpers import PROJECT


def test_each_trick_can_be_taken_out() -> None:
    page = (PROJECT / "README.md").read_text(encoding="utf-8").partition("## What each trick brings")[2]
    changes = re.findall(r"^\| [^|]+ \| ([^|]*`[^|]*) \|", page, re.MULTILINE)
    assert len(changes) > 5
    for change in changes:
        replacements = re.findall(r"`([^`]+)` → `([^`]+)`", change)
        options = re.findall(r"`(--[^`]+)`", change)
        assert replacements or options
        if replacements:
            path = PROJECT / re.match(r"`([^`]+)`: ", change)[1]
            code = path.read_text(encoding="utf-8")
            for old, new in replacements:
                assert old in code
                code = code.replace(old, new)
            compile(code, path.name, "exec")
        for option in options:
            parse_options(option.split())
