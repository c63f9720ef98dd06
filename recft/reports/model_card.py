"""A model card: what an export is, how to serve it, how good it is and where its limits lie, for people and the hub.

Everything in it comes from what the run and the export know. What is not known is said to be unknown.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from recft.exports._base import Serve
from recft.models.base import PUBLISHED
from recft.reports import reading, tables
from recft.reports._markdown import fenced, plain_text, table
from recft.reports._reads import how_it_reads
from recft.reports._words import SLICES, claims, what_was_tuned
from recft.reports.certificates import certificate
from recft.reports.sheets import Sheet, number

__all__ = ["model_card"]

MOST_SLICES, MOST_SERVED = 30, 20
FEW_RECORDS = 100
MUCH_CUT = 0.01
UNTRIED = "Not tried by recft's tests: compare a few scores with those of `certificate/rows.parquet` first."
UNSTATED = "not stated: find out before you publish"

LIBRARIES = {"PEFT": "peft", "ONNX Runtime": "onnx", "llama.cpp": "gguf"}
"""The hub's names of engines that it calls otherwise than people do."""

PIPELINES = {
    "embedding": "sentence-similarity",
    "classifier": "text-classification",
    "answers": "text-classification",
    "likelihood": "text-generation",
}
NAMES_FILES = ("path", "valid", "test", "base", "start_from", "synonyms")
"""Keys of a recipe whose values are files."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def model_card(
    description: Mapping[str, Any],
    report: Mapping[str, Any] | None,
    card: Mapping[str, Any],
    recipe_yaml: str,
    licences: Mapping[str, str],
    serves: Sequence[Serve],
) -> str:
    """The card in Markdown, with the front matter that the hub reads.

    Args:
        description: what recft-export.json holds, its certificate included.
        report: of the last `eval` of the test split, this task's part; None where there was none.
        card: the data card.
        recipe_yaml: the resolved recipe.
        licences: of `base` and `data`; what is not stated is missing.
        serves: how the artefact is served, the folder's name in place.
    """
    sections = [
        ("What it is", _what(description)),
        ("How text becomes numbers", how_it_reads(description["serving"], description.get("task") or {})),
        ("How to serve it", _serving(serves, str(description["base"]["model"]["base"]))),
        ("How good it is", _scores(report, description)),
        ("How close it is to the tuned model", _certificate(description)),
        ("Data", _data(description, card)),
        ("Limits", _limits(description, report, card)),
        ("Licence", _licences(licences)),
        ("How to verify it", _verify()),
        ("Recipe", _recipe(recipe_yaml)),
    ]
    head = [_front_matter(description, licences), f"# {plain_text(description.get('name', 'model'))}\n"]
    return "\n".join([*head, *(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections)])


def _front_matter(description: Mapping[str, Any], licences: Mapping[str, str]) -> str:
    from ruamel.yaml import YAML

    model, serving = description["base"]["model"], description["serving"]
    base, licence = PUBLISHED.get(model["base"], model["base"]), licences.get("base")
    engine = str((description.get("certificate") or {}).get("engine") or "transformers")
    facts: dict[str, Any] = {}
    # A folder of this machine is no name that the hub knows.
    facts |= {"base_model": base} if HUB_ID.fullmatch(base) else {}
    if licence:
        is_id = LICENCE_ID.fullmatch(licence) is not None
        facts |= {"license": licence} if is_id else {"license": "other", "license_name": licence}
    facts["pipeline_tag"] = PIPELINES.get(serving["head"], "text-classification")
    facts["library_name"] = LIBRARIES.get(engine, engine.lower().replace(" ", "-"))
    tags = ("recft", serving["task"], (description.get("method") or {}).get("name"), description.get("target"))
    facts["tags"] = [str(tag) for tag in dict.fromkeys(tags) if tag]
    yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    yaml.dump(facts, stream)
    return f"---\n{stream.getvalue()}---\n"


def _what(description: Mapping[str, Any]) -> Iterator[str]:
    model, method, onto = description["base"]["model"], description.get("method") or {}, description.get("onto") or {}
    target, dtype = description.get("target", "?"), description.get("dtype", "")
    bits = model.get("quantization", "none")
    base = _name(str(model["base"]))
    base = f"{base} ({PUBLISHED[base]})" if base in PUBLISHED else base
    yield (
        f"{plain_text(base)}, tuned with {method.get('name', '?')} for the task {description['serving']['task']} "
        f"and exported as `{target}`. recft {description.get('recft', '')} made it.\n"
    )
    weights = onto.get("weights", "")
    over = {
        "original": "the base's weights as published",
        "dequantized": f"the base's weights as the adapter saw them ({bits}, read back into float32)"
        if bits != "none"
        else "the base's weights",
    }
    rows = [
        ("base", base + (f", revision {model['revision']}" if model.get("revision") else "")),
        ("base, SHA-256", str(description["base"].get("hash", "-"))),
        ("tuned over", "unquantized weights" if bits == "none" else f"weights quantized to {bits}"),
        ("method", _method(method)),
        ("written in", str(dtype or "-")),
        ("onto", over.get(weights, weights) + (f": {onto['reason']}" if onto.get("reason") else "")),
        ("adapter, SHA-256", str(description.get("adapter_sha256", ""))),
        ("recipe, SHA-256", str(description.get("recipe_sha256", ""))),
    ]
    yield table(Sheet(("fact", "value"), [row for row in rows if row[1] not in ("", "-")], left=2))


def _method(method: Mapping[str, Any]) -> str:
    """A method and what was set of it.

    >>> _method({"name": "lora", "rank": 8, "dora": True, "alpha": None, "rslora": False})
    'lora: rank 8, dora'
    """
    said = {key: value for key, value in method.items() if value not in (None, False, "") and key != "name"}
    words = [key if value is True else f"{key} {number(value)}" for key, value in said.items()]
    return f"{method.get('name', '?')}: {', '.join(words).replace('_', ' ')}" if words else str(method.get("name", "?"))


def _serving(serves: Sequence[Serve], base: str) -> Iterator[str]:
    taken = [serve for serve in serves if not serve.refused][:MOST_SERVED]
    refused = [serve for serve in serves if serve.refused][:MOST_SERVED]
    for serve in taken:
        yield f"### {plain_text(serve.engine)}\n"
        yield fenced(serve.lines.replace(base, _name(base)), serve.language)
        if not serve.tried:
            yield f"{UNTRIED}\n"
    if refused:
        yield "### Engines that do not take it\n"
        yield from (f"- **{plain_text(serve.engine)}**: {plain_text(serve.refused)}" for serve in refused)
        yield ""


def _scores(report: Mapping[str, Any] | None, description: Mapping[str, Any]) -> Iterator[str]:
    if not report:
        yield (
            "Not measured on the test split when this was exported. `recft eval RUN`, then the same `recft export` "
            "with `--force`, fills this section.\n"
        )
        return
    run = report.get("run") or {}
    run = {**run, "base": _name(str(run["base"]))} if run.get("base") else run
    whole = {"name": description.get("name", "run"), **report, "run": run}
    yield plain_text(what_was_tuned(whole, report))
    yield "These are the tuned run's scores; the next section says how close this artefact comes to it.\n"
    yield from (f"- **{claim.verdict}.** {plain_text(claim.text)}" for claim in claims(report))
    yield ""
    sheet = tables.scores(_short(whole))
    notes = [f"Protocol: {note}." for note in sheet.notes]
    yield table(replace(sheet, title="", columns=("row", *sheet.columns[1:]), notes=notes))
    for metric in reading.metrics_of(report):
        words, way = reading.summary_of(metric), "higher" if reading.higher_is_better(metric) else "lower"
        yield f"- `{metric}`: {words}; {way} is better" if words else f"- `{metric}`"
    yield ""
    if paired := _main_pairs(report):
        yield table(tables.differences(paired))
    if found := report.get("fusion"):
        weights = ", ".join(f"{name} {number(value)}" for name, value in (found.get("weights") or {}).items())
        yield f"`fused` is the weighted sum of the model's scores and classic ones: {plain_text(weights)}.\n"
    yield from _slices(report)
    if (sheet := tables.robustness(report)).rows:
        yield "### With spoilt texts\n"
        yield table(sheet)
    if (sheet := tables.calibration(report)).rows:
        yield "### Probabilities\n"
        yield table(sheet)


def _short(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with base, tuned, fused and of the classic rows the best alone."""
    best, beside = reading.best_classic(report), report.get("beside") or ()
    baselines = {k: v for k, v in (report.get("baselines") or {}).items() if k == best or k in beside}
    # Marked as the best: it is the best of all that were scored, though it stands alone here.
    named = {f"{name} (best classic)" if name == best else name: row for name, row in baselines.items()}
    ci = {f"{name} (best classic)" if name == best else name: row for name, row in (report.get("ci") or {}).items()}
    return {**report, "baselines": named, "ci": ci}


