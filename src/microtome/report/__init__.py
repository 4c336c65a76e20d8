"""What a reader gets: a self-contained HTML report, a light table for notebooks, plain text for terminals.

Everything here reads an :class:`~microtome.finding.Examination` and knows no instrument by name.
"""

from __future__ import annotations

from pathlib import Path

from microtome.finding import Examination

__all__ = ["notebook_html", "report_html", "write_report"]


def write_report(exam: Examination, path: str | Path) -> Path:
    """Write the report as one HTML file that needs no network; into a folder, under the examination's id.

    Raises:
        UsageError: MT150, when the file cannot be written.
    """
    from microtome.report.html import write_report as write

    return write(exam, path)


def report_html(exam: Examination) -> str:
    """Return the report as one HTML document."""
    from microtome.report.html import report_html as render

    return render(exam)


def notebook_html(exam: Examination) -> str:
    """Return a light static table of the headline numbers: no script, less than 100 KB."""
    from microtome.report.notebook import notebook_html as render

    return render(exam)
