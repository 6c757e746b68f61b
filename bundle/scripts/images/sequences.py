"""What the name of a file or of a series says about the sequence that it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from .formats import stem as stem_of

RULES: dict[str, str] = json.loads(Path(__file__).with_suffix(".json").read_text())
"""Sequences, and the regular expressions that name them, any case; the first that is found decides.

They know the usual series descriptions of scanners, BIDS suffixes and the names of BraTS' files. "mask" is no image.
T1 is T1, T1Gd or neither by what is said of contrast, see `sequence_of`.
"""

WITH_CONTRAST = "T1Gd"
EITHER = "T1 with and without contrast"
"""What a T1 is named as that may be the one or the other; no model takes it."""

_END = "(?![a-z])"
_KINDS = "mp2?rage|mpr|space|spc|vibe|flash|f?spgr|cube|vista|tirm|[tf]?se|tfe|ffe|blade|propeller|iso|[23]d"
"""What a name says of how an image was taken, whatever its sequence."""
_AGENT = "(?:gd(?:.?dtpa)?|gad(?:o[a-z]*|avist)?|km|ce|[ck]ontrast|enhanced)"
_GIVEN = (
    f"(?:post(?![^a-z]*(?:fossa|op|surg|treat|rt|proc|trauma))(?:[^a-z0-9]*(?:{_AGENT}|c){_END})?"
    f"|m?{_AGENT}|[+] ?(?:c|{_AGENT})|c ?[+]){_END}"
)
"""Words for an agent that was given; "ce" is no part of "space", nor "post" of "posterior"."""
_NOT_GIVEN = (
    f"(?<![a-z])(?:unenhanced|okm|non?e?[^a-z0-9]*(?:post[^a-z0-9]*)?{_AGENT}"
    "|(?:pre(?!.?op)|nati(?:v|ve|f)|before|vor|ohne|sans"
    "|(?:without|(?:w/|(?<![a-z0-9])w[^a-z0-9]?)o(?![0-9]))(?![^a-z]*(?:fs|fat|sat|mt)(?![a-z])))"
    f"(?:[^a-z0-9]*{_AGENT})?){_END}"
)
"""Words for none, or for the time before; "without" may also be said of the suppression of fat."""
_CONTRAST = (
    f"(?<=^.)w?{_GIVEN}|(?<=^.)c{_END}|(?=[+]){_GIVEN}"
    f"|(?<![a-z])(?:(?:with|w|mit|nach|and|fs|se)[^a-z0-9]+|{_KINDS}|se|fs|ax|tra|sag|cor)?{_GIVEN}"
)
"""What follows "t1", from its last letter on: "t1gd", "t1c" (but "t1_c" may be anything), "t1+c", "t1_gd", "t1_mprage_gd"."""
_BETWEEN = f"(?:[^a-z0-9]*(?:{_KINDS}|ax(?:ial)?|tra|sag|cor)(?![a-z0-9]))*[^a-z0-9]*$"
"""What may stand between a word for contrast and "t1"."""
_BEFORE = (
    f"(?<![a-z0-9])(?<!sub-)(?<!high )(?<!low )(?:(?:post[^a-z0-9]*{_AGENT}|gad(?:o[a-z]*|avist)?|[ck]ontrast|enhanced"
    f"|(?:gd|km|ce)(?= ))(?![a-z0-9])|c ?[+]){_BETWEEN}|[+] ?c(?![a-z0-9]){_BETWEEN}"
)
"""What comes before "t1", as words: "post gad ax t1", "+c ax t1", "ce t1"."""
_DOUBTFUL_BEFORE = (
    f"(?:(?:^| )post (?!(?:fossa|op|surg|treat|rt|proc|trauma))|(?<![a-z0-9])(?<!sub-)(?:gd|km|ce)[^a-z0-9 ]){_BETWEEN}"
)
"""May be said of contrast: "ax post t1", but in a file's name "p1_post_t1" it is a session; or are initials, "km_t1"."""
_TARGET = (
    "(?P<of>(?:sub|ses|acq|ce|run|rec|dir|echo|part|desc|res)-[a-z0-9]+)_space-(?:t1w|t2w|flair|mni[a-z0-9]*|orig|individual)"
    "|[-_ .](?:(?:in|to|onto)[-_ .]|reg(?:istered)?(?:[-_ .]?to)?[-_ .]?)(?=t1|t2|flair|mprage|pd)[a-z0-9]+"
)
"""What says to which image another one was registered: BIDS' "space-T1w" (SPACE is a sequence too), "_to_T1", "_in_FLAIR"."""
_CT1 = "(?:^|[-_ .])ct1$"
"""T1 with contrast in some data sets; elsewhere in a name it is who knows what, such as a patient."""
_BIDS = "(?<![a-z])ce-(?!no)[a-z0-9]+"

PLANES = "(?<![a-z])(ax(ial)?|tra(nsversal)?|sag(ittal)?|cor(onal)?)(?![a-z])"
"""What a name says of the plane of the slices, any case."""


def sequence_of(name: str) -> str | None:
    """The sequence that a file's name or a series' description speaks of, by `RULES`; None if it speaks of none.

    A T1 is `WITH_CONTRAST` by a word behind "T1" that says so, by BIDS' "ce-gadolinium", or, where those say nothing, by a
    word before it; and `EITHER` if other words say the contrary, or the word may not be said of contrast.

    Args:
        name: such as "sub-01_T1w", "BraTS-GLI-00000-000-t2f" or "t2_tirm_tra_dark-fluid"; of a path, give the file's name.
    """
    name = _of_itself(name)
    if _without_ct1(name) is not None:
        return WITH_CONTRAST
    sequence = _ruled(name)
    return _by_contrast(name.lower()) if sequence == "T1" else sequence


