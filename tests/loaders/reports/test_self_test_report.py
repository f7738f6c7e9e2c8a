import dataclasses

from loaders.errors import SelfTestError
from loaders.reports.self_test import Check, SelfTestReport


def test_report_says_what_failed_and_whom_to_suspect():
    checks = (
        Check("model.layers.0.q", False, "output 3 is off by 1", 9.0, "fast"),
        Check("logits", True, "all finite"),
    )
    report = SelfTestReport(False, checks, "fast+slow", 0.1, 1)
    assert str(report) == "self-test of fast+slow failed: model.layers.0.q: output 3 is off by 1"
    assert report.suspects == {"fast"}
    of_logits = dataclasses.replace(report, checks=(Check("logits", False, "NaN"),))
    assert of_logits.suspects == {"fast", "slow"}
    assert dataclasses.replace(report, checks=checks[1:], passed=True).suspects == frozenset()


def test_the_error_carries_the_report_and_says_what_to_do():
    report = SelfTestReport(False, (Check("logits", False, "NaN"),), "fast", 0.1, 1)
    error = SelfTestError(report)
    assert error.report is report
    assert str(error).endswith("logits: NaN; another --backend may compute it rightly")
