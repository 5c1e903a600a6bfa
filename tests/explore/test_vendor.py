import hashlib
import tomllib
from pathlib import Path

import spared_fm

STATIC = Path(spared_fm.__file__).parent / "explore" / "static"


def test_what_others_wrote_is_as_it_came_and_has_its_licence():
    listed = tomllib.loads((STATIC / "vendor" / "vendor.toml").read_text())
    digests = {name: digest for library in listed.values() for name, digest in library["files"].items()}
    present = {str(path.relative_to(STATIC / "vendor")) for path in (STATIC / "vendor").rglob("*") if path.is_file()}
    assert present == {*digests, "vendor.toml"}
    for name, digest in digests.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest, name
    for library in listed.values():
        assert library["licence"]
        assert any("LICENSE" in name for name in library["files"])


def test_the_page_asks_nothing_of_other_hosts_and_has_no_inline_code():
    page = (STATIC / "index.html").read_text()
    own = page + "".join(path.read_text() for path in [*STATIC.glob("*.js"), *STATIC.glob("*.css")])
    addresses = {line for line in own.split('"') if line.startswith(("http:", "https:", "//"))}
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of a language, not a place
    assert "<style" not in page
    assert 'style="' not in page
    assert "onclick" not in page
    assert all("src=" in tag.split(">")[0] for tag in page.split("<script")[1:])
