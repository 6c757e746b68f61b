"""The tables of documents, from what the benchmarks wrote: no number in them is typed.

    python benchmarks/tables.py [--check true]

A table stands between ``<!-- table: FILE KIND -->`` and ``<!-- end -->`` in a document; FILE lies in benchmarks, KIND is one of
`KINDS`. Where there is no such file, a sentence says so. "evaluated" in the place of FILE is what `evaluate.json` wrote, and
KIND is one of `evaluated.TABLES` then. `check` changes nothing and fails where something would change; a test does that too.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fire
from evaluated import OURS, TABLES, cells

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "benchmarks/README.md", *(f"bundle/docs/{name}.md" for name in ("README", "brats", "chest")))
MARKED = re.compile(r"(<!-- table: (\S+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "pixel_ap": "pixel AP",
    "dice_threshold": "pooled Dice, threshold of validation",
    "dice_labels": "... threshold without masks",
    "dice_oracle": "... oracle",
    "dice_threshold_volume": "Dice a volume",
    "aupro": "AUPRO, FPR to .3",
    "aupimo": "AUPIMO, FPR .0001 to .01",
    "lesions_found": "lesions found",
    "false_lesions": "false lesions a volume",
    "image_auroc": "image AUROC",
    "healthy_area": "false pixels a healthy slice",
    "seconds": "seconds a slice",
}
SHORT = {"pixel_ap": "pixel AP", "dice_threshold": "Dice", "image_auroc": "image AUROC", "aupimo": "AUPIMO"}
BOUND = "the student's network, taught by masks"
"""Not weakly supervised, so it stands apart, at the top, in italics."""


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in (heading, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])


def cell(name: str, value: Any, whole: bool) -> str:
    """A value as a table has it: with its interval or without, false pixels and lesions with one digit."""
    if value in (None, ""):
        return ""
    if not isinstance(value, str):
        return f"{value:g}"
    number = value.split(" ")[0]
    return f"{float(number):.1f}" if name in ("healthy_area", "false_lesions") else value if whole else number


def named(method: str) -> str:
    """A row's name, the bound's in italics."""
    return f"*{method}*" if method == BOUND else method


def of_rows(record: dict[str, Any], most: bool) -> str:
    """The rows on all slices, or on the subset, the best pixel AP first, the bound on top."""
    where = "all" if most else "subset"
    rows = [r for r in record["rows"] if r["where"] == where]
    rows.sort(key=lambda r: (r["method"] != BOUND, -float(r["pixel_ap"].split()[0])))
    shown = {name: title for name, title in COLUMNS.items() if any(name in r for r in rows)}
    cells = [[named(r["method"]), *(cell(n, r.get(n), most) for n in shown)] for r in rows]
    return table(["method", *shown.values()], cells)


def difference(values: list[float] | None) -> str:
    """A difference with its interval."""
    if values is None:
        return ""
    signed = [f"{v:+.3f}".replace("0.", ".") if abs(v) >= 0.0005 else ".000" for v in values]
    return f"{signed[0]} ({signed[1]} to {signed[2]})"


def of_differences(record: dict[str, Any], where: str) -> str:
    """Paired differences on all slices or on the subset."""
    found = record[where]["differences"]
    shown = [m for m in SHORT if any(m in of_pair for of_pair in found.values())]
    rows = [[name, *(difference(of_pair.get(m)) for m in shown)] for name, of_pair in found.items()]
    return table(["difference", *(SHORT[m] for m in shown)], rows)


def of_sizes(record: dict[str, Any]) -> str:
    """The mean Dice of slices by the pixels of their lesion."""
    found = record["all"]["dice_by_lesion_pixels"]
    sizes = list(next(iter(found.values())))
    counts = ["slices", *(str(next(iter(found.values()))[size]["slices"]) for size in sizes)]
    rows = [
        [named(m), *("" if d[s]["dice"] is None else f"{d[s]['dice']:.2f}" for s in sizes)] for m, d in found.items()
    ]
    return table(["mean Dice by lesion pixels", *sizes], [counts, *rows])


def of_scaling(record: dict[str, Any]) -> str:
    """The default's time and memory by the number of slices."""
    found = record["default_by_number_of_slices"]
    rows = [
        [title, *(f"{found[n][name]:g}" for n in found)]
        for name, title in (("seconds", "seconds a slice"), ("memory", "peak memory, MiB"))
    ]
    return table(["slices", *found], rows)