def _main_pairs(report: Mapping[str, Any]) -> dict[str, Any]:
    """The paired differences between the models and the best classic row."""
    kept = {"base", "tuned", "fused", "fused_without_model", reading.best_classic(report)}
    return {pair: row for pair, row in (report.get("paired") or {}).items() if {*pair.split(" - ")} <= kept}


def _slices(report: Mapping[str, Any]) -> Iterator[str]:
    found = report.get("slices") or {}
    if not found:
        return
    widest = sorted(found, key=lambda name: -int(found[name].get("n") or 0))[:MOST_SLICES]
    kept = {name: found[name] for name in found if name in widest}
    yield "### Slices\n"
    if len(kept) < len(found):
        yield f"The {len(kept)} widest of {len(found)}.\n"
    yield table(tables.slices({**report, "slices": kept}))
    yield from (f"- `{name}`: {SLICES[name]}" for name in kept if name in SLICES)
    yield ""


def _certificate(description: Mapping[str, Any]) -> Iterator[str]:
    found = description.get("certificate") or {}
    if not found:
        yield "No certificate.\n"
        return
    engine = f"{found.get('engine', '?')} {found.get('version', '')}".strip()
    verdict = "passed" if found.get("verdict") == "passed" else "FAILED"
    split = f" of the {found['split']} split" if found.get("split") else ""
    yield (
        f"The artefact was run in {plain_text(engine)} on {number(found.get('rows'))} held-out inputs{split} and "
        f"compared with the tuned model over float32 weights: **{verdict}**.\n"
    )
    wrong = [str(reason) for reason in found.get("wrong") or ()]
    if wrong:
        yield "\n".join(f"- {plain_text(reason)}" for reason in wrong) + "\n"
    if fit := (found.get("own") or {}).get("fit"):
        yield (
            f"It was fitted to the tuned model's outputs on {number(fit.get('texts'))} texts "
            f"({number(fit.get('steps'))} steps, rank {number(fit.get('rank'))}); on texts held out of the fit "
            f"{float(fit.get('missing_share') or 0):.1%} of the adapter's effect is missing.\n"
        )
    sheet = certificate(found, description.get("onto"))
    yield table(replace(sheet, notes=[note for note in sheet.notes if note not in wrong]))


