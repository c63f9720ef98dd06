"""JUnit XML of gates."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from recft.reports.junit import junit

REPORT = {
    "name": "店 <&>",
    "task": "retrieval",
    "n": 12,
    "tuned": {"ndcg@10": 0.75, "gauc": None},
    "protocol": {"split": "valid", "data": "ab\x00c", "sampled": False},
    "seconds": 2.5,
    "gates": [
        {"gate": "auc >= 0.7", "passed": True, "line": "auc = 0.8 is >= 0.7"},
        {"gate": 'f1 > "1"', "passed": False, "line": "f1 = 0.1 is not > 1 \x00<"},
        {"gate": "mrr[brand=打印机] >= base", "passed": False, "line": "there is no slice", "error": True},
    ],
}


def test_gates_become_test_cases() -> None:
    root = ElementTree.fromstring(junit(REPORT).encode())
    assert root.attrib == {"tests": "3", "failures": "1", "errors": "1", "time": "2.50"}
    suite = root[0]
    counts = {"tests": "3", "failures": "1", "errors": "1", "skipped": "0", "time": "2.50"}
    assert suite.attrib == {"name": "recft.店 <&>.valid", **counts}
    passed, failed, unjudged = suite.findall("testcase")
    assert [case.attrib["name"] for case in (passed, failed, unjudged)] == [
        "auc >= 0.7",
        'f1 > "1"',
        "mrr[brand=打印机] >= base",
    ]
    assert [child.tag for child in passed] == ["system-out"]
    assert [child.tag for child in failed] == ["failure"]
    assert failed[0].attrib["message"] == failed[0].text == "f1 = 0.1 is not > 1 <"
    assert [child.tag for child in unjudged] == ["error"]


def test_the_suite_says_what_was_measured() -> None:
    suite = ElementTree.fromstring(junit(REPORT).encode())[0]
    assert suite[0].tag == "properties", "the schema of JUnit wants them first"
    found = {part.attrib["name"]: part.attrib["value"] for part in suite[0]}
    assert found["task"] == "retrieval"
    assert found["protocol.data"] == "abc"
    assert found["tuned.ndcg@10"] == "0.75"
    assert found["tuned.gauc"] == "undefined"


def test_without_gates_the_suite_is_empty() -> None:
    assert not ElementTree.fromstring(junit({"name": "x"}))[0].findall("testcase")


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=30))
def test_any_text_gives_xml_that_can_be_read(text: str) -> None:
    gate = {"gate": text, "passed": False, "line": text}
    root = ElementTree.fromstring(junit({"name": text, "gates": [gate]}).encode())
    failure = root[0].find("testcase/failure")
    assert failure is not None
    kept = "".join(sign for sign in text if sign.isprintable() and sign not in "\r\n\t\ufffe\uffff")
    assert all(sign in failure.attrib["message"] for sign in kept)