def of_tuning(record: dict[str, Any]) -> str:
    """What was tried on validation, what it gave, and for what is trained what ten times the images give then."""
    few, images = (record[f"images_of_{what}_of_each_rival"] for what in ("tuning", "training"))
    rows = []
    for name, found in record["tuned"].items():
        if "best" in found:
            for way, tried in found["pixel_ap"].items():
                values = ", ".join(f"{setting.split(', ', 1)[1]}: {v:.3f}" for setting, v in tried.items())
                rows.append([f"{name}, read as {way}", values, found["best"][way].split(", ", 1)[1]])
        else:
            values = ", ".join(f"{_setting(one['setting'])}: {one['pixel_ap']:.3f}" for one in found["tried"])
            chosen = found["chosen"]
            if values:
                values = f"{few:,} images: {values}; {images:,}: {chosen['pixel_ap']:.3f}"
            elif chosen["setting"]:
                values = f"{images:,} images: {chosen['pixel_ap']:.3f}"
            else:
                values = f"{chosen['pixel_ap']:.3f}"
            reading = f"{chosen['polarity']}, median {chosen['median_size']}, score by {chosen['score']}"
            rows.append([name, values, ", ".join(filter(None, [_setting(chosen["setting"]), reading]))])
    return table(["algorithm", "pixel AP on validation", "chosen"], rows)