def _ruled(name: str) -> str | None:
    """The first of `RULES` that a name, or a part of it, meets."""
    return next((sequence for sequence, rule in RULES.items() if re.search(rule, name, re.IGNORECASE)), None)


def _by_contrast(name: str) -> str:
    named = list(re.finditer(RULES["T1"], name))  # twice in "mprage_t1c"
    if re.search(_BIDS, name):
        return WITH_CONTRAST
    before = name[: named[0].start()]
    for words, contrast in (*((name[t1.end() - 1 :], _CONTRAST) for t1 in named), (before, _BEFORE)):
        said = re.sub(_NOT_GIVEN, "|", words)
        given = re.search(contrast, said)
        # "with and without contrast", "w/wo"
        if "|" in said and (given or re.search("(?<![a-z0-9])w(?:ith)?(?:[^a-z|]|and|or)*[|]", said)):
            return EITHER
        if given or "|" in said:
            return WITH_CONTRAST if given else "T1"
    return EITHER if re.search(_DOUBTFUL_BEFORE, before) else "T1"


def _of_itself(name: str) -> str:
    """A name without what it says of the image to which this one was registered, unless that is all it says."""
    own = re.sub(_TARGET, lambda found: found["of"] or "", name, flags=re.IGNORECASE)
    return own if _ruled(own) else name


def _without_ct1(name: str) -> str | None:
    """What is before `_CT1`; None where a name does not end so, or names another sequence too."""
    found = re.search(_CT1, name, re.IGNORECASE)
    before = name[: found.start()] if found else ""
    return before if found and not _ruled(before) else None


@lru_cache(maxsize=1 << 16)
def named_as(name: str, channels: tuple[str, ...] = ()) -> tuple[str | None, str]:
    """The sequence that an image file is named as, and its name without that, the same for all sequences of a study.

    Where a file's name says nothing, its folder's does if that is one word: "FLAIR", "T1w", "labelsTr".

    Args:
        name: its path in the folder of the studies.
        channels: of the models; those that are no MR sequences are the last words of a name.
    """
    path = Path(name)
    stem = stem_of(path.name)
    for channel in channels:
        words = "[-_. ]".join(map(re.escape, channel.split()))
        last = None if channel in (*RULES, WITH_CONTRAST) else re.search(f"(?:^|[-_. ]){words}$", stem, re.IGNORECASE)
        if last:
            return channel, str(path.parent / stem[: last.start()])
    sequence = sequence_of(stem)
    if sequence:
        return sequence, str(path.parent / _rest(_of_itself(stem), sequence))
    folder = path.parent.name
    # "lesion" may well be a folder of patients
    spoken = re.fullmatch("(?!lesion)[a-z0-9]+", folder, re.IGNORECASE)
    sequence = sequence_of(folder) if spoken else None
    return sequence, str(path.parent.parent / stem) if sequence else str(path.parent / stem)


def _rest(stem: str, sequence: str) -> str:
    """A name without what it says of sequences, of how they were taken and of planes; ids that are attached to such stay."""
    if (before := _without_ct1(stem)) is not None:
        return before
    rule = RULES["T1" if sequence in (WITH_CONTRAST, EITHER) else sequence]
    found = re.search(rule, stem, re.IGNORECASE) if rule == RULES["T1"] else None
    if found:
        # of other sequences, "pre" and "post" may be a session
        head, said = stem[: found.start()], stem[found.end() - 1 :]
        said = re.sub(f"{_CONTRAST}|{_NOT_GIVEN}", "_", said, flags=re.IGNORECASE)
        head = re.sub(
            _NOT_GIVEN, lambda none: "_" if re.search(_AGENT, none[0].lower()) else none[0], head, flags=re.IGNORECASE
        )
        head = re.sub(f"{_BIDS}|{_BEFORE}", "_", head, flags=re.IGNORECASE)
        stem = head + stem[found.start() : found.end() - 1] + said
    # what lies between two words of a rule may be an id
    words = (
        f"(?:{rule.replace('.*', '[a-z]*')})(?:[wn]{_END})?",
        f"(?<![a-z0-9])t[12](?![0-9])(?:[wnf]{_END})?|(?:(?<![a-z0-9])[23]d)?flair|dark.?fluid",
        f"(?<![a-z0-9])(?:{_KINDS})(?![a-z0-9])",
        PLANES,
    )
    rest = re.sub(f"(?:[-_. ]*(?:{'|'.join(words)}))+[-_. ]*", "_", stem, flags=re.IGNORECASE)
    return re.sub("[-_. ]{2,}", "_", rest).strip("-_. ")


class Candidate(NamedTuple):
    """An image of a study: what it is called, its number in the study (0 of a file), and where it is."""

    name: str
    number: int
    place: str


def in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Images of one sequence, the one to take first.

    That is the first by number, then by name, which is not called sagittal or coronal.
    """

    def key(candidate: Candidate) -> tuple[bool, int, str]:
        plane = re.search(PLANES, candidate.name, re.IGNORECASE)
        return plane is not None and plane[0].lower()[0] in "sc", candidate.number, candidate.name

    return sorted(candidates, key=key)


def choice(sequence: str, candidates: list[Candidate]) -> str:
    """What is said of a sequence that a study has several of, in the order of `in_order`."""
    others = ", ".join(candidate.name for candidate in candidates[1:])
    return f"Of {len(candidates)} {sequence} images of this study, {candidates[0].name} was taken and not {others}."
