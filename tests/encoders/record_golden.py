"""Record the golden vectors that ship: ``python -m tests.encoders.record_golden``.

Of the built-in encoders, and of seeded random builds of all rows that timm builds with fewer than 120 million parameters. Run it
again only when a row, the golden patches or timm's initialisation changes, and say so in the commit.
"""

from __future__ import annotations

import json

from spared_fm.encoders.builder import build
from spared_fm.encoders.golden import SHIPPED, record
from spared_fm.encoders.registry import BUILT_INS, Row, rows
from spared_fm.encoders.spec import EncoderSpec, resolve

MOST_PARAMETERS = 120_000_000
FLOOR = "timm:vit_small_patch16_224"


def names() -> list[str]:
    return [FLOOR, *(row.name for row in rows().values() if _ships(row))]


def spec_of(name: str) -> EncoderSpec:
    """With seeded random weights where there are any."""
    return resolve(name, None if name in BUILT_INS else "random")


def _ships(row: Row) -> bool:
    return row.loader == "builtin" or (row.loader == "timm" and row.parameters < MOST_PARAMETERS)


def main() -> None:
    found = {}
    for name in names():
        found[name] = [record(build(spec_of(name)))]
        print(name)
    SHIPPED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