def _setting(setting: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def of_speed(record: dict[str, Any]) -> str:
    """What each change gives."""
    seconds, quality = record["seconds_a_slice"], record["pixel_ap_on_validation"]
    faster, slower = record["times_as_fast_as_the_one_before"], record["times_as_slow_as_the_default"]
    rows = []
    for name, values in seconds.items():
        if name in faster:
            ratio = ", ".join(f"{v:.2f}" for v in faster[name]) + " times as fast as the one before"
        elif name in slower:
            ratio = ", ".join(f"{v:.2f}" for v in slower[name]) + " times the default's time"
        else:
            ratio = ""
        ap = f"{quality[name]:.3f}" if name in quality else ""
        rows.append([name, ", ".join(f"{v:.3g}" for v in values), ratio, ap])
    return table(["way", "seconds a slice, each turn", "each turn", "pixel AP on validation"], rows)


def of_seeds(record: dict[str, Any]) -> str:
    """Each seed's values, and their spread."""
    shown = list(record["spread"])
    rows = [[f"seed {seed}", *(f"{found[m]:.3f}" for m in shown)] for seed, found in record["seeds"].items()]
    spread = record["spread"]
    rows.append(["mean", *(f"{spread[m]['mean']:.3f}" for m in shown)])
    rows.append(["standard deviation", *(f"{spread[m]['standard_deviation']:.3f}" for m in shown)])
    titles = COLUMNS | {"dice_threshold": "pooled Dice, threshold without masks"}
    return table(["training", *(titles[m] for m in shown)], rows)


def of_stability(record: dict[str, Any]) -> str:
    """How much the marked volume changes, by what changes the scan."""
    found = record["change of the marked volume"]
    rows = [
        [name, f"{v['volumes']}", f"{100 * v['median']:.0f} %", f"{100 * v['most']:.0f} %"] for name, v in found.items()
    ]
    return table(["change of the scan", "scans", "the marked volume changes by: median", "most"], rows)


def of_baseline(record: dict[str, Any]) -> str:
    """From an evaluation's results.json, the default less the best baseline, inside the foreground."""
    found = record["test"]["foreground"]["difference to the best baseline"]
    numbers = "{patients} patients, {slices} slices".format_map(record["test"])
    row = [
        f"{'ours, default' if found['of'] == OURS else found['of']} - {found['to']}",
        *(difference(found.get(m)) for m in ("pixel_ap", "dice_threshold", "image_auroc")),
    ]
    return table([numbers, *(SHORT[m] for m in ("pixel_ap", "dice_threshold", "image_auroc"))], [row])


def of_groups(rows: list[dict[str, str]]) -> str:
    """What an evaluation says of groups, as it wrote it; a column with nothing in it is left out."""
    shown = [name for name in rows[0] if any(row[name] for row in rows)]
    head, *columns = shown
    cells = [[row[name].replace("|", r"\|") for name in shown] for row in rows]
    return table([head.split(" (")[0], *columns], cells)


def of_few(rows: list[dict[str, str]]) -> str:
    """What `chest.py` says of the maps of all algorithms, on the images that all of them saw."""
    columns = ("pixel AP", "pointing game", "boxes found", "image AUROC")
    fewest = min({row["map"].rpartition(" (")[2] for row in rows}, key=lambda text: int(text.split()[0]))
    shown = [row for row in rows if row["map"].endswith(f"({fewest}") and ", both (" not in row["map"]]
    cells = [[row["map"].removesuffix(f" ({fewest}").replace("|", r"\|"), *(row[c] for c in columns)] for row in shown]
    return table([fewest.rstrip(")"), *columns], cells)


def of_counterparts(rows: list[dict[str, str]]) -> str:
    """What `chest.py` says of counterparts, as it wrote it."""
    return table(rows[0], (row.values() for row in rows))


BRAINS = {
    "TCGA-LGG, validation, which chose": ("validation", ["TCGA-LGG, FLAIR"]),
    "TCGA-LGG, test": ("test", ["TCGA-LGG, FLAIR"]),
    "others: old people, multiple sclerosis, a tumour": ("test", ["elderly, FLAIR", "ms, FLAIR", "tumour, FLAIR"]),
}
"""The rows of `of_brains`: the part of the record, and its sources."""


def of_brains(record: dict[str, Any]) -> str:
    """How near the light network's brains in FLAIR are to HD-BET's."""
    rows = []
    for name, (part, sources) in BRAINS.items():
        found = [record[part][source] for source in sources]
        dice = [short(f["dice"]["mean"]) + f" ({short(f['dice']['least'])})" * (f["volumes"] > 1) for f in found]
        inside = [short(share) for f in found for share in f.get("lesion voxels inside, mean", {}).values()]
        rows.append([name, *(", ".join(cells) for cells in ([str(f["volumes"]) for f in found], dice, inside))])
    heading = ("FLAIR", "volumes", "Dice to HD-BET, mean (least)", "lesion voxels inside: HD-BET, light network")
    return table(heading, rows)


def short(value: float) -> str:
    """A share with three digits behind the point, and nothing before it."""
    return f"{value:.3f}".removeprefix("0")


KINDS: dict[str, Callable[[Any], str]] = {
    "all": lambda record: of_rows(record, True),
    "subset": lambda record: of_rows(record, False),
    "differences": lambda record: of_differences(record, "all"),
    "subset_differences": lambda record: of_differences(record, "subset"),
    "together": lambda record: of_differences(record, "together"),
    "sizes": of_sizes,
    "scaling": of_scaling,
    "tuning": of_tuning,
    "speed": of_speed,
    "seeds": of_seeds,
    "stability": of_stability,
    "baseline": of_baseline,
    "groups": of_groups,
    "few": of_few,
    "counterparts": of_counterparts,
    "brains": of_brains,
}


def rendered(text: str, folder: Path = ROOT / "benchmarks") -> str:
    """A document with its tables as the records in `folder` have them."""

    def made(match: re.Match[str]) -> str:
        path = folder / match[2]
        if match[2] == "evaluated":
            of_kind = TABLES[match[3]]
            content = table([of_kind.heading, *of_kind.columns], cells(of_kind, folder))
        elif not path.is_file():
            content = f"`{match[2]}` was not measured yet."
        else:
            text = path.read_text("utf-8")
            record = list(csv.DictReader(io.StringIO(text))) if path.suffix == ".csv" else json.loads(text)
            content = KINDS[match[3]](record)
        return f"{match[1]}{content}\n{match[4]}"

    return MARKED.sub(made, text)


def tables(check: bool = False) -> None:
    """Write the tables of all documents; see the module."""
    for name in DOCUMENTS:
        path = ROOT / name
        before = path.read_text("utf-8")
        after = rendered(before)
        if after != before and check:
            raise SystemExit(f"{name}: its tables differ from the records; run python benchmarks/tables.py.")
        if after != before:
            path.write_text(after, "utf-8")
            print(f"{name}: written.")


if __name__ == "__main__":
    fire.Fire(tables)