def _data(description: Mapping[str, Any], card: Mapping[str, Any]) -> Iterator[str]:
    yield f"SHA-256 of the prepared data: `{description.get('data') or card.get('data_sha256') or 'unknown'}`.\n"
    counts = [(str(name).replace("_", " "), number(n)) for name, n in (card.get("counts") or {}).items() if _count(n)]
    if counts:
        yield table(Sheet(("what", "how many"), counts))
    split = card.get("split") or {}
    parts = {name: part for name, part in split.items() if isinstance(part, Mapping)}
    if parts:
        how = ", ".join(f"{key} {value}" for key, value in split.items() if not isinstance(value, Mapping | list))
        columns = list(dict.fromkeys(key for part in parts.values() for key, n in part.items() if _count(n)))
        rows = [(name, *(number(part.get(key)) for key in columns)) for name, part in parts.items()]
        yield f"Split: {plain_text(how)}.\n"
        yield table(Sheet(("split", *(column.replace("_", " ") for column in columns)), rows))
    gone = [(str(reason), number(n)) for reason, n in (card.get("dropped") or {}).items() if n]
    aside = (card.get("quarantined") or {}).get("by_rule") or {}
    gone += [(f"set aside: {rule}", number(n)) for rule, n in aside.items() if n]
    if gone:
        yield table(Sheet(("rows left out", "rows"), gone[:MOST_SLICES]))
    else:
        yield "No row was dropped or set aside.\n"


