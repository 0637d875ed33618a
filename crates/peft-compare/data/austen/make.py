#!/usr/bin/env python3
"""Makes the texts of this folder from Debian's package r-cran-janeaustenr, version 1.0.0-1.

    apt-get download r-cran-janeaustenr
    python3 make.py r-cran-janeaustenr_1.0.0-1_all.deb

Needs dpkg-deb and Python 3.8, nothing else. README.md says what is changed, and the digests it prints.
"""

import gzip
import hashlib
import io
import pathlib
import re
import struct
import subprocess
import sys
import tarfile
import zlib

DATA = "./usr/lib/R/site-library/janeaustenr/data/Rdata"
BOOKS = {
    "sensesensibility": "sense-and-sensibility",
    "prideprejudice": "pride-and-prejudice",
    "mansfieldpark": "mansfield-park",
    "emma": "emma",
    "northangerabbey": "northanger-abbey",
    "persuasion": "persuasion",
}


class Reader:
    """Reads the part of R's XDR serialization (format versions 2 and 3) that the package's data use."""

    REFERENCE, NIL, SYMBOL, PAIRS, CHARACTERS = 255, 254, 1, 2, 9
    INTEGERS, STRINGS, LIST = (10, 13), 16, 19
    HAS_ATTRIBUTES, HAS_TAG = 1 << 9, 1 << 10
    UTF8, ASCII = 1 << 3, 1 << 6

    def __init__(self, content):
        self.content, self.at, self.symbols = content, 2, []
        if content[:2] != b"X\n":
            raise ValueError("not an XDR serialization")
        version, _written_by, _readable_by = (self.integer() for _ in range(3))
        if version == 3:
            self.take(self.integer())  # the name of the native encoding

    def take(self, length):
        self.at += length
        return self.content[self.at - length : self.at]

    def integer(self):
        return struct.unpack(">i", self.take(4))[0]

    def pairs(self, flags):
        """A pairlist as a dictionary; its end has another type."""
        found = {}
        while flags & 255 == self.PAIRS:
            name = self.item()[0] if flags & self.HAS_TAG else None
            found[name] = self.item()[0]
            flags = self.integer()
        return found

    def item(self):
        """The next value, with its attributes."""
        flags = self.integer()
        kind = flags & 255
        if kind == self.NIL:
            return None, {}
        if kind == self.REFERENCE:
            return self.symbols[(flags >> 8) - 1], {}
        if kind == self.SYMBOL:
            self.symbols.append(self.item()[0])
            return self.symbols[-1], {}
        if kind == self.PAIRS:
            return self.pairs(flags), {}
        length = self.integer()
        if kind == self.CHARACTERS:
            encoding = {self.UTF8: "utf-8", self.ASCII: "ascii"}[flags >> 12 & (self.UTF8 | self.ASCII)]
            return self.take(length).decode(encoding), {}
        if kind in self.INTEGERS:
            value = [self.integer() for _ in range(length)]
        elif kind == self.STRINGS:
            value = [self.item()[0] for _ in range(length)]
        elif kind == self.LIST:
            value = [self.item() for _ in range(length)]
        else:
            raise ValueError(f"type {kind} at byte {self.at}")
        attributes = self.pairs(self.integer()) if flags & self.HAS_ATTRIBUTES else {}
        return value, attributes


def attribute(value, attributes, name):
    """The element of a named list."""
    return value[attributes["names"].index(name)]


def books(package):
    """The lines of each novel in the package."""
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        index = gzip.decompress(archive.extractfile(DATA + ".rdx").read())
        base = archive.extractfile(DATA + ".rdb").read()
    variables, names = attribute(*Reader(index).item(), "variables")
    for (place, _), name in zip(variables, names["names"]):
        start, length = place
        # Four bytes say how long the value is, then it follows, compressed.
        yield name, Reader(zlib.decompress(base[start + 4 : start + length])).item()[0]


# What no novelist wrote: notes of printers and editors, and rows of asterisks.
EDITORIAL = re.compile(
    r"\[End volume one|\(End of volume one|\[At this point in the first and second editions"
    r"|A NOTE ON THE TEXT|Northanger Abbey was written in 1797|[* ]+$"
)
FIRST = re.compile(r"VOLUME I$|CHAPTER|Chapter|ADVERTISEMENT")


def paragraphs(lines):
    """The text, one paragraph a line, with an empty line between two."""
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", "\n".join(lines))]
    while not FIRST.match(blocks[0]):
        del blocks[0]  # the title page
    kept = [block.replace("_", "") for block in blocks if block and not EDITORIAL.match(block)]
    return "\n\n".join(kept) + "\n"


def main():
    here = pathlib.Path(__file__).parent
    found = dict(books(sys.argv[1]))
    for name, file in BOOKS.items():
        text = paragraphs(found[name]).encode()
        (here / f"{file}.txt.gz").write_bytes(gzip.compress(text, 9, mtime=0))
        chapters = len(re.findall(rb"(?im)^chapter \w+$", text))
        print(f"| `{file}.txt.gz` | {len(text.decode()):,} | {len(text.split()):,} | {chapters} |"
              f" `{hashlib.sha256(text).hexdigest()}` |")


main()
