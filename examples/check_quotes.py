#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that what pages quote of a file stands there: whole lines, one after the other, but for their indentation.

usage: check_quotes.py ROOT PAGE...     a quote is a fenced block below the line <!-- from: PATH -->, PATH under ROOT
"""

import pathlib
import re
import sys

QUOTE = re.compile(r"^<!-- from: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def lines(text):
    """The lines without their indentation, as one text."""
    return "\n" + "".join(line.strip() + "\n" for line in text.splitlines())


def main():
    """Looks for every quote. Returns the exit status."""
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    root, quotes, failures = pathlib.Path(sys.argv[1]), 0, 0
    for page in sys.argv[2:]:
        for path, quote in QUOTE.findall(pathlib.Path(page).read_text(encoding="utf-8")):
            quotes += 1
            if lines(quote) not in lines((root / path).read_text(encoding="utf-8")):
                failures += 1
                print(f"FAILED: {page} quotes what {path} does not say:\n{quote}")
    print(f"{quotes} quotes, {failures} of them wrong")
    return 1 if failures or quotes == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