def _count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _limits(description: Mapping[str, Any], report: Mapping[str, Any] | None, card: Mapping[str, Any]) -> Iterator[str]:
    serving, found = description["serving"], description.get("certificate") or {}
    yield (
        f"- Made for {plain_text(serving['task'])} on texts like those of its training data; other languages, shops "
        "and tasks were not measured. Not for decisions about people."
    )
    yield (
        f"- Text beyond {number(serving['max_tokens'])} tokens is not read. Padding stands on the "
        f"{serving.get('padding_side', 'right')}: an engine that pads, pools or cuts otherwise serves other scores."
    )
    yield from (f"- {line}" for line in _cut(card.get("lengths") or {}))
    k_bit = found.get("k_bit") or {}
    if description["base"]["model"].get("quantization", "none") != "none" and k_bit.get("kl") is not None:
        yield (
            f"- Tuned over k-bit weights: the model as it was evaluated is {number(k_bit['kl'])} (KL) from its own "
            f"float32 weights, where the adapter's whole effect is {number(k_bit.get('effect_kl'))}."
        )
    if report:
        yield from (f"- {line}" for line in _weak(report))
    else:
        yield "- Its quality on the test split is unknown."
    for name, words in (("cold_item_share", "wanted items"), ("cold_user_share", "users")):
        share = ((card.get("split") or {}).get("test") or {}).get(name)
        if share:
            yield f"- {share:.1%} of the test split's {words} were never met in training."
    yield ""


def _cut(lengths: Mapping[str, Any]) -> Iterator[str]:
    for name, part in lengths.items():
        lost = part.get("rows_losing_tokens") if isinstance(part, Mapping) else None
        if lost and part.get("texts") and lost >= MUCH_CUT * part["texts"]:
            yield f"{lost / part['texts']:.1%} of the {plain_text(name)} are longer than that and lose their end."


def _weak(report: Mapping[str, Any]) -> Iterator[str]:
    n = report.get("n")
    if isinstance(n, int) and n < FEW_RECORDS:
        yield f"Measured on {number(n)} records only: the intervals are wide."
    metric = reading.main_metric(report)
    up = 1 if reading.higher_is_better(metric) else -1
    for name, part in (report.get("slices") or {}).items():
        entry = ((part.get("paired") or {}).get("tuned - base") or {}).get(metric) or {}
        if entry.get("mean") is not None and reading.is_clear(entry.get("ci")) and up * entry["mean"] < 0:
            yield f"On the slice {plain_text(name)} (n = {number(part.get('n'))}) it is worse than the untuned base."
    for name in ("cold_item", "cold_user"):
        part = (report.get("slices") or {}).get(name) or {}
        value = ((part.get("rows") or {}).get("tuned") or {}).get(metric)
        if value is not None:
            whole = (report.get("tuned") or {}).get(metric)
            yield f"On {name} ({SLICES[name]}) {metric} is {number(value)}, over all records {number(whole)}."


def _licences(licences: Mapping[str, str]) -> Iterator[str]:
    yield f"- Base: {plain_text(licences.get('base') or UNSTATED)}"
    yield f"- Data: {plain_text(licences.get('data') or UNSTATED)}"
    yield ""


def _verify() -> Iterator[str]:
    yield (
        "`recft-export.json` holds the SHA-256 of every file and the whole certificate. This checks the files and runs "
        "the artefact in its engine again; FOLDER is this folder:\n"
    )
    yield fenced("recft verify FOLDER", "sh")


def _recipe(recipe_yaml: str) -> Iterator[str]:
    yield "As resolved; folders of the machine that it ran on are left out.\n"
    yield fenced("\n".join(map(_without_folders, recipe_yaml.splitlines())), "yaml")


def _without_folders(line: str) -> str:
    """A line of YAML whose value, where it is an absolute path, is the file's name.

    >>> _without_folders("    path: /home/me/shop/items.csv"), _without_folders("- 'D:/a shop/b.csv'")
    ('    path: items.csv', "- 'b.csv'")
    >>> _without_folders("  after: / the next one"), _without_folders("  before: /home/me/x")
    ('  after: / the next one', '  before: x')
    """
    found = re.fullmatch(r"(\s*(?:- )*(?:([\w-]+): )?)(['\"]?)(/.+|[A-Za-z]:[\\/].+|~[\\/].+|\\\\.+)\3", line)
    if not found or (found[2] and found[2] not in NAMES_FILES and " " in found[4]):
        return line
    return f"{found[1]}{found[3]}{_name(found[4])}{found[3]}"


def _name(path: str) -> str:
    """The last part of an absolute path; any other text as it is."""
    if PureWindowsPath(path).drive:
        return PureWindowsPath(path).name or path
    return PurePosixPath(path).name or path if path.startswith(("/", "~")) else path
