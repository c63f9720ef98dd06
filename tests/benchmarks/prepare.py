"""`recft prepare` of a log of 20 million interactions beside the same steps in pandas, integer ids and string ids.

    python tests/benchmarks/prepare.py --work /tmp/prepare            # about 3 GB of disk, 5 minutes; needs [bench]

The tables are made once under WORK: users, items and unix times without ratings, in no order, 1% of the rows once
more, items taken by a skewed popularity, and a catalogue of 50,000. Integer ids give a CSV of about 450 MB; string
ids (13 characters a user, 10 an item) one of about 720 MB.

The same steps are: read the CSV; set aside rows without a user, item or time, of items that the catalogue lacks, and
with times before 1990 or in the future; drop exact duplicates; sort by user and time; cut at two quantiles of time
(80%, 90%); write train, valid and test to Parquet and flush them to disk. pandas does just this, as its users would
who have read its chapter on large data: the columns' types are given (int32 and int64; Arrow-backed `str` for string
ids, for categories took longer and more memory), its reader is the faster of its two for the file (`--engine`),
boolean masks do the checks, pyarrow writes. recft's side is the verb `prepare` on a recipe, which does the same and
besides: hashes the input, keeps file order among equal times, tells row and reason of what it sets aside, checks
encoding, quoting and torn rows, writes one log with its numbered users and items, makes the records of every split
(histories and targets), audits them for leakage, counts the tokens of all item texts with the base's tokenizer, and
writes the card. All of that, and the imports of both sides, is in the times.

Each side runs in a process of its own, in turn; memory is the process's peak (VmHWM). recft's caches are empty at
every start. The check compares, for both kinds of ids, the rows of every split: their number and the SHA-256 of their
columns, sorted. The result goes to WORK/prepare.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _beside
import numpy as np
import polars as pl

USERS, ITEMS, ROWS = 500_000, 50_000, 20_000_000
FIRST, LAST = 1_640_995_200, 1_704_067_200
"""The years 2022 and 2023, in unix seconds."""
EARLIEST = ("1990-01-01", 631_152_000)
VALID, TEST = 0.1, 0.1
TARGET_RATIO, TARGET_BYTES = 2.5, 2 * 2**30
KINDS = ("integers", "strings")
SPLITS = ("train", "valid", "test")
LETTERS = np.frombuffer(b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789", np.uint8)
WORDS = "red,blue,steel,wooden,cotton,mug,lamp,kettle,茶杯,灯,kids,large,☕,🎁,set,of,six,with,lid"


def main() -> None:
    """Makes what is missing, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS, help="fewer for a quick look")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--engine", default="c", choices=["c", "pyarrow"], help="pandas' reader of CSV")
    parser.add_argument("--child", choices=["recft", "pandas", "same"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = given.work.resolve() / f"{given.rows}"
    if given.child:
        folder = work / given.kinds[0]
        said = of_pandas(folder, given.engine) if given.child == "pandas" else CHILDREN[given.child](folder)
        print(json.dumps({**said, "cpu_seconds": time.process_time()}))
        return
    rows: list[_beside.Row] = []
    facts: dict[str, Any] = {"interactions": given.rows, "users": USERS, "items": ITEMS}
    for kind in given.kinds:
        make(work / kind, given.rows, kind)
        runs = measured(kind, given)
        options = ["--work", str(given.work), "--rows", str(given.rows), "--kinds", kind]
        check = _beside.child(Path(__file__), "same", options)["splits"]
        print(f"{kind}: the same rows in every split: {check['same']}; {check['rows']}")
        facts[kind] = {"runs": runs, "check": check, "csv_bytes": (work / kind / "log.csv").stat().st_size}
        rows += table(kind, given.rows, runs)
    _beside.show(rows)
    facts["versions"] = _beside.versions("pandas", "pyarrow", "polars", "numpy")
    _beside.save(given.work / "prepare.json", rows, **facts)


def measured(kind: str, given: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What every run of each side says, the sides in turn."""
    runs: dict[str, list[dict[str, Any]]] = {"recft": [], "pandas": []}
    options = ["--work", str(given.work), "--rows", str(given.rows), "--kinds", kind, "--engine", given.engine]

    def turn(side: str) -> Callable[[], float]:
        def once() -> float:
            os.sync()
            runs[side].append(_beside.child(Path(__file__), side, options))
            return float(runs[side][-1]["seconds"])

        return once

    _beside.alternate({side: turn(side) for side in runs}, given.rounds)
    return runs


def table(kind: str, rows: int, runs: dict[str, list[dict[str, Any]]]) -> list[_beside.Row]:
    """Rows a second, and the highest peak of each side."""
    seconds = [[run["seconds"] for run in runs[side]] for side in ("recft", "pandas")]
    peaks = [max(run["peak_bytes"] for run in runs[side]) for side in ("recft", "pandas")]
    middle = [statistics.median(times) for times in seconds]
    used = [statistics.median(run["cpu_seconds"] for run in runs[side]) for side in ("recft", "pandas")]
    note = (
        f"{middle[0]:.1f} s ({used[0]:.1f} of CPU) beside {middle[1]:.1f} s ({used[1]:.1f} of CPU); "
        "recft's has records, audit, hashes, token counts, card besides"
    )
    fits = "met" if peaks[0] <= TARGET_BYTES else "missed"
    return [
        _beside.compared(f"prepare, {kind}", "rows/s", (rows, rows), (seconds[0], seconds[1]), TARGET_RATIO, note),
        _beside.Row(
            f"prepare, {kind}, peak memory",
            "GiB",
            peaks[0] / 2**30,
            peaks[1] / 2**30,
            note=f"at most {TARGET_BYTES / 2**30:g} GiB: {fits}",
        ),
    ]


def make(folder: Path, rows: int, kind: str) -> None:
    """Writes the log, the catalogue and the recipe, once."""
    if (folder / "recipe.yaml").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    once = rows - rows // 100
    activity = np.cumsum(rng.lognormal(0, 1, USERS))
    popularity = np.cumsum(1 / (np.arange(ITEMS) + 50.0))
    users = np.searchsorted(activity, rng.random(once) * activity[-1])
    items = rng.permutation(ITEMS)[np.searchsorted(popularity, rng.random(once) * popularity[-1])]
    times = rng.integers(FIRST, LAST, once)
    order = rng.permutation(np.r_[np.arange(once), rng.integers(0, once, rows - once)])
    user_ids, item_ids = ids(kind, USERS, 13, rng), ids(kind, ITEMS, 10, rng)
    log = pl.DataFrame({"user": user_ids[users[order]], "item": item_ids[items[order]], "time": times[order]})
    log.write_csv(folder / "log.csv")
    titles = [" ".join(rng.choice(WORDS.split(","), rng.integers(3, 10)).tolist()) for _ in range(ITEMS)]
    pl.DataFrame({"id": item_ids, "title": titles}).write_csv(folder / "items.csv")
    recipe = {
        "name": "big",
        "task": {"name": "next_item"},
        "data": {
            "items": {"path": "items.csv", "id": "id", "text": ["title"]},
            "interactions": {
                "path": "log.csv",
                "user": "user",
                "item": "item",
                "time": "time",
                "time_range": [EARLIEST[0], "2100-01-01"],
            },
            "split": {"by": "time", "valid": VALID, "test": TEST},
            "on_error": "quarantine",
        },
        "model": {"base": "minilm"},
        "method": {"name": "lora"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe, indent=2))


def ids(kind: str, count: int, width: int, rng: np.random.Generator) -> pl.Series:
    """So many different ids: shuffled numbers, or random letters and digits."""
    if kind == "integers":
        return pl.Series(rng.permutation(count) + 1)
    letters = LETTERS[rng.integers(0, len(LETTERS), (count, width))]
    return pl.Series([text.decode() for text in letters.reshape(-1).view(f"S{width}").tolist()])


def of_recft(folder: Path) -> dict[str, Any]:
    """The verb on the recipe, with empty caches."""
    import recft

    shutil.rmtree(folder / "recft", ignore_errors=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    card = recft.prepare(recft.Recipe.load(folder / "recipe.yaml"), out=folder / "recft").card
    return {"interactions": card["counts"]["interactions"]}


def of_pandas(folder: Path, engine: Any) -> dict[str, Any]:
    """The same steps in pandas."""
    import pandas as pd

    kind = "int32" if folder.name == "integers" else "str"
    log = pd.read_csv(folder / "log.csv", dtype={"user": kind, "item": kind, "time": "int64"}, engine=engine)
    catalogue = pd.read_csv(folder / "items.csv", usecols=["id"], dtype={"id": kind})
    sound = log["user"].notna() & log["item"].notna() & log["time"].notna()
    sound &= log["item"].isin(catalogue["id"])
    sound &= log["time"].between(EARLIEST[1], int(time.time()) + 86_400)
    aside = log[~sound]
    if len(aside):
        aside.to_csv(folder / "aside.csv", index=True)
        log = log[sound]
    log = log.drop_duplicates().sort_values(["user", "time"], ignore_index=True)
    cuts = log["time"].quantile([1 - VALID - TEST, 1 - TEST], interpolation="lower").tolist()
    parts = {
        "train": log["time"] <= cuts[0],
        "valid": (log["time"] > cuts[0]) & (log["time"] <= cuts[1]),
        "test": log["time"] > cuts[1],
    }
    (folder / "pandas").mkdir(exist_ok=True)
    for name, mask in parts.items():
        path = folder / "pandas" / f"{name}.parquet"
        log[mask].to_parquet(path, index=False)
        with path.open("rb+") as handle:
            os.fsync(handle.fileno())
    return {"interactions": len(log)}


def same(folder: Path) -> dict[str, Any]:
    """Whether both sides put the same rows into the same splits."""
    made = folder / "recft"
    users, items = (pl.read_parquet(made / f"{name}.parquet", columns=["id"])["id"] for name in ("users", "items"))
    log = pl.read_parquet(made / "interactions.parquet", columns=["user", "item", "time"])
    card = json.loads((made / "card.json").read_text())["split"]
    cuts = [-1, card["valid_cut"], card["test_cut"], 2**62]
    found: dict[str, dict[str, list[Any]]] = {}
    for name, after, until in zip(SPLITS, cuts[:-1], cuts[1:], strict=True):
        ours = log.filter(pl.col("time") > after, pl.col("time") <= until)
        theirs = pl.read_parquet(folder / "pandas" / f"{name}.parquet")
        numbers = [numbered(theirs["user"], users), numbered(theirs["item"], items)]
        theirs = pl.DataFrame({"user": numbers[0], "item": numbers[1], "time": theirs["time"]})
        found[name] = {"recft": digest(ours), "pandas": digest(theirs)}
    equal = all(part["recft"] == part["pandas"] for part in found.values())
    return {"splits": {"same": equal, "rows": {name: part["recft"][0] for name, part in found.items()}, **found}}


def numbered(values: pl.Series, known: pl.Series) -> pl.Series:
    """The place of each id among the known ones; an id that is not there fails."""
    places = known.to_frame("id").with_row_index("place")
    joined = values.cast(pl.String).to_frame("id").join(places, on="id", how="left", maintain_order="left")["place"]
    if joined.null_count():
        raise SystemExit(f"{joined.null_count()} ids that the other side does not know")
    return joined.cast(pl.Int32)


def digest(rows: pl.DataFrame) -> list[Any]:
    """The number of rows, and the SHA-256 of their columns once they are sorted."""
    rows = rows.sort("user", "item", "time")
    digested = hashlib.sha256()
    for name in rows.columns:
        digested.update(np.ascontiguousarray(rows[name].to_numpy()).data)
    return [rows.height, digested.hexdigest()]


CHILDREN: dict[str, Callable[[Path], dict[str, Any]]] = {"recft": of_recft, "same": same}

if __name__ == "__main__":
    main()
