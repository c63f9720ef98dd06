"""JUnit XML of gates."""

from __future__ import annotations

from xml.etree import ElementTree

from recft.reports.junit import junit


def test_gates_become_test_cases() -> None:
    report = {
        "name": "店 <&>",
        "protocol": {"split": "valid"},
        "seconds": 2.345,
        "gates": [
            {"gate": "auc >= 0.7", "passed": True, "line": "auc = 0.8 is >= 0.7"},
            {"gate": 'f1 > "1"', "passed": False, "line": "f1 = 0.1 is not > 1 \x00<"},
        ],
    }
    root = ElementTree.fromstring(junit(report).encode())
    suite = root[0]
    assert (
        suite.attrib
        == {
            "name": "recft.店 <&>.valid",
            "tests": "2",
            "failures": "1",
            "errors": "0",
            "skipped": "0",
            "time": "2.35",
        }
        or suite.attrib["time"] == "2.34"
    )
    assert [case.attrib["name"] for case in suite] == ["auc >= 0.7", 'f1 > "1"']
    assert suite[0].find("failure") is None
    failure = suite[1].find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "f1 = 0.1 is not > 1 <"


def test_without_gates_the_suite_is_empty() -> None:
    assert len(ElementTree.fromstring(junit({"name": "x"}))[0]) == 0
